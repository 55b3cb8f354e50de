"""A stand-in for VoxModule: a small Lightning module with the attributes that checkpoints are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from voxtrain.checkpoint.plan import CheckpointPlan

WIDTH = 96
"""96 x 96 = 9216 values: more than the 4096 below which bitsandbytes keeps 32-bit state."""


def optimizer_of(parameters: Any, state: str) -> torch.optim.Optimizer:
    """AdamW with fp32 or 8-bit state."""
    if state == "fp32":
        return torch.optim.AdamW(parameters, lr=1e-2)
    import bitsandbytes  # seconds of imports for the few tests that need it

    rule = bitsandbytes.optim.PagedAdamW8bit if state == "paged_8bit" else bitsandbytes.optim.AdamW8bit
    made: torch.optim.Optimizer = rule(parameters, lr=1e-2)
    return made


class Learner(pl.LightningModule):
    """Steps whose gradient is a function of the step, so that a resumed run can be compared bit for bit."""

    def __init__(self, total: int, state: str = "fp32", seed: int = 0, done: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(seed)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.state, self.total = state, total
        self.first = done
        self.steps_done, self.rows_seen = 0, 0
        self.skipped: list[int] = []
        self.losses: list[float] = []
        self.at_step: Any = None

    def learnt_tensors(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.parameters(), self.state)

    def train_dataloader(self) -> DataLoader[int]:
        return DataLoader(range(self.first + 1, self.total + 1), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, step: int) -> None:
        assert step == self.steps_done + 1, "a step was repeated or left out"
        x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(step))
        loss = (self.layer(x) - x.roll(1, dims=1)).square().mean()
        self.manual_backward(loss)
        optimizer = self.optimizers()
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.losses.append(float(loss.detach()))
        self.steps_done, self.rows_seen = step, 8 * step
        if self.at_step is not None:
            self.at_step(step)


def fit(module: Learner, *callbacks: pl.Callback) -> pl.Trainer:
    """Train to the end of the loader, silently."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module)
    return trainer


def checkpoint_plan(
    *,
    every: int,
    state_every: int,
    early: Sequence[int] = (),
    weights: str = "fp32",
    background: bool = True,
    buffer_gib: float = 1.0,
    low_disk: str = "stop",
) -> CheckpointPlan:
    """A plan of saves, in the background unless said otherwise."""
    return CheckpointPlan(
        every=every,
        early=tuple(early),
        state_every=state_every,
        weights=weights,
        background=background,
        buffer_gib=buffer_gib,
        low_disk=low_disk,
        requeue="never",
    )
