"""What to change when a run does not fit: each setting with the peak that the plan predicts for it. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from voxtrain.memory.plan import MemoryPlan, Work, predict
from voxtrain.memory.stack import MemoryStack

WORTH_GIB = 0.05
"""A saving below this is not worth telling."""
ADAPTERS: Mapping[str, Any] = {
    "r": 32,
    "alpha": 32,
    "dropout": 0.0,
    "enable_lm": True,
    "enable_dit": True,
    "enable_proj": False,
    "target_modules_lm": ["q_proj", "v_proj", "k_proj", "o_proj"],
    "target_modules_dit": ["q_proj", "v_proj", "k_proj", "o_proj"],
    "target_proj_modules": [],
    "locenc_targets": [],
    "stop_head": False,
}
"""The adapters that `tuning=lora` is counted with; a rank more or less moves the peak by hundredths of a GiB."""
RECOMPUTE: Mapping[str, Any] = {"activation_checkpointing": True}
LEAN: Mapping[str, Any] = {**RECOMPUTE, "state": "paged_8bit"}
NARROW: Mapping[str, Any] = {
    "weights": "bf16", "frozen": "bf16", "rounding": "stochastic", "autocast": True, "activation_checkpointing": True,
    "state": "8bit", "gradients": "card", "expandable_segments": True, "max_positions": None,
}  # fmt: skip
"""What `memory=16gb` sets, its card apart."""
MASTER: Mapping[str, Any] = {"state": "host", "rounding": "nearest"}
HOST: Mapping[str, Any] = {"state": "host_8bit", "rounding": "nearest", "gradients": "host"}
"""What `memory=12gb` sets beyond that, its card apart."""


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
    fitting: list[Remedy] = []
    others: list[Remedy] = []
    for setting, changed_work, changed_stack in _changes(work, stack):
        then = predict(changed_work, changed_stack, 0, plan.card_gib)
        saves = plan.peak_gib - then.peak_gib
        if saves >= WORTH_GIB:
            (fitting if then.fits else others).append(Remedy(setting, saves, then.peak_gib, then.fits))
        if len(fitting) == count:  # the first that fit change least of the run; each more would take seconds
            break
    return [*fitting, *sorted(others, key=lambda remedy: remedy.peak_gib)][:count]


def _changes(work: Work, stack: MemoryStack) -> list[tuple[str, Work, MemoryStack]]:
    """Single changes and the sets that go together, in the order of how little of the run they change."""
    row_by_row = _row_by_row(work)
    found = [
        (f"memory.max_positions={row_by_row.longest.padded_positions}", row_by_row, stack),
        *_changed(work, stack, {"memory.activation_checkpointing=true": RECOMPUTE}),
        *(_changed(work, stack, {"memory.frozen=bf16": {"frozen": "bf16"}}) if work.lora and stack.autocast else []),
        *_changed(work, stack, {f"memory.state={state}": {"state": state} for state in ("8bit", "paged_8bit")}),
        *_changed(work, stack, {"memory.activation_checkpointing=true with memory.state=paged_8bit": LEAN}),
    ]
    if work.lora is None:
        card = "" if stack.card in (None, "16gb") else f" with memory.card={stack.card}"
        found += _changed(work, stack, {f"memory=16gb{card}": NARROW})
        if stack.weights == "bf16":
            found += _changed(work, stack, {"memory.state=host with memory.rounding=nearest": MASTER})
        card = "" if stack.card in (None, "12gb") else f" with memory.card={stack.card}"
        found += _changed(work, stack, {f"memory=12gb{card}": {**NARROW, **HOST}})
        adapters = replace(work, lora=ADAPTERS)
        found += [("tuning=lora", adapters, stack)]
        found += _changed(adapters, stack, {"tuning=lora with memory.activation_checkpointing=true": LEAN})
    return [change for change in found if change[1:] != (work, stack)]


def _changed(
    work: Work, stack: MemoryStack, updates: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, Work, MemoryStack]]:
    """Those of `updates`, each under the name that it is told by, that change the stack into one that can work."""
    found = []
    for setting, update in updates.items():
        with suppress(ValidationError):
            changed = MemoryStack.model_validate({**stack.model_dump(), **update})
            found += [(setting, work, changed)] if changed != stack else []
    return found


def _row_by_row(work: Work) -> Work:
    return replace(work, longest=work.longest.one_by_one())


def told(found: list[Remedy]) -> str:
    """The remedies in one line."""
    return "; or ".join(map(str, found)) if found else "no setting of this plan saves enough: a larger card is needed"
