"""Durable files: complete or absent, whatever happens while they are written.

A file or folder is written aside, flushed and renamed, and its parent is flushed. Append-only logs are the exception:
readers skip a torn last line, and a resumed run cuts them back to the step that it resumes from.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


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


@contextmanager
def stream_whole(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to write bytes to, piece by piece; it stands at `path` once it is whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with file_aside(path) as aside, aside.open("wb", buffering=1 << 20) as pieces:
        yield pieces


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
