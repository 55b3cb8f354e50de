"""Two steps on the longest rows before the first one that counts, so that memory runs out now or never.

The first of them makes the optimizer's state, and the second has it beside its activations. Both are steps as training
makes them, but for a learning rate of zero: weights take an update of nothing. Afterwards everything is as before, to
the last bit: optimizer state is as it was made, counters and random numbers are put back, and so are the tensors that
hold a negative zero, whose sign an update of nothing may turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from voxtrain.batch import StepBatch
from voxtrain.memory.phases import PhasePeaks
from voxtrain.model.module import VoxModule

STEPS = 2


class ProbeMemory(pl.Callback):
    """Must stand first among the callbacks: before a state is loaded, and before anything is measured or written.

    `told` is what the receipt says of it, None until it was done; `under_way` is true meanwhile.
    """

    def __init__(self, longest: Callable[[int], StepBatch], first_step: int) -> None:
        """longest: the batch of a step (1-based) of the longest rows; first_step: updates done before this sitting."""
        super().__init__()
        self.told: dict[str, Any] | None = None
        self.under_way = False
        self._longest, self._first_step = longest, first_step
        self._peaks = PhasePeaks(torch.device("cpu"))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make the steps, and undo them. Raises torch.OutOfMemoryError where they do not fit."""
        assert isinstance(pl_module, VoxModule)
        began = time.perf_counter()
        self._peaks = PhasePeaks(pl_module.device)
        self.under_way = True
        batches = self._make(pl_module, trainer.optimizers[0])
        self.under_way = False
        self.told = {
            "phases": dict(self._peaks.gib),
            "rows": batches[0].rows,
            "positions": batches[0].positions,
            "seconds": time.perf_counter() - began,
        }

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """A forward pass is over."""
        if self.under_way:
            self._peaks.ends("later_forward" if self._later(pl_module) else "first_forward")

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A backward pass is over."""
        if self.under_way:
            self._peaks.ends("later_backward" if self._later(pl_module) else "backward")

    def _later(self, module: pl.LightningModule) -> bool:
        assert isinstance(module, VoxModule)
        return module.steps_done > self._first_step

    def _make(self, module: VoxModule, optimizer: torch.optim.Optimizer) -> list[StepBatch]:
        batches = [self._longest(self._first_step + number) for number in range(1, STEPS + 1)]
        counters = module.steps_done, module.rows_seen, list(module.skipped)
        rule, untouched = module.rule, optimizer.state_dict()
        signed = _with_negative_zeros(module.parameters())
        with torch.random.fork_rng([module.device] if module.device.type == "cuda" else []):
            module.steps_done, module.rule = self._first_step, rule.model_copy(update={"lr": 0.0})
            for batch in batches:
                module.training_step(batch)
                self._peaks.ends("later_optimizer_step" if self._later_than_first(module) else "first_optimizer_step")
        module.steps_done, module.rows_seen, module.skipped = counters
        module.rule = rule
        _as_made(optimizer, untouched)
        with torch.no_grad():
            for parameter, held in signed:
                parameter.copy_(held)
        if module.device.type == "cuda":
            torch.cuda.empty_cache()
        return batches

    def _later_than_first(self, module: VoxModule) -> bool:
        return module.steps_done > self._first_step + 1


def _with_negative_zeros(parameters: Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Parameters that learn and hold one, each with a copy in host memory."""
    learning = (parameter for parameter in parameters if parameter.requires_grad)
    return [
        (parameter, parameter.detach().to("cpu", copy=True))
        for parameter in learning
        if bool(((parameter == 0) & torch.signbit(parameter)).any())
    ]


def _as_made(optimizer: torch.optim.Optimizer, untouched: dict[str, Any]) -> None:
    """Take the optimizer's state away. Pages are kept to be given out again: bitsandbytes never frees them."""
    if getattr(optimizer, "is_paged", False):
        _give_out_again(optimizer)
    optimizer.load_state_dict(untouched)


def _give_out_again(optimizer: Any) -> None:
    """The next buffers that a parameter asks for are those that it has now, in the same order, cleared."""
    kept = {
        parameter: [state[name] for name in ("state1", "state2") if name in state]
        for parameter, state in optimizer.state.items()
    }
    make = optimizer.get_state_buffer

    def again(parameter: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        buffers = kept.get(parameter, [])
        if not buffers or buffers[0].dtype != dtype:
            made: Tensor = make(parameter, dtype=dtype)
            return made
        buffer: Tensor = buffers.pop(0)
        if buffer.is_cuda or not getattr(buffer, "is_paged", False):
            buffer.zero_()
            return buffer
        import bitsandbytes

        bitsandbytes.functional.fill(buffer, 0)  # type: ignore[no-untyped-call]  # as get_state_buffer does to a page
        return buffer

    optimizer.get_state_buffer = again
