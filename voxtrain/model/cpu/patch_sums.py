"""The sum of which attention inside patches is made, of sixteen patches at a time: numbers lie as [place, LANES].

Two rows of the result are made at a time, since each number that is read then serves twice.
"""

from __future__ import annotations

from typing import Any

from voxtrain.model.cpu.kernel import part
from voxtrain.model.cpu.lanes import LANES, load, product_and, store
from voxtrain.model.cpu.shares import store_four


@part
def add_sums(
    one: Any,
    first: int,
    second: int,
    step: int,
    many: Any,
    row_step: int,
    term_step: int,
    rows: int,
    terms: int,
    out: Any,
    at: int,
    next_at: int,
) -> None:
    """out[at + row] += sum over terms of one[first + term x step] x many[row x row_step + term x term_step].

    Likewise `second` to `next_at`; where both are the same, it counts once.
    """
    for row in range(0, rows - 3, 4):
        here, there = (at + row) * LANES, (next_at + row) * LANES
        a, b, c, d = load(out, here), load(out, here + LANES), load(out, here + 2 * LANES), load(out, here + 3 * LANES)
        e, f = load(out, there), load(out, there + LANES)
        g, h = load(out, there + 2 * LANES), load(out, there + 3 * LANES)
        for term in range(terms):
            own, other = load(one, (first + term * step) * LANES), load(one, (second + term * step) * LANES)
            place = (row * row_step + term * term_step) * LANES
            w, x = load(many, place), load(many, place + row_step * LANES)
            y, z = load(many, place + 2 * row_step * LANES), load(many, place + 3 * row_step * LANES)
            a, b, c, d = product_and(own, w, a), product_and(own, x, b), product_and(own, y, c), product_and(own, z, d)
            e, f = product_and(other, w, e), product_and(other, x, f)
            g, h = product_and(other, y, g), product_and(other, z, h)
        store_four(out, here, a, b, c, d)
        store_four(out, there, e, f, g, h)
    for row in range(rows - rows % 4, rows):
        a, b = load(out, (at + row) * LANES), load(out, (next_at + row) * LANES)
        for term in range(terms):
            x = load(many, (row * row_step + term * term_step) * LANES)
            a = product_and(load(one, (first + term * step) * LANES), x, a)
            b = product_and(load(one, (second + term * step) * LANES), x, b)
        store(out, (at + row) * LANES, a)
        store(out, (next_at + row) * LANES, b)
