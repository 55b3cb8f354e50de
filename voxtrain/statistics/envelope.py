"""Which of several lines is lowest, and where: how a choice depends on a weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Range:
    """Where one line is the lowest."""

    index: int  # of the line
    start: float
    end: float  # infinity in the last range


def lowest_ranges(intercepts: Sequence[float], slopes: Sequence[float]) -> list[Range]:
    """The lower envelope of the lines `intercept + slope * w` over w >= 0, from w = 0 on.

    Of lines that are equal everywhere the first counts; a line that is lowest at a single w has no range.
    """
    at = min(range(len(slopes)), key=lambda i: (intercepts[i], slopes[i], i))
    start, ranges = 0.0, []
    while True:
        steeper_down = [i for i in range(len(slopes)) if slopes[i] < slopes[at]]
        crossings = {i: (intercepts[i] - intercepts[at]) / (slopes[at] - slopes[i]) for i in steeper_down}
        if not crossings:
            ranges.append(Range(at, start, math.inf))
            return ranges
        following = min(crossings, key=lambda i: (crossings[i], slopes[i], i))
        if crossings[following] > start:
            ranges.append(Range(at, start, crossings[following]))
        start, at = max(start, crossings[following]), following
