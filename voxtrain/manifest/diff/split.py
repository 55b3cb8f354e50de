"""Whether two audits split alike: groups that changed their split, and rows held out in one that the other learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtrain.manifest.diff.rows import UNKNOWN, Outcomes
from voxtrain.manifest.page.words import counted
from voxtrain.run_folder import SPLITS

GROUPS_SHOWN = 20
TRAIN = SPLITS.index("train")


def compare_splits(
    audit_a: Mapping[str, Any], a: Outcomes | None, audit_b: Mapping[str, Any], b: Outcomes | None
) -> tuple[dict[str, Any], list[str]]:
    """Groups that moved and leakage in both directions, None for what cannot be told; and warnings of it."""
    if a is None or b is None:
        return dict.fromkeys(("groups", "held_out_in_a_trained_on_in_b", "held_out_in_b_trained_on_in_a")), []
    alike = audit_a.get("group_by") == audit_b.get("group_by")
    found = {
        "groups": _groups(a, b) if alike else None,
        "held_out_in_a_trained_on_in_b": _leak(a, b, alike),
        "held_out_in_b_trained_on_in_a": _leak(b, a, alike),
    }
    warnings = [] if alike else ["the audits group by different things, so that groups are not compared"]
    for name, (one, other) in zip(list(found)[1:], (("A", "B"), ("B", "A")), strict=True):
        warnings += _told(found[name] or {}, one, other)
    return found, warnings


def _groups(a: Outcomes, b: Outcomes) -> dict[str, Any]:
    """Groups of kept rows that stand in both audits, by whether they kept their split."""
    (names_a, splits_a), (names_b, splits_b) = _split_of_groups(a), _split_of_groups(b)
    both, in_a, in_b = np.intersect1d(names_a, names_b, assume_unique=True, return_indices=True)
    moved = np.flatnonzero(splits_a[in_a] != splits_b[in_b])
    names = {**a.held_out, **b.held_out}  # a group that moved was held out in one of them
    moves = [
        {"group": names.get(int(both[at]), "?"), "from": SPLITS[splits_a[in_a[at]]], "to": SPLITS[splits_b[in_b[at]]]}
        for at in moved
    ]
    return {
        "same_split": len(both) - len(moved),
        "moved": len(moved),
        "moves": sorted(moves, key=lambda move: move["group"])[:GROUPS_SHOWN],
        "only_in_a": len(names_a) - len(both),
        "only_in_b": len(names_b) - len(both),
    }


def _split_of_groups(rows: Outcomes) -> tuple[NDArray[np.uint64], NDArray[np.int16]]:
    """Hashes of the groups of kept rows, and the split of each."""
    chosen = rows.kept & (rows.groups != UNKNOWN)
    names, first = np.unique(rows.groups[chosen], return_index=True)
    return names, rows.what[chosen][first]


def _leak(one: Outcomes, other: Outcomes, alike: bool) -> dict[str, Any]:
    """What `one` holds out and `other` trains on: rows by id, by samples where both know them, and whole groups."""
    held, trained = one.kept & (one.what != TRAIN), other.what == TRAIN
    known = held & (one.samples != UNKNOWN)
    same_id = np.isin(one.ids[held], other.ids[trained])
    same_samples = np.isin(one.samples[known], other.samples[trained])
    groups = np.intersect1d(one.groups[held], other.groups[trained]) if alike else np.empty(0, dtype=np.uint64)
    names = sorted(one.held_out[int(group)] for group in groups if int(group) in one.held_out)
    return {
        "held_out_rows": int(held.sum()),
        "rows": int(same_id.sum()),
        "same_samples": int(same_samples.sum()) if known.any() else None,
        "groups": len(names) if alike else None,
        "group_names": names[:GROUPS_SHOWN],
    }


def _told(leak: Mapping[str, Any], one: str, other: str) -> list[str]:
    rows = max(leak.get("rows", 0), leak.get("same_samples") or 0)
    names = leak.get("group_names") or []
    if not rows and not names:
        return []
    what = f"{counted(rows, 'row')} of {leak['held_out_rows']:,} that {one} holds out"
    groups = f" ({counted(leak['groups'], 'group')} in common, such as {names[0]})" if names else ""
    meaning = f"its losses on {one}'s held-out rows mean nothing"
    return [f"leakage between experiments: {other} trains on {what}{groups}; {meaning}"]
