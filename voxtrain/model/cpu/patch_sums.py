"""The two sums of attention inside patches, of sixteen patches at a time: numbers lie as [place, LANES].

Two rows of the result are made at a time, since each number that is read then serves twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxtrain.model.cpu.kernel import part
from voxtrain.model.cpu.lanes import LANES, load, product_and, spread, store
from voxtrain.model.cpu.shares import store_four

ZERO = np.float32(0.0)


@part
def dots(
    left: Any, first: int, second: int, right: Any, tokens: int, channels: int, out: Any, row: int, next_row: int
) -> None:
    """out[row + k] = left[first + c] . right[k, c] over channels, for each of `tokens`; `second` likewise to next_row.

    Both may be the same.
    """
    for k in range(0, tokens - 3, 4):
        a, b, c, d = spread(ZERO), spread(ZERO), spread(ZERO), spread(ZERO)
        e, f, g, h = spread(ZERO), spread(ZERO), spread(ZERO), spread(ZERO)
        for i in range(channels):
            own, other, at = (
                load(left, (first + i) * LANES),
                load(left, (second + i) * LANES),
                (k * channels + i) * LANES,
            )
            one, two = load(right, at), load(right, at + channels * LANES)
            three, four = load(right, at + 2 * channels * LANES), load(right, at + 3 * channels * LANES)
            a, b = product_and(own, one, a), product_and(own, two, b)
            c, d = product_and(own, three, c), product_and(own, four, d)
            e, f = product_and(other, one, e), product_and(other, two, f)
            g, h = product_and(other, three, g), product_and(other, four, h)
        store_four(out, (row + k) * LANES, a, b, c, d)
        store_four(out, (next_row + k) * LANES, e, f, g, h)
    for k in range(tokens - tokens % 4, tokens):
        a, b = spread(ZERO), spread(ZERO)
        for i in range(channels):
            key = load(right, (k * channels + i) * LANES)
            a = product_and(load(left, (first + i) * LANES), key, a)
            b = product_and(load(left, (second + i) * LANES), key, b)
        store(out, (row + k) * LANES, a)
        store(out, (next_row + k) * LANES, b)


@part
def mix(
    shares: Any,
    first: int,
    second: int,
    step: int,
    number: int,
    held: Any,
    channels: int,
    out: Any,
    row: int,
    next_row: int,
) -> None:
    """out[row + c] += sum over k < number of shares[first + k step] x held[k, c]; `second` likewise to next_row.

    Where both are the same, it counts once.
    """
    for i in range(0, channels - 3, 4):
        at, other_at = (row + i) * LANES, (next_row + i) * LANES
        a, b, c, d = load(out, at), load(out, at + LANES), load(out, at + 2 * LANES), load(out, at + 3 * LANES)
        e, f = load(out, other_at), load(out, other_at + LANES)
        g, h = load(out, other_at + 2 * LANES), load(out, other_at + 3 * LANES)
        for k in range(number):
            own, place = load(shares, (first + k * step) * LANES), (k * channels + i) * LANES
            other = load(shares, (second + k * step) * LANES)
            one, two = load(held, place), load(held, place + LANES)
            three, four = load(held, place + 2 * LANES), load(held, place + 3 * LANES)
            a, b = product_and(own, one, a), product_and(own, two, b)
            c, d = product_and(own, three, c), product_and(own, four, d)
            e, f = product_and(other, one, e), product_and(other, two, f)
            g, h = product_and(other, three, g), product_and(other, four, h)
        store_four(out, at, a, b, c, d)
        store_four(out, other_at, e, f, g, h)
    for i in range(channels - channels % 4, channels):
        a, b = load(out, (row + i) * LANES), load(out, (next_row + i) * LANES)
        for k in range(number):
            own = load(held, (k * channels + i) * LANES)
            a = product_and(load(shares, (first + k * step) * LANES), own, a)
            b = product_and(load(shares, (second + k * step) * LANES), own, b)
        store(out, (row + i) * LANES, a)
        store(out, (next_row + i) * LANES, b)
