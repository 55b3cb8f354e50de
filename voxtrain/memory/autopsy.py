"""An out-of-memory error, explained: in which phase, what was held, what to change, and how to go on."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

import torch

from voxtrain.fault import RunFailed
from voxtrain.memory.nvml import processes_gib
from voxtrain.memory.plan import GIB, MemoryPlan
from voxtrain.run_folder import RunFolder

PHASES = {
    ("forward", True): "the first forward pass: activations did not fit beside the weights",
    ("backward", True): "the first backward pass: gradients and what is computed again did not fit",
    ("optimizer_step", True): "the first optimizer step: the optimizer's state is made there, and did not fit",
    ("forward", False): "a later forward pass: weights, gradients' gaps and optimizer state left too little for it",
    ("backward", False): "a later backward pass: optimizer state stands since the first step, and rows may be longer",
    ("optimizer_step", False): "a later optimizer step: something else took memory since the first",
}
"""What each phase says, by whether it is in the first step of this sitting."""


@dataclass(frozen=True, slots=True)
class Held:
    """What was held when memory ran out, GiB."""

    allocated_gib: float  # by tensors
    reserved_gib: float  # by torch's allocator; the difference lies in gaps
    card_gib: float
    others_gib: float  # by other processes on the card


def held(device: torch.device) -> Held:
    """Ask torch and the driver."""
    return Held(
        allocated_gib=torch.cuda.memory_allocated(device) / GIB,
        reserved_gib=torch.cuda.memory_reserved(device) / GIB,
        card_gib=torch.cuda.get_device_properties(device).total_memory / GIB,
        others_gib=_others_gib(device),
    )


def _others_gib(device: torch.device) -> float:
    import os

    return sum(gib for pid, gib in processes_gib(device) if pid != os.getpid())


def phase_of(error: BaseException) -> str:
    """`optimizer_step`, `backward` or `forward`, by the frames that the error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    if any(frame.name == "step" and "optim" in frame.filename.replace("\\", "/") for frame in frames):
        return "optimizer_step"
    if any("backward" in frame.name for frame in frames):
        return "backward"
    return "forward"


def autopsy(
    error: BaseException,
    *,
    plan: MemoryPlan,
    now: Held,
    steps_done: int,
    first_step: int,
    run: RunFolder,
    remedies: str,
) -> RunFailed:
    """The failure to raise in place of `error`.

    steps_done: optimizer steps attempted; first_step: those done before this sitting. remedies: what to change, with
    predicted savings (`remedies.told`).
    """
    phase = phase_of(error)
    lines = [
        f"Out of memory in step {steps_done + 1}, in {PHASES[phase, steps_done == first_step]}.",
        f"Held: {now.allocated_gib:.2f} GiB in tensors, {now.reserved_gib - now.allocated_gib:.2f} GiB in gaps, "
        f"{now.others_gib:.2f} GiB by other processes, of {now.card_gib:.2f} GiB.",
        f"Predicted: {plan.peak_gib:.2f} GiB in its {plan.phase.replace('_', ' ')} ("
        + ", ".join(f"{name} {gib:.2f}" for name, gib in plan.classes.items() if gib >= 0.005)
        + ").",
        f"Cheapest remedies: {remedies}.",
        _how_to_go_on(run),
        f"torch said: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
    ]
    return RunFailed("\n".join(lines))


def _how_to_go_on(run: RunFolder) -> str:
    states = run.state_steps()
    if not states:
        return "No state was saved yet: start again with the change."
    return (
        f"The state of step {states[-1]} is saved in {run.root}. A change of the memory stack is a new run; "
        "if another process took the memory, stop it and go on with "
        f"`python -m voxtrain resume={run.root}`."
    )
