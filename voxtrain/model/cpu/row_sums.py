"""The three sums of causal attention, of sixteen queries of a head at a time, and layouts they need.

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
def dots(keys: Any, size: int, number: int, side: Any, channels: int, out: Any) -> None:
    """out[k] = keys[k] . side, for each of the sixteen queries of side [channel, LANES]."""
    for k in range(0, number - 3, 4):
        a, b, c, d = spread(ZERO), spread(ZERO), spread(ZERO), spread(ZERO)
        for i in range(channels):
            own, at = load(side, i * LANES), k * size + i
            a = product_and(spread(keys[at]), own, a)
            b = product_and(spread(keys[at + size]), own, b)
            c = product_and(spread(keys[at + 2 * size]), own, c)
            d = product_and(spread(keys[at + 3 * size]), own, d)
        store_four(out, k * LANES, a, b, c, d)
    for k in range(number - number % 4, number):
        a = spread(ZERO)
        for i in range(channels):
            a = product_and(spread(keys[k * size + i]), load(side, i * LANES), a)
        store(out, k * LANES, a)


@part
def mix(shares: Any, number: int, values: Any, size: int, channels: int, out: Any) -> None:
    """out[c] = sum over keys of values[k, c] x shares[k]."""
    for i in range(0, channels - 3, 4):
        a, b, c, d = spread(ZERO), spread(ZERO), spread(ZERO), spread(ZERO)
        for k in range(number):
            share, at = load(shares, k * LANES), k * size + i
            a = product_and(spread(values[at]), share, a)
            b = product_and(spread(values[at + 1]), share, b)
            c = product_and(spread(values[at + 2]), share, c)
            d = product_and(spread(values[at + 3]), share, d)
        store_four(out, i * LANES, a, b, c, d)
    for i in range(channels - channels % 4, channels):
        a = spread(ZERO)
        for k in range(number):
            a = product_and(spread(values[k * size + i]), load(shares, k * LANES), a)
        store(out, i * LANES, a)


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
