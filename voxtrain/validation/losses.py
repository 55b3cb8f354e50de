"""Losses of one model on all validation rows, each under the same fixed draws, whatever the model.

Draws are keyed by (row id, draw number) and made again for every checkpoint: keeping them would cost more memory
than the latents do. Batches are cut from lengths alone, so every checkpoint sees the same batches too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from voxtrain.data.draws import validation_draws
from voxtrain.data.packing import PackedRow, collate, cut_step
from voxtrain.manifest.progress import told
from voxtrain.model.loss import position_losses
from voxtrain.model.upstream import VoxCPM2Model

T_BINS = 5
"""Equal parts of flow time from 0 (data) to 1 (noise)."""


@dataclass(frozen=True, slots=True)
class DrawLoss:
    """The losses of one row under one draw: means over its loss positions."""

    row: int  # index in the rows
    draw: int
    diff: float
    stop: float
    diff_by_t: tuple[float | None, ...]  # [T_BINS]; None where no position's t fell into the bin
    positions: int  # loss positions


@torch.inference_mode()
def losses_on_fixed_draws(
    model: VoxCPM2Model, rows: Sequence[PackedRow], draws: int, max_positions: int, device: torch.device, what: str
) -> list[DrawLoss]:
    """One entry for every row and draw, in that order.

    max_positions: padded positions that go through the model together; a longer row goes alone.
    what: shown while it takes long.
    """
    pairs = [(row, draw) for row in range(len(rows)) for draw in range(draws)]
    lengths = [rows[row].positions for row, _ in pairs]
    cut = cut_step(lengths, 1, max(max_positions, *lengths))
    found: list[DrawLoss] = []
    for part in told(cut, len(cut), what):
        found += _losses_together(model, rows, [pairs[i] for i in part], draws, device)
    return sorted(found, key=lambda loss: (loss.row, loss.draw))


def _losses_together(
    model: VoxCPM2Model, rows: Sequence[PackedRow], pairs: Sequence[tuple[int, int]], draws: int, device: torch.device
) -> list[DrawLoss]:
    chosen = [rows[row] for row, _ in pairs]
    patch, dim = chosen[0].audio_feats.shape[1:]
    drawn = [
        validation_draws(row.id, draw, draws, row.loss_positions, patch, dim)
        for row, (_, draw) in zip(chosen, pairs, strict=True)
    ]
    batch = collate(chosen, drawn, [draw for _, draw in pairs])
    losses = position_losses(model, batch.to(device), activation_checkpointing=False)
    diff, stop = (values.double().cpu().numpy() for values in (losses.diff, losses.stop))
    ends = np.cumsum([row.loss_positions for row in chosen])
    parts = [np.split(values, ends[:-1]) for values in (diff, stop, batch.draws.t.numpy())]
    return [
        DrawLoss(row, draw, float(d.mean()), float(s.mean()), _by_t(d, t), len(d))
        for (row, draw), d, s, t in zip(pairs, *parts, strict=True)
    ]


def _by_t(diff: NDArray[np.float64], t: NDArray[np.float32]) -> tuple[float | None, ...]:
    bins = np.minimum((t * T_BINS).astype(int), T_BINS - 1)
    return tuple(float(diff[bins == k].mean()) if (bins == k).any() else None for k in range(T_BINS))
