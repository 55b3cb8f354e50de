"""Groups: what `data.group_by` may be, joined columns against brute force, and what is offered in its place."""

from __future__ import annotations

import json
import pickle
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from group_material import groups_of
from hypothesis import given, settings
from hypothesis import strategies as st

from voxtrain.manifest.splitting import possible
from voxtrain.manifest.splitting.group import Groups, label, parse_group_by
from voxtrain.manifest.splitting.possible import possible_groups

names = st.sampled_from(["", "a", "b", "c", "d", "e", "ä", "0"])
joined_rows = st.lists(st.tuples(names, names, names), max_size=14)


def named(groups: Groups) -> list[str | None]:
    """The group of each row by its name."""
    return [None if code < 0 else groups.names[code] for code in groups.codes.tolist()]


def by_brute_force(rows: list[tuple[str, ...]], columns: tuple[str, ...]) -> list[str | None]:
    """Flood fill: rows that share a label are one group, called by its smallest label in the first column it has."""
    names: list[str | None] = [None] * len(rows)
    left = {place for place, row in enumerate(rows) if any(row)}
    while left:
        component = {left.pop()}
        while more := {
            place
            for place in left
            if any(one and one == other for at in component for one, other in zip(rows[at], rows[place], strict=True))
        }:
            component |= more
            left -= more
        _, column, name = min(
            (place, columns[place], row[place])
            for row in (rows[at] for at in component)
            for place in range(len(row))
            if row[place]
        )
        for at in component:
            names[at] = f"{column}={name}"
    return names


@settings(deadline=None, max_examples=60)
@given(joined_rows)
def test_joined_columns_are_connected_components(rows: list[tuple[str, ...]]) -> None:
    columns = ("speaker", "session", "room")
    assert named(groups_of(rows, parse_group_by(columns))) == by_brute_force(rows, columns)


@settings(deadline=None, max_examples=30)
@given(joined_rows, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_group(rows: list[tuple[str, ...]], chance: random.Random) -> None:
    grouping = parse_group_by(["speaker", "session", "room"])
    order = list(range(len(rows)))
    chance.shuffle(order)
    before, after = named(groups_of(rows, grouping)), named(groups_of([rows[at] for at in order], grouping))
    assert after == [before[at] for at in order]


@settings(deadline=None, max_examples=30)
@given(joined_rows, joined_rows)
def test_new_rows_divide_no_joined_group(rows: list[tuple[str, ...]], more: list[tuple[str, ...]]) -> None:
    """Groups may be joined, never parted: who was together stays together."""
    grouping = parse_group_by(["speaker", "session", "room"])
    before, after = named(groups_of(rows, grouping)), named(groups_of(rows + more, grouping))
    together: dict[Any, set[Any]] = defaultdict(set)
    for one, other in zip(before, after, strict=False):
        together[one].add(other)
    assert all(len(now) == 1 for now in together.values())


def test_rejected_rows_join_nothing() -> None:
    rows = [("ann", "s1"), ("bob", "s2"), ("ann", "s2")]
    grouping = parse_group_by(["speaker", "session"])
    assert len(set(named(groups_of(rows, grouping)))) == 1
    assert named(groups_of(rows, grouping, [True, True, False]))[:2] == ["speaker=ann", "speaker=bob"]


def test_a_joined_group_goes_by_every_label_in_it() -> None:
    groups = groups_of([("bob", "s1"), ("ann", "s1"), ("", "s1"), ("", "s9")], parse_group_by(["speaker", "session"]))
    assert named(groups) == ["speaker=ann"] * 3 + ["session=s9"]
    assert {name for name, code in groups.by_label.items() if groups.names[code] == "speaker=ann"} == {
        "speaker=ann",
        "speaker=bob",
        "session=s1",
    }


def test_the_same_word_in_two_columns_is_two_labels() -> None:
    groups = groups_of([("a", "b"), ("b", "a")], parse_group_by(["speaker", "session"]))
    assert named(groups) == ["speaker=a", "speaker=b"]


RECORD = {"parent": "tape 1", "speaker": 17.0, "session": None, "row": "x"}


@pytest.mark.parametrize(
    ("group_by", "path", "expected"),
    [
        ("parent", "a/b.wav", ("tape 1",)),
        ("speaker", "a/b.wav", ("17",)),
        ("session", "a/b.wav", None),
        ("row", "a/b.wav", ("id 1",)),
        (["speaker"], "a/b.wav", ("17",)),
        (["session", "speaker"], "a/b.wav", ("", "17")),
        (["session", "none"], "a/b.wav", None),
        ("^([^/]+)/", "a/b.wav", ("a",)),
        ("^[^/]+/", "a/b.wav", ("a/",)),
        ("^([^/]+)/", "b.wav", None),
        ("^(x)?", "a/b.wav", None),
        (r"_(\d+)_(\d+)", "t_12_3.wav", ("12",)),
    ],
)
def test_a_row_s_labels(group_by: Any, path: str, expected: tuple[str, ...] | None) -> None:
    grouping = parse_group_by(group_by)
    assert grouping.labels(RECORD, path, "id 1") == expected
    assert pickle.loads(pickle.dumps(grouping)) == grouping  # it goes to worker processes


def test_what_a_grouping_needs_and_warns_of() -> None:
    assert parse_group_by(["speaker", "session"]).columns == ("speaker", "session")
    assert parse_group_by(["speaker"]).value == "speaker"
    for group_by in ("row", "^(.*)/"):
        assert parse_group_by(group_by).columns == ()
    assert "data.group_by=row" in (parse_group_by("row").warning or "")
    assert [parse_group_by(one).warning for one in ("parent", "^(.*)/", ["a", "b"])] == [None] * 3


@pytest.mark.parametrize(
    ("group_by", "why"),
    [
        ("([a-z", "no regular expression"),
        ("  ", "names no column"),
        ([], "the list is empty"),
        (["a", "a"], "twice"),
        (["a", ""], "empty name"),
        (["a", "row"], "cannot be joined"),
        (["a", "^b"], "cannot be joined"),
        (["a", "b=c"], "cannot be joined"),
    ],
)
def test_what_names_no_grouping_is_said(group_by: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_group_by(group_by)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("  tape\u0301 ", "tap\u00e9"),
        (17, "17"),
        (17.0, "17"),
        (17.5, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ("\ud800", None),
        ("", None),
        (None, None),
        ([], None),
    ],
)
def test_a_label_is_text_or_a_whole_number(value: Any, expected: str | None) -> None:
    assert label(value) == expected


def test_columns_and_parts_of_the_path_are_offered_with_their_counts() -> None:
    records = [
        {"audio": f"tape{n % 4}/clip_{n:04d}.wav", "text": str(n), "speaker": n % 3, "only": "one", "id": n}
        for n in range(12)
    ]
    told = possible_groups([*records, {"audio": None, "session": "a"}])
    assert told.startswith("It could be, of 13 rows: speaker (3 groups, 1 row has none); ")
    assert "'^/?([^/]+)/' (the first folder: 4 groups, 1 row has none)" in told
    assert told.count("folder") == 1, "the whole folder is the first folder here, and is offered once"
    assert not re.search(r"\b(only|session|id|text) \(", told)


def test_every_offer_on_a_path_makes_the_groups_that_it_promises(shared: Path) -> None:
    records = [json.loads(line) for line in (shared / "speech" / "manifest.jsonl").read_text().splitlines()]
    told = possible_groups(records)
    for offered in ("speaker (19 groups)", "parent (33 groups)"):
        assert offered in told
    patterns = re.findall(r"'(\S+)' \([^:]+: (\d+) groups\)", told)
    assert patterns
    for pattern, count in patterns:
        grouping = parse_group_by(pattern)
        assert len({grouping.labels(record, record["audio"], "") for record in records}) == int(count)


def test_values_are_counted_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(possible, "COUNTED", 5)
    told = possible_groups({"audio": "a.wav", "tape": n // 2} for n in range(100))
    assert told == "It could be, of 100 rows: tape (over 5 groups)."
    assert possible_groups([{"audio": "a.wav"}]).startswith("No other column, and no part of the path,")
