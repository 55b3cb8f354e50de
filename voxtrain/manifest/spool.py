"""What is known of every row, on disk while the whole manifest is looked at: one record after the other.

The file has no name, and lies on the disk that the results will be written to: it is gone with the process, however
that ends, and it is not in memory, as /tmp may be.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

BLOCK_BYTES = 4 << 20
FEW = 8  # of so many rows one: then each is read by itself


class Spool:
    """Records and findings of rows, by the place of the row."""

    def __init__(self, beside: Path) -> None:
        """beside: a path on the disk to use; it need not exist. Raises OSError where nothing can be written."""
        folder = next(path for path in (beside, *beside.parents) if path.is_dir())
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  closed by `close`
        self._ends = np.zeros((0, 2), dtype=np.int64)  # [rows, 2]: of the record, of the findings

    def add(self, content: bytes) -> None:
        """What `Judged.spool` holds, in the order of the rows."""
        view = memoryview(content)
        while view:
            view = view[self._file.write(view) :]

    def index(self, record_bytes: npt.NDArray[Any], found_bytes: npt.NDArray[Any]) -> None:
        """Where the parts of each row end. [rows] both."""
        sizes = np.stack([record_bytes, found_bytes], axis=1).astype(np.int64)
        self._ends = sizes.reshape(-1).cumsum().reshape(-1, 2)

    def record(self, place: int) -> dict[str, Any]:
        """The record of a row."""
        record, _ = self._read(place)
        found: dict[str, Any] = orjson.loads(record)
        return found

    def told(self, place: int) -> bytes:
        """What was found in a row, for `told_findings`."""
        return self._read(place)[1]

    def records(self, places: npt.NDArray[np.int64]) -> Iterator[dict[str, Any]]:
        """The records of some rows. places: ascending."""
        return (orjson.loads(record) for record, _ in self.some(places))

    def some(self, places: npt.NDArray[np.int64]) -> Iterator[tuple[bytes, bytes]]:
        """Record and findings of some rows. places: ascending."""
        if len(places) * FEW < len(self._ends):
            yield from map(self._read, places.tolist())
            return
        begins = np.concatenate([[0], self._ends[:-1, 1]])[places]
        ends = self._ends[places]
        first = 0
        while first < len(places):
            begin = int(begins[first])
            last = max(first + 1, int(ends[:, 1].searchsorted(begin + BLOCK_BYTES)))
            block = os.pread(self._file.fileno(), int(ends[last - 1, 1]) - begin, begin)
            edges = np.column_stack([begins[first:last], ends[first:last]]) - begin
            for start, record_end, found_end in edges.tolist():
                yield block[start:record_end], block[record_end:found_end]
            first = last

    def _read(self, place: int) -> tuple[bytes, bytes]:
        begin = int(self._ends[place - 1, 1]) if place else 0
        record_end, found_end = map(int, self._ends[place])
        block = os.pread(self._file.fileno(), found_end - begin, begin)
        return block[: record_end - begin], block[record_end - begin :]

    def close(self) -> None:
        """Give the space back."""
        self._file.close()
