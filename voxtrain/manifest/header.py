"""How long the audio is, and whether there is any: read from each file's header alone, in threads.

The manifest's own `duration` is not believed: it may have been written before a clip was cut, or by hand.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile

from voxtrain.manifest.progress import told

PATHS_AT_A_TIME = 256  # one task of a thread: keeps the queue small where there are a million files
MOST_FRAMES = 2**53  # libsndfile reports 2^63-1 where a header does not say


@dataclass(frozen=True, slots=True)
class Header:
    """What one audio file's header says."""

    duration_s: float | None  # None: it cannot be opened
    missing: bool  # there is no such file
    reason: str  # why it cannot be opened; empty if it can


NO_FILE = Header(None, missing=True, reason="there is no such file")


def read_headers(paths: Iterable[Path]) -> dict[Path, Header]:
    """The header of every file, each read once, with a progress bar where it takes long."""
    wanted = list(dict.fromkeys(paths))
    parts = [wanted[start : start + PATHS_AT_A_TIME] for start in range(0, len(wanted), PATHS_AT_A_TIME)]
    with ThreadPoolExecutor() as pool:
        found: Iterator[list[Header]] = pool.map(lambda part: [read_header(path) for path in part], parts)
        headers = [header for part in told(found, len(parts), "audio headers") for header in part]
    return dict(zip(wanted, headers, strict=True))


def read_header(path: Path) -> Header:
    """The header of one file."""
    no_file = _no_ordinary_file(path)
    if no_file is not None:
        return no_file
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        return _unreadable(error.error_string)
    except (RuntimeError, TypeError, ValueError, OSError) as error:  # TypeError: `.raw` has no header
        return _unreadable(str(error))
    if info.frames <= 0 or info.samplerate <= 0:
        return _unreadable("it holds no samples")
    if info.frames >= MOST_FRAMES:
        return _unreadable("its header does not say how long it is")
    return Header(info.frames / info.samplerate, missing=False, reason="")


def _no_ordinary_file(path: Path) -> Header | None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL inside the name
        return NO_FILE
    except OSError as error:  # no permission, a loop of links, a name too long
        return _unreadable(error.strerror or str(error))
    if stat.S_ISREG(mode):
        return None
    return _unreadable("it is a folder" if stat.S_ISDIR(mode) else "it is no ordinary file")  # a pipe would wait


def _unreadable(reason: str) -> Header:
    return Header(None, missing=False, reason=reason)
