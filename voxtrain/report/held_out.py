"""What a run's selected checkpoint scored on each held-out row, and whether two runs were judged alike.

Losses of two runs are compared row by row: that needs the same rows, the same audio positions, draws and weights of
the losses. Whoever compares others anyway compares the rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voxtrain.durable import read_jsonl
from voxtrain.fault import Fault, InputError
from voxtrain.report.evidence import Evidence, number
from voxtrain.run_folder import DataFolder

LOSSES = ("loss/total", "loss/diff", "loss/stop")
TERMS = b"voxtrain.terms"
"""Under this key the schema of rows.parquet says how its losses were made."""
RE_JUDGE = "judge the runs alike: the same rows, validation.draws, validation.dtype and train.loss_weights"


@dataclass(frozen=True)
class HeldOut:
    """The records of one run at its selected step: one entry for each held-out row, by id."""

    step: int
    rows: dict[str, tuple[Any, ...]]  # id -> recording, audio positions, text, what the audio holds
    losses: dict[str, NDArray[np.float64]]  # of LOSSES: [N], rows by id, each the mean over its draws
    draws: int
    dtype: str  # of the weights while judging
    weights: Mapping[str, float]  # of diff and stop in total

    @property
    def recordings(self) -> list[str]:
        """The recording of each row, by id."""
        return [str(row[0]) for row in self.rows.values()]


def read_held_out(evidence: Evidence) -> HeldOut | None:
    """The records of the selected checkpoint; None where none is selected, or none of it are there."""
    import pyarrow.parquet as pq

    path, step = evidence.run.evaluated_rows, evidence.selected_step
    if step is None or not path.is_file():
        return None
    try:
        table = pq.read_table(path)
        made = json.loads((table.schema.metadata or {})[TERMS])
        table = table.filter(np.asarray(table["step"]) == step).sort_by([("id", "ascending"), ("draw", "ascending")])
        column = {name: table[name].to_numpy() for name in ("id", "group", "positions", "loss/diff", "loss/stop")}
    except Exception as error:  # pyarrow's are of many kinds
        what = f"it cannot be read: {str(error).splitlines()[0]}"
        raise InputError(Fault(str(path), what, "judge again: python -m voxtrain.validation RUN")) from None
    return _held_out(evidence, step, column, int(made["draws"]), str(made["dtype"])) if table.num_rows else None


def _held_out(evidence: Evidence, step: int, column: dict[str, Any], draws: int, dtype: str) -> HeldOut:
    weights = (evidence.selection or {}).get("loss_weights") or evidence.setting("train.loss_weights") or {}
    weights = {name: number(weights.get(name)) for name in ("diff", "stop")}
    losses = {name: column[name].reshape(-1, draws).mean(axis=1) for name in ("loss/diff", "loss/stop")}
    losses["loss/total"] = weights["diff"] * losses["loss/diff"] + weights["stop"] * losses["loss/stop"]
    said = _contents(DataFolder(evidence.run.data).rows("validation"))
    rows = {
        name: (group, int(positions), *said.get(name, (None, None)))
        for name, group, positions in zip(
            *(column[of][::draws].tolist() for of in ("id", "group", "positions")), strict=True
        )
    }
    return HeldOut(step, rows, losses, draws, dtype, weights)


def _contents(path: Path) -> dict[str, tuple[Any, Any]]:
    """Of each row its text and what its audio holds: the samples where they are known, else how long it is."""
    try:
        records = read_jsonl(path)
    except (OSError, ValueError):
        return {}
    return {
        str(record.get("id")): (record.get("text"), record.get("samples") or record.get("duration"))
        for record in records
    }


def check_alike(runs: Sequence[tuple[str, HeldOut]]) -> None:
    """Raise InputError, with every reason, where a run was not judged as the first was. runs: name and records."""
    faults = [
        Fault(f"{name} and {runs[0][0]}", what, RE_JUDGE)
        for name, held_out in runs[1:]
        for what in _differences(runs[0][1], held_out)
    ]
    if faults:
        raise InputError(*faults)


def _differences(first: HeldOut, other: HeldOut) -> Iterator[str]:
    here, there = set(other.rows) - set(first.rows), set(first.rows) - set(other.rows)
    if here or there:
        yield f"they were judged on other rows: {_some(here)} in the one alone, {_some(there)} in the other"
    changed = {name for name in set(first.rows) & set(other.rows) if first.rows[name][1:] != other.rows[name][1:]}
    if changed:
        yield f"{_some(changed)} of the same name with another text or other audio"
    moved = {name for name in set(first.rows) & set(other.rows) if first.rows[name][0] != other.rows[name][0]}
    if moved:
        yield f"{_some(moved)} of the same name in another recording (data.group_by)"
    for what, mine, its in (
        ("validation.draws", other.draws, first.draws),
        ("validation.dtype", other.dtype, first.dtype),
        ("train.loss_weights.diff", other.weights["diff"], first.weights["diff"]),
        ("train.loss_weights.stop", other.weights["stop"], first.weights["stop"]),
    ):
        if mine != its:
            yield f"they were judged under {what} = {mine} and {its}"


def _some(names: set[str]) -> str:
    return f"{len(names)} row{'' if len(names) == 1 else 's'}" + (f" (such as {min(names)})" if names else "")
