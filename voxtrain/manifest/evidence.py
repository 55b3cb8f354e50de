"""What was found in each row, by the rules that look at it alone and by those that look at all rows; as JSON lines.

A reject counts under its first rule and names the others in `also`. A report keeps its row: one line for each finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from voxtrain.manifest.clean import DUPLICATE
from voxtrain.manifest.corpus import SHOWN_LETTERS, Corpus, Duplicates
from voxtrain.manifest.judged import WRITTEN, Found, told_findings
from voxtrain.manifest.rules import Finding
from voxtrain.manifest.spool import Spool

RARE_SCRIPT = "rare_script"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that was found in the rows of a manifest."""

    corpus: Corpus
    spool: Spool
    duplicates: Duplicates
    later: Mapping[str, Mapping[int, Finding]]  # by rule and place: of rules that look at kept rows alone
    rare_scripts: Mapping[str, Finding]  # by script

    def rejects(self, place: int, told: bytes | None = None) -> Found:
        """What is held against a row, in the order of the rules. told: what the spool says, where it is at hand."""
        found = told_findings(self.spool.told(place) if told is None else told)[0]
        repeats = self.duplicates.finding(place)
        if repeats is not None:
            found[DUPLICATE] = repeats
        for rule, findings in self.later.items():
            if place in findings:
                found[rule] = findings[place]
        return found

    def reports(self, place: int, told: bytes) -> Found:
        """What is remarkable about a kept row."""
        found = told_findings(told)[1]
        rare = self.rare_scripts.get(WRITTEN[self.corpus.rows["script"][place]])
        if rare is not None:
            found[RARE_SCRIPT] = rare
        return found


def reject_line(record: Mapping[str, Any], found: Found) -> dict[str, Any]:
    """The line of rejects.jsonl about a row."""
    first, *others = found
    return _line(record, first, found[first], others)


def report_lines(record: Mapping[str, Any], found: Found) -> Iterator[dict[str, Any]]:
    """The lines of reported.jsonl about a row."""
    for rule, finding in found.items():
        yield _line(record, rule, finding, [other for other in found if other != rule])


def _line(record: Mapping[str, Any], rule: str, finding: Finding, also: Sequence[str]) -> dict[str, Any]:
    return {
        "line": record["line"],
        "id": record["id"],
        "rule": rule,
        "value": finding.value,
        "threshold": finding.threshold,
        "also": also,
        "audio": record["audio"],
        "text": record["text"][:SHOWN_LETTERS],
        "seconds": record["duration"],
    }
