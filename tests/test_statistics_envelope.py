"""Which line is lowest where."""

from __future__ import annotations

import itertools
import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from voxtrain.statistics.envelope import Range, lowest_ranges

finite = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))
lines = st.lists(st.tuples(finite, finite), min_size=1, max_size=12)


@given(lines, st.floats(0, 50))
def test_the_winner_at_any_weight_is_the_lowest_line_there(pairs: list[tuple[float, float]], weight: float) -> None:
    intercepts, slopes = zip(*pairs, strict=True)
    values = [a + b * weight for a, b in pairs]
    [found] = [r for r in lowest_ranges(intercepts, slopes) if r.start <= weight < r.end]
    assert values[found.index] <= min(values) + 1e-9 * (1 + weight) * 100


@given(lines)
def test_ranges_cover_every_weight_once_and_slopes_fall(pairs: list[tuple[float, float]]) -> None:
    intercepts, slopes = zip(*pairs, strict=True)
    ranges = lowest_ranges(intercepts, slopes)
    assert ranges[0].start == 0
    assert ranges[-1].end == math.inf
    assert all(a.end == b.start and a.start < a.end for a, b in itertools.pairwise(ranges))
    assert all(np.diff([slopes[r.index] for r in ranges]) < 0)


def test_one_crossing() -> None:
    assert lowest_ranges([1.0, 2.0], [1.0, 0.5]) == [Range(0, 0.0, 2.0), Range(1, 2.0, math.inf)]


def test_of_equal_lines_the_first_counts() -> None:
    assert lowest_ranges([3.0, 1.0, 1.0], [1.0, 1.0, 1.0]) == [Range(1, 0.0, math.inf)]


def test_lines_that_meet_in_one_point_leave_no_empty_range() -> None:
    assert lowest_ranges([0.0, 1.0, 2.0], [2.0, 1.0, 0.0]) == [Range(0, 0.0, 1.0), Range(2, 1.0, math.inf)]
