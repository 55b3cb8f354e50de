"""The gate of a feed-forward block, forward and backward: one pass over its numbers each."""

from __future__ import annotations

from typing import Any

import numpy as np

from voxtrain.model.cpu.kernel import Kernel, bounds, numbers, part, take
from voxtrain.model.cpu.lanes import LANES, added, exp, less, load, product, quotient, spread, store

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@Kernel
def gate(given: Any) -> None:
    """Of n numbers each, gated and upped: mixed = silu(gated) x upped."""
    n = given[2]
    gated, upped, mixed = numbers(given[3], n), numbers(given[4], n), numbers(given[5], n)
    chunk = take(given)
    while chunk < given[1]:
        start, stop = bounds(n // LANES, given[1], chunk)
        for place in range(start * LANES, stop * LANES, LANES):
            value = load(gated, place)
            share = quotient(value, added(spread(ONE), exp(less(spread(ZERO), value))))
            store(mixed, place, product(share, load(upped, place)))
        chunk = take(given)


@Kernel
def gate_back(given: Any) -> None:
    """Of n numbers each, gated, upped and the gradient of what is mixed: the gradients of gated and of upped.

    Either may lie where the gradient does.
    """
    n = given[2]
    gated, upped, gradient = numbers(given[3], n), numbers(given[4], n), numbers(given[5], n)
    of_gated, of_upped = numbers(given[6], n), numbers(given[7], n)
    chunk = take(given)
    while chunk < given[1]:
        start, stop = bounds(n // LANES, given[1], chunk)
        for place in range(start * LANES, stop * LANES, LANES):
            _gate_back(gated, upped, gradient, of_gated, of_upped, place)
        chunk = take(given)


@part
def _gate_back(gated: Any, upped: Any, gradient: Any, of_gated: Any, of_upped: Any, place: int) -> None:
    """silu'(x) = s (1 + x (1 - s)), with s = 1 / (1 + exp(-x))."""
    value, back, one = load(gated, place), load(gradient, place), spread(ONE)
    share = quotient(one, added(one, exp(less(spread(ZERO), value))))
    store(of_upped, place, product(product(value, share), back))
    slope = product(share, added(one, product(value, less(one, share))))
    store(of_gated, place, product(product(back, load(upped, place)), slope))
