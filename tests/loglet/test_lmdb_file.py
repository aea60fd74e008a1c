"""Where LMDB's file has a value, and that deleting one does not read it."""

from __future__ import annotations

import mmap
import resource
from pathlib import Path

import lmdb
import pytest
from helpers.log_servers import LOGLET, ME, open_store, placed
from helpers.page_cache import cached_pages, let_go, skip_unless_pages_are_let_go, write_synced

from loglet.lmdb_file import LmdbFile, large_value
from loglet.store import DropBatches, PutBatch, PutLoglet
from sharedlog.batch import parse_placement
from sharedlog.ids import Offset
from sharedlog.limits import MIB


def test_a_large_value_is_found_without_a_look_at_it(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    with lmdb.open(str(tmp_path), map_size=64 * MIB, lib_version=0) as env:
        page_bytes: int = env.stat()["psize"]
        beside = [0, 1, 7, 500, page_bytes // 4]
        apart = [page_bytes // 2, page_bytes - 16, page_bytes - 15, 100_000, 3 * MIB + 1]
        values = {
            b"key %d" % size: (b"<%d>" % size).ljust(size, b".")[:size] for size in beside + apart
        }
        with env.begin(write=True) as txn:
            for key, value in values.items():
                assert txn.put(key, value)
        stored = path.read_bytes()
        file = LmdbFile(path, page_bytes=page_bytes)
        with env.begin(buffers=True) as reading, reading.cursor() as cursor:
            for key, value in values.items():
                assert cursor.set_key(key)
                large = large_value(cursor.key())
                assert (large is None) == (len(value) in beside)
                if large is not None:
                    assert large.size == len(value)
                    start = large.page * page_bytes + 16
                    assert stored[start : start + large.size] == value
                at = file.values(cursor)
                assert at.size() == len(value)
                assert at.take() == value
            both = file.values(cursor)
            for key in (*values, *reversed(values)):
                assert cursor.set_key(key)
                assert (both.size(), both.take()) == (len(values[key]), values[key])
        file.close()
        file.close()


def test_within_page_by_page_a_map_reads_no_more_than_what_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_synced(path, 64 * mmap.PAGESIZE)
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ):
        file = LmdbFile(path)
        assert not is_read_by_page(path)
        with file.page_by_page():
            with file.page_by_page():
                assert is_read_by_page(path)
            assert is_read_by_page(path), "somebody wants it yet"
        assert not is_read_by_page(path)
        file.close()


def is_read_by_page(path: Path) -> bool:
    """Whether this process's one map of the file is advised so."""
    maps = Path("/proc/self/smaps").read_text().split(str(path.resolve()))
    assert len(maps) == 2
    [flags] = [it for it in maps[1].splitlines() if it.startswith("VmFlags:")][:1]
    return "rr" in flags.split()


async def test_a_large_batch_is_read_at_once_while_something_is_deleted(tmp_path: Path) -> None:
    """The map is advised for deletions then: page by page it would take a fault for each."""
    skip_unless_pages_are_let_go(tmp_path)
    store = open_store(tmp_path)
    batch = placed(0, record_bytes=4 * MIB)
    placement = parse_placement(batch)
    await store.commit([PutLoglet(LOGLET, Offset(0), ME, False, Offset(0))])
    await store.commit([PutBatch(LOGLET, placement.first, placement.end, batch)])
    await store.close()
    path = tmp_path / "data.mdb"
    store = open_store(tmp_path)
    file = LmdbFile(path)
    file.let_go(0, path.stat().st_size)
    try:
        with file.page_by_page():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_majflt
            found = await store.read(LOGLET, Offset(0), Offset(1), max_bytes=MIB)
            waits = resource.getrusage(resource.RUSAGE_SELF).ru_majflt - before
        assert found == [(0, batch)]
        assert waits < len(batch) // mmap.PAGESIZE // 4
    finally:
        file.close()
        await store.close()


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
