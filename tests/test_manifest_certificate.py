"""What the certificate of a split says and refuses, and that under any grouping no group lies in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from group_material import groups_of
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import grouped_split
from split_material import certified, divided, member, seeds

from voxtrain.manifest.splitting import certificate as certificate_file
from voxtrain.manifest.splitting.certificate import Certificate
from voxtrain.manifest.splitting.group import Grouping, parse_group_by
from voxtrain.manifest.splitting.split import GroupedSplit, assign_groups
from voxtrain.run_folder import SPLITS


def test_the_certificate_counts_what_lies_where() -> None:
    rows = [
        member(id="1", group="a", duration=1.5, audio="/1.wav"),
        member(id="2", group="a", duration=0.5, audio="/2.wav", line=2),
        member(id="3", group="b", duration=3.0, audio="/3.wav", line=3),
        member(id="4", group="c", duration=5.0, audio="/1.wav", line=4),
    ]
    record = certified(rows, grouped_split(), 5, splits={"a": "train", "b": "validation", "c": "test"})
    train = record["splits"]["train"]
    assert (train["groups"], train["rows"], train["seconds"], train["group_names"]) == (1, 2, 2.0, ["a"])
    assert train["largest_groups"] == [{"group": "a", "rows": 2, "seconds": 2.0}]
    assert (train["share_of_groups"], train["share_of_rows"], train["share_of_seconds"]) == (1 / 3, 0.5, 0.2)
    assert train["expected_share"] == pytest.approx(0.9)
    assert record["overlaps"] == {"train+validation": [], "train+test": [], "validation+test": []}
    assert record["shared_audio"]["train+test"] == {
        "shared": 1,
        "rows": {"train": 1, "test": 1},
        "examples": [{"audio": "/1.wav", "train": {"id": "1", "line": 1}, "test": {"id": "4", "line": 4}}],
    }
    assert record["shared_audio"]["train+validation"]["shared"] == 0
    assert (record["same_samples"], record["near_text"], record["since_previous"]) == (None, None, None)
    assert (record["seed"], record["group_by"], record["moved_groups"]) == (5, "parent", [])
    assert any("validation has 1 group:" in warning for warning in record["warnings"])
    assert any("test has 25.0% of the kept rows where 5.0% were expected" in warning for warning in record["warnings"])
    assert any("train and test share 1 audio file, such as /1.wav" in warning for warning in record["warnings"])


def test_a_leak_cannot_be_certified() -> None:
    made = divided([member(), member(group="two")], grouped_split(test_share=0.0))
    record = Certificate(made, grouped_split(), parse_group_by("parent"), 1, None)
    record.add("validation", member())
    record.add("train", member())
    with pytest.raises(AssertionError, match="bug"):
        record.record("f")


def test_an_even_split_over_many_groups_warns_of_nothing() -> None:
    rows = [member(group=f"g{n}{'x' * (n % 3)}", text=f"{n} {n * n * 7919}") for n in range(1000)]
    assert certified([row | {"audio": f"/{row['group']}x.wav"} for row in rows], grouped_split())["warnings"] == []


def test_of_many_groups_the_first_are_listed_and_all_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificate_file, "GROUPS_LISTED", 3)
    train = certified([member(group=f"g{n:03d}") for n in range(100)], grouped_split())["splits"]["train"]
    assert len(train["group_names"]) == 3
    assert train["group_names"] == sorted(train["group_names"])
    assert train["groups_left_out"] == train["groups"] - 3 > 50
    assert len(train["largest_groups"]) == 20


def test_the_same_samples_under_another_name_are_told() -> None:
    rows = [member(group=group, samples=digest) for group, digest in (("a", "11"), ("b", "22"), ("c", "11"))]
    record = certified(rows, grouped_split(), splits={"a": "train", "b": "test", "c": "validation"})
    assert record["same_samples"]["train+validation"]["examples"][0]["samples"] == "11"
    assert record["same_samples"]["train+test"]["shared"] == 0
    assert any(
        "train and validation share 1 clip with the same samples, such as a (line 1) and c" in w
        for w in record["warnings"]
    )


def test_slices_of_one_recording_in_two_splits_are_told() -> None:
    files = {"t1": "/a/tape_0001.wav", "v2": "/a/tape_0002.wav", "t7": "/a/tape_0007.flac", "e9": "/b/tape_0009.wav"}
    rows = [member(group=name, id=name, audio=path) for name, path in files.items()]
    splits = {"t1": "train", "v2": "validation", "t7": "train", "e9": "test"}
    record = certified(rows, grouped_split(), splits=splits, group_by="row")
    assert record["neighbours"]["train+validation"] == {
        "shared": 1,
        "rows": {"train": 2, "validation": 1},
        "examples": [{"stem": "/a/tape_", "train": {"id": "t1", "line": 1}, "validation": {"id": "v2", "line": 1}}],
        "adjacent_rows": 1,
    }
    assert record["neighbours"]["train+test"]["shared"] == 0, "another folder is another recording"
    told = "slices of 1 recording in common, by their paths: 2 and 1 rows; 1 of train next to one of validation"
    assert any(told in warning for warning in record["warnings"])


def test_a_number_through_the_whole_set_names_no_recording() -> None:
    rows = [member(group=f"speaker {n // 20}", id=str(n), audio=f"/clips/{n:06d}.wav") for n in range(4000)]
    by_speaker = certified(rows, grouped_split())["neighbours"]
    assert by_speaker["numbered_through"] == ["/clips/"]
    assert by_speaker["train+validation"]["shared"] == by_speaker["train+validation"]["adjacent_rows"] == 0
    by_row = certified([row | {"group": row["id"]} for row in rows], grouped_split(), group_by="row")["neighbours"]
    assert by_row["train+validation"]["shared"] == 1


def test_splitting_by_row_is_warned_of_first() -> None:
    rows = [member(group=f"{n}x") for n in range(200)]
    assert certified(rows, grouped_split(), group_by="row")["warnings"][0].startswith("data.group_by=row: ")


LABELS = st.sampled_from(["", "a", "b", "c", "d", "e", "f"])
GROUPINGS = st.sampled_from(["speaker", ["speaker", "session"], "^([a-z]+)", "row"])
LABELLED = st.lists(st.tuples(LABELS, LABELS, st.sampled_from(["a1", "b2", "b3", "c", "7"])), min_size=1, max_size=30)


@settings(deadline=None, max_examples=30)
@given(LABELLED, GROUPINGS, seeds, st.sampled_from(["hash", "balanced"]), st.randoms(use_true_random=False))
def test_no_group_is_in_two_splits_and_the_order_decides_nothing(labelled, group_by, seed, method, chance) -> None:
    """Under any grouping rows that share what they are grouped by lie together; the certificate checks it again."""
    rows = [(*row, str(number)) for number, row in enumerate(labelled)]
    shuffled = [*rows]
    chance.shuffle(shuffled)
    grouping = parse_group_by(group_by)
    chosen = grouped_split(test_share=0.2, validation_share=0.3, method=method)
    found = _split_of(rows, grouping, chosen, seed)
    assert _split_of(shuffled, grouping, chosen, seed) == found
    for number, column in enumerate(("speaker", "session")):
        if column in grouping.columns:
            lie: dict[str, set[str]] = defaultdict(set)
            for row in rows:
                if row[3] in found.splits and row[number]:
                    lie[row[number]].add(found.splits[row[3]])
            assert all(len(splits) == 1 for splits in lie.values())


@settings(deadline=None, max_examples=30)
@given(LABELLED, LABELLED, st.sampled_from(["speaker", "^([a-z]+)", "row"]), seeds)
def test_adding_rows_moves_no_row(labelled, more, group_by, seed) -> None:
    """But for the groups that the guarantee for small data moves, which the run names."""
    rows = [(*row, str(number)) for number, row in enumerate([*labelled, *more])]
    grouping, chosen = parse_group_by(group_by), grouped_split(test_share=0.2, validation_share=0.3)
    before = _split_of(rows[: len(labelled)], grouping, chosen, seed)
    after = _split_of(rows, grouping, chosen, seed)
    excused = before.moved | after.moved
    assert all(after.splits[row] == split for row, split in before.splits.items() if row not in excused)


class Found(NamedTuple):
    splits: dict[str, str]  # of each row by its id
    moved: set[str]  # ids of the rows of groups that the guarantee moved


def _split_of(rows: Sequence[tuple[str, ...]], grouping: Grouping, chosen: GroupedSplit, seed: int) -> Found:
    """The split of each row, certified; of none where there are too few groups."""
    found = [
        grouping.labels({"speaker": speaker, "session": session}, path, row_id)
        for speaker, session, path, row_id in rows
    ]
    groups = groups_of(found, grouping)
    counts = np.bincount(groups.codes[groups.codes >= 0], minlength=len(groups.names))
    if (counts > 0).sum() < len(SPLITS):
        return Found({}, set())
    made = assign_groups(groups, counts, counts * 1_000_000, chosen, seed)
    members = [
        (SPLITS[made.splits[code]], member(id=row[3], group=groups.names[code], audio=f"/{row[3]}.wav"))
        for row, code in zip(rows, groups.codes.tolist(), strict=True)
        if code >= 0
    ]
    record = Certificate(made, chosen, grouping, seed, 90.0)
    for split, row in sorted(members, key=lambda one: one[0] == "train"):
        record.add(split, row)
    record.record("f")
    moved = {move.group for move in made.moves}
    return Found(
        {row["id"]: split for split, row in members}, {row["id"] for _, row in members if row["group"] in moved}
    )
