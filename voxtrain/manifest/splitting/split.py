"""The split into train, validation and test: by group, so that no recording is heard in two of them.

A group's split is a hash of its name with the seed, so adding data never moves a group. Only where a split would stay
empty, with few groups, a group is moved into it, and the certificate says which. The shares are expected shares of
the groups that no list pins to a split; what became of rows and seconds is reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, Field, model_validator

from voxtrain.manifest.splitting.group import Groups
from voxtrain.manifest.splitting.pinned import Pinned, pinned_codes
from voxtrain.manifest.splitting.placing import NO_SPLIT, Counts, Move, Places, balanced, by_hash, fill_empty, place
from voxtrain.run_folder import SPLITS, DataFolder

Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class GroupedSplit(BaseModel, frozen=True, extra="forbid"):
    """Expected shares of the groups, training gets the rest; groups pinned by a list; an earlier split to compare."""

    validation_share: Annotated[float, Field(ge=0, lt=1)]
    test_share: Annotated[float, Field(ge=0, lt=1)]
    method: Literal["hash", "balanced"]
    validation_groups: Pinned
    test_groups: Pinned
    previous: Folder | None

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        if self.validation_share == 0 and not self.validation_groups:
            raise ValueError("validation_share is 0 and validation_groups names none: nothing would be held out")
        return self

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Which part of [0, 1) belongs to which split. Test comes first: its groups stay when validation is resized."""
        held_out = self.test_share + self.validation_share
        return {"test": (0.0, self.test_share), "validation": (self.test_share, held_out), "train": (held_out, 1.0)}

    def shares(self) -> dict[str, float]:
        """The expected share of groups of each split."""
        return {name: end - start for name, (start, end) in self.bounds().items()}

    def pinned(self) -> dict[str, tuple[str, ...] | Path]:
        """The lists of groups that are given, by split."""
        lists = {"validation": self.validation_groups, "test": self.test_groups}
        return {name: groups for name, groups in lists.items() if groups}

    def wanted(self) -> tuple[str, ...]:
        """The splits that must not be empty."""
        return tuple(name for name, (start, end) in self.bounds().items() if end > start or name in self.pinned())

    def outside_digests(self) -> dict[str, str]:
        """What the split depends on besides settings and rows: the SHA-256 of each file, "" where there is none."""
        paths = [path for path in self.pinned().values() if isinstance(path, Path)]
        if self.previous is not None:
            paths.append(DataFolder(self.previous).split)
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "" for path in paths}


class GroupSize(NamedTuple):
    """The kept rows of a group."""

    rows: int
    microseconds: int


class Assignment(NamedTuple):
    """The split of every group, and the groups moved so that none is empty."""

    splits: dict[str, str]
    moves: list[Move]


@dataclass(frozen=True, slots=True)
class SplitGroups:
    """All groups, what they hold and where they lie, in arrays: a million groups take little more than their names.

    names: [G]. rows, microseconds: [G], of kept rows. splits: [G], places in `SPLITS`, NO_SPLIT where no row is kept.
    moves: so that no split is empty. pinned: how many groups a list put into each split.
    """

    names: Sequence[str]
    rows: Counts
    microseconds: Counts
    splits: Places
    moves: list[Move]
    pinned: Mapping[str, int]


def assign(groups: Collection[str], settings: GroupedSplit, seed: int) -> Assignment:
    """The split of every group, and the groups moved so that none is empty. Needs as many groups as wanted splits.

    groups: a mapping of names to `GroupSize` (`balanced` needs the seconds), else names alone.
    """
    names = sorted(set(groups))
    sizes = [groups[name] if isinstance(groups, Mapping) else GroupSize(1, 0) for name in names]
    rows, microseconds = np.array(sizes, dtype=np.int64).reshape(-1, 2).T
    known = Groups(np.empty(0, dtype=np.int32), names, {name: code for code, name in enumerate(names)})
    made = assign_groups(known, rows, microseconds, settings, seed)
    return Assignment({name: SPLITS[code] for name, code in zip(names, made.splits, strict=True)}, made.moves)


def assign_groups(groups: Groups, rows: Counts, microseconds: Counts, settings: GroupedSplit, seed: int) -> SplitGroups:
    """The split of every group that has rows; needs at least as many of those as wanted splits.

    rows, microseconds: [G], of kept rows. Raises InputError for lists of groups that cannot be followed.
    """
    order = np.array(sorted(np.flatnonzero(rows).tolist(), key=groups.names.__getitem__), dtype=np.int64)
    names = [groups.names[code] for code in order]
    points = np.fromiter((place(name, seed) for name in names), dtype=np.float64, count=len(names))
    pins = np.full(len(groups.names), NO_SPLIT, dtype=np.uint8)
    lists = settings.pinned()
    if lists:
        known = {name: code for name, code in groups.by_label.items() if rows[code]}
        for code, split in pinned_codes(lists, known).items():
            pins[code] = SPLITS.index(split)
    pinned, bounds = pins[order], settings.bounds()
    if settings.method == "hash":
        splits = np.where(pinned == NO_SPLIT, by_hash(points, bounds), pinned)
    else:
        sizes = microseconds if microseconds.any() else rows  # manifests without lengths
        splits = balanced(points, sizes[order], pinned, bounds)
    moves = fill_empty(names, points, splits, pinned == NO_SPLIT, bounds, settings.wanted())
    everywhere = np.full(len(groups.names), NO_SPLIT, dtype=np.uint8)
    everywhere[order] = splits
    counts = {name: int((pins == SPLITS.index(name)).sum()) for name in lists}
    return SplitGroups(groups.names, rows, microseconds, everywhere, moves, counts)
