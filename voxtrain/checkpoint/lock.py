"""One process at a time judges or prunes.

Two judges would lose each other's records, and a pruner would delete what a judge is about to read. The lock is the
operating system's (flock), so that it ends with its holder, however that dies; the file only says who holds it.
"""

from __future__ import annotations

import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from voxtrain.fault import Fault, InputError

POLL_S = 0.5


@contextmanager
def held(path: Path, doing: str, *, waits: bool = False) -> Iterator[None]:
    """Hold the lock at `path` inside the context. Where another process does, wait, or raise InputError naming it.

    doing: what for, `judging` or `pruning`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _locked(path, waits)
    try:
        file.write(f"process {os.getpid()} on {socket.gethostname()} is {doing} this run")
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is still ours
        file.close()


def _locked(path: Path, waits: bool) -> TextIO:
    told = False
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process is judging or pruning this run"
            file.close()
            if waits:
                if not told:
                    print(f"Waiting: {holder}.", file=sys.stderr, flush=True)
                told = True
                time.sleep(POLL_S)
                continue
            raise InputError(Fault(str(path.parent), holder, "wait until it has ended, then ask again")) from None
        if _is_still_there(file, path):
            file.truncate(0)  # a dead holder's name
            return file
        file.close()  # its holder removed it between our opening and locking it


def _is_still_there(file: TextIO, path: Path) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
