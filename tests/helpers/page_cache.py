"""What of a file is in the operating system's page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from sharedlog.limits import MIB

_LIBC = ctypes.CDLL(None, use_errno=True)


def cached_pages(path: Path) -> list[bool]:
    """Which pages of a file are in memory, by mincore(2), which looks and does nothing else.

    A read that must not wait would not do: it has the kernel read ahead, and a fast disk may have
    brought the page before it looks.
    """
    size = path.stat().st_size
    found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        if _LIBC.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
    return [bool(page & 1) for page in found]


def cached_bytes(path: Path) -> int:
    """How many bytes of a file's pages are in memory."""
    return sum(cached_pages(path)) * mmap.PAGESIZE


def cached_share(path: Path, first: int, end: int) -> float:
    """How much of a file's bytes [first, end), whole pages, is in memory: 0 to 1."""
    pages = cached_pages(path)[first // mmap.PAGESIZE : end // mmap.PAGESIZE]
    return sum(pages) / len(pages)


def let_go(path: Path) -> None:
    """Have the kernel forget what it has of a synced file, but for what is mapped."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_synced(path: Path, size: int) -> None:
    """Append so many bytes, which are on disk then."""
    with path.open("ab") as file:
        file.write(b"x" * size)
        file.flush()
        os.fsync(file.fileno())


def skip_unless_pages_are_let_go(folder: Path) -> None:
    """Files in memory (tmpfs) have no other place for their pages."""
    path = folder / "probe"
    write_synced(path, MIB)
    let_go(path)
    if cached_share(path, 0, MIB) > 0.5:
        pytest.skip("the file system of the temporary folder keeps all pages; set TMPDIR to a disk")
    path.unlink()


def has_direct(folder: Path) -> bool:
    """Whether the file system of a folder really writes past the page cache."""
    path = folder / "direct"
    with mmap.mmap(-1, 65_536) as data:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)
            return cached_bytes(path) == 0
        except OSError:
            return False
        finally:
            path.unlink(missing_ok=True)
