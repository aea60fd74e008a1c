"""Files written and read past the page cache, where the file system can (O_DIRECT).

Large objects would push out of the page cache what log servers read there, and each page that they
take has to be found and copied to; and what is read back right after it was written would be
compared with memory, not with the disk.

The kernel wants memory, positions and sizes in whole blocks. So bytes go through buffers of
`PIECE_BYTES`, which are used again, and what is behind the last whole piece of a file is written
through the page cache. Some file systems (in memory, on a network, with checksums of their own)
refuse that, or take it and go through the page cache all the same. So whatever way it goes, what
was written is synced as it comes, for the sync of a whole object would hold up the commits of log
servers beside it, and what was read is let go of.

Everything here blocks and raises OSError.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections import deque
from typing import Final

from sharedlog.limits import KIB, MIB

PIECE_BYTES: Final = 512 * KIB
"""One read or write: short, for a commit beside it waits for it."""
SYNC_EVERY_BYTES: Final = 4 * MIB
"""Of a file that is written, so much is not synced at most."""
_BLOCK_BYTES: Final = 4 * KIB
"""Of any disk a multiple of its own."""
_O_DIRECT: Final = getattr(os, "O_DIRECT", 0)
_BUFFERS_MAX: Final = 6
"""So many are filled by a read before their bytes are copied out of them, 3 MiB for each thread;
and twice as many are kept."""
_SPARE: Final[deque[mmap.mmap]] = deque(maxlen=2 * _BUFFERS_MAX)
"""Buffers that nobody uses. Appending and popping are atomic."""
os.register_at_fork(after_in_child=_SPARE.clear)  # they are shared with the parent


class DirectWriter:
    """Writes a file from its beginning; for one thread at a time. The caller syncs it at the end.

    Args:
        fd: open for writing, at 0, with nothing in it.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer: mmap.mmap | None = None
        self._filled = 0  # bytes of it
        self._direct: bool | None = None  # None: not tried yet
        self._not_synced = 0

    def write(self, data: bytes) -> None:
        """Write more."""
        if self._buffer is None:
            self._buffer = _take_buffer()
        left = memoryview(data)
        while left:
            end = min(PIECE_BYTES, self._filled + len(left))
            size = end - self._filled
            self._buffer[self._filled : end] = left[:size]
            self._filled, left = end, left[size:]
            if end == PIECE_BYTES:
                self._write_piece()

    def finish(self) -> None:
        """Write what is left. Then `close`."""
        if self._direct:
            self._direct = _set_direct(self._fd, on=False)
        if self._buffer is not None:
            with memoryview(self._buffer) as view, view[: self._filled] as left:
                _write_all(self._fd, left)

    def close(self) -> None:
        """Nothing more is written; the descriptor is the caller's. Again is nothing."""
        if self._buffer is not None:
            _SPARE.append(self._buffer)
            self._buffer = None

    def _write_piece(self) -> None:
        assert self._buffer is not None
        if self._direct is None:
            self._direct = _set_direct(self._fd, on=True)
        self._filled = 0
        with memoryview(self._buffer) as view:
            if self._direct:
                written = self._write_direct(view)
                if written < PIECE_BYTES:
                    self._direct = _set_direct(self._fd, on=False)
            else:
                written = 0
            with view[written:] as left:
                _write_all(self._fd, left)
        self._not_synced += PIECE_BYTES
        if self._not_synced >= SYNC_EVERY_BYTES:
            os.fdatasync(self._fd)
            self._not_synced = 0

    def _write_direct(self, view: memoryview) -> int:
        try:
            return os.write(self._fd, view)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0  # a flag that is taken, and not understood


def read_direct(fd: int, start: int, end: int) -> bytes:
    """The bytes [start, end) of a file; fewer if it ends before."""
    data = b""
    if _set_direct(fd, on=True):
        try:
            data = _read_pieces(fd, start, end)
        finally:
            _set_direct(fd, on=False)
    if len(data) < end - start:
        data += read_cached(fd, start + len(data), end)
    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
    return data


def read_cached(fd: int, start: int, end: int) -> bytes:
    """The same through the page cache, and what was read stays there."""
    pieces: list[bytes] = []
    while start < end and (piece := os.pread(fd, end - start, start)):
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_pieces(fd: int, start: int, end: int) -> bytes:
    """[start, end), or as much of its beginning as can be read like this."""
    found: list[bytes] = []
    at = start
    while at < end:
        stop = min(end, at - at % _BLOCK_BYTES + _BUFFERS_MAX * PIECE_BYTES)
        found.append(_read_few(fd, at, stop))
        at += len(found[-1])
        if at < stop:
            break
    return found[0] if len(found) == 1 else b"".join(found)


def _read_few(fd: int, start: int, end: int) -> bytes:
    """The same of a range for which there are buffers: it is copied out of them once."""
    views: list[memoryview] = []
    buffers: list[mmap.mmap] = []
    at = start - start % _BLOCK_BYTES
    try:
        while at < end:
            buffers.append(_take_buffer())
            asked = min(PIECE_BYTES, end - at + -(end - at) % _BLOCK_BYTES)
            view = memoryview(buffers[-1])[:asked]
            try:
                size = os.preadv(fd, [view], at)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                break  # a flag that is taken, and not understood
            views.append(view[max(0, start - at) : min(size, end - at)])
            at += size
            if size < asked:
                break  # most likely the file ends there
        return b"".join(views)
    finally:
        _SPARE.extend(buffers)


def _take_buffer() -> mmap.mmap:
    try:
        return _SPARE.pop()
    except IndexError:
        return mmap.mmap(-1, PIECE_BYTES)  # begins at a page, so at a block


def _set_direct(fd: int, *, on: bool) -> bool:
    """Have reads and writes go past the page cache, or not; whether they do now."""
    if not _O_DIRECT:
        return False
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | _O_DIRECT if on else flags & ~_O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False  # the file system has no such thing
    return on


def _write_all(fd: int, left: memoryview) -> None:
    while left:
        left = left[os.write(fd, left) :]
