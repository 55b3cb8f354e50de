"""The sums of causal attention, of sixteen queries of a head at a time, and layouts they need.

Of queries numbers lie as [channel, LANES], of keys as [token, channels filled up to whole vectors].
"""

from __future__ import annotations

from typing import Any

import numpy as np

from voxtrain.model.cpu.kernel import part
from voxtrain.model.cpu.lanes import LANES, load, product_and, spread, store
from voxtrain.model.cpu.shares import store_four

ZERO = np.float32(0.0)


@part
def filled(channels: int) -> int:
    """How many vectors the channels of a head fill."""
    return (channels + LANES - 1) // LANES


@part
def by_token(side: Any, channels: int, turned: Any) -> None:
    """From side [channel, LANES] to turned [lane, channels filled up]."""
    size = filled(channels) * LANES
    for lane in range(LANES):
        for channel in range(channels):
            turned[lane * size + channel] = side[channel * LANES + lane]


@part
def sums(numbers: Any, row_step: int, step: int, rows: int, held: Any, terms: int, out: Any) -> None:
    """out[row] = sum over terms of numbers[row x row_step + term x step] x held[term], for sixteen queries each.

    Of keys and queries that makes scores; of values and shares, with the steps exchanged, what is heard.
    """
    for row in range(0, rows - 3, 4):
        a, b, c, d = spread(ZERO), spread(ZERO), spread(ZERO), spread(ZERO)
        for term in range(terms):
            own, at = load(held, term * LANES), row * row_step + term * step
            a = product_and(spread(numbers[at]), own, a)
            b = product_and(spread(numbers[at + row_step]), own, b)
            c = product_and(spread(numbers[at + 2 * row_step]), own, c)
            d = product_and(spread(numbers[at + 3 * row_step]), own, d)
        store_four(out, row * LANES, a, b, c, d)
    for row in range(rows - rows % 4, rows):
        a = spread(ZERO)
        for term in range(terms):
            a = product_and(spread(numbers[row * row_step + term * step]), load(held, term * LANES), a)
        store(out, row * LANES, a)


@part
def gather(shares: Any, number: int, told: Any, channels: int, out: Any) -> None:
    """out[k] += sum over queries of shares[k, q] x told[q]; told and out lie by token."""
    vectors = filled(channels)
    size = vectors * LANES
    for k in range(0, number - 1, 2):
        for vector in range(vectors):
            at = k * size + vector * LANES
            a, b = load(out, at), load(out, at + size)
            for lane in range(LANES):
                own = load(told, lane * size + vector * LANES)
                a = product_and(spread(shares[k * LANES + lane]), own, a)
                b = product_and(spread(shares[(k + 1) * LANES + lane]), own, b)
            store(out, at, a)
            store(out, at + size, b)
    for k in range(number - number % 2, number):
        for vector in range(vectors):
            a = load(out, k * size + vector * LANES)
            for lane in range(LANES):
                a = product_and(spread(shares[k * LANES + lane]), load(told, lane * size + vector * LANES), a)
            store(out, k * size + vector * LANES, a)
