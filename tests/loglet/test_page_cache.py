"""The bound on a store's share of the page cache."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from helpers.page_cache import cached_share, skip_unless_pages_are_let_go, write_synced

from loglet.lmdb_file import LmdbFile
from loglet.page_cache import PageCacheBound
from sharedlog.limits import MIB


def test_synced_pages_below_the_part_to_keep_are_let_go(tmp_path: Path) -> None:
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write_synced(path, 8 * MIB)
    store = LmdbFile(path)
    bound = PageCacheBound(store, keep_bytes=8 * MIB, written_bytes=8 * MIB)
    try:
        write_synced(path, 40 * MIB)
        bound.on_synced(48 * MIB)
        dropped = cached_share(path, 8 * MIB, 40 * MIB)
        assert dropped < 0.1, "written since, and older than the part to keep"
        assert cached_share(path, 40 * MIB, 48 * MIB) > 0.9, "the newest part stays"
        assert cached_share(path, 0, 8 * MIB) > 0.9, "what was there before is not ours to drop"
    finally:
        store.close()


def test_nothing_is_let_go_before_a_step_is_full(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_synced(path, 12 * MIB)
    store = LmdbFile(path)
    bound = PageCacheBound(store, keep_bytes=0, written_bytes=0)
    try:
        bound.on_synced(12 * MIB)
        assert cached_share(path, 0, 12 * MIB) > 0.9
    finally:
        store.close()


def test_pages_that_are_written_again_are_let_go(tmp_path: Path) -> None:
    """A store that is trimmed writes within its file, and grows no more."""
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write_synced(path, 64 * MIB)
    store = LmdbFile(path)
    bound = PageCacheBound(store, keep_bytes=16 * MIB, written_bytes=0)
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
        store.close()


def test_pages_that_were_read_through_a_map_are_let_go(tmp_path: Path) -> None:
    """LMDB reads through a map of the file, and the kernel keeps what is mapped."""
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write_synced(path, 32 * MIB)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        store = LmdbFile(path)
        bound = PageCacheBound(store, keep_bytes=8 * MIB, written_bytes=0)
        try:
            assert mapped[:: mmap.PAGESIZE] == b"x" * (32 * MIB // mmap.PAGESIZE)
            bound.on_synced(32 * MIB)
            assert cached_share(path, 0, 24 * MIB) < 0.1
            assert cached_share(path, 24 * MIB, 32 * MIB) > 0.9, "the newest part stays"
            assert mapped[:: mmap.PAGESIZE] == b"x" * (32 * MIB // mmap.PAGESIZE)
        finally:
            store.close()
