"""Losses of one model on all validation rows, each under the same fixed draws, whatever the model.

Draws are keyed by (row id, draw number) and made again for every checkpoint: keeping them would cost more memory
than the latents do. Batches are cut from lengths alone, so every checkpoint sees the same batches too. Only LocDiT sees
a draw: the rest of the model runs once for all draws of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxtrain.batch import Draws
from voxtrain.data.draws import validation_draws
from voxtrain.data.packing import PackedRow, collate, cut_step
from voxtrain.memory.host import give_back_freed_memory
from voxtrain.model.loss import GivenPositions, flow_losses, given_positions
from voxtrain.model.upstream import VoxCPM2Model
from voxtrain.progress import told

Part = TypeVar("Part", GivenPositions, Draws)
PATCHES_TOGETHER = 128
"""Loss positions that go through LocDiT at a time: each is 11 tokens there, and most of a judge's memory."""
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
    lengths = [row.positions for row in rows]
    cut = cut_step(lengths, 1, max(max_positions, *lengths))
    found: list[DrawLoss] = []
    for part in told(cut, len(cut), what):
        found += _losses_together(model, rows, part, draws, device)
    return sorted(found, key=lambda loss: (loss.row, loss.draw))


def _losses_together(
    model: VoxCPM2Model, rows: Sequence[PackedRow], part: Sequence[int], draws: int, device: torch.device
) -> list[DrawLoss]:
    """All draws of some rows: LocEnc and the language models, which see no draw, run once.

    By torch's own operators: those of the CPU are faster by a third, but Numba takes 0.13 GiB, and a judge is small.
    """
    chosen = [rows[row] for row in part]
    ends = np.cumsum([row.loss_positions for row in chosen])[:-1]
    found: list[DrawLoss] = []
    given = None
    for draw in range(draws):
        batch = collate(chosen, [_draws_of(row, draw, draws) for row in chosen], [draw] * len(chosen))
        if given is None:
            given = given_positions(model, batch.to(device), activation_checkpointing=False)
            stop = np.split(given.stop.double().cpu().numpy(), ends)
        give_back_freed_memory()  # batches and draws leave pieces behind: half a GiB after 40 rows
        losses = _flow_losses(model, given, batch.draws.to(device))
        diff = np.split(losses.double().cpu().numpy(), ends)
        t = np.split(batch.draws.t.numpy(), ends)
        found += [
            DrawLoss(row, draw, float(d.mean()), float(s.mean()), _by_t(d, at), len(d))
            for row, d, s, at in zip(part, diff, stop, t, strict=True)
        ]
    return found


def _flow_losses(model: VoxCPM2Model, given: GivenPositions, draws: Draws) -> Tensor:
    """[L] float32, some positions at a time: no position hears another one there."""
    parts = []
    for start in range(0, len(given.row), PATCHES_TOGETHER):
        some = slice(start, start + PATCHES_TOGETHER)
        here, drawn = _some(given, some), _some(draws, some)
        parts.append(flow_losses(model, here, drawn, activation_checkpointing=False))
    return torch.cat(parts)


def _some(whole: Part, some: slice) -> Part:
    return replace(whole, **{each.name: getattr(whole, each.name)[some] for each in fields(whole)})


def _draws_of(row: PackedRow, draw: int, draws: int) -> Draws:
    patch, dim = row.audio_feats.shape[1:]
    return validation_draws(row.id, draw, draws, row.loss_positions, patch, dim)


def _by_t(diff: NDArray[np.float64], t: NDArray[np.float32]) -> tuple[float | None, ...]:
    bins = np.minimum((t * T_BINS).astype(int), T_BINS - 1)
    return tuple(float(diff[bins == k].mean()) if (bins == k).any() else None for k in range(T_BINS))
