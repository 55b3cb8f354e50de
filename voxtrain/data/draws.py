"""The random draws of the flow-matching loss, as functions of the row's place (training) or of its name (validation).

The distributions are upstream's (unified_cfm.py: sample_r_t and compute_loss): t = sigmoid(normal - 0.4), standard
normal noise, and the condition kept where a uniform number exceeds the rate. Upstream draws one of each for every
position; here only loss positions have them, since no other position reaches the loss. All are drawn on the CPU.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import torch

from voxtrain.batch import Draws
from voxtrain.data.keyed import philox, ranks

T_MEAN = -0.4
"""Mean of the normal number behind t (unified_cfm.py: sample_r_t, mu=-0.4, sigma=1)."""


def training_draws(seed: int, n: int, positions: int, patch: int, dim: int, cfg_rate: float) -> Draws:
    """Draws of the row at place `n` of the order: [L], [L, P, D], [L] for its L = `positions` loss positions."""
    random = np.random.Generator(philox("training draws", seed, n))
    normal = random.standard_normal(positions)
    keep = random.random(positions) >= cfg_rate  # not `>`: at rate 0 all are kept, as in upstream
    return _draws(normal, random.standard_normal((positions, patch, dim), dtype=np.float32), keep)


def validation_draws(row_id: str, draw: int, draws: int, positions: int, patch: int, dim: int) -> Draws:
    """Draw number `draw` of `draws` for a validation row: the same for every checkpoint and every run.

    t is stratified: of the draws x positions cells of [0, 1), each is hit once over all draws, and each position is
    hit once in each of `draws` equal parts. No condition is dropped.
    """
    if not 0 <= draw < draws:
        raise ValueError(f"there is no draw {draw} of {draws}")
    uniform = _stratified(row_id, draw, draws, positions)
    normal = np.array([STANDARD_NORMAL.inv_cdf(u) for u in uniform])
    noise = np.random.Generator(philox("validation noise", row_id, draw))
    return _draws(
        normal, noise.standard_normal((positions, patch, dim), dtype=np.float32), np.ones(positions, dtype=np.bool_)
    )


STANDARD_NORMAL = NormalDist()


def _stratified(row_id: str, draw: int, draws: int, positions: int) -> np.ndarray:
    """[L] float64 in (0, 1), uniform each, and stratified over positions and draws together."""
    cells = philox("validation cells", row_id, draws, positions)
    part = ranks(cells, (positions, draws))[:, draw]  # which of the `draws` parts of [0, 1) each position hits
    within = ranks(cells, (draws, positions))[part, np.arange(positions)]  # and which of the part's L cells
    jitter = philox("validation jitter", row_id, draws, draw).random_raw(positions) >> np.uint64(32)
    # Half a step of the jitter from each wall: rounding never leaves the cell, and 0 and 1 are never reached.
    return np.asarray((part * positions + within + (jitter + 0.5) / 2**32) / (draws * positions))


def _draws(normal: np.ndarray, noise: np.ndarray, keep: np.ndarray) -> Draws:
    t = 1 / (1 + np.exp(-(normal + T_MEAN)))
    return Draws(
        t=torch.from_numpy(t.astype(np.float32)),
        noise=torch.from_numpy(noise),
        keep_condition=torch.from_numpy(keep),
    )
