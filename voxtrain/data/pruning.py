"""What a folder of latents holds, and how to let go what nobody has wanted for long.

What goes is copied around, not cut out: entries that stay are put into a new data file, and the index is turned over to
it in one transaction. Who reads the old file keeps it until it is done.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from voxtrain.data.audio import SAMPLE_RATE_HZ
from voxtrain.data.latent_index import LatentIndex, connected, new_data_file, remove_data_files
from voxtrain.data.latent_store import DAY_S

SHELF = re.compile(r".+_v\d+")
"""The folder of one encoder's latents: its key, and the version of the code that made them."""

SIZE = "4 * patches * patch * dim"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The latents of one encoder, or such a part of them as was last wanted before some day."""

    path: Path
    remark: str  # why nothing is known of its entries; empty if it is
    entries: int
    hours: float  # of audio
    size_bytes: int  # on disk, of a whole shelf also what no entry needs any more
    last_day: int  # since 1970, when any of it was last wanted


def shelves(folder: Path, before_day: int | None = None) -> list[Shelf]:
    """What is kept under `folder`, by encoder; with `before_day` what was last wanted before that day alone."""
    found = sorted(path for path in folder.glob("*") if path.is_dir() and SHELF.fullmatch(path.name))
    looked_at = [_shelf(path.absolute(), before_day) for path in found]
    return [shelf for shelf in looked_at if before_day is None or shelf.entries or _is_old(shelf, before_day)]


def prune(shelf: Shelf, before_day: int) -> None:
    """Remove what `shelves` found for `before_day`. Raises OSError or sqlite3.Error where that cannot be done."""
    if shelf.remark:
        shutil.rmtree(shelf.path)
    else:
        index = LatentIndex(shelf.path, shelf.path.name)
        index.using(lambda lines, file: _copy_rest(index.folder, lines, file, before_day))


def _shelf(path: Path, before_day: int | None) -> Shelf:
    index = path / "index.sqlite"
    if not index.exists():
        return _unknown(path, "an older version's, read no more")
    wanted = ("", ()) if before_day is None else (" WHERE day < ?", (before_day,))
    question = f"SELECT COUNT(*), TOTAL(samples), TOTAL({SIZE}), MAX(day) FROM entries{wanted[0]}"
    try:
        with closing(connected(index, "ro")) as lines:
            entries, samples, size_bytes, day = lines.execute(question, wanted[1]).fetchone()
            hours = samples / SAMPLE_RATE_HZ / 3600
    except (sqlite3.Error, TypeError, ValueError):
        return _unknown(path, "broken, to be made anew")
    return Shelf(path, "", entries, hours, _size_bytes(path) if before_day is None else int(size_bytes), day or 0)


def _unknown(path: Path, remark: str) -> Shelf:
    return Shelf(path, remark, 0, 0.0, _size_bytes(path), int(path.stat().st_mtime // DAY_S))


def _is_old(shelf: Shelf, before_day: int) -> bool:
    return bool(shelf.remark) and shelf.last_day < before_day


def _size_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _copy_rest(folder: Path, index: sqlite3.Connection, file: str, before_day: int) -> None:
    """Let the index go over to a new data file, with what stays in it."""
    index.execute("BEGIN IMMEDIATE")
    stays = index.execute(f"SELECT key, offset, {SIZE} FROM entries WHERE day >= ? ORDER BY offset", (before_day,))
    places, fresh, end = [], new_data_file(folder), 0
    try:
        with (folder / file).open("rb") as old, (folder / fresh).open("wb") as new:
            for key, offset, size in stays:
                places.append((end, key))
                end += new.write(os.pread(old.fileno(), size, offset))
            new.flush()
            os.fsync(new.fileno())
        index.execute("DELETE FROM entries WHERE day < ?", (before_day,))
        index.executemany("UPDATE entries SET offset = ? WHERE key = ?", places)
        index.execute("UPDATE store SET file = ?, end = ?", (fresh, end))
        index.execute("COMMIT")
    except BaseException:
        (folder / fresh).unlink()
        raise
    remove_data_files(folder, but=fresh)
