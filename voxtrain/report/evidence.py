"""Everything that a report tells of a run, read from its folder. What is not there, or cannot be read, is None."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from voxtrain.durable import read_json, read_jsonl, read_log_rows
from voxtrain.run_folder import DataFolder, RunFolder

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Evidence:
    """The files of one run."""

    run: RunFolder
    config: Record | None
    environment: Record | None
    record: Record | None  # run.json
    audit: Record | None
    split: Record | None
    memory: Record | None
    selection: Record | None
    post_hoc: Record | None
    steps: list[dict[str, str]]  # metrics.csv
    saves: list[dict[str, str]]  # saves.csv, of all sittings
    checkpoints: list[dict[str, str]]  # evaluation/checkpoints.csv
    validation_ids: tuple[str, ...] | None
    traces: list[Record] | None  # outliers/step_*.json, by step; None where the run traces none
    excluded: list[Record]  # outliers/exclude.jsonl
    unreadable: list[str] = field(default_factory=list)  # what is wrong with files that are there

    def column(self, name: str) -> list[float]:
        """A column of metrics.csv; NaN where a cell is empty or absent."""
        return [number(row.get(name)) for row in self.steps]

    def setting(self, key: str) -> Any:
        """A setting by its dotted name; None where it is not there."""
        node: Any = self.config
        for part in key.split("."):
            node = node.get(part) if isinstance(node, Mapping) else None
        return node

    def judged(self, step: int | None) -> dict[str, str] | None:
        """The line of one step in evaluation/checkpoints.csv."""
        return next((row for row in self.checkpoints if whole(row.get("step")) == step), None)

    @property
    def selected_step(self) -> int | None:
        """The step to ship."""
        return whole((self.selection or {}).get("selected_step"))

    @property
    def ties(self) -> list[int]:
        """The steps that the selected one cannot be told from, itself among them; empty where intervals are unknown."""
        selection = self.selection or {}
        return sorted(selection.get("tie_set") or []) if selection.get("intervals") is not None else []

    @property
    def final_step(self) -> int | None:
        """The last judged step."""
        return whole(self.checkpoints[-1].get("step")) if self.checkpoints else None

    @property
    def peak_gib(self) -> float:
        """Measured peak memory: from memory.json, else the log's highest; NaN where neither is there."""
        measured = (self.memory or {}).get("measured")
        peak = number(measured.get("peak_gib")) if isinstance(measured, Mapping) else math.nan
        logged = [value for value in self.column("train/peak_gib") if math.isfinite(value)]
        return peak if math.isfinite(peak) else max(logged, default=math.nan)


def read_evidence(run: RunFolder) -> Evidence:
    """Read a run folder; a file that is broken is named in `unreadable` and counts as missing."""
    unreadable: list[str] = []

    def read(path: Path, how: Callable[[Path], Any], kind: type) -> Any:
        if not path.is_file():
            return None
        try:
            value = how(path)
        except Exception as error:  # a report is written on whatever there is, also of a run that broke
            value, reason = None, f"{type(error).__name__}: {error}".splitlines()[0]
        else:
            reason = f"it holds no {kind.__name__}"
        if isinstance(value, kind):
            return value
        unreadable.append(f"{path.relative_to(run.root)} cannot be read ({reason})")
        return None

    data = DataFolder(run.data)
    held_out = read(data.rows("validation"), read_jsonl, list)
    outliers = run.outliers
    traces = [read(path, read_json, dict) for path in sorted(outliers.glob("step_*.json"))]
    return Evidence(
        run=run,
        config=read(run.config, _settings, dict),
        environment=read(run.environment, read_json, dict),
        record=read(run.run, read_json, dict),
        audit=read(data.audit, read_json, dict),
        split=read(data.split, read_json, dict),
        memory=read(run.memory, read_json, dict),
        selection=read(run.selection, read_json, dict),
        post_hoc=read(run.post_hoc, read_json, dict),
        steps=read(run.metrics, read_log_rows, list) or [],
        saves=read(run.saves, read_log_rows, list) or [],
        checkpoints=sorted(read(run.evaluated_checkpoints, _table, list) or [], key=lambda row: number(row["step"])),
        validation_ids=None if held_out is None else tuple(sorted(str(row.get("id")) for row in held_out)),
        traces=[trace for trace in traces if trace is not None] if outliers.is_dir() else None,
        excluded=[line for line in read(run.outlier_rows, read_jsonl, list) or [] if isinstance(line, dict)],
        unreadable=unreadable,
    )


def _settings(path: Path) -> Any:
    # OmegaConf and not a YAML reader of our own: `1e-5` is a number to it, as it was when the run read it.
    return OmegaConf.to_container(OmegaConf.load(path), resolve=False)


def _table(path: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    if any(whole(row.get("step")) is None for row in rows):
        raise ValueError("a line has no step")
    return rows


def number(cell: Any) -> float:
    """A cell as a number; NaN where it is none."""
    try:
        return float(cell)
    except (TypeError, ValueError):
        return math.nan


def whole(cell: Any) -> int | None:
    """A cell as a whole number; None where it is none."""
    value = number(cell)
    return int(value) if math.isfinite(value) else None


def interval(row: Mapping[str, str], name: str) -> tuple[float, float] | None:
    """The interval of a column, from the columns that are named after it and end in `low` and `high`."""
    ends = []
    for end in ("low", "high"):
        found = [key for key in row if key.startswith(name) and key.endswith(end)]
        ends.append(number(row[found[0]]) if found else math.nan)
    return (ends[0], ends[1]) if all(map(math.isfinite, ends)) else None


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
