"""Judging while training goes on: when a judge starts, that training never suffers, and that the end is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import pytorch_lightning as pl
import torch

from voxtrain.checkpoint.lock import held
from voxtrain.durable import read_json
from voxtrain.memory import room
from voxtrain.run_folder import RunFolder
from voxtrain.validation import beside
from voxtrain.validation.beside import JudgeBeside

NOBODY: Any = cast(pl.Trainer, SimpleNamespace())


class Judges:
    """In place of processes: which were started, and whether the last still runs."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.running = False
        self.refuses = False

    def __call__(self, command: list[str], **options: Any) -> Judges:
        if self.refuses:
            raise OSError("no memory for another process")
        assert options["start_new_session"]  # it outlives the trainer
        assert "RANK" not in options["env"]
        self.commands.append(command)
        self.running = True
        return self

    def poll(self) -> int | None:
        return None if self.running else 2


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Judges:
    monkeypatch.setenv("RANK", "0")
    found = Judges()
    monkeypatch.setattr(beside.subprocess, "Popen", found)
    return found


def a_step(callback: JudgeBeside) -> None:
    callback.on_train_batch_end(NOBODY, NOBODY, None, None, 0)


def checkpoint(run: RunFolder, step: int) -> None:
    run.checkpoint(step).mkdir(parents=True)


def test_one_judge_at_a_time_for_checkpoints_that_none_was_started_for(tmp_path: Path, judges: Judges) -> None:
    run = RunFolder(tmp_path)
    callback = JudgeBeside(run)
    callback.on_train_start(NOBODY, NOBODY)
    assert judges.commands == []  # nothing is there
    checkpoint(run, 0)
    a_step(callback)
    assert judges.commands == [[sys.executable, "-m", "voxtrain.validation", str(tmp_path), "--beside"]]
    checkpoint(run, 4)
    checkpoint(run, 8)
    a_step(callback)
    assert len(judges.commands) == 1  # the first is still at work
    judges.running = False
    a_step(callback)
    assert len(judges.commands) == 2  # for both
    judges.running = False
    a_step(callback)
    assert len(judges.commands) == 2  # however it ended, it is not asked again before there is more


def test_a_judge_that_cannot_be_started_is_told_and_training_goes_on(
    tmp_path: Path, judges: Judges, capsys: pytest.CaptureFixture[str]
) -> None:
    judges.refuses = True
    run = RunFolder(tmp_path)
    checkpoint(run, 0)
    callback = JudgeBeside(run)
    a_step(callback)
    a_step(callback)
    assert capsys.readouterr().err.count("no memory for another process") == 1


def test_memory_on_a_shared_card_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = [3.0, 7.9, 8.5]
    monkeypatch.setattr(room, "card_free_gib", lambda _: free.pop(0))
    monkeypatch.setattr(room, "POLL_S", 0.0)
    room.wait_for_room(torch.device("cuda", 0), 8.0, "device=cpu does not wait.")
    assert free == []
    assert (
        capsys.readouterr().err == "Waiting for 8.0 GiB on the card, of which 3.0 are free. device=cpu does not wait.\n"
    )
    monkeypatch.setattr(room, "card_free_gib", lambda _: None)
    room.wait_for_room(torch.device("cuda", 0), 8.0, "")  # no driver tells
    room.wait_for_room(torch.device("cpu"), 8.0, "")


@pytest.mark.slow
def test_who_may_wait_waits_for_the_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys, time; from pathlib import Path; from voxtrain.checkpoint.lock import held\n"
    code += "with held(Path(sys.argv[1]), 'judging'): print('held', flush=True); time.sleep(0.3)"
    lock = tmp_path / "evaluation" / "judging.lock"
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with held(lock, "judging", waits=True):
            assert holder.wait() == 0
    assert f"Waiting: process {holder.pid}" in capsys.readouterr().err


# Whole runs -----------------------------------------------------------------------------------------------------------

SHORT = (
    *("+recipe=demo", "train.max_steps=12", "checkpoint.every=4", "checkpoint.state_every=4"),
    *("listening.texts=[Good morning.]", "listening.seeds=1", "listening.max_seconds=1"),
)


def begun(when: str, root: Path, cache: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "voxtrain", *SHORT, f"validation.when={when}", f"hydra.run.dir={root}", *more]
    environment = {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=root.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def judged(run: RunFolder) -> Any:
    return pq.read_table(run.evaluated_rows)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunFolder:
    """A run that is judged after training."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    process = begun("after_training", root, cache)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return RunFolder(root)


@pytest.mark.slow
def test_judging_beside_training_ends_as_judging_after_it(undisturbed: RunFolder, tmp_path: Path, cache: Path) -> None:
    run = RunFolder(tmp_path / "run")
    process = begun("after_each_checkpoint", run.root, cache)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert judged(run).equals(judged(undisturbed))
    assert read_json(run.selection)["selected_step"] == read_json(undisturbed.selection)["selected_step"]
    assert "--beside" in run.post_hoc_log.read_text()


@pytest.mark.slow
def test_a_judge_outlives_the_killed_trainer_and_what_is_left_is_judged_after_the_resume(
    undisturbed: RunFolder, tmp_path: Path, cache: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    process = begun("after_each_checkpoint", run.root, cache)
    until = time.monotonic() + 200
    while not (run.evaluation_lock.is_file() and run.state_steps()):  # the judge is at work
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    judged_before = run.evaluated_rows.is_file() and set(judged(run)["step"].to_pylist()) >= {0, 4, 8, 12}
    assert not judged_before
    while not run.evaluated_rows.is_file():  # by the judge that nobody waits for
        assert time.monotonic() < until, run.post_hoc_log.read_text()
        time.sleep(0.1)
    environment = {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    resume = [sys.executable, "-m", "voxtrain", f"resume={run.root}"]
    done = subprocess.run(
        resume, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert judged(run).equals(judged(undisturbed))
    assert read_json(run.selection)["intervals"] == read_json(undisturbed.selection)["intervals"]
