"""The index of a folder of latents: an SQLite file that says which data file there is, and where each entry lies in it.

A line is there once its transaction is committed, whoever dies meanwhile; SQLite's own lock lets one writer in at a
time. An index that is broken, or another encoder's, is made anew with an empty data file under a new name: a process
that still has the old data file open keeps it.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from voxtrain.durable import flush_folder

PATIENCE_S = 600.0
"""How long to wait for another process's transaction: the longest one copies a whole data file (pruning)."""

CIRCUMSTANCES = {
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
}
"""SQLite's primary error codes for which the file is not to blame."""

TABLES = """
CREATE TABLE store (owner TEXT, file TEXT, end INTEGER);
CREATE TABLE entries (
    key BLOB PRIMARY KEY, offset INTEGER, patches INTEGER, patch INTEGER, dim INTEGER, samples INTEGER, checksum BLOB,
    day INTEGER
) WITHOUT ROWID;
"""
"""end: bytes of the data file that committed entries take. day: when the entry was last wanted, in days since 1970."""

Result = TypeVar("Result")


class Unsound(Exception):
    """The index is broken, another encoder's, or its data file is gone."""


class LatentIndex:
    """The index of `folder`, which holds what `owner` (an encoder and a version of this code) made."""

    def __init__(self, folder: Path, owner: str) -> None:
        self.folder = folder.absolute()
        self.owner = owner

    @property
    def path(self) -> Path:
        """The SQLite file."""
        return self.folder / "index.sqlite"

    def using(self, work: Callable[[sqlite3.Connection, str], Result]) -> Result:
        """What `work` returns, given an open index in autocommit mode and the name of its data file.

        Where the index turns out to be unsound it is made anew, empty, and `work` is done once more.
        Raises OSError and sqlite3.Error where it cannot be read or written.
        """
        try:
            return self._use(work)
        except Unsound:
            pass
        except sqlite3.Error as error:
            if not self._is_to_blame(error):
                raise
        self._make_anew()
        try:
            return self._use(work)
        except Unsound as error:
            raise OSError(f"{self.path} was made anew and is unsound again: {error}") from None

    def _use(self, work: Callable[[sqlite3.Connection, str], Result]) -> Result:
        if not self.path.exists():
            raise Unsound("there is none")
        with closing(connected(self.path, "rw")) as index:
            return work(index, self._data_file(index))

    def _data_file(self, index: sqlite3.Connection) -> str:
        found = index.execute("SELECT owner, file FROM store").fetchall()
        if len(found) != 1 or found[0][0] != self.owner or not isinstance(found[0][1], str):
            raise Unsound("it is another encoder's")
        file = found[0][1]
        if Path(file).name != file or not (self.folder / file).is_file():
            raise Unsound("its data file is gone")
        return file

    def _is_to_blame(self, error: sqlite3.Error) -> bool:
        """Whether it is the file that is broken, and not the disk that is full or a folder that may not be written."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return True
        if code & 0xFF == sqlite3.SQLITE_READONLY:  # also what a broken header, or a file just replaced, looks like
            return os.access(self.path, os.W_OK) and os.access(self.folder, os.W_OK)
        return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF not in CIRCUMSTANCES

    def _make_anew(self) -> None:
        """Put an empty index with an empty data file in place of what is there, unless another process just has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder / "lock"):
            if self._is_sound():
                return
            if self.path.exists():
                print(f"{self.folder} is broken or another encoder's: latents are made anew", file=sys.stderr)
            fresh = new_data_file(self.folder)
            aside = self.folder / f".writing_{fresh}.sqlite"
            try:
                with closing(connected(aside, "rwc")) as index:
                    index.executescript(f"BEGIN; {TABLES}")
                    index.execute("INSERT INTO store VALUES (?, ?, 0)", (self.owner, fresh))
                    index.execute("COMMIT")
                # a journal that a killed writer left belongs to the old index, and would be played into the new one
                self.path.with_name(f"{self.path.name}-journal").unlink(missing_ok=True)
                aside.replace(self.path)
                flush_folder(self.folder)
            finally:
                aside.unlink(missing_ok=True)
            remove_data_files(self.folder, but=fresh)

    def _is_sound(self) -> bool:
        try:
            return self._use(lambda index, _: index.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)])
        except Unsound:
            return False
        except sqlite3.Error as error:
            if not self._is_to_blame(error):
                raise
            return False


def new_data_file(folder: Path) -> str:
    """The name of an empty data file, just made; no name ever comes twice."""
    name = f"latents_{secrets.token_hex(8)}.f32"
    (folder / name).touch(exist_ok=False)
    return name


def remove_data_files(folder: Path, but: str) -> None:
    """Remove all data files but one. Who has one open keeps it."""
    for path in folder.glob("latents_*.f32"):
        if path.name != but:
            with suppress(OSError):
                path.unlink()


def connected(path: Path, mode: str) -> sqlite3.Connection:
    """In autocommit mode. mode: ro reads; rw reads and, where that is allowed, writes; rwc also makes the file."""
    return sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=PATIENCE_S, isolation_level=None)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the operating system's lock, which ends with its holder."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
