"""What is known of audio files from earlier audits, in a small database: a second audit opens no file again.

A file is known by its path, size and time of change; one that changed within the last two seconds is not remembered,
since it may change again without a visible trace. The database is a cache: one that is damaged or cannot be written is
done without. Readers and one writer at a time, in several processes, are what SQLite is made for.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson
import xxhash

from voxtrain.manifest.sound import SOUND_VERSION, Samples, Sound, read_sound

SETTLED_NS = 2_000_000_000  # file systems tell times of change in steps of up to two seconds
WAIT_S = 10.0  # for another process that is writing
AT_HAND = 20_000  # sounds that are kept in memory: a clip may stand in many rows
TOGETHER = 8  # files that a thread decodes in one go: the fewer, the sooner all threads are done
HEADER = struct.Struct("<dIH")  # seconds, Hz, channels
MEASURES = [field.name for field in fields(Samples)][1:]
DECODED = struct.Struct(f"<dIH16s{len(MEASURES)}d")  # and of the samples: the digest and the measures
TABLE = "CREATE TABLE IF NOT EXISTS sounds (path INTEGER PRIMARY KEY, size INTEGER, changed_ns INTEGER, facts BLOB)"
FIND = "SELECT path, size, changed_ns, facts FROM (SELECT value FROM json_each(?)) CROSS JOIN sounds ON path = value"

Remembered = tuple[int, int, int, bytes]
"""One row of the table: the key of the path, signed; bytes; nanoseconds; what is known."""


File = tuple[str, int, os.stat_result]
"""A path, its key, and what the file is."""


class Heard(NamedTuple):
    """A sound, and what tells its file from others."""

    sound: Sound
    key: int  # 64 bits of a hash of the path
    device: int  # -1: there is no such file
    number: int  # of the file on the device; where there is none, the key
    size: int  # bytes; 0: there is no such file
    changed_ns: int


Part = tuple[list[File], Future[list[Sound]] | None]
"""Files to read, and the thread that does it."""


class Sounds(Protocol):
    """Who tells what audio files hold."""

    fresh: list[Remembered]  # what was read and may be remembered; for `remember`
    is_broken: bool  # the database is damaged

    def hear(self, paths: Iterable[str]) -> Mapping[str, Heard]:
        """What every path holds."""

    def begin(self, paths: Iterable[str]) -> None:
        """Have threads, if there are any, read what `hear` will be asked for."""

    def read_alone(self) -> None:
        """Read in one thread from now on."""

    def close(self) -> None:
        """Let go of the database."""


class SoundMemory:
    """Sounds of paths, read from the files where they are not remembered.

    path: of the database; None: without one. threads: that decode at a time; the decoder lets others run meanwhile.
    """

    def __init__(self, path: Path | None, decode: bool, threads: int = 1) -> None:
        self._database = None if path is None else connect(path, "ro")
        self._decode = decode
        self._threads = ThreadPoolExecutor(threads) if decode and threads > 1 else None
        self._at_hand: dict[str, Heard] = {}
        self._begun: deque[list[Part]] = deque()
        self.fresh: list[Remembered] = []
        self.is_broken = False

    def begin(self, paths: Iterable[str]) -> None:
        """Have the threads read what `hear` will be asked for; without threads nothing is done."""
        if self._threads is not None:
            self._begun.append(self._begin(paths))

    def hear(self, paths: Iterable[str]) -> Mapping[str, Heard]:
        """What every path holds; perhaps other paths too."""
        asked = dict.fromkeys(paths)
        while any(path not in self._at_hand for path in asked):
            self._finish(self._begun.popleft() if self._begun else self._begin(asked))
        return self._at_hand

    def read_alone(self) -> None:
        """Decode in one thread from now on: other processes need the cores."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
            self._begun.clear()

    def _begin(self, paths: Iterable[str]) -> list[Part]:
        """Look up what is known; the files that are not known, with who reads them."""
        at_hand = self._at_hand
        wanted = [path for path in dict.fromkeys(paths) if path not in at_hand]
        if len(at_hand) + len(wanted) > AT_HAND:
            wanted = list(dict.fromkeys(paths))
            at_hand = self._at_hand = {}
        keys = [_key(path) for path in wanted]
        known = self._find(list(map(_signed, keys)))
        unknown: list[File] = []
        for path, key in zip(wanted, keys, strict=True):
            try:
                found = os.stat(path)  # noqa: PTH116  a Path costs as much again as the call
            except (OSError, ValueError):  # ValueError: a NUL inside the name
                at_hand[path] = Heard(read_sound(path, self._decode), key, -1, key, 0, 0)  # it says why
                continue
            sound, one = None, known.get(_signed(key))
            if one is not None and one[1] == found.st_size and one[2] == found.st_mtime_ns:
                sound = _sound(one[3], self._decode)
            if sound is None:
                unknown.append((path, key, found))
            else:
                at_hand[path] = Heard(sound, key, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if self._threads is None:
            return [(unknown, None)]
        parts = [unknown[first : first + TOGETHER] for first in range(0, len(unknown), TOGETHER)]
        return [(part, self._threads.submit(self._read, part)) for part in parts]

    def _finish(self, begun: Iterable[Part]) -> None:
        """Take in what was begun."""
        for files, work in begun:
            sounds = self._read(files) if work is None else work.result()
            now_ns = time.time_ns()
            for (path, key, found), sound in zip(files, sounds, strict=True):
                size, changed_ns = found.st_size, found.st_mtime_ns
                self._at_hand[path] = Heard(sound, key, found.st_dev, found.st_ino, size, changed_ns)
                settled = now_ns - changed_ns > SETTLED_NS
                if settled and not sound.reason and sound.duration_s is not None:  # a reason may be gone tomorrow
                    self.fresh.append((_signed(key), size, changed_ns, _facts(sound)))

    def _read(self, files: Sequence[File]) -> list[Sound]:
        return [read_sound(path, self._decode, found) for path, _, found in files]

    def _find(self, keys: Sequence[int]) -> dict[int, Remembered]:
        if self._database is None or not keys:
            return {}
        try:
            return {row[0]: row for row in self._database.execute(FIND, (orjson.dumps(keys).decode(),))}
        except sqlite3.OperationalError:  # busy for too long, or the disk fails
            return {}
        except sqlite3.DatabaseError:
            self._database, self.is_broken = None, True
            return {}

    def close(self) -> None:
        """Let go of the database and the threads."""
        self.read_alone()
        if self._database is not None:
            self._database.close()


def prepare_memory(path: Path) -> bool:
    """Make the database where there is none, or none that is sound; whether there is one now."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return remember(path, [])
    except OSError:
        return False


def remember(path: Path, fresh: Sequence[Remembered]) -> bool:
    """Add what was read, in one transaction; a damaged database is made anew. Whether it could be done."""
    for _ in range(2):
        database = connect(path, "rwc")
        if database is None:
            return False
        try:
            with database:
                database.execute(TABLE)
                database.executemany("INSERT OR REPLACE INTO sounds VALUES (?, ?, ?, ?)", sorted(fresh))
            return True
        except sqlite3.OperationalError:
            return False
        except sqlite3.DatabaseError:
            forget(path)
        finally:
            database.close()
    return False


def forget(path: Path) -> None:
    """Remove a damaged database; whoever has it open still reads the old file."""
    for name in (path, path.with_name(f"{path.name}-journal")):
        try:
            name.unlink(missing_ok=True)
        except OSError:
            return


def connect(path: Path, mode: str) -> sqlite3.Connection | None:
    """A database at `path`, opened as SQLite's URIs name it (ro, rwc); None where there is none, or none can be."""
    try:
        return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, timeout=WAIT_S)
    except sqlite3.Error:
        return None


def _key(path: str) -> int:
    return xxhash.xxh3_64_intdigest(path.encode(), SOUND_VERSION)


def _signed(key: int) -> int:
    """The same 64 bits as SQLite has them."""
    return key - (key >> 63 << 64)


def _facts(sound: Sound) -> bytes:
    header = (sound.duration_s, sound.sample_rate_hz, sound.channels)
    if sound.samples is None:
        return HEADER.pack(*header)
    measures = [getattr(sound.samples, name) for name in MEASURES]
    return DECODED.pack(*header, bytes.fromhex(sound.samples.digest), *measures)


def _sound(facts: bytes, decode: bool) -> Sound | None:
    """None where less is known than wanted; a sound of headers says nothing of samples, whatever is known."""
    if not decode and len(facts) in (HEADER.size, DECODED.size):
        duration_s, rate_hz, channels = HEADER.unpack_from(facts)
        return Sound(False, "", duration_s, rate_hz, channels, None)
    if len(facts) != DECODED.size:
        return None
    duration_s, rate_hz, channels, digest, *measures = DECODED.unpack(facts)
    return Sound(False, "", duration_s, rate_hz, channels, Samples(digest.hex(), *measures))
