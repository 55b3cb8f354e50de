"""Judges as processes, killed, doubled, and with a checkpoint deleted under them: the end is the same, or says why."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from judged_run import make_run

from voxtrain.durable import read_json
from voxtrain.fault import DONE, FAILED, WRONG_INPUT
from voxtrain.run_folder import RunFolder
from voxtrain.validation.table import read_rows

pytestmark = pytest.mark.slow
STEPS = (0, 10, 20, 30)
LONG = ("demo", "validation.draws=24")
PATIENCE_S = 120


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, cache: Path, clips: list[tuple[Path, str, str]]) -> RunFolder:
    """A run that nobody has judged."""
    return make_run(tmp_path_factory.mktemp("full") / "run", cache, clips[:5], STEPS, *LONG)


@pytest.fixture(scope="module")
def whole(pristine: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The records of a judge whom nobody disturbed."""
    run = copied(pristine, tmp_path_factory.mktemp("whole"))
    judge = started(run)
    assert ended(judge) == DONE
    return records(run)


@pytest.fixture
def run(pristine: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run to do things to."""
    return copied(pristine, tmp_path)


def copied(run: RunFolder, folder: Path) -> RunFolder:
    return RunFolder(shutil.copytree(run.root, folder / "run", symlinks=True))


def records(run: RunFolder) -> pa.Table:
    found = read_rows(run)
    assert found is not None
    return found


def started(run: RunFolder) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "voxtrain.validation", str(run.root)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(judge: subprocess.Popen[str]) -> int:
    judge.communicate(timeout=PATIENCE_S)
    return judge.returncode


def wait_for_records(run: RunFolder, judge: subprocess.Popen[str]) -> None:
    """Until the first checkpoint is judged."""
    until = time.monotonic() + PATIENCE_S
    while not run.evaluated_rows.is_file():
        assert judge.poll() is None, judge.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_killed_judge_is_started_again(run: RunFolder, whole: pa.Table) -> None:
    judge = started(run)
    wait_for_records(run, judge)
    judge.send_signal(signal.SIGKILL)
    assert ended(judge) == -signal.SIGKILL
    assert set(records(run)["step"].to_pylist()) < set(STEPS)
    assert ended(started(run)) == DONE
    assert records(run).equals(whole)
    assert not run.evaluation_lock.exists()


def test_of_two_at_once_one_judges_and_the_other_names_it(run: RunFolder, whole: pa.Table) -> None:
    judge = started(run)
    wait_for_records(run, judge)
    judge.send_signal(signal.SIGSTOP)  # it holds the lock, however long the other takes
    other = started(run)
    said, _ = other.communicate(timeout=PATIENCE_S)
    assert other.returncode == WRONG_INPUT, said
    assert f"process {judge.pid}" in said
    judge.send_signal(signal.SIGCONT)
    assert ended(judge) == DONE
    assert records(run).equals(whole)


def test_a_checkpoint_that_goes_while_others_are_judged_is_told(run: RunFolder, whole: pa.Table) -> None:
    judge = started(run)
    wait_for_records(run, judge)
    shutil.rmtree(run.checkpoint(STEPS[-1]))
    said, _ = judge.communicate(timeout=PATIENCE_S)
    assert judge.returncode == FAILED, said
    choice = read_json(run.selection)
    assert [entry["step"] for entry in choice["not_judged"]] == [STEPS[-1]]
    assert "no longer there" in choice["not_judged"][0]["reason"]
    assert records(run).equals(whole.filter(pc.field("step") != STEPS[-1]))
