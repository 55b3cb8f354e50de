"""The split: no group in two parts, no group moved by new data, no part empty."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from group_material import groups_of
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import grouped_split, prepared, write_lines
from pydantic import ValidationError

from voxtrain.durable import read_json, write_json
from voxtrain.fault import InputError
from voxtrain.manifest.splitting import certificate as certificate_file
from voxtrain.manifest.splitting.certificate import Certificate, read_certificate
from voxtrain.manifest.splitting.group import Grouping, parse_group_by
from voxtrain.manifest.splitting.placing import place
from voxtrain.manifest.splitting.split import GroupedSplit, GroupSize, SplitGroups, assign, assign_groups
from voxtrain.run_folder import SPLITS, DataFolder

Member = dict[str, Any]


def member(**changed: Any) -> Member:
    """A kept row as its split file has it."""
    found = {"id": "a", "line": 1, "group": "one", "audio": "/a.wav", "text": "Good morning.", "duration": 1.0}
    if "group" in changed:
        found |= {"id": changed["group"], "audio": f"/{changed['group']}.wav"}
    return found | changed


def divided(rows: Sequence[Member], chosen: GroupedSplit, seed: int = 1) -> SplitGroups:
    """The split of rows whose groups are known."""
    groups = groups_of([(row["group"],) for row in rows], parse_group_by("parent"))
    lengths = [round(row["duration"] * 1e6) for row in rows]
    count = np.bincount(groups.codes)
    return assign_groups(groups, count, np.bincount(groups.codes, lengths).astype(np.int64), chosen, seed)


def certified(
    rows: Sequence[Member],
    chosen: GroupedSplit,
    seed: int = 1,
    group_by: Any = "parent",
    near_score: float | None = None,
    splits: dict[str, str] | None = None,
) -> dict[str, Any]:
    """What split.json says of rows. splits: of groups, where they are not those of the hash."""
    made = divided(rows, chosen, seed)
    if splits is not None:
        places = np.array([SPLITS.index(splits[name]) for name in made.names], dtype=np.uint8)
        made = replace(made, splits=places, moves=[])
    found = {name: SPLITS[code] for name, code in zip(made.names, made.splits.tolist(), strict=True)}
    record = Certificate(made, chosen, parse_group_by(group_by), seed, near_score)
    for row in sorted(rows, key=lambda row: found[row["group"]] == "train"):
        record.add(found[row["group"]], row)
    return record.record("f")


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
    record = certified([member(group=group) for group in groups], chosen, seed=3)
    assert sum("was moved from train" in warning for warning in record["warnings"]) == 2


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


sizes = st.dictionaries(names, st.builds(GroupSize, st.integers(1, 50), st.integers(1, 10**9)), min_size=3, max_size=40)


@settings(deadline=None, max_examples=50)
@given(sizes, seeds, shares)
def test_balanced_shares_are_met_within_one_group(groups, seed, chosen) -> None:
    chosen = GroupedSplit(**chosen.model_dump() | {"method": "balanced"})
    made = assign(groups, chosen, seed)
    assert made == assign(dict(reversed(groups.items())), chosen, seed)
    assert set(chosen.wanted()) <= set(made.splits.values())
    if made.moves:
        return  # the guarantee for small data came first
    total, largest = (
        sum(size.microseconds for size in groups.values()),
        max(size.microseconds for size in groups.values()),
    )
    for split, share in chosen.shares().items():
        held = sum(groups[name].microseconds for name, where in made.splits.items() if where == split)
        assert (
            abs(held - share * total) <= largest + 1e-3
        )  # the sum of shares is rounded: under a thousandth of a microsecond


def test_balanced_is_said_to_be_unstable() -> None:
    rows = [member(group=f"{n}x") for n in range(200)]
    record = certified(rows, grouped_split(method="balanced"))
    assert record["method"] == "balanced"
    assert [size["share_of_seconds"] for size in record["splits"].values()] == [0.9, 0.05, 0.05]
    assert any("unstable" in warning for warning in record["warnings"])


def test_pinned_groups_go_where_the_lists_say_and_move_no_other(tmp_path: Path) -> None:
    groups = [f"g{number}" for number in range(200)]
    free = assign(groups, grouped_split(), 1).splits
    listed = tmp_path / "held.jsonl"
    listed.write_text('"g1"\n{"group": "g2"}\n\n')
    pinned = assign(groups, grouped_split(validation_groups=["g3", "g4"], test_groups=str(listed)), 1)
    assert pinned.splits == free | dict.fromkeys(["g3", "g4"], "validation") | dict.fromkeys(["g1", "g2"], "test")
    only = assign(groups, grouped_split(validation_share=0.0, test_share=0.0, validation_groups=["g3"]), 1)
    assert Counter(only.splits.values()) == {"train": 199, "validation": 1}
    assert only.moves == []


@settings(deadline=None, max_examples=60)
@given(st.sets(st.integers(0, 99).map(str), min_size=3, max_size=12), seeds, st.data())
def test_pinned_groups_stay_and_no_split_is_emptied_to_fill_another(groups, seed, data) -> None:
    where = {group: data.draw(st.sampled_from(["validation", "test", None, None])) for group in sorted(groups)}
    lists = {f"{split}_groups": [g for g, s in where.items() if s == split] for split in ("validation", "test")}
    share = data.draw(st.sampled_from([0.0001, 0.4]))  # with the smaller one the hash fills training alone
    chosen = grouped_split(validation_share=share, test_share=share, **lists)
    free = sum(split is None for split in where.values())
    try:
        splits, moves = assign(groups, chosen, seed)
    except InputError:
        assert free < len(SPLITS), "three free groups can fill three splits"
        return
    assert all(splits[group] == split for group, split in where.items() if split is not None)
    assert set(splits.values()) == set(SPLITS)
    assert not {move.group for move in moves} & {group for group, split in where.items() if split}


def test_a_split_whose_size_is_chosen_is_not_called_lopsided() -> None:
    rows = [member(group=f"{n}x") for n in range(200)]
    record = certified(rows, grouped_split(validation_groups=[f"{n}x" for n in range(60)]))
    assert record["splits"]["validation"]["pinned_groups"] == 60
    assert record["splits"]["validation"]["share_of_groups"] > 0.3
    assert record["warnings"] == []


def test_what_is_wrong_with_the_lists_is_told_at_once(tmp_path: Path) -> None:
    listed = tmp_path / "held.txt"
    listed.write_text("tape 1\ntape 2\nnobody\n")
    with pytest.raises(InputError) as raised:
        assign(
            [f"tape {n}" for n in range(9)], grouped_split(validation_groups=["tape 2", "tap 3"], test_groups=listed), 1
        )
    told = [(fault.where, fault.what) for fault in raised.value.faults]
    assert told == [
        ("split.validation_groups: tap 3", "no kept row lies in such a group"),
        ("split.test_groups: nobody", "no kept row lies in such a group"),
        ("split.test_groups: tape 2", "the group is in split.validation_groups as well"),
    ]
    assert "did you mean tape 3" in raised.value.faults[0].remedy
    for content, why in (("", "names no group"), ('{"group": null}\n', "this line names no group")):
        (tmp_path / "held.jsonl").write_text(content)
        with pytest.raises(InputError, match=why):
            assign(["a", "b", "c"], grouped_split(test_groups=tmp_path / "held.jsonl"), 1)
    with pytest.raises(InputError, match="cannot be read"):
        assign(["a", "b", "c"], grouped_split(test_groups="nowhere.txt"), 1)


def test_a_joined_group_is_pinned_by_any_of_its_labels() -> None:
    rows = [(f"p{number:02d}", f"s{number // 2}") for number in range(20)]
    groups, counts = groups_of(rows, parse_group_by(["speaker", "session"])), np.array([2] * 10)
    chosen = grouped_split(validation_groups=["speaker=p05"], test_groups=["session=s3"])
    made = assign_groups(groups, counts, counts, chosen, 1)
    assert made.splits[groups.by_label["session=s2"]] == SPLITS.index("validation")
    assert made.splits[groups.by_label["speaker=p06"]] == SPLITS.index("test")
    both = grouped_split(validation_groups=["speaker=p05"], test_groups=["speaker=p04"])
    with pytest.raises(InputError, match=r"in split.validation_groups as well, where it is called 'speaker=p05'"):
        assign_groups(groups, counts, counts, both, 1)


def test_lists_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(InputError, match="train is empty"):
        assign(["a", "b", "c"], grouped_split(validation_groups=["a", "b"], test_groups=["c"]), 1)


@pytest.mark.parametrize(
    "changed",
    [
        {"validation_share": 0.0},
        {"validation_share": 0.6, "test_share": 0.4},
        {"method": "even"},
        {"test_groups": [None]},
        {"test_groups": 17},
        {"test_groups": ""},
    ],
)
def test_shares_that_leave_nothing_are_refused(changed: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        grouped_split(**changed)


def manifest_of(folder: Path, clips: Any, **columns: Any) -> Path:
    """A manifest of the eight clips; columns: a function of the clip's number for each."""
    records = [
        {"id": f"row {n}", "audio": str(path), "text": text, "parent": parent, **{k: v(n) for k, v in columns.items()}}
        for n, (path, text, parent) in enumerate(clips)
    ]
    return write_lines(folder / "rows.jsonl", records)


def test_training_reads_a_sound_certificate_and_refuses_any_other(clips: Any, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path / "data")
    audit = prepared(manifest_of(tmp_path, clips), folder.root)
    record = read_certificate(folder)
    assert record["fingerprint"] == audit["fingerprint"]
    assert read_json(folder.split) == record

    def refused(why: str) -> None:
        with pytest.raises(InputError, match=why) as raised:
            read_certificate(folder)
        assert "prepare the rows again" in raised.value.faults[0].remedy
        write_json(folder.split, record)

    write_json(folder.split, record | {"overlaps": record["overlaps"] | {"train+test": ["tape 1"]}})
    refused("train and test share groups, such as 'tape 1'")
    write_json(folder.split, record | {"fingerprint": "another"})
    refused("another preparation than audit.json")
    write_json(folder.split, {key: value for key, value in record.items() if key != "overlaps"})
    refused("no leakage certificate")
    for broken in ("{", "[]", ""):
        folder.split.write_text(broken)
        refused("cannot be read|no object")
    folder.split.unlink()
    refused("nothing shows that training has not heard validation")
    rows = folder.rows("train").read_text()
    folder.rows("train").write_text(rows + rows.splitlines()[0] + "\n")
    count = record["splits"]["train"]["rows"]
    refused(f"it certifies {count} rows of train, and train.jsonl has {count + 1}")


def test_an_earlier_split_tells_every_group_that_moved_and_which_labels_were_joined(clips: Any, tmp_path: Path) -> None:
    group_by = ["speaker", "session"]
    manifest = manifest_of(tmp_path, clips, speaker=lambda n: f"p{n // 2}", session=lambda n: f"s{n // 2}")
    prepared(manifest, tmp_path / "first", group_by=group_by)
    before = {r["id"]: (s, r["group"]) for s in SPLITS for r in rows_of(tmp_path / "first", s)}
    assert {group for _, group in before.values()} == {f"speaker=p{n}" for n in range(4)}
    # the largest joined pair that lay in two splits
    one, other = next(
        (a, b) for a in range(4) for b in range(a) if before[f"row {2 * a}"][0] != before[f"row {2 * b}"][0]
    )
    joining = manifest_of(
        tmp_path, clips, speaker=lambda n: f"p{n // 2}", session=lambda n: f"s{other if n == 2 * one else n // 2}"
    )
    chosen = grouped_split(previous=str(tmp_path / "first"))
    audit = prepared(joining, tmp_path / "second", group_by=group_by, split=chosen)
    after = {r["id"]: (s, r["group"]) for s in SPLITS for r in rows_of(tmp_path / "second", s)}
    since = read_certificate(DataFolder(tmp_path / "second"))["since_previous"]
    assert since["rows_compared"] == 8
    assert {(move["group"], move["from"], move["to"], move["now"], move["rows"]) for move in since["moves"]} == {
        (*before[row][::-1], *after[row], 2) for row in before if before[row][0] != after[row][0]
    }
    assert since["moves"], "two groups of two splits were joined, so one of them moved"
    assert since["joined"] == [
        {"group": f"speaker=p{other}", "groups": 2, "of": [f"speaker=p{other}", f"speaker=p{one}"]}
    ]
    told = "\n".join(audit["warnings"] + read_json(tmp_path / "second" / "split.json")["warnings"])
    assert f"such as speaker=p{other}, which is made of speaker=p{other}, speaker=p{one}" in told
    assert "changed the split, such as speaker=p" in told


def test_groups_are_compared_by_name_where_no_row_is_the_same(clips: Any, tmp_path: Path) -> None:
    prepared(manifest_of(tmp_path, clips, id=lambda n: f"old {n}"), tmp_path / "first")
    before = {r["group"]: s for s in SPLITS for r in rows_of(tmp_path / "first", s)}
    moving = next(group for group, split in before.items() if split == "train")
    chosen = grouped_split(previous=str(tmp_path / "first"), test_groups=[moving])
    prepared(manifest_of(tmp_path, clips, id=lambda n: f"new {n}"), tmp_path / "second", split=chosen)
    since = read_certificate(DataFolder(tmp_path / "second"))["since_previous"]
    assert since["rows_compared"] == 0
    assert {"group": moving, "from": "train", "to": "test", "now": moving, "rows": 0} in since["moves"]


def test_what_is_no_earlier_split_is_told(clips: Any, tmp_path: Path) -> None:
    for content in (None, "{", '{"seed": 1}'):
        (tmp_path / "old").mkdir(exist_ok=True)
        if content is not None:
            (tmp_path / "old" / "split.json").write_text(content)
        with pytest.raises(InputError, match="no data folder with a split") as raised:
            prepared(
                manifest_of(tmp_path, clips), tmp_path / "new", split=grouped_split(previous=str(tmp_path / "old"))
            )
        assert raised.value.faults[0].where.startswith("split.previous = ")
        assert not (tmp_path / "new").exists()


def rows_of(folder: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in DataFolder(folder).rows(split).read_text().splitlines()]
