"""What rows of two splits have in common: the same group, file or samples, or slices of one recording.

Held-out rows come first and are remembered; of training only what meets them is, so memory follows the held-out rows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from voxtrain.run_folder import SPLITS

TRAIN, *HELD_OUT = SPLITS
PAIRS = tuple((one, other) for place, one in enumerate(SPLITS) for other in SPLITS[place + 1 :])
EXAMPLES = 20  # of each pair of splits
FEW_GROUPS = 5  # under so many groups a stem that most of them share may yet be one recording
DIGITS = "0123456789"


def pair_name(one: str, other: str) -> str:
    """What two splits are called in split.json."""
    return f"{one}+{other}"


@dataclass(slots=True)
class Met:
    """The rows of one split that have a key: how many, and the one with the smallest id."""

    rows: int
    id: str
    line: int

    def meet(self, row_id: str, line: int) -> None:
        """One more row."""
        self.rows += 1
        if row_id < self.id or (row_id == self.id and line < self.line):
            self.id, self.line = row_id, line

    def to_record(self) -> dict[str, Any]:
        """What an example says of it."""
        return {"id": self.id, "line": self.line}


class Crossing:
    """Keys that rows of two splits share. All held-out rows are added before the first row of training."""

    def __init__(self) -> None:
        self._met: dict[str, dict[str, Met]] = {split: {} for split in SPLITS}
        self._held = self._met[HELD_OUT[0]], self._met[HELD_OUT[1]]

    def add(self, split: str, key: str, row_id: str, line: int) -> None:
        """A row, by what it may have in common with others."""
        one, other = self._held
        if split == TRAIN and key not in one and key not in other:
            return
        met = self._met[split].get(key)
        if met is None:
            self._met[split][key] = Met(1, row_id, line)
        else:
            met.meet(row_id, line)

    def keys(self, one: str, other: str) -> list[str]:
        """The keys that stand in both splits, in their order."""
        return sorted(self._met[one].keys() & self._met[other].keys())

    def pairs(self, name: str, skip: frozenset[str] = frozenset()) -> dict[str, dict[str, Any]]:
        """For each pair of splits: how many keys they share, the rows concerned of each, and the first examples.

        name: of the key, in the examples. skip: keys that do not count.
        """
        found = {}
        for one, other in PAIRS:
            keys = [key for key in self.keys(one, other) if key not in skip]
            found[pair_name(one, other)] = {
                "shared": len(keys),
                "rows": {split: sum(self._met[split][key].rows for key in keys) for split in (one, other)},
                "examples": [
                    {name: key} | {split: self._met[split][key].to_record() for split in (one, other)}
                    for key in keys[:EXAMPLES]
                ],
            }
        return found


class Neighbours:
    """Slices of one recording in two splits, told by their paths: folder and stem are the same but for a last number.

    A stem that more than half of the held-out groups share (clip_0001, clip_0002, ... through the whole set) names no
    recording; it is left out and listed, unless each row is a group of its own.
    """

    def __init__(self, by_row: bool) -> None:
        self._by_row = by_row
        self._stems = Crossing()
        self._rows: dict[str, dict[str, dict[int, int]]] = {split: {} for split in HELD_OUT}  # by stem and number
        self._groups: dict[str, set[str]] = {}  # of held-out rows, by stem
        self._others: frozenset[str] = frozenset()  # groups whose rows need not all come here
        self._beside_held: dict[str, dict[str, int]] = {split: {} for split in HELD_OUT}  # rows of training, by stem

    def add(self, split: str, audio: str, group: str, row_id: str, line: int) -> None:
        """A row by its audio file; paths without a last number are no slices."""
        stem, digits = numbered(audio)
        if not digits:
            return
        number = int(digits)
        self._stems.add(split, stem, row_id, line)
        if split != TRAIN:
            rows = self._rows[split].setdefault(stem, {})
            rows[number] = rows.get(number, 0) + 1
            if not self._by_row:
                self._groups.setdefault(stem, set()).add(group)
            return
        for other, beside in self._beside_held.items():
            if _is_beside(number, self._rows[other].get(stem)):
                beside[stem] = beside.get(stem, 0) + 1

    def expect(self, groups: Collection[str]) -> None:
        """Held-out groups that have numbered paths; rows with a stem that no other split has need not be added."""
        self._others = frozenset() if self._by_row else frozenset(groups)

    def to_record(self) -> dict[str, Any]:
        """For each pair of splits: stems, rows, how many rows of the first lie next to one of the second; examples."""
        through = self._numbered_through()
        pairs = self._stems.pairs("stem", through)
        one, other = HELD_OUT
        beside = {pair_name(TRAIN, split): counts for split, counts in self._beside_held.items()}
        beside[pair_name(one, other)] = {
            stem: sum(rows for number, rows in numbers.items() if _is_beside(number, self._rows[other].get(stem)))
            for stem, numbers in self._rows[one].items()
        }
        for name, pair in pairs.items():
            pair["adjacent_rows"] = sum(rows for stem, rows in beside[name].items() if stem not in through)
        return pairs | {"numbered_through": sorted(through)[:EXAMPLES]}

    def _numbered_through(self) -> frozenset[str]:
        everything: set[str] = set().union(self._others, *self._groups.values())
        if len(everything) < FEW_GROUPS:
            return frozenset()
        return frozenset(stem for stem, groups in self._groups.items() if 2 * len(groups) > len(everything))


def _is_beside(number: int, others: Mapping[int, int] | None) -> bool:
    return others is not None and (number - 1 in others or number + 1 in others)


def numbered(path: str) -> tuple[str, str]:
    """A path without its ending and last number, and that number's digits ("" where it has none)."""
    dot = path.rfind(".")
    stem = path[:dot] if dot > path.rfind("/") + 1 else path
    without = stem.rstrip(DIGITS)
    return without, stem[len(without) :]
