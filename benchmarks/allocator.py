"""glibc's memory as a process has it by default, in one that was told otherwise: each loop runs as its users run it.

Runs of voxtrain on a CPU keep freed memory (voxtrain/memory/host.py); those of upstream's trainer do not. Once told,
glibc no longer moves its thresholds by itself: here they stand where it moves them in a process that frees large
blocks, which is as far as they go (malloc.h: DEFAULT_MMAP_THRESHOLD_MAX, and twice that for trimming).
"""

from __future__ import annotations

import ctypes

from voxtrain.memory.host import MMAP_THRESHOLD, TRIM_THRESHOLD

MOST_MMAP_THRESHOLD = 32 * 2**20
"""Bytes: glibc's on 64-bit systems."""


def as_by_default() -> None:
    """Free memory as glibc does by default; elsewhere nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_THRESHOLD, MOST_MMAP_THRESHOLD)
    mallopt(TRIM_THRESHOLD, 2 * MOST_MMAP_THRESHOLD)
