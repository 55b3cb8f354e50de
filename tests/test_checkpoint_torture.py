"""Runs killed by SIGKILL at random moments: resumed, they end as if nothing had been."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.killed_run import KINDS, Whole, _differences
from voxtrain.run_folder import RunFolder

ROOT = Path(__file__).parents[1]


def torture(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "benchmarks.torture", str(folder), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-6000:]
    return done.stdout


@pytest.mark.slow
def test_five_killed_runs_one_of_each_kind_end_as_if_nothing_had_been(tmp_path: Path) -> None:
    said = torture(tmp_path, "--runs", "5", "--results", str(tmp_path / "torture.md"))
    assert "5 of 5 runs killed and resumed, 0 of them" in said
    outcomes = [json.loads(line) for line in (tmp_path / "outcomes.jsonl").read_text().splitlines()]
    assert [outcome["kind"] for outcome in outcomes] == [kind.name for kind in KINDS]
    assert all(outcome["state_at_kill"] is not None for outcome in outcomes)

    whole = Whole(**json.loads((tmp_path / "whole_0" / "whole.json").read_text()))
    run = RunFolder(tmp_path / "whole_0" / "whole")
    unkilled = ["there was no whole state when it was killed"]
    assert _differences(run, whole, None) == unkilled
    (run.checkpoints / ".writing_1_step_0000001").mkdir()
    others = (
        replace(whole, state={**whole.state, "weights.safetensors": "another"}),
        replace(whole, checkpoints=dict(list(whole.checkpoints.items())[1:])),
        replace(whole, rows=[*whole.rows[:-1], {**whole.rows[-1], "train/loss/diff": "0.1"}]),
    )
    assert [len(_differences(run, other, None)) for other in others] == [3, 3, 3], "the comparison cannot fail"


@pytest.mark.torture
def test_a_hundred_killed_runs_end_as_if_nothing_had_been(tmp_path: Path) -> None:
    """Writes benchmarks/results/torture.md."""
    assert "100 of 100 runs killed and resumed, 0 of them" in torture(tmp_path, "--runs", "100")
