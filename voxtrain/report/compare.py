"""compare.html: several runs side by side and paired; sweep.html is the same page for the jobs of a sweep, unpaired."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxtrain.durable import write_whole
from voxtrain.report import words
from voxtrain.report.charts import SERIES, VARIABLES, Curve, runs_chart, smoothed
from voxtrain.report.cost import cost
from voxtrain.report.evidence import number, read_evidence
from voxtrain.report.head import STATUS_KINDS
from voxtrain.report.page import Chip, Drawn, page
from voxtrain.report.paired import Difference, Paired, interval, paired, verdict
from voxtrain.report.summary import (
    LOSSES,
    Summary,
    comparison_warnings,
    differing,
    held_out_curve,
    names,
    summarize,
)
from voxtrain.run_folder import RunFolder

MOST_COLUMNS = 2
"""Differing settings that stand beside the figures; more of them have a table of their own."""


def write_comparison(runs: Sequence[RunFolder], out: Path) -> Path:
    """Write a page with the runs side by side to `out`, and return its path.

    Raises InputError, and writes nothing, where judged runs were not judged on the same rows, draws and weights.
    """
    called = names([run.root.resolve() for run in runs])
    summaries = [summarize(read_evidence(run), name) for run, name in zip(runs, called, strict=True)]
    columns = {key: [summary.settings.get(key, "") for summary in summaries] for key in differing(summaries)}
    html = comparison_page("Runs side by side", "", summaries, columns, out.parent, paired(summaries))
    write_whole(out, html)
    return out


def comparison_page(
    title: str,
    place: str,
    summaries: Sequence[Summary],
    columns: Mapping[str, Sequence[str]],
    beside: Path,
    found: Paired | None = None,
) -> str:
    """The page as HTML.

    place: what stands small beside the title. columns: what the runs differ in, one cell a run. beside: the folder
    that links start from. found: how far the runs lie apart.
    """
    inside = list(columns) if len(columns) <= MOST_COLUMNS else []
    totals = [summary.held_out["loss/total"] for summary in summaries]
    best = min(filter(math.isfinite, totals), default=None)
    return page(
        "compare.html.j2",
        {
            "title": title,
            "place": place,
            "warnings": comparison_warnings(list(summaries)),
            "columns": inside,
            "below": [] if inside else [{"key": key, "cells": cells} for key, cells in columns.items()],
            "rows": [
                _row(summary, place, [columns[key][place] for key in inside], best, beside)
                for place, summary in enumerate(summaries)
            ],
            "paired": None if found is None else _apart(found, summaries),
            "charts": _charts(summaries),
        },
    )


def _row(summary: Summary, place: int, cells: list[str], best: float | None, beside: Path) -> dict[str, Any]:
    run, total = summary.evidence.run, summary.held_out["loss/total"]
    code = "" if summary.exit_code in (0, None) else f", exit code {summary.exit_code}"
    took = cost(summary)
    return {
        "name": summary.name,
        "link": os.path.relpath(run.report, beside) if run.report.is_file() else "",
        "colour": VARIABLES[SERIES[place % len(SERIES)]],
        "status": Chip(summary.status + code, STATUS_KINDS.get(summary.status, "bad")),
        "cells": cells,
        "selected": words.count(summary.selected_step),
        "losses": [words.loss(summary.held_out[loss]) for loss in LOSSES],
        "against_base": words.signed(total - summary.base_total),
        "rows": words.count(summary.rows),
        "cost": [
            words.span(took.train_s),
            words.span(took.after_s),
            words.gib(took.peak_gib),
            words.gib(took.checkpoint_gib),
            words.gib(took.disk_gib),
        ],
        "best": best is not None and total == best,
    }


def _apart(found: Paired, summaries: Sequence[Summary]) -> dict[str, Any]:
    """What the section on differences needs."""
    losses = {summary.name: summary.held_out for summary in summaries}
    runs = [
        {
            "name": f"{name}, step {found.steps[name]:,}",
            "lines": [
                {
                    "loss": loss,
                    "difference": words.signed(apart.mean),
                    "interval": interval(apart),
                    "chip": _chip(apart),
                    "losses": [words.loss(losses[each][loss]) for each in (name, found.reference)],
                    "detectable": words.loss(apart.detectable),
                }
                for loss, apart in differences.items()
            ],
        }
        for name, differences in found.others.items()
    ]
    return {
        "verdicts": [f"{verdict(found, name)}." for name in found.others],
        "reference": f"{found.reference}, step {found.steps[found.reference]:,}",
        "runs": runs,
        "notes": list(_notes(found)),
        "level": f"{found.level:.0%}".replace("%", " %"),
    }


def _chip(difference: Difference) -> Chip:
    if not math.isfinite(difference.low):
        return Chip("no interval", "soft")
    if difference.low <= 0 <= difference.high:
        return Chip("cannot be told apart", "soft")
    return Chip("lower", "good") if difference.mean < 0 else Chip("higher", "bad")


def _notes(found: Paired) -> Iterator[str]:
    """What to know of the differences."""
    power = f"{found.power:.0%}".replace("%", " %")
    yield (
        f"Paired on {words.count(found.rows)} held-out rows of {words.count(found.recordings)} recordings under "
        f"{found.draws} fixed draws each, the same for every run; intervals are for one comparison each, over "
        f"recordings. Detectable is a true difference that this split would show {power} of the time."
    )
    yield (
        "Each run is compared at the step that was selected on these same rows, which makes the loss of every run look "
        "a little better than it is, most of all that of a run with many checkpoints."
    )
    if found.recordings < found.fewest:
        yield f"With fewer than {found.fewest} recordings no interval is given."
    if found.unjudged:
        yield f"Not judged yet, so not compared: {', '.join(found.unjudged)}."


def _charts(summaries: Sequence[Summary]) -> list[Drawn]:
    held_out = [held_out_curve(summary) for summary in summaries]
    learnt = [_training_curve(summary) for summary in summaries]
    by_rows = "by rows learnt from, so that runs of other step sizes compare"
    return [
        Drawn(
            "Held-out loss/total", by_rows, runs_chart("Held-out loss/total", held_out, "rows learnt from", marked=True)
        ),
        Drawn(
            "Training loss/diff",
            f"smoothed, {by_rows}",
            runs_chart("Training loss/diff", learnt, "rows learnt from", marked=False),
        ),
    ]


def _training_curve(summary: Summary) -> Curve:
    rows = np.array([number(row.get("train/rows")) for row in summary.evidence.steps])
    values = np.array(summary.evidence.column("train/loss/diff"))
    keep = np.isfinite(rows) & np.isfinite(values)
    rows, values = rows[keep], smoothed(values[keep])
    thin = slice(None, None, max(1, len(rows) // 200))
    return Curve(summary.name, list(rows[thin]), list(values[thin]))
