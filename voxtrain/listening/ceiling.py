"""Real recordings through the AudioVAE and back: as good as any checkpoint can sound, and what it is measured against.

recordings.csv has two lines for each: the recording as it is, and what the AudioVAE makes of it.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from voxtrain.durable import read_jsonl, write_table
from voxtrain.fault import InputError
from voxtrain.listening.measure import Measures, measure
from voxtrain.listening.table import NOT_SCORED, Scores, measures_of, measures_record
from voxtrain.listening.waves import write_wave
from voxtrain.manifest.row import Row
from voxtrain.run_folder import DataFolder, RunFolder

if TYPE_CHECKING:
    from voxtrain.model.upstream import AudioVAEV2

AS_IT_IS, ROUND_TRIP = "recording", "round_trip"
LONGEST_S = 15.0
"""Of the clips that are taken, where there are as many: a page is to be listened to."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One line of recordings.csv."""

    id: str
    text: str
    kind: str  # AS_IT_IS or ROUND_TRIP
    made_from: str
    measures: Measures
    scores: Scores = NOT_SCORED

    def to_record(self) -> dict[str, Any]:
        """The columns of the table."""
        head = {"id": self.id, "text": self.text, "kind": self.kind}
        return {**head, **measures_record(self.measures), **self.scores.to_record(), "made_from": self.made_from}

    @classmethod
    def from_record(cls, record: dict[str, str]) -> Self:
        """Of one line of the table."""
        head = (record["id"], record["text"], record["kind"], record["made_from"])
        return cls(*head, measures_of(record), Scores.from_record(record))

    def wave_file(self, run: RunFolder) -> Path:
        """Where its WAV is."""
        return run.recordings / f"{hashlib.sha256(self.id.encode()).hexdigest()[:12]}_{self.kind}.wav"


def split_rows(run: RunFolder, split: str) -> list[Row]:
    """The rows of a split; none where the run has no such file."""
    path = DataFolder(run.data).rows(split)
    return [Row.from_record(record) for record in read_jsonl(path)] if path.is_file() else []


def chosen_clips(rows: Sequence[Row], count: int) -> list[Row]:
    """That many rows, always the same ones: no longer than LONGEST_S, of different groups while there are some."""
    order = sorted(rows, key=lambda row: hashlib.sha256(row.id.encode()).digest())
    short = [row for row in order if (row.duration_s or 0) <= LONGEST_S] or order
    first = list({row.group: row for row in reversed(short)}.values())[::-1]
    chosen = {row.id for row in first}
    return [*first, *(row for row in short if row.id not in chosen)][:count]


def make_ceiling(run: RunFolder, count: int, vae: Callable[[], AudioVAEV2]) -> list[Recording]:
    """The lines of recordings.csv for `count` held-out clips; those that are there already stay.

    vae: loads the AudioVAE, which is frozen: the run's checkpoints share one. A clip that cannot be read is left out.
    """
    rows = chosen_clips(split_rows(run, "validation") or split_rows(run, "train"), count)
    standing = {(one.id, one.kind): one for one in read_recordings(run) if one.wave_file(run).is_file()}
    found: list[Recording] = []
    loaded: AudioVAEV2 | None = None
    for row in rows:
        name = hashlib.sha256(f"{row.audio_path}\0{row.samples}\0{row.text}".encode()).hexdigest()[:16]
        pair = [standing.get((row.id, kind)) for kind in (AS_IT_IS, ROUND_TRIP)]
        there = [one for one in pair if one is not None and one.made_from == name]
        if len(there) < len(pair):
            loaded = loaded or vae()
            there = _make(run, row, name, loaded)
        found += there
    keep = {one.wave_file(run) for one in found}
    for path in run.recordings.glob("*.wav"):
        if path not in keep:
            path.unlink()
    return found


def _make(run: RunFolder, row: Row, name: str, vae: AudioVAEV2) -> list[Recording]:
    from voxtrain.data.audio import SAMPLE_RATE_HZ, read_wave
    from voxtrain.model.speaking import round_trip

    try:
        wave = read_wave(row.audio)
        made = [(AS_IT_IS, wave, SAMPLE_RATE_HZ), (ROUND_TRIP, *round_trip(vae, wave))]
        told = [Recording(row.id, row.text, kind, name, measure(w, rate, row.text)) for kind, w, rate in made]
    except (InputError, ValueError):  # gone or silent by now
        return []
    for one, (_, wave, rate_hz) in zip(told, made, strict=True):
        write_wave(one.wave_file(run), wave, rate_hz)
    return told


def read_recordings(run: RunFolder) -> list[Recording]:
    """All lines so far; none where the table is missing or of another form."""
    try:
        with run.recordings_table.open(encoding="utf-8", newline="") as table:
            return [Recording.from_record(record) for record in csv.DictReader(table)]
    except (OSError, KeyError, ValueError):
        return []


def write_recordings(run: RunFolder, recordings: Sequence[Recording]) -> None:
    """Write recordings.csv; where there are none, no file is left."""
    if recordings:
        write_table(run.recordings_table, [one.to_record() for one in recordings])
    else:
        run.recordings_table.unlink(missing_ok=True)
