"""Export: a checkpoint as a folder of its own that upstream's tools load, with a model card that shows the evidence.

A full checkpoint and an adapter are copied as they are; an adapter may be merged into its base model, in fp32 and one
tensor at a time, and written in the base's dtype. An adapter that upstream's tools cannot place leaves merged alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from voxtrain.checkpoint.card import model_card
from voxtrain.checkpoint.retention import read_evidence
from voxtrain.checkpoint.stream import DTYPES, LazyTensor, write_safetensors
from voxtrain.checkpoint.weights import check_belongs, check_content
from voxtrain.checkpoint.writer import MODEL, STEP, companions
from voxtrain.durable import folder_aside, read_json, write_whole
from voxtrain.fault import Fault, InputError
from voxtrain.model.adapter_files import OURS, AdapterFiles, files_in
from voxtrain.run_folder import RunFolder


def chosen_step(run: RunFolder, wanted: str) -> int:
    """The step that `wanted` names: a number, or `selected`. Raises InputError where there is no such checkpoint."""
    steps = run.checkpoint_steps()
    if wanted == "selected":
        step = read_evidence(run).selected
        if step is None:
            remedy = f"run `python -m voxtrain.validation {run.root}` first, or name a step by --step"
            raise InputError(Fault(str(run.root), "no checkpoint is selected yet", remedy))
    elif wanted.isdecimal():
        step = int(wanted)
    else:
        raise InputError(Fault(f"--step {wanted}", "this is no step", "say a number, or `selected`"))
    if step not in steps:
        told = ", ".join(map(str, steps)) or "none"
        raise InputError(Fault(f"--step {step}", "the run holds no such checkpoint", f"there are: {told}"))
    return step


def export(run: RunFolder, step: int, out: Path, *, merged: bool) -> Path:
    """Write checkpoint `step` as the folder `out`, which must not exist or be empty; returns it.

    merged: put the adapter of a LoRA run into its base model. Raises InputError where that, or `out`, cannot be, and
    when a file of the checkpoint is not what was written.
    """
    source = run.checkpoint(step)
    faults = _faults(source, out, merged)
    if faults:
        raise InputError(*faults)
    adapter = files_in(source)
    _check(source)
    check_belongs(run, step)
    with folder_aside(out) as aside:
        if merged and adapter is not None:
            _write_merged(source, adapter, aside)
        else:
            for path in sorted(source.iterdir()):
                shutil.copyfile(path, aside / path.name)
        write_whole(aside / "README.md", model_card(run, step, merged=merged))
    return out


def _faults(source: Path, out: Path, merged: bool) -> list[Fault]:
    adapter, faults = files_in(source), []
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        faults.append(Fault(str(out), "this exists and is not an empty folder", "name a new folder"))
    if adapter is None:
        return faults + ([Fault("--merged", f"{source} holds full weights, no adapter", "leave it out")] * merged)
    if adapter == OURS and not merged:
        what = "tuning.locenc and tuning.stop_head place adapters that upstream's tools would pass over without a word"
        faults.append(Fault(str(source / adapter.weights), what, "add --merged, which puts them into the base model"))
    if merged:
        base = Path(read_json(source / adapter.config)["base_model"])
        if not (base / MODEL).is_file():
            remedy = f"put the base model there, or mend base_model in {source / adapter.config}"
            faults.append(Fault(str(base), f"the base model is not there ({MODEL})", remedy))
    return faults


def _check(source: Path) -> None:
    """Raise InputError unless every file of the checkpoint is what was written: a flipped bit goes no further."""
    try:
        check_content(source)
    except OSError as error:
        remedy = "restore the folder from a copy, or export another step"
        raise InputError(Fault(str(source), f"it cannot be read: {error}", remedy)) from None


def _write_merged(source: Path, adapter: AdapterFiles, aside: Path) -> None:
    config = read_json(source / adapter.config)
    base, lora = Path(config["base_model"]), config["lora_config"]
    with merged_tensors(base / MODEL, source / adapter.weights, scale=lora["alpha"] / lora["r"]) as tensors:
        write_safetensors(aside / MODEL, tensors)
    for path in companions(base):
        shutil.copyfile(path, aside / path.name)
    shutil.copyfile(source / STEP, aside / STEP)


@contextmanager
def merged_tensors(model: Path, adapter: Path, scale: float) -> Iterator[dict[str, LazyTensor]]:
    """The base's tensors, each with `scale * B @ A` added where the adapter has one, made when written.

    Upstream's LoRALinear computes x W^T + scale (x A^T) B^T (modules/layers/lora.py). Raises InputError where the
    adapter names a layer that the base lacks.
    """
    with safe_open(model, framework="pt") as base, safe_open(adapter, framework="pt") as added:
        layers = {key.removesuffix(".lora_A") for key in added.keys() if key.endswith(".lora_A")}  # noqa: SIM118
        names = set(base.keys())
        strange = sorted(layer for layer in layers if f"{layer}.weight" not in names)
        if strange:
            what = f"the base model lacks {len(strange)} layers of the adapter, such as {strange[0]}"
            raise InputError(Fault(str(adapter), what, "export it with the base model that it was trained on"))
        yield {name: _lazy(base, added, name, layers, scale) for name in sorted(names)}


def _lazy(base: Any, added: Any, name: str, layers: set[str], scale: float) -> LazyTensor:
    view, layer = base.get_slice(name), name.removesuffix(".weight")
    make = _adapted(base, added, layer, scale) if name == f"{layer}.weight" and layer in layers else _same(base, name)
    return LazyTensor(tuple(view.get_shape()), DTYPES[view.get_dtype()], lambda: nullcontext(make()))


def _same(base: Any, name: str) -> Callable[[], Tensor]:
    def make() -> Tensor:
        tensor: Tensor = base.get_tensor(name)
        return tensor

    return make


def _adapted(base: Any, added: Any, layer: str, scale: float) -> Callable[[], Tensor]:
    def make() -> Tensor:
        low, high = added.get_tensor(f"{layer}.lora_A").float(), added.get_tensor(f"{layer}.lora_B").float()
        weight: Tensor = base.get_tensor(f"{layer}.weight").float()
        merged: Tensor = weight + scale * (high @ low)
        return merged

    return make
