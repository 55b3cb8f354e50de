"""The leakage certificate, split.json: what lies in which split, and whatever two splits have in common.

Training reads it and refuses to start without a sound one. It says:

    group_by, seed, method, fingerprint     what the split was made by; the fingerprint is that of audit.json
    splits          of each: groups, rows, seconds, expected_share, share_of_groups, share_of_rows, share_of_seconds,
                    pinned_groups, group_names (the first GROUPS_LISTED) and groups_left_out, largest_groups
    overlaps        of each pair of splits ("train+validation", ...): the groups in both, which must be none
    shared_audio    of each pair: the files that stand in both: shared (how many), rows of each split, examples
    same_samples    the same, where the samples are the same whatever the file; null where no audio was decoded
    neighbours      slices of one recording told by path (a_0001.wav, a_0002.wav); also adjacent_rows of the pair, and
                    numbered_through (stems that run through the whole set, so that they name no recording)
    near_text       texts that are the same or nearly: score (from which on), of each pair rows and examples; null where
                    not looked for. unclear_rows of training are too alike to have been compared with all
    moved_groups    moved by the guarantee that no split is empty; since_previous: against split.previous, or null
    warnings        all that a reader must know, in sentences
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxtrain.durable import read_json
from voxtrain.fault import Fault, InputError
from voxtrain.manifest.splitting.crossing import PAIRS, Crossing, Neighbours, pair_name
from voxtrain.manifest.splitting.earlier import EarlierSplit
from voxtrain.manifest.splitting.group import Grouping
from voxtrain.manifest.splitting.near import NearText
from voxtrain.manifest.splitting.split import GroupedSplit, SplitGroups
from voxtrain.manifest.splitting.words import split_warnings
from voxtrain.run_folder import SPLITS, DataFolder

GROUPS_LISTED = 1000  # of each split: a split by rows may have a million
LARGEST_GROUPS = 20
MICRO = 1_000_000


class Certificate:
    """The certificate of a split while its rows are written."""

    def __init__(
        self, groups: SplitGroups, settings: GroupedSplit, grouping: Grouping, seed: int, near_score: float | None
    ) -> None:
        """near_score: of 100, from which on texts are near-duplicates (`clean.near_duplicate_score`); None: not told.

        Raises InputError where split.previous is no data folder.
        """
        self._groups, self._settings, self._grouping, self._seed = groups, settings, grouping, seed
        self._near = None if near_score is None else NearText(near_score)
        self._earlier = None if settings.previous is None else EarlierSplit(DataFolder(settings.previous))
        self._names: dict[str, set[str]] = {split: set() for split in SPLITS}
        self._files, self._samples = Crossing(), Crossing()
        self._neighbours = Neighbours(grouping.by_row)
        self._rows = dict.fromkeys(SPLITS, 0)
        self._decoded = False
        self._training = False

    def add(self, split: str, record: Mapping[str, Any]) -> None:
        """A row as its split file has it (id, audio, text, line, group; samples where it was decoded).

        Every row of validation and test must come before the first of train, in any order else: training is looked
        up row by row and not remembered.
        """
        assert split == SPLITS[0] or not self._training, "held-out rows come first"
        self._training = split == SPLITS[0]
        row_id, line, group, audio = record["id"], record["line"], record["group"], record["audio"]
        self._files.add(split, audio, row_id, line)
        self._neighbours.add(split, audio, group, row_id, line)
        samples = record.get("samples")
        if samples is not None:
            self._decoded = True
            self._samples.add(split, samples, row_id, line)
        self._add_texts(split, [record])

    def add_apart(self, split: str, records: Sequence[Mapping[str, Any]]) -> None:
        """Rows that are known to share neither file, samples nor stem with another split; else as `add`."""
        assert split == SPLITS[0] or not self._training, "held-out rows come first"
        self._training = self._training or (split == SPLITS[0] and bool(records))
        self._decoded = self._decoded or any("samples" in record for record in records)
        self._add_texts(split, records)

    def _add_texts(self, split: str, records: Sequence[Mapping[str, Any]]) -> None:
        self._rows[split] += len(records)
        self._names[split].update(record["group"] for record in records)
        if self._near is not None:
            self._near.add(split, records)
        if self._earlier is not None:
            for record in records:
                self._earlier.add(split, record["group"], record["id"])

    def expect_numbered(self, groups: Collection[str]) -> None:
        """The held-out groups that have a path with a last number, those of rows that stand apart among them."""
        self._neighbours.expect(groups)

    @property
    def looks_at_all(self) -> bool:
        """Whether every row of training must be added: for its text, or against an earlier split."""
        return self._near is not None or self._earlier is not None

    def pass_over(self, rows: int) -> None:
        """Count rows of training that stand apart, of which nothing else has to be known."""
        self._rows[SPLITS[0]] += rows

    def record(self, fingerprint: str) -> dict[str, Any]:
        """What split.json says, once every row was added. fingerprint: of the audit."""
        overlaps = {pair_name(one, other): sorted(self._names[one] & self._names[other]) for one, other in PAIRS}
        splits = self._sizes()
        counted = {name: size["rows"] for name, size in splits.items()}
        if any(overlaps.values()) or counted != self._rows:
            what = f"a group is in two splits: {overlaps}; rows by group {counted}, written {self._rows}"
            raise AssertionError(f"{what}. This is a bug of the split")
        record = {
            "group_by": self._grouping.value if isinstance(self._grouping.value, str) else list(self._grouping.value),
            "seed": self._seed,
            "method": self._settings.method,
            "splits": splits,
            "overlaps": overlaps,
            "shared_audio": self._files.pairs("audio"),
            "same_samples": self._samples.pairs("samples") if self._decoded else None,
            "neighbours": self._neighbours.to_record(),
            "near_text": None if self._near is None else self._near.to_record(),
            "moved_groups": [move.to_record() for move in self._groups.moves],
            "since_previous": None if self._earlier is None else self._earlier.to_record(),
        }
        warnings = [] if self._grouping.warning is None else [self._grouping.warning]
        return record | {"warnings": warnings + split_warnings(record), "fingerprint": fingerprint}

    def _sizes(self) -> dict[str, dict[str, Any]]:
        groups, expected = self._groups, self._settings.shares()
        kept = [groups.splits == code for code in range(len(SPLITS))]
        sums = [(int(of.sum()), int(groups.rows[of].sum()), int(groups.microseconds[of].sum())) for of in kept]
        totals = [max(1, sum(column)) for column in zip(*sums, strict=True)]
        sizes = {}
        for name, of, (count, rows, microseconds) in zip(SPLITS, kept, sums, strict=True):
            names = heapq.nsmallest(GROUPS_LISTED, (groups.names[code] for code in np.flatnonzero(of).tolist()))
            sizes[name] = {
                "groups": count,
                "rows": rows,
                "seconds": microseconds / MICRO,
                "expected_share": expected[name],
                "share_of_groups": count / totals[0],
                "share_of_rows": rows / totals[1],
                "share_of_seconds": microseconds / totals[2],
                "pinned_groups": groups.pinned.get(name, 0),
                "group_names": names,
                "groups_left_out": count - len(names),
                "largest_groups": self._largest(np.flatnonzero(of)),
            }
        return sizes

    def _largest(self, codes: np.ndarray[Any, np.dtype[np.int64]]) -> list[dict[str, Any]]:
        groups = self._groups
        if len(codes) > LARGEST_GROUPS:
            rows = groups.rows[codes]
            codes = codes[rows >= np.partition(rows, -LARGEST_GROUPS)[-LARGEST_GROUPS]]
        largest = heapq.nsmallest(LARGEST_GROUPS, codes.tolist(), key=lambda c: (-groups.rows[c], groups.names[c]))
        return [
            {"group": groups.names[c], "rows": int(groups.rows[c]), "seconds": int(groups.microseconds[c]) / MICRO}
            for c in largest
        ]


def read_certificate(folder: DataFolder) -> dict[str, Any]:
    """The certificate of a data folder. Raises InputError where there is none, or none that allows training."""
    record = _object(folder.split)
    audit = _object(folder.audit)
    sound = isinstance(record.get("splits"), dict) and isinstance(record.get("overlaps"), dict)
    if not sound or {pair_name(*pair) for pair in PAIRS} - record["overlaps"].keys():
        raise _refusal(folder.split, "this is no leakage certificate, or a part of one")
    shared = {pair: groups for pair, groups in record["overlaps"].items() if groups}
    if shared:
        pair, groups = next(iter(shared.items()))
        raise _refusal(folder.split, f"{pair.replace('+', ' and ')} share groups, such as {next(iter(groups))!r}")
    if not record.get("fingerprint") or record["fingerprint"] != audit.get("fingerprint"):
        raise _refusal(folder.split, "it certifies another preparation than audit.json beside it tells of")
    for name in SPLITS:
        certified, written = _rows_of(record["splits"], name), _lines(folder, name)
        if certified != written:
            what = f"it certifies {certified} rows of {name}, and {folder.rows(name).name} has {written}"
            raise _refusal(folder.split, what)
    return record


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except FileNotFoundError:
        raise _refusal(path, "there is no such file, so nothing shows that training has not heard validation") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _refusal(path, f"the file cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise _refusal(path, "this is JSON, but no object")
    return value


def _rows_of(splits: Mapping[str, Any], name: str) -> Any:
    size = splits.get(name)
    return size.get("rows") if isinstance(size, dict) else None


def _lines(folder: DataFolder, split: str) -> int | None:
    """How many rows a split file has; a million are counted in under a second."""
    try:
        with folder.rows(split).open("rb") as content:
            return sum(block.count(b"\n") for block in iter(lambda: content.read(1 << 20), b""))
    except OSError:
        return None


def _refusal(path: Path, what: str) -> InputError:
    remedy = "prepare the rows again (python -m voxtrain.manifest data.manifest=... out=DIR, or a new run)"
    return InputError(Fault(str(path), what, remedy))
