"""Which checkpoint is selected, and what is said about it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxtrain.durable import read_json, write_table
from voxtrain.fault import RunFailed
from voxtrain.run_folder import RunFolder
from voxtrain.validation.evidence import Evidence
from voxtrain.validation.select import ranked, select, stop_weight_ranges, tie_set

PUBLISHED = {
    0: (0.916918, 0.151699),
    1000: (0.838856, 0.049409),
    2000: (0.827947, 0.057952),
    3000: (0.823368, 0.106905),
    4000: (0.818194, 0.096857),
    5000: (0.814075, 0.117557),
    6000: (0.811755, 0.148178),
    7000: (0.809483, 0.146333),
    8000: (0.808552, 0.150954),
    9000: (0.808400, 0.152520),
}
"""The published run: loss/diff and loss/stop by step."""

KEYS = {"selected_step", "tie_set", "intervals", "rule", "runner_up", "final_is_best", "beats_base"}


def evidence(table: dict[int, tuple[float, float]], weights: tuple[float, float] = (1.0, 1.0)) -> Evidence:
    """Evidence of means alone, as with too few recordings."""
    diff, stop = (np.array([losses[i] for losses in table.values()]) for i in (0, 1))
    means = {"loss/total": weights[0] * diff + weights[1] * stop, "loss/diff": diff, "loss/stop": stop}
    return Evidence(tuple(table), means, None, weights, groups=3, rows=9, draws=2)


def test_the_published_run_is_selected_as_published(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    choice = select(run, evidence(PUBLISHED), "lowest", {})
    assert choice.keys() >= KEYS
    assert choice == read_json(run.selection)
    assert choice["selected_step"] == 2000
    assert choice["runner_up"] == 1000
    assert choice["final_is_best"] is False
    assert choice["beats_base"] is True
    assert choice["losses"]["selected"]["loss/total"] == pytest.approx(0.885899, abs=1e-9)
    assert "Step 2000" in choice["reason"]
    assert "0.0024 worse" in choice["reason"]
    assert "from 0.251 to 1.277" in choice["reason"]
    assert "The last checkpoint, step 9000, is 0.0750 worse" in choice["reason"]


def test_the_published_run_flips_with_the_weight_of_the_stop_loss_as_published() -> None:
    found = evidence(PUBLISHED)
    ranges = stop_weight_ranges(found, ranked(found))
    assert [r["step"] for r in ranges] == [9000, 8000, 5000, 4000, 2000, 1000]
    [mine] = [r for r in ranges if r["step"] == 2000]
    assert (round(mine["from"], 3), round(mine["to"], 3)) == (0.251, 1.277)
    assert ranges[0]["from"] == 0
    assert ranges[-1]["to"] is None


@pytest.mark.parametrize(("weight", "selected"), [(0.2, 4000), (0.3, 2000), (1.27, 2000), (1.28, 1000)])
def test_the_configured_weight_decides(weight: float, selected: int) -> None:
    assert ranked(evidence(PUBLISHED, (1.0, weight)))[0] == selected


def test_with_too_few_recordings_every_trained_checkpoint_may_be_the_best(tmp_path: Path) -> None:
    choice = select(RunFolder(tmp_path), evidence(PUBLISHED), "lowest", {})
    assert choice["intervals"] is None
    assert choice["tie_set"] == [step for step in PUBLISHED if step > 0]
    assert any("3 recordings" in warning for warning in choice["warnings"])


def test_the_base_model_is_never_selected(tmp_path: Path) -> None:
    choice = select(RunFolder(tmp_path), evidence({0: (0.1, 0.1), 5: (1.0, 0.1), 9: (2.0, 0.1)}), "lowest", {})
    assert choice["selected_step"] == 5
    assert choice["beats_base"] is False
    assert any("base model" in warning for warning in choice["warnings"])


def test_without_the_base_model_nobody_says_whether_it_is_beaten(tmp_path: Path) -> None:
    assert select(RunFolder(tmp_path), evidence({5: (1.0, 0.1)}), "lowest", {})["beats_base"] is None


def test_a_loss_that_is_not_finite_is_not_selected_and_is_told(tmp_path: Path) -> None:
    found = evidence({0: (3.0, 1.0), 5: (2.0, 1.0), 9: (math.nan, 1.0)})
    choice = select(RunFolder(tmp_path), found, "lowest", {12: "the file is torn"})
    assert choice["selected_step"] == 5
    assert choice["tie_set"] == [5]
    assert choice["losses"]["final"] == {"step": 9, "loss/total": None, "loss/diff": None, "loss/stop": 1.0}
    assert any("not finite at step 9" in warning for warning in choice["warnings"])
    assert "Step 12 was not judged: the file is torn" in choice["warnings"]


def test_nothing_to_select_is_a_failure() -> None:
    with pytest.raises(RunFailed, match="no trained checkpoint"):
        select(RunFolder(Path("/nowhere")), evidence({0: (3.0, 1.0)}), "lowest", {})


def test_what_listening_heard_is_told_where_it_is_worse_than_the_base_model(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.listening.mkdir(parents=True)
    heard = [(0, "False", ""), (0, "True", ""), (5, "True", ""), (5, "True", ""), (9, "True", "no")]
    write_table(run.listening_table, [{"step": s, "runaway": r, "failed": f} for s, r, f in heard])
    choice = select(run, evidence({0: (3.0, 1.0), 5: (1.0, 1.0), 9: (2.0, 1.0)}), "lowest", {})
    assert "2 of 2 listening samples of step 5 did not stop by themselves (base model: 1)" in choice["warnings"]
    assert not any("no sound" in warning for warning in choice["warnings"])


def clear_winner(spread: float) -> Evidence:
    """Three checkpoints; 9 is 0.1 better than 5 and 1.0 better than 2, known to within `spread`."""
    found = evidence({2: (2.0, 0.0), 5: (1.1, 0.0), 9: (1.0, 0.0)})
    draws = np.linspace(-spread, spread, 101)[:, None] * [1.0, 1.0, 0.0] + found.means["loss/total"]
    return Evidence(found.steps, found.means, {"loss/total": draws}, found.weights, groups=8, rows=40, draws=2)


@pytest.mark.parametrize(("spread", "ties"), [(0.05, [9]), (0.2, [5, 9]), (2.0, [2, 5, 9])])
def test_the_tie_set_holds_what_the_intervals_cannot_tell_apart(spread: float, ties: list[int], tmp_path: Path) -> None:
    found = clear_winner(spread)
    assert tie_set(found, ranked(found)) == ties
    choice = select(RunFolder(tmp_path), found, "lowest", {})
    low, high = (choice["intervals"]["5"][end] for end in ("low", "high"))
    assert choice["intervals"]["5"]["difference"] == pytest.approx(0.1)
    assert (low, high) == pytest.approx((0.1 - 0.95 * spread, 0.1 + 0.95 * spread))  # 101 even draws
    assert ("no other ties" in choice["reason"]) == (ties == [9])


@given(st.dictionaries(st.integers(0, 50), st.tuples(*[st.floats(0, 10)] * 2), min_size=1, max_size=8))
def test_the_selected_step_has_the_lowest_loss_of_all_but_the_base(table: dict[int, tuple[float, float]]) -> None:
    found = evidence(dict(sorted(table.items())))
    trained = {step: sum(losses) for step, losses in table.items() if step > 0}
    ranking = ranked(found)
    assert set(ranking) == set(trained)
    assert [trained[step] for step in ranking] == sorted(trained.values())
    assert not trained or ranking[0] in tie_set(found, ranking)
