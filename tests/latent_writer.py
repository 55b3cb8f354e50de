"""A process that adds entries to a store of latents, and may be killed. Loads no torch, so that it starts at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from voxtrain.data.latent_store import LatentStore, Made

Shape = tuple[int, int, int]


def made_of(number: int, shape: Shape = (3, 4, 2)) -> Made:
    """Number `number` of entries that every process makes alike."""
    latents = np.random.default_rng(number).standard_normal(shape, dtype=np.float32)
    return Made(number.to_bytes(4, "big"), latents, samples=number)


def store_in(folder: Path) -> LatentStore:
    """The store of an encoder called `key`."""
    return LatentStore(folder / "key_v0", "key_v0")


def die_writing(commit: int) -> None:
    """Have this process killed in the middle of its commit number `commit`, before the last bytes reach the file."""
    flushed: list[int] = []

    def dying(descriptor: int) -> None:
        flushed.append(descriptor)
        if len(flushed) == commit:
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - 8)
            os.kill(os.getpid(), signal.SIGKILL)

    os.fdatasync = dying


def main(folder: Path, first: int, last: int, together: int, dies: int) -> None:
    """Add entries from `first` up or down to `last`, `together` at a time."""
    if dies:
        die_writing(dies)
    store = store_in(folder)
    while not (folder / "go").exists():
        pass
    step = 1 if first < last else -1
    for number in range(first, last, step * together):
        store.add([made_of(number + step * k) for k in range(together)], {})


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
