"""Cleaning: the settings of the config group `clean`, and the rules that they stand for.

All rules look at every row, so that the ledger can show which faults come together; a row counts under the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from voxtrain.manifest.boilerplate import Boilerplate
from voxtrain.manifest.rules import Candidate, Finding, Rule
from voxtrain.manifest.scripts import SCRIPTS
from voxtrain.manifest.sound_rules import (
    CharsPerSecond,
    Clipped,
    DcOffset,
    LeadingSilence,
    MissingAudio,
    OwnReference,
    Silent,
    TailSilence,
    TooLong,
    TooShort,
    TruncatedAudio,
    UnreadableAudio,
    Upsampled,
)
from voxtrain.manifest.text_rules import EmptyText, InvalidValue, NoGroup
from voxtrain.manifest.transcript import WORD_ERROR_RATE, AsrCheck

DUPLICATE, EXCLUDED = "duplicate", "excluded"
"""Rules that need more than one row to decide, or a list; like WORD_ERROR_RATE they are not among `row_rules`."""
REPORTABLE = tuple(
    rule.name
    for rule in (
        *(EmptyText, Boilerplate, TooShort, TooLong, CharsPerSecond, OwnReference, TruncatedAudio),
        *(Silent, Clipped, DcOffset, LeadingSilence, TailSilence, Upsampled),
    )
)
"""Rules that may report only. The others tell what cannot be trained at all: they are never switched off either."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class CleanRules(BaseModel, frozen=True, extra="forbid"):
    """What makes a row unfit to learn from. Of every setting that may be null, null switches its rule off."""

    max_reject_share: Share
    report_only: tuple[str, ...]
    decode: bool
    empty_text: bool
    boilerplate: tuple[str, ...]
    min_seconds: NotNegative
    max_seconds: Positive
    chars_per_second: dict[str, tuple[NotNegative, Positive]] | None
    chars_per_second_grace_seconds: tuple[NotNegative, NotNegative]
    min_decoded_share: Share | None
    silent_dbfs: Annotated[float, Field(le=0, allow_inf_nan=False)] | None
    max_clipped_share: Share | None
    max_dc_offset: Share | None
    max_leading_silence_seconds: NotNegative | None
    max_tail_silence_seconds: NotNegative | None
    min_bandwidth_share: Share | None
    own_reference: bool
    duplicates: bool
    exclude: Path | None
    near_duplicate_score: Annotated[float, Field(ge=0, le=100)] | None
    rare_script_share: Share | None
    trim_tail_silence: NotNegative | None
    asr: AsrCheck | None

    @field_validator("boilerplate")
    @classmethod
    def _compiles(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @field_validator("chars_per_second")
    @classmethod
    def _bounds(cls, bounds: dict[str, tuple[float, float]] | None) -> dict[str, tuple[float, float]] | None:
        for script, (low, high) in (bounds or {}).items():
            if script not in SCRIPTS:
                raise ValueError(f"{script} is no script; known are {', '.join(SCRIPTS)}")
            if low >= high:
                raise ValueError(f"{script}: the lower bound {low:g} is not under the upper one, {high:g}")
        return bounds

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.min_seconds > self.max_seconds:
            raise ValueError(f"min_seconds {self.min_seconds:g} is over max_seconds {self.max_seconds:g}")
        wrong = [name for name in self.report_only if name not in REPORTABLE]
        if wrong:
            raise ValueError(f"report_only: {wrong[0]} is none of {', '.join(REPORTABLE)}")
        return self

    def row_rules(self) -> tuple[Rule, ...]:
        """The rules that reject a row for itself, those of the text first: a row counts under the first that fires."""
        return tuple(rule for rule in self._rules() if rule.name not in self.report_only)

    def reports(self) -> tuple[Rule, ...]:
        """The rules whose findings are reported and reject nothing."""
        return tuple(rule for rule in self._rules() if rule.name in self.report_only)

    def rule_names(self) -> tuple[str, ...]:
        """All rules that reject, in their order: a row counts under the first that fires."""
        others = {EXCLUDED: True, DUPLICATE: self.duplicates, WORD_ERROR_RATE: self.asr is not None}
        return (*(rule.name for rule in self.row_rules()), *(name for name, is_on in others.items() if is_on))

    def _rules(self) -> tuple[Rule, ...]:
        return (*self._text_rules(), *self._file_rules(), *self._content_rules(), *self._looks())

    def _text_rules(self) -> list[Rule]:
        rules: list[Rule] = [InvalidValue()]
        if self.empty_text:
            rules.append(EmptyText())
        if self.boilerplate:
            rules.append(Boilerplate(tuple(re.compile(pattern, re.IGNORECASE) for pattern in self.boilerplate)))
        return [*rules, NoGroup()]

    def _file_rules(self) -> list[Rule]:
        """Can it be read, and is it of a length to learn from."""
        rules: list[Rule] = [MissingAudio(), UnreadableAudio()]
        if self.min_decoded_share is not None:
            rules.append(TruncatedAudio(self.min_decoded_share))
        lengths = (
            TooShort(self.min_seconds, self.trim_tail_silence),
            TooLong(self.max_seconds, self.trim_tail_silence),
        )
        return [*rules, *lengths]

    def _content_rules(self) -> list[Rule]:
        """What is in the samples, then whether it can be the text."""
        rules: list[Rule] = []
        if self.decode:
            levels = ((Silent, self.silent_dbfs), (Clipped, self.max_clipped_share), (DcOffset, self.max_dc_offset))
            rules += [rule(threshold) for rule, threshold in levels if threshold is not None]
        if self.chars_per_second:
            grace_s = self.chars_per_second_grace_seconds
            rules.append(CharsPerSecond(self.chars_per_second, grace_s, self.trim_tail_silence))
        if self.own_reference:
            rules.append(OwnReference())
        return rules

    def _looks(self) -> list[Rule]:
        """What one may want to know of the samples."""
        if not self.decode:
            return []
        looks = (
            (LeadingSilence, self.max_leading_silence_seconds),
            (TailSilence, self.max_tail_silence_seconds),
            (Upsampled, self.min_bandwidth_share),
        )
        return [rule(threshold) for rule, threshold in looks if threshold is not None]


def findings(rules: Iterable[Rule], candidate: Candidate) -> dict[str, Finding]:
    """What the rules find, by name and in their order."""
    found = {}
    for rule in rules:
        finding = rule.finding(candidate)
        if finding is not None:
            found[rule.name] = finding
    return found
