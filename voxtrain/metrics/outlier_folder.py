"""The files of the outlier trace: outliers/step_NNNNNNN.json, outliers/exclude.jsonl and outliers/rows.jsonl.

All are functions of the steps so far: a run that goes on from step N first drops what later steps left there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxtrain.durable import read_jsonl, write_json, write_jsonl
from voxtrain.manifest.row import Row
from voxtrain.run_folder import STEP_NAME, DataFolder, RunFolder


class OutlierFolder:
    """Where traces lie, and which rows they have named so far."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.root = run.outliers
        self._named: list[dict[str, Any]] = []  # lines of exclude.jsonl

    @property
    def exclude(self) -> Path:
        """One line per suspected row: id, step, why. What `clean.exclude` takes."""
        return self._run.outlier_rows

    @property
    def visits(self) -> Path:
        """One line per step: its rows with their losses, append-only."""
        return self._run.row_visits

    def steps(self) -> list[int]:
        """The steps that have a trace, ascending."""
        found = (STEP_NAME.fullmatch(path.stem) for path in self.root.glob("step_*.json"))
        return sorted(int(match[1]) for match in found if match)

    def named(self) -> dict[str, int]:
        """The suspected rows, each with the step that named it."""
        return {line["id"]: line["step"] for line in self._named}

    def cut_back(self, step: int) -> None:
        """Drop what steps after `step` left, and files that were being written when a process was killed."""
        self.root.mkdir(parents=True, exist_ok=True)
        for left in self.root.glob(".writing_*"):
            left.unlink()
        for later in self.steps():
            if later > step:
                self._run.outlier(later).unlink()
        written = read_jsonl(self.exclude) if self.exclude.exists() else []
        self._named = [line for line in written if line["step"] <= step]
        if not self._named:
            self.exclude.unlink(missing_ok=True)
        elif len(self._named) < len(written):
            write_jsonl(self.exclude, self._named)

    def write(self, step: int, trace: Mapping[str, Any], suspects: Mapping[str, str]) -> None:
        """Write the trace of a step, and add rows, with the reason, that exclude.jsonl does not hold yet."""
        write_json(self._run.outlier(step), trace)
        known = self.named()
        new = [{"id": row, "step": step, "why": why} for row, why in suspects.items() if row not in known]
        if new:
            self._named += new
            write_jsonl(self.exclude, self._named)


class RowFacts:
    """What is known of rows beside their losses: text, line, length, and what the audit reported of them."""

    def __init__(self, run: RunFolder, rows: Sequence[Row]) -> None:
        self._rows, self._reported_at = rows, DataFolder(run.data).reported
        self._reported: dict[str, list[dict[str, Any]]] | None = None

    def rows(self, ids: set[str]) -> dict[str, Row]:
        """Some rows by id. Looks through all: an index of a million would cost more than the few looks."""
        return {row.id: row for row in self._rows if row.id in ids}

    def flags(self, row_id: str) -> list[dict[str, Any]]:
        """What the audit reported of a row without rejecting it: rule, value. Empty where no report is there."""
        if self._reported is None:
            self._reported = {}
            for found in read_jsonl(self._reported_at) if self._reported_at.is_file() else []:
                flag = {"rule": found.get("rule"), "value": found.get("value")}
                self._reported.setdefault(str(found.get("id")), []).append(flag)
        return self._reported.get(row_id, [])
