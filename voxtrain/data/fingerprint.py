"""Hashes of what audio files hold, remembered from one run to the next by path, size and times.

The memory saves reading every file at every start. Nothing depends on it: without it files are read again.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

from voxtrain.durable import read_json, write_json

FRESH_S = 2.0
"""A file changed so lately might change again within the same tick of its clock: its hash is not remembered."""


class Fingerprints:
    """SHA-256 of files, kept in one JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read(path)
        self._learnt: dict[str, list[Any]] = {}

    def of(self, audio: Path) -> str:
        """The hash of the file, in hex. Raises OSError when it cannot be read."""
        before = audio.stat()
        stamp = [before.st_size, before.st_mtime_ns, before.st_ctime_ns]
        known = self._known.get(str(audio))
        if known is not None and known[:3] == stamp:
            return str(known[3])
        with audio.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if time.time() - before.st_mtime > FRESH_S:
            self._known[str(audio)] = self._learnt[str(audio)] = [*stamp, digest]
        return digest

    def save(self) -> None:
        """Add what was learnt to the file; of two processes that save at once, one may have to learn again."""
        if self._learnt:
            write_json(self._path, _read(self._path) | self._learnt)
            self._learnt = {}


def _read(path: Path) -> dict[str, list[Any]]:
    """What the file holds; nothing where it is missing or broken."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: entry for name, entry in found.items() if isinstance(entry, list) and len(entry) == 4}
