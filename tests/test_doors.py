"""What the doors of a run folder take: a setting that a door makes no use of is told, before anything is done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import voxtrain.data.__main__ as data
import voxtrain.listening.__main__ as listening
import voxtrain.manifest.__main__ as manifest
import voxtrain.memory.__main__ as memory
import voxtrain.validation.__main__ as validation
from voxtrain.composition import unused_overrides
from voxtrain.durable import write_jsonl, write_whole
from voxtrain.fault import InputError
from voxtrain.run_folder import DataFolder, RunFolder
from voxtrain.settings import compose

Door = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def config() -> str:
    """The settings of a run of the tiny model."""
    settings = compose(["+recipe=lora_24gb", "model=tiny", "data.manifest=rows.jsonl"])
    return OmegaConf.to_yaml(OmegaConf.create(settings.plain))


@pytest.fixture
def run(tmp_path: Path, config: str) -> RunFolder:
    """A run on rows of 2 and 4 seconds; a longer one is for validation."""
    run = RunFolder(tmp_path / "run")
    write_whole(run.config, config)
    row = {"audio": "/a.wav", "text": "hi", "group": "p", "line": 1}
    for split, lasting in (("train", (2.0, 4.0)), ("validation", (9.0,))):
        rows = [{**row, "id": str(seconds), "duration": seconds} for seconds in lasting]
        write_jsonl(DataFolder(run.data).rows(split), rows)
    return run


def refused(door: Door, *arguments: str) -> dict[str, str]:
    """Where the faults are that a door tells, with their remedies."""
    with pytest.raises(InputError) as told:
        door(list(arguments))
    return {fault.where: fault.remedy for fault in told.value.faults}


@pytest.mark.parametrize(
    ("door", "idle", "used"),
    [
        (validation.main, ("train.max_steps=3", "memory=16gb", "validation.when=never"), "validation.draws"),
        (validation.main, ("train.loss_weights.stop_positive=2",), "train.loss_weights.stop,"),
        (listening.main, ("validation.draws=4", "seed=3"), "listening, model"),
        (memory.main, ("optimizer.lr=3", "validation=fixed_draws", "data.cache_dir=here"), "clean.max_seconds"),
    ],
)
def test_what_a_door_makes_no_use_of_is_told(door: Door, idle: tuple[str, ...], used: str, run: RunFolder) -> None:
    found = refused(door, str(run.root), *idle)
    assert list(found) == list(idle)
    assert all(used in remedy for remedy in found.values()), found


def test_selecting_alone_does_not_judge(run: RunFolder) -> None:
    found = refused(validation.main, str(run.root), "--select-only", "validation.draws=4", "validation.rule=lowest")
    assert list(found) == ["validation.draws=4"]


def test_what_is_of_use_and_wrong_is_told_along(run: RunFolder) -> None:
    found = refused(memory.main, str(run.root), "seed=3", "memory.state=bogus", "model=voxcpm2", "clean=standard")
    assert list(found) == ["seed=3", "memory.state = bogus"]


def test_the_manifest_door(tmp_path: Path) -> None:
    given = ("+recipe=demo", "data.manifest=none.jsonl", f"out={tmp_path / 'out'}", "train.grad_accum=2", "clean=none")
    found = refused(manifest.main, *given, "optimizer.lr=3", "train.max_steps=9")
    assert list(found)[:2] == ["optimizer.lr=3", "train.max_steps=9"]
    assert any("none.jsonl" in where for where in found)
    assert len(found) == 3
    assert not (tmp_path / "out").exists()


def test_the_data_door(tmp_path: Path) -> None:
    assert list(refused(data.main, f"data.cache_dir={tmp_path}", "data.manifest=x")) == ["data.manifest=x"]


@pytest.mark.parametrize(
    ("override", "is_used"),
    [
        ("train.loss_weights.stop=1", True),
        ("train.loss_weights={stop: 1}", True),
        ("train.loss_weights.stop_positive=1", False),
        ("logger=wandb", True),
        ("logger.mode=offline", True),
        ("loggers=wandb", False),
        ("+logger=wandb", True),
        ("~seed", False),
    ],
)
def test_use_goes_by_whole_names(override: str, is_used: bool) -> None:
    found = unused_overrides([override], ["train.loss_weights.stop", "logger"])
    assert [fault.where for fault in found] == ([] if is_used else [override])


@pytest.mark.slow
def test_a_run_is_planned_with_its_own_training_rows(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.main([str(run.root), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["longest"]["audio_positions"] == 25  # 4 s, neither 9 nor 30
    assert memory.main([str(run.root), "clean.max_seconds=3", "memory=16gb", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["longest"]["audio_positions"] == 13  # 2 s
    assert said["card_gib"] == 16.0
    assert any("nowhere.jsonl" in where for where in refused(memory.main, str(run.root), "data.manifest=nowhere.jsonl"))
    DataFolder(run.data).rows("train").unlink()
    assert any("rows.jsonl" in where for where in refused(memory.main, str(run.root)))  # prepared never, or not yet


def test_one_run_is_planned_at_a_time(run: RunFolder) -> None:
    assert list(refused(memory.main, str(run.root), str(run.root))) == ["python -m voxtrain.memory"]
