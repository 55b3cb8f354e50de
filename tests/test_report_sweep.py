"""Several runs side by side, the table of a sweep, and the door."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import report_material as made
from omegaconf import OmegaConf

from voxtrain.durable import write_jsonl
from voxtrain.fault import InputError
from voxtrain.report import charts
from voxtrain.report.__main__ import main
from voxtrain.report.compare import write_comparison
from voxtrain.report.evidence import read_evidence
from voxtrain.report.summary import asked_for, differing, held_out_curve, names, summarize
from voxtrain.report.sweep import SweepTable, write_sweep
from voxtrain.run_folder import DataFolder, RunFolder


@pytest.fixture(autouse=True)
def charts_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing is the slow part of a page, and has tests of its own."""
    monkeypatch.setattr(charts, "_svg", lambda *_, enough: "<svg></svg>" if enough else "")


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "sweeps" / "2026-05-04_12-00-00"
    for job, (accum, bend) in enumerate([(2, 0.0), (4, 0.25)]):
        made.fake_run(folder / f"{job}_demo", overrides=["+recipe=demo", f"train.grad_accum={accum}"], bend=bend)
    return folder


def config(sweep: Path, mode: str) -> Any:
    return OmegaConf.create({"hydra": {"mode": mode, "sweep": {"dir": str(sweep)}}})


def test_one_line_a_job(sweep: Path) -> None:
    write_sweep(sweep)
    first, second = table(sweep)
    best = min(range(made.EVERY, made.STEPS + 1, made.EVERY), key=made.total)
    assert list(first)[:4] == ["job", "recipe", "train.grad_accum", "selected_step"]
    assert (first["job"], first["recipe"], first["train.grad_accum"]) == ("0", "demo", "2")
    assert (first["selected_step"], float(first["val/loss/total"])) == (str(best), pytest.approx(made.total(best)))
    assert float(second["val/loss/diff"]) == pytest.approx(made.held_out(best)[0] + 0.25)
    assert (first["train_seconds"], first["peak_gib"], first["exit_code"]) == ("71.25", "1.93", "0")
    assert (first["status"], first["run"]) == ("finished", "0_demo")


def test_jobs_that_did_not_come_far_have_empty_cells(sweep: Path) -> None:
    refused = RunFolder(sweep / "10_demo")
    made.write_record(refused, 0, ["train.grad_accum=0", "~clean"], status="refused", exit_code=2, train_seconds=0.0)
    (sweep / "11_demo").mkdir()
    (sweep / "notes").mkdir()
    write_sweep(sweep)
    *_, last = table(sweep)
    assert [row["job"] for row in table(sweep)] == ["0", "1", "10"]  # by number, not by letter
    assert (last["train.grad_accum"], last["selected_step"], last["val/loss/total"]) == ("0", "", "")
    assert (last["peak_gib"], last["exit_code"], last["status"]) == ("", "2", "refused")


def test_the_page_shows_what_varies(sweep: Path) -> None:
    html = write_sweep(sweep).read_text()
    assert "<code>2</code>" in html
    assert "<code>4</code>" in html
    assert ">train.grad_accum<" in html
    assert ">recipe<" not in html  # the same in every job
    assert html.count('<tr class="selected"') == 1


def test_the_callback_writes_in_a_sweep_alone(sweep: Path) -> None:
    SweepTable().on_job_end(config(sweep, "RUN"), None)  # type: ignore[arg-type]
    assert not (sweep / "sweep.csv").exists()
    # Hydra's mode is an enum in its config; its name is what a plain config holds
    from hydra.types import RunMode

    inside = OmegaConf.create({"hydra": {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(sweep)}}})
    SweepTable().on_job_end(inside, None)  # type: ignore[arg-type]
    assert len(table(sweep)) == 2


def test_the_callback_never_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SweepTable().on_multirun_end(config(tmp_path / "nowhere", "MULTIRUN"))
    assert "The sweep's table could not be written: FileNotFoundError" in capsys.readouterr().err


@pytest.mark.slow
def test_the_callback_is_light() -> None:
    code = (
        "import sys, voxtrain.report.sweep; "
        "print([m for m in ('torch', 'jinja2', 'matplotlib', 'pandas', 'numpy') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


APP = """
import os, sys
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
sys.path.insert(0, {tests!r})
import report_material
@hydra.main(version_base="1.3", config_path={conf!r}, config_name="config")
def main(cfg):
    inner = HydraConfig.get()
    report_material.fake_run(Path(inner.runtime.output_dir), overrides=list(inner.overrides.task))
main()
"""
CONF = """
width: 1
hydra:
  output_subdir: null
  sweep: {dir: sweep, subdir: '${hydra:job.num}_app'}
  callbacks: {table: {_target_: voxtrain.report.sweep.SweepTable}}
"""


@pytest.mark.slow
def test_hydra_itself_calls_it(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONF)
    app = tmp_path / "app.py"
    app.write_text(APP.format(tests=str(Path(__file__).parent), conf=str(tmp_path)))
    command = [sys.executable, str(app), "-m", "width=1,2,3"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "could not be written" not in done.stderr
    assert [(row["job"], row["width"]) for row in table(tmp_path / "sweep")] == [("0", "1"), ("1", "2"), ("2", "3")]


def test_runs_side_by_side(tmp_path: Path) -> None:
    one = made.fake_run(tmp_path / "a" / "x")
    other = made.fake_run(tmp_path / "b" / "x", bend=0.125)
    other.config.write_text(other.config.read_text().replace("lr: 1e-3", "lr: 2e-3").replace("name: demo", "name: o"))
    html = write_comparison([one, other], tmp_path / "compare.html").read_text()
    assert ">optimizer.lr<" in html
    assert "<code>0.001</code>" in html
    assert "<code>0.002</code>" in html
    assert ">name<" not in html
    assert ">seed<" not in html
    assert "a/x" in html
    assert "cannot be compared" not in html


def test_many_differing_settings_have_a_table_of_their_own(tmp_path: Path) -> None:
    one, other = made.fake_run(tmp_path / "a"), made.fake_run(tmp_path / "b")
    text = other.config.read_text().replace("seed: ", "seed: 1").replace("batch_size: 2", "batch_size: 8")
    text = text.replace("grad_accum: 4", "grad_accum: 1").replace("lr: 1e-3", "lr: 2e-3").replace("fp32", "bf16")
    other.config.write_text(text)
    html = write_comparison([one, other], tmp_path / "compare.html").read_text()
    below = html[html.index("Settings that differ") :]
    for key in ("seed", "train.batch_size", "train.grad_accum", "optimizer.lr", "memory.weights"):
        assert f">{key}<" in below
        assert f">{key}<" not in html[: html.index("Settings that differ")]


def test_runs_on_other_rows_or_draws_must_not_be_compared(tmp_path: Path) -> None:
    one, other = made.fake_run(tmp_path / "a"), made.fake_run(tmp_path / "b")
    rows = DataFolder(other.data).rows("validation")
    write_jsonl(rows, [{"id": "another"}])
    other.config.write_text(other.config.read_text().replace("draws: 8", "draws: 2"))
    html = write_comparison([one, other], tmp_path / "compare.html").read_text()
    assert "not judged on the same held-out rows" in html
    assert "differ in validation.draws" in html


def test_runs_that_broke_stand_beside_others(tmp_path: Path) -> None:
    run = made.fake_run(tmp_path / "a")
    broken = RunFolder(tmp_path / "b")
    made.write_record(broken, 0, [], status="failed", exit_code=1)
    html = write_comparison([run, broken], tmp_path / "compare.html").read_text()
    assert "failed, exit code 1" in html


def test_curves_go_by_rows(tmp_path: Path) -> None:
    curve = held_out_curve(summarize(read_evidence(made.fake_run(tmp_path / "a")), "a"))
    assert list(curve.x) == [made.ROWS_PER_STEP * step for step in range(0, 241, 40)]
    assert list(curve.y) == pytest.approx([made.total(step) for step in range(0, 241, 40)])


def test_overrides_by_key() -> None:
    given = ["+recipe=demo", "train.grad_accum=2", "++model.path=a=b", "~clean.boilerplate"]
    want = {"recipe": "demo", "train.grad_accum": "2", "model.path": "a=b", "~clean.boilerplate": ""}
    assert asked_for(given) == want


def test_names_tell_runs_apart() -> None:
    assert names([Path("/o/a/x"), Path("/o/b/y")]) == ["x", "y"]
    assert names([Path("/o/a/x"), Path("/o/b/x")]) == ["a/x", "b/x"]
    assert names([Path("/o/a/x"), Path("/o/a/x")]) == ["x", "x"]


def test_settings_that_differ(tmp_path: Path) -> None:
    runs = [made.fake_run(tmp_path / name) for name in ("a", "b")]
    runs[1].config.write_text(runs[1].config.read_text().replace("seed: 1", "seed: 2"))
    assert differing([summarize(read_evidence(run), "") for run in runs]) == ["seed"]


def test_the_door_writes_what_was_asked_for(tmp_path: Path, sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = made.fake_run(tmp_path / "a"), made.fake_run(tmp_path / "b")
    asked = [
        ([str(one.root)], one.report),
        ([str(one.root), str(other.root)], tmp_path / "compare.html"),
        ([str(one.root), str(other.root), f"out={tmp_path / 'c' / 'page.html'}"], tmp_path / "c" / "page.html"),
        ([str(sweep)], sweep / "sweep.html"),
    ]
    for arguments, page in asked:
        assert main(arguments) == 0
        assert page.is_file()
        assert str(page) in capsys.readouterr().out


def test_the_door_tells_all_that_is_wrong_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as told:
        main([str(tmp_path), str(tmp_path / "no"), "seed=1"])
    assert [fault.what.split(":")[0] for fault in told.value.faults] == [
        "this door has no such setting",
        "this is no run folder",
        "it is not there",
    ]
    with pytest.raises(InputError, match="no run folder was named"):
        main([])
    assert list(tmp_path.iterdir()) == []
