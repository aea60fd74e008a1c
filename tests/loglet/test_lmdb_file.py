"""Where LMDB's file has a value, and that deleting one does not read it."""

from __future__ import annotations

import mmap
from pathlib import Path

import lmdb
import pytest
from helpers.log_servers import LOGLET, ME, open_store, placed
from helpers.page_cache import cached_pages, let_go, skip_unless_pages_are_let_go, write_synced

from loglet.lmdb_file import LargeValue, LmdbFile, large_value
from loglet.store import DropBatches, PutBatch, PutLoglet
from sharedlog.batch import parse_placement
from sharedlog.ids import Offset
from sharedlog.limits import MIB

SIZES = (0, 1, 7, 500, 2_000, 2_048, 4_080, 4_081, 100_000, 3 * MIB + 1)
"""Bytes of values, beside their keys and on pages of their own: more of these than fit one leaf."""


def test_a_value_on_pages_of_its_own_is_found_without_a_look_at_it(tmp_path: Path) -> None:
    keys = [b"key %d" % size for size in SIZES]
    with lmdb.open(str(tmp_path), map_size=64 * MIB, lib_version=0) as env:
        page_bytes = env.stat()["psize"]
        with env.begin(write=True) as txn:
            for key, size in zip(keys, SIZES, strict=True):
                assert txn.put(key, key.ljust(size, b".")[:size])
        stored = (tmp_path / "data.mdb").read_bytes()
        with env.begin(buffers=True) as reading, reading.cursor() as cursor:
            found: dict[int, LargeValue | None] = {}
            for key, size in zip(keys, SIZES, strict=True):
                assert cursor.set_key(key)
                found[size] = large_value(cursor.key())
    for size, large in found.items():
        if large is None:
            assert size < page_bytes // 2, "LMDB has two keys on a page at least"
        else:
            assert large.size == size
            start = large.page * page_bytes
            assert b"key %d" % size in stored[start : start + 64], "after the page's own head"
    assert {size for size, large in found.items() if large} >= {4_080, 4_081, 100_000, SIZES[-1]}


def test_pages_are_fetched_and_none_beside_them(tmp_path: Path) -> None:
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write_synced(path, 16 * MIB)
    let_go(path)
    file = LmdbFile(path)
    try:
        wanted = [3, 700, 701, 4_000]
        file.fetch(wanted)
        assert [at for at, there in enumerate(cached_pages(path)) if there] == wanted
    finally:
        file.close()


def test_within_page_by_page_a_map_reads_no_more_than_what_is_touched(tmp_path: Path) -> None:
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write_synced(path, 16 * MIB)
    let_go(path)
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        file = LmdbFile(path)
        try:
            with file.page_by_page():
                assert mapped[2_000 * mmap.PAGESIZE] == ord("x")
            assert [at for at, there in enumerate(cached_pages(path)) if there] == [2_000]
            assert mapped[3_000 * mmap.PAGESIZE] == ord("x")
            assert sum(cached_pages(path)) > 2, "and read ahead again, after it"
        finally:
            file.close()


@pytest.mark.parametrize("record_bytes", [300, 400_000])
async def test_what_is_to_be_deleted_is_not_read_again(tmp_path: Path, record_bytes: int) -> None:
    """Of a large batch its first page, which LMDB looks at; of small ones their leaves."""
    skip_unless_pages_are_let_go(tmp_path)
    store = open_store(tmp_path)
    batches = [placed(at, record_bytes=record_bytes) for at in range(40)]
    await store.commit([PutLoglet(LOGLET, Offset(0), ME, False, Offset(0))])
    for batch in batches:
        placement = parse_placement(batch)
        await store.commit([PutBatch(LOGLET, placement.first, placement.end, batch)])
    await store.close()
    store = open_store(tmp_path)
    try:
        path = tmp_path / "data.mdb"
        let_go(path)
        before = sum(cached_pages(path))
        found = await store.find_trimmed(LOGLET, Offset(40), max_batches=30, max_bytes=64 * MIB)
        assert found == DropBatches(LOGLET, Offset(30), 30, sum(map(len, batches[:30])))
        read = sum(cached_pages(path)) - before
        assert read <= 40, "a page for each batch, and those of the tree"
        await store.commit([found])
        assert sum(cached_pages(path)) - before <= 80, "with what the commit has written"
        left = await store.read(LOGLET, Offset(0), Offset(99), max_bytes=64 * MIB)
        assert [first for first, _ in left] == list(range(30, 40))
    finally:
        await store.close()
