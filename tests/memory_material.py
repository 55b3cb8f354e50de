"""Architectures, memory stacks and lengths for the tests of the memory room."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

from voxtrain.memory.longest import Length, Longest
from voxtrain.memory.stack import MemoryStack

CONF = Path(__file__).parents[1] / "conf"
STACKS = sorted(path.stem for path in (CONF / "memory").glob("*.yaml"))


def architecture(name: str = "voxcpm2", layers: int | None = None) -> dict[str, Any]:
    """An architecture of conf/model; `layers` in each of the four transformers, to be quick at full width."""
    found: dict[str, Any] = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())["architecture"]
    if layers is not None:
        found = copy.deepcopy(found)
        found["lm_config"]["num_hidden_layers"] = found["residual_lm_num_layers"] = layers
        found["encoder_config"]["num_layers"] = found["dit_config"]["num_layers"] = layers
    return found


def stack(name: str, **changes: Any) -> MemoryStack:
    """An option of conf/memory, with changes."""
    values = yaml.safe_load((CONF / "memory" / f"{name}.yaml").read_text())
    values.pop("_target_")
    return MemoryStack.model_validate({**values, **changes})


def alike(rows: int, positions: int, audio: int, micro_batches: int) -> Longest:
    """A micro-batch of equal rows without reference audio."""
    return Longest((Length(positions, audio, audio),) * rows, micro_batches)
