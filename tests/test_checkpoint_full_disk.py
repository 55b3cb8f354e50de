"""A run whose disk fills up at any of its own files: told in words, nothing lost, and gone on with bit for bit."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from faulty_disk import FaultyDisk, installed

from voxtrain.checkpoint.facts import check_content, read_facts
from voxtrain.checkpoint.weights import check_content as check_checkpoint
from voxtrain.durable import read_log_rows
from voxtrain.fault import DONE, FAILED, STOPPED, WRONG_INPUT
from voxtrain.preflight import plan_start
from voxtrain.run_folder import RunFolder
from voxtrain.train import run_to_end

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")]

QUICK = (
    *("+recipe=demo", "train.max_steps=4", "checkpoint.every=2", "checkpoint.state_every=2", "validation.when=never"),
    *("train.batch_size=2", "train.grad_accum=1", "train.max_rows=12"),
)
FILLS = ("open", "write", "replace", "symlink", "rename")
"""Calls that a full disk refuses; all others of a save are test_checkpoint_faults.py's."""
TIMED = {"train/seconds", "train/peak_gib", "train/positions_per_second"}
HARMLESS = ("saves.csv", "rows.jsonl", "memory.json")
"""Files that no run ends for: what a save took, the outlier trace, what memory was held."""


def sitting(overrides: Sequence[str], disk: FaultyDisk) -> int:
    """Train in this process until the end or a failure; returns the exit code."""
    start = plan_start(overrides)
    start.run.root.mkdir(exist_ok=True)
    disk.on = True
    try:
        with installed(disk):
            return run_to_end(start, in_sweep=False)
    finally:
        disk.on = False


def learnt(run: RunFolder) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Every logged figure that is not a time, and the checksums of the last state."""
    rows = [{name: value for name, value in row.items() if name not in TIMED} for row in read_log_rows(run.metrics)]
    return rows, read_facts(run).xxh3_128


def places(calls: Sequence[str]) -> list[int]:
    """The first of the calls that are said the same way, and of writes to the run's own files the last as well."""
    numbered = [(call, number) for number, call in enumerate(calls) if call.split()[0] in FILLS]
    first, last = dict(reversed(numbered)), dict(numbered)
    return sorted({*first.values(), *(n for call, n in last.items() if call.endswith((".csv", ".json")))})


def test_wherever_the_disk_fills_up_it_is_told_and_the_run_goes_on(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(tmp_path / "run")
    command = [*QUICK, f"data.cache_dir={cache}", "hydra.run.dir=run", "checkpoint.background=false"]
    assert sitting(command, FaultyDisk(run.root)) == DONE
    shutil.rmtree(run.root)
    sound = FaultyDisk(run.root)
    assert sitting(command, sound) == DONE
    whole, numbers = learnt(run), places(sound.calls)
    files = {sound.calls[number].split()[1].split("_")[-1] for number in numbers}
    assert files >= {"metrics.csv", "saves.csv", "run.json", "memory.json", "config.yaml", "rows.jsonl", "state.json"}
    capsys.readouterr()
    codes = []
    for number in numbers:
        shutil.rmtree(run.root, ignore_errors=True)
        disk = FaultyDisk(run.root, number, errno.ENOSPC, for_good=True)
        code = sitting(command, disk)
        told = capsys.readouterr().err
        where = f"{number} {disk.calls[number]}: {code} {told}"
        codes.append(code)
        assert "No space left on device" in told or "the disk is low" in told, where
        assert "Traceback" not in told, where
        states = run.state_steps()
        if not states:
            assert code in (FAILED, WRONG_INPUT), where
            assert f"remove {run.root} and start again" in told or "nothing was started" in told, where
            continue
        assert code in (FAILED, STOPPED), where
        assert f"resume={run.root}" in told, where
        check_content(run.state(states[-1]), read_facts(run))
        for step in run.checkpoint_steps():
            check_checkpoint(run.checkpoint(step))
        assert sitting([f"resume={run.root}"], FaultyDisk(run.root)) == DONE, where + capsys.readouterr().err
        assert learnt(run) == whole, where
        capsys.readouterr()
    assert codes.count(STOPPED) > 5
    assert codes.count(FAILED) > 5
    for number in (number for number in numbers if sound.calls[number].startswith("write")):
        if sound.calls[number].endswith(HARMLESS):
            shutil.rmtree(run.root)
            assert sitting(command, FaultyDisk(run.root, number)) == DONE, sound.calls[number]
            assert learnt(run) == whole
