"""Causal attention inside rows with its rotary embedding, forward and backward.

Tokens lie in columns, rows one after the other. Sixteen queries of a head go through together; a chunk of the work is a
row and a group of heads, which share keys and values. Each query hears as many keys of its row as `hears` says, never
fewer than the query before. Shares are computed again in the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from voxtrain.model.cpu.kernel import Kernel, floats, integers, numbers, part, take
from voxtrain.model.cpu.lanes import LANES, less, load, product, product_and, spread, store, where_more
from voxtrain.model.cpu.row_sums import by_token, filled, gather, sums
from voxtrain.model.cpu.shares import soft, soft_back, vectors

ZERO, ONE = np.float32(0.0), np.float32(1.0)


class Told(NamedTuple):
    """What both kernels are told first, in this order; cosine and sine are [tokens, channels / 2]."""

    channels: int  # of a head
    heads: int
    groups: int
    asking: int  # tokens
    tokens: int  # which are heard
    rows: int
    longest: int
    factor: Any  # of the scores
    q_ends: Any  # [rows + 1], where each row begins among the tokens that ask, and where the last one ends
    k_ends: Any  # [rows + 1], the same among all tokens
    hears: Any  # [asking]
    k_cosine: Any
    k_sine: Any
    q_cosine: Any
    q_sine: Any
    q: Any  # [heads x channels, asking]
    kv: Any  # [2 x groups x channels, tokens], keys above values


class Held(NamedTuple):
    """What a thread works with."""

    keys: Any  # [longest, channels filled up]
    values: Any
    side: Any  # [channels, LANES], of queries
    turned: Any  # [LANES, channels filled up]
    cosine: Any  # [channels / 2, LANES]
    sine: Any
    limit: Any  # [LANES], how many keys each query hears
    shares: Any  # [longest, LANES]


@part
def _told(given: Any) -> Told:
    channels, heads, groups, asking, tokens, rows = given[2], given[3], given[4], given[5], given[6], given[7]
    half = channels // 2
    return Told(
        channels,
        heads,
        groups,
        asking,
        tokens,
        rows,
        given[8],
        numbers(given[9], 1)[0],
        integers(given[10], rows + 1),
        integers(given[11], rows + 1),
        integers(given[12], asking),
        floats(given[13], tokens, half),
        floats(given[14], tokens, half),
        floats(given[15], asking, half),
        floats(given[16], asking, half),
        floats(given[17], heads * channels, asking),
        floats(given[18], 2 * groups * channels, tokens),
    )


@part
def _hold(told: Told) -> Held:
    size, room = filled(told.channels), (told.longest + LANES) // LANES * LANES
    half = told.channels // 2
    return Held(
        vectors(room * size),
        vectors(room * size),
        vectors(told.channels),
        vectors(size * LANES),
        vectors(half),
        vectors(half),
        vectors(1),
        vectors(room),
    )


@Kernel
def attention(given: Any) -> None:
    """Told -> heard, like q."""
    told = _told(given)
    heard = floats(given[19], told.heads * told.channels, told.asking)
    held = _hold(told)
    chunk = take(given)
    while chunk < given[1]:
        row, group = chunk // told.groups, chunk % told.groups
        _take_keys(told, held, row, group)
        many = told.heads // told.groups
        for first in range(told.q_ends[row], told.q_ends[row + 1], LANES):
            count = min(LANES, told.q_ends[row + 1] - first)
            _take_limits(told, held, first, count)
            for head in range(group * many, (group + 1) * many):
                number = _share_out(told, held, head, first, count)
                sums(held.values, 1, filled(told.channels) * LANES, told.channels, held.shares, number, held.side)
                _put_back(held.side, heard, head * told.channels, first, count, told.channels)
        chunk = take(given)


@Kernel
def attention_back(given: Any) -> None:
    """Told and the gradient of what is heard -> gradients of q and of kv."""
    told = _told(given)
    width = told.heads * told.channels
    gradient, of_q = floats(given[19], width, told.asking), floats(given[20], width, told.asking)
    of_kv = floats(given[21], 2 * told.groups * told.channels, told.tokens)
    held = _hold(told)
    of_keys, of_values = np.empty_like(held.keys), np.empty_like(held.values)
    back, scores = vectors(told.channels), np.empty_like(held.shares)
    chunk = take(given)
    while chunk < given[1]:
        row, group = chunk // told.groups, chunk % told.groups
        _take_keys(told, held, row, group)
        for place in range(len(of_keys)):
            of_keys[place] = ZERO
            of_values[place] = ZERO
        many = told.heads // told.groups
        for first in range(told.q_ends[row], told.q_ends[row + 1], LANES):
            count = min(LANES, told.q_ends[row + 1] - first)
            _take_limits(told, held, first, count)
            for head in range(group * many, (group + 1) * many):
                number = _share_out(told, held, head, first, count)
                _take_in(gradient, head * told.channels, first, count, told.channels, back)
                _hear_back(told, held, number, back, scores, of_keys, of_values)
                _put_back(held.side, of_q, head * told.channels, first, count, told.channels)
        _keys_back(told, held, row, group, of_keys, of_values, of_kv)
        chunk = take(given)


@part
def _share_out(told: Told, held: Held, head: int, first: int, count: int) -> int:
    """Take sixteen queries of a head, and the shares of all keys that one of them hears; the number of these."""
    number: int = told.hears[first + count - 1]
    surely: int = told.hears[first]
    _take_in(told.q, head * told.channels, first, count, told.channels, held.side)
    _turn(held.side, told.channels, held.cosine, held.sine, told.factor, ONE)
    sums(held.keys, filled(told.channels) * LANES, 1, number, held.side, told.channels, held.shares)
    for k in range(surely, number):
        score, place = load(held.shares, k * LANES), spread(np.float32(k))
        store(held.shares, k * LANES, where_more(load(held.limit, 0), place, score))
    soft(held.shares, 0, number)
    return number


@part
def _hear_back(told: Told, held: Held, number: int, back: Any, scores: Any, of_keys: Any, of_values: Any) -> None:
    """What sixteen queries add to the gradients of keys and values; their own stand in held.side then."""
    size = filled(told.channels) * LANES
    sums(held.values, size, 1, number, back, told.channels, scores)
    soft_back(held.shares, scores, 0, number)
    by_token(back, told.channels, held.turned)
    gather(held.shares, number, held.turned, told.channels, of_values)
    by_token(held.side, told.channels, held.turned)
    gather(scores, number, held.turned, told.channels, of_keys)
    sums(held.keys, 1, size, told.channels, scores, number, held.side)
    _turn(held.side, told.channels, held.cosine, held.sine, told.factor, -ONE)


@part
def _take_keys(told: Told, held: Held, row: int, group: int) -> None:
    """Keys, turned, and values of a row and a group, by token."""
    size, base = filled(told.channels) * LANES, group * told.channels
    for start in range(told.k_ends[row], told.k_ends[row + 1], LANES):
        count = min(LANES, told.k_ends[row + 1] - start)
        place = (start - told.k_ends[row]) * size
        _take_in(told.kv, base, start, count, told.channels, held.side)
        _angles(told.k_cosine, start, count, held.cosine)
        _angles(told.k_sine, start, count, held.sine)
        _turn(held.side, told.channels, held.cosine, held.sine, ONE, ONE)
        by_token(held.side, told.channels, held.keys[place : place + LANES * size])
        _take_in(told.kv, base + told.groups * told.channels, start, count, told.channels, held.side)
        by_token(held.side, told.channels, held.values[place : place + LANES * size])


@part
def _keys_back(told: Told, held: Held, row: int, group: int, of_keys: Any, of_values: Any, of_kv: Any) -> None:
    """The way back of the gradients of keys and values."""
    size, base = filled(told.channels) * LANES, group * told.channels
    for start in range(told.k_ends[row], told.k_ends[row + 1], LANES):
        count = min(LANES, told.k_ends[row + 1] - start)
        place = (start - told.k_ends[row]) * size
        _by_channel(of_keys[place:], size, told.channels, held.side)
        _angles(told.k_cosine, start, count, held.cosine)
        _angles(told.k_sine, start, count, held.sine)
        _turn(held.side, told.channels, held.cosine, held.sine, ONE, -ONE)
        _put_back(held.side, of_kv, base, start, count, told.channels)
        _by_channel(of_values[place:], size, told.channels, held.side)
        _put_back(held.side, of_kv, base + told.groups * told.channels, start, count, told.channels)


@part
def _by_channel(turned: Any, size: int, channels: int, side: Any) -> None:
    """From [lane, channels filled up] to side [channel, LANES]."""
    for channel in range(channels):
        for lane in range(LANES):
            side[channel * LANES + lane] = turned[lane * size + channel]


@part
def _take_limits(told: Told, held: Held, first: int, count: int) -> None:
    """How many keys each of sixteen queries hears, behind the last of them one; and their angles."""
    for lane in range(LANES):
        held.limit[lane] = np.float32(told.hears[first + lane]) if lane < count else ONE
    _angles(told.q_cosine, first, count, held.cosine)
    _angles(told.q_sine, first, count, held.sine)


@part
def _angles(table: Any, first: int, count: int, held: Any) -> None:
    """The cosines or sines of `count` tokens, as [channels / 2, LANES]."""
    for i in range(table.shape[1]):
        for lane in range(count):
            held[i * LANES + lane] = table[first + lane, i]


@part
def _turn(side: Any, channels: int, cosine: Any, sine: Any, factor: Any, way: Any) -> None:
    """Each pair (i, i + channels / 2) turned by its angle, forwards (way 1) or back (-1), times a factor."""
    half = channels // 2
    for i in range(half):
        c = product(load(cosine, i * LANES), spread(factor))
        s = product(load(sine, i * LANES), spread(factor * way))
        x, y = load(side, i * LANES), load(side, (i + half) * LANES)
        store(side, i * LANES, less(product(x, c), product(y, s)))
        store(side, (i + half) * LANES, product_and(y, c, product(x, s)))


@part
def _take_in(whole: Any, base: int, first: int, count: int, channels: int, side: Any) -> None:
    """Channels base .. base + channels of `count` tokens: side [channel, LANES], zero behind the last."""
    for channel in range(channels):
        if count == LANES:
            store(side, channel * LANES, load(whole[base + channel], first))
        else:
            store(side, channel * LANES, spread(ZERO))
            for lane in range(count):
                side[channel * LANES + lane] = whole[base + channel, first + lane]


@part
def _put_back(side: Any, whole: Any, base: int, first: int, count: int, channels: int) -> None:
    for channel in range(channels):
        if count == LANES:
            store(whole[base + channel], first, load(side, channel * LANES))
        else:
            for lane in range(count):
                whole[base + channel, first + lane] = side[channel * LANES + lane]
