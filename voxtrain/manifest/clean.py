"""Cleaning: the settings of the config group `clean`, and the judgement of every row under every rule.

All rules look at every row, so that the ledger can show which faults come together; a row counts under the first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from voxtrain.manifest.header import NO_FILE, Header
from voxtrain.manifest.row import Row
from voxtrain.manifest.rules import (
    Boilerplate,
    Candidate,
    Duplicate,
    EmptyText,
    Finding,
    InvalidValue,
    MissingAudio,
    NoGroup,
    Rule,
    TooLong,
    TooShort,
    UnreadableAudio,
)


class CleanRules(BaseModel, frozen=True, extra="forbid"):
    """What makes a row unfit to learn from."""

    min_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    max_reject_share: Annotated[float, Field(ge=0, le=1)]
    boilerplate: tuple[str, ...]

    @field_validator("boilerplate")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} is over max_seconds {self.max_seconds:g}")
        return self

    def row_rules(self) -> tuple[Rule, ...]:
        """The rules that look at one row, those of the text first: a row counts under the first that fires."""
        patterns = tuple(re.compile(pattern, re.IGNORECASE) for pattern in self.boilerplate)
        return (
            InvalidValue(),
            EmptyText(),
            Boilerplate(patterns),
            NoGroup(),
            MissingAudio(),
            UnreadableAudio(),
            TooShort(self.min_seconds),
            TooLong(self.max_seconds),
        )

    def rule_names(self) -> tuple[str, ...]:
        """All rules in their order."""
        return (*(rule.name for rule in self.row_rules()), Duplicate.name)


@dataclass(frozen=True, slots=True)
class Reject:
    """Why a row was rejected: the first rule that fired, what it saw, and the others that fired too."""

    line: int
    id: str
    rule: str
    value: str | float | None
    threshold: str | float | None
    also: tuple[str, ...]

    def to_record(self) -> dict[str, Any]:
        """One line of rejects.jsonl."""
        return {name: getattr(self, name) for name in ("line", "id", "rule", "value", "threshold", "also")}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A row, the length of its audio where it could be opened, and the reason for its rejection, if any."""

    row: Row
    duration_s: float | None
    reject: Reject | None

    def fired(self) -> tuple[str, ...]:
        """Every rule that fired."""
        return () if self.reject is None else (self.reject.rule, *self.reject.also)


def judge(rows: Sequence[Row], headers: Mapping[Path, Header], clean: CleanRules) -> list[Verdict]:
    """The verdict on every row, in the order of `rows`, which decides nothing."""
    rules = clean.row_rules()
    found: list[dict[str, Finding]] = []
    for row in rows:
        candidate = _candidate(row, headers)
        findings = ((rule.name, rule.finding(candidate)) for rule in rules)
        found.append({name: finding for name, finding in findings if finding is not None})
    for place, finding in Duplicate().findings(rows, [bool(fired) for fired in found]).items():
        found[place][Duplicate.name] = finding
    return [
        Verdict(row, _candidate(row, headers).sound.duration_s, _reject(row, fired))
        for row, fired in zip(rows, found, strict=True)
    ]


def _candidate(row: Row, headers: Mapping[Path, Header]) -> Candidate:
    has_audio = all(column != "audio" for column, _ in row.odd)
    reference = None if row.ref_audio is None else headers[row.ref_audio]
    return Candidate(row, headers[row.audio] if has_audio else NO_FILE, reference)


def audio_paths(rows: Sequence[Row]) -> list[Path]:
    """Every file whose header `judge` needs."""
    audio = [row.audio for row in rows if all(column != "audio" for column, _ in row.odd)]
    return audio + [row.ref_audio for row in rows if row.ref_audio is not None]


def _reject(row: Row, fired: Mapping[str, Finding]) -> Reject | None:
    if not fired:
        return None
    first, *others = fired
    return Reject(row.line, row.id, first, fired[first].value, fired[first].threshold, tuple(others))
