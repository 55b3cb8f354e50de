"""Which step, and which row, stands out from those before: robust z-scores over a sliding window of recent steps.

Three figures of the step are watched, and two of each row. A row is compared with all rows of the window, not with its
own past: what is broken is broken at every visit. Only what lies above the others counts.

loss/stop of a row falls with its length, since a clip ends once however long it is; its sum over the clip grows with
it. A row stands out only where both do, so that being short or long is no fault. loss/diff has no such trend.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from voxtrain.metrics.spread import Spread, median, spread
from voxtrain.metrics.visits import Visit

LOSS_GRAIN, NORM_GRAIN = 0.1, 0.5
"""The least scale, of the window's median loss/total and gradient norm: smaller differences do not matter.

Late in a run each loss/stop may be near 0.00001, and one of 0.01 is no spike. At a threshold of 10 a loss must lie a
whole median loss/total above its own median, a gradient norm at six times its median (on clean speech they reach five).
"""
WARM_SHARE, LEAST_STEPS = 0.25, 10
"""Nothing is judged before so much of the window, and so many steps, are known."""


class Figures(NamedTuple):
    """The figures of one step that made an update."""

    total: float
    diff: float
    stop: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class Score:
    """How far one figure lies above the others."""

    metric: str
    value: float
    median: float
    mad: float
    z: float

    @classmethod
    def of(cls, metric: str, value: float, among: Spread) -> Score:
        """The score of a value among others."""
        return cls(metric, value, among.median, among.mad, among.z(value))


@dataclass(frozen=True, slots=True)
class Judgement:
    """The scores of one step and of its rows. Empty while the window warms up, and where a figure is not finite."""

    step: tuple[Score, ...]
    rows: tuple[tuple[Score, ...], ...]  # of each visit: loss/diff, loss/stop
    window_steps: int  # that it was compared with


class Window:
    """The steps that a new one is compared with, and their rows."""

    def __init__(self, steps: int) -> None:
        self._warm = max(LEAST_STEPS, round(WARM_SHARE * steps))
        self._steps: deque[Figures] = deque(maxlen=steps)
        self._rows: deque[NDArray[np.float64]] = deque(maxlen=steps)  # of each step [rows, 3]: diff, stop, positions

    def add_step(self, figures: Figures | None) -> None:
        """Add the figures of a step; None, of a step without an update, adds nothing."""
        if figures is not None:
            self._steps.append(figures)

    def add_rows(self, visits: Sequence[Visit]) -> None:
        """Add the rows of a step whose losses are finite."""
        known = [(*visit.losses, visit.positions) for visit in visits if visit.losses is not None]
        self._rows.append(np.array(known, dtype=np.float64).reshape(-1, 3))

    def judge(self, figures: Figures | None, visits: Sequence[Visit]) -> Judgement:
        """Score a step that is not in the window yet."""
        if len(self._steps) < self._warm:
            return Judgement((), ((),) * len(visits), len(self._steps))
        total, diff, stop, norm = np.array(self._steps).T
        least = LOSS_GRAIN * median(total)
        of_step: tuple[Score, ...] = ()
        if figures is not None:
            of_step = (
                Score.of("train/loss/diff", figures.diff, spread(diff, least)),
                Score.of("train/loss/stop", figures.stop, spread(stop, least)),
                Score.of("train/grad_norm", figures.grad_norm, spread(norm, NORM_GRAIN * median(norm))),
            )
        return Judgement(of_step, self._of_rows(visits, least), len(self._steps))

    def _of_rows(self, visits: Sequence[Visit], least: float) -> tuple[tuple[Score, ...], ...]:
        diff, stop, positions = np.concatenate(self._rows).T
        if not len(diff):
            return ((),) * len(visits)
        diffs, stops = spread(diff, least), spread(stop, least)
        sums = spread(stop * positions, 0.0)  # whether it matters is asked of the mean

        def scores(visit: Visit) -> tuple[Score, ...]:
            if visit.losses is None:
                return ()
            of_diff = Score.of("row/loss/diff", visit.losses[0], diffs)
            of_mean = Score.of("row/loss/stop", visit.losses[1], stops)
            of_sum = Score.of("row/loss/stop over the clip", visit.losses[1] * visit.positions, sums)
            return of_diff, min(of_mean, of_sum, key=lambda score: score.z)

        return tuple(map(scores, visits))
