"""listening.csv: one line for each sample, and what it was made from, so that none is made twice."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from voxtrain.durable import write_table
from voxtrain.listening.measure import Measures
from voxtrain.listening.settings import ListeningSettings
from voxtrain.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Line:
    """A text to say, for the k-th time."""

    text_id: str
    text: str
    number: int  # k, from 1

    def torch_seed(self) -> int:
        """Of the sample's noise: the same from every checkpoint."""
        digest = hashlib.sha256(f"{self.text}\0{self.number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def file_name(self) -> str:
        """Of the WAV file in the checkpoint's folder."""
        return f"{self.text_id}_{self.number}.wav"


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of listening.csv. `measures` is None and `failed` says why when there is no sound."""

    step: int
    line: Line
    made_from: str  # stands for weights, text, seed and settings
    runaway: bool  # it had not stopped when it was cut
    failed: str
    measures: Measures | None

    def to_record(self) -> dict[str, Any]:
        """The columns of the table."""
        found = asdict(self.measures) if self.measures else dict.fromkeys((f.name for f in fields(Measures)), "")
        head = {"step": self.step, "text_id": self.line.text_id, "seed": self.line.number, "text": self.line.text}
        return {**head, **found, "runaway": self.runaway, "failed": self.failed, "made_from": self.made_from}

    @classmethod
    def from_record(cls, record: dict[str, str]) -> Self:
        """The sample of one line of the table."""
        values = {f.name: float(record[f.name]) for f in fields(Measures)} if not record["failed"] else None
        return cls(
            step=int(record["step"]),
            line=Line(record["text_id"], record["text"], int(record["seed"])),
            made_from=record["made_from"],
            runaway=record["runaway"] == "True",
            failed=record["failed"],
            measures=Measures(**values) if values else None,
        )


def lines(settings: ListeningSettings) -> list[Line]:
    """What every checkpoint says, texts in their order."""
    return [Line(text_id(text), text, number) for text in settings.texts for number in range(1, settings.seeds + 1)]


def text_id(text: str) -> str:
    """The text's first words and a part of its hash: a name for files that changes when the text does."""
    words = re.sub(r"[^a-z0-9]+", "_", text.lower())[:24].strip("_")
    return "_".join(filter(None, [words, hashlib.sha256(text.encode()).hexdigest()[:6]]))


def made_from(checksum: str, line: Line, settings: ListeningSettings) -> str:
    """What stands for everything that a sample depends on."""
    said = (checksum, line, settings.max_seconds, settings.inference_timesteps, settings.cfg_value)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def read_samples(run: RunFolder) -> list[Sample]:
    """All samples so far; none where the table is missing or of another form."""
    try:
        with run.listening_table.open(encoding="utf-8", newline="") as table:
            return [Sample.from_record(record) for record in csv.DictReader(table)]
    except (OSError, KeyError, ValueError):
        return []


def write_samples(run: RunFolder, samples: Sequence[Sample], order: Sequence[Line]) -> None:
    """Write listening.csv, by step, then as the texts stand in the settings."""
    places = {line: place for place, line in enumerate(order)}
    inorder = sorted(samples, key=lambda sample: (sample.step, places.get(sample.line, len(places))))
    write_table(run.listening_table, [sample.to_record() for sample in inorder])


def wave_file(run: RunFolder, sample: Sample) -> Path:
    """Where the sample's WAV is."""
    return run.samples(sample.step) / sample.line.file_name()
