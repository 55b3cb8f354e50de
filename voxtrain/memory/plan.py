"""The memory plan: how much a run will hold on its card, by class and phase, before anything is loaded.

Everything is GiB. Weights, gradients, activations, autocast's copies and the batch are counted by running the longest
step on fake tensors (trace.py); optimizer state is exact arithmetic; CUDA's context and the allocator's slack are
assumed. Training uses the same code as `python -m voxtrain.memory`. torch is imported when a plan is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from voxtrain.fault import Fault
from voxtrain.memory.longest import Longest
from voxtrain.memory.stack import MemoryStack
from voxtrain.memory.widths import Widths, widths
from voxtrain.model.size import lora_parameter_count, parameter_counts

if TYPE_CHECKING:
    from voxtrain.memory.trace import Trace

GIB = 2**30
CONTEXT_GIB = 0.5
"""CUDA's context with the kernels that training loads. Assumed; to be measured on a card."""
RESERVE_GIB = 0.5
"""What must stay free: for the desktop, the driver, and what the plan does not know. Assumed."""
SLACK = {True: 0.01, False: 0.05}
"""Share of the allocator's memory that lies in gaps, with expandable segments and without. Assumed."""
PIECE_GIB = 2**24 / GIB
"""What of a tensor is on its way to a checkpoint's file at a time (checkpoint/stream.py)."""

CLASSES = ("weights", "gradients", "optimizer_on_card", "activations", "autocast_copies", "context", "other")
PHASES = ("load", "first_forward", "backward", "first_optimizer_step", "later_forward", "later_backward",
          "checkpoint_write")  # fmt: skip
"""In the order of a run; `backward` is that of the first step, and a forward or backward of any micro-batch counts."""
PARTS = {
    "activations": ("base_lm", "residual_lm", "feat_encoder", "feat_decoder", "outside"),
    "other": ("batch", "tables", "workspace", "slack"),
}
"""What two classes consist of. tables: of rotary embeddings; slack: gaps of the allocator."""


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be trained on what."""

    architecture: Mapping[str, Any]
    lora: Mapping[str, Any] | None  # LoraTuning.adapter_config; None under full fine-tuning
    longest: Longest

    def widths(self, stack: MemoryStack) -> Widths:
        """Bytes for each parameter."""
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
    host_gib: float  # of host memory that the stack takes for good: state, masters and gradients there
    disk_gib: float
    phases: dict[str, dict[str, float]]  # by class
    parts: dict[str, dict[str, float]]  # by phase: what `activations` and `other` consist of
    longest: Longest

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {**asdict(self), "longest": self.longest.to_json()}

    def allocated_gib(self, phase: str, *, paged: bool) -> float:
        """What torch's allocator is to hold in a phase: all of it but CUDA's context, gaps, and paged state."""
        held = self.phases[phase]
        outside = held["context"] + self.parts[phase]["slack"] + (held["optimizer_on_card"] if paged else 0.0)
        return sum(held.values()) - outside

    def spare_gib(self) -> float:
        """What stays free beyond the reserve; negative where the run does not fit, infinite without a card."""
        return float("inf") if self.card_gib is None else self.card_gib - self.reserve_gib - self.peak_gib


def predict(work: Work, stack: MemoryStack, disk_bytes: int, card_gib: float | None) -> MemoryPlan:
    """Predict the peak of `work` under `stack` on a card of `card_gib` (None: on the CPU)."""
    from voxtrain.memory.trace import trace_step

    on_card = card_gib is not None
    trace = trace_step(work.architecture, work.lora, work.longest, stack, cuda=on_card)
    state = sum(map(work.widths(stack).state_of, trace.learnt)) / GIB
    phases = {
        name: _with_overhead(held, stack.expandable_segments, on_card)
        for name, held in _phases(trace, work, stack, state, on_card).items()
    }
    classes = {name: _by_class(held) for name, held in phases.items()}
    phase = max(classes, key=lambda name: sum(classes[name].values()))
    peak = sum(classes[phase].values())
    off_card = state - classes[phase]["optimizer_on_card"]
    return MemoryPlan(
        peak_gib=peak,
        card_gib=card_gib,
        reserve_gib=RESERVE_GIB if on_card else 0.0,
        fits=card_gib is None or peak + RESERVE_GIB <= card_gib,
        phase=phase,
        classes=classes[phase],
        optimizer_off_card=off_card,
        host_gib=(state if stack.on_host() else 0.0) + _host_gradients_gib(trace, stack),
        disk_gib=disk_bytes / GIB,
        phases=classes,
        parts={
            name: {part: held.get(part, 0.0) for parts in PARTS.values() for part in parts}
            for name, held in phases.items()
        },
        longest=work.longest,
    )


def _phases(trace: Trace, work: Work, stack: MemoryStack, state: float, on_card: bool) -> dict[str, dict[str, float]]:
    """What each phase holds, GiB by label of the trace, before overheads."""
    loaded, forward, backward, after = (
        {name: count / GIB for name, count in held.items()}
        for held in (trace.loaded, trace.forward, trace.backward, trace.after)
    )
    # paged state is away until the optimizer steps, and state on the host for good; on the CPU all of it is there
    away = on_card and (stack.on_host() or stack.state == "paged_8bit")
    stays = {"optimizer_on_card": 0.0 if away else state}
    stepping = {
        **loaded,
        "gradients": after.get("gradients", 0.0),
        "optimizer_on_card": 0.0 if on_card and stack.on_host() else state,
        "workspace": 0.0 if stack.on_host() else work.widths(stack).workspace_bytes / GIB,
    }
    return {
        "load": loaded,
        "first_forward": forward,
        "backward": backward,
        "first_optimizer_step": stepping,
        "later_forward": {**forward, **stays},
        "later_backward": {**backward, **stays},
        "checkpoint_write": {**loaded, **stays, "workspace": PIECE_GIB},
    }


def _with_overhead(held: dict[str, float], expandable: bool, on_card: bool) -> dict[str, float]:
    if not on_card:
        return held
    return {**held, "slack": SLACK[expandable] * sum(held.values()), "context": CONTEXT_GIB}


def _by_class(held: dict[str, float]) -> dict[str, float]:
    return {
        name: sum(held.get(part, 0.0) for part in PARTS[name]) if name in PARTS else held.get(name, 0.0)
        for name in CLASSES
    }


def _host_gradients_gib(trace: Trace, stack: MemoryStack) -> float:
    return 4 * sum(trace.learnt) / GIB if stack.gradients == "host" else 0.0


def fit_faults(plan: MemoryPlan, stack: MemoryStack, remedies: Callable[[], str]) -> list[Fault]:
    """The fault of a run that cannot fit its card, with the arithmetic; none where it fits or is forced.

    remedies: says what would save memory; asked where there is a fault alone, since it takes some seconds.
    """
    if plan.fits or stack.force:
        return []
    parts = " + ".join(f"{name} {gib:.2f}" for name, gib in plan.classes.items() if gib >= 0.005)
    what = (
        f"the run needs {plan.peak_gib:.2f} GiB in its {plan.phase.replace('_', ' ')} ({parts}) and "
        f"{plan.reserve_gib:.2f} GiB in reserve; the card has {plan.card_gib:.2f} GiB"
    )
    return [Fault(f"memory.card = {stack.card}", what, f"{remedies()}; memory.force=true starts it all the same")]
