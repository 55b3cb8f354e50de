"""The rules that a row must pass, each a small object: a name, its thresholds, and what it finds.

A rule sees one row and its audio headers, nothing else, so that no decision depends on the order or the number of
rows. `Duplicate` alone must see all of them; it is built so that the order does not matter either.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from voxtrain.manifest.header import Header
from voxtrain.manifest.row import SHOWN_LETTERS, Row


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule has against a row: the value that it saw and the threshold that it passed, where there is one."""

    value: str | float | None
    threshold: str | float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row under judgement, with the headers of its audio and, where it names one, of its reference audio."""

    row: Row
    sound: Header
    reference: Header | None


class Rule(Protocol):
    """What a rule is."""

    name: ClassVar[str]

    def finding(self, candidate: Candidate) -> Finding | None:
        """What is wrong with the row, or None."""


@dataclass(frozen=True, slots=True)
class InvalidValue:
    """A value of the wrong type (a number as the text, a list as the path), or text that is not Unicode."""

    name: ClassVar[str] = "invalid_value"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the column and its JSON."""
        for column, value in candidate.row.odd:
            if value is not None:
                return Finding(f"{column}: {value}")
        return None


@dataclass(frozen=True, slots=True)
class EmptyText:
    """Nothing to say: null, or no letter and no digit of any script."""

    name: ClassVar[str] = "empty_text"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the text, or null."""
        odd = dict(candidate.row.odd)
        if "text" in odd:
            return Finding(None) if odd["text"] is None else None
        text = candidate.row.text
        return None if any(map(str.isalnum, text)) else Finding(text[:SHOWN_LETTERS])


@dataclass(frozen=True, slots=True)
class Boilerplate:
    """What stands in scraped transcripts where nothing was said; the finding names the pattern.

    A pattern must match the whole text, or each sentence must be matched by one: recognisers repeat such lines. Runs of
    white space count as one blank, and a text is tried with and without the marks around it.
    """

    patterns: tuple[re.Pattern[str], ...]
    name: ClassVar[str] = "boilerplate"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the text; threshold: the pattern that matches it, or its first sentence."""
        text = " ".join(candidate.row.text.replace("\u2019", "'").split())
        pattern = self._of(text)
        sentences = [part for part in SENTENCE_END.split(text) if part]
        if pattern is None and sentences[1:] and all(map(self._of, sentences)):
            pattern = self._of(sentences[0])
        return None if pattern is None else Finding(candidate.row.text[:SHOWN_LETTERS], pattern)

    def _of(self, text: str) -> str | None:
        tries = {text, _without_marks(text)}
        for pattern in self.patterns:
            if any(map(pattern.fullmatch, tries)):
                return pattern.pattern
        return None


SENTENCE_END = re.compile("(?<=[.!?\u2026])\\s|[\u3002\uff01\uff1f]")  # escaped: an ellipsis; CJK full stops
BRACKETS = frozenset("[](){}<>*#\u00a9\uff08\uff09\u3010\u3011")  # they say what stands between them; the last: CJK


def _without_marks(text: str) -> str:
    """Without what is neither letter, digit nor bracket at both ends."""
    start, end = 0, len(text)
    while start < end and not (text[start].isalnum() or text[start] in BRACKETS):
        start += 1
    while start < end and not (text[end - 1].isalnum() or text[end - 1] in BRACKETS):
        end -= 1
    return text[start:end]


@dataclass(frozen=True, slots=True)
class NoGroup:
    """The row's group is null, so that it can lie in no split without a risk of leakage."""

    name: ClassVar[str] = "no_group"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: null, or what cannot be a group."""
        return None if candidate.row.group else Finding(dict(candidate.row.odd).get("group"))


@dataclass(frozen=True, slots=True)
class MissingAudio:
    """No path, or no file at it; reference audio likewise."""

    name: ClassVar[str] = "missing_audio"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the path, or null."""
        odd = dict(candidate.row.odd)
        if "audio" in odd:
            return Finding(None) if odd["audio"] is None else None
        if candidate.sound.missing:
            return Finding(str(candidate.row.audio))
        if candidate.reference is not None and candidate.reference.missing:
            return Finding(f"ref_audio: {candidate.row.ref_audio}")
        return None


@dataclass(frozen=True, slots=True)
class UnreadableAudio:
    """soundfile cannot open it, or it holds no samples; reference audio likewise."""

    name: ClassVar[str] = "unreadable_audio"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: the path and the reason."""
        if candidate.sound.duration_s is None and not candidate.sound.missing:
            return Finding(f"{candidate.row.audio}: {candidate.sound.reason}")
        reference = candidate.reference
        if reference is not None and reference.duration_s is None and not reference.missing:
            return Finding(f"ref_audio: {candidate.row.ref_audio}: {reference.reason}")
        return None


@dataclass(frozen=True, slots=True)
class TooShort:
    """Less audio than `min_seconds`."""

    min_seconds: float
    name: ClassVar[str] = "too_short"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: seconds."""
        seconds = candidate.sound.duration_s
        return Finding(seconds, self.min_seconds) if seconds is not None and seconds < self.min_seconds else None


@dataclass(frozen=True, slots=True)
class TooLong:
    """More audio than `max_seconds`."""

    max_seconds: float
    name: ClassVar[str] = "too_long"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value and threshold: seconds."""
        seconds = candidate.sound.duration_s
        return Finding(seconds, self.max_seconds) if seconds is not None and seconds > self.max_seconds else None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The same clip with the same text again. The one that stays is the same whatever the order of the rows."""

    name: ClassVar[str] = "duplicate"

    def findings(self, rows: Sequence[Row], rejected: Sequence[bool]) -> dict[int, Finding]:
        """By place in `rows`: every row that repeats another; `rejected` rows stay only where all of them are."""
        same: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            if not any(column in ("audio", "text") for column, _ in row.odd):
                same[os.path.normpath(row.audio), row.text].append(place)
        found: dict[int, Finding] = {}
        for places in same.values():
            if len(places) > 1:
                stays = min(places, key=lambda place: (rejected[place], *_order(rows[place])))
                finding = Finding(f"{rows[stays].id} (line {rows[stays].line})")
                found |= {place: finding for place in places if place != stays}
        return found


def _order(row: Row) -> tuple[str, str, str, str, str, int]:
    """The line comes last: it decides only between rows that are equal in all that is learnt from."""
    return (row.id, row.group, row.parent or "", row.speaker or "", str(row.ref_audio or ""), row.line)
