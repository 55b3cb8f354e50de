"""Differences of losses as a validation split gives them: rows of one recording err together; the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CORRELATION = 0.3
"""Of two rows of one recording."""


@dataclass(frozen=True)
class Shape:
    """How recordings are made."""

    name: str
    even: bool  # 5 to 25 rows each; else log-normal sizes, of which a few hold most of the rows
    effects: str  # how what rows of a recording share is distributed: normal, exponential or lognormal


SHAPES = (
    Shape("5 to 25 rows, normal effects", even=True, effects="normal"),
    Shape("5 to 25 rows, skewed effects", even=True, effects="exponential"),
    Shape("skewed sizes, normal effects", even=False, effects="normal"),
    Shape("skewed sizes, skewed effects", even=False, effects="exponential"),
)
HEAVY = Shape("5 to 25 rows, heavy-tailed effects", even=True, effects="lognormal")
"""One recording in many is far off, and most splits do not hold it: no interval can know of it."""


@dataclass(frozen=True)
class Trial:
    """Losses of S checkpoints less what their rows have in common."""

    values: Floats  # [S, N]
    member: NDArray[np.int64]  # [N], the recording of each row, in order
    sizes: Floats  # [G]

    @property
    def sums(self) -> Floats:
        """Of each recording: [S, G]."""
        ends = np.cumsum(self.sizes).astype(int)
        totals: Floats = np.add.reduceat(self.values, np.concatenate(([0], ends[:-1])), axis=1)
        return totals


def trial(shape: Shape, recordings: int, truth: Floats, generator: np.random.Generator) -> Trial:
    """One split: each row's value is its checkpoint's true mean, what its recording adds, and what is its own."""
    if shape.even:
        sizes = generator.integers(5, 26, recordings)
    else:
        sizes = np.clip(np.round(5 * np.exp(generator.normal(0, 1, recordings))), 1, 200).astype(np.int64)
    shared = _effects(shape, (len(truth), recordings), generator)
    member = np.repeat(np.arange(recordings), sizes)
    own = generator.normal(0, np.sqrt(1 - CORRELATION), (len(truth), len(member)))
    return Trial(truth[:, None] + np.sqrt(CORRELATION) * shared[:, member] + own, member, sizes.astype(np.float64))


def _effects(shape: Shape, drawn: tuple[int, int], generator: np.random.Generator) -> Floats:
    """Of mean 0 and variance 1."""
    if shape.effects == "exponential":
        return generator.exponential(1, drawn) - 1
    normal = generator.normal(0, 1, drawn)
    if shape.effects == "normal":
        return normal
    spread: Floats = (np.exp(normal) - np.exp(0.5)) / np.sqrt((np.e - 1) * np.e)
    return spread
