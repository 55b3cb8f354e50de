"""The sections on losses: which checkpoint, and how training went."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from voxtrain.report import words
from voxtrain.report.charts import Point, checkpoint_chart, rate_chart, smoothing_window, step_chart
from voxtrain.report.evidence import Evidence, interval, number, whole
from voxtrain.report.grounds import stop_in_training
from voxtrain.report.page import Chip, Drawn

HELD_OUT = {
    "loss/total": "what the selection goes by",
    "loss/diff": "flow matching: how the speech sounds",
    "loss/stop": "when the speech ends",
}


def choice(evidence: Evidence) -> dict[str, Any] | None:
    """Held-out losses of every checkpoint; None where none is judged."""
    if not evidence.checkpoints:
        return None
    charts = [_held_out_chart(evidence, name, note) for name, note in HELD_OUT.items()]
    return {
        "lead": _lead(evidence),
        "charts": charts,
        "selected": evidence.selected_step is not None,
        "tied": len(evidence.ties) > 1,
        "intervals": any(interval(row, "loss/total") for row in evidence.checkpoints),
        "base": evidence.judged(0) is not None,
        "best": _best_column(evidence) is not None,
        "gauged": bool(stop_in_training(evidence)),
        "by_weight": _by_weight(evidence),
        "weight": _own_weight(evidence),
        "rows": [_row(evidence, row) for row in evidence.checkpoints],
    }


def _lead(evidence: Evidence) -> str:
    """Why this one, in the words of selection.json where it has them."""
    selection, split = evidence.selection or {}, (evidence.audit or {}).get("splits")
    if selection.get("reason"):
        return str(selection["reason"])
    rows = split.get("validation", {}).get("rows") if isinstance(split, dict) else None
    draws, rule = evidence.setting("validation.draws"), selection.get("rule")
    on = f"{rows:,} held-out rows" if isinstance(rows, int) else "the held-out rows"
    with_draws = f", {draws} draws of time and noise each, the same for every checkpoint" if draws else ""
    runner_up = whole(selection.get("runner_up"))
    parts = [f"Losses on {on}{with_draws}."]
    if rule:
        parts.append(f"Rule: {str(rule).replace('_', ' ')}.")
    if runner_up is not None:
        parts.append(f"Runner-up: step {runner_up:,}.")
    return " ".join(parts)


def _by_weight(evidence: Evidence) -> list[Chip]:
    """Which checkpoint would have the lowest loss/total under other weights of the stop loss."""
    chips = []
    for part in (evidence.selection or {}).get("stop_weight_ranges") or []:
        start, end = number(part.get("from")), number(part.get("to"))
        reach = f"from {start:.3g} to {end:.3g}" if math.isfinite(end) else f"from {start:.3g} up"
        kind = "mark" if part.get("step") == evidence.selected_step else ""
        chips.append(Chip(f"{reach}: step {part.get('step'):,}", kind))
    return chips


def _own_weight(evidence: Evidence) -> str:
    """The weight that this run gives the stop loss; empty where it is not known."""
    weights = (evidence.selection or {}).get("loss_weights")
    stop = number(weights.get("stop")) if isinstance(weights, Mapping) else math.nan
    return f"{stop:g}" if math.isfinite(stop) else ""


def _held_out_chart(evidence: Evidence, name: str, note: str) -> Drawn:
    points = []
    for row in evidence.checkpoints:
        low, high = interval(row, name) or (None, None)
        points.append(Point(int(number(row["step"])), number(row.get(name)), low, high))
    return Drawn(
        f"Held-out {name}", note, checkpoint_chart(f"Held-out {name}", points, evidence.selected_step, evidence.ties)
    )


def _row(evidence: Evidence, row: dict[str, str]) -> dict[str, Any]:
    step = int(number(row["step"]))
    total, base = number(row.get("loss/total")), number((evidence.judged(0) or {}).get("loss/total"))
    ends = interval(row, "loss/total")
    best = _best_column(evidence)
    difference, paired = _against_selected(evidence, step, total)
    return {
        "step": f"{step:,}",
        "total": words.loss(total),
        "range": f"{words.loss(ends[0])} to {words.loss(ends[1])}" if ends else "",
        "against_base": words.signed(total - base) if step else "",
        "against_selected": difference,
        "paired": paired,
        "diff": words.loss(number(row.get("loss/diff"))),
        "stop": words.loss(number(row.get("loss/stop"))),
        "in_training": f"{known:.2g}" if (known := stop_in_training(evidence).get(step)) is not None else "",
        "best": words.share(number(row.get(best))) if best and step else "",
        "marks": _marks(evidence, step),
        "selected": step == evidence.selected_step,
    }


def _against_selected(evidence: Evidence, step: int, total: float) -> tuple[str, str]:
    """loss/total less that of the selected, and the interval of that difference, paired by row and draw."""
    if step == evidence.selected_step:
        return "", ""
    difference = total - number((evidence.judged(evidence.selected_step) or {}).get("loss/total"))
    intervals = (evidence.selection or {}).get("intervals")
    found = intervals.get(str(step)) if isinstance(intervals, Mapping) else None
    if not isinstance(found, Mapping):
        return words.signed(difference), ""
    return words.signed(
        difference
    ), f"{words.signed(number(found.get('low')))} to {words.signed(number(found.get('high')))}"


def _best_column(evidence: Evidence) -> str | None:
    """The column with each checkpoint's probability of being best, if it holds anything."""
    for name in evidence.checkpoints[0]:
        if "prob" in name and any(math.isfinite(number(row.get(name))) for row in evidence.checkpoints):
            return name
    return None


def _marks(evidence: Evidence, step: int) -> list[Chip]:
    selection = evidence.selection or {}
    marks = [
        (step == evidence.selected_step, Chip("selected", "mark")),
        (step == 0, Chip("base", "")),
        (step in evidence.ties and step != evidence.selected_step, Chip("tied", "soft")),
        (step == whole(selection.get("runner_up")), Chip("runner-up", "")),
        (step == evidence.final_step, Chip("last", "")),
    ]
    return [chip for applies, chip in marks if applies]


def training(evidence: Evidence) -> dict[str, Any] | None:
    """How training went, step by step; None where no step is logged."""
    if not evidence.steps:
        return None
    steps = [int(number(row["step"])) for row in evidence.steps]
    limit = number(evidence.setting("train.max_grad_norm"))
    clipped = math.isfinite(limit) and limit > 0
    note = "before clipping" + (f"; dashed: clipped to {limit:g}" if clipped else "")

    def drawn(title: str, about: str, column: str, *, log: bool, at: float | None = None) -> Drawn:
        return Drawn(title, about, step_chart(title, steps, evidence.column(column), log=log, limit=at))

    charts = [
        drawn("Training loss/diff", "mean over all rows of each step", "train/loss/diff", log=False),
        drawn("Training loss/stop", "mean over all rows of each step, on a log scale", "train/loss/stop", log=True),
        drawn("Gradient norm", f"{note}, on a log scale", "train/grad_norm", log=True, at=limit if clipped else None),
        Drawn("Learning rate", "of each update", rate_chart("Learning rate", steps, evidence.column("train/lr"))),
    ]
    return {"lead": _training_lead(evidence), "charts": charts}


def _training_lead(evidence: Evidence) -> str:
    last = evidence.steps[-1]
    padding = [value for value in evidence.column("train/padding_share") if math.isfinite(value)]
    parts = [
        f"Pale: every step; strong: the mean over about {smoothing_window(len(evidence.steps))} steps.",
        f"Last step: loss/diff {words.loss(number(last.get('train/loss/diff')))}, "
        f"loss/stop {words.loss(number(last.get('train/loss/stop')))}, "
        f"gradient norm {number(last.get('train/grad_norm')):.3g}.",
    ]
    if padding:
        parts.append(f"Padding: {words.share(sum(padding) / len(padding))} of what went through the model.")
    return " ".join([*parts, *_saves_told(evidence.saves)])


def _saves_told(saves: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """What saving took of training; each is in the middle of all, since the first and the last differ."""
    if not saves:
        return
    took, stood = ([number(row.get(name)) for row in saves] for name in ("seconds", "stalled_seconds"))
    written = sum(number(row.get("gib")) for row in saves)
    yield (
        f"{len(saves)} {'save' if len(saves) == 1 else 'saves'} ({words.gib(written)}), {words.brief(median(took))} "
        f"each; training stood still for {words.brief(median(stood))} of it, {words.brief(sum(stood))} in all."
    )
