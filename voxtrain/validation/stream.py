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
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, TextIO

CONTROL = re.compile(rb"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
"""Control sequences of a terminal (ECMA-48: CSI, and two-byte escapes)."""


def run_streamed(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a command to its end and return its exit code; what it says is appended to `log`.

    An interrupt (ctrl-C) reaches the command as well; it is awaited, and then the interrupt goes on.
    """
    targets = (sys.stdout, sys.stderr)
    with ExitStack() as reads, ExitStack() as writes:
        ends = [_open(target) for target in targets]
        for read, write in ends:
            reads.callback(os.close, read)
            writes.callback(os.close, write)
        out, err = (write for _, write in ends)
        child = subprocess.Popen(list(command), env=dict(environment), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        writes.close()  # the command has its own: without ours, its end is seen
        try:
            with log.open("ab") as file:
                _copy({read: target for (read, _), target in zip(ends, targets, strict=True)}, _PlainLog(file))
        except BaseException:
            child.terminate()
            raise
        finally:
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


def _copy(opened: Mapping[int, TextIO], log: _PlainLog) -> None:
    """Copy what comes from each end to its stream and to the log, until all are closed."""
    with selectors.DefaultSelector() as waiting:
        for read, target in opened.items():
            waiting.register(read, selectors.EVENT_READ, target)
        while waiting.get_map():
            for key, _ in waiting.select():
                said = _read(key.fd)
                if said:
                    _say(key.data, said)
                    log.write(key.fd, said)
                else:
                    waiting.unregister(key.fd)
    log.close()


def _read(end: int) -> bytes:
    try:
        return os.read(end, 65536)
    except OSError:  # a pty whose other end is closed
        return b""


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
