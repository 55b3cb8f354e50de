"""Manifest files as chunks of raw lines, and chunks as records: JSONL, CSV and Parquet, without trusting any of it.

A file is read in chunks, so that its size does not matter and other processes can do the parsing. A line that cannot be
read comes out as its reason instead of a record, so that all broken lines are told at once. Text is UTF-8; a byte order
mark, CRLF and blank lines are let pass, since spreadsheets write them.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from voxtrain.fault import Fault, InputError

Record = dict[str, Any]
Line = tuple[int, Record | str]
"""1-based line in the source (Parquet: row), and its columns or the reason why it cannot be read."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FIRST_ROWS = 64  # in the first chunk; each holds twice as many as the one before, so that the first results come soon
ROW_BYTES = 256  # of a typical line
LONGEST_LINE = 2**24  # bytes: a longer one would have to be held in memory as a whole
MOST_EXACT = 2**63  # orjson makes a float of an integer beyond 64 bits


class Chunk(Protocol):
    """Some lines of a manifest, not parsed yet."""

    @property
    def done(self) -> float:
        """The share of the file that lies before the end of this chunk."""

    def lines(self) -> list[Line]:
        """What they say."""


def check_file(path: Path) -> None:
    """Raises InputError where there is no manifest at `path`, or none of a known kind."""
    where = f"data.manifest = {path}"
    if not path.is_file():
        what = "this is a folder" if path.is_dir() else "there is no such file"
        raise InputError(Fault(where, what, "name a manifest: a JSONL, CSV or Parquet file, one row per clip"))
    if path.suffix.lower() not in READERS:
        what = f"the kind of a manifest is told by its ending, one of {', '.join(READERS)}"
        raise InputError(Fault(where, what, "rename the file"))


def chunks(path: Path, most_rows: int) -> Iterator[Chunk]:
    """The manifest at `path`, about `most_rows` lines at a time and fewer at first.

    Raises InputError where it is missing, of an unknown kind or damaged.
    """
    check_file(path)
    try:
        yield from READERS[path.suffix.lower()](path, most_rows)
    except OSError as error:
        what = f"the file cannot be read: {error.strerror or error}"
        raise InputError(Fault(f"data.manifest = {path}", what, "check the file and its permissions")) from None


@dataclass(frozen=True, slots=True)
class Told:
    """Lines that were parsed while the file was read."""

    told: list[Line]
    done: float

    def lines(self) -> list[Line]:
        """What they say."""
        return self.told


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Whole lines of a JSONL file."""

    first: int  # number of the first line
    data: bytes
    done: float

    def lines(self) -> list[Line]:
        """What they say."""
        data = self.data.removeprefix(BYTE_ORDER_MARK) if self.first == 1 else self.data
        numbered = enumerate(data.split(b"\n"), self.first)
        return [(number, _object(content)) for number, line in numbered if (content := line.strip())]


def _jsonl(path: Path, most_rows: int) -> Iterator[Chunk]:
    size = max(path.stat().st_size, 1)
    with path.open("rb") as file:  # bytes: text mode would also split at other line separators inside a transcript
        number, rest, rows = 1, b"", min(FIRST_ROWS, most_rows)
        while block := file.read(rows * ROW_BYTES):
            data = rest + block
            end = data.rfind(b"\n") + 1
            whole, rest = data[:end], data[end:]
            if whole:
                yield JsonLines(number, whole, file.tell() / size)
                number += whole.count(b"\n")
            elif len(rest) > LONGEST_LINE:
                rest = _after_line(file)
                yield Told([(number, f"this line has more than {LONGEST_LINE >> 20} MiB")], file.tell() / size)
                number += 1
            rows = min(rows * 2, most_rows)
        if rest:
            yield JsonLines(number, rest, 1.0)


def _after_line(file: io.BufferedReader) -> bytes:
    """Read on to the end of a line; what was read beyond it."""
    while block := file.read(LONGEST_LINE):
        _, newline, after = block.partition(b"\n")
        if newline:
            return after
    return b""


def _object(line: bytes) -> Record | str:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:  # also of what is let pass: NaN, 1e999 and halves of surrogate pairs
        return _patient_object(line)
    if type(value) is not dict:
        return f"this is JSON, but no object: {type(value).__name__}"
    for one in value.values():
        if type(one) is float and not -MOST_EXACT < one < MOST_EXACT:
            return _patient_object(line)
    return value


def _patient_object(line: bytes) -> Record | str:
    """The same by Python's parser: it lets more pass, keeps the digits of large numbers and says what is wrong."""
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return f"this is not UTF-8: byte 0x{line[error.start]:02x} in column {error.start + 1}"
    except json.JSONDecodeError as error:
        return f"this is not JSON: {error.msg} in column {error.colno}"
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        return f"this is not usable JSON: {error}"
    return value if isinstance(value, dict) else f"this is JSON, but no object: {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows of a CSV file; a string is the reason why a row cannot be read."""

    header: list[str]
    rows: list[tuple[int, list[str] | str]]
    done: float

    def lines(self) -> list[Line]:
        """What they say."""
        return [(number, cells if isinstance(cells, str) else self._record(cells)) for number, cells in self.rows]

    def _record(self, cells: list[str]) -> Record | str:
        """An empty cell is None, as CSV has no other way to say so."""
        header = self.header
        if len(cells) != len(header):
            told = f"this has {len(cells)} cells, the header {len(header)}"
            return f"{told}: is a comma or a quote inside a text unquoted?"
        try:
            "".join(cells).encode()
        except UnicodeEncodeError:
            return "this is not UTF-8"
        return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def _csv(path: Path, most_rows: int) -> Iterator[Chunk]:
    size = max(path.stat().st_size, 1)
    with path.open("rb") as raw:
        lines = io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="")
        numbered = _csv_rows(lines)
        header: list[str] = []
        for number, cells in numbered:
            if isinstance(cells, list):
                header = cells
                break
            yield Told([(number, cells)], 0.0)
        if len(set(header)) < len(header):
            yield Told([(1, "the header names a column twice")], 0.0)
        most = min(FIRST_ROWS, most_rows)
        rows: list[tuple[int, list[str] | str]] = []
        for row in numbered:
            rows.append(row)
            if len(rows) >= most:
                yield Cells(header, rows, raw.tell() / size)
                rows, most = [], min(most * 2, most_rows)
        yield Cells(header, rows, 1.0)


def _csv_rows(lines: io.TextIOWrapper) -> Iterator[tuple[int, list[str] | str]]:
    """Every row that is not blank, with the number of the line in which it begins."""
    table = csv.reader(lines, strict=True)
    while True:
        number = table.line_num + 1  # a quoted cell may hold line breaks
        try:
            cells = next(table)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"this is not CSV: {error}"
            continue
        if cells:
            yield number, cells


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """Rows of a Parquet file."""

    first: int  # number of the first row
    batch: Any  # pyarrow.RecordBatch
    done: float

    def lines(self) -> list[Line]:
        """What they say; only where one of them cannot be read, each on its own."""
        rows: list[Any]
        try:
            rows = self.batch.to_pylist()
        except (ValueError, OverflowError):  # text that is not UTF-8; a date that Python cannot hold
            rows = [_one_row(self.batch.slice(place, 1)) for place in range(self.batch.num_rows)]
        return list(enumerate(rows, self.first))


def _parquet(path: Path, most_rows: int) -> Iterator[Chunk]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number, rows, most = 0, max(table.metadata.num_rows, 1), min(FIRST_ROWS, most_rows)
            for batch in table.iter_batches(most_rows):
                for start in range(0, batch.num_rows, most):
                    part = batch.slice(start, most)
                    yield ArrowRows(number + 1, part, (number + part.num_rows) / rows)
                    number += part.num_rows
                most = most_rows
    except pyarrow.ArrowException as error:
        what = f"this is not a Parquet file, or a damaged one: {' '.join(str(error).split())[:200]}"
        raise InputError(Fault(f"data.manifest = {path}", what, "write the file again")) from None


def _one_row(batch: Any) -> Record | str:
    try:
        record: Record = batch.to_pylist()[0]
    except (ValueError, OverflowError) as error:
        return f"this row cannot be read: {error}"
    return record


READERS: dict[str, Callable[[Path, int], Iterator[Chunk]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
