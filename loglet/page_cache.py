"""Keeps a store's share of the operating system's page cache bounded.

What a log server writes it reads again soon, at the tail, where it answers from memory of its own;
the rest is read seldom. A server that has a machine to itself may leave all of its page cache to
the store, and should. Several on one machine (a development cluster) would fill it with copies of
one another's data, and every page that is written first has to be taken from somewhere: with a
bound, new pages are the ones that were just let go.

Only pages that were synced are let go: the caller says so after a commit.

The kernel keeps a page that a process has mapped, as one that was read through LMDB's map is. So
pages are taken out of this process's map first; whoever reads them later maps them again.

What is written to pages that were free within the file can lie anywhere below its end. Once as much
as is to be kept was written there, all below that part is let go again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Final

from sharedlog.limits import MIB

_STEP_BYTES: Final = 16 * MIB
"""Pages are let go in steps: each call costs a walk over them."""


class PageCacheBound:
    """For one file that grows at its end. Not for use from two threads at once.

    Where the process has mapped the file by now, it must stay mapped until `close`.
    """

    def __init__(self, path: Path, *, keep_bytes: int, written_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._dropped_bytes = written_bytes  # everything below was let go, or was there before
        self._written_bytes = written_bytes
        self._reused_bytes = 0  # written within the file since all of that was let go
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._maps = _maps_of(path)

    def on_synced(self, written_bytes: int, stored_bytes: int = 0) -> None:
        """The file's first `written_bytes` are on disk: let go what lies below the part to keep.

        `stored_bytes` were written since the last time, wherever they lie.
        """
        self._reused_bytes += max(0, stored_bytes - (written_bytes - self._written_bytes))
        self._written_bytes = written_bytes
        until = written_bytes - self._keep_bytes
        size = until - self._dropped_bytes
        if size >= _STEP_BYTES:
            self._let_go(self._dropped_bytes, until)
            self._dropped_bytes = until
        if self._reused_bytes >= max(self._keep_bytes, _STEP_BYTES):
            self._let_go(0, self._dropped_bytes)
            self._reused_bytes = 0

    def _let_go(self, first: int, end: int) -> None:
        """Bytes [first, end) of the file, but for pages that are only in part of it."""
        for start in self._maps:
            _unmap_pages(start + first, start + end)
        os.posix_fadvise(self._descriptor, first, end - first, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def _maps_of(path: Path) -> list[int]:
    """Where in this process the file is mapped from its beginning, as LMDB does: addresses."""
    if sys.platform != "linux":
        return []
    wanted = str(path.resolve())
    with Path("/proc/self/maps").open() as lines:  # span, rights, offset, device, inode, path
        maps = [it.rstrip("\n").split(maxsplit=5) for it in lines]
    named = [it for it in maps if len(it) == 6 and it[5] == wanted]
    return [int(span.split("-")[0], 16) for span, _, offset, *_ in named if not int(offset, 16)]


def _unmap_pages(first: int, end: int) -> None:
    """Addresses [first, end), of a file that is mapped shared: what is read there is as before.

    Nothing is lost if the kernel refuses: the pages stay in memory.
    """
    first, end = -(-first // mmap.PAGESIZE), end // mmap.PAGESIZE
    if first < end:
        at, size = ctypes.c_void_p(first * mmap.PAGESIZE), (end - first) * mmap.PAGESIZE
        ctypes.CDLL(None).madvise(at, ctypes.c_size_t(size), mmap.MADV_DONTNEED)
