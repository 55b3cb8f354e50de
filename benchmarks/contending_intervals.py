"""Intervals for a mean over rows that voxtrain could have used, each at the level of 95 %."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from benchmarks.synthetic_losses import Floats, Trial
from voxtrain.statistics.clusters import estimate
from voxtrain.statistics.student import t_quantile
from voxtrain.validation.evidence import LEVEL

RESAMPLES = 999
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)

Interval = tuple[float, float]


def jackknife(trial: Trial, generator: np.random.Generator) -> Interval:
    """What voxtrain uses."""
    found = estimate(trial.sums, trial.sizes)
    reach = found.reach(LEVEL) * found.error(0)
    return float(found.means[0] - reach), float(found.means[0] + reach)


def jackknife_of_many(trial: Trial, generator: np.random.Generator) -> Interval:
    """The same with one degree of freedom less than there are recordings, whatever their sizes."""
    found = estimate(trial.sums, trial.sizes)
    reach = t_quantile(TAILS[1], len(trial.sizes) - 1) * found.error(0)
    return float(found.means[0] - reach), float(found.means[0] + reach)


def percentile_of_recordings(trial: Trial, generator: np.random.Generator) -> Interval:
    """The middle of the means over recordings drawn with replacement (Field and Welsh 2007)."""
    means, _ = _mean_and_error(trial, _drawn(len(trial.sizes)))
    low, high = np.quantile(means, TAILS)
    return float(low), float(high)


def studentised_of_recordings(trial: Trial, generator: np.random.Generator) -> Interval:
    """The same draws, each mean counted in standard errors of its own."""
    means, errors = _mean_and_error(trial, _drawn(len(trial.sizes)))
    [mean], [error] = _mean_and_error(trial, np.ones((1, len(trial.sizes))))
    low, high = np.quantile((means - mean) / np.maximum(errors, 1e-12), TAILS)
    return float(mean - high * error), float(mean - low * error)


def percentile_of_rows(trial: Trial, generator: np.random.Generator) -> Interval:
    """The middle of the means over rows drawn with replacement, as if no two had a recording in common."""
    rows = trial.values[0]
    drawn = generator.integers(0, len(rows), (RESAMPLES // 5, len(rows)), dtype=np.int32)
    low, high = np.quantile(rows[drawn].mean(axis=1), TAILS)
    return float(low), float(high)


@cache
def _drawn(groups: int) -> Floats:
    """How often each recording is drawn: [R, G], the same for every trial, which saves half of the time."""
    generator = np.random.Generator(np.random.Philox(groups))
    return generator.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES).astype(np.float64)


def _mean_and_error(trial: Trial, counts: Floats) -> tuple[Floats, Floats]:
    """Means over the rows of recordings that are there `counts` [R, G] times, and their linearised errors: [R] each."""
    [sums], sizes = trial.sums, trial.sizes
    rows = counts @ sizes
    means = counts @ sums / rows
    squares = counts @ sums**2 - 2 * means * (counts @ (sums * sizes)) + means**2 * (counts @ sizes**2)
    return means, np.sqrt(np.maximum(squares, 0)) / rows


OURS, ROWS_ALONE = "jackknife (ours)", "bootstrap of rows"
CONTENDERS: dict[str, Callable[[Trial, np.random.Generator], Interval]] = {
    OURS: jackknife,
    "jackknife, G - 1": jackknife_of_many,
    "bootstrap, percentile": percentile_of_recordings,
    "bootstrap, studentised": studentised_of_recordings,
    ROWS_ALONE: percentile_of_rows,
}
