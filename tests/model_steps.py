"""A module of the tiny model under Lightning, and what its steps told: for the tests of the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from model_batches import OneRow, StepBatch, one_row
from torch.utils.data import DataLoader

from voxtrain.model.module import VoxModule
from voxtrain.model.step import StepReport
from voxtrain.model.tuning import FullTuning, LoraTuning
from voxtrain.model.upstream import load_model
from voxtrain.optim.adamw import AdamW
from voxtrain.optim.schedule import WarmupCosine

CPU = torch.device("cpu")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LORA = LoraTuning(
    rank=4,
    alpha=8,
    dropout=0.0,
    lm=True,
    dit=True,
    projections=False,
    locenc=False,
    stop_head=False,
    lm_targets=ATTENTION,
    dit_targets=ATTENTION,
    projection_targets=(),
    locenc_targets=(),
)
ADAMW = AdamW(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
SCHEDULE = WarmupCosine(warmup_steps=3, final_share=0.0)
TUNINGS = pytest.mark.parametrize("tuning", [FullTuning(), LORA], ids=["full", "lora"])


class Collect(pl.Callback):
    """Keeps what each step tells, and its gradients before the update."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        named = pl_module.model.named_parameters()
        self.gradients.append({name: p.grad.to_dense().clone() for name, p in named if p.grad is not None})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: dict, batch: StepBatch, batch_idx: int
    ) -> None:
        self.reports.append(outputs["report"])


def module(
    folder: Path,
    tuning: FullTuning | LoraTuning,
    *,
    loss_normalisation: str = "per_row",
    max_grad_norm: float = 1.0,
    total_steps: int = 20,
    autocast: bool = False,
    recompute: bool = False,
    state: str = "fp32",
    weight_stop_positive: float = 1.0,
    kernels: str = "plain",
) -> VoxModule:
    lora = tuning if isinstance(tuning, LoraTuning) else None
    return VoxModule(
        load_model(folder, lora, CPU, torch.float32, seed=3),
        tuning,
        ADAMW,
        SCHEDULE,
        weights_diff=1.0,
        weights_stop=0.5,
        loss_normalisation=loss_normalisation,
        max_grad_norm=max_grad_norm,
        total_steps=total_steps,
        state=state,
        autocast=autocast,
        activation_checkpointing=recompute,
        weight_stop_positive=weight_stop_positive,
        rounding="nearest",
        gradients="card",
        seed=0,
        kernels=kernels,
    )


def fit(trained: VoxModule, steps: Sequence[StepBatch], *others: pl.Callback) -> Collect:
    """Train on the steps; `others` hear of each step before the one that is returned."""
    collect = Collect()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[*others, collect],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(trained, DataLoader(list(steps), batch_size=None))
    return collect


def rows_of_step(step: int, count: int) -> list[OneRow]:
    """Rows of unlike length, every third with reference audio."""
    places = range((step - 1) * count, step * count)
    return [one_row(n, 4 + n % 5, 3 + 2 * (n % 4), 2 if n % 3 == 0 else 0) for n in places]
