"""The memory of a command and of all processes that it starts, while it runs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

EVERY_S = 0.2
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Tree:
    """What a command and its descendants took."""

    exit_code: int
    seconds: float
    peak_gib: float  # proportional set size: pages that processes share count once
    processes: int  # at once, at most


def run_watched(command: Sequence[str]) -> Tree:
    """Run a command to its end, looking at the memory of its processes five times a second."""
    began_s, peak, most = time.perf_counter(), 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        top = psutil.Process(process.pid)
        while process.poll() is None:
            held = [_held(one) for one in (top, *_children(top))]
            peak, most = max(peak, sum(held)), max(most, len(held))
            time.sleep(EVERY_S)
    return Tree(process.returncode, time.perf_counter() - began_s, peak / GIB, most)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _held(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return 0
