"""The first pass over a manifest: every row read and judged for itself, in workers where that is worth it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path

from voxtrain.fault import InputError
from voxtrain.manifest.clean import CleanRules
from voxtrain.manifest.columns import Columns
from voxtrain.manifest.corpus import Corpus, Gathering, repeated_ids
from voxtrain.manifest.formats import chunks
from voxtrain.manifest.judge import Job
from voxtrain.manifest.judged import Judged, Kept
from voxtrain.manifest.recall import keep
from voxtrain.manifest.sounds import Remembered, forget, prepare_memory, remember
from voxtrain.manifest.splitting.group import Grouping
from voxtrain.manifest.spool import Spool
from voxtrain.manifest.usable import SHOWN_FAULTS, file_faults, repeated_faults
from voxtrain.manifest.workers import judged
from voxtrain.progress import told_share

CHUNK_ROWS = 1024
DECODED_ROWS = 512  # in a chunk, where audio is decoded: some milliseconds a row
FRESH_AT_MOST = 200_000  # sounds held back before they are written to the database
FRESH_S = 20.0  # and seconds
KEPT_AT_MOST = 64  # judged chunks: half a MiB each


def gather(
    manifest: Path,
    columns: Columns,
    grouping: Grouping,
    clean: CleanRules,
    excluded: dict[str, str],
    sound_memory: Path,
    spool: Spool,
    aside: Executor,
) -> tuple[Corpus, set[str]]:
    """All rows, and the ids of `excluded` that rows have. What is known of each row goes to `spool`.

    aside: one thread; it writes what was newly learnt to the databases, perhaps still when this returns.

    Raises InputError with all that makes the whole file unusable.
    """
    memory = sound_memory if prepare_memory(sound_memory) else None
    judged_before = None if memory is None else memory.with_name("judged.sqlite")
    job = Job(manifest.parent, columns, grouping, clean, excluded, memory, judged_before)
    gathering = Gathering(grouping.width)
    parts = judged(chunks(manifest, DECODED_ROWS if clean.decode else CHUNK_ROWS), job)
    what = "decoding audio" if clean.decode else "reading audio headers"
    for one in _remembered(told_share(parts, lambda part: part.done, what), job, aside):
        spool.add(one.spool)
        gathering.add(one)
    corpus = gathering.whole()
    spool.index(corpus.rows["record_bytes"], corpus.rows["found_bytes"])
    faults = file_faults(manifest, columns, grouping, len(corpus.rows), gathering.broken, gathering.columns)
    faults += repeated_faults(manifest, *repeated_ids(corpus, spool, SHOWN_FAULTS))
    if faults:
        raise InputError(*faults)
    return corpus, gathering.excluded


def _remembered(parts: Iterator[Judged], job: Job, aside: Executor) -> Iterator[Judged]:
    """The same; what was newly read and judged is written to the databases now and then, and at the end."""
    fresh: list[Remembered] = []
    kept: list[Kept] = []
    memory = job.memory
    last_s, is_broken = time.monotonic(), False
    try:
        for part in parts:
            yield part
            fresh += part.fresh
            kept += [part.kept] if part.kept is not None else []
            if part.memory_is_broken and memory is not None and not is_broken:
                is_broken = True
                forget(memory)
            is_late = bool(fresh) and time.monotonic() - last_s > FRESH_S
            if len(fresh) > FRESH_AT_MOST or len(kept) > KEPT_AT_MOST or is_late:
                aside.submit(_write, job, fresh, kept)
                fresh, kept, last_s = [], [], time.monotonic()
    finally:
        aside.submit(_write, job, fresh, kept)


def _write(job: Job, fresh: list[Remembered], kept: list[Kept]) -> None:
    if job.memory is not None and fresh:
        remember(job.memory, fresh)
    if job.chunks is not None and kept:
        keep(job.chunks, kept)
