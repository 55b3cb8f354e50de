"""How far a difference of two checkpoints moves with the draws alone: fixed paired ones against fresh ones.

The rows stay the same; only flow times, noise and dropped conditions are drawn anew. Fixed draws are voxtrain's:
stratified, no condition dropped, the same for both checkpoints; their spread is that over other keys. Fresh draws are
upstream's: each by itself, conditions dropped at its rate, others for each checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from voxtrain.batch import Draws
from voxtrain.data.draws import training_draws, validation_draws
from voxtrain.data.packing import PackedRow, collate
from voxtrain.model.loss import GivenPositions, flow_losses, given_positions
from voxtrain.model.upstream import VoxCPM2Model

Floats = NDArray[np.float64]
KEYS = 6
"""Other keys under which the fixed draws are made: each row's variance is over so many."""
FRESH = 24
"""Fresh draws of each row."""


@dataclass(frozen=True)
class Redrawn:
    """loss/diff of one checkpoint on N rows under other draws."""

    fixed: Floats  # [KEYS, N], each the mean over the draws of one key
    fresh: Floats  # [FRESH, N], each under one draw


@dataclass(frozen=True)
class Spread:
    """Standard errors of the difference of two checkpoints' mean loss/diff that come from draws."""

    difference: float
    relative: float  # to the loss of the earlier one
    fixed: float  # paired, of all draws of one key
    fixed_unpaired: float  # were each checkpoint given a key of its own
    fresh: float  # of one fresh draw a row for each checkpoint
    ten_rows: float  # of one fresh draw for each of ten rows, which are drawn anew for each checkpoint too


@torch.inference_mode()
def redrawn(model: VoxCPM2Model, rows: Sequence[PackedRow], draws: int, cfg_rate: float, seed: int) -> Redrawn:
    """Judge the model, as it is, under other draws again and again. seed: of the fresh ones."""
    patch, dim = rows[0].audio_feats.shape[1:]
    given: GivenPositions | None = None

    def losses(drawn: Callable[[int, PackedRow], Draws]) -> Floats:
        nonlocal given
        batch = collate(rows, [drawn(place, row) for place, row in enumerate(rows)], [0] * len(rows))
        if given is None:
            given = given_positions(model, batch, activation_checkpointing=False)
        found = flow_losses(model, given, batch.draws, activation_checkpointing=False).double().numpy()
        ends = np.cumsum([row.loss_positions for row in rows])[:-1]
        return np.array([part.mean() for part in np.split(found, ends)])

    def fixed(key: int, draw: int) -> Callable[[int, PackedRow], Draws]:
        return lambda _, row: validation_draws(f"{row.id} {key}", draw, draws, row.loss_positions, patch, dim)

    def fresh(time: int) -> Callable[[int, PackedRow], Draws]:
        return lambda place, row: training_draws(
            seed, time * len(rows) + place, row.loss_positions, patch, dim, cfg_rate
        )

    keyed = [np.mean([losses(fixed(key, draw)) for draw in range(draws)], axis=0) for key in range(KEYS)]
    return Redrawn(np.array(keyed), np.array([losses(fresh(time)) for time in range(FRESH)]))


def spread(later: Redrawn, earlier: Redrawn) -> Spread:
    """What the draws do to the difference of two checkpoints."""
    rows = later.fixed.shape[1]
    apart = later.fixed - earlier.fixed

    def of_rows(values: Floats) -> float:
        return float(values.var(axis=0, ddof=1).sum() / rows**2)  # rows are drawn for independently

    def of_ten(values: Floats) -> float:
        return float((values.mean(axis=0).var(ddof=1) + values.var(axis=0, ddof=1).mean()) / 10)

    return Spread(
        difference=float(apart.mean()),
        relative=float(apart.mean() / earlier.fixed.mean()),
        fixed=of_rows(apart) ** 0.5,
        fixed_unpaired=(of_rows(later.fixed) + of_rows(earlier.fixed)) ** 0.5,
        fresh=(of_rows(later.fresh) + of_rows(earlier.fresh)) ** 0.5,
        ten_rows=(of_ten(later.fresh) + of_ten(earlier.fresh)) ** 0.5,
    )
