"""Exact intervals of shares, against published values, against sums over all outcomes, and by what they promise."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.statistics.binomial import at_least, interval, p_value_of_half


@pytest.mark.parametrize(
    ("yes", "answers", "low", "high"),
    [(0, 10, 0.0, 0.3085), (10, 10, 0.6915, 1.0), (5, 10, 0.1871, 0.8129), (8, 10, 0.4439, 0.9748), (0, 0, 0.0, 1.0)],
)
def test_known_intervals(yes: int, answers: int, low: float, high: float) -> None:
    """To four digits, as tables of Clopper and Pearson's limits print them."""
    assert interval(yes, answers, 0.95) == pytest.approx((low, high), abs=5e-5)


def test_the_test_of_one_half_is_the_sum_over_outcomes() -> None:
    for answers in range(1, 20):
        for yes in range(answers + 1):
            far = abs(2 * yes - answers)
            outcomes = sum(math.comb(answers, k) for k in range(answers + 1) if abs(2 * k - answers) >= far)
            assert p_value_of_half(yes, answers) == pytest.approx(outcomes / 2**answers, rel=1e-12)


@settings(max_examples=40)
@given(st.integers(1, 12), st.floats(0.01, 0.99))
def test_an_interval_holds_the_truth_at_least_as_often_as_it_says(answers: int, share: float) -> None:
    reached = [*(at_least(k, answers, share) for k in range(answers + 1)), 0.0]
    probability = [this - more for this, more in pairwise(reached)]
    ends = [interval(k, answers, 0.95) for k in range(answers + 1)]
    held = math.fsum(p for p, (low, high) in zip(probability, ends, strict=True) if low <= share <= high)
    assert held >= 0.95 - 1e-9
    assert all(high - low < 1 for low, high in ends)


@pytest.mark.slow
def test_many_answers_do_not_overflow() -> None:
    low, high = interval(6_000, 10_000, 0.95)
    assert 0.58 < low < 0.6 < high < 0.62


@pytest.mark.parametrize("yes", [-1, 4])
def test_answers_that_cannot_be_are_refused(yes: int) -> None:
    with pytest.raises(ValueError, match="among 3 answers"):
        at_least(yes, 3, 0.5)
