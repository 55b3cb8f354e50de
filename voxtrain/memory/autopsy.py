"""An out-of-memory error, explained: in which phase, what was held, what to change, and how to go on."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from voxtrain.batch import MicroBatch
from voxtrain.fault import RunFailed
from voxtrain.memory.nvml import processes_gib
from voxtrain.memory.plan import GIB, MemoryPlan
from voxtrain.memory.watch import gradient_bytes, optimizer_gib
from voxtrain.model.module import VoxModule
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
    classes: Mapping[str, float]  # what the tensors were; those of no other class are activations
    others: tuple[tuple[int, float], ...]  # (pid, GiB) of other processes on the card


def held(module: VoxModule, optimizers: Iterable[torch.optim.Optimizer]) -> Held:
    """Count tensors, and ask torch and the driver. On the CPU nobody tells of the whole: it is what was counted."""
    device, on_cuda = module.device, module.device.type == "cuda"
    parameters = [parameter for parameter in module.parameters() if parameter.device.type == device.type]
    known = {
        "weights": sum(parameter.nbytes for parameter in parameters) / GIB,
        "gradients": sum(gradient_bytes(each.grad) for each in parameters if each.grad is not None) / GIB,
        "optimizer state": optimizer_gib(optimizers, device)[0],
    }
    counted = sum(known.values())
    allocated = torch.cuda.memory_allocated(device) / GIB if on_cuda else counted
    return Held(
        allocated_gib=allocated,
        reserved_gib=torch.cuda.memory_reserved(device) / GIB if on_cuda else counted,
        card_gib=torch.cuda.get_device_properties(device).total_memory / GIB if on_cuda else counted,
        classes=known | {"activations and the rest": max(0.0, allocated - counted)},
        others=tuple(one for one in processes_gib(device) if one[0] != os.getpid()) if on_cuda else (),
    )


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
    at_work: MicroBatch | None = None,
    probing: bool = False,
) -> RunFailed:
    """The failure to raise in place of `error`.

    steps_done: optimizer steps attempted; first_step: those done before this sitting. remedies: what to change, with
    predicted savings (`remedies.told`). at_work: what went through the model. probing: it was the probe's step.
    """
    phase = phase_of(error)
    where = "the probe, before the first step" if probing else f"step {steps_done + 1}"
    lines = [
        f"Out of memory in {where}, in {PHASES[phase, steps_done == first_step]}.",
        f"Held: {now.allocated_gib:.2f} GiB in tensors, {now.reserved_gib - now.allocated_gib:.2f} GiB in gaps, "
        f"{sum(gib for _, gib in now.others):.2f} GiB by other processes{_told_others(now.others)}, "
        f"of {now.card_gib:.2f} GiB.",
        f"The tensors: {_told_classes(now.classes)}.",
        *([f"In the model: {_told_rows(at_work)}."] if at_work is not None else []),
        f"Predicted: {plan.peak_gib:.2f} GiB in its {plan.phase.replace('_', ' ')} ({_told_classes(plan.classes)}).",
        f"Cheapest remedies: {remedies}.",
        _how_to_go_on(run),
        f"torch said: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
    ]
    return RunFailed("\n".join(lines))


def _told_classes(classes: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {gib:.2f}" for name, gib in classes.items() if gib >= 0.005)


def _told_others(others: tuple[tuple[int, float], ...]) -> str:
    return f" ({', '.join(f'process {pid}: {gib:.2f}' for pid, gib in others)})" if others else ""


def _told_rows(batch: MicroBatch) -> str:
    """Each row with its length, and how all were padded."""
    positions = (batch.text_mask | batch.audio_mask).sum(dim=1).tolist()
    rows = ", ".join(f"{row_id} ({count} positions)" for row_id, count in zip(batch.ids, positions, strict=True))
    return f"{rows}; padded to {len(positions)} x {batch.text_mask.shape[1]}"


def _how_to_go_on(run: RunFolder) -> str:
    states = run.state_steps()
    if not states:
        return "No state was saved yet: start again with the change."
    return (
        f"The state of step {states[-1]} is saved in {run.root}. A change of the memory stack is a new run; "
        "if another process took the memory, stop it and go on with "
        f"`python -m voxtrain resume={run.root}`."
    )
