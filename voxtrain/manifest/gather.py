"""The first pass over a manifest: every row read and judged for itself, in workers where that is worth it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from voxtrain.fault import InputError
from voxtrain.manifest.clean import CleanRules
from voxtrain.manifest.columns import Columns
from voxtrain.manifest.corpus import Corpus, Gathering, repeated_ids
from voxtrain.manifest.formats import chunks
from voxtrain.manifest.group import Grouping
from voxtrain.manifest.judge import Job, Judged
from voxtrain.manifest.progress import told_share
from voxtrain.manifest.sounds import Remembered, forget, prepare_memory, remember
from voxtrain.manifest.spool import Spool
from voxtrain.manifest.usable import SHOWN_FAULTS, file_faults, repeated_faults
from voxtrain.manifest.workers import judged

CHUNK_ROWS = 1024
DECODED_ROWS = 256  # in a chunk, where audio is decoded: some milliseconds a row
FRESH_AT_MOST = 50_000  # sounds held back before they are written to the database
FRESH_S = 20.0  # and seconds


def gather(
    manifest: Path,
    columns: Columns,
    grouping: Grouping,
    clean: CleanRules,
    excluded: dict[str, str],
    sound_memory: Path,
    spool: Spool,
) -> tuple[Corpus, set[str]]:
    """All rows, and the ids of `excluded` that rows have. What is known of each row goes to `spool`.

    Raises InputError with all that makes the whole file unusable.
    """
    memory = sound_memory if prepare_memory(sound_memory) else None
    job = Job(manifest.parent, columns, grouping, clean, excluded, memory)
    gathering = Gathering(grouping.width)
    parts = judged(chunks(manifest, DECODED_ROWS if clean.decode else CHUNK_ROWS), job)
    what = "decoding audio" if clean.decode else "reading audio headers"
    for one in _remembered(told_share(parts, lambda part: part.done, what), memory):
        spool.add(one.spool)
        gathering.add(one)
    corpus = gathering.whole()
    spool.index(corpus.rows["record_bytes"], corpus.rows["found_bytes"])
    faults = file_faults(manifest, columns, grouping, len(corpus.rows), gathering.broken, gathering.columns)
    faults += repeated_faults(manifest, *repeated_ids(corpus, spool, SHOWN_FAULTS))
    if faults:
        raise InputError(*faults)
    return corpus, gathering.excluded


def _remembered(parts: Iterator[Judged], memory: Path | None) -> Iterator[Judged]:
    """The same; what was newly read of audio files is written to the database now and then, and at the end."""
    fresh: list[Remembered] = []
    last_s, is_broken = time.monotonic(), False
    try:
        for part in parts:
            yield part
            fresh += part.fresh
            if part.memory_is_broken and memory is not None and not is_broken:
                is_broken = True
                forget(memory)
            if len(fresh) > FRESH_AT_MOST or (fresh and time.monotonic() - last_s > FRESH_S):
                _write(memory, fresh)
                last_s = time.monotonic()
    finally:
        _write(memory, fresh)


def _write(memory: Path | None, fresh: list[Remembered]) -> None:
    if memory is not None and fresh:
        remember(memory, fresh)
    fresh.clear()
