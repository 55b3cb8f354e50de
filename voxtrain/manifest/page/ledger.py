"""The ledger on the audit page: rows and seconds by rule, which rules fired together, what rejects would touch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from voxtrain.manifest.page.words import RULES, count, number, share, span

BATCHES = (1, 2, 4, 8, 16, 32)
MOST_RULES = 8  # of the calculator's table; all rejects together stand above them
LARGEST_BATCH = 64  # of the slider


@dataclass(frozen=True)
class Line:
    """A line of the ledger."""

    name: str
    words: str
    rows: str
    share: str
    audio: str
    fired: str
    width: float  # of the bar, per cent
    sum: bool


@dataclass(frozen=True)
class Cell:
    """A cell whose ground is the darker, the larger its `share`."""

    text: str
    heat: int  # per cent
    title: str


def ledger_lines(audit: Mapping[str, Any]) -> list[Line]:
    """Rows in, every rule that fired, the kept rows."""
    rows_in = number(audit.get("rows_in"))
    rejects, seconds = _table(audit, "rejects_by_rule"), _table(audit, "seconds_rejected_by_rule")
    fired = _table(audit, "fired")

    def line(name: str, rows: Any, audio: Any, at_all: Any = None, words: str = "") -> Line:
        part = number(rows) / rows_in if rows_in > 0 else math.nan
        width = round(100 * part, 2) if math.isfinite(part) else 0.0
        shown = "" if at_all is None else count(at_all)
        return Line(name, words, count(rows), share(part), span(audio), shown, width, name in ("rows in", "kept"))

    lines = [line("rows in", audit.get("rows_in"), audit.get("seconds_in"))]
    for rule, rows in rejects.items():
        at_all = _table(fired, rule).get(rule, rows)
        if rows or at_all:
            lines.append(line(rule, rows, seconds.get(rule), at_all, RULES.get(rule, "")))
    return [*lines, line("kept", audit.get("rows_kept"), audit.get("seconds_kept"))]


def fired_together(audit: Mapping[str, Any]) -> dict[str, Any] | None:
    """On how many rows two rules fired; None where no row fell under two."""
    fired = _table(audit, "fired")
    rules = [rule for rule, others in fired.items() if isinstance(others, dict)]
    if not any(fired[one].get(other) for one in rules for other in rules if one != other):
        return None
    return {"rules": rules, "lines": [(one, [_both(fired, one, other) for other in rules]) for one in rules]}


def _both(fired: Mapping[str, Mapping[str, Any]], one: str, other: str) -> Cell:
    rows, of = number(fired[one].get(other)), number(fired[one].get(one))
    if not rows > 0:
        return Cell("\N{MIDDLE DOT}", 0, f"never {one} and {other}")
    if one == other:
        return Cell(count(rows), -1, f"{one} on {count(rows)} rows")
    part = rows / of if of > 0 else 0.0
    return Cell(count(rows), round(5 + 40 * part), f"{other} too on {share(part)} of the rows under {one}")


def touched(part: float, rows: int) -> float:
    """The share of steps of `rows` rows that meet at least one bad row, where `part` of all rows is bad."""
    return 1 - (1 - part) ** rows


def calculator(audit: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a share of bad rows does to steps of n rows; None where nothing was rejected."""
    rows_in, rows_kept = number(audit.get("rows_in")), number(audit.get("rows_kept"))
    if not rows_in > rows_kept:
        return None
    configured = _table(audit, "contamination").get("rows_per_step") or 0
    batches = sorted({*BATCHES, configured} - {0})
    shares = {"all rejects": (rows_in - rows_kept) / rows_in}
    often = sorted(_table(audit, "rejects_by_rule").items(), key=lambda entry: -number(entry[1]))
    shares |= {rule: rows / rows_in for rule, rows in often[:MOST_RULES] if rows}
    start = configured or 8
    return {
        "configured": configured,
        "batches": batches,
        "lines": [(name, [_touched(part, rows) for rows in batches]) for name, part in shares.items()],
        "share": shares["all rejects"],
        "shown_share": share(shares["all rejects"]),
        "start": start,
        "at_start": share(touched(shares["all rejects"], start)),
        "most": max(LARGEST_BATCH, configured),
    }


def _touched(part: float, rows: int) -> Cell:
    found = touched(part, rows)
    return Cell(share(found), round(45 * found), f"1 \N{MINUS SIGN} (1 \N{MINUS SIGN} {part:.4f})^{rows}")


def _table(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = record.get(name)
    return found if isinstance(found, dict) else {}
