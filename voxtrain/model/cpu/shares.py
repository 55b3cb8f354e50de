"""Scores of attention and the shares that they stand for, of sixteen queries at a time: [keys, LANES]."""

from __future__ import annotations

from typing import Any

import numpy as np

from voxtrain.model.cpu.kernel import part
from voxtrain.model.cpu.lanes import (
    LANES,
    added,
    exp,
    larger,
    less,
    load,
    product,
    product_and,
    quotient,
    spread,
    store,
)

ZERO, ONE = np.float32(0.0), np.float32(1.0)


@part
def vectors(number: int) -> Any:
    """Room for as many times sixteen numbers, all zero."""
    return np.zeros(number * LANES, np.float32)


@part
def soft(scores: Any, first: int, number: int) -> None:
    """Softmax over the keys first .. first + number, in place."""
    most = load(scores, first * LANES)
    for k in range(first + 1, first + number):
        most = larger(most, load(scores, k * LANES))
    total = spread(ZERO)
    for k in range(first, first + number):
        share = exp(less(load(scores, k * LANES), most))
        store(scores, k * LANES, share)
        total = added(total, share)
    whole = quotient(spread(ONE), total)
    for k in range(first, first + number):
        store(scores, k * LANES, product(load(scores, k * LANES), whole))


@part
def soft_back(shares: Any, scores: Any, first: int, number: int) -> None:
    """Gradients of shares, which lie in `scores`, become gradients of scores."""
    shared = spread(ZERO)
    for k in range(first, first + number):
        shared = product_and(load(shares, k * LANES), load(scores, k * LANES), shared)
    for k in range(first, first + number):
        store(scores, k * LANES, product(load(shares, k * LANES), less(load(scores, k * LANES), shared)))


@part
def store_four(out: Any, at: int, a: Any, b: Any, c: Any, d: Any) -> None:
    """Write four times sixteen numbers, one after the other."""
    store(out, at, a)
    store(out, at + LANES, b)
    store(out, at + 2 * LANES, c)
    store(out, at + 3 * LANES, d)
