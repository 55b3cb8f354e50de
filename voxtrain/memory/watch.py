"""What a run really held, by class, beside what was predicted: memory.json.

On CUDA the numbers are torch's allocator statistics, plus NVML's for the process and the whole card, since paged
optimizer state and CUDA's context lie outside the allocator. On the CPU they are the process's resident memory, which
holds Python and its libraries too.
"""

from __future__ import annotations

import contextlib
import math
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from voxtrain.durable import write_json
from voxtrain.memory.nvml import card_used_gib, process_used_gib
from voxtrain.memory.phases import PhasePeaks
from voxtrain.memory.plan import GIB, MemoryPlan
from voxtrain.memory.probe import ProbeMemory
from voxtrain.run_folder import RunFolder

EXACT = ("weights", "gradients", "optimizer_on_card")
"""Classes that are measured by counting tensors; `activations` is what is left of the allocator's peak."""


class WatchMemory(pl.Callback):
    """Measures from the first step on, and writes memory.json after the first step and at the end."""

    def __init__(self, run: RunFolder, plan: MemoryPlan, probe: ProbeMemory | None = None) -> None:
        super().__init__()
        self._run, self._plan, self._probe = run, plan, probe
        self._gradients: dict[int, int] = {}
        self._card_gib, self._process_gib = 0.0, 0.0
        self._baseline_gib = 0.0
        self._hooks: list[Any] = []
        self._phases = PhasePeaks(torch.device("cpu"))
        self._steps_here = 0  # done in this sitting

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the peaks of loading, and count the gradients of the first step as they come."""
        reset_peak(pl_module.device)
        self._phases = PhasePeaks(pl_module.device)
        self._phases.ends("load")
        self._steps_here = 0
        self._baseline_gib = 0.0 if pl_module.device.type == "cuda" else resident_gib()
        for parameter in pl_module.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(self._count_gradient)  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """What was held between two steps is over: a save may have been written there."""
        self._phases.ends("checkpoint_write")

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """A forward pass of some micro-batch is over."""
        self._phases.ends("later_forward" if self._steps_here else "first_forward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Its backward pass is over."""
        self._phases.ends("later_backward" if self._steps_here else "backward")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask the card once a step; after the first, when optimizer state stands, write what is known."""
        self._phases.ends("later_optimizer_step" if self._steps_here else "first_optimizer_step")
        self._steps_here += 1
        if pl_module.device.type == "cuda":
            self._card_gib = max(self._card_gib, card_used_gib(pl_module.device) or 0.0)
            self._process_gib = max(self._process_gib, process_used_gib(pl_module.device) or 0.0)
        if batch_idx == 0:
            self._remove_hooks()
            self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the peaks of the whole run."""
        self._phases.ends("checkpoint_write")
        self._remove_hooks()
        self._write(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave no hook behind; Lightning calls no other hook then."""
        self._remove_hooks()

    def _count_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._gradients[id(parameter)] = gradient_bytes(parameter.grad)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        measured = self._measure(trainer, module)
        predicted = self._plan.to_json()
        paged = any(getattr(optimizer, "is_paged", False) for optimizer in trainer.optimizers)
        receipt: dict[str, Any] = {
            "predicted": predicted,
            "measured": measured,
            "error": _errors(predicted, measured),
            "phases": _phases(self._plan, self._phases.gib, paged=paged and module.device.type == "cuda"),
        }
        if self._probe is not None:
            receipt["probe"] = self._probe.told
        try:
            write_json(self._run.memory, receipt)
        except OSError as error:  # hours of training must not die of a diagnosis, nor a full disk be told as this
            print(f"{self._run.memory} could not be written: {error.strerror or error}", file=sys.stderr, flush=True)

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        device = module.device
        on_card, off_card = optimizer_gib(trainer.optimizers, device)
        classes: dict[str, float | None] = {
            "weights": _gib(module.parameters()),
            "gradients": sum(self._gradients.values()) / GIB,
            "optimizer_on_card": on_card,
        }
        if device.type != "cuda":
            own = max(0.0, resident_peak_gib() - self._baseline_gib)
            return {
                "peak_gib": resident_peak_gib(),
                "grown_gib": own,  # since training began: weights and libraries stood already
                "classes": classes,
                "optimizer_off_card": off_card,
                "device": "cpu",
            }
        allocated, reserved = self._phases.allocated_gib, self._phases.reserved_gib
        resident = sum(value or 0.0 for value in classes.values())
        classes["activations"] = max(0.0, allocated - resident)
        return {
            "peak_gib": max(self._process_gib, reserved),
            "card_peak_gib": self._card_gib or None,
            "process_peak_gib": self._process_gib or None,
            "allocated_peak_gib": allocated,
            "reserved_peak_gib": reserved,
            "classes": classes,
            "optimizer_off_card": off_card,
            "device": torch.cuda.get_device_name(device),
        }


def _phases(plan: MemoryPlan, measured: dict[str, float], *, paged: bool) -> dict[str, dict[str, float | None]]:
    """Each phase that is predicted or was measured, and the prediction's error on a card.

    On a card both are what torch's allocator holds (PhasePeaks); on the CPU the measured one is the whole process.
    """
    told: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys((*plan.phases, *measured)):
        predicted = plan.allocated_gib(name, paged=paged) if name in plan.phases else None
        found = measured.get(name)
        known = predicted is not None and found and plan.card_gib is not None
        told[name] = {
            "predicted": predicted,
            "measured": found,
            "error": predicted / found - 1 if known and predicted is not None and found else None,
        }
    return told


def gradient_bytes(gradient: Tensor) -> int:
    """Of a gradient's numbers; a sparse one holds those of the rows that were used."""
    return (gradient._values() if gradient.is_sparse else gradient).nbytes


def optimizer_gib(optimizers: Iterable[torch.optim.Optimizer], device: torch.device) -> tuple[float, float]:
    """Bytes of optimizer state on the device, and in pages outside torch's allocator, in GiB."""
    here = paged = 0
    seen = set()
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for value in state.values():
                if not isinstance(value, Tensor) or value.data_ptr() in seen:
                    continue  # 8-bit state shares its table of values
                seen.add(value.data_ptr())
                if getattr(value, "is_paged", False) or value.device.type != device.type:
                    paged += value.nbytes
                else:
                    here += value.nbytes
    return here / GIB, paged / GIB


def reset_peak(device: torch.device) -> None:
    """Forget the highest mark so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        with contextlib.suppress(OSError):  # a container may forbid it; the mark then includes what came before
            marks.write_text("5", encoding="ascii")  # proc(5): resets the high-water mark of resident memory


def resident_gib() -> float:
    """Resident memory of this process now."""
    import psutil

    return float(psutil.Process().memory_info().rss / GIB)


def resident_peak_gib() -> float:
    """The highest resident memory of this process since `reset_peak`, or since its start where that cannot be reset."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _gib(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors) / GIB


def _errors(predicted: dict[str, Any], measured: dict[str, Any]) -> dict[str, float]:
    """Predicted over measured minus one, for the classes that are counted exactly and, on a card, the peak."""
    pairs = {name: (_most(predicted, name), measured["classes"].get(name)) for name in EXACT[:2]}
    pairs["optimizer"] = (
        predicted["classes"]["optimizer_on_card"] + predicted["optimizer_off_card"],
        measured["classes"]["optimizer_on_card"] + measured["optimizer_off_card"],
    )
    if measured["device"] != "cpu":
        pairs["peak_gib"] = (predicted["peak_gib"], measured["peak_gib"])
    return {name: said / found - 1 for name, (said, found) in pairs.items() if found and math.isfinite(found)}


def _most(predicted: dict[str, Any], name: str) -> float:
    """What is predicted for a class in the phase where it is largest."""
    return max(float(phase[name]) for phase in predicted["phases"].values())
