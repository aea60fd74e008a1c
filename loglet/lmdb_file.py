"""LMDB's file beside its map: how large a value is, and how what is read gets into memory.

**Why.** The binding touches all of a value before it tells how large it is, and LMDB (that of the
binding's wheels) looks at a large value's first page whenever a cursor gets to its key. So who asks
only for keys, or only deletes, would read from the disk what he never looks at: a look at the keys
of a large store, all of its batches.

And the kernel reads the surroundings of a page that is read through the map, which on some disks
are megabytes. Nobody knows better than we do what is wanted next, so the map is opened without
that, and what will be read is asked for: a large value as a whole, and what lies behind small ones.

The layout of pages and nodes is that of LMDB 0.9's file format: `struct MDB_page` and `MDB_node` in
its `mdb.c`.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from sharedlog.limits import KIB

_NODE: Final = struct.Struct("=IHH")
"""Before each key of a leaf: the bytes of the value, flags, the bytes of the key."""

_ON_PAGES_OF_ITS_OWN: Final = 0x01
"""The only flag of such a node; after the key comes the number of its first page."""

_PAGE_NUMBER_BYTES: Final = ctypes.sizeof(ctypes.c_size_t)
_PAGE_HEAD: Final = struct.Struct(f"={_PAGE_NUMBER_BYTES}xHHHH")
"""Of a leaf: its number, padding, flags, where the places of its nodes end, where free room does.
Before a value on pages of its own there are as many bytes."""

_IS_LEAF: Final = 0x02
"""The only flag, but for `_IS_DIRTY`, of a leaf that has keys and values."""

_IS_DIRTY: Final = 0x10
"""May be left on a page from when it was written."""

_FADV_WILLNEED: Final = getattr(os, "POSIX_FADV_WILLNEED", 0)
_FADV_DONTNEED: Final = getattr(os, "POSIX_FADV_DONTNEED", 0)

_AHEAD_BYTES: Final = 512 * KIB
"""So far ahead of it a reader that goes on in order has the disk read."""

_SMALL_ONES: Final = 8
"""Small values between two looks at where they lie."""


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


def keys_to_end_of_leaf(key: memoryview, page_bytes: int) -> list[bytes]:
    """This key and those behind it on the same leaf of the tree, in order; no value is looked at.

    `key` is one as for `large_value`.
    """
    address = _address(key)
    place = (address - _NODE.size) % page_bytes
    leaf = ctypes.string_at(address - _NODE.size - place, page_bytes)
    _, flags, nodes_end, _ = _PAGE_HEAD.unpack_from(leaf)
    if flags & ~_IS_DIRTY != _IS_LEAF:
        return [bytes(key)]
    places = struct.unpack_from(f"={(nodes_end - _PAGE_HEAD.size) // 2}H", leaf, _PAGE_HEAD.size)
    found = []
    for at in places[places.index(place) :]:
        start = at + _NODE.size
        found.append(leaf[start : start + _NODE.unpack_from(leaf, at)[2]])
    return found


class LmdbFile:
    """One that this process has mapped by now, and keeps so until `close`. For any thread."""

    def __init__(self, path: Path, *, page_bytes: int = mmap.PAGESIZE) -> None:
        self.page_bytes = page_bytes
        self._maps = _maps_of(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the file. Again is nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def values(self, cursor: Any) -> Values:
        """The values that a cursor of a reading transaction with `buffers` steps over."""
        return Values(self, cursor)

    def beginning(self, value: LargeValue, size: int) -> bytes:
        """The first `size` bytes of a value; the rest stays where it is."""
        start = value.page * self.page_bytes + _PAGE_HEAD.size
        return os.pread(self._descriptor, min(size, value.size), start)

    def reading(self) -> Reading:
        """Of one reader."""
        return Reading(self)

    def place_of(self, key: memoryview) -> int | None:
        """Where in the file the page begins that has this key; None if nobody knows.

        `key` is one as for `large_value`.
        """
        address = _address(key)
        for first, end in self._maps:
            if first <= address < end:
                return (address - first) // self.page_bytes * self.page_bytes
        return None

    def advise_wanted(self, first: int, end: int) -> None:
        """Bytes [first, end) will be read soon: the disk should bring what is not in memory."""
        self._advise(first, end - first, _FADV_WILLNEED)

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
        self._advise(first, end - first, _FADV_DONTNEED)

    def _advise(self, first: int, size: int, advice: int) -> None:
        if sys.platform == "linux":
            with suppress(OSError):  # it is advice
                os.posix_fadvise(self._descriptor, first, size, advice)


class Reading:
    """See `LmdbFile.reading`. What one reader has asked of the disk, and may find in memory soon.

    The first time that is what it reads alone. Then, as long as it goes on in order, some more.
    """

    def __init__(self, file: LmdbFile) -> None:
        self._file = file
        self._first = self._end = -1  # what was asked for

    def of(self, first: int, size: int) -> None:
        """So many bytes from `first` on are read now."""
        end = first + size + -(first + size) % self._file.page_bytes
        if not self._first <= first <= self._end + _AHEAD_BYTES or self._first < 0:
            self._first = self._end = first  # the first time, or somewhere else
            ahead = 0
        elif end + _AHEAD_BYTES // 2 <= self._end:
            return
        else:
            ahead = _AHEAD_BYTES
        self._file.advise_wanted(max(first, self._end), end + ahead)
        self._end = end + ahead

    def leaf(self, key: memoryview) -> None:
        """The leaf is read that has this key, one as for `large_value`."""
        place = self._file.place_of(key)
        if place is not None:
            self.of(place, self._file.page_bytes)


class Values:
    """See `LmdbFile.values`. At each step `size`, and then perhaps `take`; or `beginning` alone.

    Finding out about a large value costs some microseconds, as much as reading a small one. So
    after a small one the next is taken for small, and is read even if it is not.
    """

    def __init__(self, file: LmdbFile, cursor: Any) -> None:
        self._file = file
        self._cursor = cursor
        self._reading = file.reading()
        self._small_bytes = file.page_bytes // 4  # up to so many it lies beside its key
        self._may_be_large = True
        self._at: LargeValue | memoryview = memoryview(b"")
        self._small_ones = 0  # that were taken

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
            first = self._at.page * self._file.page_bytes
            self._reading.of(first, _PAGE_HEAD.size + self._at.size)
            return bytes(self._cursor.value())
        self._small_ones += 1
        if self._small_ones % _SMALL_ONES == 0:
            self._reading.leaf(self._cursor.key())
        return bytes(self._at)

    def beginning(self, size: int) -> bytes:
        """Up to `size` bytes of the value that the cursor stands on."""
        large = large_value(self._cursor.key())
        return self._file.beginning(large, size) if large else bytes(self._cursor.value()[:size])


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
