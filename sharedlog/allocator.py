"""Tells glibc's allocator to keep what it has.

Batches are buffers of some hundred KiB that live for milliseconds. By default glibc maps each such
buffer anew and gives it back at once, or returns the top of the heap to the system, and every page
of the next one costs a page fault. Keeping a few tens of MiB instead halves the system time of a
log server's commits.

For processes of our own (`sharedlogd`, the command), never at import: an application's allocator
is its own business.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Final

from sharedlog.limits import MIB

# From malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3

_MMAP_THRESHOLD_BYTES: Final = 32 * MIB  # the most that glibc takes
_KEPT_BYTES: Final = 64 * MIB
_TOP_PAD_BYTES: Final = 4 * MIB


def keep_freed_memory() -> bool:
    """Reuse freed buffers rather than hand them back; returns whether the C library understood."""
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(mallopt(option, value) == 1 for option, value in settings)
