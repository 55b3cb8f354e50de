"""Tensors as they were at a step boundary, while training goes on: what a save still has to read may not change yet.

Forward and backward passes only read weights and optimizer state, so a writer beside them needs no copy of anything.
Before the next update changes them, what is still unread is copied to host memory as far as a budget allows, and the
update waits for the rest to be read. So a save in the background takes at most the budget of host memory, nothing of
the card's, and stalls training only where the disk is slower than one step and the budget together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition

from torch import Tensor

from voxtrain.checkpoint.stream import LazyTensor


class Abandoned(Exception):
    """The save is no longer wanted: the process is about to end."""


@dataclass(eq=False)
class _Entry:
    live: Tensor | None  # None once it may change
    kept: Tensor | None  # its copy, on the host
    readings: int  # still to come
    looked_at: bool  # by the writer, now, and not at the copy


class Held:
    """What one save reads. The writer's thread reads; the training thread calls `before_update`."""

    def __init__(self, budget_bytes: int) -> None:
        """budget_bytes: of host memory, for copies."""
        self._left = budget_bytes
        self._entries: list[_Entry] = []
        self._turn = Condition()
        self._abandoned = False
        self.stalled_s = 0.0
        self.most_copied_bytes = 0
        self._copied_bytes = 0

    def hold(self, tensors: Mapping[str, Tensor], readings: int) -> dict[str, LazyTensor]:
        """The tensors, to be read `readings` times each as they are now, whatever becomes of them."""
        return {name: self._held(tensor.detach(), readings) for name, tensor in tensors.items()}

    def _held(self, tensor: Tensor, readings: int) -> LazyTensor:
        entry = _Entry(tensor, None, readings, looked_at=False)
        self._entries.append(entry)
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: self._read(entry))

    @contextmanager
    def _read(self, entry: _Entry) -> Iterator[Tensor]:
        with self._turn:
            if self._abandoned:
                raise Abandoned
            tensor = entry.live if entry.kept is None else entry.kept
            entry.looked_at = entry.kept is None
        assert tensor is not None, "a tensor is read more often than it was held for"
        try:
            yield tensor
        finally:
            with self._turn:
                entry.looked_at = False
                entry.readings -= 1
                if entry.readings <= 0:
                    self._let_go(entry)
                self._turn.notify_all()

    def _let_go(self, entry: _Entry) -> None:
        if entry.kept is not None:
            self._left += entry.kept.nbytes
            self._copied_bytes -= entry.kept.nbytes
        entry.live = entry.kept = None

    def before_update(self) -> None:
        """Return when every tensor may change: read, or copied within the budget. Counts the time in `stalled_s`."""
        began = time.monotonic()
        with self._turn:
            while pending := [entry for entry in self._entries if entry.live is not None]:
                # from the end, since the writer comes from the beginning
                if not self._copy_one(pending):
                    self._turn.wait()
            self._entries = [entry for entry in self._entries if entry.kept is not None]
        self.stalled_s += time.monotonic() - began

    def _copy_one(self, pending: list[_Entry]) -> bool:
        for entry in reversed(pending):  # from the end, since the writer comes from the beginning
            if not entry.looked_at and entry.live is not None and entry.live.nbytes <= self._left:
                entry.kept, entry.live = entry.live.to("cpu", copy=True), None
                self._left -= entry.kept.nbytes
                self._copied_bytes += entry.kept.nbytes
                self.most_copied_bytes = max(self.most_copied_bytes, self._copied_bytes)
                return True
        return False

    def finish(self) -> None:
        """Nothing will be read any more: let go of everything, and of the training thread if it waits."""
        with self._turn:
            for entry in self._entries:
                self._let_go(entry)
            self._entries = []
            self._turn.notify_all()

    def abandon(self) -> None:
        """Make the next reading raise Abandoned."""
        with self._turn:
            self._abandoned = True
