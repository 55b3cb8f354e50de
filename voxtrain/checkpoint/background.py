"""Saves, one after another, beside training or in its place: what each writes, whether it fits, how it went.

One thread writes. It never touches what training may change (held.py), and what goes wrong in it is told to the
training thread at the next step boundary.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from voxtrain.checkpoint.facts import way_on
from voxtrain.checkpoint.held import Abandoned, Held
from voxtrain.fault import RunFailed
from voxtrain.memory.disk import RESERVE_BYTES, free_bytes, told_size
from voxtrain.run_folder import RunFolder

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Job:
    """One folder to write."""

    what: str  # `checkpoint 20`
    needed_bytes: int
    write: Callable[[], object]


@dataclass(frozen=True, slots=True)
class LowDisk:
    """A job that did not fit."""

    what: str
    needed_bytes: int
    free_bytes: int

    def __str__(self) -> str:
        needed, free = told_size(self.needed_bytes), told_size(self.free_bytes)
        return f"the disk is low: {self.what} needs {needed} and {free} are free"


def room_for(root: Path, needed_bytes: int) -> bool:
    """Whether so many bytes may still be written, with something left for logs and tables."""
    return free_bytes(root) >= needed_bytes + RESERVE_BYTES


class BackgroundWriter:
    """Writes the jobs of one save at a time."""

    def __init__(self, root: Path) -> None:
        """root: the run folder, whose disk must have room."""
        self._root = root
        self._thread: threading.Thread | None = None
        self._held = Held(0)
        self._low: list[LowDisk] = []
        self._error: BaseException | None = None
        self.took_s = 0.0
        """What the last save took."""

    def start(self, jobs: Sequence[Job], held: Held) -> None:
        """Write the jobs, which fit, beside what follows. `held` is what they read. The save before must be settled."""
        assert self._thread is None, "a save began before the one before it was settled"
        self._held = held
        self._thread = threading.Thread(target=self._work, args=(jobs, held, self._write), name="save", daemon=True)
        self._thread.start()

    def write_now(self, jobs: Sequence[Job]) -> list[LowDisk]:
        """Write those of the jobs that fit, after what is under way. Returns what did not; raises as `settle`."""
        low = self.settle()
        self._work(jobs, Held(0), self._write_what_fits)
        return low + self.settle()

    def before_update(self) -> None:
        """Wait until the weights may change (held.py)."""
        if self._thread is not None:
            self._held.before_update()

    @property
    def busy(self) -> bool:
        """Whether a save is under way."""
        return self._thread is not None and self._thread.is_alive()

    def settle(self) -> list[LowDisk]:
        """Wait for the save under way. Returns what did not fit; raises RunFailed for what could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        low, self._low = self._low, []
        error, self._error = self._error, None
        if isinstance(error, RunFailed):
            raise error
        if error is not None and not isinstance(error, Abandoned):
            raise RunFailed(f"a save failed: {type(error).__name__}: {error}") from error
        return low

    def abandon(self) -> None:
        """Give the save under way up as soon as may be; nothing of it is left."""
        self._held.abandon()
        self.settle()

    def _work(self, jobs: Sequence[Job], held: Held, write: Callable[[Job], None]) -> None:
        began_s = time.monotonic()
        try:
            with _own_stream():
                for job in jobs:
                    write(job)
        except BaseException as error:
            self._error = error
        finally:
            self.took_s = time.monotonic() - began_s
            held.finish()

    def _write_what_fits(self, job: Job) -> None:
        if room_for(self._root, job.needed_bytes):
            self._write(job)
        else:
            self._low.append(LowDisk(job.what, job.needed_bytes, free_bytes(self._root)))

    def _write(self, job: Job) -> None:
        try:
            job.write()
        except OSError as error:
            if error.errno not in FULL_DISK:
                why = f"{job.what} could not be written: {error}"
                raise RunFailed(f"{why}\n{way_on(RunFolder(self._root))}") from error
            self._low.append(LowDisk(job.what, job.needed_bytes, free_bytes(self._root)))


def _own_stream() -> AbstractContextManager[object]:
    """On a GPU a stream of its own, so that copies to the host do not queue behind the kernels of training."""
    on_a_gpu = torch.cuda.is_available() and torch.cuda.memory_allocated() > 0
    if threading.current_thread() is threading.main_thread() or not on_a_gpu:
        return nullcontext()
    return torch.cuda.stream(torch.cuda.Stream())  # type: ignore[no-untyped-call]
