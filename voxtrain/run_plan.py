"""The plan of a run, from its settings: the memory of its longest step and the bytes that it will write. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from voxtrain.manifest.row import Row
from voxtrain.memory.activations import Longest
from voxtrain.memory.disk import DiskPlan, disk_plan
from voxtrain.memory.longest import assumed_longest, longest_of, row_positions
from voxtrain.memory.plan import MemoryPlan, Work, predict

if TYPE_CHECKING:
    from voxtrain.settings import Settings


def plan_work(settings: Settings, rows: Sequence[Row]) -> Work:
    """What is trained, on the longest step that `rows` can make; without rows every one lasts `clean.max_seconds`."""
    return Work(settings.model.architecture, settings.tuning.adapter_config(), _longest(settings, rows))


def plan_memory(settings: Settings, work: Work, written: Sequence[int]) -> MemoryPlan:
    """The memory plan on the card of the settings, with the disk's peak in it. written: as for `plan_disk`."""
    disk = plan_disk(settings, written)
    return predict(work, settings.memory, disk.added_at_peak_bytes, settings.memory.card_gib())


def plan_disk(settings: Settings, written: Sequence[int] = ()) -> DiskPlan:
    """The bytes still to be written by a run that has the numbered checkpoints `written`."""
    due = set(settings.checkpoint.steps(settings.train.total_steps())) - set(written)
    return disk_plan(
        settings.model.architecture,
        settings.tuning.adapter_config(),
        checkpoints=len(due),
        weights=settings.checkpoint.weights,
        stack=settings.memory,
        carried_bytes=0,  # companions are hard links
        states_standing=1 if written else 0,
    )


def _longest(settings: Settings, rows: Sequence[Row]) -> Longest:
    architecture, train, limit = settings.model.architecture, settings.train, settings.clean.max_seconds
    lasting = [(row.duration_s, row.text or "") for row in rows]
    known = [(seconds, text) for seconds, text in lasting if seconds is not None and seconds <= limit]
    if not known or any(seconds is None for seconds, _ in lasting):
        return assumed_longest(architecture, limit, train.batch_size, train.grad_accum, settings.memory.max_positions)
    positions = [row_positions(architecture, seconds, text) for seconds, text in known]
    rounds = math.ceil(train.rows_per_step() / len(positions))  # with few rows a step holds the longest several times
    longest = sorted(positions * rounds, reverse=True)[: train.rows_per_step()]
    return longest_of(longest, train.batch_size, settings.memory.max_positions)
