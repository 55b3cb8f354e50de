"""The listening page: one self-contained file that opens from disk. Texts down, checkpoints across, players."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined

from voxtrain.durable import read_json, read_log_rows, write_whole
from voxtrain.listening.sound import BARS, HALF_HEIGHT, data_address, waveform_path
from voxtrain.listening.table import Line, Sample, wave_file
from voxtrain.run_folder import RunFolder

LONG_TAIL_S = 1.0
"""Tail silence from here on is pointed out: fine-tuned models pick it up from recordings that were cut late."""


@dataclass(frozen=True)
class Column:
    """A checkpoint."""

    step: int
    mark: str  # `selected`, `base model` or empty
    loss: str  # held-out loss/total


@dataclass(frozen=True)
class Cell:
    """A sample in its column; `sound` is empty where there is none."""

    step: int
    row: int  # of its line, counted over the page
    column: int
    sound: str
    waveform: str
    file: str  # of its WAV, as seen from the page
    length: float  # share of the longest sample of the page
    figures: tuple[str, ...]
    flags: tuple[str, ...]


def write_page(run: RunFolder, samples: Sequence[Sample], order: Sequence[Line], title: str) -> None:
    """Write index.html from the samples and, where it is known by now, the selection."""
    selected = read_json(run.selection).get("selected_step") if run.selection.is_file() else None
    columns = _columns(run, samples, selected)
    texts = list(dict.fromkeys(line.text for line in order))
    environment = Environment(
        loader=PackageLoader("voxtrain.listening"),
        autoescape=True,  # texts are the user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    by_place = {(sample.step, sample.line): sample for sample in samples}
    longest_s = max((sample.measures.seconds for sample in samples if sample.measures), default=1.0)
    content: Mapping[str, Any] = {
        "title": title,
        "columns": columns,
        "selected": selected,
        "texts": [{"text": text, "rows": _rows(run, text, order, columns, by_place, longest_s)} for text in texts],
        "bars": BARS,
        "height": 2 * HALF_HEIGHT,
        "runaways": sum(sample.runaway for sample in samples),
        "failures": sum(bool(sample.failed) for sample in samples),
        "samples": len(samples),
    }
    write_whole(run.listening_page, environment.get_template("page.html.j2").render(content))


def _columns(run: RunFolder, samples: Sequence[Sample], selected: int | None) -> list[Column]:
    losses = {int(float(row["step"])): float(row["loss/total"]) for row in read_log_rows(run.evaluated_checkpoints)}
    columns = []
    for step in sorted({sample.step for sample in samples}):
        mark = "selected" if step == selected else "base model" if step == 0 else ""
        loss = losses.get(step, math.nan)
        columns.append(Column(step, mark, f"{loss:.4f}" if math.isfinite(loss) else ""))
    return columns


def _rows(
    run: RunFolder,
    text: str,
    order: Sequence[Line],
    columns: Sequence[Column],
    by_place: Mapping[tuple[int, Line], Sample],
    longest_s: float,
) -> list[dict[str, Any]]:
    """One row for each seed of a text."""
    rows = []
    for row, line in enumerate(order):
        if line.text == text:
            found = [by_place.get((column.step, line)) for column in columns]
            cells = [
                None if sample is None else _cell(run, sample, row, at, longest_s) for at, sample in enumerate(found)
            ]
            rows.append({"number": line.number, "cells": cells})
    return rows


def _cell(run: RunFolder, sample: Sample, row: int, column: int, longest_s: float) -> Cell:
    path = wave_file(run, sample)
    if sample.measures is None or not path.is_file():
        return Cell(sample.step, row, column, "", "", "", 0.0, (), (sample.failed or "the WAV file is gone",))
    wave, _ = soundfile.read(path, dtype="float32")
    seconds, pace = sample.measures.seconds, sample.measures.seconds_per_char
    level = f"\N{MINUS SIGN}{-sample.measures.rms_db:.0f} dB"
    return Cell(
        step=sample.step,
        row=row,
        column=column,
        sound=data_address(path),
        waveform=waveform_path(wave),
        file=path.relative_to(run.listening).as_posix(),
        length=seconds / longest_s,
        figures=(f"{seconds:.1f} s", f"{pace * 1000:.0f} ms/char", level),
        flags=tuple(_flags(sample)),
    )


def _flags(sample: Sample) -> list[str]:
    found = sample.measures
    assert found is not None
    told = [
        (sample.runaway, "cut: did not stop"),
        (found.clipped_share > 0, f"clipped: {found.clipped_share:.2%} of it"),
        (found.tail_silence_s >= LONG_TAIL_S, f"{found.tail_silence_s:.1f} s of silence at the end"),
        (found.leading_silence_s >= LONG_TAIL_S, f"{found.leading_silence_s:.1f} s of silence first"),
    ]
    return [words for holds, words in told if holds]
