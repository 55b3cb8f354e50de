"""Host memory that a run on the CPU let go of stays with the process, for the next step.

glibc gives large blocks back to the system as soon as they are free, and asks for them again in the next step: each
page is then cleared and mapped anew, which took about a tenth of a step (docs/performance.md). What it costs: the
process holds its peak until it ends. A process that is done with one thing and begins another gives back what is free.
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD."""
NEVER = 2**31 - 1
LARGE = 2**30
"""Bytes. Above, a block is mapped by itself as before: of such sizes there are few."""


def keep_freed_memory() -> bool:
    """Tell this process's allocator; False where it is not glibc's, and nothing changes."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGE)) and bool(mallopt(TRIM_THRESHOLD, NEVER))


def give_back_freed_memory() -> None:
    """Let the system have what this process has freed; where the allocator is not glibc's, nothing happens."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
