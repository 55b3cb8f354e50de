"""Run a command so that its words go to this process's terminal and to a log file, as they come.

Where our stream is a terminal the command gets a terminal of its own in its place (a pty of the same size), so that
bars and colours look as they would without us. The log gets plain text: no colours, and of a bar its last state.
"""

from __future__ import annotations

import os
import re
import selectors
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

CONTROL = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
"""Control sequences of a terminal (ECMA-48: CSI, and two-byte escapes)."""


def run_streamed(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a command to its end and return its exit code; what it says is appended to `log`.

    An interrupt (ctrl-C) reaches the command as well; it is awaited, and then the interrupt goes on.
    """
    streams = {name: _open(getattr(sys, name)) for name in ("stdout", "stderr")}
    with log.open("ab") as file, selectors.DefaultSelector() as waiting:
        child = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=streams["stdout"][1],
            stderr=streams["stderr"][1],
        )
        for name, (read, write) in streams.items():
            os.close(write)
            waiting.register(read, selectors.EVENT_READ, getattr(sys, name))
        try:
            _copy(waiting, _PlainLog(file))
        except BaseException:
            child.terminate()
            raise
        finally:
            for read, _ in streams.values():
                os.close(read)
            child.wait()
    return child.returncode


def _open(target: TextIO) -> tuple[int, int]:
    """Two ends, to read from and for the command to write to; a terminal where `target` is one."""
    if not _is_terminal(target):
        return os.pipe()
    import pty
    import tty

    read, write = pty.openpty()
    tty.setraw(write)  # lines end as the command ends them: our own terminal turns \n into \r\n
    try:
        import fcntl
        import termios

        fcntl.ioctl(write, termios.TIOCSWINSZ, fcntl.ioctl(target.fileno(), termios.TIOCGWINSZ, b"\0" * 8))
    except OSError:  # a terminal that has no size
        pass
    return read, write


def _is_terminal(target: TextIO) -> bool:
    try:
        return os.isatty(target.fileno())
    except (OSError, ValueError):  # closed, or no file at all: pytest, notebooks
        return False


def _copy(waiting: selectors.BaseSelector, log: _PlainLog) -> None:
    while waiting.get_map():
        for key, _ in waiting.select():
            try:
                said = os.read(key.fd, 65536)
            except OSError:  # a pty whose other end is closed
                said = b""
            if not said:
                waiting.unregister(key.fd)
                continue
            _say(key.data, said)
            log.write(key.fd, said)
    log.close()


def _say(target: TextIO, said: bytes) -> None:
    binary = getattr(target, "buffer", None)
    target.flush()
    if binary is None:
        target.write(said.decode(errors="replace"))
    else:
        binary.write(said)
    target.flush()


class _PlainLog:
    """Whole lines as a terminal would leave them: without control sequences, of overwritten text the last state."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._open_lines: dict[int, bytes] = {}  # of each stream

    def write(self, stream: int, said: bytes) -> None:
        *whole, rest = (self._open_lines.get(stream, b"") + said).split(b"\n")
        self._open_lines[stream] = rest
        self._file.writelines(line for line in map(_plain, whole) if line is not None)
        self._file.flush()

    def close(self) -> None:
        rests = [_plain(rest) for rest in self._open_lines.values() if rest]
        self._file.writelines(line for line in rests if line is not None)


def _plain(line: bytes) -> bytes | None:
    """The line as it stood at last; None for one that only moved the cursor."""
    shown = CONTROL.sub(b"", line)
    last = shown.rstrip(b"\r").rsplit(b"\r", 1)[-1].rstrip()
    return None if line.strip() and not last else last + b"\n"
