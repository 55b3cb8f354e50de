"""Bad input at the front door: a clear message, exit code 2, and nothing left under outputs/."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from voxtrain.__main__ import main
from voxtrain.run_folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    code: int
    told: str


Door = Callable[..., Outcome]


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], cache: Path) -> Door:
    """The front door in an empty working folder, with the tiny model."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["voxtrain", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        return Outcome(int(stopped.value.code or 0), capfd.readouterr().err)

    monkeypatch.setenv("VOXTRAIN_CACHE", str(cache))
    return call


def nothing_left() -> bool:
    return not list(Path("outputs").rglob("*")) if Path("outputs").exists() else True


@pytest.fixture
def rows(clips: list[tuple[Path, str, str]]) -> list[dict[str, str]]:
    """Eight good rows over four parents."""
    return [{"audio": str(path), "text": text, "parent": parent} for path, text, parent in clips]


def write_manifest(rows: list[dict[str, object]], path: Path = Path("rows.jsonl")) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.manifest={path}"


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome.told
    for word in words:
        assert word in outcome.told, f"{word!r} is not in:\n{outcome.told}"
    assert "Traceback" not in outcome.told
    assert nothing_left()


def test_missing_manifest(door: Door) -> None:
    refused(door("+recipe=demo", "data.manifest=nowhere.jsonl"), "nowhere.jsonl")


def test_broken_line_is_told_by_number(door: Door, rows: list) -> None:
    path = Path("rows.jsonl")
    write_manifest(rows, path)
    path.write_text(path.read_text() + '{"audio": "x.wav", "text"\n')
    refused(door("+recipe=demo", f"data.manifest={path}"), "rows.jsonl", "9")


def test_no_text_column(door: Door, rows: list) -> None:
    for row in rows:
        del row["text"]
    refused(door("+recipe=demo", write_manifest(rows)), "text")


@pytest.mark.slow
def test_every_row_rejected_shows_the_ledger(door: Door, rows: list) -> None:
    Path("broken.wav").write_text("this is no audio")
    rows[0]["text"] = " "
    for row in rows[1:4]:
        row["audio"] = "absent.wav"
    for row in rows[4:]:
        row["audio"] = "broken.wav"
    for number, row in enumerate(rows):
        row["text"] += f" {number}" if number else ""
    refused(door("+recipe=demo", write_manifest(rows)), "empty_text", "missing_audio", "unreadable_audio")


@pytest.mark.slow
def test_reject_share(door: Door, rows: list) -> None:
    for row in rows[:3]:
        row["text"] = ""
    refused(door("+recipe=demo", write_manifest(rows), "clean.max_reject_share=0.2"), "max_reject_share", "empty_text")


@pytest.mark.slow
def test_one_parent_cannot_be_split(door: Door, rows: list) -> None:
    for row in rows:
        row["parent"] = "one"
    refused(door("+recipe=demo", write_manifest(rows)), "group")


def test_wrong_model_folder(door: Door, rows: list) -> None:
    Path("model").mkdir()
    refused(door("+recipe=demo", write_manifest(rows), "model.path=model"), "model.path", "config.json")


@pytest.mark.slow
def test_model_that_cannot_be_downloaded(door: Door, rows: list, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("+recipe=demo", "model=voxcpm2", "model.path=nobody/nothing", write_manifest(rows))
    refused(door(*arguments), "nobody/nothing", "model.path")


def test_unknown_recipe(door: Door) -> None:
    refused(door("+recipe=demmo"), "demmo", "full_sft_24gb")


@pytest.mark.slow
def test_recipe_without_plus(door: Door) -> None:
    refused(door("recipe=demo"), "+recipe=")


def test_typo_in_a_recipe_file(door: Door, tmp_path: Path) -> None:
    (tmp_path / "mine" / "recipe").mkdir(parents=True)
    recipe = tmp_path / "mine" / "recipe" / "typo.yaml"
    picks = "defaults:\n  - override /model: tiny\n  - override /data: demo\n  - override /memory: cpu\n"
    recipe.write_text(f"# @package _global_\n{picks}train: {{max_stepz: 3}}\nvalidatoin: {{draws: 2}}\n")
    outcome = door(f"hydra.searchpath=[file://{tmp_path}/mine]", "+recipe=typo")
    refused(outcome, "train.max_stepz", "max_steps", "validatoin")


def test_negative_sizes_are_told_together(door: Door) -> None:
    outcome = door("+recipe=demo", "train.batch_size=-1", "train.max_steps=0", "clean.min_seconds=-2")
    refused(outcome, "train.batch_size = -1", "train.max_steps = 0", "clean.min_seconds = -2", "3 things are wrong")


@pytest.mark.slow
def test_unknown_key_and_wrong_type_are_told_together(door: Door) -> None:
    outcome = door("+recipe=demo", "train.max_step=5", "optimizer.lr=fast")
    refused(outcome, "train.max_step", "train.max_steps", "optimizer.lr = fast")


def test_a_setting_and_a_file_are_told_together(door: Door) -> None:
    refused(door("+recipe=demo", "train.grad_accum=-4", "data.manifest=nowhere.jsonl"), "grad_accum", "nowhere.jsonl")


def test_manifest_not_given(door: Door) -> None:
    refused(door("+recipe=full_sft_24gb"), "data.manifest")


@pytest.mark.slow
def test_run_folder_that_is_not_empty(door: Door) -> None:
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep me")
    refused(door("+recipe=demo", "hydra.run.dir=mine"), "not empty", "name another folder")
    assert Path("mine/notes.txt").read_text() == "keep me"
    RunFolder(Path("mine")).state(20).mkdir(parents=True)
    refused(door("+recipe=demo", "hydra.run.dir=mine"), "not empty", "resume=")


def test_no_space_for_the_planned_checkpoints(door: Door, rows: list, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    refused(door("+recipe=demo", write_manifest(rows)), "checkpoint.every", "MiB are free")


def test_no_gpu(door: Door, rows: list, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.setattr("voxtrain.preflight.usable_gpus", lambda: 0)
    refused(door("+recipe=demo", "trainer=one_gpu", write_manifest(rows)), "no NVIDIA GPU", "voxtrain.doctor")


def test_dropout_is_refused(door: Door) -> None:
    refused(door("+recipe=lora_demo", "tuning.dropout=0.1"), "tuning.dropout")


@pytest.mark.slow
def test_resume_of_no_run_folder(door: Door) -> None:
    refused(door("resume=nowhere"), "nowhere", "no run folder")


def test_resume_in_a_sweep(door: Door) -> None:
    refused(door("-m", "+recipe=demo", "resume=x", "train.grad_accum=2,4"), "resume")


@pytest.mark.slow
def test_faults_of_any_job_stop_the_sweep(door: Door) -> None:
    refused(door("-m", "+recipe=demo", "train.grad_accum=2,-4"), "grad_accum = -4")


@pytest.mark.parametrize("flags", [["--help"], ["--cfg", "job", "+recipe=demo"]])
@pytest.mark.slow
def test_looking_imports_no_torch(flags: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['voxtrain', *sys.argv[1:]]\n"
        "import voxtrain.__main__ as door\n"
        "try:\n    door.main()\nfinally:\n    assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    command = [sys.executable, "-c", code, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    assert not list(tmp_path.iterdir())
