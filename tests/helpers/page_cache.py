"""What of a file is in the operating system's page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path


def cached_bytes(path: Path) -> int:
    """How many bytes of its pages are in memory, by mincore(2)."""
    size = path.stat().st_size
    libc = ctypes.CDLL(None, use_errno=True)
    pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    found = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        if libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), found):
            raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in found) * mmap.PAGESIZE


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
