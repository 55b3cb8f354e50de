"""Rows and their splits, certified, for the tests of the grouped split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from group_material import groups_of
from hypothesis import strategies as st
from manifest_material import grouped_split

from voxtrain.manifest.splitting.certificate import Certificate
from voxtrain.manifest.splitting.group import parse_group_by
from voxtrain.manifest.splitting.split import GroupedSplit, SplitGroups, assign_groups
from voxtrain.run_folder import SPLITS

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
