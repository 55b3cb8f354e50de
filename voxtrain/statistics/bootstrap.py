"""Cluster bootstrap: how far a mean over rows may be off, when rows of one recording are alike.

Whole clusters (recordings) are drawn with replacement, never single rows: rows of one recording err together, and
drawing them apart would promise too narrow an interval (Field and Welsh 2007, "Bootstrapping clustered data"). All
alternatives see the same draws, so that their differences are paired. First form: percentile intervals, which are
somewhat too narrow with few or uneven clusters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cluster_sums(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sums of each cluster and their sizes: `values` [S, N] -> ([S, G], [G]), clusters in sorted order."""
    names, member = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    sums = np.stack([np.bincount(member, row, len(names)).astype(np.float64) for row in np.asarray(values)])
    return sums, np.bincount(member, minlength=len(names)).astype(np.float64)


def resampled_means(values: Floats, clusters: Sequence[str], resamples: int, seed: int) -> Floats:
    """Means over rows under `resamples` draws of whole clusters: `values` [S, N] -> [R, S], the same draws for all S.

    A function of its arguments: the same seed gives the same means, whatever the order of the rows (but for rounding).
    """
    sums, sizes = cluster_sums(values, clusters)
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)  # [R, G]
    means: Floats = (drawn @ sums.T) / (drawn @ sizes)[:, None]
    return means


def percentile_interval(means: Floats, level: float) -> tuple[Floats, Floats]:
    """The middle `level` of resampled means: [R, ...] -> lower and upper end [...]."""
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def share_lowest(means: Floats) -> Floats:
    """The share of draws in which each alternative has the lowest mean: [R, S] -> [S]; of equals the first counts."""
    counts = np.bincount(means.argmin(axis=1), minlength=means.shape[1])
    shares: Floats = counts / len(means)
    return shares
