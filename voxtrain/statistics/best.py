"""Which of several alternatives could be the best: comparisons with the best, all at once.

An alternative stays in the tie set unless another one is lower by more than chance explains, where chance has been
given all the comparisons that were made: the largest of them is judged by the distribution of the largest (Hsu 1981,
"Simultaneous confidence intervals for all distances from the 'best'"; correlations as they are, by simulation). So the
set holds the truly best alternative with the stated probability, however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxtrain.statistics.clusters import Estimate, Floats


@dataclass(frozen=True)
class Standing:
    """Of S alternatives, lower being better."""

    p_best: Floats  # [S] how often chance alone would put the best one as far behind as this one is found
    share_best: Floats  # [S] how often it is the lowest when means vary as far as they may; sums to 1

    def tie_set(self, level: float) -> list[int]:
        """The alternatives that cannot be told from the best at that level."""
        return [int(i) for i in np.flatnonzero(self.p_best > 1 - level)]


def standing(found: Estimate, draws: int, seed: int) -> Standing:
    """Where each alternative stands. A function of its arguments."""
    generator = np.random.Generator(np.random.Philox(seed))
    normal = generator.standard_normal((draws, len(found.influence)))
    scale = np.sqrt(generator.chisquare(found.degrees, draws) / found.degrees)
    noise = (normal @ found.influence) / scale[:, None]  # [R, S] as far as the means may be off, together
    p_best = [_p_best(found, noise, one) for one in range(len(found.means))]
    lowest = (found.means + noise).argmin(axis=1)
    return Standing(np.array(p_best), np.bincount(lowest, minlength=len(found.means)) / draws)


def _p_best(found: Estimate, noise: Floats, one: int) -> float:
    """How often the largest distance of the best to another reaches that of `one`, counted in standard errors."""
    errors = np.linalg.norm(found.influence[:, [one]] - found.influence, axis=0)  # [S]
    behind = found.means[one] - found.means
    certain = errors <= 1e-12 * np.abs(found.means).max()  # the same in every row: nothing is left to chance
    if (certain & (behind > 1e-12 * np.abs(found.means).max())).any():
        return 0.0
    if certain.all():
        return 1.0
    distance = (behind[~certain] / errors[~certain]).max()
    by_chance = ((noise[:, [one]] - noise[:, ~certain]) / errors[~certain]).max(axis=1)
    return float((by_chance >= distance).mean())
