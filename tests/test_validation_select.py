"""Which checkpoint is selected, and what is said about it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxtrain.durable import read_json, write_table
from voxtrain.fault import RunFailed
from voxtrain.run_folder import RunFolder
from voxtrain.statistics.clusters import estimate
from voxtrain.validation.evidence import Evidence
from voxtrain.validation.select import ranked, tie_set
from voxtrain.validation.select import select as select_by
from voxtrain.validation.sensitivity import pareto_set, stop_weight_ranges
from voxtrain.validation.settings import Guards

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


NO_GUARDS = Guards.model_construct(**dict.fromkeys(Guards.model_fields))


def select(
    run: RunFolder,
    found: Evidence,
    rule: str,
    not_judged: dict[int, str],
    guards: Guards = NO_GUARDS,
    **detail: object,
) -> dict[str, Any]:
    return select_by(run, found, rule, guards, not_judged, detail)


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
    ranges = stop_weight_ranges(found)
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


def with_intervals(totals: dict[int, float], spread: float) -> Evidence:
    """Losses on 40 rows of 8 recordings that lie around `totals` by `spread` and a row's own level, without stop."""
    generator = np.random.Generator(np.random.Philox(5))
    noise = generator.normal(0, spread, (len(totals), 40))
    values = np.array(list(totals.values()))[:, None] + noise - noise.mean(axis=1, keepdims=True)
    level = generator.normal(0, 1, 40)
    found = estimate((values + level - level.mean()).reshape(len(totals), 8, 5).sum(axis=2), np.full(8, 5.0))
    nothing = estimate(np.zeros((len(totals), 8)), np.full(8, 5.0))
    means = {"loss/total": found.means, "loss/diff": found.means, "loss/stop": nothing.means}
    estimates = {"loss/total": found, "loss/diff": found, "loss/stop": nothing}
    return Evidence(tuple(totals), means, estimates, (1.0, 1.0), groups=8, rows=40, draws=2)


COURSE = {0: 3.0, 2: 2.0, 5: 1.1, 9: 1.0, 12: 1.2}


@pytest.mark.parametrize(
    ("spread", "ties", "earliest"), [(0.05, [9], 9), (0.6, [5, 9, 12], 5), (5.0, [2, 5, 9, 12], 2)]
)
def test_the_earliest_that_ties_is_selected_or_the_lowest(
    spread: float, ties: list[int], earliest: int, tmp_path: Path
) -> None:
    found = with_intervals(COURSE, spread)
    assert tie_set(found) == ties
    lowest = select(RunFolder(tmp_path), found, "lowest", {})
    first = select(RunFolder(tmp_path), found, "earliest_in_tie_set", {})
    assert (lowest["selected_step"], first["selected_step"]) == (9, earliest)
    assert lowest["tie_set"] == first["tie_set"] == ties
    assert first["best_step"] == 9
    assert first["intervals"].keys() == {str(step) for step in COURSE if step != earliest}
    if len(ties) > 1:
        assert "earliest checkpoint that this split cannot tell from the lowest, step 9" in first["reason"]
        assert first["runner_up"] == ties[1]
        assert "validation.rule=lowest would take step 9" in first["would_change"]
        assert any(f"earliest_in_tie_set would take step {earliest}" in words for words in lowest["would_change"])
        assert any(words.startswith(f"to tell step {ties[1]} from step {earliest}") for words in first["would_change"])
    else:
        assert "no other ties" in first["reason"]
        assert first["runner_up"] == 5
    low, high = (first["intervals"]["0"][end] for end in ("low", "high"))
    assert low < 3.0 - COURSE[earliest] < high
    assert first["intervals"]["0"]["detectable"] > (high - low) / 2


def test_the_base_is_not_surely_beaten(tmp_path: Path) -> None:
    choice = select(RunFolder(tmp_path), with_intervals({0: 1.05, 9: 1.0}, 1.0), "lowest", {})
    assert choice["beats_base"] is True
    assert "Step 9 is not surely better than the base model on held-out rows" in choice["warnings"]


def test_twins_tie(tmp_path: Path) -> None:
    """The last step written twice, as the published run did."""
    found = with_intervals({5: 2.0, 9: 1.0}, 0.05)
    twice = found.estimates["loss/total"]
    both = type(twice)(twice.means[[0, 1, 1]], twice.influence[:, [0, 1, 1]], twice.degrees)
    means = {name: values[[0, 1, 1]] for name, values in found.means.items()}
    twins = Evidence((5, 9, 10), means, dict.fromkeys(means, both), (1.0, 1.0), groups=8, rows=40, draws=2)
    choice = select(RunFolder(tmp_path), twins, "earliest_in_tie_set", {})
    assert (choice["tie_set"], choice["selected_step"]) == ([9, 10], 9)
    assert choice["recordings_needed"] is None


def test_the_published_run_in_what_would_change_it(tmp_path: Path) -> None:
    choice = select(RunFolder(tmp_path), evidence(PUBLISHED), "lowest", {})
    assert choice["would_change"] == [
        "with a stop loss that weighs under 0.251 step 4000 would be lowest",
        "with a stop loss that weighs over 1.277 step 1000 would be lowest",
    ]
    assert choice["pareto_set"] == [1000, 2000, 4000, 5000, 7000, 8000, 9000]


points = st.dictionaries(st.integers(1, 50), st.tuples(*[st.integers(0, 6)] * 2), min_size=1, max_size=8)


@given(points)
def test_whatever_the_weight_the_lowest_is_in_the_pareto_set(table: dict[int, tuple[int, int]]) -> None:
    found = evidence({step: (float(diff), float(stop)) for step, (diff, stop) in sorted(table.items())})
    front = pareto_set(found)
    assert {found_range["step"] for found_range in stop_weight_ranges(found)} <= set(front) | {
        step for step in table if any(table[step] == table[other] for other in front)
    }
    for step in front:
        assert not any(d <= table[step][0] and s <= table[step][1] for d, s in table.values() if (d, s) != table[step])


def test_a_stop_head_that_knows_its_clips_by_heart_is_told(tmp_path: Path) -> None:
    gauge = [{"step": 2000, "train": 0.001, "held_out": 0.058}]
    choice = select(RunFolder(tmp_path), evidence(PUBLISHED), "lowest", {}, stop_gauge=gauge)
    assert any("learnt its clips by heart" in warning for warning in choice["warnings"])
    gauge[0]["train"] = 0.05
    choice = select(RunFolder(tmp_path), evidence(PUBLISHED), "lowest", {}, stop_gauge=gauge)
    assert not any("by heart" in warning for warning in choice["warnings"])


@given(st.dictionaries(st.integers(0, 50), st.tuples(*[st.floats(0, 10)] * 2), min_size=1, max_size=8))
def test_the_selected_step_has_the_lowest_loss_of_all_but_the_base(table: dict[int, tuple[float, float]]) -> None:
    found = evidence(dict(sorted(table.items())))
    trained = {step: sum(losses) for step, losses in table.items() if step > 0}
    ranking = ranked(found)
    assert set(ranking) == set(trained)
    assert [trained[step] for step in ranking] == sorted(trained.values())
    assert not trained or ranking[0] in tie_set(found)
