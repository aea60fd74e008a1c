"""Settings of the C libraries below us that make messages and buffers cheaper.

For processes of our own (`sharedlogd`, the command): they call `tune_process` before gRPC is
imported. An application's process is its own business; `docs/performance.md` says what it can do.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from sharedlog.limits import MIB

# From malloc.h.
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

_MMAP_THRESHOLD_BYTES: Final = 32 * MIB  # the most that glibc takes
_KEPT_BYTES: Final = 64 * MIB
_TOP_PAD_BYTES: Final = 4 * MIB
_ARENAS: Final = 1

# gRPC's newer I/O engine hands each event from thread to thread; its older poller does not. A
# ping-pong of 100 bytes over grpc.aio took 236 us of client CPU with the one, 163 with the other.
_GRPC_EXPERIMENTS: Final = "-event_engine_client,-event_engine_listener"


def tune_process() -> None:
    """Tune this process. Before gRPC is imported, or its part has no effect."""
    os.environ.setdefault("GRPC_EXPERIMENTS", _GRPC_EXPERIMENTS)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Reuse freed buffers rather than hand them back; returns whether the C library understood.

    Batches are buffers of some hundred KiB that live for milliseconds. By default glibc maps each
    anew and gives it back at once, or returns the top of the heap to the system, and every page of
    the next one costs a page fault. Keeping a few tens of MiB saves those.

    And by default threads have heaps of their own, of which each keeps as much. Ours run one at a
    time for most of it, so one heap serves all, and what one has freed the next has warm. Not for
    an application with many threads of native code that are busy at the same time.
    """
    if sys.platform != "linux":
        return False
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False  # another C library
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _KEPT_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
        (_M_ARENA_MAX, _ARENAS),
    )
    return all(mallopt(option, value) == 1 for option, value in settings)
