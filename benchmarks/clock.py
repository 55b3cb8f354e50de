"""Clocks: seconds of a device's work, and what other processes took of the machine meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
import torch


@dataclass(frozen=True)
class Clock:
    """Reads the time when the device has done what it was given."""

    device: torch.device

    def now_s(self) -> float:
        """Seconds since some moment."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def told(self, seconds: dict[str, float]) -> Iterator[Callable[[str], None]]:
        """Inside, a call with a part's name adds the time since the call before to that part."""
        last = self.now_s()

        def split(part: str) -> None:
            nonlocal last
            now = self.now_s()
            seconds[part] += now - last
            last = now

        yield split


class Neighbours:
    """What share of the machine's processors other processes took since this was made."""

    def __init__(self) -> None:
        self._began = _busy_s()

    def share(self) -> float:
        """0 on a quiet machine, 1 where others took everything."""
        machine, own, wall = (now - before for now, before in zip(_busy_s(), self._began, strict=True))
        return max(0.0, machine - own) / (wall * (psutil.cpu_count() or 1))


def _busy_s() -> tuple[float, float, float]:
    """Processor seconds of the whole machine and of this process, and seconds."""
    machine, own = psutil.cpu_times(), psutil.Process().cpu_times()
    busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0) - getattr(machine, "guest", 0.0)
    return busy, own.user + own.system, time.perf_counter()
