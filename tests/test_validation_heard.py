"""What listening says against a checkpoint, and how the choice takes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_validation_select import COURSE, NO_GUARDS, select, with_intervals

from voxtrain.durable import write_table
from voxtrain.run_folder import RunFolder
from voxtrain.validation.heard import Hearing
from voxtrain.validation.settings import Guards

TEXTS = ("a", "b", "c", "d")


def guards(**limits: float) -> Guards:
    return NO_GUARDS.model_copy(update=limits)


def heard(root: Path, **changed: dict[int, list[str]]) -> RunFolder:
    """Samples of four texts from every checkpoint, all well; `column={step: cells}` changes some."""
    run = RunFolder(root)
    records: list[dict[str, Any]] = []
    for step in COURSE:
        for place, text in enumerate(TEXTS):
            record = {"step": step, "text": text, "seed": 1, "seconds_per_char": 0.06, "runaway": "False", "failed": ""}
            cells = {name: of[step][place] for name, of in changed.items() if step in of}
            record |= dict.fromkeys(changed, "") | record | cells if changed else {}
            records.append(record)
    run.listening.mkdir(parents=True, exist_ok=True)
    write_table(run.listening_table, records)
    return run


RAN = ["True", "True", "False", "False"]


@pytest.mark.parametrize(
    ("changed", "limits", "words"),
    [
        ({"runaway": {5: RAN}}, {"runaway": 0.3}, "50% of its listening samples did not stop by themselves"),
        ({"runaway": {5: RAN}}, {"runaway": 0.5}, ""),
        ({"runaway": {5: RAN}}, {"failed": 0.0, "silent": 0.0, "truncated": 0.0}, ""),
        ({"runaway": {5: RAN, 0: RAN}}, {"runaway": 0.0}, ""),
        ({"failed": {5: ["no sample came out", "", "", ""]}}, {"failed": 0.2}, "25% of its listening samples gave"),
        ({"failed": {5: ["it is silent: the peak is 0", "", "", ""]}}, {"failed": 0.2}, ""),
        ({"failed": {5: ["it is silent: the peak is 0", "", "", ""]}}, {"silent": 0.2}, "are silent"),
        ({"seconds_per_char": {5: ["0.02", "0.02", "0.06", "0.06"]}}, {"truncated": 0.3}, "break off early"),
        ({"seconds_per_char": {5: ["0.04", "0.04", "0.06", "0.06"]}}, {"truncated": 0.0}, ""),
    ],
)
def test_shares_of_samples(changed: Any, limits: dict[str, float], words: str, tmp_path: Path) -> None:
    told = Hearing(heard(tmp_path, **changed)).objections(5, guards(**limits))
    assert len(told) == (words != "")
    assert all(words in each for each in told)


@pytest.mark.parametrize(
    ("name", "mine", "margin", "stopped"),
    [
        ("word_error_rate", ["0.30", "0.31", "0.29", "0.32"], 0.05, True),
        ("word_error_rate", ["0.30", "0.31", "0.29", "0.32"], 0.3, False),
        ("word_error_rate", ["0.90", "0.00", "0.00", "0.10"], 0.05, False),  # one text alone: not surely worse
        ("word_error_rate", ["", "", "", ""], 0.0, False),
        ("speaker_similarity", ["0.0", "0.01", "0.0", "0.02"], 0.05, True),
        ("speaker_similarity", ["0.9", "0.8", "0.9", "0.8"], 0.05, False),
    ],
)
def test_scores_with_their_intervals(name: str, mine: list[str], margin: float, stopped: bool, tmp_path: Path) -> None:
    base = ["0.10", "0.11", "0.10", "0.12"] if name == "word_error_rate" else ["0.5", "0.52", "0.5", "0.51"]
    told = Hearing(heard(tmp_path, **{name: {0: base, 5: mine}})).objections(5, guards(**{name: margin}))
    assert bool(told) == stopped


def test_the_next_of_the_tie_set_is_selected(tmp_path: Path) -> None:
    run, found = heard(tmp_path, runaway={5: RAN}), with_intervals(COURSE, 0.6)
    choice = select(run, found, "earliest_in_tie_set", {}, guards(runaway=0.3))
    assert choice["tie_set"] == [5, 9, 12]
    assert choice["selected_step"] == 9
    assert [one["step"] for one in choice["passed_over"]] == [5]
    assert "Step 5 was passed over: 50% of its listening samples did not stop" in choice["reason"]
    assert "without the guards on listening samples it would be step 5" in choice["would_change"]
    assert choice["runner_up"] == 12
    assert select(run, found, "earliest_in_tie_set", {})["selected_step"] == 5


def test_where_listening_speaks_against_all_the_rule_decides_and_says_so(tmp_path: Path) -> None:
    run = heard(tmp_path, runaway={5: RAN, 9: RAN, 12: RAN})
    choice = select(run, with_intervals(COURSE, 0.6), "lowest", {}, guards(runaway=0.0))
    assert choice["selected_step"] == 9
    assert any("speaks against every checkpoint" in warning for warning in choice["warnings"])


def test_where_nothing_was_heard_nothing_is_said(tmp_path: Path) -> None:
    assert Hearing(RunFolder(tmp_path)).objections(5, guards(runaway=0.0, word_error_rate=0.0)) == []
    assert Hearing(RunFolder(tmp_path)).worse_than_base(5) == []


def test_a_voice_that_is_surely_better_at_another_of_the_tie_set_decides(tmp_path: Path) -> None:
    """The base model knows nobody of the training data, so that no checkpoint is ever less alike than it is."""
    voices = {0: ["0.5", "0.52", "0.5", "0.51"], 5: ["0.7", "0.71", "0.7", "0.72"], 9: ["0.85", "0.86", "0.85", "0.88"]}
    run, found = heard(tmp_path, speaker_similarity=voices), with_intervals(COURSE, 0.6)
    choice = select(run, found, "earliest_in_tie_set", {}, guards(speaker_similarity=0.05))
    assert (choice["tie_set"], choice["selected_step"]) == ([5, 9, 12], 9)
    assert choice["passed_over"][0]["reasons"][0].startswith(
        "its speaker similarity lies 0.153 below step 9's, by 0.14"
    )
    assert select(run, found, "earliest_in_tie_set", {}, guards(speaker_similarity=0.15))["selected_step"] == 5
    assert select(run, found, "earliest_in_tie_set", {}, guards(speaker_similarity=None))["selected_step"] == 5


def test_what_cannot_be_shipped_outscores_nobody_and_a_difference_has_to_be_sure(tmp_path: Path) -> None:
    voices = {5: ["0.7"] * 4, 9: ["0.85", "0.86", "0.85", "0.88"]}
    run, found = heard(tmp_path / "a", speaker_similarity=voices, runaway={9: RAN}), with_intervals(COURSE, 0.6)
    heed = guards(speaker_similarity=0.05, runaway=0.3)
    assert select(run, found, "earliest_in_tie_set", {}, heed)["selected_step"] == 5
    one_text = {5: ["0.7"] * 4, 9: ["0.99", "0.7", "0.7", "0.7"]}
    run = heard(tmp_path / "b", speaker_similarity=one_text)
    assert select(run, found, "earliest_in_tie_set", {}, heed)["selected_step"] == 5


def test_many_rivals_ask_for_more(tmp_path: Path) -> None:
    better = {9: ["0.85", "0.79", "0.83", "0.80"], 12: ["0.7"] * 4, 5: ["0.7"] * 4}
    hearing = Hearing(heard(tmp_path, speaker_similarity=better))
    limits = guards(speaker_similarity=0.066)
    assert hearing.outscored(5, (5, 9), limits) != []  # surely by 0.074 against one rival, by 0.060 against one of two
    assert hearing.outscored(5, (5, 9, 12), limits) == []
