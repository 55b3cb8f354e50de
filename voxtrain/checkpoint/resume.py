"""Resumable states, read: put back bit for bit, strictly, after every file was compared with its checksum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from voxtrain.checkpoint.facts import OPTIMIZER, OPTIMIZER_PLAIN, WEIGHTS, broken, check_content, read_facts
from voxtrain.checkpoint.optimizer_tree import put_together
from voxtrain.checkpoint.snapshot import Learner, finish_device_work
from voxtrain.checkpoint.stream import DTYPES, LazyTensor
from voxtrain.durable import read_json
from voxtrain.fault import Fault, InputError
from voxtrain.run_folder import RunFolder


def load_state(run: RunFolder, module: Learner, optimizer: Optimizer) -> int:
    """Put the newest state into `module` and `optimizer`, bit for bit, and return its step. Strict: nothing is skipped.

    Raises InputError when the state is not what was written, or is that of another model, adapter or optimizer.
    """
    facts = read_facts(run)
    folder = run.state(facts.step)
    check_content(folder, facts)
    saved = _read_optimizer(folder)
    _load_weights(folder, module.learnt_tensors())
    _load_optimizer(optimizer, saved, folder)
    module.steps_done, module.rows_seen, module.skipped = facts.step, facts.rows_seen, list(facts.skipped)
    return facts.step


@contextmanager
def weights_of_state(run: RunFolder, step: int) -> Iterator[dict[str, LazyTensor]]:
    """The learnt tensors of a state, each read from its file when it is looked at."""
    folder = run.state(step)
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device="cpu") as saved:
            yield {name: _lazily_read(saved, name) for name in saved.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(broken(folder, str(error))) from None


def _lazily_read(saved: Any, name: str) -> LazyTensor:
    view = saved.get_slice(name)
    return LazyTensor(tuple(view.get_shape()), DTYPES[view.get_dtype()], lambda: nullcontext(saved.get_tensor(name)))


def _read_optimizer(folder: Path) -> dict[str, Any]:
    try:
        with safe_open(folder / OPTIMIZER, framework="pt", device="cpu") as saved:
            state: dict[str, Any] = put_together(read_json(folder / OPTIMIZER_PLAIN), saved.get_tensor)
            return state
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(broken(folder, str(error))) from None


def _load_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device="cpu") as saved, torch.no_grad():
            _check_names(folder, set(saved.keys()), set(tensors))
            for name, tensor in tensors.items():
                value = saved.get_tensor(name)
                if value.shape != tensor.shape or value.dtype != tensor.dtype:
                    raise InputError(_other_model(folder, name, value, tensor))
                tensor.copy_(value)
    except SafetensorError as error:
        raise InputError(broken(folder, str(error))) from None


def _check_names(folder: Path, saved: set[str], wanted: set[str]) -> None:
    if saved != wanted:
        missing, extra = sorted(wanted - saved), sorted(saved - wanted)
        what = (
            f"it lacks {len(missing)} tensors that learn {missing[:3]} and holds {len(extra)} that do not {extra[:3]}"
        )
        raise InputError(Fault(str(folder), what, "resume with the model and the tuning that the run was started with"))


def _other_model(folder: Path, name: str, saved: Tensor, wanted: Tensor) -> Fault:
    what = f"{name} is {_told(saved)} there and {_told(wanted)} here"
    if name.endswith("lora_A"):
        what += f": an adapter of rank {saved.shape[0]}, where tuning.rank is {wanted.shape[0]}"
    return Fault(str(folder), what, "resume with the model and the tuning that the run was started with")


def _told(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any], folder: Path) -> None:
    try:
        if getattr(optimizer, "is_paged", False):
            # By itself bitsandbytes would put paged state on the card as ordinary tensors: 4.3 GiB more after a resume.
            optimizer.load_state_dict(saved, move_to_device=False)  # type: ignore[call-arg]
            _page_again(optimizer)
        else:
            optimizer.load_state_dict(saved)
    except (ValueError, KeyError) as error:
        what = f"the optimizer's state does not fit: {error}"
        raise InputError(Fault(str(folder), what, "resume with the optimizer that the run was started with")) from None


def _page_again(optimizer: Any) -> None:
    """Put loaded state into the optimizer's own buffers, paged where it pages (bitsandbytes: get_state_buffer)."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name in ("state1", "state2"):
                buffer = optimizer.get_state_buffer(parameter, dtype=value.dtype)
                buffer.copy_(value.reshape(buffer.shape))
                state[name] = buffer
            elif isinstance(value, Tensor):
                state[name] = value.to(parameter.device)
    finish_device_work()
