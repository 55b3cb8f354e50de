"""The ledger: what became of every row and every second of audio, so that nothing is lost without a reason.

rows_in = rows_kept + the sum of rejects by first rule, and seconds likewise: sums are over whole microseconds, so they
balance and do not depend on the order of the rows. Audio that cannot be opened counts as no seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from voxtrain.manifest.clean import Verdict
from voxtrain.run_folder import SPLITS

MICRO = 1_000_000


def ledger(verdicts: Sequence[Verdict], rule_names: Sequence[str], rows_per_step: int | None = None) -> dict[str, Any]:
    """Rows and seconds in, kept and rejected; which rules fired together; what the rejects would have touched."""
    rows = dict.fromkeys(rule_names, 0)
    lengths = dict.fromkeys(("", *rule_names), 0)  # microseconds, kept ones under ""
    for verdict in verdicts:
        rule = "" if verdict.reject is None else verdict.reject.rule
        lengths[rule] += round((verdict.duration_s or 0.0) * MICRO)
        if rule:
            rows[rule] += 1
    share = sum(rows.values()) / len(verdicts)
    return {
        "rows_in": len(verdicts),
        "rows_kept": len(verdicts) - sum(rows.values()),
        "rejects_by_rule": rows,
        "reject_share": share,
        "seconds_in": sum(lengths.values()) / MICRO,
        "seconds_kept": lengths[""] / MICRO,
        "seconds_rejected_by_rule": {rule: lengths[rule] / MICRO for rule in rule_names},
        "examples": _examples(verdicts),
        "fired": fired_together(verdicts, rule_names),
        "kept_duration_s": _spread([v.duration_s for v in verdicts if v.reject is None and v.duration_s is not None]),
        "contamination": None if rows_per_step is None else _contamination(share, rows_per_step),
    }


def fired_together(verdicts: Sequence[Verdict], rule_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """On how many rows two rules fired, by both names; with itself, on how many a rule fired at all."""
    matrix = {rule: dict.fromkeys(rule_names, 0) for rule in rule_names}
    for verdict in verdicts:
        for one in verdict.fired():
            for other in verdict.fired():
                matrix[one][other] += 1
    fired = [rule for rule in rule_names if matrix[rule][rule]]
    return {one: {other: matrix[one][other] for other in fired} for one in fired}


def _examples(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """The reject of each rule that stands first in the manifest."""
    rejects = [verdict.reject for verdict in verdicts if verdict.reject is not None]
    first = {reject.rule: reject for reject in sorted(rejects, key=lambda reject: -reject.line)}
    return {rule: {"line": reject.line, "id": reject.id, "value": reject.value} for rule, reject in first.items()}


def contamination(share: float, rows_per_step: int) -> float:
    """The share of optimizer steps that meet at least one bad row, where a `share` of all rows is bad."""
    return float(1 - (1 - share) ** rows_per_step)


def _contamination(share: float, rows_per_step: int) -> dict[str, float | int]:
    return {
        "reject_share": share,
        "rows_per_step": rows_per_step,
        "steps_touched": contamination(share, rows_per_step),
    }


def _spread(lengths_s: Sequence[float]) -> dict[str, float] | None:
    if not lengths_s:
        return None
    return {"shortest": min(lengths_s), "median": statistics.median(lengths_s), "longest": max(lengths_s)}


LEDGER_HEAD = ("", "rows", "share", "length", "fired at all", "such as")
LedgerLine = tuple[str, str, str, str, str, str]
EXAMPLE_LETTERS = 36


def ledger_lines(audit: Mapping[str, Any]) -> list[LedgerLine]:
    """The ledger as a table with the columns of `LEDGER_HEAD`; rules that never fired are left out."""
    rows_in = audit["rows_in"]

    def line(what: str, rows: int, seconds: float, fired: str = "", example: str = "") -> LedgerLine:
        return what, f"{rows:,}", f"{rows / rows_in:.2%}", length(seconds), fired, example

    lines = [line("rows in", rows_in, audit["seconds_in"])]
    for rule, together in audit["fired"].items():
        rows, seconds = audit["rejects_by_rule"][rule], audit["seconds_rejected_by_rule"][rule]
        lines.append(line(rule, rows, seconds, f"{together[rule]:,}", _example(audit["examples"].get(rule))))
    lines.append(line("kept", audit["rows_kept"], audit["seconds_kept"]))
    for name in SPLITS if audit["splits"] else ():
        size = audit["splits"][name]
        groups = f"{size['groups']:,} group{'' if size['groups'] == 1 else 's'}"
        lines.append(line(f"  {name}, {groups}", size["rows"], size["seconds"]))
    return lines


def _example(reject: Mapping[str, Any] | None) -> str:
    if reject is None:
        return ""
    shown = repr(reject["value"]) if isinstance(reject["value"], str) else str(reject["value"])
    shown = (
        shown
        if len(shown) <= EXAMPLE_LETTERS
        else f"{shown[: EXAMPLE_LETTERS // 2]}...{shown[-EXAMPLE_LETTERS // 2 :]}"
    )
    return f"line {reject['line']}: {shown}"


def ledger_text(audit: Mapping[str, Any]) -> str:
    """The ledger for a terminal or a log, in plain text."""
    table = [LEDGER_HEAD, *ledger_lines(audit)]
    widths = [max(len(cells[column]) for cells in table) for column in range(len(LEDGER_HEAD))]
    lines = [f"Ledger of {audit['manifest']}"]
    for what, *numbers, example in table:
        right = "  ".join(cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True))
        lines.append(f"{what.ljust(widths[0])}  {right}  {example}".rstrip())
    return "\n".join([*lines, *ledger_remarks(audit)])


def ledger_remarks(audit: Mapping[str, Any]) -> list[str]:
    """What stands below the table: the steps that the rejects would have touched, and warnings."""
    remarks = []
    touched = audit["contamination"]
    if touched and touched["steps_touched"]:
        remarks.append(
            f"With the rejected rows left in, {touched['steps_touched']:.0%} of the steps of "
            f"{touched['rows_per_step']} rows would have met at least one."
        )
    return remarks + [f"Note: {warning}" for warning in audit["warnings"]]


def length(seconds: float) -> str:
    """A length of audio in the unit that suits it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:,.2f} h"
