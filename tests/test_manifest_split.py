"""The split: no group in two parts, no group moved by new data, no part empty."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import grouped_split, row
from pydantic import ValidationError

from voxtrain.manifest.split import assign, certificate, place, split_rows, split_warnings
from voxtrain.run_folder import SPLITS

names = st.text(min_size=1, max_size=8)
seeds = st.integers(0, 2**63 - 1)
shares = st.tuples(st.floats(0.01, 0.5), st.floats(0.0, 0.48)).map(
    lambda both: grouped_split(validation_share=both[0], test_share=both[1])
)


@settings(deadline=None)
@given(st.sets(names, min_size=3, max_size=40), seeds, shares)
def test_every_group_has_one_split_and_no_wanted_split_is_empty(groups, seed, chosen) -> None:
    assigned, moves = assign(groups, chosen, seed)
    assert set(assigned) == groups
    assert set(chosen.wanted()) <= set(assigned.values()) <= set(SPLITS)
    assert len(moves) <= 2
    for move in moves:
        assert assigned[move.group] == move.target != move.origin


@settings(deadline=None)
@given(st.sets(names, min_size=3, max_size=40), st.sets(names, max_size=40), seeds, shares)
def test_adding_groups_moves_none(groups, more, seed, chosen) -> None:
    before, moves = assign(groups, chosen, seed)
    after, later_moves = assign(groups | more, chosen, seed)
    excused = {move.group for move in (*moves, *later_moves)}  # the guarantee for small data, which the run reports
    assert {g: s for g, s in before.items() if g not in excused} == {
        g: s for g, s in after.items() if g in groups - excused
    }


def test_a_group_s_place_is_fixed_for_ever() -> None:
    """Numbers written down: another hash would move the groups of every user between two releases."""
    assert [round(place(group, 1), 6) for group in ("one", "two", "drei")] == [0.577702, 0.888665, 0.552894]


def test_places_are_even() -> None:
    """20,000 draws: the share below 0.05 has a standard deviation of 0.0015, so 0.008 is over five of them."""
    below = sum(place(f"recording {number}", 7) < 0.05 for number in range(20000)) / 20000
    assert abs(below - 0.05) < 0.008


def test_another_seed_is_another_split() -> None:
    groups = [f"g{number}" for number in range(200)]
    first, _ = assign(groups, grouped_split(), 1)
    assert first == assign(groups[::-1], grouped_split(), 1)[0]
    assert first != assign(groups, grouped_split(), 2)[0]


def test_a_larger_validation_share_leaves_test_alone() -> None:
    groups = [f"g{number}" for number in range(300)]
    small, _ = assign(groups, grouped_split(validation_share=0.05), 1)
    large, _ = assign(groups, grouped_split(validation_share=0.2), 1)
    assert {g for g in groups if small[g] == "test"} == {g for g in groups if large[g] == "test"}
    assert {g for g in groups if small[g] == "validation"} < {g for g in groups if large[g] == "validation"}


def test_with_few_groups_the_nearest_are_moved_and_told() -> None:
    groups = sorted(["a", "b", "c"], key=lambda group: place(group, 3))
    chosen = grouped_split(validation_share=0.0001, test_share=0.0001)  # by the hash all lie in train
    assigned, moves = assign(groups, chosen, 3)
    assert assigned == dict(zip(groups, ("test", "validation", "train"), strict=True))
    assert [move.to_record() for move in moves] == [
        {"group": groups[0], "from": "train", "to": "test"},
        {"group": groups[1], "from": "train", "to": "validation"},
    ]
    rows = [row(group=group, audio=Path(f"/{group}.wav")) for group in groups]
    record = certificate(split_rows(rows, assigned), moves, chosen, 3, "parent")
    assert sum("was moved from train" in warning for warning in split_warnings(record)) == 2


def test_a_small_split_gives_no_group_away() -> None:
    """Of six groups the two next to the empty test split are all that validation has: training gives one."""
    groups = sorted("abcdef", key=lambda group: place(group, 1))
    low, second, third = (place(group, 1) for group in groups[:3])
    chosen = grouped_split(test_share=low / 2, validation_share=(second + third) / 2 - low / 2)
    assigned, moves = assign(groups, chosen, 1)
    assert [assigned[group] for group in groups] == ["validation", "validation", "test", "train", "train", "train"]
    assert [move.to_record() for move in moves] == [{"group": groups[2], "from": "train", "to": "test"}]


def test_training_too_is_never_empty() -> None:
    chosen = grouped_split(validation_share=0.9998, test_share=0.0001)
    groups = ["a", "b", "c", "d"]
    assigned, moves = assign(groups, chosen, 1)
    assert sorted(assigned.values()) == ["test", "train", "validation", "validation"]
    last = max(groups, key=lambda group: place(group, 1))
    assert assigned[last] == "train"
    assert len(moves) == 2


def test_without_a_test_share_two_groups_are_enough() -> None:
    chosen = grouped_split(test_share=0.0)
    assert chosen.wanted() == ("validation", "train")
    assigned, _ = assign(["a", "b"], chosen, 1)
    assert sorted(assigned.values()) == ["train", "validation"]


def test_the_certificate_counts_what_lies_where() -> None:
    rows = [
        row(id="1", group="a", duration_s=1.5, audio=Path("/1.wav")),
        row(id="2", group="a", duration_s=0.5, audio=Path("/2.wav")),
        row(id="3", group="b", duration_s=3.0, audio=Path("/3.wav")),
        row(id="4", group="c", duration_s=5.0, audio=Path("/1.wav")),
    ]
    parts = split_rows(rows, {"a": "train", "b": "validation", "c": "test"})
    record = certificate(parts, [], grouped_split(), 5, "parent")
    train = record["splits"]["train"]
    assert (train["groups"], train["rows"], train["seconds"], train["group_names"]) == (1, 2, 2.0, ["a"])
    assert (train["share_of_groups"], train["share_of_rows"], train["share_of_seconds"]) == (1 / 3, 0.5, 0.2)
    assert train["expected_share"] == pytest.approx(0.9)
    assert record["overlaps"] == {"train+validation": [], "train+test": [], "validation+test": []}
    assert record["shared_audio"]["train+test"] == ["/1.wav"]
    assert (record["seed"], record["group_by"], record["moved_groups"]) == (5, "parent", [])
    warnings = split_warnings(record)
    assert any("validation has 1 group:" in warning for warning in warnings)
    assert any("test has 25.0% of the kept rows where 5.0% were expected" in warning for warning in warnings)
    assert any("1 audio files stand in both train and test" in warning for warning in warnings)


def test_a_leak_cannot_be_certified() -> None:
    parts = {"train": [row()], "validation": [row()], "test": []}
    with pytest.raises(AssertionError, match="bug"):
        certificate(parts, [], grouped_split(), 1, "parent")


def test_an_even_split_over_many_groups_warns_of_nothing() -> None:
    rows = [row(id=str(n), group=f"g{n}", duration_s=1.0, audio=Path(f"/{n}.wav")) for n in range(1000)]
    assigned, moves = assign([r.group for r in rows], grouped_split(), 1)
    assert split_warnings(certificate(split_rows(rows, assigned), moves, grouped_split(), 1, "parent")) == []


@pytest.mark.parametrize("changed", [{"validation_share": 0.0}, {"validation_share": 0.6, "test_share": 0.4}, {"x": 1}])
def test_shares_that_leave_nothing_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        grouped_split(**changed)
