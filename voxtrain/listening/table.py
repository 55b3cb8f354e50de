"""listening.csv: one line for each sample, what it was made from, so that none is made twice, and its scores."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

from voxtrain.durable import write_table
from voxtrain.listening.measure import Measures
from voxtrain.listening.settings import ListeningSettings
from voxtrain.run_folder import RunFolder

ALONE, IN_REFERENCE = "text", "reference"


@dataclass(frozen=True, slots=True)
class Line:
    """A text to say, for the k-th time."""

    text_id: str
    text: str
    number: int  # k, from 1
    voice: str  # `text` alone, or `reference`: in the voice of the reference audio

    def torch_seed(self) -> int:
        """Of the sample's noise: the same from every checkpoint."""
        digest = hashlib.sha256(f"{self.text}\0{self.number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def file_name(self) -> str:
        """Of the WAV file in the checkpoint's folder."""
        return f"{self.text_id}_{self.number}{'' if self.voice == ALONE else '_' + self.voice}.wav"


@dataclass(frozen=True, slots=True)
class Scores:
    """By models that listen; NaN where it was not measured. `words_by` and `similarity_by` stand for what scored."""

    word_error_rate: float = math.nan
    character_error_rate: float = math.nan
    heard: str = ""
    words_by: str = ""
    speaker_similarity: float = math.nan  # cosine, to the closest speaker of the training data or to the reference
    similarity_by: str = ""

    def to_record(self) -> dict[str, Any]:
        """The columns of a table; empty where not measured."""
        return {name: "" if _is_nan(value) else value for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, record: dict[str, str]) -> Self:
        """Of a line of a table."""
        texts = ("heard", "words_by", "similarity_by")
        values: dict[str, Any] = {
            f.name: record[f.name] if f.name in texts else _number(record[f.name]) for f in fields(cls)
        }
        return cls(**values)


NOT_SCORED = Scores()


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of listening.csv. `measures` is None and `failed` says why when there is no sound."""

    step: int
    line: Line
    made_from: str  # stands for weights, text, seed and settings
    runaway: bool  # it had not stopped when it was cut
    failed: str
    measures: Measures | None
    scores: Scores = NOT_SCORED

    def to_record(self) -> dict[str, Any]:
        """The columns of the table."""
        line = self.line
        head = {"step": self.step, "text_id": line.text_id, "voice": line.voice, "seed": line.number, "text": line.text}
        end = {"runaway": self.runaway, "failed": self.failed, "made_from": self.made_from}
        return {**head, **measures_record(self.measures), **self.scores.to_record(), **end}

    @classmethod
    def from_record(cls, record: dict[str, str]) -> Self:
        """The sample of one line of the table."""
        return cls(
            step=int(record["step"]),
            line=Line(record["text_id"], record["text"], int(record["seed"]), record["voice"]),
            made_from=record["made_from"],
            runaway=record["runaway"] == "True",
            failed=record["failed"],
            measures=None if record["failed"] else measures_of(record),
            scores=Scores.from_record(record),
        )


def lines(settings: ListeningSettings) -> list[Line]:
    """What every checkpoint says, texts in their order; where there is a reference, each in its voice as well."""
    voices = (ALONE,) if settings.reference is None else (ALONE, IN_REFERENCE)
    takes = range(1, settings.seeds + 1)
    return [Line(text_id(text), text, take, voice) for text in settings.texts for voice in voices for take in takes]


def text_id(text: str) -> str:
    """The text's first words and a part of its hash: a name for files that changes when the text does."""
    words = re.sub(r"[^a-z0-9]+", "_", text.lower())[:24].strip("_")
    return "_".join(filter(None, [words, hashlib.sha256(text.encode()).hexdigest()[:6]]))


def made_from(checksum: str, line: Line, settings: ListeningSettings, reference: str) -> str:
    """What stands for everything that a sample depends on; `reference`: a digest of the reference audio."""
    voice = reference if line.voice == IN_REFERENCE else ""
    said = (checksum, line, voice, settings.max_seconds, settings.inference_timesteps, settings.cfg_value)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def measures_record(found: Measures | None) -> dict[str, Any]:
    """The columns of a table; empty where there is no sound."""
    return asdict(found) if found else dict.fromkeys((f.name for f in fields(Measures)), "")


def measures_of(record: dict[str, str]) -> Measures:
    """Of a line of a table."""
    return Measures(**{f.name: float(record[f.name]) for f in fields(Measures)})


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _number(cell: str) -> float:
    return float(cell) if cell else math.nan


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
