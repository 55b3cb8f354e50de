"""Our training step as a run makes it: latents from the cache, draws, packing, VoxModule's step.

Lightning's own loop adds some milliseconds to each step, upstream's log and progress bar likewise; neither is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from benchmarks.upstream_loop import LEARNING_RATE, MAX_GRAD_NORM, TOTAL_STEPS, WEIGHT_DECAY
from voxtrain.batch import StepBatch
from voxtrain.data.latents import LatentCache
from voxtrain.data.packing import PackedRow, pack_row
from voxtrain.data.steps import StepPlan, Steps
from voxtrain.manifest.row import Row
from voxtrain.model.module import VoxModule
from voxtrain.model.size import training_cfg_rate
from voxtrain.model.tuning import FullTuning
from voxtrain.model.upstream import VoxCPM2Model, load_encoder, load_tokenizer, release_encoder, vae_key
from voxtrain.optim.adamw import AdamW
from voxtrain.optim.schedule import WarmupConstant


@dataclass(frozen=True)
class Choices:
    """What one of our loops does."""

    packed: bool  # all rows in one micro-batch; else one row each
    one_pass: bool  # AdamW as a run has it; else as torch updates by default on this device
    kernels: str  # `trainer.kernels`


class OurData:
    """The rows with their latents at hand. cache_s: seconds that encoding all of them took, once."""

    def __init__(self, folder: Path, architecture: dict[str, Any], rows: Sequence[Row], cache: Path) -> None:
        began = time.perf_counter()
        self._latents = LatentCache(cache, vae_key(folder), load_encoder(folder), None)
        self._latents.ensure(rows, progress=False)
        release_encoder()
        self.cache_s = time.perf_counter() - began
        tokenize = load_tokenizer(folder)
        self.rows, self.cfg_rate = rows, training_cfg_rate(architecture)
        self._tokens = {row.id: tokenize(row.text) for row in rows}

    def pack(self, row: Row) -> PackedRow:
        """The layout of one row; its latents are read from the cache."""
        return pack_row(row.id, self._tokens[row.id], self._latents.latents(row.audio), None)

    def positions(self) -> list[int]:
        """T of each row."""
        return [self.pack(row).positions for row in self.rows]


class OurLoop:
    """Steps of a full fine-tuning of `model`, fp32 weights, under bf16 autocast on a GPU (`memory=80gb`)."""

    def __init__(self, model: VoxCPM2Model, data: OurData, choices: Choices, device: torch.device) -> None:
        rule = AdamW if choices.one_pass else DefaultAdamW
        self.module = VoxModule(
            model,
            FullTuning(),
            rule(lr=LEARNING_RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY),
            WarmupConstant(warmup_steps=0),
            weights_diff=1.0,
            weights_stop=1.0,
            loss_normalisation="per_row",
            max_grad_norm=MAX_GRAD_NORM,
            total_steps=TOTAL_STEPS,
            state="fp32",
            autocast=device.type == "cuda",
            activation_checkpointing=False,
            weight_stop_positive=1.0,
            rounding="nearest",
            gradients="card",
            seed=1,
            kernels=choices.kernels,
        )
        self.module.to(device)
        self.optimizer = Bare(self.module.configure_optimizers())
        self.module.optimizers = lambda: self.optimizer  # type: ignore[method-assign, assignment]
        self.module.manual_backward = Tensor.backward  # type: ignore[method-assign]
        rows, positions = len(data.rows), data.positions()
        most = rows * max(positions) if choices.packed else None
        plan = StepPlan(1, 1, rows, most, data.cfg_rate)
        self._steps = Steps(data.rows, data.pack, plan, 0, TOTAL_STEPS)
        self.after_data: Callable[[], None] = lambda: None  # for a profile: the batch is made

    def step(self) -> None:
        """One optimizer step over all rows."""
        batch = self._batch()
        self.after_data()
        self.module.training_step(batch)

    def _batch(self) -> StepBatch:
        return self._steps.step(self.module.steps_done + 1)


class DefaultAdamW(AdamW, frozen=True):
    """The same rule as torch makes it by default: on a CPU a pass over all weights for each of its operations."""

    def build(
        self, parameters: Iterable[torch.nn.Parameter], state: str, rounding: str, seed: int, gradients: str
    ) -> torch.optim.Optimizer:
        """See AdamW."""
        return torch.optim.AdamW(parameters, **self.model_dump())


class Bare(pl.core.optimizer.LightningOptimizer):
    """An optimizer as VoxModule expects it, without a Trainer behind it."""

    def step(self, closure: Any = None, **_: Any) -> None:
        """One update."""
        self.optimizer.step()
