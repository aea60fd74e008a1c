"""The bound on a store's share of the page cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from loglet.page_cache import PageCacheBound
from sharedlog.limits import MIB


def cached(path: Path, offset: int) -> bool:
    """The page at `offset` is in memory: a read that must not wait gets it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.preadv(descriptor, [bytearray(4096)], offset, os.RWF_NOWAIT) == 4096
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def write(path: Path, size: int) -> None:
    with path.open("ab") as file:
        file.write(b"x" * size)
        file.flush()
        os.fsync(file.fileno())


def test_synced_pages_below_the_part_to_keep_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write(path, 8 * MIB)
    bound = PageCacheBound(path, keep_bytes=8 * MIB, written_bytes=8 * MIB)
    try:
        try:
            assert cached(path, 0)
        except OSError as error:  # a file system that has no such read
            pytest.skip(f"the file system of the temporary folder can't tell: {error}")
        write(path, 40 * MIB)
        bound.on_synced(48 * MIB)
        assert not cached(path, 20 * MIB), "written since, and older than the part to keep"
        assert cached(path, 46 * MIB), "the newest part stays"
        assert cached(path, 0), "what was there before is not ours to drop"
    finally:
        bound.close()


def test_nothing_is_let_go_before_a_step_is_full(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write(path, 12 * MIB)
    bound = PageCacheBound(path, keep_bytes=0, written_bytes=0)
    try:
        bound.on_synced(12 * MIB)
        try:
            assert cached(path, 0)
        except OSError as error:
            pytest.skip(f"the file system of the temporary folder can't tell: {error}")
    finally:
        bound.close()
