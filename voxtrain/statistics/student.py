"""Student's t: the quantiles that intervals from few recordings need. NumPy alone."""

from __future__ import annotations

from functools import cache

import numpy as np

NODES = 20_001


@cache
def t_quantile(probability: float, degrees: float) -> float:
    """The value below which a t variable of that many degrees of freedom (at least 1) lies with that probability.

    With t = sqrt(degrees) tan(angle) the density over the angle is a power of its cosine, which is summed on a grid;
    right to five digits (tests).
    """
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"there is no quantile {probability} of t with {degrees} degrees of freedom")
    angle = np.linspace(-np.pi / 2, np.pi / 2, NODES)
    density = np.cos(angle).clip(0) ** (degrees - 1)
    below = np.concatenate(([0.0], np.cumsum(density[1:] + density[:-1])))
    return float(np.sqrt(degrees) * np.tan(np.interp(probability, below / below[-1], angle)))
