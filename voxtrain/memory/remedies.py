"""What to change when a run does not fit: each setting with the peak that the plan predicts for it. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from voxtrain.memory.activations import Longest
from voxtrain.memory.plan import MemoryPlan, Work, predict
from voxtrain.memory.stack import MemoryStack

WORTH_GIB = 0.05
"""A saving below this is not worth telling."""
ADAPTERS: Mapping[str, Any] = {
    "r": 32,
    "enable_lm": True,
    "enable_dit": True,
    "enable_proj": False,
    "target_modules_lm": ["q_proj", "v_proj", "k_proj", "o_proj"],
    "target_modules_dit": ["q_proj", "v_proj", "k_proj", "o_proj"],
    "target_proj_modules": [],
}
"""The adapters that `tuning=lora` is counted with; a rank more or less moves the peak by hundredths of a GiB."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change of settings."""

    setting: str
    saves_gib: float
    peak_gib: float
    fits: bool

    def __str__(self) -> str:
        enough = "fits" if self.fits else "does not yet fit"
        return f"{self.setting} saves {self.saves_gib:.2f} GiB (peak {self.peak_gib:.2f}, {enough})"


def remedies(work: Work, stack: MemoryStack, plan: MemoryPlan, count: int) -> list[Remedy]:
    """At most `count` changes: those that make the run fit, then those that save most."""
    found = []
    for setting, changed_work, changed_stack in _changes(work, stack):
        then = predict(changed_work, changed_stack, 0, plan.card_gib)
        saves = plan.peak_gib - then.peak_gib
        if saves >= WORTH_GIB:
            found.append(Remedy(setting, saves, then.peak_gib, then.fits))
    # Sorting is stable: of those that fit, the first are those that change least of the run.
    return sorted(found, key=lambda remedy: 0 if remedy.fits else remedy.peak_gib)[:count]


def _changes(work: Work, stack: MemoryStack) -> list[tuple[str, Work, MemoryStack]]:
    """Single changes and the pairs that go together, in the order of how little of the run they change."""
    row_by_row = _row_by_row(work)
    lean = stack.model_copy(update={"activation_checkpointing": True, "state": "paged_8bit"})
    found = [
        (f"memory.max_positions={row_by_row.longest.padded_positions}", row_by_row, stack),
        ("memory.activation_checkpointing=true", work, stack.model_copy(update={"activation_checkpointing": True})),
        ("memory.state=8bit", work, stack.model_copy(update={"state": "8bit"})),
        ("memory.state=paged_8bit", work, stack.model_copy(update={"state": "paged_8bit"})),
        ("memory.activation_checkpointing=true with memory.state=paged_8bit", work, lean),
    ]
    if work.lora is None:
        adapters = replace(work, lora=ADAPTERS)
        found += [("tuning=lora", adapters, stack)]
        found += [("tuning=lora with memory.activation_checkpointing=true", adapters, lean)] if lean != stack else []
    return [change for change in found if change[1:] != (work, stack)]


def _one_row(longest: Longest) -> int:
    return longest.padded_positions // longest.rows


def _row_by_row(work: Work) -> Work:
    """The same step with one row in each micro-batch."""
    longest = work.longest
    alone = Longest(
        rows=1,
        padded_positions=_one_row(longest),
        audio_positions=math.ceil(longest.audio_positions / longest.rows),
        loss_positions=math.ceil(longest.loss_positions / longest.rows),
        micro_batches=longest.micro_batches * longest.rows,
    )
    return replace(work, longest=alone)


def told(found: list[Remedy]) -> str:
    """The remedies in one line."""
    return "; or ".join(map(str, found)) if found else "no setting of this plan saves enough: a larger card is needed"
