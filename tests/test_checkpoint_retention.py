"""Retention by evidence: nothing unjudged is ever deleted, whatever the validator does meanwhile."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.checkpoint import retention
from voxtrain.checkpoint.__main__ import main
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
        write_json(run.selection, {"selected_step": selected, "tie_set": tie})


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
