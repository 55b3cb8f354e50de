"""All rows of a manifest as numbers, a hundred bytes each, and what is decided only when all of them are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from voxtrain.manifest.judged import ROW, WRITTEN, Judged
from voxtrain.manifest.rules import Finding
from voxtrain.manifest.splitting.group import NO_GROUP, Grouping, Groups, join_groups
from voxtrain.manifest.spool import Spool

MICRO = 1_000_000
SHOWN_REPEATED = 10
LEAST_REPEATED = 5  # rows: fewer may be chance
COMMON_SHARE = 0.01  # of the rows: lines more common than this are all shown
MOST_REPEATED = 50
SHOWN_LETTERS = 200
NO_RULE = 255

Bools = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]


class Gathering:
    """What was judged so far."""

    def __init__(self, width: int) -> None:
        """width: how many columns are grouped by."""
        self._rows: list[npt.NDArray[Any]] = []
        self._codes: list[npt.NDArray[np.int32]] = []
        self._labels: list[dict[str, int]] = [{} for _ in range(width)]
        self.broken: list[tuple[int, str]] = []
        self.columns: set[str] = set()
        self.excluded: set[str] = set()

    def add(self, judged: Judged) -> None:
        """The next chunk."""
        self._rows.append(judged.rows)
        columns = zip(self._labels, judged.labels, judged.codes, strict=True)
        self._codes.append(np.stack([self._coded(*column) for column in columns]))
        self.broken += judged.broken
        self.columns |= judged.columns
        self.excluded |= judged.excluded

    @staticmethod
    def _coded(known: dict[str, int], labels: Sequence[str], codes: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """The places of labels in the chunk as places in the whole."""
        places = [known.setdefault(label, len(known)) for label in labels]
        return np.array([*places, NO_GROUP], dtype=np.int32)[codes]  # NO_GROUP is -1: the last

    def whole(self) -> Corpus:
        """All rows; the parts are let go."""
        rows = np.concatenate([np.zeros(0, dtype=ROW), *self._rows])
        self._rows = []
        codes = np.concatenate([np.zeros((len(self._labels), 0), dtype=np.int32), *self._codes], axis=1)
        self._codes = []
        return Corpus(rows, codes, self._labels)


@dataclass(frozen=True, slots=True)
class Corpus:
    """All rows of a manifest, by their place in it."""

    rows: npt.NDArray[Any]  # [N] of ROW
    codes: npt.NDArray[np.int32]  # [columns, N] places in `labels`
    labels: Sequence[Mapping[str, int]]

    def kept(self) -> Bools:
        """[N] whether no rule has rejected the row."""
        kept: Bools = self.rows["fired"] == 0
        return kept

    def microseconds(self) -> Places:
        """[N] whole microseconds of audio; 0 where it cannot be opened."""
        lengths: Places = np.rint(np.nan_to_num(self.rows["seconds"]) * MICRO).astype(np.int64)
        return lengths

    def first_rule(self, rules: int) -> npt.NDArray[np.uint8]:
        """[N] the place of the first of `rules` rules that fired, NO_RULE where none did."""
        first = np.full(len(self.rows), NO_RULE, dtype=np.uint8)
        for place in reversed(range(rules)):
            first[(self.rows["fired"] >> np.uint64(place)) & np.uint64(1) == 1] = place
        return first

    def groups(self, grouping: Grouping) -> Groups:
        """The group of every row."""
        if len(self.labels) == 1:
            return Groups(self.codes[0], list(self.labels[0]), self.labels[0])
        return join_groups(list(self.codes), self.labels, grouping.columns, self.kept())


def repeated(values: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.uint64], Places]:
    """The values that stand more than once, and how often."""
    ordered = np.sort(values)
    edges = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))[: len(values) + 1]
    counts = np.diff(edges)
    return ordered[edges[:-1]][counts > 1], counts[counts > 1]


def repeated_ids(corpus: Corpus, spool: Spool, shown: int) -> tuple[dict[str, list[int]], int]:
    """Ids that the manifest gives to several rows: the first `shown` with their lines, and how many there are.

    Ids made from path and text may repeat: rules find those rows. One that the manifest gives to any row may not.
    """
    rows = corpus.rows
    values, _ = repeated(rows["id"])
    said = np.unique(rows["id"][rows["names_itself"]])
    values = values[np.isin(values, said)]
    if not len(values):
        return {}, 0
    places = np.flatnonzero(np.isin(rows["id"], values))
    order = dict.fromkeys(rows["id"][places].tolist())
    some = np.array(list(order)[:shown], dtype=np.uint64)
    found: dict[str, list[int]] = {}
    for record in spool.records(np.flatnonzero(np.isin(rows["id"], some))):
        found.setdefault(record["id"], []).append(record["line"])
    return {name: lines for name, lines in found.items() if len(lines) > 1}, len(values)


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows that repeat another."""

    stays: npt.NDArray[np.int64]  # [N] the place of the row that stays in its stead; -1: it repeats none
    names: Mapping[int, str]  # of the rows that stay: id and line

    def finding(self, place: int) -> Finding | None:
        """What is held against a row."""
        stays = int(self.stays[place])
        return None if stays < 0 else Finding(self.names[stays])


def no_duplicates(corpus: Corpus) -> Duplicates:
    """Where they are not looked for."""
    return Duplicates(np.full(len(corpus.rows), -1, dtype=np.int64), {})


def duplicates(corpus: Corpus, spool: Spool) -> Duplicates:
    """Of rows that are the same one stays: one that no rule rejects, if there is one; of these the smallest id.

    Rows of the same id are told apart by what else they say; the line decides only between rows that are equal in all.
    """
    groups = _same_rows(corpus.rows)
    stays = np.full(len(corpus.rows), -1, dtype=np.int64)
    fit = corpus.kept()
    any_fit = np.zeros(int(groups.max(initial=-1)) + 1, dtype=bool)
    any_fit[groups[(groups >= 0) & fit]] = True
    members = np.flatnonzero(groups >= 0)
    eligible = members[fit[members] | ~any_fit[groups[members]]]
    best: dict[int, tuple[tuple[Any, ...], int]] = {}
    for place, record in zip(eligible.tolist(), spool.records(eligible), strict=True):
        group, order = int(groups[place]), _order(record)
        if group not in best or order < best[group][0]:
            best[group] = order, place
    chosen = np.array([best[group][1] for group in range(len(best))], dtype=np.int64)
    repeats = members[chosen[groups[members]] != members] if len(members) else members
    stays[repeats] = chosen[groups[repeats]] if len(repeats) else -1
    return Duplicates(stays, {place: f"{order[0]} (line {order[-1]})" for order, place in best.values()})


def _same_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[N] a number for each set of rows that are the same, 0, 1, ...; -1 for rows that repeat none."""
    one, two = rows["same_1"], rows["same_2"]
    values, _ = repeated(one)
    places = np.flatnonzero(np.isin(one, values) & ((one != 0) | (two != 0)))
    groups = np.full(len(rows), -1, dtype=np.int64)
    if not len(places):
        return groups
    order = places[np.lexsort((two[places], one[places]))]
    new = np.concatenate([[True], (one[order][1:] != one[order][:-1]) | (two[order][1:] != two[order][:-1])])
    number = np.cumsum(new) - 1
    several = np.bincount(number) > 1
    again = np.cumsum(several) - 1
    groups[order] = np.where(several[number], again[number], -1)
    return groups


def _order(record: Mapping[str, Any]) -> tuple[Any, ...]:
    named = {name: str(value) for name, value in record.items() if name not in ("id", "line", "duration")}
    return record["id"], sorted(named.items()), record["line"]


def rare_scripts(corpus: Corpus, most_share: float) -> dict[str, float]:
    """The scripts that few of the kept rows are written in, with their share; one script alone is never rare."""
    written = np.bincount(corpus.rows["script"][corpus.kept()], minlength=len(WRITTEN))
    written[WRITTEN.index("none")] = 0
    shares = {name: float(rows / written.sum()) for name, rows in zip(WRITTEN, written.tolist(), strict=True) if rows}
    return {name: share for name, share in shares.items() if share < most_share}


def repeated_lines(corpus: Corpus, spool: Spool) -> list[dict[str, Any]]:
    """The texts that stand in most of the kept rows: candidates for the patterns of clean.boilerplate."""
    kept, texts = np.flatnonzero(corpus.kept()), corpus.rows["text"]
    values, counts = repeated(texts[kept])
    order = np.lexsort((values, -counts))
    common = counts[order] > max(COMMON_SHARE * len(kept), LEAST_REPEATED - 1)
    shown = order[common | ((np.arange(len(order)) < SHOWN_REPEATED) & (counts[order] >= LEAST_REPEATED))]
    lines = []
    for value, rows in zip(values[shown[:MOST_REPEATED]], counts[shown[:MOST_REPEATED]].tolist(), strict=True):
        first = kept[np.flatnonzero(texts[kept] == value)[0]]
        lines.append({"text": spool.record(int(first))["text"].strip()[:SHOWN_LETTERS], "rows": rows})
    return sorted((line for line in lines if line["text"]), key=lambda line: (-line["rows"], line["text"]))
