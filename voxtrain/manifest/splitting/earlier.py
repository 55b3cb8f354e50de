"""What became of an earlier split: every group that lies in another split now, and the groups that were joined."""

from __future__ import annotations

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from voxtrain.durable import read_json
from voxtrain.fault import Fault, InputError
from voxtrain.progress import told
from voxtrain.run_folder import SPLITS, DataFolder

LISTED = 1000  # moves and joined groups that split.json lists; all are counted
JOINED_NAMES = 20  # of each joined group

Place = tuple[str, str]
"""Split and group."""


class _Rows:
    """Where rows lie, by id: twelve bytes a row, and each place once. Ids are told apart by 64 bits of their hash."""

    def __init__(self) -> None:
        self.ids, self.codes = array("q"), array("i")
        self.known: dict[Place, int] = {}

    def add(self, split: str, group: str, row_id: str) -> None:
        self.ids.append(hash(row_id))
        self.codes.append(self.known.setdefault((split, group), len(self.known)))


class EarlierSplit:
    """The rows of an earlier data folder, and those of the new split, one by one."""

    def __init__(self, folder: DataFolder) -> None:
        """Raises InputError where the folder holds no split that can be read."""
        self._folder = folder
        self._before, self._after = _Rows(), _Rows()
        try:
            certificate = read_json(folder.split)
            self._made_by = {key: certificate[key] for key in ("group_by", "seed")}
            total = sum(certificate["splits"][split]["rows"] for split in SPLITS)
            rows = ((split, record) for split in SPLITS for record in _records(folder, split))
            for split, record in told(rows, total, f"Reading the split of {folder.root}"):
                self._before.add(split, record["group"], record["id"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"this is no data folder with a split: {getattr(error, 'filename', None) or error}"
            remedy = "name a folder that voxtrain.manifest wrote (RUN/data, or its out=DIR), or split.previous=null"
            raise InputError(Fault(f"split.previous = {folder.root}", what, remedy)) from None

    def add(self, split: str, group: str, row_id: str) -> None:
        """A row of the new split."""
        self._after.add(split, group, row_id)

    def to_record(self) -> dict[str, Any]:
        """Each move (the group, its splits, what it is called now, its rows that moved) and each joined group."""
        pairs = self._pairs()
        moves: list[dict[str, Any]] = [
            {"group": group, "from": split, "to": now, "now": name, "rows": rows}
            for ((split, group), (now, name)), rows in pairs.items()
            if split != now
        ]
        moves += self._moved_by_name({(move["group"], move["now"]) for move in moves})
        moves.sort(key=lambda move: (-move["rows"], move["group"], move["now"]))
        sources: dict[str, set[str]] = defaultdict(set)
        for (_, group), (_, name) in pairs:
            sources[name].add(group)
        joined = [
            {"group": name, "groups": len(groups), "of": sorted(groups)[:JOINED_NAMES]}
            for name, groups in sorted(sources.items())
            if len(groups) > 1
        ]
        return {
            "folder": str(self._folder.root),
            **self._made_by,
            "rows_compared": sum(pairs.values()),
            "rows_moved": sum(move["rows"] for move in moves),
            "groups_moved": len(moves),
            "groups_joined": len(joined),
            "moves": moves[:LISTED],
            "joined": joined[:LISTED],
        }

    def _pairs(self) -> dict[tuple[Place, Place], int]:
        """How many rows went from one place to another, by id."""
        before = np.frombuffer(self._before.ids, dtype=np.int64)
        after = np.frombuffer(self._after.ids, dtype=np.int64)
        order = np.argsort(before, kind="stable")
        if not len(order) or not len(after):
            return {}
        found = order[np.minimum(np.searchsorted(before, after, sorter=order), len(order) - 1)]
        both = before[found] == after
        was = np.frombuffer(self._before.codes, dtype=np.int32)[found[both]].astype(np.int64)
        codes = was * len(self._after.known) + np.frombuffer(self._after.codes, dtype=np.int32)[both]
        old, new = list(self._before.known), list(self._after.known)
        unique, rows = np.unique(codes, return_counts=True)
        return {
            (old[code // len(new)], new[code % len(new)]): count
            for code, count in zip(unique.tolist(), rows.tolist(), strict=True)
        }

    def _moved_by_name(self, known: set[tuple[str, str]]) -> list[dict[str, Any]]:
        """Groups of the same name in another split none of whose rows is the same, so that ids do not tell."""
        now = {group: split for split, group in self._after.known}
        return [
            {"group": group, "from": split, "to": now[group], "now": group, "rows": 0}
            for split, group in self._before.known
            if now.get(group, split) != split and (group, group) not in known
        ]


def _records(folder: DataFolder, split: str) -> Iterator[dict[str, Any]]:
    with folder.rows(split).open(encoding="utf-8") as lines:
        for line in lines:
            if line.strip():
                yield json.loads(line)
