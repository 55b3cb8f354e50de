"""Means over rows of recordings and how far they may be off; which alternative could be the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxtrain.statistics.best import standing
from voxtrain.statistics.clusters import Estimate, cluster_sums, degrees_of_freedom, estimate
from voxtrain.statistics.student import t_quantile

rows = st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(-20, 20)), min_size=2, max_size=40).filter(
    lambda data: len({name for name, _ in data}) > 1
)


def of(values: np.ndarray, clusters: list[str]) -> Estimate:
    return estimate(*cluster_sums(values, clusters))


def test_sums_and_sizes_of_uneven_clusters() -> None:
    sums, sizes = cluster_sums(np.array([[1.0, 2.0, 4.0], [0.0, 1.0, 5.0]]), ["b", "a", "b"])
    np.testing.assert_array_equal(sums, [[2, 5], [1, 5]])
    np.testing.assert_array_equal(sizes, [1, 2])


@given(rows)
def test_the_error_is_that_of_leaving_each_recording_out(data: list[tuple[str, int]]) -> None:
    names, values = [name for name, _ in data], np.array([float(value) for _, value in data])
    found = of(values[None], names)
    each = sorted(set(names))
    without = np.array([values[np.array(names) != name].mean() for name in each])
    variance = (len(each) - 1) / len(each) * ((without - values.mean()) ** 2).sum()
    assert found.means[0] == pytest.approx(values.mean(), abs=1e-12)
    assert found.error(0) == pytest.approx(np.sqrt(variance), abs=1e-9)


@given(rows)
def test_a_difference_that_is_the_same_in_every_row_has_no_spread(data: list[tuple[str, int]]) -> None:
    values = np.array([float(value) for _, value in data])
    difference, error = of(np.stack([values + 2, values]), [name for name, _ in data]).difference(0, 1)
    assert difference == pytest.approx(2, abs=1e-12)
    assert error == pytest.approx(0, abs=1e-9)


@given(rows)
def test_the_order_of_rows_changes_nothing(data: list[tuple[str, int]]) -> None:
    ends = []
    for turned in (data, data[::-1]):
        found = of(np.array([[float(value) for _, value in turned]]), [name for name, _ in turned])
        ends.append((found.means[0], found.error(0), found.degrees))
    assert ends[0] == ends[1]  # whole numbers: sums are exact in any order


def test_one_row_a_recording_is_student_s_own_interval() -> None:
    values = np.array([[1.0, 4.0, 2.0, 8.0, 5.0]])
    found = of(values, list("abcde"))
    assert found.degrees == pytest.approx(4)
    assert found.error(0) == pytest.approx(values.std(ddof=1) / np.sqrt(5))
    assert found.reach(0.95) == pytest.approx(2.776445, abs=1e-5)


@given(st.lists(st.integers(1, 300), min_size=2, max_size=30))
def test_degrees_of_freedom_are_those_of_the_formula_in_full(sizes: list[int]) -> None:
    n = np.array(sizes, dtype=float)
    residual = np.eye(len(n)) - np.outer(n, np.ones(len(n))) / n.sum()
    weight = np.diag(1 / (n.sum() - n))
    spread = weight @ residual @ np.diag(n**2) @ residual.T @ weight
    wanted = np.trace(spread) ** 2 / np.trace(spread @ spread)
    assert degrees_of_freedom(n) == pytest.approx(wanted, rel=1e-6)
    assert 1 - 1e-9 <= wanted <= len(n) - 1 + 1e-9


@pytest.mark.parametrize(
    ("probability", "degrees", "wanted"),
    [(0.975, 1, 12.706205), (0.975, 4, 2.776445), (0.95, 10, 1.812461), (0.8, 39, 0.850935), (0.975, 5000, 1.960439)],
)
def test_quantiles_of_student_s_t(probability: float, degrees: float, wanted: float) -> None:
    assert t_quantile(probability, degrees) == pytest.approx(wanted, rel=3e-5)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-wanted, rel=3e-5)


@pytest.mark.parametrize(("probability", "degrees"), [(0.0, 4.0), (1.0, 4.0), (0.9, 0.5)])
def test_quantiles_that_are_not_there(probability: float, degrees: float) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        t_quantile(probability, degrees)


def alternatives(means: list[float], spread: float = 1.0, groups: int = 12) -> Estimate:
    generator = np.random.Generator(np.random.Philox(3))
    values = generator.normal(0, spread, (len(means), 4 * groups))
    values += np.array(means)[:, None] - values.mean(axis=1, keepdims=True)
    return of(values, [f"g{row // 4}" for row in range(4 * groups)])


def test_the_lowest_is_in_the_tie_set_and_what_lies_far_off_is_not() -> None:
    found = standing(alternatives([0.0, 0.05, 5.0]), 4000, 1)
    assert found.tie_set(0.95) == [0, 1]
    assert found.p_best[2] == 0
    assert found.share_best.sum() == pytest.approx(1)
    assert found.share_best[0] > found.share_best[1] > found.share_best[2]


def test_of_two_the_tie_set_is_the_one_sided_test_of_their_difference() -> None:
    pair = alternatives([0.0, 0.4])
    difference, error = pair.difference(1, 0)
    [_, p] = standing(pair, 200_000, 1).p_best
    assert t_quantile(1 - p, pair.degrees) == pytest.approx(difference / error, rel=0.02)  # 200,000 draws


def test_more_comparisons_make_the_tie_set_larger() -> None:
    """The same distance from the best counts for less among twelve than between two."""
    two, twelve = alternatives([0.0, 0.5]), alternatives([0.0, 0.5, *[0.6] * 10])
    assert standing(twelve, 20_000, 1).p_best[1] > standing(two, 20_000, 1).p_best[1]


def test_alternatives_that_are_the_same_everywhere_share_their_place() -> None:
    values = np.array([[1.0, 3.0, 2.0, 5.0], [1.0, 3.0, 2.0, 5.0], [2.0, 4.0, 3.0, 6.0]])
    found = standing(of(values, list("abcd")), 100, 1)
    assert found.tie_set(0.95) == [0, 1]
    assert found.p_best[2] == 0


def test_a_lone_alternative_is_the_best() -> None:
    found = standing(alternatives([3.0]), 100, 1)
    assert found.tie_set(0.95) == [0]
    assert found.share_best.tolist() == [1.0]


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.integers(0, 2**20))
def test_the_tie_set_holds_the_lowest(means: list[float], seed: int) -> None:
    noise = np.random.Generator(np.random.Philox(seed)).normal(0, 1, (len(means), 24))
    found = of(np.array(means)[:, None] + noise, list("abcdef") * 4)
    assert int(np.argmin(found.means)) in standing(found, 500, seed).tie_set(0.95)
