"""LMDB's file beside its map: how large a value is, and how what is read gets into memory.

**Why.** The binding touches all of a value before it tells how large it is. Who only deletes a
value, as a trimmed log server does all day, would read it from the disk once more for that. LMDB
itself looks at the first page alone, where it finds how many pages there are.

And the kernel reads the surroundings of a page that is read through the map. Around the pages of
the tree that a deletion goes through lies what it deletes, so there it is told not to; values that
others read meanwhile are asked for as a whole.

The layout of a node is that of LMDB 0.9's file format: `struct MDB_node` in its `mdb.c`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

_NODE: Final = struct.Struct("=IHH")
"""Before each key of a leaf: the bytes of the value, flags, the bytes of the key."""

_ON_PAGES_OF_ITS_OWN: Final = 0x01
"""The only flag of such a node; after the key comes the number of its first page."""

_PAGE_NUMBER_BYTES: Final = ctypes.sizeof(ctypes.c_size_t)
_PAGE_HEAD_BYTES: Final = _PAGE_NUMBER_BYTES + 8  # before a value on pages of its own


class LargeValue(NamedTuple):
    """A value that is not beside its key."""

    page: int  # the number of its first page
    size: int  # bytes


def large_value(key: memoryview) -> LargeValue | None:
    """Where the value of this key lies; None if it lies beside its key.

    `key` is what a cursor gives in a reading transaction with `buffers`: it points into the map.
    """
    address = _address(key)
    size, flags, key_size = _NODE.unpack(ctypes.string_at(address - _NODE.size, _NODE.size))
    if flags != _ON_PAGES_OF_ITS_OWN or key_size != len(key):
        return None
    page = ctypes.string_at(address + key_size, _PAGE_NUMBER_BYTES)
    return LargeValue(int.from_bytes(page, sys.byteorder), size)


class LmdbFile:
    """One that this process has mapped by now, and keeps so until `close`. For any thread."""

    def __init__(self, path: Path, *, page_bytes: int = mmap.PAGESIZE) -> None:
        self._page_bytes = page_bytes
        self._maps = _maps_of(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._lock = threading.Lock()
        self._page_by_page = 0  # who wants that

    def close(self) -> None:
        """Let go of the file. Again is nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def values(self, cursor: Any) -> Values:
        """The values that a cursor of a reading transaction with `buffers` steps over."""
        return Values(self, cursor, self._page_bytes // 4)

    def ask_for(self, value: LargeValue) -> None:
        """Have the disk bring all of a value, whatever is done about the map meanwhile."""
        if sys.platform == "linux":
            with suppress(OSError):  # it is advice
                start, size = value.page * self._page_bytes, _PAGE_HEAD_BYTES + value.size
                os.posix_fadvise(self._descriptor, start, size, os.POSIX_FADV_WILLNEED)

    @contextmanager
    def page_by_page(self) -> Iterator[None]:
        """Within, a page that is read through the map brings no others along, whoever reads it.

        The kernel reads the surroundings of such a page otherwise.
        """
        with self._lock:
            self._page_by_page += 1
            self._advise(mmap.MADV_RANDOM)
        try:
            yield
        finally:
            with self._lock:
                self._page_by_page -= 1
                if not self._page_by_page:
                    self._advise(mmap.MADV_NORMAL)

    def let_go(self, first: int, end: int) -> None:
        """Bytes [first, end), all synced, need not stay in memory; pages partly in it do.

        The kernel keeps a page that a process has mapped, as one that was read through the map is.
        So pages are taken out of the map first; whoever reads them later maps them again.
        """
        if sys.platform != "linux":
            return
        first_page, end_page = -(-first // mmap.PAGESIZE), end // mmap.PAGESIZE
        if first_page < end_page:
            for start, _ in self._maps:
                _madvise(
                    start + first_page * mmap.PAGESIZE,
                    (end_page - first_page) * mmap.PAGESIZE,
                    mmap.MADV_DONTNEED,
                )
        os.posix_fadvise(self._descriptor, first, end - first, os.POSIX_FADV_DONTNEED)

    def _advise(self, advice: int) -> None:
        for start, end in self._maps:
            _madvise(start, end - start, advice)


class Values:
    """See `LmdbFile.values`. At each step `size`, and then perhaps `take`.

    Finding out about a large value costs some microseconds, as much as reading a small one. So
    after a small one the next is taken for small, and is read even if it is not.
    """

    def __init__(self, file: LmdbFile, cursor: Any, small_bytes: int) -> None:
        self._file = file
        self._cursor = cursor
        self._small_bytes = small_bytes  # up to so many it lies beside its key
        self._may_be_large = True
        self._at: LargeValue | memoryview = memoryview(b"")

    def size(self) -> int:
        """Bytes of the value that the cursor stands on."""
        large = large_value(self._cursor.key()) if self._may_be_large else None
        self._at = large or self._cursor.value()
        size = large.size if large else len(self._at)
        self._may_be_large = size > self._small_bytes
        return size

    def take(self) -> bytes:
        """That value."""
        if isinstance(self._at, LargeValue):
            self._file.ask_for(self._at)
            self._at = self._cursor.value()
        return bytes(self._at)


def _address(view: memoryview) -> int:
    """Of the first byte of what the view shows."""
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    address: int = buffer.buf
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


class _Buffer(ctypes.Structure):
    """`Py_buffer` of Python's C API."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _maps_of(path: Path) -> list[tuple[int, int]]:
    """Where in this process the file is mapped from its beginning, as LMDB does: [first, end)."""
    wanted = str(path.resolve())
    try:
        lines = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []  # another system, or one that does not tell
    maps = [it.split(maxsplit=5) for it in lines]  # span, rights, offset, device, inode, path
    named = [it for it in maps if len(it) == 6 and it[5] == wanted]
    spans = [span.split("-") for span, _, offset, *_ in named if not int(offset, 16)]
    return [(int(first, 16), int(end, 16)) for first, end in spans]


def _madvise(address: int, size: int, advice: int) -> None:
    """Nothing is lost if the kernel refuses."""
    ctypes.CDLL(None).madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice)
