"""Attention inside patches with its rotary embedding, forward and backward: every token of a patch hears all of it.

Tokens lie in columns, the same token of all patches side by side: [channels, token of the patch, patch]. Sixteen
patches go through together, which have nothing to do with each other; a chunk of the work is some of them and a
group of heads, which share keys and values. What is held of them is [token, channel, LANES]. Shares are computed again
in the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from voxtrain.model.cpu.kernel import Kernel, floats, numbers, part, take
from voxtrain.model.cpu.lanes import LANES, less, load, product, product_and, spread, store
from voxtrain.model.cpu.patch_sums import add_sums
from voxtrain.model.cpu.shares import soft, soft_back, vectors

PATCHES_TOGETHER = 32
"""Patches of a chunk: what is side by side in memory is read one after the other."""
ZERO, ONE = np.float32(0.0), np.float32(1.0)


class Told(NamedTuple):
    """What both kernels are told first, in this order; cosine and sine are [tokens, channels / 2]."""

    channels: int  # of a head
    heads: int
    groups: int
    patches: int
    asking: int  # tokens of a patch
    tokens: int  # of a patch, which are heard
    factor: Any  # of the scores
    k_cosine: Any
    k_sine: Any
    q_cosine: Any
    q_sine: Any
    q: Any  # [heads x channels, asking x patches]
    kv: Any  # [2 x groups x channels, tokens x patches], keys above values


@part
def _told(given: Any) -> Told:
    channels, heads, groups, patches, asking, tokens = given[2], given[3], given[4], given[5], given[6], given[7]
    half = channels // 2
    return Told(
        channels,
        heads,
        groups,
        patches,
        asking,
        tokens,
        numbers(given[8], 1)[0],
        floats(given[9], tokens, half),
        floats(given[10], tokens, half),
        floats(given[11], asking, half),
        floats(given[12], asking, half),
        floats(given[13], heads * channels, asking * patches),
        floats(given[14], 2 * groups * channels, tokens * patches),
    )


@Kernel
def attention(given: Any) -> None:
    """Told -> heard, like q."""
    told = _told(given)
    heard = floats(given[15], told.heads * told.channels, told.asking * told.patches)
    keys, values = vectors(told.tokens * told.channels), vectors(told.tokens * told.channels)
    queries, out = vectors(told.asking * told.channels), vectors(told.asking * told.channels)
    scores = vectors(2 * told.tokens)
    chunk = take(given)
    while chunk < given[1]:
        start = chunk // told.groups * PATCHES_TOGETHER
        for first in range(start, min(start + PATCHES_TOGETHER, told.patches), LANES):
            _hear_group(told, chunk % told.groups, first, keys, values, queries, scores, out, heard)
        chunk = take(given)


@part
def _hear_group(
    told: Told, group: int, first: int, keys: Any, values: Any, queries: Any, scores: Any, out: Any, heard: Any
) -> None:
    _take_keys(told, group, first, keys, values)
    many = told.heads // told.groups
    for head in range(group * many, (group + 1) * many):
        _take_queries(told, head, first, queries)
        _hear(told, queries, keys, values, scores, out)
        _put_back(out, heard, head * told.channels, told.asking, told.channels, told.patches, first)


@part
def _hear(told: Told, queries: Any, keys: Any, values: Any, scores: Any, out: Any) -> None:
    tokens, channels = told.tokens, told.channels
    _zero(out)
    for token in range(0, told.asking, 2):
        other = min(token + 1, told.asking - 1)
        own, next_own = token * channels, other * channels
        _zero(scores)
        add_sums(queries, own, next_own, 1, keys, channels, 1, tokens, channels, scores, 0, tokens)
        soft(scores, 0, tokens)
        soft(scores, tokens, tokens)
        add_sums(scores, 0, tokens, 1, values, 1, channels, channels, tokens, out, own, next_own)


@Kernel
def attention_back(given: Any) -> None:
    """Told and the gradient of what is heard -> gradients of q and of kv."""
    told = _told(given)
    asked, width = told.asking * told.patches, told.heads * told.channels
    gradient, of_q = floats(given[15], width, asked), floats(given[16], width, asked)
    of_kv = floats(given[17], 2 * told.groups * told.channels, told.tokens * told.patches)
    held = _hold(told)
    chunk = take(given)
    while chunk < given[1]:
        start = chunk // told.groups * PATCHES_TOGETHER
        for first in range(start, min(start + PATCHES_TOGETHER, told.patches), LANES):
            _group_back(told, held, chunk % told.groups, first, gradient, of_q, of_kv)
        chunk = take(given)


class Held(NamedTuple):
    """What a thread works with on the way back."""

    keys: Any  # [tokens, channels, LANES]
    values: Any
    of_keys: Any
    of_values: Any
    queries: Any  # [asking, channels, LANES]
    back: Any
    of_queries: Any
    shares: Any  # [asking, tokens, LANES]
    scores: Any


@part
def _hold(told: Told) -> Held:
    size, asking_size, pairs = told.tokens * told.channels, told.asking * told.channels, told.asking * told.tokens
    keys, values, of_keys, of_values = vectors(size), vectors(size), vectors(size), vectors(size)
    queries, back, of_queries = vectors(asking_size), vectors(asking_size), vectors(asking_size)
    return Held(keys, values, of_keys, of_values, queries, back, of_queries, vectors(pairs), vectors(pairs))


@part
def _group_back(told: Told, held: Held, group: int, first: int, gradient: Any, of_q: Any, of_kv: Any) -> None:
    asking, tokens, channels, patches = told.asking, told.tokens, told.channels, told.patches
    _take_keys(told, group, first, held.keys, held.values)
    _zero(held.of_keys)
    _zero(held.of_values)
    many = told.heads // told.groups
    for head in range(group * many, (group + 1) * many):
        _take_queries(told, head, first, held.queries)
        _take_in(gradient, head * channels, asking, channels, patches, first, held.back)
        _hear_back(told, held)
        _gather_back(told, held)
        _turn(held.of_queries, asking, channels, told.q_cosine, told.q_sine, told.factor, -ONE)
        _put_back(held.of_queries, of_q, head * channels, asking, channels, patches, first)
    _turn(held.of_keys, tokens, channels, told.k_cosine, told.k_sine, ONE, -ONE)
    _put_back(held.of_keys, of_kv, group * channels, tokens, channels, patches, first)
    _put_back(held.of_values, of_kv, (told.groups + group) * channels, tokens, channels, patches, first)


@part
def _hear_back(told: Told, held: Held) -> None:
    """Shares, and gradients of scores and of queries."""
    tokens, channels = told.tokens, told.channels
    _zero(held.of_queries)
    _zero(held.shares)
    _zero(held.scores)
    for token in range(0, told.asking, 2):
        other = min(token + 1, told.asking - 1)
        own, next_own, row, next_row = token * channels, other * channels, token * tokens, other * tokens
        add_sums(held.queries, own, next_own, 1, held.keys, channels, 1, tokens, channels, held.shares, row, next_row)
        add_sums(held.back, own, next_own, 1, held.values, channels, 1, tokens, channels, held.scores, row, next_row)
        for each in range(token, other + 1):
            soft(held.shares, each * tokens, tokens)
            soft_back(held.shares, held.scores, each * tokens, tokens)
        add_sums(
            held.scores, row, next_row, 1, held.keys, 1, channels, channels, tokens, held.of_queries, own, next_own
        )


@part
def _gather_back(told: Told, held: Held) -> None:
    """What one head adds to the gradients of the keys and values that it shares with others."""
    tokens, channels, asking = told.tokens, told.channels, told.asking
    for key in range(0, tokens, 2):
        other = min(key + 1, tokens - 1)
        own, next_own = key * channels, other * channels
        add_sums(
            held.shares, key, other, tokens, held.back, 1, channels, channels, asking, held.of_values, own, next_own
        )
        add_sums(
            held.scores, key, other, tokens, held.queries, 1, channels, channels, asking, held.of_keys, own, next_own
        )


@part
def _take_keys(told: Told, group: int, first: int, keys: Any, values: Any) -> None:
    base = group * told.channels
    _take_in(told.kv, base, told.tokens, told.channels, told.patches, first, keys)
    _turn(keys, told.tokens, told.channels, told.k_cosine, told.k_sine, ONE, ONE)
    base += told.groups * told.channels
    _take_in(told.kv, base, told.tokens, told.channels, told.patches, first, values)


@part
def _take_queries(told: Told, head: int, first: int, queries: Any) -> None:
    _take_in(told.q, head * told.channels, told.asking, told.channels, told.patches, first, queries)
    _turn(queries, told.asking, told.channels, told.q_cosine, told.q_sine, told.factor, ONE)


@part
def _take_in(whole: Any, base: int, tokens: int, channels: int, patches: int, first: int, held: Any) -> None:
    """Channels base .. base + channels of all tokens of the patches from `first` on; behind the last one zeros."""
    lanes = min(LANES, patches - first)
    for token in range(tokens):
        for channel in range(channels):
            at, place = token * patches + first, (token * channels + channel) * LANES
            if lanes == LANES:
                store(held, place, load(whole[base + channel], at))
            else:
                store(held, place, spread(ZERO))
                for lane in range(lanes):
                    held[place + lane] = whole[base + channel, at + lane]


@part
def _put_back(held: Any, whole: Any, base: int, tokens: int, channels: int, patches: int, first: int) -> None:
    lanes = min(LANES, patches - first)
    for token in range(tokens):
        for channel in range(channels):
            at, place = token * patches + first, (token * channels + channel) * LANES
            if lanes == LANES:
                store(whole[base + channel], at, load(held, place))
            else:
                for lane in range(lanes):
                    whole[base + channel, at + lane] = held[place + lane]


@part
def _turn(held: Any, tokens: int, channels: int, cosine: Any, sine: Any, factor: Any, way: Any) -> None:
    """Each pair (i, i + channels / 2) of a token turned by its angle, forwards (way 1) or back (-1), times a factor."""
    half = channels // 2
    for token in range(tokens):
        for i in range(half):
            c, s = spread(cosine[token, i] * factor), spread(sine[token, i] * factor * way)
            one, two = (token * channels + i) * LANES, (token * channels + i + half) * LANES
            x, y = load(held, one), load(held, two)
            store(held, one, less(product(x, c), product(y, s)))
            store(held, two, product_and(y, c, product(x, s)))


@part
def _zero(held: Any) -> None:
    for i in range(len(held)):
        held[i] = ZERO
