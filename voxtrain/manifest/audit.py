"""The ledger: what became of every row and every second of audio, so that nothing is lost without a reason.

rows_in = rows_kept + the sum of rejects by first rule, and seconds likewise: sums are over whole microseconds, so they
balance and do not depend on the order of the rows. Audio that cannot be opened counts as no seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from voxtrain.manifest.corpus import MICRO, NO_RULE, Corpus
from voxtrain.manifest.evidence import Evidence
from voxtrain.run_folder import SPLITS


def ledger(evidence: Evidence, rule_names: Sequence[str], rows_per_step: int | None) -> dict[str, Any]:
    """Rows and seconds in, kept and rejected; which rules fired together; what the rejects would have touched."""
    corpus = evidence.corpus
    first, lengths = corpus.first_rule(len(rule_names)), corpus.microseconds()
    rows = {rule: int((first == place).sum()) for place, rule in enumerate(rule_names)}
    seconds = {rule: int(lengths[first == place].sum()) / MICRO for place, rule in enumerate(rule_names)}
    share = sum(rows.values()) / len(first)
    return {
        "rows_in": len(first),
        "rows_kept": len(first) - sum(rows.values()),
        "rejects_by_rule": rows,
        "reject_share": share,
        "seconds_in": int(lengths.sum()) / MICRO,
        "seconds_kept": int(lengths[first == NO_RULE].sum()) / MICRO,
        "seconds_rejected_by_rule": seconds,
        "examples": _examples(evidence, first, rule_names),
        "fired": fired_together(corpus.rows["fired"], rule_names),
        "kept_duration_s": _spread(corpus.rows["seconds"][first == NO_RULE]),
        "contamination": None if rows_per_step is None else _contamination(share, rows_per_step),
    }


def fired_together(fired: npt.NDArray[np.uint64], rule_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """On how many rows two rules fired, by both names; with itself, on how many a rule fired at all."""
    matrix = {rule: dict.fromkeys(rule_names, 0) for rule in rule_names}
    masks, counts = np.unique(fired, return_counts=True)
    for mask, rows in zip(masks.tolist(), counts.tolist(), strict=True):
        together = [rule for place, rule in enumerate(rule_names) if mask >> place & 1]
        for one in together:
            for other in together:
                matrix[one][other] += rows
    seen = [rule for rule in rule_names if matrix[rule][rule]]
    return {one: {other: matrix[one][other] for other in seen} for one in seen}


def reported(corpus: Corpus, names: Sequence[str]) -> dict[str, int]:
    """On how many kept rows each rule that only reports has something to say."""
    masks = corpus.rows["reported"][corpus.kept()]
    return {name: int((masks >> np.uint64(place) & np.uint64(1)).sum()) for place, name in enumerate(names)}


def measures(corpus: Corpus) -> dict[str, npt.NDArray[np.float32]]:
    """What is drawn as distributions: [N] each, NaN where it is unknown."""
    rows = corpus.rows
    with np.errstate(divide="ignore", invalid="ignore"):
        pace = np.where(rows["seconds"] > 0, rows["characters"] / rows["seconds"], np.nan)
    same_name = ("seconds", "rms_dbfs", "peak", "leading_silence_s", "tail_silence_s", "characters")
    return {name: rows[name].astype(np.float32) for name in same_name} | {"chars_per_second": pace.astype(np.float32)}


def _examples(evidence: Evidence, first: npt.NDArray[np.uint8], rule_names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The reject of each rule that stands first in the manifest."""
    examples = {}
    for rule_place, rule in enumerate(rule_names):
        places = np.flatnonzero(first == rule_place)
        if len(places):
            place = int(places[0])
            record, found = evidence.spool.record(place), evidence.rejects(place)
            examples[rule] = {"line": record["line"], "id": record["id"], "value": found[rule].value}
    return examples


def contamination(share: float, rows_per_step: int) -> float:
    """The share of optimizer steps that meet at least one bad row, where a `share` of all rows is bad."""
    return float(1 - (1 - share) ** rows_per_step)


def _contamination(share: float, rows_per_step: int) -> dict[str, float | int]:
    return {
        "reject_share": share,
        "rows_per_step": rows_per_step,
        "steps_touched": contamination(share, rows_per_step),
    }


def _spread(lengths_s: npt.NDArray[np.float64]) -> dict[str, float] | None:
    known = lengths_s[~np.isnan(lengths_s)]
    if not len(known):
        return None
    return {"shortest": float(known.min()), "median": float(np.median(known)), "longest": float(known.max())}


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
