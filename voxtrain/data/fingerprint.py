"""Hashes of what audio files hold, remembered from one run to the next by path, size and times.

They name audio whose samples the audit did not hash. The memory saves reading every file at every start, and nothing
depends on it: where it is broken, locked or not to be written, files are read again.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

FRESH_S = 2.0
"""A file changed so lately might change again within the same tick of its clock: its hash is not remembered."""

PATIENCE_S = 10.0
"""How long to wait for another process that saves."""

HASH = re.compile(r"[0-9a-f]{64}")

Stamp = tuple[int, int, int]  # size, modification time, change time
TABLE = """CREATE TABLE IF NOT EXISTS hashes
(path BLOB PRIMARY KEY, size INTEGER, modified_ns INTEGER, changed_ns INTEGER, digest TEXT) WITHOUT ROWID"""


class Fingerprints:
    """SHA-256 of files, remembered in one SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._learnt: dict[bytes, tuple[Stamp, str]] = {}
        self._memory: sqlite3.Connection | None = None

    def of(self, audio: Path) -> str:
        """The hash of the file, in hex. Raises OSError when it cannot be read."""
        name, before = os.fsencode(audio), audio.stat()
        stamp = (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        known = self._learnt.get(name) or self._remembered(name)
        if known is not None and known[0] == stamp:
            return known[1]
        with audio.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if time.time() - before.st_mtime > FRESH_S:
            self._learnt[name] = stamp, digest
        return digest

    def save(self) -> None:
        """Add what was learnt to the file; what cannot be saved has to be learnt again."""
        learnt, self._learnt = self._learnt, {}
        self.close()
        if not learnt:
            return
        with suppress(OSError, sqlite3.OperationalError):  # a full disk, a folder that may not be written, a lock
            try:
                self._save(learnt)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:  # it is broken, or no such file at all
                self._path.with_name(f"{self._path.name}-journal").unlink(missing_ok=True)
                self._path.unlink()
                self._save(learnt)

    def close(self) -> None:
        """Let the file go."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None

    def _save(self, learnt: dict[bytes, tuple[Stamp, str]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=PATIENCE_S)) as memory, memory:
            memory.execute(TABLE)
            rows = [(name, *stamp, digest) for name, (stamp, digest) in learnt.items()]
            memory.executemany("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?, ?, ?)", rows)

    def _remembered(self, name: bytes) -> tuple[Stamp, str] | None:
        try:
            if self._memory is None:
                address = f"{self._path.absolute().as_uri()}?mode=ro"
                self._memory = sqlite3.connect(address, uri=True, timeout=PATIENCE_S)
            found = self._memory.execute(
                "SELECT size, modified_ns, changed_ns, digest FROM hashes WHERE path = ?", (name,)
            ).fetchone()
        except sqlite3.Error:
            return None
        if found is None or not isinstance(found[3], str) or HASH.fullmatch(found[3]) is None:
            return None
        size, modified_ns, changed_ns, digest = found
        return (size, modified_ns, changed_ns), digest
