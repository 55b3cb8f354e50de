"""The split into train, validation and test: by group, never by row, so that no recording is heard in two of them.

A group's split is a hash of its name with the seed, so adding data never moves a group. Only where a split would stay
empty, with few groups, a group is moved into it, and the certificate says which. The shares are expected shares of
groups; what became of rows and seconds is reported.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from voxtrain.manifest.row import Row
from voxtrain.run_folder import SPLITS

FEW_VALIDATION_GROUPS = 5  # below it there are no confidence intervals (contract: selection.json)
LOPSIDED = 2.0  # a share of the rows this many times over or under the expected one is told


class GroupedSplit(BaseModel, frozen=True, extra="forbid"):
    """Expected shares of the groups; training gets the rest."""

    validation_share: Annotated[float, Field(gt=0, lt=1)]
    test_share: Annotated[float, Field(ge=0, lt=1)]

    @model_validator(mode="after")
    def _leaves_training(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        return self

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Which part of [0, 1) belongs to which split. Test comes first: its groups stay when validation is resized."""
        held_out = self.test_share + self.validation_share
        return {"test": (0.0, self.test_share), "validation": (self.test_share, held_out), "train": (held_out, 1.0)}

    def shares(self) -> dict[str, float]:
        """The expected share of groups of each split."""
        return {name: end - start for name, (start, end) in self.bounds().items()}

    def wanted(self) -> tuple[str, ...]:
        """The splits that must not be empty."""
        return tuple(name for name, (start, end) in self.bounds().items() if end > start)


@dataclass(frozen=True, slots=True)
class Move:
    """A group that left its split, since another would have been empty."""

    group: str
    origin: str
    target: str

    def to_record(self) -> dict[str, str]:
        """What stands in split.json."""
        return {"group": self.group, "from": self.origin, "to": self.target}


def place(group: str, seed: int) -> float:
    """Where a group lies in [0, 1): a function of its name and the seed alone."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48  # 48 bits: exact in a float, never 1.0


def assign(groups: Collection[str], settings: GroupedSplit, seed: int) -> tuple[dict[str, str], list[Move]]:
    """The split of every group, and the groups moved so that none is empty. Needs as many groups as wanted splits."""
    places = {group: place(group, seed) for group in sorted(groups)}
    bounds = settings.bounds()
    by_hash = {group: next(s for s, (start, end) in bounds.items() if start <= p < end) for group, p in places.items()}
    assigned, moves = dict(by_hash), []
    for target in settings.wanted():
        if target in assigned.values():
            continue
        start, end = bounds[target]
        sizes = Counter(assigned.values())
        largest = max(sizes, key=lambda split: (sizes[split], split == "train"))  # not from what is itself small
        spare = [group for group, split in assigned.items() if split == largest]
        nearest = min(spare, key=lambda group: (max(start - places[group], places[group] - end), group))
        moves.append(Move(nearest, assigned[nearest], target))
        assigned[nearest] = target
    return assigned, moves


def split_rows(rows: Sequence[Row], assigned: Mapping[str, str]) -> dict[str, list[Row]]:
    """The rows of each split, in their order."""
    parts: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        parts[assigned[row.group]].append(row)
    return parts


def certificate(
    parts: Mapping[str, Sequence[Row]], moves: Sequence[Move], settings: GroupedSplit, seed: int, group_by: str
) -> dict[str, Any]:
    """What split.json says: groups, rows and seconds of each split, and that no group is in two."""
    groups = {name: {row.group for row in rows} for name, rows in parts.items()}
    overlaps = _overlaps(groups)
    if any(overlaps.values()):
        raise AssertionError(f"a group is in two splits, which is a bug of the split: {overlaps}")
    return {
        "group_by": group_by,
        "seed": seed,
        "splits": _sizes(parts, groups, settings.shares()),
        "overlaps": overlaps,
        "shared_audio": _overlaps({name: {str(row.audio) for row in rows} for name, rows in parts.items()}),
        "moved_groups": [move.to_record() for move in moves],
    }


def _overlaps(members: Mapping[str, set[str]]) -> dict[str, list[str]]:
    pairs = [(a, b) for place, a in enumerate(SPLITS) for b in SPLITS[place + 1 :]]
    return {f"{a}+{b}": sorted(members[a] & members[b]) for a, b in pairs}


def _sizes(
    parts: Mapping[str, Sequence[Row]], groups: Mapping[str, set[str]], expected: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    seconds = {name: seconds_of(rows) for name, rows in parts.items()}
    totals = sum(map(len, groups.values())), sum(map(len, parts.values())), sum(seconds.values())
    return {
        name: {
            "groups": len(groups[name]),
            "rows": len(rows),
            "seconds": seconds[name],
            "expected_share": expected[name],
            "share_of_groups": len(groups[name]) / totals[0],
            "share_of_rows": len(rows) / totals[1],
            "share_of_seconds": seconds[name] / totals[2] if totals[2] else 0.0,
            "group_names": sorted(groups[name]),
        }
        for name, rows in parts.items()
    }


def seconds_of(rows: Sequence[Row]) -> float:
    """Their audio, summed in whole microseconds, so that neither order nor grouping changes the last digit."""
    return sum(round((row.duration_s or 0.0) * 1e6) for row in rows) / 1e6


def split_warnings(split: Mapping[str, Any]) -> list[str]:
    """What a reader of the certificate should know: few groups, shares far from the expected ones, shared files."""
    warnings = []
    sizes = split["splits"]
    groups = sizes["validation"]["groups"]
    if groups < FEW_VALIDATION_GROUPS:
        warnings.append(
            f"validation has {_counted(groups)}: under {FEW_VALIDATION_GROUPS} there are no confidence intervals; "
            "add recordings, or raise split.validation_share"
        )
    for name, size in sizes.items():
        expected, actual = size["expected_share"], size["share_of_rows"]
        if expected and not expected / LOPSIDED <= actual <= expected * LOPSIDED:
            warnings.append(
                f"{name} has {actual:.1%} of the kept rows where {expected:.1%} were expected: "
                f"{_counted(size['groups'])} cannot split evenly"
            )
    warnings += [
        f"group {move['group']} was moved from {move['from']} to {move['to']}, which was empty"
        for move in split["moved_groups"]
    ]
    for pair, paths in split["shared_audio"].items():
        if paths:
            warnings.append(f"{len(paths)} audio files stand in both {pair.replace('+', ' and ')}, such as {paths[0]}")
    return warnings


def _counted(groups: int) -> str:
    return f"{groups} group{'' if groups == 1 else 's'}"
