"""The run folder: the only place where training, validation, listening, selection and reports meet.

This is the only file that spells a path under outputs/. Each file there has one writer and is complete or absent:
written aside, flushed, renamed, and the parent flushed. Append-only logs are the exception: they are flushed at each
row, readers skip a torn last line, and a resumed run cuts them back to the step it resumes from.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP_NAME = re.compile(r"step_(\d{7})")
SPLITS = ("train", "validation", "test")


def step_name(step: int) -> str:
    """`step_0001610`: the name of a checkpoint, state, outlier or listening entry of that step."""
    return f"step_{step:07d}"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run."""

    root: Path

    @property
    def config(self) -> Path:
        """Resolved settings, YAML."""
        return self.root / "config.yaml"

    @property
    def environment(self) -> Path:
        """Machine and package versions, JSON."""
        return self.root / "environment.json"

    @property
    def run(self) -> Path:
        """Status, exit code, steps, evidence of completion, JSON."""
        return self.root / "run.json"

    @property
    def data(self) -> Path:
        """Where the audited, cleaned and split rows are."""
        return self.root / "data"

    @property
    def metrics(self) -> Path:
        """One row per optimizer step, CSV, append-only."""
        return self.root / "metrics.csv"

    @property
    def log(self) -> Path:
        """What the run said, append-only."""
        return self.root / "run.log"

    @property
    def memory(self) -> Path:
        """Predicted and measured memory, JSON."""
        return self.root / "memory.json"

    @property
    def report(self) -> Path:
        """The run report, one self-contained page."""
        return self.root / "report.html"

    @property
    def checkpoints(self) -> Path:
        """Numbered checkpoints and the link `latest`."""
        return self.root / "checkpoints"

    @property
    def states(self) -> Path:
        """Resumable states."""
        return self.root / "state"

    @property
    def evaluation(self) -> Path:
        """What the post-hoc process found."""
        return self.root / "evaluation"

    @property
    def evaluated_checkpoints(self) -> Path:
        """One line per judged checkpoint, CSV."""
        return self.evaluation / "checkpoints.csv"

    @property
    def evaluated_rows(self) -> Path:
        """One record per checkpoint, row and draw, Parquet."""
        return self.evaluation / "rows.parquet"

    @property
    def selection(self) -> Path:
        """Which checkpoint, by which rule, on what evidence, JSON."""
        return self.evaluation / "selection.json"

    @property
    def listening(self) -> Path:
        """The listening page, its table and the WAV files."""
        return self.evaluation / "listening"

    @property
    def listening_page(self) -> Path:
        """The listening page, HTML."""
        return self.listening / "index.html"

    @property
    def listening_table(self) -> Path:
        """One line per sample, CSV."""
        return self.listening / "listening.csv"

    @property
    def post_hoc(self) -> Path:
        """The post-hoc processes with their exit codes and seconds, JSON."""
        return self.evaluation / "post_hoc.json"

    @property
    def post_hoc_log(self) -> Path:
        """What the post-hoc processes said, append-only."""
        return self.evaluation / "post_hoc.log"

    def checkpoint(self, step: int) -> Path:
        """The folder of one numbered checkpoint."""
        return self.checkpoints / step_name(step)

    def state(self, step: int) -> Path:
        """The folder of the resumable state after `step` updates."""
        return self.states / step_name(step)

    def outlier(self, step: int) -> Path:
        """The rows behind a spike at `step`, JSON."""
        return self.root / "outliers" / f"{step_name(step)}.json"

    def samples(self, step: int) -> Path:
        """The folder of the WAV files made from one checkpoint."""
        return self.listening / step_name(step)

    def checkpoint_steps(self) -> list[int]:
        """The steps of all complete checkpoints, ascending."""
        return numbered_steps(self.checkpoints)

    def state_steps(self) -> list[int]:
        """The steps of all complete states, ascending (more than one only while a newer one replaces an older)."""
        return numbered_steps(self.states)


@dataclass(frozen=True, slots=True)
class DataFolder:
    """What manifest preparation writes: RUN/data, or the folder that `voxtrain.manifest out=DIR` names."""

    root: Path

    @property
    def audit(self) -> Path:
        """The ledger, JSON."""
        return self.root / "audit.json"

    @property
    def rejects(self) -> Path:
        """One line per rejected row, JSONL."""
        return self.root / "rejects.jsonl"

    @property
    def split(self) -> Path:
        """The leakage certificate, JSON."""
        return self.root / "split.json"

    def rows(self, split: str) -> Path:
        """The kept rows of one of `SPLITS`, JSONL with absolute audio paths."""
        return self.root / f"{split}.jsonl"


def numbered_steps(folder: Path) -> list[int]:
    """The steps of the folders named `step_NNNNNNN` directly under `folder`, ascending."""
    if not folder.is_dir():
        return []
    found = (STEP_NAME.fullmatch(entry.name) for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink())
    return sorted(int(match[1]) for match in found if match)


def flush_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside:
        aside.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, complete or not at all; NaN and infinity are refused, since JSON has neither."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write one JSON object per line, complete or not at all."""
    write_whole(path, "".join(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records with the same keys as CSV, complete or not at all."""
    text = io.StringIO()
    if records:
        table = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(records)
    write_whole(path, text.getvalue())


@contextmanager
def file_aside(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it is flushed and renamed to `path`, on error removed."""
    aside = path.with_name(f".writing_{os.getpid()}_{path.name}")
    try:
        yield aside
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(path)
        flush_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def folder_aside(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path` to fill; on success it is flushed and renamed to `path`.

    A folder that stands at `path` already is replaced: moved away first, since a rename onto a folder that is not
    empty fails, and removed last.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".writing_{os.getpid()}_{path.name}")
    older = path.with_name(f".replaced_{os.getpid()}_{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        for folder, _, names in os.walk(aside):
            for name in names:
                with (Path(folder) / name).open("rb") as written:
                    os.fsync(written.fileno())
            flush_folder(Path(folder))
        if path.exists():
            path.rename(older)
        aside.rename(path)
        flush_folder(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def read_log_rows(path: Path) -> list[dict[str, str]]:
    """Read an append-only CSV log, skipping a torn last line."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(io.StringIO(whole)) if None not in row and None not in row.values()]


def cut_log_back(path: Path, step: int) -> None:
    """Drop the rows of an append-only CSV log (first column `step`) that lie after `step`, and a torn last line."""
    rows = read_log_rows(path)
    write_table(path, [row for row in rows if int(row["step"]) <= step]) if rows else path.unlink(missing_ok=True)


def remove_if_empty(folder: Path, stop: Path) -> None:
    """Remove `folder` and its empty parents up to, and without, `stop`."""
    while folder != stop and stop in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
