"""Judging chunk after chunk: in this process where that is soon done, else in several, with the same results.

What comes out is in the order of the manifest. Workers are started anew (`spawn`), not forked: the process that
prepares a run may hold threads. While they start, this process goes on judging.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from typing import ClassVar, Self

from voxtrain.manifest.formats import Chunk
from voxtrain.manifest.judge import Job, Judge, Judged
from voxtrain.manifest.sounds import SoundMemory

MOST_WORKERS = 8  # each holds some 60 MiB
WORTH_S = 2.0  # what this process alone would still need: under it, workers start too late to help
FIRST_LOOK_S = 0.2  # before it a guess is no good: the first chunk pays for what is loaded late
WAITING = 2  # chunks for each worker that are handed out: one in work, one next


def judged(chunks: Iterator[Chunk], job: Job) -> Iterator[Judged]:
    """What becomes of every chunk, in their order."""
    judge, began_s, unusable = _judge(job), time.monotonic(), False
    pool: Pool | None = None
    tried = False
    try:
        for chunk in chunks:
            if pool is not None and pool.is_ready():
                yield from pool.judged(chain([chunk], chunks), judge, unusable)
                return
            one = judge.judge(chunk, unusable)
            unusable |= bool(one.broken)
            yield one
            if not tried and _is_worth_it(time.monotonic() - began_s, one.done):
                pool, tried = Pool.started(job), True
    finally:
        judge.close()
        if pool is not None:
            pool.close()


def workers() -> int:
    """How many processes may judge at a time."""
    return min(len(os.sched_getaffinity(0)), MOST_WORKERS)


def _is_worth_it(passed_s: float, done: float) -> bool:
    return workers() > 1 and passed_s > FIRST_LOOK_S and passed_s * (1 - done) > WORTH_S * done


class Pool:
    """Processes that judge."""

    def __init__(self, executor: ProcessPoolExecutor, starting: list[Future[None]]) -> None:
        self._executor, self._starting = executor, starting

    @classmethod
    def started(cls, job: Job) -> Self | None:
        """Processes that are starting; None where there can be none."""
        try:
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(workers(), context, initializer=_Worker.begin, initargs=(job,))
            return cls(executor, [executor.submit(_nothing) for _ in range(workers())])
        except (OSError, AssertionError, RuntimeError):  # no memory for one, no semaphores; AssertionError: a daemon
            return None

    def is_ready(self) -> bool:
        """Whether a worker has started."""
        return any(one.done() and one.exception() is None for one in self._starting)

    def judged(self, chunks: Iterator[Chunk], judge: Judge, unusable: bool) -> Iterator[Judged]:
        """What becomes of every chunk, in their order. judge: does what the workers leave undone, if they die."""
        waiting: deque[tuple[Chunk, Future[Judged] | None]] = deque()
        works = True
        while True:
            while len(waiting) < WAITING * workers() and (chunk := next(chunks, None)) is not None:
                future = self._submit(chunk, unusable) if works else None
                waiting.append((chunk, future))
            if not waiting:
                return
            chunk, future = waiting.popleft()
            try:
                one = judge.judge(chunk, unusable) if future is None else future.result()
            except BrokenProcessPool:  # killed for memory, or by a decoder that crashed
                works = False
                one = judge.judge(chunk, unusable)
            unusable |= bool(one.broken)
            yield one

    def _submit(self, chunk: Chunk, unusable: bool) -> Future[Judged] | None:
        try:
            return self._executor.submit(_Worker.work, chunk, unusable)
        except (BrokenProcessPool, RuntimeError):
            return None

    def close(self) -> None:
        """Let the workers go; what they have not begun is dropped."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class _Worker:
    """What a worker process holds."""

    judge: ClassVar[Judge]

    @classmethod
    def begin(cls, job: Job) -> None:
        """Ready itself; an interrupt from the keyboard is the main process's to answer, and its death ends this one."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_follow_parent, daemon=True).start()
        cls.judge = _judge(job)

    @classmethod
    def work(cls, chunk: Chunk, only_read: bool) -> Judged:
        """One chunk."""
        return cls.judge.judge(chunk, only_read)


def _follow_parent() -> None:
    """A worker that waits for its next task would outlive a main process that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _judge(job: Job) -> Judge:
    return Judge(job, SoundMemory(job.memory, job.clean.decode))


def _nothing() -> None:
    """The first task of a worker: done when it has started."""
