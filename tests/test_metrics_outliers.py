"""The outlier trace: it names the rows behind a spike, says no more than it knows, and never stops a run."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from outlier_material import BAD, NAN, drive, manifest_rows, ordinary, step_report, written

from voxtrain.durable import read_json, read_jsonl, write_jsonl
from voxtrain.fault import InputError
from voxtrain.fit import _outlier_trace
from voxtrain.metrics import visits
from voxtrain.metrics.outlier_folder import OutlierFolder
from voxtrain.metrics.outliers import OutlierTrace
from voxtrain.metrics.visits import RingBuffer, Visit
from voxtrain.preflight import Start
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.settings import compose

BAD_AT = {24: (30.0, 0.2), 31: (28.0, 0.1), 44: (26.0, 0.1)}


@pytest.fixture(autouse=True)
def nothing_is_synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of rows of metrics.csv: waiting for the disk is no part of these tests."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def named(run: RunFolder) -> list[tuple[str, int]]:
    return [(found["id"], found["step"]) for found in read_jsonl(OutlierFolder(run).exclude)]


def test_steps_like_the_others_leave_no_trace(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    drive(run, [ordinary(step) for step in range(1, 301)])
    assert list(written(run)) == ["rows.jsonl"]
    assert capsys.readouterr().err == ""


def test_a_bad_row_is_named_once_with_all_that_is_known_of_it(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    flag = {"line": 8, "id": BAD, "rule": "tail_silence", "value": 2.5, "threshold": 1.0}
    write_jsonl(DataFolder(run.data).reported, [flag])
    drive(run, [ordinary(step, BAD_AT) for step in range(1, 61)])
    assert named(run) == [(BAD, 24)]
    (exclude,) = read_jsonl(OutlierFolder(run).exclude)
    assert "its loss/diff of 30 lies" in exclude["why"]

    trace = read_json(run.outlier(24))
    assert (trace["step"], trace["skipped"], trace["suspects"]) == (24, False, [BAD])
    fired = {alarm["metric"]: alarm for alarm in trace["fired"]}
    row = fired["row/loss/diff"]
    assert row["id"] == BAD
    assert row["z"] == pytest.approx((30.0 - row["median"]) / (1.4826 * row["mad"]), rel=1e-3)
    assert row["z"] > row["threshold"] == 10.0
    assert fired["train/loss/diff"]["z"] > 10  # the whole step stands out too

    first, *others = trace["rows"]
    assert (first["id"], first["line"], first["text"], first["seconds"]) == (BAD, 8, "sentence number 7", 8.0)
    assert first["audit"] == [{"rule": "tail_silence", "value": 2.5}]
    assert first["suspect"] == exclude["why"]
    assert first["loss"] == {"diff": 30.0, "stop": 0.2, "total": 30.2}
    assert first["share"]["diff"] == pytest.approx(0.25 * 30 / trace["loss"]["diff"], rel=1e-4)
    for name in ("diff", "stop", "total"):
        assert sum(row["share"][name] for row in trace["rows"]) == pytest.approx(1, abs=1e-4)  # six figures each
    assert [row["suspect"] for row in others] == [None] * 3
    assert all(abs(row["z"]["diff"]) < 10 for row in others)
    told = capsys.readouterr().err
    assert "1 row came under suspicion" in told
    assert f"clean.exclude={OutlierFolder(run).exclude}" in told


def test_a_trace_shows_the_last_visits_before_it(run: RunFolder) -> None:
    reports = [ordinary(step, BAD_AT) for step in range(1, 61)]
    reports[49] = step_report(50, [(BAD, 90.0, 0.1, 1), ("row_01", 1.0, 0.1, 40)])
    drive(run, reports)
    history = read_json(run.outlier(50))["rows"][0]["history"]
    assert history == {"steps": [24, 31, 44], "diff": [30.0, 28.0, 26.0], "stop": [0.2, 0.1, 0.1]}


def test_a_named_row_alone_fires_no_more(run: RunFolder) -> None:
    mild = {24: (5.0, 0.2), 31: (5.0, 0.1), 44: (5.0, 0.1)}  # the row stands out, its step does not
    drive(run, [ordinary(step, mild) for step in range(1, 61)])
    assert OutlierFolder(run).steps() == [24]


def test_a_spike_of_the_gradient_is_traced_and_accuses_nobody(run: RunFolder) -> None:
    reports = [ordinary(step) for step in range(1, 41)]
    reports.append(step_report(41, [("row_01", 1.0, 0.05, 40), ("row_02", 1.1, 0.05, 40)], grad_norm=50.96))
    drive(run, reports)
    trace = read_json(run.outlier(41))
    assert [alarm["metric"] for alarm in trace["fired"]] == ["train/grad_norm"]
    assert trace["fired"][0]["value"] == 50.96
    assert trace["suspects"] == []
    assert not OutlierFolder(run).exclude.exists()


def test_a_skipped_step_is_traced_from_the_first_step_on(run: RunFolder) -> None:
    rows = [("row_01", 1.0, 0.05, 40), (BAD, NAN, 0.1, 40), ("row_03", 1.0, math.inf, 40)]
    drive(run, [ordinary(1), step_report(2, rows, NAN, skipped=True), ordinary(3)])
    trace = read_json(run.outlier(2))
    assert trace["fired"] == [{"metric": "train/skipped", "value": 1}]
    assert (trace["loss"]["diff"], trace["grad_norm"]) == (None, None)
    assert sorted(trace["suspects"]) == ["row_03", BAD]
    losses = {row["id"]: (row["loss"]["diff"], row["loss"]["stop"]) for row in trace["rows"]}
    assert losses == {"row_01": (1.0, 0.05), BAD: (None, 0.1), "row_03": (1.0, None)}
    assert named(run) == [(BAD, 2), ("row_03", 2)]


def test_where_every_row_is_not_finite_it_is_the_weights(run: RunFolder) -> None:
    drive(run, [step_report(1, [("row_01", NAN, NAN, 40), ("row_02", NAN, 0.1, 40)], NAN, skipped=True)])
    assert read_json(run.outlier(1))["suspects"] == []
    assert not OutlierFolder(run).exclude.exists()


def test_a_gradient_that_is_not_finite_accuses_no_row(run: RunFolder) -> None:
    drive(run, [step_report(1, [("row_01", 1.0, 0.1, 40), ("row_02", 1.0, 0.1, 40)], math.inf, skipped=True)])
    assert read_json(run.outlier(1))["suspects"] == []


@pytest.mark.parametrize(
    ("stopped_at", "resumed_from", "torn"),
    [(24, 0, b""), (40, 23, b'{"step": 99, "rows": [["row_0'), (52, 44, b"\x00\x00\x00"), (60, 60, b"\n")],
)
def test_a_resumed_run_leaves_the_same_files(tmp_path: Path, stopped_at: int, resumed_from: int, torn: bytes) -> None:
    reports = [ordinary(step, BAD_AT) for step in range(1, 71)]
    reports[43] = step_report(44, [(BAD, NAN, 0.1, 1), ("row_01", 1.0, 0.1, 40)], NAN, skipped=True)
    reports[49] = step_report(50, [("row_11", 25.0, 0.1, 9), ("row_01", 1.0, 0.1, 40)], 30.0)
    whole, cut = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "cut")
    drive(whole, reports)
    drive(cut, reports[:stopped_at])
    with OutlierFolder(cut).visits.open("ab") as log:
        log.write(torn)
    (cut.outlier(0).parent / ".writing_1_step_0000024.json").write_text("{")  # a killed process was writing it
    drive(cut, reports[resumed_from:], first_step=resumed_from)
    assert OutlierFolder(whole).steps() == [24, 31, 44, 50]
    assert named(whole) == [(BAD, 24), ("row_11", 50)]
    assert written(cut) == written(whole)


def test_what_later_steps_left_is_dropped(run: RunFolder) -> None:
    drive(run, [ordinary(step, BAD_AT) for step in range(1, 41)])
    assert OutlierFolder(run).steps() == [24, 31]
    drive(run, [ordinary(step) for step in range(24, 41)], first_step=23)  # the row was mended meanwhile
    assert list(written(run)) == ["rows.jsonl"]


def test_the_ring_buffer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visits, "MOST_VISITS", 12)
    buffer = RingBuffer(3)  # of four rows
    for step in range(1, 8):
        buffer.add([Visit(step, "often", 1.0, 0.1, 40), Visit(step, f"once_{step}", 1.0, 0.1, 40)])
    assert [visit.step for visit in buffer.of("often")] == [5, 6, 7]
    assert [step for step in range(1, 8) if buffer.of(f"once_{step}")] == [5, 6, 7]


def test_a_trace_that_breaks_does_not_stop_training(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.outlier(24).mkdir(parents=True)  # nothing can be written there
    (run.outlier(24) / "in_the_way").touch()
    drive(run, [ordinary(step, BAD_AT) for step in range(1, 41)])
    assert capsys.readouterr().err.count("The outlier trace ended (") == 1
    assert len(run.metrics.read_text().splitlines()) == 41


def test_a_lost_log_is_told(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    drive(run, [ordinary(step) for step in range(1, 31)])
    OutlierFolder(run).visits.unlink()
    drive(run, [ordinary(step) for step in range(31, 41)], first_step=30)
    assert "holds 0 of 30 steps" in capsys.readouterr().err


def test_it_costs_little(run: RunFolder) -> None:
    """Eight rows a step and a full window: under 1 % of the 0.3 s that a step of the tiny model takes on a CPU."""
    reports = [ordinary(step) for step in range(1, 121)]
    trace = drive(run, reports[:100], window=100)
    trace._log = OutlierFolder(run).visits.open("a")
    costs = []
    for report in reports[100:]:
        began = time.process_time()
        trace.on_train_batch_end(None, None, {"report": report}, None, 0)  # type: ignore[arg-type]
        costs.append(time.process_time() - began)
    trace.close()
    assert sorted(costs)[len(costs) // 2] < 0.003


def test_settings_that_make_no_sense_are_told_together() -> None:
    wrong = ("train.outliers.window=5", "train.outliers.threshold=0", "train.loss_weights.stop_positive=0")
    with pytest.raises(InputError) as told:
        compose(["+recipe=demo", *wrong])
    assert {fault.where.partition(" = ")[0] for fault in told.value.faults} == {key.split("=")[0] for key in wrong}


@pytest.mark.slow
def test_the_trace_can_be_switched_off(run: RunFolder) -> None:
    rows = SimpleNamespace(rows=lambda split: manifest_rows())

    def trace(*given: str) -> OutlierTrace | None:
        start = Start(compose(["+recipe=demo", *given]), run, given, resumes=False)
        return _outlier_trace(start, rows, 0)  # type: ignore[arg-type]

    assert trace("train.outliers=null") is None
    assert isinstance(trace("train.outliers.window=40"), OutlierTrace)
