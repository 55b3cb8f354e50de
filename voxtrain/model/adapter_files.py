"""The two files of a LoRA checkpoint: upstream's, or ours where adapters sit that upstream's LoRAConfig cannot name.

Upstream's loader skips adapters that its model lacks and says nothing of them (voxcpm2.py: load_lora_weights). So a
checkpoint with adapters in LocEnc or on the stop layers must not look like one of upstream's: under other names it is
not found at all, and only its merged export goes to upstream's tools. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtrain.durable import read_json

BEYOND = ("locenc_targets", "stop_head")
"""The keys of LoraTuning.adapter_config that upstream's LoRAConfig has no fields for."""
READERS = "voxtrain alone; for upstream's tools: python -m voxtrain.checkpoint export RUN OUT --merged"


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """Names in a LoRA checkpoint's folder."""

    weights: str
    config: str


UPSTREAMS = AdapterFiles("lora_weights.safetensors", "lora_config.json")
OURS = AdapterFiles("adapter.safetensors", "adapter.json")


def beyond_upstream(adapter_config: Mapping[str, Any]) -> dict[str, Any]:
    """What of an adapter's configuration upstream cannot name; empty where upstream's tools load it as it is."""
    return {key: adapter_config[key] for key in BEYOND if adapter_config.get(key)}


def files_for(adapter_config: Mapping[str, Any]) -> AdapterFiles:
    """The names under which a checkpoint with these adapters is written."""
    return OURS if beyond_upstream(adapter_config) else UPSTREAMS


def files_in(folder: Path) -> AdapterFiles | None:
    """The names under which a checkpoint holds its adapters; None where it holds none."""
    return next((files for files in (UPSTREAMS, OURS) if (folder / files.weights).is_file()), None)


def upstreams_fields(adapter_config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of upstream's LoRAConfig."""
    return {key: value for key, value in adapter_config.items() if key not in BEYOND}


def described(base: Path, adapter_config: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration file of a checkpoint says: the base model's folder, upstream's fields and ours apart."""
    record = {"base_model": str(base.resolve()), "lora_config": upstreams_fields(adapter_config)}
    beyond = beyond_upstream(adapter_config)
    return {**record, "beyond_upstream": beyond, "readers": READERS} if beyond else record


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The configuration of a LoRA checkpoint's adapters, with every key of LoraTuning.adapter_config."""
    record = read_json(config_file(folder))
    absent: dict[str, Any] = {"locenc_targets": [], "stop_head": False}
    return {**record["lora_config"], **absent, **record.get("beyond_upstream", {})}


def config_file(folder: Path) -> Path:
    """The configuration file of a LoRA checkpoint; upstream's name where the folder holds no adapters at all."""
    return folder / (files_in(folder) or UPSTREAMS).config
