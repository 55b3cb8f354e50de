"""How far a value lies above others, in a scale that a few wild ones among them do not widen: the robust z-score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NORMAL = 1.4826
"""Times the median absolute deviation of normal numbers is their standard deviation."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Where values lie, and how far apart."""

    median: float
    mad: float  # median absolute deviation
    scale: float  # NORMAL x mad, or the least that was asked for

    def z(self, value: float) -> float:
        """The robust z-score of one more value; positive above the median."""
        return (value - self.median) / self.scale


def median(values: NDArray[np.float64]) -> float:
    """The median of `values` [N], N > 0; numpy's own spends four times as long on the hundreds of values here."""
    upper = len(values) // 2
    if len(values) % 2:
        return float(np.partition(values, upper)[upper])
    lower, higher = np.partition(values, (upper - 1, upper))[upper - 1 : upper + 1]
    return float(lower + higher) / 2


def spread(values: NDArray[np.float64], least: float) -> Spread:
    """The spread of `values` [N], N > 0, all finite.

    least: a scale under which differences do not matter, however alike the values are; where they are equal, no
    score would be finite without it.
    """
    middle = median(values)
    mad = median(np.abs(values - middle))
    return Spread(middle, mad, max(NORMAL * mad, least, float(np.finfo(np.float64).tiny)))
