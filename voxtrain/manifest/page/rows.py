"""The worst rows of every rule, with players: chosen from a stream of findings, so that a million of them will do."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from voxtrain.manifest.page.sound import NoPlayer, data_address
from voxtrain.manifest.page.words import RULES, counted, measured, number, shown, span

ROWS_OF_A_RULE = 5
MOST_RULES = 40
MOST_SOUND = 3_400_000  # characters of all players together: the page stays under 4 MB
TEXT_LETTERS = 200


@dataclass(frozen=True)
class Shown:
    """A row of the page; `sound` is a data: address, or empty, and then `silence` says why."""

    line: str
    id: str
    found: str  # what the rule saw, unless that is the text itself, and its threshold
    also: tuple[str, ...]
    text: str
    length: str
    path: str
    sound: str = ""
    silence: str = ""


@dataclass(frozen=True)
class RuleRows:
    """The rows of a rule that the page shows."""

    rule: str
    words: str
    rows: int  # in all
    shown: tuple[Shown, ...]

    @property
    def head(self) -> str:
        """How many of how many."""
        if len(self.shown) == self.rows:
            return counted(self.rows, "row")
        return f"{len(self.shown)} of {self.rows:,} rows"


def read_findings(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of rejects.jsonl or reported.jsonl; none where the file is absent, and a broken line is left out."""
    if not path.is_file():
        return
    with path.open("rb") as lines:
        for line in lines:
            record = parsed(line)
            if record is not None and isinstance(record.get("rule"), str):
                yield record


def parsed(line: bytes) -> dict[str, Any] | None:
    """A line of a JSONL file; None where it holds no object."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:  # more patient: halves of surrogate pairs, NaN
            record = json.loads(line.decode(errors="replace"))
        except (ValueError, RecursionError):
            return None
    return record if isinstance(record, dict) else None


@dataclass
class _Worst:
    """The worst findings of one rule so far."""

    rows: int = 0
    measured: list[tuple[float, int, dict[str, Any]]] = field(default_factory=list)  # a heap, the mildest first
    unlike: dict[str, dict[str, Any]] = field(default_factory=dict)  # without a measure: the first of each value
    like: list[dict[str, Any]] = field(default_factory=list)  # the first of those that repeat a value

    def add(self, record: dict[str, Any]) -> None:
        self.rows += 1
        badness = _badness(record)
        if badness is not None:
            heapq.heappush(self.measured, (badness, -self.rows, record))
            if len(self.measured) > ROWS_OF_A_RULE:
                heapq.heappop(self.measured)
            return
        value = str(record.get("value"))
        if value not in self.unlike and len(self.unlike) < ROWS_OF_A_RULE:
            self.unlike[value] = record
        elif len(self.like) < ROWS_OF_A_RULE:
            self.like.append(record)

    def found(self) -> list[dict[str, Any]]:
        worst = [record for _, _, record in sorted(self.measured, key=lambda entry: entry[:2], reverse=True)]
        return [*worst, *self.unlike.values(), *self.like][:ROWS_OF_A_RULE]


def _badness(record: Mapping[str, Any]) -> float | None:
    """How far the value is from its threshold, by ratio where both are positive; None where they are no numbers."""
    value, threshold = number(record.get("value")), number(record.get("threshold"))
    if not (math.isfinite(value) and math.isfinite(threshold)):
        return None
    if threshold <= 0 or value < 0:
        return abs(value - threshold)
    return abs(math.log(value / threshold)) if value else math.inf


def worst_rows(path: Path) -> list[RuleRows]:
    """The rules of a file of findings, the most frequent first, each with its worst rows, without sound as yet."""
    rules: dict[str, _Worst] = {}
    for record in read_findings(path):
        rule = record["rule"]
        if rule in rules or len(rules) < MOST_RULES:
            rules.setdefault(rule, _Worst()).add(record)
    often = sorted(rules.items(), key=lambda entry: (-entry[1].rows, entry[0]))
    return [RuleRows(rule, RULES.get(rule, ""), worst.rows, tuple(map(_row, worst.found()))) for rule, worst in often]


def _row(record: Mapping[str, Any]) -> Shown:
    also = record.get("also")
    return Shown(
        line=str(record.get("line", "?")),
        id=shown(record.get("id", "?"), 80),
        found=_found(record),
        also=tuple(map(str, also)) if isinstance(also, list) else (),
        text=_text(record.get("text")),
        length=span(record["seconds"]) if math.isfinite(number(record.get("seconds"))) else "",
        path=record["audio"] if isinstance(record.get("audio"), str) else "",
    )


def _found(record: Mapping[str, Any]) -> str:
    value, threshold = record.get("value"), record.get("threshold")
    found = (
        [] if isinstance(value, str) and value == record.get("text") else [f"found {measured(value, record['rule'])}"]
    )
    if threshold is not None:
        found.append(f"{'matched by' if isinstance(threshold, str) else 'bound'} {measured(threshold, record['rule'])}")
    return ", ".join(found)


def _text(text: Any) -> str:
    if not isinstance(text, str) or not text.strip():
        return ""
    return text if len(text) <= TEXT_LETTERS else f"{text[:TEXT_LETTERS]}\N{HORIZONTAL ELLIPSIS}"


def with_players(rules: Iterable[RuleRows], most: int = MOST_SOUND) -> list[RuleRows]:
    """The same rows with players, `most` characters of sound in all: the worst row of every rule, then the next."""
    rules = list(rules)
    played = [list(rule.shown) for rule in rules]
    paths = list(dict.fromkeys(row.path for rows in played for row in rows))  # a row of several rules is read once
    with ThreadPoolExecutor() as pool:
        known = dict(zip(paths, pool.map(_sound, paths), strict=True))
    left = most
    for place in range(ROWS_OF_A_RULE):
        for rows in played:
            if place < len(rows):
                sound, silence = known[rows[place].path]
                if len(sound) > left:
                    sound, silence = "", "the page holds no more sound"
                left -= len(sound)
                rows[place] = replace(rows[place], sound=sound, silence=silence)
    return [replace(rule, shown=tuple(rows)) for rule, rows in zip(rules, played, strict=True)]


def _sound(path: str) -> tuple[str, str]:
    if not path:
        return "", "the row names no file"
    try:
        return data_address(path), ""
    except NoPlayer as why:
        return "", str(why)
