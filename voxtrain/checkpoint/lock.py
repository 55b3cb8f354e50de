"""One process at a time judges or prunes a run, and one at a time trains it.

Two judges would lose each other's records, and a pruner would delete what a judge is about to read; a second trainer
would cut the first one's logs back and remove its states. Each lock is the operating system's (flock), so that it
ends with its holder, however that dies; the file says who holds it. Some network file systems keep flock to the one
machine, or have none: there the holder's heartbeat, the file's time, shows another machine that it is alive.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from voxtrain.fault import Fault, InputError

POLL_S = 0.5
BEAT_S = 10.0
SILENT_BEATS = 3
"""A holder on another machine that is silent for so long is dead. Clocks are not compared: the time has to move."""

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
"""What flock(2) says where a file system has no locks (Lustre mounted without them, NFS without its lock daemon)."""


@contextmanager
def held(path: Path, doing: str, *, waits: bool = False) -> Iterator[None]:
    """Hold the lock at `path` inside the context. Where another process does, wait, or raise InputError naming it.

    doing: what for, `judging`, `pruning` or `training`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, waits)
    done = Event()
    heart = Thread(target=_beat, args=(file.fileno(), done), name="lock heartbeat", daemon=True)
    try:
        file.write(f"process {os.getpid()} on {socket.gethostname()} is {doing} this run")
        file.flush()
        heart.start()
        yield
    finally:
        done.set()
        if heart.ident is not None:
            heart.join()
        # A failing disk must not have the last word over what was done: a file that stays is nobody's lock.
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is still ours
        with suppress(OSError):
            file.close()


def _locked(path: Path, waits: bool) -> TextIO:
    told = False
    while True:
        file = path.open("a+", encoding="utf-8")
        holder = _holder_by_lock(file) or _holder_by_heartbeat(file, path)
        if holder is None:
            if _is_still_there(file, path):
                file.truncate(0)  # a dead holder's name
                return file
            file.close()  # its holder removed it between our opening and locking it
            continue
        file.close()
        if not waits:
            raise InputError(Fault(str(path.parent), holder, "wait until it has ended, then ask again"))
        if not told:
            print(f"Waiting: {holder}.", file=sys.stderr, flush=True)
        told = True
        time.sleep(POLL_S)


def _holder_by_lock(file: TextIO) -> str | None:
    """Who holds the operating system's lock; None where it is ours now, or the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "another process is at work on this run"
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return None


def _holder_by_heartbeat(file: TextIO, path: Path) -> str | None:
    """Who, on another machine, is alive and holds what the lock does not show; None for nobody."""
    file.seek(0)
    holder = file.read()
    if not holder or f" on {socket.gethostname()} is " in holder:
        return None
    print(f"Is it still alive? It was said that {holder}.", file=sys.stderr, flush=True)
    seen, until = _time_of(path), time.monotonic() + SILENT_BEATS * BEAT_S
    while seen is not None and time.monotonic() < until:
        time.sleep(BEAT_S / 10)
        now = _time_of(path)
        if now is not None and now != seen:
            return holder
        seen = now
    return None


def _time_of(path: Path) -> int | None:
    """Opened each time: that makes a network file system ask its server."""
    try:
        with path.open("rb") as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _beat(file: int, done: Event) -> None:
    while not done.wait(BEAT_S):
        with suppress(OSError):
            os.utime(file)


def _is_still_there(file: TextIO, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
