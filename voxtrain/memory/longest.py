"""The most demanding micro-batch of a run: of its actual rows, or assumed where there are none. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from voxtrain.memory.activations import Longest
from voxtrain.model.size import samples_per_position

TOKENS_PER_SECOND = 4.0
"""Text tokens for a second of speech, assumed: about 15 characters a second, about 4 characters a token."""
AUDIO_MARKS = 2
"""Positions of the tokens that open and close the audio."""


def assumed_longest(
    architecture: Mapping[str, Any], seconds: float, batch_size: int, grad_accum: int, max_positions: int | None
) -> Longest:
    """A step in which every row lasts `seconds`, for plans without a manifest."""
    rate_hz = architecture["audio_vae_config"]["sample_rate"]
    audio = math.ceil(seconds * rate_hz / samples_per_position(architecture))
    text = math.ceil(seconds * TOKENS_PER_SECOND)
    return longest_of([(text + audio + AUDIO_MARKS, audio)] * (batch_size * grad_accum), batch_size, max_positions)


def longest_of(rows: Sequence[tuple[int, int]], batch_size: int, max_positions: int | None) -> Longest:
    """The micro-batch of the longest of a step's `rows`, each (positions, audio positions).

    rows: as many as a step has, the longest that the run can meet. max_positions cuts a step by padded positions,
    null by batch_size. Reference audio counts as target audio, which is a little too much for LocDiT.
    """
    by_length = sorted(rows, reverse=True)
    positions = by_length[0][0]
    count = batch_size if max_positions is None else max(1, min(len(rows), max_positions // positions))
    together = by_length[:count]
    audio = sum(heard for _, heard in together)
    return Longest(len(together), positions * len(together), audio, audio, math.ceil(len(rows) / count))


def row_positions(architecture: Mapping[str, Any], seconds: float, text: str) -> tuple[int, int]:
    """(positions, audio positions) of a row, from above: a token takes a character at least."""
    rate_hz = architecture["audio_vae_config"]["sample_rate"]
    audio = math.ceil(seconds * rate_hz / samples_per_position(architecture))
    return len(text) + 1 + AUDIO_MARKS + audio, audio
