"""The section on data: the ledger of rows, and the split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voxtrain.report import words
from voxtrain.report.evidence import Evidence, Record, number
from voxtrain.run_folder import SPLITS


def ledger(evidence: Evidence) -> dict[str, Any] | None:
    """Rows in, rejects by rule, rows kept; None where there is no audit."""
    audit = evidence.audit
    if audit is None:
        return None
    rows_in = number(audit.get("rows_in"))
    lines = [_line("rows in", rows_in, number(audit.get("seconds_in")), rows_in, sum_=True)]
    by_rule, seconds = _mapping(audit, "rejects_by_rule"), _mapping(audit, "seconds_rejected_by_rule")
    for rule, rows in sorted(by_rule.items(), key=lambda item: -number(item[1])):
        if rows:
            example = _example(_mapping(audit, "examples").get(rule))
            lines.append(_line(rule, number(rows), number(seconds.get(rule)), rows_in, example))
    kept = number(audit.get("rows_kept"))
    lines.append(_line("kept", kept, number(audit.get("seconds_kept")), rows_in, sum_=True))
    return {"lead": _lead(audit), "ledger": lines}


def _lead(audit: Record) -> str:
    parts = [f"From {audit['manifest']}."] if audit.get("manifest") else []
    touched = _mapping(audit, "contamination")
    if touched.get("steps_touched"):
        parts.append(
            f"With the rejected rows left in, {words.share(number(touched['steps_touched']))} of the steps of "
            f"{touched.get('rows_per_step')} rows would have met at least one."
        )
    balance = number(audit.get("rows_kept")) + sum(map(number, _mapping(audit, "rejects_by_rule").values()))
    balances = balance == number(audit.get("rows_in"))
    return " ".join([*parts, "The ledger balances." if balances else "THE LEDGER DOES NOT BALANCE."])


def _line(
    name: str, rows: float, seconds: float, rows_in: float, example: str = "", *, sum_: bool = False
) -> dict[str, Any]:
    part = rows / rows_in if rows_in else 0.0
    return {
        "name": name,
        "rows": words.count(rows),
        "share": words.share(part),
        "audio": words.span(seconds),
        "width": round(100 * part, 2),
        "example": example,
        "sum": sum_,
    }


def _example(reject: Any) -> str:
    if not isinstance(reject, Mapping):
        return ""
    value = reject.get("value")
    shown = f"“{value}”" if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else str(value)
    shown = shown if len(shown) <= 60 else f"{shown[:58]}…"
    return f"line {reject.get('line')}: {shown}" if value not in (None, "") else f"line {reject.get('line')}"


def splits(evidence: Evidence) -> dict[str, Any] | None:
    """Groups, rows and seconds of each split; None where there is no split."""
    sizes = _mapping(evidence.split or evidence.audit or {}, "splits")
    if not sizes:
        return None
    total = sum(number(size.get("rows")) for size in sizes.values())
    lines = [
        {
            "name": name,
            "groups": words.count(number(size.get("groups"))),
            "rows": words.count(number(size.get("rows"))),
            "share": words.share(number(size.get("rows")) / total),
            "audio": words.span(number(size.get("seconds"))),
            "width": round(100 * number(size.get("rows")) / total, 2),
        }
        for name in SPLITS
        if (size := sizes.get(name)) is not None
    ]
    return {"lead": _split_lead(evidence), "lines": lines}


def _split_lead(evidence: Evidence) -> str:
    split = evidence.split or {}
    group_by = split.get("group_by") or evidence.setting("data.group_by")
    overlaps = split.get("overlaps")
    whole = isinstance(overlaps, Mapping) and not any(overlaps.values())
    return f"Split by {group_by}" + (": no group is in two splits." if whole else ".")


def _mapping(record: Record, key: str) -> Record:
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}
