"""glibc's allocator, told to keep what a step frees for the next one.

By default it hands large blocks back to the system at once, and every step faults them in again, zeroed: on a
CPU that is time of every step (docs/bench.md has the figures).
"""

from __future__ import annotations

import ctypes
import sys

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """For the rest of this process and those forked from it, where the C library is glibc; else nothing.

    The process then holds on to its peak; what it frees it uses again.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_TRIM_THRESHOLD, -1)  # never shrink the heap
    mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap too
