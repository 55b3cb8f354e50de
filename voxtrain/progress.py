"""Say how far it is, where it takes long: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

PATIENCE_S = 2.0  # before anything is said
BETWEEN_LINES_S = 15.0

Item = TypeVar("Item")


def told(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """The same items; on stderr, how many of `total` have passed."""
    counted = enumerate(items, start=1)
    for _, item in told_share(counted, lambda counted: counted[0] / total if total else 1.0, what):
        yield item


def told_share(items: Iterable[Item], done: Callable[[Item], float], what: str) -> Iterator[Item]:
    """The same items; on stderr, which share of the whole is done. done: with an item, as a part of 1."""
    if sys.stderr.isatty():
        yield from _bar(items, done, what)
        return
    last_s, quiet_s = time.monotonic(), PATIENCE_S
    for item in items:
        yield item
        if time.monotonic() - last_s > quiet_s and done(item) < 1:
            print(f"{what}: {done(item):.0%}", file=sys.stderr, flush=True)
            last_s, quiet_s = time.monotonic(), BETWEEN_LINES_S


def _bar(items: Iterable[Item], done: Callable[[Item], float], what: str) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import Progress

    began_s = time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0, visible=False)
        for item in items:
            yield item
            bar.update(task, completed=done(item), visible=time.monotonic() - began_s > PATIENCE_S)
