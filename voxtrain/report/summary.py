"""One run in one line: what a comparison and a sweep put side by side."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from voxtrain.report.charts import Curve
from voxtrain.report.evidence import Evidence, flat, number

LOSSES = ("loss/total", "loss/diff", "loss/stop")

NOT_COMPARED = re.compile(r"(name|resume|hydra|logger)(\..*)?|.*\.cache_dir")
"""Settings in which runs differ without being other experiments."""


@dataclass(frozen=True)
class Summary:
    """The figures of one run; NaN or None where they are not known (yet)."""

    evidence: Evidence
    name: str  # unique among the runs that stand side by side
    status: str
    exit_code: int | None
    settings: dict[str, str]  # every setting, by its dotted name
    overrides: dict[str, str]  # what was asked for, by its key
    selected_step: int | None
    held_out: dict[str, float]  # LOSSES of the selected checkpoint
    base_total: float
    train_seconds: float
    rows: float  # learnt from
    peak_gib: float


def summarize(evidence: Evidence, name: str) -> Summary:
    """The line of one run."""
    record = evidence.record or {}
    selected = evidence.judged(evidence.selected_step) or {}
    overrides = record.get("overrides")
    code = record.get("exit_code")
    return Summary(
        evidence=evidence,
        name=name,
        status=str(record.get("status") or "no record"),
        exit_code=code if isinstance(code, int) else None,
        settings={key: shown(value) for key, value in flat(evidence.config or {}).items()},
        overrides=asked_for(overrides if isinstance(overrides, list) else []),
        selected_step=evidence.selected_step,
        held_out={loss: number(selected.get(loss)) for loss in LOSSES},
        base_total=number((evidence.judged(0) or {}).get("loss/total")),
        train_seconds=number(record.get("train_seconds")),
        rows=number(evidence.steps[-1].get("train/rows")) if evidence.steps else math.nan,
        peak_gib=evidence.peak_gib,
    )


def asked_for(overrides: list[str]) -> dict[str, str]:
    """Hydra overrides by key: `+recipe=demo` is recipe, `~optimizer.lr` is itself with nothing."""
    pairs = (str(override).partition("=") for override in overrides)
    return {key.lstrip("+"): value for key, _, value in pairs}


def shown(value: object) -> str:
    """A setting as one would type it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def differing(summaries: list[Summary]) -> list[str]:
    """The settings in which the runs differ, in the order of the first run's."""
    known = [summary for summary in summaries if summary.settings]
    keys = dict.fromkeys(key for summary in known for key in summary.settings)
    return [
        key
        for key in keys
        if not NOT_COMPARED.fullmatch(key) and len({summary.settings.get(key) for summary in known}) > 1
    ]


def names(roots: list[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart."""
    for depth in range(1, max(len(root.parts) for root in roots) + 1):
        found = ["/".join(root.parts[-depth:]) for root in roots]
        if len(set(found)) == len(set(roots)):
            return found
    return [str(root) for root in roots]


def held_out_curve(summary: Summary) -> Curve:
    """loss/total of every checkpoint by the rows that it learnt from, which is fair between step sizes."""
    evidence = summary.evidence
    seen = {int(number(row["step"])): number(row.get("train/rows")) for row in evidence.steps} | {0: 0.0}
    points = [
        (seen.get(int(number(row["step"])), math.nan), number(row.get("loss/total"))) for row in evidence.checkpoints
    ]
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    return Curve(summary.name, [x for x, _ in finite], [y for _, y in finite])


def comparison_warnings(summaries: list[Summary]) -> list[str]:
    """Why the losses of these runs must not be compared, where that is so."""
    judged = [summary for summary in summaries if summary.evidence.checkpoints]
    found = []
    if len({summary.evidence.validation_ids for summary in judged}) > 1:
        found.append("the runs were not judged on the same held-out rows: their losses cannot be compared")
    return found + [
        f"the runs differ in {key}: their loss/total cannot be compared"
        for key in ("validation.draws", "train.loss_weights.stop", "train.loss_weights.diff")
        if len({summary.settings.get(key) for summary in judged}) > 1
    ]
