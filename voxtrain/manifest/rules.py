"""What a rule is: a small object with a name and thresholds of its own, and what it finds in a row.

A rule sees one row and its sounds, nothing else, so that no decision depends on the order or the number of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from voxtrain.manifest.row import Row
from voxtrain.manifest.sound import Sound


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule has against a row: the value that it saw and the threshold that it passed, where there is one."""

    value: str | float | None
    threshold: str | float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A row under judgement, with its audio and, where it names one, its reference audio."""

    row: Row
    sound: Sound
    reference: Sound | None


class Rule(Protocol):
    """What a rule is."""

    name: ClassVar[str]

    def finding(self, candidate: Candidate) -> Finding | None:
        """What is wrong with the row, or None."""


def odd_values(row: Row) -> Mapping[str, str | None]:
    """What cannot be used of a row, by column."""
    return dict(row.odd) if row.odd else NOTHING


NOTHING: Mapping[str, str | None] = {}
