"""The section on outlier steps: which rows are suspected, and which steps stood out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from voxtrain.report import words
from voxtrain.report.evidence import Evidence, Record, number, whole

SHOWN, SHOWN_LETTERS = 20, 90
"""Lines of each table, and letters of a text."""


def outliers(evidence: Evidence) -> dict[str, Any] | None:
    """The suspected rows and the steps that stood out; None where the run was to trace none."""
    if evidence.traces is None and not evidence.setting("train.outliers"):
        return None
    traces = evidence.traces or []
    suspects = [_suspect(line, traces) for line in evidence.excluded]
    steps = sorted(traces, key=_height, reverse=True)
    return {
        "there": evidence.traces is not None,
        "lead": _lead(evidence, len(steps), len(suspects)),
        "suspects": suspects[:SHOWN],
        "more_suspects": max(0, len(suspects) - SHOWN),
        "steps": [_step(trace) for trace in steps[:SHOWN]],
        "more_steps": max(0, len(steps) - SHOWN),
    }


def _lead(evidence: Evidence, steps: int, suspects: int) -> str:
    above = number(evidence.setting("train.outliers.threshold"))
    before = whole(evidence.setting("train.outliers.window"))
    against = f"{above:g} robust deviations above the {before} steps before" if before else "far above those before"
    if not steps:
        return f"No step and no row stood out: none had a loss or a gradient norm {against}."
    told = f"{steps} of {len(evidence.steps):,} steps stood out, by a loss or a gradient norm {against}."
    if not suspects:
        return f"{told} No row is suspected."
    rows = "One row is suspected: listen to it" if suspects == 1 else f"{suspects} rows are suspected: listen to them"
    return f"{told} {rows}, and leave out what is bad with clean.exclude=RUN/outliers/exclude.jsonl in a new run."


def _suspect(line: Record, traces: Iterable[Record]) -> dict[str, str]:
    """One line of exclude.jsonl, with what the trace of its step knows of the row."""
    named, step = str(line.get("id")), whole(line.get("step"))
    trace = next((trace for trace in traces if whole(trace.get("step")) == step), {})
    row = next((row for row in _records(trace, "rows") if row.get("id") == line.get("id")), {})
    fired = next((alarm for alarm in _records(trace, "fired") if alarm.get("id") == line.get("id")), {})
    place, flags = whole(row.get("line")), [str(flag.get("rule")) for flag in _records(row, "audit")]
    return {
        "id": named,
        "line": "" if place is None else f"line {place:,}",
        "step": words.count(number(line.get("step"))),
        "figure": _alarm(fired) if fired else "a loss that is not finite",
        "z": _z(fired),
        "seconds": _length(number(row.get("seconds"))),
        "text": _text(row.get("text")),
        "flags": ", ".join(flags),
    }


def _step(trace: Record) -> dict[str, Any]:
    rows, suspects = list(_records(trace, "rows")), trace.get("suspects")
    largest = max((_total_share(row) for row in rows), default=math.nan)
    return {
        "step": words.count(number(trace.get("step"))),
        "fired": [{"figure": _alarm(alarm), "z": _z(alarm)} for alarm in _records(trace, "fired")],
        "rows": words.count(len(rows)),
        "share": words.share(largest),
        "suspects": ", ".join(map(str, suspects)) if isinstance(suspects, list) else "",
    }


def _alarm(alarm: Record) -> str:
    """`loss/diff of a row 19.8 (median 0.9)`."""
    metric = str(alarm.get("metric"))
    if metric == "train/skipped":
        return "skipped: not finite"
    name = metric.removeprefix("train/").removeprefix("row/")
    of_row = " of a row" if metric.startswith("row/") else ""
    return (
        f"{name.replace('_', ' ')}{of_row} {number(alarm.get('value')):.3g} (median {number(alarm.get('median')):.2g})"
    )


def _z(alarm: Record) -> str:
    z = number(alarm.get("z"))
    return f"{z:.1f}" if math.isfinite(z) else ""


def _height(trace: Record) -> float:
    """By how much a step stands out; one that was skipped comes before all others."""
    heights = [number(alarm.get("z")) for alarm in _records(trace, "fired")]
    return max((z if math.isfinite(z) else math.inf for z in heights), default=0.0)


def _total_share(row: Record) -> float:
    share = row.get("share")
    part = number(share.get("total")) if isinstance(share, Mapping) else math.nan
    return part if math.isfinite(part) else -math.inf


def _length(seconds: float) -> str:
    """The length of a clip; hundredths of a second tell where it is short."""
    return f"{seconds:.2f} s" if seconds < 1 else words.span(seconds)


def _text(text: Any) -> str:
    shown = text.strip() if isinstance(text, str) else ""
    shown = shown if len(shown) <= SHOWN_LETTERS else f"{shown[:SHOWN_LETTERS]}…"
    return f"“{shown}”" if shown else "no text"


def _records(record: Record, key: str) -> Iterator[Record]:
    """The mappings in a list."""
    found = record.get(key)
    return (entry for entry in found if isinstance(entry, Mapping)) if isinstance(found, list) else iter(())
