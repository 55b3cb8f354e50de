"""Where groups lie: a hash of each name with the seed, or shares balanced by seconds; and that no split stays empty.

All arrays run over the groups in the order of their names, so the order of the manifest decides nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from voxtrain.fault import Fault, InputError
from voxtrain.run_folder import SPLITS

Bounds = Mapping[str, tuple[float, float]]
"""Which part of [0, 1) belongs to which split."""
Counts = npt.NDArray[np.int64]
Places = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
NO_SPLIT = 255


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


def by_hash(points: Points, bounds: Bounds) -> Places:
    """The split of each group, as a place in `SPLITS`: that in whose bounds its point lies."""
    splits = np.full(len(points), NO_SPLIT, dtype=np.uint8)
    for name, (start, end) in bounds.items():
        splits[(points >= start) & (points < end)] = SPLITS.index(name)
    return splits


def balanced(points: Points, sizes: Counts, pinned: Places, bounds: Bounds) -> Places:
    """The split of each group such that shares of `sizes` are met: the largest first, each to where most is lacking.

    A split ends over its share by less than the largest group, and under it by two thirds of that at most (what
    another has too much it got when it lacked no less). Equal sizes go by their points.
    pinned: NO_SPLIT, or the split that a group is in whatever its size.
    """
    splits = pinned.copy()
    total = int(sizes.sum())
    lacking = [(end - start) * total for start, end in (bounds[name] for name in SPLITS)]
    for code in range(len(SPLITS)):
        lacking[code] -= int(sizes[pinned == code].sum())
    order = np.lexsort((points, -sizes))
    held = sizes.tolist()
    for group in order[pinned[order] == NO_SPLIT].tolist():
        most = lacking.index(max(lacking))
        splits[group] = most
        lacking[most] -= held[group]
    return splits


def fill_empty(
    names: Sequence[str],
    points: Points,
    splits: Places,
    free: npt.NDArray[np.bool_],
    bounds: Bounds,
    wanted: Sequence[str],
) -> list[Move]:
    """Move a group into each wanted split that has none: the one of the largest split that lies nearest, in place.

    free: which groups may be moved (no list pins them). Raises InputError where no group can be spared.
    """
    moves: list[Move] = []
    for target in wanted:
        code = SPLITS.index(target)
        if (splits == code).any():
            continue
        sizes = Counter(splits.tolist())
        givers = [split for split, count in sizes.items() if count > 1 and (free & (splits == split)).any()]
        if not givers:
            raise InputError(_nothing_to_spare(target))
        largest = max(givers, key=lambda split: (sizes[split], split == 0))  # not from what is itself small
        start, end = bounds[target]
        spare = np.flatnonzero(free & (splits == largest)).tolist()
        nearest = min(spare, key=lambda group: (max(start - points[group], points[group] - end), group))
        moves.append(Move(names[nearest], SPLITS[largest], target))
        splits[nearest] = code
    return moves


def _nothing_to_spare(target: str) -> Fault:
    what = f"{target} is empty, and no split has a group to spare that no list pins"
    return Fault("split", what, "add recordings, or take groups out of split.validation_groups and split.test_groups")
