"""Resumable states, written: everything a run needs to go on bit for bit, in one folder that is complete or absent.

A state holds the learnt tensors at the precision in which they learn, the optimizer's state and the counters. It
holds no random state and no place in the data, since every draw and every row is a function of (seed, place).
The newer state is complete before the older one goes, so that one good state exists at every instant.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from voxtrain import __version__
from voxtrain.checkpoint.digests import STATE, digest_of
from voxtrain.checkpoint.facts import FACTS, OPTIMIZER, OPTIMIZER_PLAIN, WEIGHTS, Facts, Origin
from voxtrain.checkpoint.folders import remove_folder
from voxtrain.checkpoint.held import Held
from voxtrain.checkpoint.optimizer_tree import take_apart
from voxtrain.checkpoint.stream import LazyTensor, lazily, write_safetensors
from voxtrain.durable import folder_aside, write_json
from voxtrain.run_folder import RunFolder


class Learner(Protocol):
    """What a state is taken from and put back into: VoxModule, and the stand-ins of tests."""

    steps_done: int
    rows_seen: int
    skipped: list[int]

    def learnt_tensors(self) -> dict[str, Tensor]:
        """The tensors that learn, by name; they share memory with the model."""
        ...


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state that is to be written: plain values as they are now, and tensors that are read when their turn comes."""

    step: int
    rows_seen: int
    skipped: tuple[int, ...]
    weights: Mapping[str, LazyTensor]
    moments: Mapping[str, LazyTensor]
    plain: Any  # the optimizer's state without its tensors

    @property
    def nbytes(self) -> int:
        """The bytes that the state will take, nearly: the index of its files is small."""
        return sum(tensor.nbytes for part in (self.weights, self.moments) for tensor in part.values())


def take_snapshot(
    module: Learner, optimizer: Optimizer, held: Held | None, weights: Mapping[str, LazyTensor]
) -> Snapshot:
    """The state after `module.steps_done` updates.

    weights: the module's learnt tensors in their own dtypes. held: what keeps the optimizer's tensors as they are now
    while training goes on; None where it does not.
    """
    finish_device_work()
    plain, tensors = take_apart(optimizer.state_dict())
    moments = lazily(tensors if held is None else held.hold(tensors, readings=1), None)
    return Snapshot(module.steps_done, module.rows_seen, tuple(module.skipped), weights, moments, plain)


def write_snapshot(run: RunFolder, snapshot: Snapshot, origin: Origin) -> int:
    """Write the state, unless it stands there already, and remove the older ones; returns its step.

    Raises OSError when the disk is full or not writable; the older state stands untouched then.
    """
    folder = run.state(snapshot.step)
    if not folder.exists():
        with folder_aside(folder) as aside:
            _fill(aside, snapshot, origin)
    remove_older_states(run, snapshot.step)
    return snapshot.step


def remove_older_states(run: RunFolder, newest: int) -> None:
    """Remove every state but that of `newest`, which must be whole."""
    for older in run.state_steps():
        if older != newest:
            remove_folder(run.state(older))


def _fill(aside: Path, snapshot: Snapshot, origin: Origin) -> None:
    write_json(aside / OPTIMIZER_PLAIN, snapshot.plain)
    digests = {
        WEIGHTS: write_safetensors(aside / WEIGHTS, snapshot.weights, STATE),
        OPTIMIZER: write_safetensors(aside / OPTIMIZER, snapshot.moments, STATE),
        OPTIMIZER_PLAIN: digest_of(aside / OPTIMIZER_PLAIN, STATE),
    }
    facts = Facts(
        step=snapshot.step,
        rows_seen=snapshot.rows_seen,
        skipped=list(snapshot.skipped),
        fingerprint=origin.fingerprint,
        fingerprint_without_course=origin.fingerprint_without_course,
        data=origin.data,
        versions=dict(origin.versions),
        voxtrain=__version__,
        size_bytes={name: (aside / name).stat().st_size for name in digests},
        xxh3_128=digests,
        own_xxh3_128="",
    )
    write_json(aside / FACTS, asdict(replace(facts, own_xxh3_128=facts.digest())))


def write_state(run: RunFolder, module: Learner, optimizer: Optimizer, fingerprint: str) -> int:
    """Write the state of now while nothing else happens; returns its step. Raises OSError as `write_snapshot` does."""
    snapshot = take_snapshot(module, optimizer, None, lazily(module.learnt_tensors(), None))
    return write_snapshot(run, snapshot, Origin(fingerprint, fingerprint, None, {}))


def finish_device_work() -> None:
    """Paged state is read by the CPU: what the card still does to it must be done first."""
    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        torch.cuda.synchronize()


def can_be_read_beside_kernels(optimizer: Optimizer) -> bool:
    """Whether the CPU may read the optimizer's state while the card computes.

    Under Windows' WSL paged memory may not be touched by the CPU while any kernel runs (CUDA's C++ guide, unified
    memory: devices without concurrentManagedAccess): the process would be killed.
    """
    return not (getattr(optimizer, "is_paged", False) and "microsoft" in platform.uname().release.lower())
