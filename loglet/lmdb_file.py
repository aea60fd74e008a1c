"""LMDB's file beside its map: keys with the places of their values, and values read by place.

**Why.** LMDB (that of the binding's wheels) looks at a large value's first page whenever a cursor
gets to its key, and the binding touches all of a value before it tells how large it is. So who asks
only for keys or sizes would read from the disk what he never looks at: a look at the keys of a
large store, all of its batches. Here a leaf of the tree is taken apart, which says where its values
are.

And the kernel reads the surroundings of a page that is read through the map, which on some disks
are megabytes. Nobody knows better than we do what is wanted next, so map and file are read without
that, and what will be read is asked for.

The layout of pages and nodes is that of LMDB 0.9's file format: `struct MDB_page` and `MDB_node` in
its `mdb.c`. What is told is that of a reading transaction: LMDB writes to no page that one may see.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from sharedlog.errors import StoreFailed
from sharedlog.limits import KIB

_PAGE_NUMBER: Final = struct.Struct("@N")
_PAGE_HEAD: Final = struct.Struct(f"={'Q' if _PAGE_NUMBER.size == 8 else 'I'}2xHH2x")
"""Of a page: its number, padding, flags, where the places of its nodes end, where free room does.
As many bytes are before a value on pages of its own."""

_IS_LEAF: Final = 0x02
"""The only flag of a page with keys and values."""

_NODE: Final = struct.Struct("=IHH")
"""Before each key of a leaf: the bytes of the value, flags, the bytes of the key."""
_NODE_BYTES: Final = _NODE.size

_ON_PAGES_OF_ITS_OWN: Final = 0x01
"""The only flag of a node whose value is not beside its key; there is the number of a page."""

_FADV_RANDOM: Final = getattr(os, "POSIX_FADV_RANDOM", 0)
_FADV_WILLNEED: Final = getattr(os, "POSIX_FADV_WILLNEED", 0)
_FADV_DONTNEED: Final = getattr(os, "POSIX_FADV_DONTNEED", 0)

_ASK_BYTES_MIN: Final = 128 * KIB
"""The kernel takes so much of what it is asked for at once, or a disk's `read_ahead_kb` if that is
more, and forgets the rest."""

_AHEAD_BYTES: Final = 512 * KIB
"""So far ahead of it a reader that goes on in order has the disk read."""


class Entry(NamedTuple):
    """A key and its value, or where that is."""

    key: bytes
    size: int  # bytes of the value
    place: int  # where in the file the value begins
    beside: bytes | None  # the value, if it lies beside its key


class LmdbFile:
    """One that this process has mapped by now, and keeps so until `close`. For any thread."""

    def __init__(self, path: Path, *, page_bytes: int = mmap.PAGESIZE) -> None:
        self.page_bytes = page_bytes
        self._maps = _maps_of(path)
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._ask_bytes = _ask_bytes(self._descriptor)
        self._advise(0, 0, _FADV_RANDOM)

    def close(self) -> None:
        """Let go of the file. Again is nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def reading(self, cursor: Any) -> Reading:
        """What a cursor of a reading transaction with `buffers` sees."""
        return Reading(self, cursor)

    def leaf(self, key: memoryview) -> tuple[int, Iterator[Entry]]:
        """Where the leaf begins that has this key, and what it has from that key on, in order.

        `key` is what a cursor gives in a reading transaction with `buffers`: it points into the
        map.

        Raises:
            StoreFailed: it is none of LMDB 0.9's; while it is stepped through, too.
        """
        address = _address(key) - _NODE_BYTES
        base = next((first for first, end in self._maps if first <= address < end), 0)
        place = (address - base) // self.page_bytes * self.page_bytes
        leaf = ctypes.string_at(base + place, self.page_bytes)
        number, flags, nodes_end = _PAGE_HEAD.unpack_from(leaf)
        if flags != _IS_LEAF or (base and number * self.page_bytes != place):
            raise StoreFailed(
                f"page {place // self.page_bytes} of the store is no leaf of LMDB 0.9"
            )
        nodes = struct.unpack_from(f"={(nodes_end - _PAGE_HEAD.size) // 2}H", leaf, _PAGE_HEAD.size)
        return place, self._entries(leaf, place, nodes[nodes.index(address - base - place) :])

    def _entries(self, leaf: bytes, place: int, nodes: Sequence[int]) -> Iterator[Entry]:
        for at in nodes:
            size, flags, key_size = _NODE.unpack_from(leaf, at)
            start = at + _NODE_BYTES
            end = start + key_size
            if not flags:
                yield Entry(leaf[start:end], size, place + end, leaf[end : end + size])
            elif flags == _ON_PAGES_OF_ITS_OWN:
                (page,) = _PAGE_NUMBER.unpack_from(leaf, end)
                value = page * self.page_bytes + _PAGE_HEAD.size
                yield Entry(leaf[start:end], size, value, None)
            else:
                raise StoreFailed(
                    f"page {place // self.page_bytes} of the store has what no log server writes"
                )

    def read(self, place: int, size: int) -> bytes:
        """So many bytes from there on.

        Raises:
            OSError: the disk failed. StoreFailed: there are fewer.
        """
        data = os.pread(self._descriptor, size, place)
        if len(data) != size:
            raise StoreFailed(f"the store's file ends at {place + len(data)}, within a batch")
        return data

    def ask_for(self, first: int, end: int) -> None:
        """Bytes [first, end) will be read soon: the disk should bring what is not in memory."""
        for at in range(first, end, self._ask_bytes):
            self._advise(at, min(self._ask_bytes, end - at), _FADV_WILLNEED)

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
    """See `LmdbFile.reading`.

    Asks the disk at first for what is read alone, and then, as long as it goes on in order, for
    some more.
    """

    def __init__(self, file: LmdbFile, cursor: Any) -> None:
        self._file = file
        self._cursor = cursor
        self._first = self._end = -1  # what was asked for

    def entries(self, start: bytes) -> Iterator[Entry]:
        """From the first key at or above `start` on, in order. Raises `StoreFailed`."""
        more = self._cursor.set_range(start)
        while more:
            place, found = self._file.leaf(self._cursor.key())
            entry = next(found)
            if entry.beside is not None:
                self._ask(place, self._file.page_bytes)  # the next leaf is near
            yield entry
            for entry in found:
                yield entry
            more = self._cursor.set_range(entry.key + b"\0")

    def here(self) -> Entry:
        """That on which the cursor stands. Raises `StoreFailed`."""
        return next(self._file.leaf(self._cursor.key())[1])

    def value(self, entry: Entry) -> bytes:
        """All of it. Raises as `LmdbFile.read`."""
        if entry.beside is not None:
            return entry.beside
        self._ask(entry.place, entry.size)
        return self._file.read(entry.place, entry.size)

    def beginning(self, entry: Entry, size: int) -> bytes:
        """Up to `size` bytes of the value; the rest stays where it is. Raises as `value`."""
        if entry.beside is not None:
            return entry.beside[:size]
        return self._file.read(entry.place, min(size, entry.size))

    def _ask(self, first: int, size: int) -> None:
        """So many bytes from `first` on are read now."""
        end = first + size + -(first + size) % self._file.page_bytes
        if self._first < 0 or not self._first <= first <= self._end + _AHEAD_BYTES:
            self._first = self._end = first  # the first time, or somewhere else
            ahead = 0
        elif end + _AHEAD_BYTES // 2 <= self._end:
            return
        else:
            if first > self._end:
                self._first = first  # what lies between was not asked for
            ahead = _AHEAD_BYTES
        self._file.ask_for(max(first, self._end), end + ahead)
        self._end = end + ahead


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


def _ask_bytes(descriptor: int) -> int:
    """How much of a file may be asked for at once."""
    device = os.fstat(descriptor).st_dev
    told = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    try:
        return max(_ASK_BYTES_MIN, int(told.read_text()) * KIB)
    except (OSError, ValueError):
        return _ASK_BYTES_MIN


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
