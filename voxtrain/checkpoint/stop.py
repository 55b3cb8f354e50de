"""A request to stop, by signal or by the run itself, that is granted at the next step boundary.

Nothing is saved inside a signal handler: it may run in the middle of an optimizer step, on weights that belong to no
step (upstream's trainer does so, and exits 0).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""The end of a job, Ctrl-C, and Slurm's warning before the end."""
WITHOUT_INTERRUPT = (signal.SIGTERM, signal.SIGUSR1)

_received: set[int] = set()
"""Signals belong to the whole process, and so does what is known of them."""


def was_received(number: signal.Signals) -> bool:
    """Whether somebody in this process took that signal since it began."""
    return number in _received


class StopRequest:
    """Remembers that somebody asked the run to stop. `with StopRequest() as stop:` puts the old handlers back."""

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS) -> None:
        """signals: those to take; a rank of several leaves Ctrl-C to the process that started it."""
        self._signals = tuple(signals)
        self.reason: str | None = None
        self._interrupts = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.uninstall()

    def install(self) -> None:
        """Take the signals, also from whoever took them since (Lightning takes SIGTERM when training starts).

        Outside the main thread signals cannot be taken, and the run does without.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self._signals:
            before = signal.signal(number, self._remember)
            self._before.setdefault(number, before)

    def uninstall(self) -> None:
        """Put the handlers back that were in force before the first `install`."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def request(self, reason: str) -> None:
        """Ask for a stop; the first reason stays."""
        self.reason = self.reason or reason

    def _remember(self, number: int, _: FrameType | None) -> None:
        _received.add(number)
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt
        self.request(f"{signal.Signals(number).name} was received")


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Inside, SIGTERM and SIGUSR1 interrupt at once, as Ctrl-C does: without a step there is no boundary to wait for.

    Left to themselves they would end the process without a word. A `StopRequest` inside takes them for its time.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in WITHOUT_INTERRUPT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    _received.add(number)
    raise KeyboardInterrupt(f"{signal.Signals(number).name} was received")
