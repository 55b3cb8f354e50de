"""Random streams that depend on a key alone: on no state, no device, no earlier draw.

Philox is counter-based (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), so that any key may be
used without a stream running into its neighbour's.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def philox(purpose: str, *key: str | int) -> np.random.Philox:
    """The stream of `key` for `purpose`: other purposes and other keys have independent ones."""
    digest = hashlib.sha256(json.dumps([purpose, *key]).encode()).digest()
    return np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))


def ranks(stream: np.random.Philox, shape: tuple[int, ...]) -> np.ndarray:
    """Random permutations of 0 .. shape[-1]-1 along the last axis, int64.

    Made by sorting raw bits: numpy promises these to stay the same between versions, but not `Generator.permutation`.
    """
    bits = np.asarray(stream.random_raw(shape))
    return np.argsort(bits, axis=-1, kind="stable")
