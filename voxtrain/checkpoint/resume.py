"""Resumable states: everything a run needs to go on bit for bit, in one folder that is complete or absent.

A state holds the learnt tensors at the precision in which they learn, the optimizer's state and the counters. It
holds no random state and no place in the data, since every draw and every row is a function of (seed, place).
The newer state is complete before the older one goes, so that one good state exists at every instant.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from voxtrain import __version__
from voxtrain.checkpoint.folders import remove_folder
from voxtrain.checkpoint.stream import lazily, write_safetensors
from voxtrain.checkpoint.writer import needed_bytes
from voxtrain.durable import folder_aside, read_json, write_json
from voxtrain.fault import Fault, InputError
from voxtrain.run_folder import RunFolder

WEIGHTS, OPTIMIZER, FACTS = "weights.safetensors", "optimizer.pt", "state.json"


class Learner(Protocol):
    """What a state is taken from and put back into: VoxModule, and the stand-ins of tests."""

    steps_done: int
    rows_seen: int
    skipped: list[int]

    def learnt_tensors(self) -> dict[str, Tensor]:
        """The tensors that learn, by name; they share memory with the model."""
        ...


@dataclass(frozen=True, slots=True)
class Facts:
    """state.json."""

    step: int
    rows_seen: int
    skipped: list[int]
    fingerprint: str  # of the settings that may not change
    voxtrain: str
    size_bytes: dict[str, int]  # of each file beside it


def write_state(run: RunFolder, module: Learner, optimizer: Optimizer, fingerprint: str) -> int:
    """Write the state after `module.steps_done` updates, unless it stands there already, and remove the older ones.

    Returns the step. Raises OSError when the disk is full or not writable; the older state stands untouched then.
    """
    step = module.steps_done
    folder = run.state(step)
    if not folder.exists():
        _finish_device_work()
        with folder_aside(folder) as aside:
            write_safetensors(aside / WEIGHTS, lazily(module.learnt_tensors(), None))
            _save(_plain(optimizer.state_dict()), aside / OPTIMIZER)
            sizes = {name: (aside / name).stat().st_size for name in (WEIGHTS, OPTIMIZER)}
            facts = Facts(step, module.rows_seen, list(module.skipped), fingerprint, __version__, sizes)
            write_json(aside / FACTS, asdict(facts))
    for older in run.state_steps():
        if older != step:
            remove_folder(run.state(older))
    return step


def _save(state: dict[str, Any], path: Path) -> None:
    """torch.save, which tells of a full disk only as a RuntimeError about a wrong position in the file."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if "inline_container" not in str(error):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def read_facts(run: RunFolder) -> Facts:
    """What the newest state says of itself. Raises InputError where there is none, or it is not whole."""
    steps = run.state_steps()
    if not steps:
        raise InputError(Fault(f"resume = {run.root}", "the run has saved no state to go on from", "start a new run"))
    folder = run.state(steps[-1])
    try:
        facts = Facts(**read_json(folder / FACTS))
        wrong = [name for name, size in facts.size_bytes.items() if (folder / name).stat().st_size != size]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(_broken(folder, str(error))) from None
    if wrong:
        raise InputError(_broken(folder, f"{', '.join(wrong)} was cut short or changed"))
    return facts


def load_state(run: RunFolder, module: Learner, optimizer: Optimizer) -> int:
    """Put the newest state into `module` and `optimizer`, bit for bit, and return its step. Strict: nothing is skipped.

    Raises InputError when the state is not whole, or is that of another model, adapter or optimizer.
    """
    facts = read_facts(run)
    folder = run.state(facts.step)
    _load_weights(folder, module.learnt_tensors())
    saved = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    _load_optimizer(optimizer, saved, folder)
    module.steps_done, module.rows_seen, module.skipped = facts.step, facts.rows_seen, list(facts.skipped)
    return facts.step


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
        raise InputError(_broken(folder, str(error))) from None


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


def _broken(folder: Path, what: str) -> Fault:
    return Fault(str(folder), f"the state cannot be read: {what}", "restore the folder from a copy, or start a new run")


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
    _finish_device_work()


def _plain(value: Any) -> Any:
    """The same state without attributes on its tensors: bitsandbytes marks paged ones, and a copy is not paged."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(inner) for inner in value)
    return value


def _finish_device_work() -> None:
    """Paged state is read by the CPU: what the card still does to it must be done first."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        torch.cuda.synchronize()


def state_bytes(module: Learner, optimizer: Optimizer) -> int:
    """The bytes that the next state will take, nearly (the index of its files is small)."""
    weights = needed_bytes(module.learnt_tensors().values(), None)
    return weights + sum(t.nbytes for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor))
