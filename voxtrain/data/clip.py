"""Clips on their way to the encoder: named by what they hold, read ahead, and compared with what was audited."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voxtrain.data.audio import read_wave
from voxtrain.fault import Fault, InputError
from voxtrain.manifest.row import Row
from voxtrain.manifest.sound import read_sound

READERS = 2
READ_AHEAD = 8
"""Threads that read, and clips that wait for the encoder: a GPU encodes about as fast as one thread reads."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One audio file, and the name of its latents."""

    path: Path
    samples: str | None  # digest of the decoded samples, where the audit took it
    key: bytes


def audio_of(rows: Sequence[Row]) -> dict[Path, str | None]:
    """Every audio and reference audio of `rows`, each once, with the digest of its samples where the audit took it."""
    found: dict[Path, str | None] = {}
    for row in rows:
        for path, samples in ((row.audio, row.samples), (row.ref_audio, row.ref_samples)):
            if path is not None and found.get(path) is None:
                found[path] = samples
    return found


def key_of(kind: str, digest: str, keep_tail_s: float | None) -> bytes:
    """The name of latents: of what audio (`kind` says what was hashed), and how much of its tail silence stays."""
    return hashlib.sha256(f"{kind} {digest} {keep_tail_s}".encode()).digest()


def heard(clip: Clip, keep_tail_s: float | None) -> np.ndarray | InputError:
    """The wave of a clip, [samples] float32 at 16 kHz, or why it cannot be used."""
    try:
        wave = read_wave(clip.path, keep_tail_s)
    except InputError as error:
        return error
    if clip.samples is not None:
        sound = read_sound(str(clip.path), decode=True)
        if sound.samples is None or sound.samples.digest != clip.samples:
            what = "it has changed since the audit: its samples are not those that were audited"
            return InputError(Fault(str(clip.path), what, "restore the file, or start a new run, which audits it anew"))
    return wave


def read_ahead(
    clips: Iterable[Clip], read: Callable[[Clip], np.ndarray | InputError]
) -> Generator[tuple[Clip, np.ndarray | InputError]]:
    """Each clip with what `read` makes of it, which threads do while the clips before are looked at."""
    waiting: deque[tuple[Clip, Future[np.ndarray | InputError]]] = deque()
    with ThreadPoolExecutor(READERS) as threads:
        try:
            for clip in clips:
                waiting.append((clip, threads.submit(read, clip)))
                if len(waiting) > READ_AHEAD:
                    first, wave = waiting.popleft()
                    yield first, wave.result()
            while waiting:
                first, wave = waiting.popleft()
                yield first, wave.result()
        finally:
            threads.shutdown(cancel_futures=True)
