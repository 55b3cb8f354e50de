"""A disk that fails: every call by which a save changes something is counted, and one of them raises."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHANGING = ("mkdir", "rename", "replace", "link", "symlink", "unlink", "rmdir", "fsync", "sendfile")
"""Of the module `os`; opening for writing, writing and closing are counted besides."""


class FaultyDisk:
    """While `on`, counts changing calls on paths under `root`; call number `fails_at`, or all since, raise `code`.

    Everything works by default. What is under way when a call fails has to be tidied up by calls that may work.
    """

    def __init__(
        self, root: Path, fails_at: int | str | None = None, code: int = errno.ENOSPC, *, for_good: bool = False
    ) -> None:
        """fails_at: the number of a call, or the first that is said so, as in `calls`."""
        self.root, self.fails_at, self.code, self.for_good = str(root), fails_at, code, for_good
        self.on = False
        self.calls: list[str] = []

    def touch(self, call: str, path: Any) -> None:
        """Count a call, or raise."""
        if not self.on or not str(path).startswith(self.root):
            return
        said = f"{call} {Path(str(path)).name}"
        self.calls.append(said)
        number = len(self.calls) - 1
        if self.fails_at == said:
            self.fails_at = number
        if isinstance(self.fails_at, int) and (number == self.fails_at or (self.for_good and number > self.fails_at)):
            raise OSError(self.code, os.strerror(self.code), str(path))


class _Watched:
    """A file whose writes are counted."""

    def __init__(self, file: Any, disk: FaultyDisk, path: Any) -> None:
        self._file, self._disk, self._path = file, disk, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, content: Any) -> int:
        self._disk.touch("write", self._path)
        return int(self._file.write(content))

    def close(self) -> None:
        if not self._file.closed:
            self._file.close()
            self._disk.touch("close", self._path)


@contextmanager
def installed(disk: FaultyDisk) -> Iterator[FaultyDisk]:
    """Put the disk in the place of the machine's."""
    with pytest.MonkeyPatch.context() as patch:
        opened = io.open

        def open_watched(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
            writes = bool(set(mode) & set("wax+"))
            if writes:
                disk.touch("open", file)
            made = opened(file, mode, *rest, **more)
            return _Watched(made, disk, file) if writes and str(file).startswith(disk.root) else made

        patch.setattr(io, "open", open_watched)
        patch.setattr("builtins.open", open_watched)
        for name in CHANGING:
            patch.setattr(os, name, _counted(name, getattr(os, name), disk))
        yield disk


def _counted(name: str, really: Any, disk: FaultyDisk) -> Any:
    def call(target: Any, *rest: Any, **more: Any) -> Any:
        path = Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target
        disk.touch(name, rest[0] if name in ("link", "symlink") else path)
        return really(target, *rest, **more)

    return call
