"""Slurm: a job that is warned goes back into the queue, and the same command line goes on with its own run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache as cache_result
from pathlib import Path

import pytest

from voxtrain import restart
from voxtrain.checkpoint import stop
from voxtrain.checkpoint.slurm import SlurmJob, requeue, this_job
from voxtrain.durable import read_json, read_log_rows, write_json, write_whole
from voxtrain.fault import DONE, FAILED, STOPPED, WRONG_INPUT, InputError
from voxtrain.preflight import Start
from voxtrain.restart import requeue_if_warned, restarted
from voxtrain.run_folder import RunFolder
from voxtrain.settings import Settings, compose

COMMAND = ("+recipe=demo", "train.max_steps=40", "checkpoint.every=20", "checkpoint.state_every=20")
ALONE = (*COMMAND, "validation.when=never")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a stand-in for `scontrol` writes its arguments to; it fails where the folder holds `broken`."""
    program = tmp_path / "bin" / "scontrol"
    write_whole(
        program,
        f'#!/bin/sh\n[ -e {tmp_path}/broken ] && echo "Job is not requeueable" >&2 && exit 1\n'
        f'echo "$@" >> {tmp_path}/calls\n',
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setattr(stop, "_received", {signal.SIGUSR1})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "calls"


@cache_result
def settings(requeue: str) -> Settings:
    return compose([*COMMAND, f"checkpoint.requeue={requeue}"])


def start_with(*more: str, folder: str = "outputs/demo/1", status: str = "stopped", requeue: str = "auto") -> Start:
    start = Start(settings(requeue), RunFolder(Path(folder).resolve()), (*COMMAND, *more), resumes=False)
    record = {"slurm_job": "77", "overrides": list(start.overrides), "status": status}
    write_json(start.run.run, record)
    return start


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": ""}, None),
        ({"SLURM_JOB_ID": "5"}, SlurmJob("5", 0)),
        ({"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": "2"}, SlurmJob("5", 2)),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, SlurmJob("7_2", 0)),
    ],
)
def test_a_job_is_told_by_its_environment(environment: dict[str, str], job: SlurmJob | None) -> None:
    assert this_job(environment) == job


@pytest.mark.parametrize(
    ("status", "code", "called"),
    [
        ("stopped", STOPPED, True),
        ("interrupted", FAILED, True),
        ("finished", FAILED, True),  # what follows training was ended
        ("finished", DONE, False),
        ("refused", WRONG_INPUT, False),
        ("failed", FAILED, False),
    ],
)
def test_what_the_warning_ended_goes_back_into_the_queue(calls: Path, status: str, code: int, called: bool) -> None:
    requeue_if_warned(start_with(status=status), code)
    assert (calls.read_text() if calls.exists() else "") == ("requeue 77\n" if called else "")


def test_what_does_not_go_back(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requeue_if_warned(start_with(requeue="never"), STOPPED)
    monkeypatch.setattr(stop, "_received", {signal.SIGTERM, signal.SIGINT})
    requeue_if_warned(start_with(), STOPPED)
    monkeypatch.setattr(stop, "_received", {signal.SIGUSR1})
    monkeypatch.delenv("SLURM_JOB_ID")
    requeue_if_warned(start_with(), STOPPED)
    assert not calls.exists()


def test_a_queue_that_refuses_is_told_with_what_to_do(
    calls: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_with()
    (calls.parent / "broken").touch()
    requeue_if_warned(start, STOPPED)
    said = capsys.readouterr().err
    assert "Job is not requeueable" in said
    assert f"resume={start.run.root}" in said
    monkeypatch.setenv("PATH", "")
    assert "scontrol" in str(requeue(SlurmJob("77", 0)))


@pytest.mark.slow
def test_a_restarted_job_finds_its_own_run_alone(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other_job = start_with(), start_with(folder="outputs/demo/2")
    other_command = start_with("seed=5", folder="outputs/demo/3")
    write_json(other_job.run.run, {**read_json(other_job.run.run), "slurm_job": "78"})
    found: list[tuple[Path, Sequence[str]]] = []
    monkeypatch.setattr(restart, "resume_start", lambda folder, overrides: found.append((folder, overrides)) or own)
    for start in (own, other_job, other_command):
        start.run.state(0).mkdir(parents=True)
    assert restarted(COMMAND) is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert restarted(COMMAND) is own
    assert found == [(own.run.root.relative_to(Path.cwd()), [])]
    assert restarted([*COMMAND, "resume=latest"]) is None
    assert restarted([*COMMAND, "seed=6"]) is None
    assert len(found) == 1


def test_a_run_without_a_state_begins_anew_in_its_place(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = start_with("hydra.run.dir=out/here", folder="out/here")
    kept = start_with(folder="out/there")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert restarted([*COMMAND, "hydra.run.dir=out/here"]) is None
    assert not start.run.root.exists()
    assert kept.run.run.is_file()


def test_a_run_that_cannot_go_on_is_told(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_with().run.state(0).mkdir(parents=True)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(InputError, match=r"config\.yaml"):
        restarted(COMMAND)


class Job:
    """A command line in a folder, as Slurm would start it."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def start(self, restarts: int, command: Sequence[str]) -> subprocess.Popen[str]:
        environment = self.environment | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})
        whole = [sys.executable, "-m", "voxtrain", *command]
        return subprocess.Popen(
            whole, cwd=self.folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )


def warn(process: subprocess.Popen[str]) -> str:
    """Send SIGUSR1 to the process and all that it started, as Slurm does; returns what was said."""
    os.killpg(process.pid, signal.SIGUSR1)
    return process.communicate()[1]


def wait_for(path: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not list(path.glob(pattern)):
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"{pattern} did not come: {process.communicate()[1]}")
        time.sleep(0.01)


@pytest.mark.slow
def test_a_warned_job_ends_as_one_that_nobody_warned(calls: Path, cache: Path) -> None:
    """Warned before training, warned in training, started again each time with the same command line, and finished."""
    job = Job(calls.parent, cache)
    early = job.start(0, ALONE)
    wait_for(calls.parent, "outputs/demo/*/run.json", early)
    said = warn(early)
    assert (early.returncode, calls.read_text()) == (FAILED, "requeue 77\n"), said
    assert not list(calls.parent.glob("outputs/demo/*"))

    warned = job.start(1, ALONE)
    wait_for(calls.parent, "outputs/demo/*/state/step_0000000", warned)
    said = warn(warned)
    assert (warned.returncode, calls.read_text()) == (STOPPED, "requeue 77\n" * 2), said
    [folder] = calls.parent.glob("outputs/demo/*")
    run = RunFolder(folder)
    [stopped_at] = run.state_steps()
    assert stopped_at < 40

    again = job.start(2, ALONE)
    said = again.communicate()[1]
    assert again.returncode == DONE, said
    assert list(calls.parent.glob("outputs/demo/*")) == [folder]
    record = read_json(run.run)
    assert (record["resumed_from_step"], record["slurm_job"], record["status"]) == (stopped_at, "77", "finished")
    assert [int(row["step"]) for row in read_log_rows(run.metrics)] == list(range(1, 41))

    unwarned, plain = Job(calls.parent, cache), RunFolder(calls.parent / "whole")
    del unwarned.environment["SLURM_JOB_ID"]
    said = unwarned.start(0, [*ALONE, "hydra.run.dir=whole"]).communicate()[1]
    assert plain.state_steps() == [40], said
    ours, theirs = (read_log_rows(one.metrics) for one in (run, plain))
    losses = ("train/loss/total", "train/grad_norm", "train/lr")
    assert [[row[name] for name in losses] for row in ours] == [[row[name] for name in losses] for row in theirs]
    first, second = (read_json(one.state(40) / "state.json") for one in (run, plain))
    assert first["xxh3_128"] == second["xxh3_128"]

    done = job.start(3, ALONE)
    done.communicate()
    assert (done.returncode, calls.read_text()) == (DONE, "requeue 77\n" * 2)


@pytest.mark.slow
def test_what_follows_training_is_gone_on_with(calls: Path, cache: Path) -> None:
    job, command = Job(calls.parent, cache), (*COMMAND[:1], "train.max_steps=4", "listening.max_seconds=1")
    judging = job.start(0, command)
    wait_for(calls.parent, "outputs/demo/*/evaluation/post_hoc.log", judging)
    said = warn(judging)
    assert (judging.returncode, calls.read_text()) == (FAILED, "requeue 77\n"), said
    [folder] = calls.parent.glob("outputs/demo/*")
    assert read_json(folder / "run.json")["status"] == "finished"
    assert not (folder / "report.html").exists()
    again = job.start(1, command)
    said = again.communicate()[1]
    assert again.returncode == DONE, said
    assert list(calls.parent.glob("outputs/demo/*")) == [folder]
    assert (folder / "report.html").is_file()
