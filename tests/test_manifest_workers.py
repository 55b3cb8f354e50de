"""Worker processes: the same results as in this process, whatever becomes of them."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from manifest_material import clean_rules, columns, write_lines, write_tone

from voxtrain.manifest import workers
from voxtrain.manifest.formats import Line, chunks
from voxtrain.manifest.judge import Job, Judge
from voxtrain.manifest.judged import Judged
from voxtrain.manifest.sounds import SoundMemory
from voxtrain.manifest.splitting.group import parse_group_by
from voxtrain.manifest.workers import Pool, judged


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Fifty rows, some of them with a fault."""
    for name in ("a.wav", "b.wav"):
        write_tone(tmp_path / name, 0.5)
    rows = [
        {
            "audio": ("a.wav", "b.wav", "missing.wav")[n % 3],
            "text": "" if n % 7 == 0 else f"Row {n}.",
            "parent": f"p{n % 5}",
        }
        for n in range(50)
    ]
    return write_lines(tmp_path / "rows.jsonl", rows)


def job_of(manifest: Path) -> Job:
    return Job(manifest.parent, columns(), parse_group_by(["parent", "speaker"]), clean_rules(), {}, None, None)


def alone(job: Job) -> Judge:
    return Judge(job, SoundMemory(None, job.clean.decode))


def said(parts: Iterator[Judged]) -> tuple[bytes, bytes, list[list[list[str]]]]:
    made = list(parts)
    assert len(made) > 3
    return (
        np.concatenate([one.rows for one in made]).tobytes(),
        b"".join(o.spool for o in made),
        [o.labels for o in made],
    )


@dataclass(frozen=True)
class Deadly:
    """A chunk that kills a worker."""

    done: float = 0.5

    def lines(self) -> list[Line]:
        if multiprocessing.parent_process() is not None:
            os._exit(1)
        return [(1000, {"audio": "a.wav", "text": "Still here.", "parent": "p"})]


@pytest.mark.slow
def test_workers_say_what_this_process_says_and_their_death_costs_nothing(manifest: Path) -> None:
    job = job_of(manifest)
    parts = list(chunks(manifest, 1))
    pool = Pool.started(job)
    assert pool is not None
    try:
        deadline_s = time.monotonic() + 60
        while not pool.is_ready():
            assert time.monotonic() < deadline_s, "no worker started"
            time.sleep(0.02)
        judge = alone(job)
        assert said(pool.judged(iter(parts), judge, False)) == said(judge.judge(part, False) for part in parts)
        parts[:0] = [Deadly()]  # the first goes to a worker
        assert said(pool.judged(iter(parts), judge, False)) == said(judge.judge(part, False) for part in parts)
    finally:
        pool.close()


def test_without_workers_this_process_does_it_all(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = job_of(manifest)
    monkeypatch.setattr(workers, "WORTH_S", -1.0)
    monkeypatch.setattr(workers, "FIRST_LOOK_S", -1.0)
    monkeypatch.setattr(workers, "cores", lambda: 2)
    monkeypatch.setattr(workers, "WORTH_BESIDE_THREADS_S", -1.0)
    tried = []

    def none(*_: object, **__: object) -> None:
        tried.append(1)
        raise OSError("no more processes")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", none)
    judge = alone(job)
    assert said(judged(chunks(manifest, 1), job)) == said(judge.judge(part, False) for part in chunks(manifest, 1))
    assert tried == [1]


def test_threads_hear_what_one_thread_hears(manifest: Path, tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("a.wav", "missing.wav", "b.wav")]
    paths += [str(write_tone(tmp_path / f"{n}.wav", 0.1 + n / 100)) for n in range(20)]
    alone, together = SoundMemory(None, True), SoundMemory(None, True, threads=3)
    for first in range(0, len(paths), 7):
        together.begin(paths[first : first + 7])  # it need not be asked for in one go, nor at all
    assert {path: together.hear([path])[path] for path in paths[:-2]} == {
        path: alone.hear(paths)[path] for path in paths[:-2]
    }
    assert sorted(together.fresh)[:3] == sorted(alone.fresh)[:3]
    together.close()
    alone.close()
