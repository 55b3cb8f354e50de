"""Judging chunk after chunk: in this process where that is soon done, else in several, with the same results.

What comes out is in the order of the manifest. Workers are started anew (`spawn`), not forked: the process that
prepares a run may hold threads. This process goes on judging while they start and beside them. Where audio is decoded
it does so in threads first: a decoder lets others run, which is all that a few cores need.
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
from voxtrain.manifest.judge import Job, Judge
from voxtrain.manifest.judged import Judged
from voxtrain.manifest.sounds import SoundMemory

MOST_PROCESSES = 8  # each worker holds some 60 MiB
WORTH_S = 1.5  # what this process alone would still need: under it, workers start too late to help
WORTH_BESIDE_THREADS_S = 8.0
FIRST_LOOK_S = 0.1  # before it a guess is no good: the first chunk pays for what is loaded late
WAITING = 2  # chunks for each worker that are handed out: one in work, one next
AHEAD = 4  # chunks for each process that are judged or in work before the first of them is told: it may be a slow one
THREADS = 4  # that decode: three tenths of the time one thread alone may run, so more of them wait for each other


def judged(chunks: Iterator[Chunk], job: Job) -> Iterator[Judged]:
    """What becomes of every chunk, in their order."""
    judge, began_s, unusable = _judge(job, min(cores(), THREADS)), time.monotonic(), False
    pool: Pool | None = None
    tried = False
    try:
        following = _looked_at(next(chunks, None), judge)
        while following is not None:
            is_shared = pool is not None and pool.is_ready()
            chunk, following = following, next(chunks, None) if is_shared else _looked_at(next(chunks, None), judge)
            one = judge.judge(chunk, unusable)
            unusable |= bool(one.broken)
            yield one
            if pool is not None and is_shared:
                judge.work_alone()
                yield from pool.judged(chain([] if following is None else [following], chunks), judge, unusable)
                return
            if not tried and _is_worth_it(job, time.monotonic() - began_s, one.done):
                pool, tried = Pool.started(job), True
    finally:
        judge.close()
        if pool is not None:
            pool.close()


def _looked_at(chunk: Chunk | None, judge: Judge) -> Chunk | None:
    """The chunk; its audio is being decoded in threads, if there are any, while the one before it is judged."""
    if chunk is not None:
        judge.look_ahead(chunk)
    return chunk


def cores() -> int:
    """How many processes may judge at a time, this one among them."""
    return min(len(os.sched_getaffinity(0)), MOST_PROCESSES)


def _is_worth_it(job: Job, passed_s: float, done: float) -> bool:
    worth_s = WORTH_S
    if job.clean.decode and cores() <= THREADS:  # its threads do nearly as well
        worth_s = WORTH_BESIDE_THREADS_S
    return cores() > 1 and passed_s > FIRST_LOOK_S and passed_s * (1 - done) > worth_s * done


class Pool:
    """Processes that judge, one fewer than there are cores."""

    def __init__(self, executor: ProcessPoolExecutor, starting: list[Future[None]]) -> None:
        self._executor, self._starting = executor, starting

    @classmethod
    def started(cls, job: Job) -> Self | None:
        """Processes that are starting; None where there can be none."""
        try:
            context = multiprocessing.get_context("spawn")
            executor = ProcessPoolExecutor(max(1, cores() - 1), context, initializer=_Worker.begin, initargs=(job,))
            return cls(executor, [executor.submit(_nothing) for _ in range(max(1, cores() - 1))])
        except (OSError, AssertionError, RuntimeError):  # no memory for one, no semaphores; AssertionError: a daemon
            return None

    def is_ready(self) -> bool:
        """Whether a worker has started."""
        return any(one.done() and one.exception() is None for one in self._starting)

    def judged(self, chunks: Iterator[Chunk], judge: Judge, unusable: bool) -> Iterator[Judged]:
        """What becomes of every chunk, in their order. judge: of this process; does all of it if the workers die."""
        waiting: deque[tuple[Chunk, Future[Judged] | Judged]] = deque()
        while True:
            self._hand_out(chunks, waiting, judge, unusable)
            if not waiting:
                return
            chunk, work = waiting[0]
            if isinstance(work, Future) and not work.done() and len(waiting) < AHEAD * cores():
                following = next(chunks, None)
                if following is not None:
                    waiting.append((following, judge.judge(following, unusable)))
                    continue
            waiting.popleft()
            try:
                one = work.result() if isinstance(work, Future) else work
            except BrokenProcessPool:  # killed for memory, or by a decoder that crashed
                one = judge.judge(chunk, unusable)
            unusable |= bool(one.broken)
            yield one

    def _hand_out(
        self,
        chunks: Iterator[Chunk],
        waiting: deque[tuple[Chunk, Future[Judged] | Judged]],
        judge: Judge,
        unusable: bool,
    ) -> None:
        """Keep the workers busy; the chunk that they cannot be given is judged here."""
        busy = sum(isinstance(work, Future) and not work.done() for _, work in waiting)
        while busy < WAITING * (cores() - 1) and len(waiting) < AHEAD * cores():
            chunk = next(chunks, None)
            if chunk is None:
                return
            future = self._submit(chunk, unusable)
            waiting.append((chunk, judge.judge(chunk, unusable) if future is None else future))
            if future is None:
                return
            busy += 1

    def _submit(self, chunk: Chunk, unusable: bool) -> Future[Judged] | None:
        try:
            return self._executor.submit(_Worker.work, chunk, unusable)
        except (BrokenProcessPool, RuntimeError):
            return None

    def close(self) -> None:
        """Let the workers go, without waiting for it; what they have not begun is dropped."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Worker:
    """What a worker process holds."""

    judge: ClassVar[Judge]

    @classmethod
    def begin(cls, job: Job) -> None:
        """Ready itself; an interrupt from the keyboard is the main process's to answer, and its death ends this one."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_follow_parent, daemon=True).start()
        cls.judge = _judge(job, threads=1)

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


def _judge(job: Job, threads: int) -> Judge:
    return Judge(job, SoundMemory(job.memory, job.clean.decode, threads))


def _nothing() -> None:
    """The first task of a worker: done when it has started."""
