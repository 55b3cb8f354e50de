"""One memory-mapped file of latents: what one encoder made, for every run and every process at once.

The data file holds float32 numbers and nothing else, one entry after the other; the index (latent_index.py) says where
each lies and what its bytes hash to. Bytes behind the last committed entry were left by a writer that died: nobody
reads them, and the next writer cuts them off. What does not match its checksum is not used.
"""

from __future__ import annotations

import mmap
import os
import sqlite3
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from voxtrain.data.latent_index import LatentIndex, Unsound

KEYS_AT_A_TIME = 500
DAY_S = 86_400
FLOAT = np.dtype("<f4")
COLUMNS = "key, offset, patches, patch, dim, samples, checksum, day"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where latents lie, and what they must be."""

    file: str
    offset: int  # bytes
    shape: tuple[int, int, int]  # [A, P, D]
    samples: int  # of the wave that was encoded
    checksum: bytes
    day: int  # since 1970, when it was last wanted

    @property
    def size_bytes(self) -> int:
        """Bytes in the data file."""
        return FLOAT.itemsize * prod(self.shape)

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.size_bytes

    def lies_where(self, other: Entry | None) -> bool:
        """Whether it is the same place of the same file."""
        return other is not None and (self.file, self.offset) == (other.file, other.offset)


@dataclass(frozen=True, slots=True)
class Made:
    """Latents to be kept."""

    key: bytes
    latents: np.ndarray  # [A, P, D] float32
    samples: int  # of the wave that was encoded


class LatentStore:
    """Latents by key. Every method raises OSError or sqlite3.Error where the folder cannot be read or written."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._index = LatentIndex(folder, owner)
        self._files: dict[str, int] = {}  # descriptors, open as long as the store is
        self._maps: dict[str, mmap.mmap] = {}

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        """The entries that are there, not yet verified. Their data file stays open, and so stays readable."""
        return self._index.using(lambda index, file: self._find(index, file, keys))

    def is_whole(self, key: bytes, entry: Entry) -> bool:
        """Whether the file holds what was once put there. May be called from several threads.

        It is read, not mapped: a sector that fails is then an error that can be caught, and not the end of the process.
        """
        file = self._files.get(entry.file)
        if file is None:
            return False
        try:
            if entry.end > os.fstat(file).st_size:
                return False
            content = os.pread(file, entry.size_bytes, entry.offset)
        except OSError:
            return False
        return self._checksum(key, entry.shape, entry.samples, content) == entry.checksum

    def read(self, key: bytes, entry: Entry) -> np.ndarray | None:
        """[A, P, D] float32, a copy; None where the file no longer holds what was put there."""
        mapped = self._mapped(entry)
        if mapped is None:
            return None
        latents = np.frombuffer(mapped, FLOAT, prod(entry.shape), entry.offset).copy()
        whole = self._checksum(key, entry.shape, entry.samples, latents.data) == entry.checksum
        return latents.reshape(entry.shape) if whole else None

    def add(self, made: Sequence[Made], spoiled: Mapping[bytes, Entry]) -> dict[bytes, Entry]:
        """Keep latents: all of them or, where this fails or the process dies, none. Returns their entries.

        What another process has added meanwhile stays as it is, unless that is the entry which `spoiled` says is not
        whole.
        """
        return self._index.using(lambda index, file: self._add(index, file, made, spoiled))

    def touch(self, keys: Iterable[bytes]) -> None:
        """Note that entries were wanted today."""
        day = today()
        marks = [(day, key) for key in keys]

        def mark(index: sqlite3.Connection, file: str) -> None:
            index.execute("BEGIN IMMEDIATE")
            index.executemany("UPDATE entries SET day = ? WHERE key = ?", marks)
            index.execute("COMMIT")

        if marks:
            self._index.using(mark)

    def _find(self, index: sqlite3.Connection, file: str, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        self._open(file)
        found: dict[bytes, Entry] = {}
        for start in range(0, len(keys), KEYS_AT_A_TIME):
            some = keys[start : start + KEYS_AT_A_TIME]
            marks = ", ".join("?" * len(some))
            for key, *columns in index.execute(f"SELECT {COLUMNS} FROM entries WHERE key IN ({marks})", some):
                entry = _entry(file, columns)
                if entry is not None:
                    found[key] = entry
        return found

    def _add(
        self, index: sqlite3.Connection, file: str, made: Sequence[Made], spoiled: Mapping[bytes, Entry]
    ) -> dict[bytes, Entry]:
        index.execute("BEGIN IMMEDIATE")
        [(end,)] = index.execute("SELECT end FROM store")
        there = self._find(index, file, [one.key for one in made])
        kept = {key: entry for key, entry in there.items() if not entry.lies_where(spoiled.get(key))}
        new = {one.key: one for one in made if one.key not in kept}  # each once
        if not new:
            index.execute("ROLLBACK")
            return kept
        added = self._written(file, end, list(new.values()))
        index.executemany(
            f"INSERT OR REPLACE INTO entries ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(key, one.offset, *one.shape, one.samples, one.checksum, one.day) for key, one in added.items()],
        )
        index.execute("UPDATE store SET end = ?", (max(one.end for one in added.values()),))
        index.execute("COMMIT")
        return kept | added

    def _written(self, file: str, end: int, made: Sequence[Made]) -> dict[bytes, Entry]:
        """Append to the data file from `end` on; what a dead writer left there goes."""
        added: dict[bytes, Entry] = {}
        day = today()
        with (self._index.folder / file).open("r+b") as data:
            data.truncate(end)
            data.seek(end)
            for one in made:
                content = one.latents.astype(FLOAT, order="C").tobytes()
                patches, patch, dim = shape = one.latents.shape
                checksum = self._checksum(one.key, shape, one.samples, content)
                added[one.key] = Entry(file, data.tell(), (patches, patch, dim), one.samples, checksum, day)
                data.write(content)
            data.flush()
            os.fdatasync(data.fileno())
        return added

    def _open(self, file: str) -> None:
        if file in self._files:
            return
        try:
            descriptor = os.open(self._index.folder / file, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # pruning has put another in its place this very moment
            raise Unsound("its data file is gone") from None
        self._files[file] = descriptor
        weakref.finalize(self, os.close, descriptor)

    def _mapped(self, entry: Entry) -> mmap.mmap | None:
        """The data file in memory, as far as `entry` goes at least."""
        file, mapped = self._files[entry.file], self._maps.get(entry.file)
        if os.fstat(file).st_size < entry.end:  # somebody cut it: touching what was mapped would be fatal
            return None
        if mapped is None or len(mapped) < entry.end:
            mapped = self._maps[entry.file] = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        return mapped

    def _checksum(self, key: bytes, shape: tuple[int, ...], samples: int, content: bytes | memoryview) -> bytes:
        """A hash of what the entry is for and of all that it holds: it finds damage, at the speed of memory."""
        digest = xxhash.xxh3_128(f"{self._index.owner} {key.hex()} {shape} {samples}\n".encode())
        digest.update(content)
        return digest.digest()


def today() -> int:
    """Days since 1970."""
    return int(time.time() // DAY_S)


def _entry(file: str, columns: Sequence[Any]) -> Entry | None:
    """The entry of a line of the index; None for what no line of ours holds."""
    offset, patches, patch, dim, samples, checksum, day = columns
    numbers = all(isinstance(number, int) and number >= 0 for number in (offset, patches, patch, dim, samples, day))
    if not numbers or not isinstance(checksum, bytes) or 0 in (patches, patch, dim):
        return None
    return Entry(file, offset, (patches, patch, dim), samples, checksum, day)
