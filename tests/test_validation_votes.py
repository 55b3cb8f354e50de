"""Votes of blind comparisons: taken in once, refused where they are about something else, and heard by the choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from test_validation_heard import TEXTS, guards
from test_validation_select import COURSE, select, with_intervals

from voxtrain.durable import read_json, read_log_rows, write_table, write_whole
from voxtrain.fault import DONE, InputError
from voxtrain.run_folder import RunFolder
from voxtrain.settings import compose
from voxtrain.validation import marked
from voxtrain.validation.__main__ import main, votes_among
from voxtrain.validation.heard import Hearing
from voxtrain.validation.losses import DrawLoss
from voxtrain.validation.table import with_step, write_rows
from voxtrain.validation.votes import FORMAT, comparisons, samples_key, take_votes

TAKES = 4


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """Four takes of four texts from every checkpoint."""
    found = RunFolder(tmp_path / "run")
    speak(found, dict.fromkeys(COURSE, "weights"))
    return found


def speak(run: RunFolder, made_from: dict[int, str]) -> None:
    records = [
        {"step": step, "text_id": text, "voice": "text", "seed": take, "text": text, "made_from": f"{name} {step}"}
        for step, name in made_from.items()
        for text in TEXTS
        for take in range(1, TAKES + 1)
    ]
    write_table(run.listening_table, records)


def judge(run: RunFolder, losses: dict[int, float]) -> None:
    """What the door needs besides: settings, and losses of eight recordings that waver by 0.1."""
    write_whole(run.config, OmegaConf.to_yaml(OmegaConf.create(compose(["+recipe=demo"]).plain)))
    names = [(f"row{number}", f"recording{number // 2}") for number in range(16)]
    rng, table = np.random.default_rng(3), None
    for step, loss in losses.items():
        waver = rng.normal(0, 0.1, len(names))
        drawn = [DrawLoss(row, 0, loss + waver[row], 0.1, (None,) * 5, 9) for row in range(len(names))]
        table = with_step(table, step, names, drawn, {"rows": "x", "draws": 1, "dtype": "fp32"})
    write_rows(run, table)


def ballot(run: RunFolder, pair: tuple[int, int], chosen: list[int | None], name: str = "0" * 16) -> dict[str, Any]:
    """What the page gives for these votes, one for each text and take in turn."""
    samples = read_log_rows(run.listening_table)
    keys = {str(step): samples_key(r for r in samples if int(r["step"]) == step) for step in pair}
    lines = [(text, take) for text in TEXTS for take in range(1, TAKES + 1)]
    votes = [
        {"text_id": text, "take": take, "voice": "text", "a": pair[1], "b": pair[0], "preferred": step}
        for (text, take), step in zip(lines, chosen, strict=False)
    ]
    return {"format": FORMAT, "run": "demo", "sitting": name, "steps": keys, "shuffle_seed": 7, "votes": votes}


def hand_in(run: RunFolder, votes: dict[str, Any]) -> None:
    file = run.root / "votes.json"
    file.write_text(json.dumps(votes))
    take_votes(run, [file])


def test_votes_are_counted_once_however_often_they_are_handed_in(run: RunFolder) -> None:
    for chosen in ([9, 9], [9, 9, 5, None], [9], [9, 9, 5, None]):
        hand_in(run, ballot(run, (5, 9), chosen))
    hand_in(run, ballot(run, (5, 9), [9, 5], "1" * 16))
    (found,), told = comparisons(run)
    assert (found.steps, found.preferred, found.undecided, found.sittings) == ((5, 9), (2, 3), 1, 2)
    assert told == []
    assert found.share(9)[0] == 0.6
    assert found.share(5)[1:] == pytest.approx((1 - found.share(9)[2], 1 - found.share(9)[1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": {"5": "0" * 16, "9": "1" * 16}}, "those of step 5 are others than were heard"),
        ({"steps": {"5": "0" * 16, "7": "1" * 16}, "votes": [(5, 7)]}, "no samples of step 7"),
        ({"votes": [(5, 7)]}, "about other checkpoints"),
        ({"votes": [(5, 9), (5, 9)]}, "two votes about one pair"),
        ({"votes": []}, "votes: "),
        ({"sitting": "../../up"}, "sitting: "),
        ({"format": "other"}, "format: "),
        ({"more": 1}, "more: "),
    ],
)
def test_votes_for_something_else_are_refused(run: RunFolder, change: dict[str, Any], words: str) -> None:
    votes = ballot(run, (5, 9), [9])
    if "votes" in change:
        given = [{**votes["votes"][0], "a": a, "b": b, "preferred": None} for a, b in change["votes"]]
        change = change | {"votes": given}
    with pytest.raises(InputError, match=words):
        hand_in(run, votes | change)
    assert not run.votes.exists()


def test_votes_of_another_run_or_an_older_page_are_refused_and_older_ones_lapse(run: RunFolder) -> None:
    votes = ballot(run, (5, 9), [9])
    hand_in(run, votes)
    speak(run, {0: "weights", 5: "weights", 12: "weights", 9: "other"})
    with pytest.raises(InputError, match="those of step 9 are others"):
        hand_in(run, votes)
    found, told = comparisons(run)
    assert found == []
    assert told == [
        "1 blind votes no longer count: those of step 9 are others than were heard (on the page of the run demo)"
    ]
    speak(run, dict.fromkeys((5, 9, 17), "weights"))  # more checkpoints change nothing
    assert len(comparisons(run)[0]) == 1


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_what_are_no_votes_is_told(run: RunFolder, content: str) -> None:
    file = run.root / "votes.json"
    file.write_text(content)
    with pytest.raises(InputError, match="these are no votes"):
        take_votes(run, [file])
    with pytest.raises(InputError, match="these are no votes"):
        take_votes(run, [run.root / "absent.json"])


def test_what_listeners_surely_prefer_is_selected(run: RunFolder) -> None:
    found = with_intervals(COURSE, 0.6)
    hand_in(run, ballot(run, (5, 9), [9] * 14 + [5] * 2))
    choice = select(run, found, "earliest_in_tie_set", {}, guards(preferred=0.5))
    assert (choice["tie_set"], choice["selected_step"]) == ([5, 9, 12], 9)
    assert choice["passed_over"][0]["reasons"] == [
        "blind votes prefer step 9: 14 of 16 are for it (88 %, 95 % interval 62 to 98 %)"
    ]
    assert "it was preferred 14 of 16 times (95% interval of the share 0.62 to 0.98)" in choice["reason"]
    (told,) = read_json(run.selection)["blind_votes"]
    assert (told["preferred"], told["share_of_later"]) == ({"5": 2, "9": 14}, 14 / 16)
    assert told["p_value"] == pytest.approx(2 * (1 + 16 + 120) / 2**16)
    assert (
        select(run, found, "earliest_in_tie_set", {}, guards())["selected_step"] == 5
    )  # null: votes count for nothing


def test_what_listeners_may_prefer_or_what_cannot_be_shipped_changes_nothing(run: RunFolder) -> None:
    found, heed = with_intervals(COURSE, 0.6), guards(preferred=0.5)
    hand_in(run, ballot(run, (5, 9), [9] * 11 + [5] * 5))  # 69 %, from 41 %
    assert select(run, found, "earliest_in_tie_set", {}, heed)["selected_step"] == 5
    outside = next(step for step in COURSE if step and step not in (5, 9, 12))
    hand_in(run, ballot(run, (min(5, outside), max(5, outside)), [outside] * 16, "2" * 16))
    assert select(run, found, "earliest_in_tie_set", {}, heed)["selected_step"] == 5
    hand_in(run, ballot(run, (0, 5), [0] * 16, "3" * 16))
    choice = select(run, found, "earliest_in_tie_set", {}, heed)
    assert choice["selected_step"] == 9
    assert "blind votes prefer step 0: 16 of 16" in choice["reason"]


def test_where_no_vote_was_cast_none_is_told(run: RunFolder) -> None:
    assert Hearing(run).outvoted(5, (0, 9), 0.5) == []
    assert select(run, with_intervals(COURSE, 0.6), "lowest", {}, guards(preferred=0.0))["blind_votes"] == []


def test_files_of_votes_among_arguments() -> None:
    assert votes_among(["RUN", "--votes", "a.json", "x=1", "--votes=b.json"]) == (
        [Path("a.json"), Path("b.json")],
        ["RUN", "x=1"],
    )
    for arguments in (["RUN", "--votes"], ["--votes=", "RUN"], ["--votes", "--select-only"]):
        with pytest.raises(InputError, match="no file is named"):
            votes_among(arguments)


@pytest.mark.slow
def test_the_door_takes_votes_into_the_selection(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    judge(run, {0: 3.0, 5: 1.0, 9: 1.01, 12: 2.0})
    assert main([str(run.root), "--select-only"]) == DONE
    before = read_json(run.selection)
    assert (before["selected_step"], before["tie_set"], before["blind_votes"]) == (5, [5, 9], [])
    write_whole(run.listening_page, "a page")
    pages: list[list[str]] = []
    monkeypatch.setattr(marked.subprocess, "run", lambda command, **_: pages.append(command) or _Ended())
    capsys.readouterr()
    file = run.root / "votes.json"
    for chosen, selected in (([5, 9, None], 5), ([9] * 15 + [5], 9), ([9] * 15 + [5], 9)):
        file.write_text(json.dumps(ballot(run, (5, 9), chosen)))
        assert main([str(run.root), "--votes", str(file)]) == DONE
        assert read_json(run.selection)["selected_step"] == selected
        told = capsys.readouterr().out
        assert f"{len(chosen)} blind votes between steps 5 and 9 are taken in." in told
        assert "Selected: step " + str(selected) in told
    after = read_json(run.selection)
    assert after["blind_votes"][0]["preferred"] == {"5": 1, "9": 15}  # not 45: a sitting counts once
    assert "blind votes prefer step 9: 15 of 16" in after["reason"]
    assert [command[2:] for command in pages] == [["voxtrain.listening", str(run.root), "--page"]]  # once: it changed
    assert main([str(run.root), "--select-only", "validation.guards.preferred=null"]) == DONE
    assert read_json(run.selection)["selected_step"] == 5
    assert main([str(run.root), "--select-only"]) == DONE  # the votes are kept in the run folder
    assert read_json(run.selection)["selected_step"] == 9


def test_the_door_refuses_all_of_a_wrong_file_and_keeps_the_selection(run: RunFolder) -> None:
    judge(run, {0: 3.0, 5: 1.0, 9: 1.01})
    assert main([str(run.root), "--select-only"]) == DONE
    before, good, bad = run.selection.read_bytes(), run.root / "good.json", run.root / "bad.json"
    good.write_text(json.dumps(ballot(run, (5, 9), [9] * 16)))
    for content in ("{", json.dumps(ballot(run, (5, 9), [9] * 16) | {"steps": {"5": "0" * 16, "9": "0" * 16}})):
        bad.write_text(content)
        with pytest.raises(InputError, match=r"these are no votes|are others than were heard"):
            main([str(run.root), f"--votes={good}", f"--votes={bad}"])
        assert run.selection.read_bytes() == before
        assert not run.votes.exists()  # nor was the good one of the two taken


def test_a_page_that_cannot_be_written_is_told(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_whole(run.listening_page, "a page")
    monkeypatch.setattr(marked.subprocess, "run", lambda command, **_: _Ended(1))
    marked.mark_again(run, (None, None))
    assert capsys.readouterr().err == ""  # nothing is selected, as before
    marked.mark_again(run, (5, 9))
    assert "still marks the choice before" in capsys.readouterr().err


class _Ended:
    """Of a process."""

    def __init__(self, returncode: int = DONE) -> None:
        self.returncode = returncode
