"""What outliers/step_NNNNNNN.json says: what fired, and each row of the step, its share of the loss and its past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voxtrain.manifest.row import SHOWN_LETTERS, Row
from voxtrain.metrics.standing_out import Judgement, Score
from voxtrain.metrics.visits import Visit, finite

if TYPE_CHECKING:
    from voxtrain.model.step import RowLoss, StepReport

NOT_FINITE = "its loss is not a finite number"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why a step is traced, and whom it suspects."""

    fired: tuple[dict[str, Any], ...]
    suspects: Mapping[str, str]  # id: why


def alarm(report: StepReport, judgement: Judgement, threshold: float, named: Mapping[str, int]) -> Alarm:
    """What of a step lies `threshold` or more above the others; nothing where it is a step like the others.

    A row that was named before fires no more: its step is traced only for what else is in it. In a step that is
    skipped rows without a finite loss are suspects, unless all are: then it is the weights that broke.
    """
    fired: list[dict[str, Any]] = [_fired(score, threshold) for score in judgement.step if score.z >= threshold]
    suspects: dict[str, str] = {}
    broken = [row.id for row in report.row_losses if finite(row.total) is None]
    if report.skipped:
        fired.append({"metric": "train/skipped", "value": 1})
        if len(broken) < len(report.row_losses) or len(broken) == 1:
            suspects |= dict.fromkeys(broken, NOT_FINITE)
    for row, scores in zip(report.row_losses, judgement.rows, strict=True):
        for score in scores:
            if score.z >= threshold and row.id not in suspects:
                suspects[row.id] = _why(score, judgement.window_steps)
                if row.id not in named:
                    fired.append(_fired(score, threshold) | {"id": row.id})
    return Alarm(tuple(fired), suspects)


def _fired(score: Score, threshold: float) -> dict[str, Any]:
    figures = {name: _short(getattr(score, name)) for name in ("value", "median", "mad", "z")}
    return {"metric": score.metric, **figures, "threshold": threshold}


def _why(score: Score, steps: int) -> str:
    figure = score.metric.removeprefix("row/")
    return (
        f"its {figure} of {score.value:.4g} lies {score.z:.1f} robust deviations above {score.median:.4g}, "
        f"the median of all rows of the {steps} steps before"
    )


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the rows of a step beside their losses in it, by id."""

    rows: Mapping[str, Row]
    flags: Mapping[str, list[dict[str, Any]]]
    history: Mapping[str, Sequence[Visit]]  # visits before this one


def trace(report: StepReport, judgement: Judgement, found: Alarm, known: Known) -> dict[str, Any]:
    """The whole record of a step, its rows by their share of loss/total, largest first."""
    scored = list(zip(report.row_losses, judgement.rows, strict=True))
    scored.sort(key=lambda pair: (finite(pair[0].total) is not None, -pair[0].part * (finite(pair[0].total) or 0.0)))
    return {
        "step": report.step,
        "rows_seen": report.rows_seen,
        "skipped": report.skipped,
        "lr": report.lr,
        "loss": {name: _short(getattr(report, f"loss_{name}")) for name in ("diff", "stop", "total")},
        "grad_norm": _short(report.grad_norm),
        "window_steps": judgement.window_steps,
        "fired": list(found.fired),
        "suspects": list(found.suspects),
        "rows": [_row(row, scores, report, found, known) for row, scores in scored],
    }


def _row(row: RowLoss, scores: tuple[Score, ...], report: StepReport, found: Alarm, known: Known) -> dict[str, Any]:
    of_manifest = known.rows.get(row.id)
    history = known.history.get(row.id, ())
    return {
        "id": row.id,
        "line": None if of_manifest is None else of_manifest.line,
        "text": None if of_manifest is None else of_manifest.text[:SHOWN_LETTERS],
        "seconds": None if of_manifest is None else of_manifest.duration_s,
        "positions": row.positions,
        "audit": known.flags.get(row.id, []),
        "suspect": found.suspects.get(row.id),
        "loss": {name: _short(getattr(row, name)) for name in ("diff", "stop", "total")},
        "share": dict(_shares(row, report)),
        "z": {name: _short(score.z) for name, score in zip(("diff", "stop"), scores, strict=bool(scores))},
        "history": {
            "steps": [visit.step for visit in history],
            "diff": [None if visit.diff is None else _short(visit.diff) for visit in history],
            "stop": [None if visit.stop is None else _short(visit.stop) for visit in history],
        },
    }


def _shares(row: RowLoss, report: StepReport) -> Iterator[tuple[str, float | None]]:
    """Of each loss of the step, how much is this row's; None where that is no number."""
    for name in ("diff", "stop", "total"):
        whole, own = finite(getattr(report, f"loss_{name}")), finite(getattr(row, name))
        yield name, None if not whole or own is None else _short(row.part * own / whole)


def _short(value: float) -> float | None:
    """Six figures are enough to read."""
    return None if finite(value) is None else float(f"{value:.6g}")
