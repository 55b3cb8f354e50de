"""The rules that look at a row's text and columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from voxtrain.manifest.row import SHOWN_LETTERS
from voxtrain.manifest.rules import Candidate, Finding, odd_values


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
        odd = odd_values(candidate.row)
        if "text" in odd:
            return Finding(None) if odd["text"] is None else None
        text = candidate.row.text
        return None if any(map(str.isalnum, text)) else Finding(text[:SHOWN_LETTERS])


@dataclass(frozen=True, slots=True)
class NoGroup:
    """The row's group is null, so that it can lie in no split without a risk of leakage."""

    name: ClassVar[str] = "no_group"

    def finding(self, candidate: Candidate) -> Finding | None:
        """Value: null, or what cannot be a group."""
        return None if candidate.row.group else Finding(odd_values(candidate.row).get("group"))
