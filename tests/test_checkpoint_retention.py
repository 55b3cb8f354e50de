"""Retention by evidence: nothing unjudged is ever deleted, whatever the validator does meanwhile."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from voxtrain.checkpoint import retention
from voxtrain.checkpoint.__main__ import main
from voxtrain.checkpoint.lock import held
from voxtrain.checkpoint.retention import apply, verdicts
from voxtrain.durable import write_json, write_table
from voxtrain.fault import InputError
from voxtrain.run_folder import RunFolder


def make(root: Path, steps: list[int], judged: list[int], selected: int | None, tie: list[int]) -> RunFolder:
    run = RunFolder(root)
    for step in steps:
        run.checkpoint(step).mkdir(parents=True)
        (run.checkpoint(step) / "model.safetensors").write_bytes(b"x" * 1000)
    if steps:
        (run.checkpoints / "latest").symlink_to(run.checkpoint(steps[-1]).name)
    judge(run, judged, selected, tie)
    return run


def judge(run: RunFolder, judged: list[int], selected: int | None, tie: list[int]) -> None:
    if judged:
        write_table(run.evaluated_checkpoints, [{"step": step, "loss/total": 1.0} for step in judged])
    if selected is not None:
        write_json(run.selection, {"selected_step": selected, "tie_set": tie, "steps": judged})


def test_each_verdict_says_why(tmp_path: Path) -> None:
    run = make(tmp_path, [0, 10, 20, 30, 40, 50], judged=[0, 10, 20, 30, 50], selected=20, tie=[20, 30])
    told = {verdict.step: (verdict.stays, verdict.reason) for verdict in verdicts(run)}
    assert told == {
        0: (True, "the base model"),
        10: (False, "judged, not chosen"),
        20: (True, "selected"),
        30: (True, "in the tie set"),
        40: (True, "not judged yet"),
        50: (True, "the last"),
    }


def test_without_a_selection_everything_stays(tmp_path: Path) -> None:
    run = make(tmp_path, [0, 10, 20], judged=[0, 10, 20], selected=None, tie=[])
    assert all(verdict.stays for verdict in verdicts(run))
    assert apply(run) == []


def test_what_the_selection_has_not_seen_stays(tmp_path: Path) -> None:
    """A judge that was killed between judging and selecting."""
    run = make(tmp_path, [0, 10, 20, 30, 40], judged=[0, 10, 20], selected=20, tie=[20])
    judge(run, [0, 10, 20, 30], None, [])
    told = {verdict.step: verdict.reason for verdict in verdicts(run)}
    assert (told[10], told[30]) == ("judged, not chosen", "judged after the selection was made")
    assert [verdict.step for verdict in apply(run)] == [10]


def test_apply_deletes_what_goes_and_nothing_else(tmp_path: Path) -> None:
    run = make(tmp_path, [0, 10, 20, 30], judged=[0, 10, 20, 30], selected=20, tie=[20])
    assert [verdict.step for verdict in apply(run)] == [10]
    assert run.checkpoint_steps() == [0, 20, 30]
    assert (run.checkpoints / "latest").resolve() == run.checkpoint(30)
    assert not list(run.checkpoints.glob(".*"))


def test_linked_files_set_nothing_free(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [0, 10, 20], judged=[0, 10, 20], selected=20, tie=[20])
    vae = tmp_path / "audiovae.pth"
    vae.write_bytes(b"v" * 5000)
    os.link(vae, run.checkpoint(10) / "audiovae.pth")
    assert [verdict.size_bytes for verdict in verdicts(run) if verdict.step == 10] == [1000]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_interleaving_of_judge_and_pruner_deletes_an_unjudged_or_chosen_step(data: st.DataObject) -> None:
    """Between any two deletions the judge may go on judging and choose again; what it last said holds."""
    steps = sorted({0, *data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=8, unique=True))})

    def draw_evidence(base: set[int]) -> tuple[list[int], int | None, list[int]]:
        judged = sorted(base | set(data.draw(st.lists(st.sampled_from(steps), unique=True))))
        selected = data.draw(st.sampled_from(judged)) if judged else None
        tie = sorted({selected, *data.draw(st.lists(st.sampled_from(judged), unique=True))}) if judged else []
        return judged, selected, tie  # type: ignore[return-value]

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        evidence = draw_evidence(set())
        run = make(Path(folder), steps, *evidence)
        remove, gone = retention.remove_folder, []

        def watched(path: Path) -> None:
            nonlocal evidence
            step = int(path.name.removeprefix("step_"))
            judged, selected, tie = evidence
            assert step in judged
            assert step not in {selected, *tie, 0, steps[-1]}
            gone.append(step)
            remove(path)
            evidence = draw_evidence(set(judged))
            judge(run, *evidence)

        patch.setattr(retention, "remove_folder", watched)
        apply(run)
        assert sorted([*run.checkpoint_steps(), *gone]) == steps


class JudgeAndPruner(RuleBasedStateMachine):
    """A trainer adds checkpoints, a judge works step by step and may die at any moment, and pruners come at will."""

    refused = deleted = 0

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        steps = list(range(6))
        self.run = make(Path(self.folder.name), steps, steps, 3, [3])
        self.everything, self.judged, self.protected = set(steps), set(steps), {3}
        self.compared = set(steps)
        self.lock: ExitStack | None = None
        self.todo: list[int] = []

    def teardown(self) -> None:
        self.die()
        self.folder.cleanup()

    @rule()
    def trains(self) -> None:
        step = max(self.everything) + 1
        make(self.run.root / "aside", [step], [], None, [])
        (self.run.root / "aside" / "checkpoints" / f"step_{step:07d}").rename(self.run.checkpoint(step))
        shutil.rmtree(self.run.root / "aside")
        self.everything.add(step)

    @precondition(lambda self: self.lock is None)
    @rule()
    def judge_begins(self) -> None:
        self.lock = ExitStack()
        self.lock.enter_context(held(self.run.evaluation_lock, "judging"))
        self.todo = [step for step in self.run.checkpoint_steps() if step not in self.judged]

    @precondition(lambda self: self.lock is not None and self.todo)
    @rule()
    def judges_one(self) -> None:
        step = self.todo.pop(0)
        assert self.run.checkpoint(step).is_dir(), "a step was deleted under the judge's hands"
        self.judged.add(step)
        judge(self.run, sorted(self.judged), None, [])

    @precondition(lambda self: self.lock is not None and self.judged - {0})
    @rule(data=st.data())
    def selects(self, data: st.DataObject) -> None:
        there = sorted(self.judged - {0})
        ties = data.draw(st.sets(st.sampled_from(there), min_size=1))
        selected = data.draw(st.sampled_from(sorted(ties)))
        judge(self.run, sorted(self.judged), selected, sorted(ties))
        self.compared, self.protected = set(self.judged), ties

    @rule()
    def die(self) -> None:
        if self.lock is not None:
            self.lock.close()
        self.lock = None

    @rule()
    def prunes(self) -> None:
        before = set(self.run.checkpoint_steps())
        may_go = any(not verdict.stays for verdict in verdicts(self.run))
        try:
            apply(self.run)
        except InputError:
            type(self).refused += 1
            assert self.lock is not None
        else:
            assert self.lock is None or not may_go
        gone = before - set(self.run.checkpoint_steps())
        type(self).deleted += len(gone)
        assert not gone or self.lock is None
        assert gone <= self.judged & self.compared
        assert not gone & {0, max(before), *self.protected}


@pytest.mark.slow
def test_under_any_interleaving_nothing_unjudged_or_chosen_goes_and_nothing_under_a_judges_hands() -> None:
    run_state_machine_as_test(
        JudgeAndPruner, settings=settings(max_examples=150, stateful_step_count=40, deadline=None)
    )
    assert JudgeAndPruner.refused > 20, "no pruner met a judge"
    assert JudgeAndPruner.deleted > 50, "nothing was ever deleted"


def test_a_pruner_waits_for_the_judge(tmp_path: Path) -> None:
    run = make(tmp_path, [0, 10, 20, 30], judged=[0, 10, 20, 30], selected=20, tie=[20])
    with held(run.evaluation_lock, "judging"), pytest.raises(InputError, match="is judging this run"):
        apply(run)
    assert run.checkpoint_steps() == [0, 10, 20, 30]
    assert [verdict.step for verdict in apply(run)] == [10]


def test_the_door_prints_and_deletes_only_when_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path, [0, 10, 20, 30], judged=[0, 10, 20, 30], selected=20, tie=[20])
    assert main(["prune", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "judged, not chosen" in said
    assert "1 of 4 would go" in said
    assert run.checkpoint_steps() == [0, 10, 20, 30]
    assert main(["prune", str(tmp_path), "--apply"]) == 0
    assert "1 deleted" in capsys.readouterr().out
    assert run.checkpoint_steps() == [0, 20, 30]


@pytest.mark.parametrize("arguments", [["prune"], ["export"]])
def test_a_folder_without_checkpoints_is_told(tmp_path: Path, arguments: list[Any]) -> None:
    extra = [str(tmp_path / "out")] if arguments == ["export"] else []
    with pytest.raises(InputError, match="holds no checkpoint"):
        main([*arguments, str(tmp_path), *extra])
