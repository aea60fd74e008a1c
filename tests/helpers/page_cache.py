"""What of a file is in the operating system's page cache."""

from __future__ import annotations

import ctypes
import fcntl
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


def is_direct(path: Path) -> bool:
    """Whether its file system can read past the page cache."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_DIRECT)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True
