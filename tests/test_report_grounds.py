"""What stands behind a choice, from the records to the page: nothing that selection.json knows is lost on the way."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_material as made

from voxtrain.durable import write_json
from voxtrain.report import charts
from voxtrain.report.run import write_report
from voxtrain.run_folder import RunFolder
from voxtrain.validation.evidence import gather, write_checkpoints
from voxtrain.validation.losses import DrawLoss
from voxtrain.validation.parts import by_flow_time, by_length, stop_gauge
from voxtrain.validation.select import select
from voxtrain.validation.settings import Guards
from voxtrain.validation.table import with_step

STEPS = (0, 40, 80, 120, 240)
DIFF, STOP = (0.95, 0.900, 0.860, 0.855, 0.850), (0.20, 0.060, 0.058, 0.075, 0.15)
ROWS, DRAWS = 24, 2
NO_GUARDS = Guards.model_construct(**dict.fromkeys(Guards.model_fields))


@pytest.fixture(autouse=True)
def charts_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts, "_svg", lambda *_, enough: "<svg></svg>" if enough else "")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return made.fake_run(tmp_path / "outputs" / "demo" / "2026-05-04_10-11-12")


def selected(run: RunFolder, recordings: int, rule: Any = "earliest_in_tie_set") -> dict[str, Any]:
    """Judge and select as the validator does, on losses that scatter by recording and by row."""
    names = [(f"row{n:02d}", f"recording{n % recordings}") for n in range(ROWS)]
    table = None
    for place, step in enumerate(STEPS):
        noise = np.random.Generator(np.random.Philox((7, step)))
        of_recording = noise.normal(0, 0.004, recordings)
        losses = [
            DrawLoss(
                row,
                draw,
                DIFF[place] + of_recording[row % recordings] + noise.normal(0, 0.004),
                STOP[place],
                (0.1 + DIFF[place], 0.2 + DIFF[place], None, 0.4 + DIFF[place], 0.5 + DIFF[place]),
                10 + row,
            )
            for row in range(ROWS)
            for draw in range(DRAWS)
        ]
        table = with_step(table, step, names, losses, {})
    evidence = gather(table, 1.0, 1.0)
    write_checkpoints(run, evidence)
    held_out = {step: evidence.loss(step, "loss/stop") for step in evidence.steps}
    detail = {
        "by_flow_time": by_flow_time(table),
        "by_length": by_length(table, 1.0, 1.0),
        "stop_gauge": stop_gauge(run, held_out),
    }
    return select(run, evidence, rule, NO_GUARDS, {}, detail)


def page(run: RunFolder) -> str:
    """The words of the report."""
    body = write_report(run).read_text(encoding="utf-8").partition("</style>")[2]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_all_that_a_choice_stands_on_is_on_the_page(run: RunFolder) -> None:
    choice = selected(run, recordings=8)
    assert choice["selected_step"] in choice["tie_set"]
    assert choice["best_step"] == 80
    text = page(run)
    assert choice["reason"] in text
    assert choice["would_change"]
    for words in choice["would_change"]:
        assert words[1:] in text
    assert f"{choice['detectable_difference']:.4f}: held-out rows of 8 recordings" in text
    assert "true difference of that size between two checkpoints 80 % of the time" in text
    assert choice["pareto_set"] == [80, 120, 240]
    assert "Steps 80, 120 and 240: going from one to another" in text
    assert "Each of the rest has one of these that is no higher in either." in text
    assert "Stop head loss/stop at step" in text
    for found in choice["stop_weight_ranges"]:
        assert re.search(rf"from {found['from']:.3g} (to|up).*?: step {found['step']}", text)
    for step, found in choice["intervals"].items():
        assert int(step) != choice["selected_step"]
        low, high = (f"{found[end]:+.4f}".replace("-", "\N{MINUS SIGN}") for end in ("low", "high"))
        assert f"{low} to {high}" in text


def test_why_a_step_is_out_whose_interval_holds_zero_is_said(run: RunFolder) -> None:
    found = selected(run, 6)
    said = "Out, although the interval against the selected holds zero, because another is lower more surely"
    assert said not in page(run)
    out = next(step for step in STEPS[1:] if step not in found["tie_set"])
    found["intervals"][str(out)]["low"] = -0.001
    write_json(run.selection, found)
    assert f"{said}: step {out}." in page(run)
    found["intervals"][str(out)]["high"] = -0.0005  # wholly below: it does not hold zero
    write_json(run.selection, found)
    assert said not in page(run)


def test_losses_in_parts_stand_under_the_checkpoints_that_the_choice_is_about(run: RunFolder) -> None:
    choice = selected(run, recordings=8)
    text, step = page(run), choice["selected_step"]
    place = STEPS.index(step)
    assert "base" in text
    assert f"selected ({step})" in text
    assert "last (240)" in text
    assert re.search(rf"0\.0 to 0\.2 {0.1 + DIFF[0]:.4f} {0.1 + DIFF[place]:.4f}", text)
    assert "0.4 to 0.6 \N{EN DASH}" in text  # no flow time fell there
    shortest, *_, longest = (part["loss/total"][str(step)] for part in choice["by_length"])
    assert re.search(rf"shortest, 1\.6 to 2\.7 s [\d.]+ {shortest:.4f}", text)
    assert re.search(rf"longest, 4\.2 to 5\.3 s [\d.]+ {longest:.4f}", text)


def test_of_too_few_recordings_the_page_warns_and_shows_no_interval(run: RunFolder) -> None:
    choice = selected(run, recordings=4)
    assert choice["intervals"] is None
    text = page(run)
    assert "with fewer than 5 no interval can be given" in text
    assert "Detectable difference" not in text
    assert "P(best)" not in text
    assert "What would change the choice" in text


def test_under_the_other_rule_the_page_names_what_the_first_would_take(run: RunFolder) -> None:
    earliest = selected(run, recordings=8)["selected_step"]
    choice = selected(run, recordings=8, rule="lowest")
    assert choice["selected_step"] == 80
    assert earliest == 80 or f"validation.rule=earliest_in_tie_set would take step {earliest}" in page(run)


def test_a_selection_without_grounds_has_no_such_section(run: RunFolder) -> None:
    text = page(run)
    assert "What would change the choice" not in text
    assert "How sure it is" not in text
