"""compare.html: several runs side by side; sweep.html is the same page for the jobs of a sweep."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxtrain.durable import write_whole
from voxtrain.report import words
from voxtrain.report.charts import SERIES, VARIABLES, Curve, runs_chart, smoothed
from voxtrain.report.evidence import number, read_evidence
from voxtrain.report.head import STATUS_KINDS
from voxtrain.report.page import Chip, Drawn, page
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
    """Write a page with the runs side by side to `out`, and return its path."""
    called = names([run.root.resolve() for run in runs])
    summaries = [summarize(read_evidence(run), name) for run, name in zip(runs, called, strict=True)]
    columns = {key: [summary.settings.get(key, "") for summary in summaries] for key in differing(summaries)}
    write_whole(out, comparison_page("Runs side by side", "", summaries, columns, out.parent))
    return out


def comparison_page(
    title: str, place: str, summaries: Sequence[Summary], columns: Mapping[str, Sequence[str]], beside: Path
) -> str:
    """The page as HTML.

    place: what stands small beside the title. columns: what the runs differ in, one cell a run. beside: the folder
    that links start from.
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
            "charts": _charts(summaries),
        },
    )


def _row(summary: Summary, place: int, cells: list[str], best: float | None, beside: Path) -> dict[str, Any]:
    run, total = summary.evidence.run, summary.held_out["loss/total"]
    code = "" if summary.exit_code in (0, None) else f", exit code {summary.exit_code}"
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
        "seconds": words.span(summary.train_seconds),
        "peak": words.gib(summary.peak_gib),
        "best": best is not None and total == best,
    }


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
