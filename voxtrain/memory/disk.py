"""How many bytes a run will write, by arithmetic, and whether the disk has them. Imports no torch."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from voxtrain.fault import Fault
from voxtrain.memory.moments import moment_tensors
from voxtrain.memory.stack import MemoryStack
from voxtrain.model.tensors import learnt_shapes
from voxtrain.model.weights_index import file_bytes

RESERVE_BYTES = 64 * 2**20
"""What logs, tables and the page are given beside the weights."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What a run writes into its folder."""

    checkpoints: int  # numbered folders still to be written
    checkpoint_bytes: int  # of one of them
    state_bytes: int  # of one resumable state
    states_standing: int  # resumable states that lie there already

    @property
    def added_at_rest_bytes(self) -> int:
        """Bytes that will have been added when the run is done: all numbered checkpoints and one state."""
        return self.checkpoints * self.checkpoint_bytes + (1 - self.states_standing) * self.state_bytes

    @property
    def added_at_peak_bytes(self) -> int:
        """Bytes added while the last state is written: it is complete before the older one goes."""
        return self.added_at_rest_bytes + self.state_bytes


def disk_plan(
    architecture: Mapping[str, Any],
    lora: Mapping[str, Any] | None,
    *,
    checkpoints: int,
    weights: Literal["bf16", "fp32"],
    stack: MemoryStack,
    carried_bytes: int,
    states_standing: int,
) -> DiskPlan:
    """The bytes of a run's tensor files, to the last one; the JSON beside them is part of `RESERVE_BYTES`.

    lora: LoraTuning.adapter_config, whose weights are written in fp32; None under full fine-tuning. checkpoints:
    numbered ones that are still to be written. weights: their dtype under full fine-tuning. stack: how a resumable
    state is held, and so written. carried_bytes: what a full checkpoint carries beside its weights and cannot be linked
    (0 where hard links work).
    """
    shapes, adapters = learnt_shapes(architecture, lora), lora is not None

    def in_dtype(dtype: Literal["bf16", "fp32"]) -> int:
        name = {"bf16": "BF16", "fp32": "F32"}["fp32" if adapters else dtype]
        return file_bytes({tensor: (name, shape) for tensor, shape in shapes.items()})

    return DiskPlan(
        checkpoints=checkpoints,
        checkpoint_bytes=in_dtype(weights) + (0 if adapters else carried_bytes),
        state_bytes=in_dtype(stack.weights)
        + file_bytes(moment_tensors(list(shapes.values()), stack, adapters=adapters)),
        states_standing=states_standing,
    )


def free_bytes(folder: Path) -> int:
    """The bytes that a user may still write on the disk that holds `folder`, which need not exist yet."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def writable_faults(folder: Path) -> list[Fault]:
    """The fault of a folder, which need not exist yet, into which nothing can be written. Leaves nothing behind."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            return []
    except OSError as error:
        what = f"nothing can be written in {there}: {error.strerror}"
        return [Fault(f"run folder {folder}", what, "mend its permissions, or name another by hydra.run.dir=...")]


def disk_faults(need: DiskPlan, folder: Path, free: Callable[[Path], int] = free_bytes) -> list[Fault]:
    """The fault of a disk that cannot hold the planned checkpoints, if it is one. Told before anything starts."""
    available = free(folder)
    wanted = need.added_at_peak_bytes + RESERVE_BYTES
    if wanted <= available:
        return []
    states = 2 - need.states_standing
    return [
        Fault(
            f"disk of {folder}",
            f"{need.checkpoints} numbered checkpoints of {told_size(need.checkpoint_bytes)} and {states} resumable "
            f"{'state' if states == 1 else 'states'} of {told_size(need.state_bytes)} (a new one is complete before "
            f"the older one goes) need {told_size(wanted)}, and {told_size(available)} are free",
            "free some space, raise checkpoint.every, set checkpoint.weights=bf16, or name another disk by "
            "hydra.run.dir=...",
        )
    ]


def told_size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**27 else f"{count / 2**20:.1f} MiB"
