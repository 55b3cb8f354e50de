"""What a run may change when it goes on: the written list, and the course of the learning rate by choice."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from voxtrain.checkpoint.changes import can_change
from voxtrain.checkpoint.facts import read_facts
from voxtrain.durable import read_log_rows, write_json
from voxtrain.fault import InputError
from voxtrain.preflight import Start, plan_start, resume_start, steps_for_nothing, world_faults
from voxtrain.run_folder import RunFolder
from voxtrain.settings import compose

LORA = ("+recipe=lora_demo", "train.max_steps=100", "schedule.final_share=0.5", "tuning.rank=4")


@pytest.fixture(scope="module")
def config(cache: Path) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(compose([*LORA, f"data.cache_dir={cache}"]).plain))


@pytest.fixture
def run(tmp_path: Path, cache: Path, config: str) -> RunFolder:
    """A run that was stopped after 60 of 100 steps, as far as its settings tell."""
    run = RunFolder(tmp_path / "run")
    run.state(60).mkdir(parents=True)
    given = [*LORA, f"data.cache_dir={cache}"]
    run.config.write_text(config)
    write_json(run.run, {"status": "stopped", "overrides": given})
    return run


def going_on(run: RunFolder, *overrides: str) -> Start:
    """The start of the next sitting, whose settings are written down as a run does it."""
    start = resume_start(run.root, overrides)
    run.config.write_text(OmegaConf.to_yaml(OmegaConf.create(start.settings.plain)))
    return start


def lr_factor(start: Start, step: int) -> float:
    return start.settings.schedule.factor(step, start.settings.train.steps_of_schedule())


@pytest.mark.slow
def test_more_steps_keep_the_schedule_and_hold_its_last_rate_beyond_it(run: RunFolder) -> None:
    before = going_on(run)
    for total in (150, 200):
        start = going_on(run, f"train.max_steps={total}")
        assert (start.settings.train.total_steps(), start.settings.train.steps_of_schedule()) == (total, 100)
        assert [lr_factor(start, step) for step in range(100)] == [lr_factor(before, step) for step in range(100)]
        assert {lr_factor(start, step) for step in range(100, total)} == {0.5}
        assert world_faults(start) == []


@pytest.mark.slow
def test_a_new_schedule_is_that_of_a_run_begun_with_all_steps(run: RunFolder) -> None:
    going_on(run, "train.max_steps=150")
    start = going_on(run, "train.max_steps=200", "train.schedule_on_resume=new", "optimizer.lr=0.25")
    assert (start.settings.optimizer.lr, start.settings.train.steps_of_schedule()) == (0.25, 200)
    begun = compose([*LORA, "train.max_steps=200"])
    assert [lr_factor(start, n) for n in range(200)] == [begun.schedule.factor(n, 200) for n in range(200)]
    assert going_on(run).settings.plain == start.settings.plain, "the next sitting goes on as this one did"


@pytest.mark.slow
def test_checkpoints_of_another_course_are_not_passed_off_as_those_of_a_new_one(run: RunFolder) -> None:
    """A run that was killed between two saves comes by the second once more, and would keep what it finds there."""
    run.checkpoint(60).mkdir(parents=True)
    changes = ("optimizer.lr=0.25", "schedule.final_share=0.1", "train.max_steps=150")
    for change in changes:
        assert resume_start(run.root, ["train.schedule_on_resume=new", change]).resumes
    run.checkpoint(80).mkdir()
    for change in changes:
        with pytest.raises(InputError, match=r"step 80 lie beyond the newest state \(step 60\)") as caught:
            resume_start(run.root, ["train.schedule_on_resume=new", change])
        assert str(run.evaluation) in str(caught.value)
    going_on(run, "train.schedule_on_resume=new", "checkpoint.every=7")
    going_on(run, "train.schedule_on_resume=keep", "train.max_steps=150")


@pytest.mark.slow
def test_steps_beyond_a_schedule_that_ends_at_zero_are_told(run: RunFolder) -> None:
    """A new run with a schedule that is too short is refused; one that goes on may, and is told."""
    going_on(run, "train.schedule_on_resume=new", "schedule.final_share=0.0")
    longer = resume_start(run.root, ["train.max_steps=150", "train.schedule_on_resume=keep"])
    [fault] = steps_for_nothing(longer.settings)
    assert "steps 101 to 150 would learn nothing" in fault.what
    assert "train.schedule_on_resume=new" in fault.remedy
    assert world_faults(longer) == []
    assert fault in world_faults(replace(longer, resumes=False))
    assert steps_for_nothing(resume_start(run.root, ["train.max_steps=150"]).settings) == [], "new, as said before"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("tuning.rank=8", ("tuning.rank = 8", "started with 4")),
        ("seed=7", ("seed = 7", "no longer be the same run")),
        ("train.grad_accum=9", ("train.grad_accum = 9", "no longer be the same run")),
        ("train.max_steps=99", ("train.max_steps = 99", "may only grow")),
        ("optimizer.lr=0.25", ("optimizer.lr = 0.25", "train.schedule_on_resume=new")),
        ("schedule.final_share=0.1", ("schedule.final_share = 0.1", "train.schedule_on_resume=new")),
        ("train.schedule_steps=300", ("train.schedule_steps = 300", "train.schedule_on_resume=new")),
        ("data.group_by=speaker", ("data.group_by = speaker", "no longer be the same run")),
    ],
)
def test_what_may_not_change_is_refused_with_both_values(run: RunFolder, change: str, told: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        resume_start(run.root, [change])
    [fault] = caught.value.faults
    assert all(words in str(fault) for words in told)


def test_everything_on_the_list_may_change(run: RunFolder, tmp_path: Path) -> None:
    changes = {
        f"data.cache_dir={tmp_path}/d": "data.cache_dir", f"model.cache_dir={tmp_path}/m": "model.cache_dir",
        "memory.card=24gb": "memory.card", "memory.force=true": "memory.force", "checkpoint.every=7": "checkpoint",
        "validation.draws=3": "validation", "listening.seeds=3": "listening", "logger=wandb": "logger",
    }  # fmt: skip
    start = resume_start(run.root, list(changes))
    assert start.settings.plain["data"]["cache_dir"] == f"{tmp_path}/d"
    assert start.settings.checkpoint.every == 7
    assert all(can_change(name) for name in changes.values())


def test_a_change_may_be_taken_back_and_the_first_command_repeated(run: RunFolder) -> None:
    going_on(run, "checkpoint.every=7")
    write_json(run.run, {"status": "stopped", "overrides": [*LORA, "checkpoint.every=20"]})
    assert resume_start(run.root, [*LORA, "checkpoint.every=20"]).settings.checkpoint.every == 20


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "VOXTRAIN_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


def test_the_latest_run_is_the_newest_that_is_not_finished(
    tmp_path: Path, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no unfinished run lies under"):
        plan_start(["+recipe=lora_demo", "resume=latest"])
    for name, status in (("1", "stopped"), ("2", "failed"), ("3", "finished"), ("4", None)):
        run = RunFolder(tmp_path / "outputs" / "lora_demo" / name)
        run.state(60).mkdir(parents=True)
        run.config.write_text(config)
        if status is not None:
            write_json(run.run, {"status": status, "overrides": [*LORA]})
    start = plan_start(["+recipe=lora_demo", "resume=latest"])
    assert (start.run.root.name, start.resumes) == ("2", True)


@pytest.mark.slow
def test_a_grown_run_is_the_run_that_it_would_have_been(tmp_path: Path, cache: Path) -> None:
    """Kept: equal, bit for bit, to a run begun with all steps and the same schedule; new: its own learning rates."""

    def voxtrain(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "voxtrain", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(cache), capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    def rows(run: RunFolder) -> list[dict[str, str]]:
        timed = {"train/seconds", "train/peak_gib", "train/positions_per_second"}
        return [{key: cell for key, cell in row.items() if key not in timed} for row in read_log_rows(run.metrics)]

    quick = ("+recipe=lora_demo", "checkpoint.every=6", "checkpoint.state_every=6", "validation.when=never")
    begin = (*quick, "schedule.final_share=0.5", "train.max_steps=6", "schedule.warmup_steps=2")
    grown, whole = RunFolder(tmp_path / "grown"), RunFolder(tmp_path / "whole")
    code, said = voxtrain(*begin, "hydra.run.dir=grown")
    assert code == 0, said
    code, said = voxtrain(f"resume={grown.root}", "train.max_steps=9")
    assert code == 0, said
    code, said = voxtrain(*begin, "train.max_steps=9", "train.schedule_steps=6", "hydra.run.dir=whole")
    assert code == 0, said
    assert rows(grown) == rows(whole)
    assert len(rows(grown)) == 9
    facts = [read_facts(run).xxh3_128 for run in (grown, whole)]
    assert facts[0] == facts[1]

    code, said = voxtrain(
        f"resume={grown.root}", "train.max_steps=11", "train.schedule_on_resume=new", "optimizer.lr=1e-3"
    )
    assert code == 0, said
    schedule = compose(list(begin)).schedule
    assert [float(row["train/lr"]) for row in rows(grown)[9:]] == [1e-3 * schedule.factor(n, 11) for n in (9, 10)]
    code, said = voxtrain(
        f"resume={grown.root}", "train.max_steps=12", "train.schedule_on_resume=keep", "optimizer.lr=1"
    )
    assert code == 2, said
    assert "optimizer.lr = 1" in said
