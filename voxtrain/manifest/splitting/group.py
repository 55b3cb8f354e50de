"""What rows are grouped by, so that a split never divides a recording: a column, the path, several columns, or rows.

Several columns are joined: rows that share a label in any of them lie in one group (union-find), so a speaker's
sessions stay together, and so do the speakers of one session.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

BY_ROW = "row"
METACHARACTERS = frozenset("[\\^$*+?|")  # of a regular expression; a column name has none of them
NO_GROUP = -1

Codes = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grouping:
    """How a row gets its group; made by `parse_group_by`.

    value: `data.group_by` as it was given. columns: those that the manifest must have; none for rows and paths.
    """

    value: str | tuple[str, ...]
    columns: tuple[str, ...]
    pattern: re.Pattern[str] | None

    @property
    def width(self) -> int:
        """How many labels a row has."""
        return max(1, len(self.columns))

    @property
    def by_row(self) -> bool:
        """Whether each row is a group of its own."""
        return not self.columns and self.pattern is None

    @property
    def warning(self) -> str | None:
        """What must stand on every page about a split by this grouping; None where it cannot leak by itself."""
        if not self.by_row:
            return None
        return (
            "data.group_by=row: rows of one recording lie in different splits, so validation sees voices and rooms "
            "that training has heard, and its losses are lower than on new recordings"
        )

    def labels(self, record: Mapping[str, Any], relative_path: str, row_id: str) -> tuple[str, ...] | None:
        """The labels of a row, one for each column ("" where it has none), else one; None where it has no group.

        record: of the manifest. relative_path: of the audio, as the manifest writes it. row_id: unique.
        """
        if self.columns:
            found = tuple([label(record.get(column)) or "" for column in self.columns])
            return found if any(found) else None
        if self.pattern is None:
            return (row_id,)
        match = self.pattern.search(relative_path)
        name = match and label(match[1] if self.pattern.groups else match[0])
        return (name,) if name else None


def parse_group_by(value: str | Sequence[str]) -> Grouping:
    r"""The grouping that `data.group_by` names. Raises ValueError where it names none.

    A column; `row`; a regular expression on the path (told by one of [ \ ^ $ * + ? |): its first group, else the whole
    match; a list of columns, which are joined.
    """
    if not isinstance(value, str):
        return _joined(tuple(value))
    if not value.strip():
        raise ValueError("this names no column")
    if value == BY_ROW:
        return Grouping(value, (), None)
    if not METACHARACTERS & set(value):
        return Grouping(value, (value,), None)
    try:
        return Grouping(value, (), re.compile(value))
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression: {error}") from None


def _joined(columns: tuple[str, ...]) -> Grouping:
    if not columns:
        raise ValueError("the list is empty: name the columns to join")
    if len(set(columns)) < len(columns):
        raise ValueError("the list names a column twice")
    for column in columns:
        if not column.strip():
            raise ValueError("the list holds an empty name")
        if column == BY_ROW or (METACHARACTERS | {"="}) & set(column):
            raise ValueError(f"{column!r} cannot be joined: a list holds columns, without `=` in their names")
    return Grouping(columns[0] if len(columns) == 1 else columns, columns, None)


def label(value: Any) -> str | None:
    """A name as text (NFC, trimmed); numbers stand for themselves (tables turn 17 into 17.0 where a cell is empty)."""
    if isinstance(value, str):
        if value.isascii():
            return value.strip() or None
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON may escape half of a surrogate pair
            return None
        return unicodedata.normalize("NFC", value).strip() or None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class Groups:
    """The group of every row.

    codes: [N], places in `names`, NO_GROUP where a row has none. names: [G], unique.
    by_label: the code of every label that a group may be called by: its name, and for joined columns each
    `column=label` in it.
    """

    codes: Codes
    names: list[str]
    by_label: Mapping[str, int]


def join_groups(
    codes: Sequence[Codes],
    labels: Sequence[Mapping[str, int]],
    columns: Sequence[str],
    kept: npt.NDArray[np.bool_] | None = None,
) -> Groups:
    """The connected components of labels that stand in one row together.

    codes: for each column [N], NO_GROUP where a row has no label in it. labels: for each column, the code of each
    label (0, 1, ... in the order of the mapping). kept: [N], the rows that join labels; by default all.
    A component is named after its smallest label, `column=label`, of the first column (in the order given) that it has
    a label of: new labels in later columns rename nothing.
    """
    starts = np.concatenate([[0], np.cumsum([len(known) for known in labels])])
    nodes = [np.where(code < 0, NO_GROUP, code + start) for code, start in zip(codes, starts, strict=False)]
    roots = _components(int(starts[-1]), *_links(nodes, kept))
    names: list[str] = []
    component = np.full(len(roots), NO_GROUP, dtype=np.int32)  # of each root
    for column, known, start in zip(columns, labels, starts, strict=False):
        ordered = sorted(known)
        own = roots[np.fromiter((known[name] for name in ordered), dtype=np.int64, count=len(ordered)) + start]
        new, first = np.unique(np.where(component[own] == NO_GROUP, own, NO_GROUP), return_index=True)
        new, first = new[new != NO_GROUP], first[new != NO_GROUP]
        component[new] = np.arange(len(names), len(names) + len(new))
        names += [f"{column}={ordered[place]}" for place in first.tolist()]
    of_label = component[roots]
    last = np.full(len(codes[0]), NO_GROUP, dtype=np.int64)
    for node in nodes:
        last = np.where(node < 0, last, node)
    found = np.full(len(last), NO_GROUP, dtype=np.int32)
    found[last >= 0] = of_label[last[last >= 0]]
    return Groups(found, names, _ByLabel(columns, labels, starts, of_label))


class _ByLabel(Mapping[str, int]):
    """The code of the group of each `column=label`; a view, since there may be a million labels."""

    def __init__(
        self, columns: Sequence[str], labels: Sequence[Mapping[str, int]], starts: Integers, of_label: Codes
    ) -> None:
        self._known = dict(zip(columns, labels, strict=True))
        self._starts = dict(zip(columns, starts.tolist(), strict=False))
        self._of_label = of_label

    def __getitem__(self, name: str) -> int:
        column, _, label_ = name.partition("=")
        return int(self._of_label[self._starts[column] + self._known[column][label_]])

    def __iter__(self) -> Iterator[str]:
        return (f"{column}={name}" for column, known in self._known.items() for name in known)

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))


def _links(nodes: Sequence[Integers], kept: npt.NDArray[np.bool_] | None) -> tuple[Integers, Integers]:
    """Pairs of labels that stand in one row, [E] and [E]: each label of a row with the one before it."""
    ones, others = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    before = nodes[0]
    for node in nodes[1:]:
        both = (before >= 0) & (node >= 0)
        both &= True if kept is None else kept
        ones.append(before[both])
        others.append(node[both])
        before = np.where(node < 0, before, node)
    return np.concatenate(ones), np.concatenate(others)


def _components(count: int, ones: Integers, others: Integers) -> Integers:
    """[count], for each node the smallest node of its connected component.

    Union-find over whole arrays: every root that a link joins to a smaller one is hung under the smallest, and all
    paths are flattened, until no link joins two roots.
    """
    parents = np.arange(count)
    while len(ones):
        ones, others = parents[ones], parents[others]
        apart = ones != others
        ones, others = ones[apart], others[apart]
        np.minimum.at(parents, np.maximum(ones, others), np.minimum(ones, others))
        while not np.array_equal(flat := parents[parents], parents):
            parents = flat
    return parents
