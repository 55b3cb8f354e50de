"""RMS norms of tokens in columns, forward and backward: some tokens at a time, which stay in a core's cache."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from voxtrain.model.cpu.kernel import Kernel, bounds, floats, numbers, part, take

TOKENS_TOGETHER = 96
ZERO, ONE = np.float32(0.0), np.float32(1.0)


@Kernel
def norm(given: Any) -> None:
    """width, tokens, values [width, tokens], weight [width], epsilon [1] -> normed [width, tokens], scale [tokens]."""
    width, tokens = given[2], given[3]
    values, weight, epsilon = floats(given[4], width, tokens), numbers(given[5], width), numbers(given[6], 1)[0]
    normed, scale = floats(given[7], width, tokens), numbers(given[8], tokens)
    chunk = take(given)
    while chunk < given[1]:
        start, stop = bounds(tokens, given[1], chunk)
        _norm(values, weight, epsilon, normed, scale, np.uint64(start), np.uint64(stop))
        chunk = take(given)


@part
def _norm(values: Any, weight: Any, epsilon: Any, normed: Any, scale: Any, start: Any, stop: Any) -> None:
    """Both ends are unsigned: then LLVM need not ask whether a place counts from the end, and uses vectors."""
    width = len(weight)
    for token in range(start, stop):
        scale[token] = ZERO
    for channel in range(width):
        for token in range(start, stop):
            scale[token] += values[channel, token] * values[channel, token]
    for token in range(start, stop):
        scale[token] = ONE / np.float32(math.sqrt(scale[token] / np.float32(width) + epsilon))
    for channel in range(width):
        factor = weight[channel]
        for token in range(start, stop):
            normed[channel, token] = values[channel, token] * scale[token] * factor


@Kernel
def norm_back(given: Any) -> None:
    """As above up to the weight, scale, gradients of what is normed and of what went past the norm (or 0: nothing did).

    Gives the gradients of values [width, tokens] and, by chunk, of weight [chunks, width].
    """
    width, tokens = given[2], given[3]
    values, weight, scale = floats(given[4], width, tokens), numbers(given[5], width), numbers(given[6], tokens)
    gradient, past = floats(given[7], width, tokens), floats(given[8], width if given[8] else 0, tokens)
    of_values, of_weight = floats(given[9], width, tokens), floats(given[10], given[1], width)
    shared = np.empty(tokens // given[1] + 1, np.float32)
    chunk = take(given)
    while chunk < given[1]:
        first, end = bounds(tokens, given[1], chunk)
        start, stop = np.uint64(first), np.uint64(end)
        _sums(values, weight, scale, gradient, of_weight[chunk], shared, start, stop)
        _norm_back(values, weight, scale, gradient, shared, of_values, start, stop)
        for row in range(len(past)):
            for token in range(start, stop):
                of_values[row, token] += past[row, token]
        chunk = take(given)


@part
def _sums(
    values: Any, weight: Any, scale: Any, gradient: Any, of_weight: Any, shared: Any, start: Any, stop: Any
) -> None:
    """The gradient of the weight, and what all channels of a token share of that of the values."""
    width = len(weight)
    for token in range(start, stop):
        shared[token - start] = ZERO
    for channel in range(width):
        factor, of_factor = weight[channel], ZERO
        for token in range(start, stop):
            product = gradient[channel, token] * values[channel, token]
            of_factor += product * scale[token]
            shared[token - start] += product * factor
        of_weight[channel] = of_factor
    for token in range(start, stop):
        shared[token - start] *= scale[token] * scale[token] / np.float32(width)


@part
def _norm_back(
    values: Any, weight: Any, scale: Any, gradient: Any, shared: Any, of_values: Any, start: Any, stop: Any
) -> None:
    for channel in range(len(weight)):
        factor = weight[channel]
        for token in range(start, stop):
            back = gradient[channel, token] * factor - values[channel, token] * shared[token - start]
            of_values[channel, token] = back * scale[token]
