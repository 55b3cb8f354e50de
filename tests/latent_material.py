"""Clips, encoders that count, and a look into the files of a latent cache."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from data_material import row_of, small_encode
from torch import Tensor

from voxtrain.data.audio import read_wave
from voxtrain.data.latents import LatentCache
from voxtrain.manifest.row import Row


class Interrupted(BaseException):
    """What no code of ours may catch: pytest itself would stop at a KeyboardInterrupt."""


class Counting:
    """Encodes, and counts how often; breaks off before call number `breaks_at`."""

    def __init__(self, breaks_at: int = 0) -> None:
        self.calls, self.breaks_at = 0, breaks_at

    def __call__(self, wave: np.ndarray) -> Tensor:
        self.calls += 1
        if self.calls == self.breaks_at:
            raise Interrupted
        return small_encode(wave)


def write_clips(folder: Path, count: int = 5) -> list[Path]:
    """Clips of 25 ms and more, changed long ago as far as the file system knows."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"clip_{k}.wav" for k in range(count)]
    for k, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(k).uniform(-0.5, 0.5, 400 + 37 * k), 16_000)
        os.utime(path, (1, 1))
    return paths


def cache_in(folder: Path, encode: Counting | None = None, key: str = "key") -> LatentCache:
    """A cache that cuts no tails; without `encode` it must find everything."""
    return LatentCache(folder, key, encode or Counting(breaks_at=1), None)


def rows_of(paths: list[Path]) -> list[Row]:
    """A row for each clip, its samples not hashed."""
    return [row_of(path) for path in paths]


def audited(row: Row, samples: str | None, ref_samples: str | None = None) -> Row:
    """The row as an audit that decodes leaves it."""
    return replace(row, samples=samples, ref_samples=ref_samples)


def index_file(folder: Path, key: str = "key") -> Path:
    """The index of one encoder's latents."""
    [path] = folder.glob(f"{key}_v*/index.sqlite")
    return path


def data_file(folder: Path, key: str = "key") -> Path:
    """The one data file of one encoder's latents."""
    [path] = folder.glob(f"{key}_v*/latents_*.f32")
    return path


def places(folder: Path, key: str = "key") -> dict[bytes, tuple[int, int]]:
    """Offset and bytes of every entry, in the order in which they lie."""
    with closing(sqlite3.connect(index_file(folder, key))) as index:
        lines = index.execute("SELECT key, offset, 4 * patches * patch * dim FROM entries ORDER BY offset").fetchall()
    return {name: (offset, size) for name, offset, size in lines}


def assert_tight(folder: Path, key: str = "key") -> int:
    """No entry was lost, doubled or torn: entries fill the file without a gap. Returns their number."""
    at = 0
    lines = places(folder, key)
    for offset, size in lines.values():
        assert offset == at
        at += size
    assert at == data_file(folder, key).stat().st_size
    return len(lines)


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))


@contextmanager
def nobody() -> Iterator[None]:
    """Without root's right to write everywhere, inside the context."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def assert_live(cache: LatentCache, paths: list[Path]) -> None:
    assert paths
    for path in paths:
        live = small_encode(read_wave(path))
        assert live.dtype == torch.float32
        assert torch.equal(cache.latents(path), live)
        assert cache.positions(path) == len(live)
