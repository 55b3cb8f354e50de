"""Damage on the disk, seen by real processes: told with exit code 2 or 1, the rest untouched, and mended by a copy."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from voxtrain.durable import read_json, read_log_rows
from voxtrain.fault import DONE, FAILED, WRONG_INPUT
from voxtrain.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = (
    *("+recipe=lora_demo", "train.max_steps=4", "checkpoint.every=2", "checkpoint.state_every=2"),
    *("validation.when=never", "listening.max_seconds=1", "train.batch_size=2", "train.grad_accum=1"),
)


class Doors:
    """Real processes in one folder with one cache."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: str, door: str = "voxtrain") -> tuple[int, str]:
        environment = {**os.environ, "VOXTRAIN_CACHE": str(self.folder / "cache"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", door, *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, " ".join((done.stderr + done.stdout).split())

    def run(self, name: str, *more: str) -> RunFolder:
        code, said = self(*SHORT, *more, f"hydra.run.dir={name}")
        assert code == DONE, said
        return RunFolder(self.folder / name)


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Doors:
    return Doors(tmp_path_factory.mktemp("damage"))


@pytest.fixture(scope="module")
def whole(doors: Doors) -> RunFolder:
    return doors.run("whole")


@pytest.fixture(scope="module")
def foreign(doors: Doors) -> RunFolder:
    """A run of an adapter of another rank."""
    return doors.run("foreign", "tuning.rank=16")


@pytest.fixture
def run(doors: Doors, whole: RunFolder) -> Iterator[RunFolder]:
    """A copy of a run of four steps, which is to go on to six."""
    shutil.copytree(whole.root, doors.folder / "run", symlinks=True)
    yield RunFolder(doors.folder / "run")
    shutil.rmtree(doors.folder / "run")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replace(path, bytes(content))


def cut(path: Path) -> None:
    replace(path, path.read_bytes()[:-100])


def replace(path: Path, content: bytes) -> None:
    """A new file, since the old one may be linked to the base model's."""
    path.unlink()
    path.write_bytes(content)


def contents(root: Path) -> dict[str, str]:
    """The checksum of every file of a run, its log apart."""
    files = [path for path in root.rglob("*") if path.is_file() and path.suffix != ".log"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip_weights(state: Path, _: Path) -> None:
    flip(state / "weights.safetensors")


def cut_moments(state: Path, _: Path) -> None:
    cut(state / "optimizer.safetensors")


def put_another(state: Path, other: Path) -> None:
    shutil.rmtree(state)
    shutil.copytree(other, state)


DAMAGES: tuple[tuple[Callable[[Path, Path], None], str], ...] = (
    (flip_weights, "weights.safetensors is not what was written (its checksum differs)"),
    (cut_moments, "optimizer.safetensors was cut short or changed"),
    (put_another, "it was saved under other settings than those in config.yaml"),
)


def test_a_damaged_state_is_refused_and_a_copy_of_it_mends_everything(
    doors: Doors, run: RunFolder, whole: RunFolder, foreign: RunFolder
) -> None:
    for damage, words in DAMAGES:
        damage(run.state(4), foreign.state(4))
        before = contents(run.root)
        code, said = doors(f"resume={run.root}", "train.max_steps=6")
        assert (code, words in said) == (WRONG_INPUT, True), said
        assert str(run.state(4)) in said
        assert "restore" in said
        assert contents(run.root) == before
        put_another(run.state(4), whole.state(4))
    code, said = doors(f"resume={run.root}", "train.max_steps=6")
    assert (code, read_json(run.run)["resumed_from_step"]) == (DONE, 4), said
    assert [int(row["step"]) for row in read_log_rows(run.metrics)] == [1, 2, 3, 4, 5, 6]


def test_another_rank_is_refused_with_both_numbers(doors: Doors, run: RunFolder) -> None:
    before = contents(run.root)
    code, said = doors(f"resume={run.root}", "train.max_steps=6", "tuning.rank=16")
    ranks = {read_json(run.checkpoint(4) / "lora_config.json")["lora_config"]["r"], 16}
    assert code == WRONG_INPUT
    assert f"tuning.rank = 16 the run was started with {(ranks - {16}).pop()}" in said
    assert contents(run.root) == before


def test_damaged_checkpoints_are_told_and_the_sound_one_is_judged(
    doors: Doors, run: RunFolder, whole: RunFolder, foreign: RunFolder
) -> None:
    """A flipped bit and another model; then every checkpoint is damaged, and nothing can be judged."""
    flip(run.checkpoint(0) / "lora_weights.safetensors")
    put_another(run.checkpoint(2), foreign.checkpoint(2))
    before = contents(run.checkpoints)
    code, said = doors(str(run.root), door="voxtrain.validation")
    assert code == FAILED, said
    assert "step 0 is not judged: its content is not what was written (the checksum differs)" in said
    assert "step 2 is not judged: it is the checkpoint of another model" in said
    told = read_json(run.selection)
    assert (told["selected_step"], [entry["step"] for entry in told["not_judged"]]) == (4, [0, 2])
    code, said = doors("export", str(run.root), str(doors.folder / "out"), "--step", "2", door="voxtrain.checkpoint")
    assert (code, "the checkpoint of another model" in said) == (WRONG_INPUT, True), said
    assert not (doors.folder / "out").exists()
    assert contents(run.checkpoints) == before

    shutil.rmtree(run.evaluation)
    cut(run.checkpoint(4) / "lora_weights.safetensors")
    code, said = doors(str(run.root), door="voxtrain.validation")
    assert (code, "step 4: its content is not what was written" in said) == (WRONG_INPUT, True), said
    put_another(run.checkpoint(4), whole.checkpoint(4))
    assert doors(str(run.root), door="voxtrain.validation")[0] == FAILED
    assert read_json(run.selection)["selected_step"] == 4
