"""Two audits side by side: what went and what came, what that does to the steps, and whether the splits still agree.

    python -m voxtrain.manifest --diff A B [--json]

A and B are data folders, run folders, or audit.json files. Beyond numbers it looks for leakage between experiments:
rows held out in one audit that the other trains on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtrain.durable import read_json
from voxtrain.fault import DONE, Fault, InputError
from voxtrain.manifest.diff.rows import Outcomes, examples, read_outcomes
from voxtrain.manifest.diff.split import compare_splits
from voxtrain.manifest.page.ledger import touched
from voxtrain.manifest.page.words import number
from voxtrain.run_folder import DataFolder, RunFolder

USUAL_BATCH = 8
SETTINGS = ("seed", "group_by", "clean", "split")
LEDGER = ("manifest", "rows_in", "rows_kept", "reject_share", "seconds_in", "seconds_kept", "splits")
Chosen = NDArray[np.bool_]


@dataclass(frozen=True)
class Side:
    """One of the two audits; `rows` is None where its folder does not tell of every row."""

    path: Path
    audit: Mapping[str, Any]
    folder: DataFolder
    rows: Outcomes | None


def diff_main(paths: Sequence[Path], as_json: bool) -> int:
    """Compare two audits and print what differs; returns the exit code. Raises InputError."""
    if len(paths) != 2:
        what = f"{len(paths)} path{'' if len(paths) == 1 else 's'} given, where two audits are compared"
        raise InputError(Fault("--diff", what, "python -m voxtrain.manifest --diff A B"))
    found = diff(*paths)
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    else:
        from voxtrain.manifest.diff.table import print_diff

        print_diff(found)
    return DONE


def diff(a: Path, b: Path) -> dict[str, Any]:
    """What differs between two audits, as --json tells it. Raises InputError for paths that lead to none."""
    sides: list[Side] = []
    faults: list[Fault] = []
    for path in (a, b):
        try:
            sides.append(_side(path))
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
    one, other = sides
    splits, warnings = compare_splits(one.audit, one.rows, other.audit, other.rows)
    return {
        "a": _summary(one),
        "b": _summary(other),
        "settings": _settings(one.audit, other.audit),
        "rules": _rules(one, other),
        "rows": _rows(one, other),
        "contamination": _contamination(one, other),
        "splits": splits,
        "medians": _medians(one.audit, other.audit),
        "warnings": [*warnings, *_doubts(one, other)],
    }


def _side(path: Path) -> Side:
    path = path.expanduser()
    tried = [path] if path.is_file() else [DataFolder(path).audit, DataFolder(RunFolder(path).data).audit]
    standing = [audit for audit in tried if audit.is_file()]
    if not standing:
        what = "it holds no audit.json" if path.is_dir() else "there is no such file or folder"
        raise InputError(Fault(str(path), what, "name a data folder, a run folder or an audit.json"))
    try:
        audit = read_json(standing[0])
    except (OSError, ValueError) as error:
        raise InputError(Fault(str(standing[0]), f"this cannot be read: {error}", "audit the manifest again")) from None
    if not isinstance(audit, dict) or not number(audit.get("rows_in")) > 0:
        raise InputError(
            Fault(str(standing[0]), "this is no audit", "name a data folder, a run folder or an audit.json")
        )
    folder = DataFolder(standing[0].parent)
    rows = read_outcomes(folder, int(audit["rows_in"])) if standing[0] == folder.audit else None
    return Side(path, audit, folder, rows)


def _summary(side: Side) -> dict[str, Any]:
    batch = (side.audit.get("contamination") or {}).get("rows_per_step")
    return {"path": str(side.path), "rows_per_step": batch} | {name: side.audit.get(name) for name in LEDGER}


def _settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings that differ."""
    found = []
    for group in SETTINGS:
        a, b = one.get(group), other.get(group)
        if isinstance(a, dict) and isinstance(b, dict):
            keys = list(dict.fromkeys([*a, *b]))
            found += [(f"{group}.{key}", a.get(key), b.get(key)) for key in keys]
        else:
            found.append((group, a, b))
    return [{"key": key, "a": a, "b": b} for key, a, b in found if a != b]


def _rules(one: Side, other: Side) -> list[dict[str, Any]]:
    """Rows and seconds under each rule; by row id those under it in one audit only, and in both."""
    tables = [_by_rule(side.audit) for side in (one, other)]
    found = []
    for rule in dict.fromkeys([*tables[0], *tables[1]]):
        (rows_a, seconds_a), (rows_b, seconds_b) = (table.get(rule, (0, 0.0)) for table in tables)
        if rows_a or rows_b:
            line = {"rule": rule, "rows_a": rows_a, "rows_b": rows_b, "seconds_a": seconds_a, "seconds_b": seconds_b}
            found.append(line | _met(rule, one.rows, other.rows))
    return found


def _by_rule(audit: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    rows, seconds = audit.get("rejects_by_rule") or {}, audit.get("seconds_rejected_by_rule") or {}
    return {rule: (count, seconds.get(rule, 0.0)) for rule, count in rows.items()}


def _met(rule: str, a: Outcomes | None, b: Outcomes | None) -> dict[str, int | None]:
    if a is None or b is None:
        return {"only_a": None, "both": None, "only_b": None}
    ids_a, ids_b = a.ids[a.what == a.place(rule)], b.ids[b.what == b.place(rule)]
    both = len(np.intersect1d(ids_a, ids_b, assume_unique=True))
    return {"only_a": len(ids_a) - both, "both": both, "only_b": len(ids_b) - both}


def _rows(one: Side, other: Side) -> dict[str, Any] | None:
    """The kept rows that stayed, went and came, and why; None where a folder does not tell of every row."""
    a, b = one.rows, other.rows
    if a is None or b is None:
        return None
    _, in_a, in_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
    stayed = a.kept[in_a] & b.kept[in_b]
    return {
        "kept_by_both": {"rows": int(stayed.sum()), "seconds": a.seconds(in_a[stayed])},
        "went": _change(a, b, in_a, in_b, other.folder),
        "came": _change(b, a, in_b, in_a, one.folder),
    }


def _change(
    a: Outcomes, b: Outcomes, in_a: NDArray[np.intp], in_b: NDArray[np.intp], folder_b: DataFolder
) -> dict[str, Any]:
    """The rows that `a` keeps and `b` does not: rejected there, by rule, or not in its manifest at all."""
    met = np.zeros(len(a.ids), dtype=np.bool_)
    met[in_a] = True
    absent = a.kept & ~met
    lost = a.kept[in_a] & ~b.kept[in_b]
    by_rule = {}
    for place in np.unique(b.what[in_b[lost]]):
        rows = in_a[lost & (b.what[in_b] == place)]
        by_rule[b.names[place]] = {"rows": len(rows), "seconds": a.seconds(rows)}
    gone = absent.copy()
    gone[in_a[lost]] = True
    return {
        "rows": int(gone.sum()),
        "seconds": a.seconds(gone),
        "rejected_by_rule": dict(sorted(by_rule.items(), key=lambda entry: -entry[1]["rows"])),
        "not_in_the_manifest": {"rows": int(absent.sum()), "seconds": a.seconds(absent)},
        "examples": examples(folder_b.rejects, b.ids[in_b[lost]]),
    }


def _contamination(one: Side, other: Side) -> dict[str, Any]:
    """What bad rows do to steps of n rows: each audit's rejects left in, and the rows of A that B rejects."""
    shares = {
        "a": _reject_share(one.audit),
        "b": _reject_share(other.audit),
        "kept_by_a_rejected_by_b": _judged(one.rows, other.rows),
        "kept_by_b_rejected_by_a": _judged(other.rows, one.rows),
    }
    batches = {int((side.audit.get("contamination") or {}).get("rows_per_step") or 0) for side in (one, other)}
    steps = [
        {"rows_per_step": rows}
        | {name: None if share is None else touched(share, rows) for name, share in shares.items()}
        for rows in sorted({USUAL_BATCH, *batches} - {0})
    ]
    return {"shares": shares, "steps_touched": steps}


def _reject_share(audit: Mapping[str, Any]) -> float | None:
    kept = number(audit.get("rows_kept"))
    return None if math.isnan(kept) else 1 - kept / number(audit.get("rows_in"))


def _judged(one: Outcomes | None, other: Outcomes | None) -> float | None:
    """The share of the rows that one audit keeps and the other rejects."""
    if one is None or other is None or not one.kept.any():
        return None
    bad = np.isin(one.ids[one.kept], other.ids[~other.kept], assume_unique=True)
    return int(bad.sum()) / len(bad)


def _medians(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The medians of the kept rows that both audits tell."""
    tables = [_kept_medians(audit) for audit in (one, other)]
    return {
        name: {"a": tables[0][name], "b": tables[1][name], "shift": tables[1][name] - tables[0][name]}
        for name in tables[0]
        if name in tables[1]
    }


def _kept_medians(audit: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, spread in (audit.get("distributions") or {}).items():
        quantiles = ((spread.get("parts") or {}).get("kept") or {}).get("quantiles") or {}
        if "p50" in quantiles:
            found[name] = quantiles["p50"]
    return found


def _doubts(one: Side, other: Side) -> list[str]:
    """What a reader must know before he believes the comparison."""
    doubts = [
        f"{name} ({side.path}) does not tell of every row, so that rows are not followed one by one"
        for name, side in (("A", one), ("B", other))
        if side.rows is None
    ]
    a, b = one.rows, other.rows
    if a is not None and b is not None and not len(np.intersect1d(a.ids, b.ids)):
        doubts.append("no row of A has the id of a row of B: are these the same data? Ids follow from path and text")
    return doubts
