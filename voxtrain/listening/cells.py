"""What the listening page shows of one sound: player, picture, figures, and what stands out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile

from voxtrain.listening.measure import Measures
from voxtrain.listening.sound import LOUDNESS_LUFS, data_address, gain_db, waveform_path
from voxtrain.listening.summary import Mean, Pace
from voxtrain.listening.table import Sample, Scores

LONG_TAIL_S = 1.0
"""Tail silence from here on is pointed out: fine-tuned models pick it up from recordings that were cut late."""
QUIETER_DB = 1.0
"""A sound that stays that much below the others, since its peak would be cut, is pointed out."""


@dataclass(frozen=True)
class Cell:
    """A sound in its row and column; `sound` is empty where there is none, and `flags` says why."""

    name: str  # for a screen reader
    row: int  # counted over the page
    column: int
    sound: str
    waveform: str
    file: str  # of its WAV, as seen from the page
    length: float  # share of the longest sound of the page
    figures: tuple[str, ...]
    flags: tuple[str, ...]
    heard: str  # by the speech recogniser


def sound_cell(
    name: str, place: tuple[int, int], path: Path, page: Path, found: Measures, scores: Scores, longest_s: float
) -> Cell:
    """The cell of a WAV file that is there; place: row and column. Its flags are for the caller to add."""
    wave, rate_hz = soundfile.read(path, dtype="float32")
    gain = gain_db(found)
    matched = wave * 10 ** (gain / 20)
    return Cell(
        name=name,
        row=place[0],
        column=place[1],
        sound=data_address(matched, rate_hz),
        waveform=waveform_path(matched),
        file=path.relative_to(page).as_posix(),
        length=found.seconds / longest_s,
        figures=tuple(_figures(found, scores)),
        flags=(),
        heard=scores.heard,
    )


def silent_cell(name: str, place: tuple[int, int], why: str) -> Cell:
    """The cell of a sample that has no sound."""
    return Cell(name, *place, "", "", "", 0.0, (), (why,), "")


def _figures(found: Measures, scores: Scores) -> Iterator[str]:
    yield f"{found.seconds:.1f} s"
    yield f"{found.seconds_per_char * 1000:.0f} ms/char"
    if math.isfinite(scores.word_error_rate):
        yield f"WER {percent(scores.word_error_rate)}"
    if math.isfinite(scores.speaker_similarity):
        yield f"similarity {scores.speaker_similarity:.2f}"


def sample_flags(sample: Sample, found: Measures, pace: Pace | None) -> tuple[str, ...]:
    """What a listener should know beforehand."""
    told = [
        (sample.runaway, "cut: did not stop"),
        (found.clipped_share > 0, f"clipped: {found.clipped_share:.2%} of it"),
        (found.tail_silence_s >= LONG_TAIL_S, f"{found.tail_silence_s:.1f} s of silence at the end"),
        (found.leading_silence_s >= LONG_TAIL_S, f"{found.leading_silence_s:.1f} s of silence first"),
    ]
    if pace is not None:
        times = f"{found.seconds_per_char / pace.middle:.2g} times training's"
        told.append((found.seconds_per_char > pace.high, f"slow: {times}"))
        told.append((found.seconds_per_char < pace.low and not sample.runaway, f"fast: {times}"))
    return tuple(words for holds, words in told if holds) + level_flags(found)


def level_flags(found: Measures) -> tuple[str, ...]:
    """Whether it could not be brought to the loudness of the others."""
    short = LOUDNESS_LUFS - found.loudness_lufs - gain_db(found)
    return (f"{short:.0f} dB quieter than the others here: it has a high peak",) if short > QUIETER_DB else ()


def percent(share: float) -> str:
    """`7.1 %`."""
    return f"{100 * share:.3g} %"


def share_in_words(name: str, mean: Mean) -> str:
    """`WER 7.1 % (3.2 to 11)`; empty where nothing was measured."""
    if not math.isfinite(mean.mean):
        return ""
    ends = f" ({100 * mean.low:.3g} to {100 * mean.high:.3g})" if math.isfinite(mean.low) else ""
    return f"{name} {percent(mean.mean)}{ends}"


def number_in_words(name: str, mean: Mean) -> str:
    """`similarity 0.72 (0.70 to 0.74)`; empty where nothing was measured."""
    if not math.isfinite(mean.mean):
        return ""
    ends = f" ({mean.low:.2f} to {mean.high:.2f})" if math.isfinite(mean.low) else ""
    return f"{name} {mean.mean:.2f}{ends}"
