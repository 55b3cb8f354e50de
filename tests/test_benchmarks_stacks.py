"""The benchmark of the memory stacks makes real runs, resumes them, and prints what their receipts hold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.long_clips import CHARACTERS_PER_SECOND, SAMPLE_RATE, write_clips

ROOT = Path(__file__).parents[1]


def test_clips_are_as_long_as_said_and_each_is_another(tmp_path: Path) -> None:
    manifest = write_clips(tmp_path / "clips", 3, 2.0)
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    assert len({row["text"] for row in rows}) == len({row["parent"] for row in rows}) == 3
    sounds = [soundfile.read(row["audio"])[0] for row in rows]
    assert {len(sound) for sound in sounds} == {2 * SAMPLE_RATE}
    assert not np.array_equal(sounds[0], sounds[1])
    assert all(abs(len(row["text"]) - 2 * CHARACTERS_PER_SECOND) < 12 for row in rows)


@pytest.mark.slow
def test_every_case_is_run_and_resumed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.stacks", "--tiny", "--steps", "6", "--rows-per-step", "2"]
    done = subprocess.run([*command, "--scratch", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"case"')]
    assert [case["case"] for case in cases] == ["demo@24gb", "lora_demo@24gb"]
    for sitting in (sitting for case in cases for sitting in case["sittings"]):
        assert sitting["exit_code"] == 0
        assert sitting["steps"] == 3
        assert sitting["measured"]["classes"]["weights"] > 0
        assert sitting["predicted"]["peak_gib"] > 0
    assert not list(tmp_path.iterdir())  # scratch is freed
