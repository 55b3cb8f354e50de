"""How a run may end, and what is left then."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from voxtrain import train
from voxtrain.checkpoint.lock import held
from voxtrain.durable import read_json, write_json
from voxtrain.fault import FAILED, WRONG_INPUT, Fault, InputError, RunFailed
from voxtrain.preflight import Start, plan_start
from voxtrain.run_folder import RunFolder


@pytest.fixture(scope="module")
def planned(cache: Path) -> Start:
    return plan_start(["+recipe=demo", f"data.cache_dir={cache}"])


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planned: Start) -> Start:
    """A new run in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    made = replace(planned, run=RunFolder(tmp_path / "outputs" / "demo" / planned.run.root.name))
    made.run.root.mkdir(parents=True)
    return made


def end_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(start: Start, record: object) -> None:
        (start.run.root / "data").mkdir(exist_ok=True)
        raise error

    monkeypatch.setattr(train, "train", broken)


def test_an_interrupt_before_training_leaves_nothing_and_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end_with(KeyboardInterrupt(), monkeypatch)
    assert train.run_to_end(start, in_sweep=False) == FAILED
    assert not start.run.root.exists()
    assert "interrupted before anything was learnt" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_training_is_told_and_leaves_nothing(
    start: Start, number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def asked_to_stop(start: Start, record: object) -> None:
        (start.run.root / "data").mkdir()
        signal.raise_signal(number)

    monkeypatch.setattr(train, "train", asked_to_stop)
    before = signal.getsignal(number)
    assert train.run_to_end(start, in_sweep=False) == FAILED
    assert signal.getsignal(number) is before
    assert not start.run.root.exists()
    assert f"{number.name} was received before anything was learnt" in capsys.readouterr().err


def test_an_interrupt_after_a_state_says_how_to_go_on(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start.run.state(20).mkdir(parents=True)
    end_with(KeyboardInterrupt(), monkeypatch)
    assert train.run_to_end(start, in_sweep=False) == FAILED
    assert f"resume={start.run.root}" in capsys.readouterr().err
    assert read_json(start.run.run)["status"] == "interrupted"


def test_wrong_input_leaves_nothing_of_a_new_run(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    end_with(InputError(Fault("rows", "all of them are empty", "add text")), monkeypatch)
    assert train.run_to_end(start, in_sweep=False) == WRONG_INPUT
    assert not start.run.root.exists()


def test_wrong_input_of_a_sweeps_job_is_recorded(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    end_with(InputError(Fault("rows", "all of them are empty", "add text")), monkeypatch)
    assert train.run_to_end(start, in_sweep=True) == WRONG_INPUT
    record = read_json(start.run.run)
    assert (record["status"], record["exit_code"]) == ("refused", WRONG_INPUT)


@pytest.mark.parametrize("resumes", [False, True])
def test_a_run_that_is_training_is_left_alone(
    start: Start, resumes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`resume=latest` names a run that is still under way as readily as one that was killed."""
    end_with(AssertionError("it began"), monkeypatch)
    start.run.state(20).mkdir(parents=True)
    start.run.config.write_text("its settings")
    write_json(start.run.run, {"status": "running", "steps": 23})
    with held(start.run.training_lock, "training"):
        before = {path: path.read_bytes() for path in start.run.root.rglob("*") if path.is_file()}
        for in_sweep in (False, True):
            assert train.run_to_end(replace(start, resumes=resumes), in_sweep=in_sweep) == WRONG_INPUT
            told = capsys.readouterr().err
            assert f"process {os.getpid()} on " in told
            assert "is training this run" in told
        assert {path: path.read_bytes() for path in start.run.root.rglob("*") if path.is_file()} == before


def test_who_trains_holds_the_run_while_it_trains(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(start: Start, record: object) -> None:
        assert f"process {os.getpid()} on " in start.run.training_lock.read_text()
        raise RunFailed("seen")

    monkeypatch.setattr(train, "train", look)
    assert train.run_to_end(start, in_sweep=False) == FAILED
    assert read_json(start.run.run)["message"] == "seen"
    assert not start.run.training_lock.exists()


@pytest.mark.parametrize(
    ("status", "message", "stops"),
    [
        ("finished", "", False),
        ("failed", "", False),
        ("stopped", "stopped after step 3: SIGTERM was received", False),
        ("stopped", "stopped after step 3: SIGINT was received", True),
        ("interrupted", "", True),
    ],
)
def test_a_sweep_goes_on_unless_a_job_was_interrupted(tmp_path: Path, status: str, message: str, stops: bool) -> None:
    (tmp_path / "0_demo").mkdir()
    (tmp_path / "1_demo").mkdir()
    write_json(tmp_path / "0_demo" / "run.json", {"status": status, "message": message})
    assert (train._interrupted_before(RunFolder(tmp_path / "1_demo")) == "0_demo") is stops


@pytest.mark.slow
def test_after_the_end_a_resume_mends_or_leaves_everything_as_it_was(tmp_path: Path, cache: Path) -> None:
    environment = {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def voxtrain(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "voxtrain", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    quick = ("train.max_steps=6", "checkpoint.every=3", "listening.max_seconds=1", "hydra.run.dir=run")
    assert voxtrain("+recipe=demo", *quick).returncode == 0
    run = RunFolder(tmp_path / "run")

    outcome = json.loads(run.post_hoc.read_text())
    for break_it in (lambda: write_json(run.post_hoc, {**outcome, "exit_code": FAILED}), run.post_hoc.unlink):
        break_it()
        run.report.unlink()
        again = voxtrain(f"resume={run.root}")
        assert (again.returncode, run.report.is_file()) == (0, True), again.stderr

    before = {path: path.read_bytes() for path in (run.config, run.run, run.metrics)}
    optimizer = run.state(6) / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:100])
    refused = voxtrain(f"resume={run.root}", "train.max_steps=9")
    assert refused.returncode == WRONG_INPUT, refused.stderr
    assert {path: path.read_bytes() for path in before} == before
