"""The listening page: one self-contained file that opens from disk. Texts down, checkpoints across, players.

In its blind mode two checkpoints are compared without their names; the browser hands out the votes, which
`voxtrain.validation RUN --votes FILE` takes into the selection.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from voxtrain.durable import read_json, read_log_rows, write_whole
from voxtrain.listening.ceiling import AS_IT_IS, ROUND_TRIP, Recording
from voxtrain.listening.cells import (
    Cell,
    level_flags,
    number_in_words,
    sample_flags,
    share_in_words,
    silent_cell,
    sound_cell,
)
from voxtrain.listening.sound import BARS, HALF_HEIGHT, LOUDNESS_LUFS
from voxtrain.listening.summary import Pace, Summary
from voxtrain.listening.table import IN_REFERENCE, Line, Sample, wave_file
from voxtrain.run_folder import RunFolder
from voxtrain.validation.votes import FORMAT, samples_key


@dataclass(frozen=True)
class Column:
    """A checkpoint."""

    step: int
    mark: str  # `selected`, `base model` or empty
    figures: tuple[str, ...]


@dataclass(frozen=True)
class Listened:
    """All that the page is made from."""

    title: str
    samples: Sequence[Sample]
    order: Sequence[Line]
    recordings: Sequence[Recording]
    summaries: Sequence[Summary]
    pace: Pace | None
    notes: Sequence[str]  # what could not be measured


def write_page(run: RunFolder, found: Listened) -> None:
    """Write index.html from the samples and, where it is known by now, the selection."""
    selection = read_json(run.selection) if run.selection.is_file() else {}
    selected = selection.get("selected_step")
    columns = _columns(run, found, selected)
    environment = Environment(
        loader=PackageLoader("voxtrain.listening"),
        autoescape=True,  # texts are the user's
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    measured = (*(one.measures for one in found.samples), *(one.measures for one in found.recordings))
    longest_s = max((measures.seconds for measures in measured if measures), default=1.0)
    content: Mapping[str, Any] = {
        "title": found.title,
        "columns": columns,
        "selected": selected,
        "rows": _rows(run, found, columns, longest_s),
        "recordings": _recordings(run, found, longest_s),
        "bars": BARS,
        "height": 2 * HALF_HEIGHT,
        "loudness": f"\N{MINUS SIGN}{-LOUDNESS_LUFS:.0f} LUFS",
        "runaways": sum(sample.runaway for sample in found.samples),
        "failures": sum(bool(sample.failed) for sample in found.samples),
        "samples": len(found.samples),
        "notes": found.notes,
        "words_scored": any(one.scores.words_by for one in found.samples),
        "voices_scored": any(one.scores.similarity_by for one in found.samples),
        "blind": _embedded(_blind(found, columns, selection)),
    }
    write_whole(run.listening_page, environment.get_template("page.html.j2").render(content))


def _columns(run: RunFolder, found: Listened, selected: int | None) -> list[Column]:
    losses = {int(float(row["step"])): float(row["loss/total"]) for row in read_log_rows(run.evaluated_checkpoints)}
    columns = []
    for summary in found.summaries:
        mark = "selected" if summary.step == selected else "base model" if summary.step == 0 else ""
        loss = losses.get(summary.step, math.nan)
        figures = [f"loss/total {loss:.4f}" if math.isfinite(loss) else ""]
        figures += [
            share_in_words("WER", summary.means["word_error_rate"]),
            share_in_words("CER", summary.means["character_error_rate"]),
            number_in_words("similarity", summary.means["speaker_similarity"]),
            number_in_words("pace", summary.means["pace"]),
            share_in_words("cut", summary.runaway) if summary.runaway.mean > 0 else "",
            share_in_words("failed", summary.failed) if summary.failed.mean > 0 else "",
        ]
        columns.append(Column(summary.step, mark, tuple(filter(None, figures))))
    return columns


def _rows(run: RunFolder, found: Listened, columns: Sequence[Column], longest_s: float) -> list[dict[str, Any]]:
    """One row for each line: a text, a voice, a seed."""
    by_place = {(sample.step, sample.line): sample for sample in found.samples}
    takes = max((line.number for line in found.order), default=1)
    rows = []
    for row, line in enumerate(found.order):
        samples = [by_place.get((column.step, line)) for column in columns]
        cells = [
            None if sample is None else _cell(run, sample, (row, at), found.pace, longest_s)
            for at, sample in enumerate(samples)
        ]
        notes = [f"take {line.number}" if takes > 1 else "", "reference voice" if line.voice == IN_REFERENCE else ""]
        again = row > 0 and found.order[row - 1].text == line.text
        rows.append({"text": line.text, "again": again, "note": ", ".join(filter(None, notes)), "cells": cells})
    return rows


def _cell(run: RunFolder, sample: Sample, place: tuple[int, int], pace: Pace | None, longest_s: float) -> Cell:
    path, name = wave_file(run, sample), f"step {sample.step}: {sample.line.text}"
    if sample.measures is None or not path.is_file():
        return silent_cell(name, place, sample.failed or "the WAV file is gone")
    cell = sound_cell(name, place, path, run.listening, sample.measures, sample.scores, longest_s)
    return replace(cell, flags=sample_flags(sample, sample.measures, pace))


def _recordings(run: RunFolder, found: Listened, longest_s: float) -> list[dict[str, Any]]:
    """One row for each clip: as it is, and through the AudioVAE."""
    kinds, rows = (AS_IT_IS, ROUND_TRIP), []
    for row, clip in enumerate(dict.fromkeys((one.id, one.text) for one in found.recordings), len(found.order)):
        pair = {one.kind: one for one in found.recordings if one.id == clip[0]}
        cells = [
            replace(
                sound_cell(
                    f"{kind.replace('_', ' ')}: {clip[1]}",
                    (row, at),
                    pair[kind].wave_file(run),
                    run.listening,
                    pair[kind].measures,
                    pair[kind].scores,
                    longest_s,
                ),
                flags=level_flags(pair[kind].measures),
            )
            for at, kind in enumerate(kinds)
            if kind in pair and pair[kind].wave_file(run).is_file()
        ]
        rows.append({"text": clip[1], "note": clip[0], "cells": cells})
    return rows


def _blind(found: Listened, columns: Sequence[Column], selection: Mapping[str, Any]) -> dict[str, Any]:
    """What the blind mode has to know, and what its votes name."""
    keys = {
        str(column.step): samples_key(sample.to_record() for sample in found.samples if sample.step == column.step)
        for column in columns
    }
    steps = [column.step for column in columns]
    first = selection.get("selected_step", steps[-1] if steps else None)
    second = selection.get("runner_up") or next((step for step in steps if step != first), None)
    return {
        "format": FORMAT,
        "run": found.title,
        "keys": keys,
        "steps": steps,
        "pair": [first, second],
        "lines": [{"text_id": line.text_id, "take": line.number, "voice": line.voice} for line in found.order],
        "texts": [line.text for line in found.order],
    }


def _embedded(value: dict[str, Any]) -> str:
    """JSON inside a script element: `<` never ends it."""
    return json.dumps(value, ensure_ascii=True).replace("<", "\\u003c")
