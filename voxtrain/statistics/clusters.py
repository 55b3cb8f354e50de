"""How far a mean over rows may be off, when rows of one recording are alike: delete-one-recording jackknife.

Each recording is left out in turn, and the spread of what remains is the variance of the mean (the cluster jackknife,
called CR3: MacKinnon, Nielsen and Webb 2023, "Fast and reliable jackknife and bootstrap methods for cluster-robust
inference"). The degrees of freedom are Satterthwaite's (Bell and McCaffrey 2002), so that a few recordings with most
of the rows count for what they are. Chosen by simulation over percentile and studentised bootstraps of whole
recordings, which promise too much with few or uneven ones: benchmarks/results/calibration.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voxtrain.statistics.student import t_quantile

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Means over rows of S alternatives on the same rows of G recordings, and how they vary together."""

    means: Floats  # [S]
    influence: Floats  # [G, S], of each recording; its Gram matrix is the covariance of the means
    degrees: float  # of freedom

    def difference(self, of: int, less: int) -> tuple[float, float]:
        """The mean of one alternative less that of another, paired by row, and its standard error."""
        apart = self.influence[:, of] - self.influence[:, less]
        return float(self.means[of] - self.means[less]), float(np.sqrt(apart @ apart))

    def error(self, of: int) -> float:
        """The standard error of one mean."""
        return float(np.sqrt(self.influence[:, of] @ self.influence[:, of]))

    def reach(self, level: float) -> float:
        """How many standard errors an interval of that level reaches to each side."""
        return t_quantile((1 + level) / 2, self.degrees)


def cluster_sums(values: Floats, clusters: Sequence[str]) -> tuple[Floats, Floats]:
    """Sums of each cluster and their sizes: `values` [S, N] -> ([S, G], [G]), clusters in sorted order."""
    names, member = np.unique(np.asarray(clusters, dtype=np.str_), return_inverse=True)
    sums = np.stack([np.bincount(member, row, len(names)).astype(np.float64) for row in np.asarray(values)])
    return sums, np.bincount(member, minlength=len(names)).astype(np.float64)


def estimate(sums: Floats, sizes: Floats) -> Estimate:
    """Means over all rows from the sums [S, G] and the sizes [G] of at least two recordings."""
    groups, rows = len(sizes), sizes.sum()
    means: Floats = sums.sum(axis=1) / rows
    # the mean without a recording differs from the mean by the recording's residual over the rows that remain
    influence = ((sums - means[:, None] * sizes) / (rows - sizes)).T * np.sqrt((groups - 1) / groups)
    return Estimate(means, influence, degrees_of_freedom(sizes))


def degrees_of_freedom(sizes: Floats) -> float:
    """Satterthwaite's degrees of freedom of the jackknife variance: G - 1 for equal sizes, less for uneven ones.

    As if rows of one recording were all alike, which is when uneven sizes harm most: with v the variances n^2 of the
    sums, c the weights 1 / (N - n)^2 of squared residuals and A the residuals' covariance, (sum c A)^2 / sum c c A^2.
    """
    rows, variance = sizes.sum(), sizes**2
    weight = 1 / (rows - sizes) ** 2
    # A = diag(v) + n a' + a n', from residuals u = s - n sum(s) / N
    along = -variance / rows + sizes * variance.sum() / (2 * rows**2)
    diagonal = variance + 2 * sizes * along
    off = 2 * ((weight @ sizes**2) * (weight @ along**2) + (weight @ (sizes * along)) ** 2)
    square = (weight**2) @ (variance**2 + 4 * variance * sizes * along) + off
    return float((weight @ diagonal) ** 2 / square)
