"""What became of every row in two audits, row by row, in arrays: two manifests of a million rows take some 100 MB.

A row is told by its id. Ids are hashed to 64 bits within this process; rows that share an id (copies of a row have the
same) are numbered, kept ones first, so that copies meet copies.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtrain.manifest.page.rows import parsed, read_findings
from voxtrain.manifest.page.words import number
from voxtrain.progress import told
from voxtrain.run_folder import SPLITS, DataFolder

COPY = np.uint64(0x9E3779B97F4A7C15)  # odd: adding it again and again meets no number twice
UNKNOWN = 0  # a hash of what a row does not have
EXAMPLES = 3  # of each rule

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The rows of one audit. names: what can become of a row, the splits first, then rules.

    ids [N]; what [N], places in `names`; microseconds [N]; samples and groups [N], UNKNOWN where not told.
    held_out: names of the groups outside training, by their hash.
    """

    names: tuple[str, ...]
    ids: Hashes
    what: NDArray[np.int16]
    microseconds: NDArray[np.int64]
    samples: Hashes
    groups: Hashes
    held_out: Mapping[int, str]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """[N]: whether a row is in a split."""
        return self.what < len(SPLITS)

    def place(self, name: str) -> int:
        """The place of a split or rule among `names`; -1 where no row has it."""
        return self.names.index(name) if name in self.names else -1

    def seconds(self, chosen: NDArray[Any]) -> float:
        """Of the chosen rows."""
        return int(self.microseconds[chosen].sum()) / 1e6


def read_outcomes(folder: DataFolder, rows_in: int) -> Outcomes | None:
    """Every row that the files of a data folder tell of; None where the kept or the rejected ones are not told."""
    if not all(path.is_file() for path in (folder.rejects, *(folder.rows(name) for name in SPLITS))):
        return None
    names, held_out = list(SPLITS), dict[int, str]()
    columns = [array(kind) for kind in "QhqQQ"]  # ten times smaller than lists
    for what, record in told(_records(folder), rows_in, f"rows of {folder.root}"):
        if what not in names:
            names.append(what)
        group = record.get("group")
        if what in SPLITS[1:] and isinstance(group, str):
            held_out[_hash(group)] = group
        length = number(record.get("duration" if what in SPLITS else "seconds"))
        microseconds = round(1e6 * length) if math.isfinite(length) else 0
        row = (_hash(record.get("id")), names.index(what), microseconds, _hash(record.get("samples")), _hash(group))
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    ids, places, lengths, samples, groups = (np.array(column) for column in columns)
    return Outcomes(tuple(names), _numbered(ids, places), places, lengths, samples, groups, held_out)


def _records(folder: DataFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows with what became of them."""
    for name in SPLITS:
        with folder.rows(name).open("rb") as lines:
            for line in lines:
                record = parsed(line)
                if record is not None:
                    yield name, record
    for record in read_findings(folder.rejects):
        yield record["rule"], record


def _hash(value: Any) -> int:
    """Of a text; UNKNOWN of nothing."""
    return hash(value) & 0xFFFFFFFFFFFFFFFF if isinstance(value, str) and value else UNKNOWN


def _numbered(ids: Hashes, what: NDArray[np.int16]) -> Hashes:
    """The same, told apart where several rows share one: [N]."""
    order = np.lexsort((what, ids))
    ordered = ids[order]
    first = np.ones(len(ids), dtype=np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    places = np.arange(len(ids))
    copies = places - np.maximum.accumulate(np.where(first, places, 0))
    numbered = np.empty_like(ids)
    numbered[order] = ordered + copies.astype(np.uint64) * COPY
    return numbered


def examples(path: Path, wanted: Hashes) -> dict[str, list[dict[str, Any]]]:
    """The first rejects of each rule whose id is wanted: line, id and text."""
    found: dict[str, list[dict[str, Any]]] = {}
    chosen = set(wanted.tolist())
    for record in read_findings(path):
        of_rule = found.setdefault(record["rule"], [])
        if len(of_rule) < EXAMPLES and _hash(record.get("id")) in chosen:
            of_rule.append({name: record.get(name) for name in ("line", "id", "text")})
    return {rule: rows for rule, rows in found.items() if rows}
