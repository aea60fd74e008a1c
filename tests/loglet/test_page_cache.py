"""The bound on a store's share of the page cache."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from loglet.page_cache import PageCacheBound
from sharedlog.limits import MIB

_LIBC = ctypes.CDLL(None, use_errno=True)


def cached_share(path: Path, first: int, end: int) -> float:
    """How much of [first, end) is in memory: 0 to 1.

    Asks by `mincore`, which looks and does nothing else. A read that must not wait would not do: it
    has the kernel read ahead, and a fast disk may have brought the page before it looks.
    """
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        view = (ctypes.c_char * len(mapped)).from_buffer(mapped)
        pages = (ctypes.c_ubyte * ((end - first) // mmap.PAGESIZE))()
        address = ctypes.c_void_p(ctypes.addressof(view) + first)
        failed = _LIBC.mincore(address, ctypes.c_size_t(end - first), pages)
        del view
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(page & 1 for page in pages) / len(pages)


def write(path: Path, size: int) -> None:
    with path.open("ab") as file:
        file.write(b"x" * size)
        file.flush()
        os.fsync(file.fileno())


def skip_unless_pages_are_let_go(folder: Path) -> None:
    """Files in memory (tmpfs) have no other place for their pages."""
    path = folder / "probe"
    write(path, MIB)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_share(path, 0, MIB) > 0.5:
        pytest.skip("the file system of the temporary folder keeps all pages; set TMPDIR to a disk")


def test_synced_pages_below_the_part_to_keep_are_let_go(tmp_path: Path) -> None:
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write(path, 8 * MIB)
    bound = PageCacheBound(path, keep_bytes=8 * MIB, written_bytes=8 * MIB)
    try:
        write(path, 40 * MIB)
        bound.on_synced(48 * MIB)
        dropped = cached_share(path, 8 * MIB, 40 * MIB)
        assert dropped < 0.1, "written since, and older than the part to keep"
        assert cached_share(path, 40 * MIB, 48 * MIB) > 0.9, "the newest part stays"
        assert cached_share(path, 0, 8 * MIB) > 0.9, "what was there before is not ours to drop"
    finally:
        bound.close()


def test_nothing_is_let_go_before_a_step_is_full(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write(path, 12 * MIB)
    bound = PageCacheBound(path, keep_bytes=0, written_bytes=0)
    try:
        bound.on_synced(12 * MIB)
        assert cached_share(path, 0, 12 * MIB) > 0.9
    finally:
        bound.close()


def test_pages_that_are_written_again_are_let_go(tmp_path: Path) -> None:
    """A store that is trimmed writes within its file, and grows no more."""
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write(path, 64 * MIB)
    bound = PageCacheBound(path, keep_bytes=16 * MIB, written_bytes=0)
    try:
        bound.on_synced(64 * MIB, 64 * MIB)
        with path.open("r+b") as file:
            for _ in range(2):
                file.seek(MIB)
                file.write(b"y" * (8 * MIB))
                file.flush()
                os.fsync(file.fileno())
                assert cached_share(path, MIB, 9 * MIB) > 0.9
                bound.on_synced(64 * MIB, 8 * MIB)
        assert cached_share(path, MIB, 9 * MIB) < 0.1
        assert cached_share(path, 48 * MIB, 64 * MIB) > 0.9, "the newest part stays"
    finally:
        bound.close()


def test_pages_that_were_read_through_a_map_are_let_go(tmp_path: Path) -> None:
    """LMDB reads through a map of the file, and the kernel keeps what is mapped."""
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write(path, 32 * MIB)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        bound = PageCacheBound(path, keep_bytes=8 * MIB, written_bytes=0)
        try:
            assert mapped[:: mmap.PAGESIZE] == b"x" * (32 * MIB // mmap.PAGESIZE)
            bound.on_synced(32 * MIB)
            assert cached_share(path, 0, 24 * MIB) < 0.1
            assert cached_share(path, 24 * MIB, 32 * MIB) > 0.9, "the newest part stays"
            assert mapped[:: mmap.PAGESIZE] == b"x" * (32 * MIB // mmap.PAGESIZE)
        finally:
            bound.close()
