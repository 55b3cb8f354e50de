"""The cluster bootstrap: what must hold for any data, and that drawing whole clusters matters."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxtrain.statistics.bootstrap import cluster_sums, percentile_interval, resampled_means, share_lowest

rows = st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(-20, 20)), min_size=1, max_size=40)


@given(rows, st.integers(0, 2**32))
def test_means_stay_within_the_values_and_ignore_the_order_of_rows(data: list[tuple[str, int]], seed: int) -> None:
    clusters, values = [c for c, _ in data], np.array([[float(v) for _, v in data]])
    means = resampled_means(values, clusters, 50, seed)
    assert means.shape == (50, 1)
    assert values.min() - 1e-12 <= means.min()
    assert means.max() <= values.max() + 1e-12
    turned = resampled_means(values[:, ::-1], clusters[::-1], 50, seed)
    np.testing.assert_array_equal(turned, means)  # whole numbers: sums are exact in any order


@given(rows)
def test_a_constant_difference_has_no_spread(data: list[tuple[str, int]]) -> None:
    base = np.array([float(v) for _, v in data])
    means = resampled_means(np.stack([base, base + 2]), [c for c, _ in data], 50, 1)
    np.testing.assert_allclose(means[:, 1] - means[:, 0], 2, rtol=0, atol=1e-12)  # rounding of sums of 40 values


def test_sums_and_sizes_of_uneven_clusters() -> None:
    sums, sizes = cluster_sums(np.array([[1.0, 2.0, 4.0], [0.0, 1.0, 5.0]]), ["b", "a", "b"])
    np.testing.assert_array_equal(sums, [[2, 5], [1, 5]])
    np.testing.assert_array_equal(sizes, [1, 2])


def test_every_row_counts_the_same_in_uneven_clusters() -> None:
    values, clusters = np.array([[0.0] * 30 + [3.0] * 10]), [f"big{i // 10}" for i in range(30)] + ["small"] * 10
    assert resampled_means(values, clusters, 20000, 3).mean() == pytest.approx(0.75, abs=0.03)  # 4 sd of 20,000 draws


def test_an_interval_holds_the_middle_of_the_draws() -> None:
    low, high = percentile_interval(np.arange(1001.0)[:, None] * [1.0, 2.0], 0.95)
    np.testing.assert_allclose(low, [25, 50])
    np.testing.assert_allclose(high, [975, 1950])


def test_shares_of_being_lowest_add_up_and_ties_go_to_the_first() -> None:
    shares = share_lowest(np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 3.0], [3.0, 2.0, 1.0], [3.0, 1.0, 1.0]]))
    np.testing.assert_array_equal(shares, [0.5, 0.25, 0.25])


def test_intervals_cover_clustered_data_where_drawing_single_rows_does_not() -> None:
    """100 trials of 40 clusters of 10 rows with an intra-cluster correlation of 0.3; the true mean is 0."""
    generator = np.random.Generator(np.random.Philox(7))
    by_cluster = by_row = 0
    for trial in range(100):
        shared = generator.normal(0, np.sqrt(0.3), (40, 1))
        values = (shared + generator.normal(0, np.sqrt(0.7), (40, 10))).reshape(1, -1)
        clusters = [str(i // 10) for i in range(400)]
        for names, count in ((clusters, True), ([str(i) for i in range(400)], False)):
            low, high = percentile_interval(resampled_means(values, names, 300, trial), 0.95)
            covered = bool(low[0] <= 0 <= high[0])
            by_cluster, by_row = by_cluster + (covered and count), by_row + (covered and not count)
    assert by_cluster >= 86  # 0.936 of trials were found (facts, section 6): 3 standard errors below
    assert by_row <= 75
