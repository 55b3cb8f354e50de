"""The most demanding micro-batch of a run: of its actual rows, or assumed where there are none. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from voxtrain.manifest.row import Row
from voxtrain.model.size import samples_per_position

TOKENS_PER_SECOND = 4.0
"""Text tokens for a second of speech, assumed: about 15 characters a second, about 4 characters a token."""
AUDIO_MARKS, REFERENCE_MARKS = 2, 2
"""Positions of the tokens that open and close the audio, and the reference audio."""


class Length(NamedTuple):
    """Positions of one row: all of them, those of target and reference audio, and those of target audio alone."""

    positions: int
    audio: int
    loss: int

    @property
    def weight(self) -> int:
        """What it takes, in kept values of about 1/4 MB: a position of the language models, of LocEnc, of LocDiT."""
        return self.positions + self.audio + self.loss


@dataclass(frozen=True, slots=True)
class Longest:
    """The most demanding micro-batch of a run."""

    lengths: tuple[Length, ...]  # of its rows
    micro_batches: int  # in one optimizer step

    @property
    def rows(self) -> int:
        """Rows in the micro-batch."""
        return len(self.lengths)

    @property
    def padded_positions(self) -> int:
        """Rows times the longest row."""
        return self.rows * max(one.positions for one in self.lengths)

    def one_by_one(self) -> Longest:
        """The same step with one row in each micro-batch."""
        return Longest((max(self.lengths),), self.micro_batches * self.rows)

    def to_json(self) -> dict[str, int]:
        """Sums over the rows."""
        return {
            "rows": self.rows,
            "padded_positions": self.padded_positions,
            "positions": sum(one.positions for one in self.lengths),
            "audio_positions": sum(one.audio for one in self.lengths),
            "loss_positions": sum(one.loss for one in self.lengths),
            "micro_batches": self.micro_batches,
        }


def assumed_longest(
    architecture: Mapping[str, Any], seconds: float, batch_size: int, grad_accum: int, max_positions: int | None
) -> Longest:
    """A step in which every row lasts `seconds`, for plans without a manifest."""
    length = row_length(architecture, seconds, math.ceil(seconds * TOKENS_PER_SECOND), None)
    return longest_of([length] * (batch_size * grad_accum), batch_size, max_positions)


def longest_of(rows: Sequence[Length], batch_size: int, max_positions: int | None) -> Longest:
    """The heaviest micro-batch of a step of `rows`: as many as a step has, the longest that the run can meet.

    max_positions cuts a step by padded positions, null by batch_size, longest rows first (data/packing.py: cut_step).
    A row that is longer than `max_positions` is taken alone: the data refuse it later, by its name.
    """
    left = sorted(rows, reverse=True)
    cut: list[list[Length]] = []
    while left:
        count = batch_size if max_positions is None else max(1, max_positions // left[0].positions)
        cut.append(left[:count])
        left = left[count:]
    heaviest = max(cut, key=lambda part: sum(one.weight for one in part))
    return Longest(tuple(heaviest), len(cut))


def row_length(architecture: Mapping[str, Any], seconds: float, tokens: int, reference_s: float | None) -> Length:
    """The length of a row of `seconds` of target audio, with reference audio or without."""
    audio = _patches(architecture, seconds)
    if reference_s is None:
        return Length(tokens + audio + AUDIO_MARKS, audio, audio)
    heard = _patches(architecture, reference_s)
    return Length(tokens + audio + heard + AUDIO_MARKS + REFERENCE_MARKS, audio + heard, audio)


def _patches(architecture: Mapping[str, Any], seconds: float) -> int:
    rate_hz = architecture["audio_vae_config"]["sample_rate"]
    return int(max(1, math.ceil(seconds * rate_hz / samples_per_position(architecture))))


def longest_rows(
    architecture: Mapping[str, Any], rows: Iterable[Row], tokens: Callable[[str], int] | None, count: int
) -> list[Length]:
    """The lengths of the `count` rows that take most, the heaviest first. Every row has a duration.

    tokens: of a text; None: as many as it has bytes, which is more. Only rows that may be among the longest by that are
    tokenized.
    """
    from_above = sorted(
        ((_length(architecture, row, len(row.text.encode()) + 1), row) for row in rows),
        key=lambda pair: pair[0].weight,
        reverse=True,
    )
    if tokens is None:
        return [length for length, _ in from_above[:count]]
    found: list[Length] = []
    for bound, row in from_above:
        if len(found) >= count and bound.weight <= found[count - 1].weight:
            break
        found.append(_length(architecture, row, tokens(row.text)))
        found.sort(key=lambda length: length.weight, reverse=True)
    return found[:count]


def _length(architecture: Mapping[str, Any], row: Row, tokens: int) -> Length:
    assert row.duration_s is not None
    reference = None if row.ref_audio_path is None else _seconds(row.ref_audio_path)
    return row_length(architecture, row.duration_s, tokens, reference)


@lru_cache(maxsize=100_000)
def _seconds(path: str) -> float:
    """Of a file's header; 0 where it cannot be read, since its row will be refused."""
    import soundfile

    try:
        return float(soundfile.info(path).duration)
    except (soundfile.LibsndfileError, OSError):
        return 0.0
