"""Manifest files as records: JSONL, CSV and Parquet, one line at a time, without trusting any of it.

A line that cannot be read comes out as its reason instead of a record, so that all broken lines are told at once.
Text is UTF-8; a byte order mark, CRLF and blank lines are let pass, since spreadsheets write them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from voxtrain.fault import Fault, InputError

Record = dict[str, Any]
Line = tuple[int, Record | str]
"""1-based line in the source (Parquet: row), and its columns or the reason why it cannot be read."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_ROWS = 8192  # at a time: bounds the memory that Python objects of one batch take


def check_file(path: Path) -> None:
    """Raises InputError where there is no manifest at `path`, or none of a known kind."""
    where = f"data.manifest = {path}"
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        raise InputError(Fault(where, what, "name a manifest: a JSONL, CSV or Parquet file, one row per clip"))
    if path.suffix.lower() not in READERS:
        what = f"the kind of a manifest is told by its ending, one of {', '.join(READERS)}"
        raise InputError(Fault(where, what, "rename the file"))


def records(path: Path) -> Iterator[Line]:
    """Every line of the manifest at `path`. Raises InputError where it is missing, of an unknown kind or damaged."""
    check_file(path)
    try:
        yield from READERS[path.suffix.lower()](path)
    except OSError as error:
        what = f"the file cannot be read: {error.strerror or error}"
        raise InputError(Fault(f"data.manifest = {path}", what, "check the file and its permissions")) from None


def _jsonl(path: Path) -> Iterator[Line]:
    with path.open("rb") as lines:  # bytes: text mode would also split at other line separators inside a transcript
        for number, line in enumerate(lines, start=1):
            content = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).strip()
            if content:
                yield number, _object(content)


def _object(line: bytes) -> Record | str:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"this is not UTF-8: byte 0x{line[error.start]:02x} in column {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"this is not JSON: {error.msg} in column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return f"this is not usable JSON: {error}"
    return value if isinstance(value, dict) else f"this is JSON, but no object: {type(value).__name__}"


def _csv(path: Path) -> Iterator[Line]:
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        table = csv.reader(lines, strict=True)
        header: list[str] | None = None
        while True:
            number = table.line_num + 1  # where the record begins: a quoted cell may hold line breaks
            try:
                cells = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, f"this is not CSV: {error}"
                continue
            if not cells:
                continue
            if header is None:
                header = cells
                if len(set(header)) < len(header):
                    yield number, "the header names a column twice"
            else:
                yield number, _cells(header, cells)


def _cells(header: list[str], cells: list[str]) -> Record | str:
    """An empty cell is None, as CSV has no other way to say so."""
    if len(cells) != len(header):
        return f"this has {len(cells)} cells, the header {len(header)}: is a comma or a quote inside a text unquoted?"
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return "this is not UTF-8"
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _parquet(path: Path) -> Iterator[Line]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches(PARQUET_ROWS):
                for record in _batch(batch):
                    number += 1
                    yield number, record
    except pyarrow.ArrowException as error:
        what = f"this is not a Parquet file, or a damaged one: {' '.join(str(error).split())[:200]}"
        raise InputError(Fault(f"data.manifest = {path}", what, "write the file again")) from None


def _batch(batch: Any) -> list[Record | str]:
    """The rows of an Arrow batch; only where one of them cannot be read, each on its own."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):  # text that is not UTF-8; a date that Python cannot hold
        return [_one_row(batch.slice(place, 1)) for place in range(batch.num_rows)]


def _one_row(batch: Any) -> Record | str:
    try:
        record: Record = batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return f"this row cannot be read: {error}"
    return record


READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
