"""Whole runs in two processes beside the same in one: equal records and weights, and every way to be interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from voxtrain.durable import read_json, read_log_rows
from voxtrain.run_folder import RunFolder

MODEL, ADAPTER = "model.safetensors", "lora_weights.safetensors"

pytestmark = pytest.mark.slow

STEPS = 10
SHORT = ("checkpoint.every=5", "checkpoint.state_every=5", "validation.when=never")
TWO = "trainer.devices=2"
TOLD = ("train/loss/total", "train/loss/diff", "train/loss/stop", "train/grad_norm", "train/lr", "train/rows")


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[str]]:
    """Starts voxtrain; latents are made once for all runs."""
    cache = tmp_path_factory.mktemp("rank_runs_cache")
    environment = {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}

    def start(where: Path, *arguments: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-m", "voxtrain", *arguments]
        return subprocess.Popen(line, cwd=where, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def said_by(process: subprocess.Popen[str], code: int) -> str:
    """What a process says on stderr until it ends with `code`."""
    _, said = process.communicate(timeout=400)
    assert process.returncode == code, said
    return said


def wait_for_steps(run: RunFolder, steps: int) -> None:
    until = time.monotonic() + 240
    while len(read_log_rows(run.metrics)) < steps:
        assert time.monotonic() < until, "the run does not get on"
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks of a run, in their order."""
    children = psutil.Process(process.pid).children()
    found = [child for child in children if any("spawn_main" in part for part in child.cmdline())]
    return sorted(found, key=lambda child: child.create_time())


def assert_equal(one: RunFolder, two: RunFolder, first_exact: int = 0) -> None:
    """Equal up to the order of sums: measured 2e-8 a step; the first steps bit for bit where both had as many ranks."""
    rows = [list(read_log_rows(run.metrics)) for run in (one, two)]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for number, (mine, theirs) in enumerate(zip(*rows, strict=True)):
        for name in TOLD:
            wanted = float(mine[name]) if number < first_exact else pytest.approx(float(mine[name]), rel=1e-5)
            assert float(theirs[name]) == wanted, (number, name)
    name = MODEL if (one.checkpoint(STEPS) / MODEL).is_file() else ADAPTER
    mine, theirs = (load_file(run.checkpoint(STEPS) / name) for run in (one, two))
    assert mine.keys() == theirs.keys()
    apart = sum((theirs[key] - tensor).square().sum().item() for key, tensor in mine.items())
    assert (apart / sum(tensor.square().sum().item() for tensor in mine.values())) ** 0.5 < 1e-5


@pytest.mark.parametrize("recipe", ["demo", "lora_demo"])
def test_two_processes_equal_one_and_a_run_goes_on_with_either(
    recipe: str, tmp_path: Path, command: Callable[..., subprocess.Popen[str]]
) -> None:
    begin = (f"+recipe={recipe}", f"train.max_steps={STEPS}", *SHORT)
    said_by(command(tmp_path, *begin, "hydra.run.dir=one"), 0)
    said_by(command(tmp_path, *begin, TWO, "hydra.run.dir=two"), 0)
    one, two, broken = (RunFolder(tmp_path / name) for name in ("one", "two", "broken"))
    assert_equal(one, two)
    assert [read_json(run.run)["processes"] for run in (one, two)] == [1, 2]
    assert one.checkpoint_steps() == two.checkpoint_steps() == [0, 5, STEPS]

    process = command(tmp_path, *begin, TWO, "hydra.run.dir=broken")
    wait_for_steps(broken, 2)
    process.send_signal(signal.SIGTERM)
    said = said_by(process, 3)
    assert "SIGTERM was received" in said
    assert "Traceback" not in said
    stopped = max(broken.state_steps())
    assert len(read_log_rows(broken.metrics)) == stopped == read_json(broken.run)["steps"]
    assert 2 <= stopped < STEPS

    said_by(command(tmp_path, f"resume={broken.root}", "trainer.devices=1"), 0)
    assert_equal(two, broken, first_exact=stopped)
    assert read_json(broken.run)["processes"] == 1


@pytest.mark.parametrize("victim", ["rank 1", "the parent"])
def test_when_one_process_is_killed_all_end(
    victim: str, tmp_path: Path, command: Callable[..., subprocess.Popen[str]]
) -> None:
    process = command(tmp_path, "+recipe=demo", "train.max_steps=2000", *SHORT, TWO, "hydra.run.dir=run")
    run = RunFolder(tmp_path / "run")
    wait_for_steps(run, 2)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    killed = time.monotonic()
    (ranks[1] if victim == "rank 1" else process).send_signal(signal.SIGKILL)
    said = said_by(process, 1 if victim == "rank 1" else -signal.SIGKILL)
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert alive == []
    assert time.monotonic() - killed < 60
    if victim == "rank 1":
        assert "Process 1 of 2 was ended by SIGKILL" in said
        assert "Traceback" not in said
        record = read_json(run.run)
        assert (record["status"], record["exit_code"]) == ("failed", 1)
        assert record["steps"] == len(read_log_rows(run.metrics))


def test_a_signal_to_one_rank_alone_stops_both(tmp_path: Path, command: Callable[..., subprocess.Popen[str]]) -> None:
    process = command(tmp_path, "+recipe=demo", "train.max_steps=2000", *SHORT, TWO, "hydra.run.dir=run")
    run = RunFolder(tmp_path / "run")
    wait_for_steps(run, 2)
    ranks: Sequence[psutil.Process] = ranks_of(process)
    ranks[1].send_signal(signal.SIGTERM)
    assert "SIGTERM was received" in said_by(process, 3)
    assert max(run.state_steps()) == len(read_log_rows(run.metrics))
