"""The memory plan: how much a run will hold on its card, by class and phase, before anything is loaded. No torch.

Everything is GiB. Weights, gradients and optimizer state are exact arithmetic; activations are the estimate of
`activations.py`; CUDA's context and the allocator's slack are assumed. Training uses the same code as
`python -m voxtrain.memory`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from voxtrain.fault import Fault
from voxtrain.memory.activations import Longest, Numbers, activations
from voxtrain.memory.stack import MemoryStack
from voxtrain.memory.widths import Widths, widths
from voxtrain.model.size import lora_parameter_count, parameter_counts

GIB = 2**30
CONTEXT_GIB = 0.5
"""CUDA's context with the kernels that training loads. Assumed; to be measured on a card."""
RESERVE_GIB = 0.5
"""What must stay free: for the desktop, the driver, and what the plan does not know. Assumed."""
SLACK = {True: 0.01, False: 0.05}
"""Share of the allocator's memory that lies in gaps, with expandable segments and without. Assumed."""

CLASSES = ("weights", "gradients", "optimizer_on_card", "activations", "autocast_copies", "context", "other")


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be trained on what."""

    architecture: Mapping[str, Any]
    lora: Mapping[str, Any] | None  # LoraTuning.adapter_config; None under full fine-tuning
    longest: Longest

    def learnt(self) -> int:
        """Parameters that learn."""
        return learnt_parameters(self.architecture, self.lora)

    def frozen(self) -> int:
        """Parameters on the card that do not learn. The AudioVAE is not there: latents are cached."""
        return 0 if self.lora is None else parameter_counts(self.architecture)["trainable"]

    def widths(self, stack: MemoryStack) -> Widths:
        """Bytes for each of them."""
        return widths(stack, adapters=self.lora is not None)


def learnt_parameters(architecture: Mapping[str, Any], lora: Mapping[str, Any] | None) -> int:
    """Parameters that learn: everything outside the AudioVAE, or the adapters that `lora` places."""
    return parameter_counts(architecture)["trainable"] if lora is None else lora_parameter_count(architecture, lora)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The prediction. `classes` are those of the phase with the peak, and sum to `peak_gib`."""

    peak_gib: float
    card_gib: float | None  # None: no card, nothing to fit
    reserve_gib: float
    fits: bool
    phase: str
    classes: dict[str, float]
    optimizer_off_card: float
    disk_gib: float
    phases: dict[str, dict[str, float]]
    longest: Longest

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return asdict(self)

    def spare_gib(self) -> float:
        """What stays free beyond the reserve; negative where the run does not fit, infinite without a card."""
        return float("inf") if self.card_gib is None else self.card_gib - self.reserve_gib - self.peak_gib


def predict(work: Work, stack: MemoryStack, disk_bytes: int, card_gib: float | None) -> MemoryPlan:
    """Predict the peak of `work` under `stack` on a card of `card_gib` (None: on the CPU)."""
    on_card = card_gib is not None
    phases = {
        name: _with_overhead(found, stack.expandable_segments, on_card)
        for name, found in _phases(work, stack, on_card).items()
    }
    phase = max(phases, key=lambda name: sum(phases[name].values()))
    peak = sum(phases[phase].values())
    state = _state_gib(work, stack)
    return MemoryPlan(
        peak_gib=peak,
        card_gib=card_gib,
        reserve_gib=RESERVE_GIB if on_card else 0.0,
        fits=card_gib is None or peak + RESERVE_GIB <= card_gib,
        phase=phase,
        classes=phases[phase],
        optimizer_off_card=state - phases[phase]["optimizer_on_card"],
        disk_gib=disk_bytes / GIB,
        phases=phases,
        longest=work.longest,
    )


def _phases(work: Work, stack: MemoryStack, on_card: bool) -> dict[str, dict[str, float]]:
    """What each phase holds, GiB by class, before overheads. Phases that hold less than these are left out."""
    width = work.widths(stack)
    weights = (width.learnt * work.learnt() + width.frozen * work.frozen()) / GIB
    gradients, state = width.learnt * work.learnt() / GIB, _state_gib(work, stack)
    stepping = 0.0 if stack.on_host() and on_card else state
    # paged state is away until the optimizer steps
    always = {"weights": weights, "optimizer_on_card": 0.0 if stack.state == "paged_8bit" and on_card else stepping}
    passing = activations(
        work.architecture,
        work.longest,
        numbers=_numbers(work, stack),
        recompute=stack.activation_checkpointing,
    )
    return {
        "load": {"weights": weights},
        "backward": {
            **always,
            # with one micro-batch a step, gradients come while activations go
            "gradients": gradients if work.longest.micro_batches > 1 else 0.0,
            "activations": (passing.kept + passing.passing) / GIB,
            "autocast_copies": passing.copies / GIB,
        },
        "end_of_backward": {**always, "gradients": gradients, "other": _embedding_gradient_gib(work, width)},
        "optimizer_step": {
            "weights": weights,
            "gradients": gradients,
            "optimizer_on_card": stepping,
            "other": width.workspace_bytes / GIB,
        },
    }


def _numbers(work: Work, stack: MemoryStack) -> Numbers:
    if (stack.weights if work.lora is None else stack.frozen) == "bf16":
        return "bf16"
    return "autocast" if stack.autocast else "fp32"


def _state_gib(work: Work, stack: MemoryStack) -> float:
    return work.learnt() * work.widths(stack).state / GIB


def _embedding_gradient_gib(work: Work, width: Widths) -> float:
    """The embedding's gradient of one micro-batch is dense, and stands beside the one that it is added to."""
    if work.lora is not None:
        return 0.0
    lm = work.architecture["lm_config"]
    return float(width.learnt * lm["vocab_size"] * lm["hidden_size"] / GIB)


def _with_overhead(found: dict[str, float], expandable: bool, on_card: bool) -> dict[str, float]:
    classes = {name: found.get(name, 0.0) for name in CLASSES}
    if on_card:
        classes["other"] += SLACK[expandable] * sum(classes.values())
        classes["context"] = CONTEXT_GIB
    return classes


def fit_faults(plan: MemoryPlan, stack: MemoryStack, told_remedies: str) -> list[Fault]:
    """The fault of a run that cannot fit its card, with the arithmetic; none where it fits or is forced."""
    if plan.fits or stack.force:
        return []
    parts = " + ".join(f"{name} {gib:.2f}" for name, gib in plan.classes.items() if gib >= 0.005)
    what = (
        f"the run needs {plan.peak_gib:.2f} GiB in its {plan.phase.replace('_', ' ')} ({parts}) and "
        f"{plan.reserve_gib:.2f} GiB in reserve; the card has {plan.card_gib:.2f} GiB"
    )
    return [Fault(f"memory.card = {stack.card}", what, f"{told_remedies}; memory.force=true starts it all the same")]
