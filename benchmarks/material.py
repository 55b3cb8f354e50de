"""What is trained on: eight clips of real speech, of all lengths that a corpus has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from voxtrain.fault import Fault, InputError
from voxtrain.manifest.row import Row

SPEECH = Path(__file__).parents[2] / "shared" / "speech"
ROWS = 8


@dataclass(frozen=True)
class Material:
    """The clips of one step, and all transcripts, of which a tokenizer is learnt."""

    rows: tuple[Row, ...]
    texts: tuple[str, ...]

    @property
    def audio_s(self) -> float:
        """Seconds of speech in a step."""
        return sum(row.duration_s or 0.0 for row in self.rows)


def read_material(speech: Path, rows: int = ROWS) -> Material:
    """Of the clips of `manifest.jsonl` in `speech`, sorted by duration, the middle one of each of `rows` equal parts.

    Raises InputError when there is no such manifest, or when it has fewer clips or lacks a duration.
    """
    manifest = speech / "manifest.jsonl"
    if not manifest.is_file():
        what = "there is no manifest.jsonl: the benchmark trains on real speech, and finds none"
        raise InputError(Fault(f"--speech {speech}", what, "name a folder with a manifest.jsonl and its audio"))
    records = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]
    if len(records) < rows or any(not record.get("duration") for record in records):
        what = f"it has {len(records)} rows, or some have no duration"
        raise InputError(Fault(str(manifest), what, f"name a manifest of at least {rows} rows, each with its duration"))
    by_duration = sorted(records, key=lambda record: (record["duration"], record["id"]))
    middles = [(2 * part + 1) * len(records) // (2 * rows) for part in range(rows)]
    chosen = tuple(_row(speech, by_duration[place], place) for place in middles)
    return Material(chosen, tuple(record["text"] for record in records))


def _row(speech: Path, record: dict[str, Any], place: int) -> Row:
    audio = (speech / record["audio"]).resolve()
    if not audio.is_file():
        raise InputError(Fault(str(audio), "the manifest names it, and it is not there", "fetch the speech again"))
    return Row(
        id=str(record["id"]),
        audio_path=str(audio),
        text=record["text"],
        line=place + 1,
        group=str(record.get("parent", record["id"])),
        duration_s=float(record["duration"]),
        parent=None,
        speaker=None,
        ref_audio_path=None,
    )
