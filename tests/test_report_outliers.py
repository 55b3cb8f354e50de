"""The section on outlier steps: what the trace left is told, and nothing is told of what it did not leave."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import report_material as made

from voxtrain.durable import write_json, write_jsonl
from voxtrain.report import charts
from voxtrain.report.run import write_report
from voxtrain.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(charts, "_svg", lambda *_, enough: "<svg></svg>" if enough else "")
    run = made.fake_run(tmp_path / "run")
    settings = "max_grad_norm: 1.0, outliers: {window: 100, threshold: 10.0, history: 16}"
    run.config.write_text(run.config.read_text().replace("max_grad_norm: 1.0", settings))
    return run


def row(name: str, **changed: Any) -> dict[str, Any]:
    plain = {"id": name, "line": 17, "text": "the <b>", "seconds": 0.045, "audit": [], "share": {"total": 0.2}}
    return plain | changed


def trace(run: RunFolder, step: int, fired: list[dict[str, Any]], suspects: list[str], **changed: Any) -> None:
    rows = [row("bad", share={"total": 0.625}, audit=[{"rule": "clipped", "value": 0.5}]), row("good")]
    write_json(run.outlier(step), {"step": step, "fired": fired, "suspects": suspects, "rows": rows} | changed)


def named(run: RunFolder, *lines: dict[str, Any]) -> None:
    write_jsonl(run.outlier(0).parent / "exclude.jsonl", lines)


def section(run: RunFolder) -> str:
    """The words of the section, without tags."""
    html = write_report(run).read_text(encoding="utf-8")
    (found,) = re.findall(r"<h2>Outlier steps</h2>(.*?)</section>", html, re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", found))


OF_ROW = {"metric": "row/loss/diff", "id": "bad", "value": 19.76, "median": 0.93, "mad": 0.2, "z": 63.5}
OF_STEP = {"metric": "train/grad_norm", "value": 50.96, "median": 3.6, "mad": 0.5, "z": 28.25}


def test_suspects_and_steps_are_told(run: RunFolder) -> None:
    trace(run, 26, [OF_ROW], ["bad"])
    trace(run, 90, [OF_STEP], [])
    named(run, {"id": "bad", "step": 26, "why": "..."})
    told = section(run)
    assert "2 of 240 steps stood out, by a loss or a gradient norm 10 robust deviations above the 100 steps" in told
    assert "One row is suspected" in told
    assert "bad line 17 0.04 s “the &lt;b&gt;” loss/diff of a row 19.8 (median 0.93) 63.5 26 clipped" in told
    assert "26 loss/diff of a row 19.8 (median 0.93), z 63.5 2 62.5 % bad" in told
    assert "90 grad norm 51 (median 3.6), z 28.2 2 62.5 %" in told
    assert told.index("26 loss/diff of a row") < told.index("90 grad norm")  # the highest first


def test_a_skipped_step_stands_first(run: RunFolder) -> None:
    trace(run, 26, [OF_ROW], ["bad"])
    trace(run, 30, [{"metric": "train/skipped", "value": 1}], ["bad"], rows=[row("bad", share={"total": None})])
    named(run, {"id": "bad", "step": 30, "why": "..."})
    told = section(run)
    assert "a loss that is not finite" in told
    assert told.index("30 skipped: not finite") < told.index("26 loss/diff of a row")


def test_a_quiet_trace_says_so(run: RunFolder) -> None:
    run.outlier(1).parent.mkdir()
    assert "No step and no row stood out: none had a loss or a gradient norm 10 robust" in section(run)


def test_a_trace_that_is_missing_is_told_and_one_that_was_not_wanted_is_not(run: RunFolder) -> None:
    assert "The outlier trace is not there yet" in section(run)
    run.config.write_text(re.sub(r"outliers: \{.*?\}", "outliers: null", run.config.read_text()))
    assert "Outlier steps" not in write_report(run).read_text()


def test_long_lists_are_cut_and_counted(run: RunFolder) -> None:
    for step in range(1, 26):
        trace(run, step, [OF_ROW | {"z": float(step)}], ["bad"])
    named(run, *({"id": f"bad_{step}", "step": step, "why": "..."} for step in range(1, 26)))
    told = section(run)
    assert "And 5 more in outliers/exclude.jsonl." in told
    assert "The 20 highest; 5 more in outliers/." in told
    assert "z 25.0" in told
    assert "z 5.0" not in told


def test_files_of_an_unexpected_kind_do_not_stop_the_report(run: RunFolder) -> None:
    trace(run, 26, [OF_ROW], ["bad"])
    named(run, {"id": None, "step": "x"})
    write_json(run.outlier(27), [1])
    write_json(run.outlier(28), dict.fromkeys(("step", "fired", "suspects", "rows")))
    write_json(run.outlier(29), {"step": 29, "fired": [1, {}], "suspects": {}, "rows": [None, {"share": 3, "text": 5}]})
    assert "3 of 240 steps stood out" in section(run)
    assert "outliers/step_0000027.json cannot be read" in run.report.read_text()
    shutil.rmtree(run.outlier(0).parent)
    assert "not there yet" in section(run)
