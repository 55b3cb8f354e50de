"""One Lightning batch is one optimizer step: gradients over its micro-batches, our own clipping, one update.

The gradient is the same for any cut into micro-batches: each position's loss carries its final weight in the step
(`loss_normalisation`) before it is added up. The learning rate is a function of the number of updates done. So the
module's whole state is its weights, the optimizer's, and three counters.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from voxtrain.batch import MicroBatch, StepBatch
from voxtrain.fault import RunFailed
from voxtrain.model.loss import PositionLosses, position_losses, row_means
from voxtrain.model.step import RowLoss, StepReport
from voxtrain.model.tuning import FullTuning, LoraTuning
from voxtrain.model.upstream import VoxCPM2Model, adapters
from voxtrain.optim.adamw import AdamW
from voxtrain.optim.narrow_adamw import NarrowAdamW
from voxtrain.optim.norm import by_row, clip, clip_divisor, gradient_norm
from voxtrain.optim.row_adamw import RowAdamW
from voxtrain.optim.schedule import WarmupConstant, WarmupCosine
from voxtrain.ranks.group import ALONE, Ranks

SKIPS_IN_A_ROW = 3
"""As many steps without an update, one after another, end the run: the weights or the data are broken."""


class VoxModule(pl.LightningModule):
    """The model, its loss and its update.

    steps_done: optimizer steps attempted; rows_seen: rows in them; skipped: the steps (1-based) without an update.
    """

    def __init__(
        self,
        model: VoxCPM2Model,
        tuning: FullTuning | LoraTuning,
        optimizer: AdamW,
        schedule: WarmupCosine | WarmupConstant,
        *,
        weights_diff: float,
        weights_stop: float,
        loss_normalisation: str,
        max_grad_norm: float,
        total_steps: int,
        state: str,
        autocast: bool,
        activation_checkpointing: bool,
        weight_stop_positive: float,
        rounding: str,
        gradients: str,
        seed: int,
        kernels: str,
        ranks: Ranks = ALONE,
    ) -> None:
        """`state` is `memory.state`; `max_grad_norm` 0 does not clip; `loss_normalisation` is per_row or per_frame.

        weight_stop_positive: times the stop loss where a clip ends; 1.0 is upstream's loss. rounding: how updates reach
        bf16 weights, `memory.rounding`; seed: of the random kind. gradients: where they are added up,
        `memory.gradients`. kernels: `trainer.kernels`. ranks: the processes that
        share every step; each makes the same update of the sum of their gradients.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model, self.tuning, self.rule, self.schedule = model, tuning, optimizer, schedule
        self.weights_diff, self.weights_stop = weights_diff, weights_stop
        self.weight_stop_positive = weight_stop_positive
        self.per_row = {"per_row": True, "per_frame": False}[loss_normalisation]
        self.max_grad_norm, self.total_steps = max_grad_norm, total_steps
        self.state, self.rounding, self.seed, self.kernels = state, rounding, seed, kernels
        self.gradients = gradients
        self.autocast, self.activation_checkpointing = autocast, activation_checkpointing
        self.ranks = ranks
        self.steps_done, self.rows_seen = 0, 0
        self.skipped: list[int] = []
        self._suspects: dict[int, tuple[str, ...]] = {}
        self.at_work: MicroBatch | None = None  # what goes through the model now

    def learnt_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold, under upstream's names, sharing memory with the model.

        Full fine-tuning: every tensor of the model (it has no AudioVAE). LoRA: the adapters.
        """
        if isinstance(self.tuning, LoraTuning):
            return {name: parameter.detach() for name, parameter in adapters(self.model).items()}
        return dict(self.model.state_dict())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One group of everything that learns."""
        return self.rule.build(self._learning(), self.state, self.rounding, self.seed, self.gradients)

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:
        """Leave the step where it is: its micro-batches are moved one by one."""
        return batch

    def training_step(self, batch: StepBatch) -> dict[str, StepReport]:
        """Make update number `batch.step`, or none where a loss or the gradient is not finite."""
        began = time.perf_counter()
        if batch.step != self.steps_done + 1:
            raise RuntimeError(f"the batch of step {batch.step} came after {self.steps_done} steps")
        optimizer = self.optimizers()
        assert isinstance(optimizer, pl.core.optimizer.LightningOptimizer)
        lr = self.rule.lr * self.schedule.factor(self.steps_done, self.total_steps)
        rows, micro_batches = self._of_all_ranks(self._backward(batch), len(batch.micro_batches))
        norm = float(self._gradient_norm())
        finite = math.isfinite(norm) and all(math.isfinite(row.diff) and math.isfinite(row.stop) for row in rows)
        if finite:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._count(batch, rows, finite)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - began
        return {"report": self._report(batch, rows, micro_batches, norm, lr, not finite, seconds)}

    def on_train_batch_end(self, outputs: Any, batch: StepBatch, batch_idx: int) -> None:
        """Raise RunFailed after the third step in a row without an update. Callbacks come first: it is in every log."""
        last = range(self.steps_done - SKIPS_IN_A_ROW + 1, self.steps_done + 1)
        if set(last) <= set(self.skipped):
            raise RunFailed(self._despair(last))

    def _learning(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def _backward(self, batch: StepBatch) -> list[RowLoss]:
        """Add up the gradients of all micro-batches; the losses of all rows, read from the device once."""
        told: list[tuple[MicroBatch, Tensor]] = []
        for micro_batch in batch.micro_batches:
            self.at_work = micro_batch
            here = micro_batch.to(self.device)
            with self._autocast():
                losses = position_losses(
                    self.model,
                    here,
                    activation_checkpointing=self.activation_checkpointing,
                    kernels=self.kernels,
                )
            losses = self._with_stop_weight(losses, here)
            self.manual_backward(self._step_loss(losses, here, batch))
            told.append((micro_batch, self._row_means(losses, len(here.ids))))
        self.at_work = None
        return [row for micro_batch, means in told for row in self._row_losses(micro_batch, means, batch)]

    def _of_all_ranks(self, rows: list[RowLoss], micro_batches: int) -> tuple[list[RowLoss], int]:
        """Sum the gradients of all ranks; the losses of all rows of the step, by place, and how it was cut."""
        self._settle_gradients()
        self.ranks.sum_gradients(self._learning())
        told = self.ranks.gather((rows, micro_batches))
        together = sorted((row for theirs, _ in told for row in theirs), key=lambda row: row.place)
        return together, sum(count for _, count in told)

    def _settle_gradients(self) -> None:
        """A gradient that came by row (cpu/tokens.py) gets each row once, or is made dense."""
        takes_rows = self.ranks.size == 1 and isinstance(self._rule_at_work(), RowAdamW)
        for parameter in self._learning():
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = by_row(parameter.grad) if takes_rows else parameter.grad.to_dense()

    def _autocast(self) -> AbstractContextManager[Any]:
        # without its cache: every weight is used once in a micro-batch, and the cache would hold all of them in bf16
        if self.autocast:
            return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def _with_stop_weight(self, losses: PositionLosses, micro_batch: MicroBatch) -> PositionLosses:
        """A clip ends at one position of 60 to 190: a weight there balances what the stop head learns from.

        Means still count each position once, unlike the class weights of F.cross_entropy, which would divide by them.
        """
        if self.weight_stop_positive == 1.0:
            return losses
        ends = micro_batch.stop_labels[micro_batch.loss_mask] == 1  # [L]
        return replace(losses, stop=torch.where(ends, self.weight_stop_positive * losses.stop, losses.stop))

    def _step_loss(self, losses: PositionLosses, micro_batch: MicroBatch, batch: StepBatch) -> Tensor:
        """This micro-batch's part of the step's loss: the parts sum up to it."""
        value = self.weights_diff * losses.diff + self.weights_stop * losses.stop
        if not self.per_row:
            return value.sum() / batch.loss_positions
        positions = micro_batch.loss_mask.sum(dim=1)  # [B]
        return (value / positions[losses.row]).sum() / batch.rows

    @staticmethod
    def _row_means(losses: PositionLosses, rows: int) -> Tensor:
        return torch.stack([row_means(value.detach(), losses.row, rows) for value in (losses.diff, losses.stop)])

    def _row_losses(self, micro_batch: MicroBatch, means: Tensor, batch: StepBatch) -> list[RowLoss]:
        positions = micro_batch.loss_mask.sum(dim=1).tolist()
        diffs, stops = means.tolist()
        return [
            RowLoss(
                id=row_id,
                place=place,
                diff=diff,
                stop=stop,
                total=self.weights_diff * diff + self.weights_stop * stop,
                positions=count,
                part=1 / batch.rows if self.per_row else count / batch.loss_positions,
            )
            for row_id, place, diff, stop, count in zip(
                micro_batch.ids, micro_batch.places, diffs, stops, positions, strict=True
            )
        ]

    def _rule_at_work(self) -> torch.optim.Optimizer:
        """The optimizer itself, without what Lightning puts around it."""
        optimizer: Any = self.optimizers()
        found: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return found

    def _gradient_norm(self) -> Tensor:
        """The global norm, before the gradients are clipped to `max_grad_norm`, now or in the update."""
        rule = self._rule_at_work()
        of = rule.gradient_of if isinstance(rule, NarrowAdamW) else attrgetter("grad")  # may be on the host
        gradients = [gradient for gradient in map(of, self._learning()) if gradient is not None]
        norm = gradient_norm(gradients)
        if self.max_grad_norm > 0 and isinstance(rule, RowAdamW):
            rule.clip_next(clip_divisor(self.max_grad_norm, norm))
        elif self.max_grad_norm > 0:
            clip(gradients, self.max_grad_norm, norm)
        return norm

    def _count(self, batch: StepBatch, rows: list[RowLoss], finite: bool) -> None:
        self.steps_done += 1
        self.rows_seen += batch.rows
        if finite:
            return
        self.skipped.append(batch.step)
        broken = [row.id for row in rows if not (math.isfinite(row.diff) and math.isfinite(row.stop))]
        self._suspects[batch.step] = tuple(broken or [row.id for row in rows])

    def _despair(self, steps: range) -> str:
        named = sorted({name for step in steps for name in self._suspects.get(step, ())})
        return (
            f"The loss or the gradient was not finite in steps {', '.join(map(str, steps))}, one after another.\n"
            f"Rows in these steps: {', '.join(named)}\n"
            "Listen to these rows and take bad ones out of the manifest; with good rows, lower optimizer.lr or set "
            "train.max_grad_norm, and start again or resume."
        )

    def _report(
        self,
        batch: StepBatch,
        rows: list[RowLoss],
        micro_batches: int,
        norm: float,
        lr: float,
        skipped: bool,
        seconds: float,
    ) -> StepReport:
        diff = math.fsum(row.part * row.diff for row in rows)
        stop = math.fsum(row.part * row.stop for row in rows)
        return StepReport(
            step=batch.step,
            loss_diff=diff,
            loss_stop=stop,
            loss_total=self.weights_diff * diff + self.weights_stop * stop,
            grad_norm=norm,
            lr=lr,
            rows=batch.rows,
            rows_seen=self.rows_seen,
            micro_batches=micro_batches,
            positions=batch.positions,
            padding_share=1 - batch.positions / batch.padded_positions,
            audio_seconds=batch.audio_seconds,
            seconds=seconds,
            skipped=skipped,
            row_losses=tuple(rows),
        )
