"""Keeps a store's share of the operating system's page cache bounded.

What a log server writes it reads again soon, at the tail, where it answers from memory of its own;
the rest is read seldom. A server that has a machine to itself may leave all of its page cache to
the store, and should. Several on one machine (a development cluster) would fill it with copies of
one another's data, and every page that is written first has to be taken from somewhere: with a
bound, new pages are the ones that were just let go.

Only pages that were synced are let go: the caller says so after a commit.

What is written to pages that were free within the file can lie anywhere below its end. Once as much
as is to be kept was written there, all below that part is let go again.
"""

from __future__ import annotations

from typing import Final

from loglet.lmdb_file import LmdbFile
from sharedlog.limits import MIB

_STEP_BYTES: Final = 16 * MIB
"""Pages are let go in steps: each call costs a walk over them."""


class PageCacheBound:
    """For one file that grows at its end. Not for use from two threads at once."""

    def __init__(self, file: LmdbFile, *, keep_bytes: int, written_bytes: int) -> None:
        self._file = file
        self._keep_bytes = keep_bytes
        self._dropped_bytes = written_bytes  # everything below was let go, or was there before
        self._written_bytes = written_bytes
        self._reused_bytes = 0  # written within the file since all of that was let go

    def on_synced(self, written_bytes: int, stored_bytes: int = 0) -> None:
        """The file's first `written_bytes` are on disk: let go what lies below the part to keep.

        `stored_bytes` were written since the last time, wherever they lie.
        """
        self._reused_bytes += max(0, stored_bytes - (written_bytes - self._written_bytes))
        self._written_bytes = written_bytes
        until = written_bytes - self._keep_bytes
        size = until - self._dropped_bytes
        if size >= _STEP_BYTES:
            self._file.let_go(self._dropped_bytes, until)
            self._dropped_bytes = until
        if self._reused_bytes >= max(self._keep_bytes, _STEP_BYTES):
            self._file.let_go(0, self._dropped_bytes)
            self._reused_bytes = 0
