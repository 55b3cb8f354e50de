"""Which row stands at which place of the order: a pure function, so that resuming is a matter of counting.

Each epoch is a fresh permutation of all rows; no row is seen twice before every row was seen once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from voxtrain.data.keyed import philox, ranks


def row_index(seed: int, n: int, count: int) -> int:
    """The row, 0 .. count-1, at place `n` (0-based, over all epochs) of the order of `count` rows."""
    if n < 0 or count < 1:
        raise ValueError(f"there is no place {n} in an order of {count} rows")
    epoch, place = divmod(n, count)
    return int(_permutation(seed, epoch, count)[place])


@lru_cache(maxsize=4)  # a step may lie in two epochs
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return ranks(philox("order", seed, epoch), (count,))
