"""What was judged before, by chunk: a second audit of the same lines, rules and files judges nothing again.

A chunk is recalled by a hash of its lines, of all that it was judged by and of this room's own source; then each of its
files must have the size, time of change and place on disk that it had. Chunks with a file that is missing, unreadable
or changed within the last two seconds are not kept. The database is a cache: it is thrown away when it is damaged or
large, and nothing depends on it.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from voxtrain.manifest.formats import Chunk, JsonLines
from voxtrain.manifest.judged import Judged, Kept
from voxtrain.manifest.sounds import SETTLED_NS, Heard, connect

MOST_BYTES = 1 << 30  # of the database: a million rows take 0.7 GB
TABLE = "CREATE TABLE IF NOT EXISTS chunks (name BLOB PRIMARY KEY, content BLOB) WITHOUT ROWID"
PARTS = struct.Struct("<5Q")  # bytes of: facts, files, rows, codes, spool


class Chunks:
    """Judgements of chunks, in the database at `path`; None: none are known, and none are to be kept.

    basis: all that chunks are judged by, besides their lines and their files.
    """

    def __init__(self, path: Path | None, basis: bytes) -> None:
        self._database = None if path is None else connect(path, "ro")
        self._is_wanted, self._basis = path is not None, basis + source_digest()

    def recall(self, chunk: Chunk) -> tuple[Any, ...] | None:
        """The fields rows, spool, labels, codes, columns, excluded of `Judged`; None where they are not known."""
        if self._database is None or not isinstance(chunk, JsonLines):
            return None
        name = self._name(chunk)
        try:
            found = self._database.execute("SELECT content FROM chunks WHERE name = ?", (name,)).fetchone()
        except sqlite3.Error:
            return None
        return None if found is None else _unpacked(name, found[0])

    def kept(self, chunk: Chunk, judged: Judged, paths: Sequence[str], heard: Mapping[str, Heard]) -> Kept | None:
        """What to remember of a chunk; None where nothing may be."""
        if not self._is_wanted or not isinstance(chunk, JsonLines) or judged.broken:
            return None
        if any(heard[path].device < 0 or heard[path].sound.reason for path in paths):
            return None
        wanted = list(dict.fromkeys(paths))
        # what each file was when it was read: one that has changed since is not recalled
        stamps = _stamps(heard[path] for path in wanted)
        if len(stamps) and time.time_ns() - int(stamps[:, 1].max()) < SETTLED_NS:
            return None
        name = self._name(chunk)
        return name, _packed(name, judged, wanted, stamps)

    def _name(self, chunk: JsonLines) -> bytes:
        lines = xxhash.xxh3_128_digest(chunk.data)
        return xxhash.xxh3_128_digest(b"%b %d %b" % (self._basis, chunk.first, lines))

    def close(self) -> None:
        """Let go of the database."""
        if self._database is not None:
            self._database.close()


def keep(path: Path, fresh: Sequence[Kept]) -> None:
    """Add what was judged; a database that is damaged, or was large before, goes first."""
    try:
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            path.unlink()
        for _ in range(2):
            database = connect(path, "rwc")
            if database is None:
                return
            try:
                with database:
                    database.execute(TABLE)
                    database.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?)", fresh)
                return
            except sqlite3.OperationalError:  # busy, or the disk is full
                return
            except sqlite3.DatabaseError:
                path.unlink(missing_ok=True)
            finally:
                database.close()
    except OSError:
        return


def stamps_of(paths: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """[paths, 4]: size, time of change in nanoseconds, device, number; None where one cannot be seen."""
    try:
        found = list(map(os.stat, paths))
    except (OSError, ValueError):
        return None
    stamps = [(one.st_size, one.st_mtime_ns, one.st_dev, one.st_ino & (2**63 - 1)) for one in found]
    return np.array(stamps, dtype=np.int64).reshape(-1, 4)


def _stamps(heard: Iterable[Heard]) -> npt.NDArray[np.int64]:
    """The same of files that were looked at."""
    stamps = [(one.size, one.changed_ns, one.device, one.number & (2**63 - 1)) for one in heard]
    return np.array(stamps, dtype=np.int64).reshape(-1, 4)


@cache
def source_digest() -> bytes:
    """Of this room's own source: a rule that was changed is asked again."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    assert sources
    return xxhash.xxh3_128_digest(b"\0".join(source.read_bytes() for source in sources))


def _packed(name: bytes, judged: Judged, paths: list[str], stamps: npt.NDArray[np.int64]) -> bytes:
    facts = orjson.dumps([paths, judged.labels, sorted(judged.columns), sorted(judged.excluded)])
    parts = (facts, stamps.tobytes(), judged.rows.tobytes(), judged.codes.tobytes(), judged.spool)
    content = PARTS.pack(*map(len, parts)) + b"".join(parts)
    return xxhash.xxh3_128_digest(name + content) + content


def _unpacked(name: bytes, stored: bytes) -> tuple[Any, ...] | None:
    content = stored[16:]
    if xxhash.xxh3_128_digest(name + content) != stored[:16]:
        return None
    parts, at = [], PARTS.size
    for size in PARTS.unpack_from(content):
        parts.append(content[at : at + size])
        at += size
    paths, labels, columns, excluded = orjson.loads(parts[0])
    stamps = stamps_of(paths)
    if stamps is None or stamps.tobytes() != parts[1]:
        return None
    codes = np.frombuffer(parts[3], dtype=np.int32).reshape(len(labels), -1)
    return parts[2], parts[4], labels, codes, set(columns), set(excluded)
