"""Where LMDB's file has keys and values, and that no more of it is read than is asked for."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import mmap
import os
import resource
import struct
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import lmdb
import pytest
from helpers.log_servers import LOGLET, ME, open_store, placed
from helpers.page_cache import (
    cached_pages,
    cached_share,
    let_go,
    skip_unless_pages_are_let_go,
    write_synced,
)

from loglet.lmdb_file import Entry, LmdbFile
from loglet.store import DropBatches, LogStore, PutBatch, PutLoglet
from sharedlog.batch import parse_placement
from sharedlog.errors import StoreFailed
from sharedlog.ids import Offset
from sharedlog.limits import MIB


def test_a_leaf_tells_its_keys_and_where_their_values_are(tmp_path: Path) -> None:
    """From wherever one begins, whatever lies between the keys, and without a look at values."""
    rng = Random(1)
    path = tmp_path / "data.mdb"
    with lmdb.open(str(tmp_path), map_size=64 * MIB, lib_version=0) as env:
        page_bytes: int = env.stat()["psize"]
        sizes = [0, 1, 7, 500, 900, page_bytes // 2, page_bytes - 16, page_bytes - 15, 100_000]
        every = {
            rng.randbytes(rng.choice([1, 2, 7, 29, 300])): rng.choice(sizes) for _ in range(900)
        }
        with env.begin(write=True) as txn:
            for key, size in every.items():
                assert txn.put(key, (b"%d" % len(key)).ljust(size, key[:1])[:size])
            for key in sorted(every)[::7]:
                assert txn.delete(key)
        left = [key for at, key in enumerate(sorted(every)) if at % 7]
        file = LmdbFile(path, page_bytes=page_bytes)
        leaves = set()
        with env.begin(buffers=True) as reading, reading.cursor() as cursor:
            for at, key in enumerate(left):
                assert cursor.set_key(key)
                leaf, entries = file.leaf(cursor.key())
                found = list(entries)
                assert [it.key for it in found] == left[at : at + len(found)]
                leaves.add(leaf)
                value = bytes(cursor.value())
                assert (found[0].size, found[0].beside in (None, value)) == (len(value), True)
                assert file.read(found[0].place, len(value)) == value
                assert file.reading(cursor).here() == found[0]
                assert file.reading(cursor).value(found[0]) == value
                assert file.reading(cursor).beginning(found[0], 5) == value[:5]
            assert [it.key for it in file.reading(cursor).entries(b"")] == left
            assert [it.key for it in file.reading(cursor).entries(left[70])] == left[70:]
        assert len(leaves) == env.stat()["leaf_pages"] > 50
        file.close()
        file.close()


def test_what_is_no_leaf_is_not_taken_apart(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_synced(path, 4 * mmap.PAGESIZE)
    with path.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as mapped:
        file = LmdbFile(path)
        for page in (b"x" * mmap.PAGESIZE, (7).to_bytes(8, "little") + b"\0\0\2\0\x12\0\x20\0"):
            mapped[mmap.PAGESIZE : mmap.PAGESIZE + len(page)] = page
            with (
                memoryview(mapped) as whole,
                whole[mmap.PAGESIZE + 100 :] as key,
                pytest.raises(StoreFailed, match="page 1 "),
            ):
                file.leaf(key)
        with pytest.raises(StoreFailed, match="ends at"):
            file.read(3 * mmap.PAGESIZE, 2 * mmap.PAGESIZE)
        file.close()


def test_a_leaf_is_found_wherever_the_map_begins(tmp_path: Path) -> None:
    """LMDB's page can be larger than the system's, to whose pages alone a map is aligned."""
    path, page_bytes = tmp_path / "data", 4 * mmap.PAGESIZE
    leaf = struct.pack("=Q2xHH2xH", 1, 2, 18, 5_000).ljust(5_000, b"-")
    leaf += struct.pack("=IHH", 5, 0, 3) + b"keyvalue"
    path.write_bytes(bytes(page_bytes) + leaf.ljust(page_bytes, b"-"))
    spacers = []
    with path.open("r+b") as opened:
        while True:
            mapped = mmap.mmap(opened.fileno(), 0)
            first = ctypes.c_char.from_buffer(mapped)
            address = ctypes.addressof(first)
            del first
            if address % page_bytes:
                break
            mapped.close()
            spacers.append(mmap.mmap(-1, mmap.PAGESIZE))
            assert len(spacers) < 1_000
    file = LmdbFile(path, page_bytes=page_bytes)
    with memoryview(mapped) as whole, whole[page_bytes + 5_008 : page_bytes + 5_011] as key:
        assert bytes(key) == b"key"
        place, found = file.leaf(key)
        assert (place, list(found)) == (
            page_bytes,
            [Entry(b"key", 5, page_bytes + 5_011, b"value")],
        )
    file.close()
    for it in (mapped, *spacers):
        it.close()


def test_all_that_is_asked_for_comes(tmp_path: Path) -> None:
    """The kernel forgets what lies beyond the largest request of a disk, some megabytes here."""
    skip_unless_pages_are_let_go(tmp_path)
    path = tmp_path / "data"
    write_synced(path, 32 * MIB)
    let_go(path)
    file = LmdbFile(path)
    file.ask_for(MIB, 31 * MIB)
    until_s = time.monotonic() + 20
    while (share := cached_share(path, MIB, 31 * MIB)) < 1 and time.monotonic() < until_s:
        time.sleep(0.02)
    assert share == 1
    file.close()


def test_a_map_of_a_store_reads_no_more_than_what_is_touched(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    try:
        maps = Path("/proc/self/smaps").read_text().split(str((tmp_path / "data.mdb").resolve()))
        [flags] = [it for it in maps[1].splitlines() if it.startswith("VmFlags:")][:1]
        assert "rr" in flags.split()
    finally:
        asyncio.run(store.close())


@asynccontextmanager
async def store_on_disk(tmp_path: Path, batches: Sequence[bytes]) -> AsyncGenerator[LogStore]:
    """A store with these batches, one in each commit, and nothing of it in memory."""
    skip_unless_pages_are_let_go(tmp_path)
    store = open_store(tmp_path)
    await store.commit([PutLoglet(LOGLET, Offset(0), ME, False, Offset(0))])
    for batch in batches:
        placement = parse_placement(batch)
        await store.commit([PutBatch(LOGLET, placement.first, placement.end, batch)])
    await store.close()
    store = open_store(tmp_path)
    try:
        let_go(tmp_path / "data.mdb")
        yield store
    finally:
        await store.close()


def waits_for_the_disk() -> int:
    """How often this process has waited for a page so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


async def test_a_large_batch_is_read_at_once(tmp_path: Path) -> None:
    """Page by page it would take a wait for each."""
    batch = placed(0, record_bytes=4 * MIB)
    async with store_on_disk(tmp_path, [batch]) as store:
        before = waits_for_the_disk()
        found = await store.read(LOGLET, Offset(0), Offset(1), max_bytes=MIB)
        waits = waits_for_the_disk() - before
    assert found == [(0, batch)]
    assert waits < len(batch) // mmap.PAGESIZE // 4


async def test_small_batches_are_read_ahead(tmp_path: Path) -> None:
    """Page by page it would take a wait for every ten of them."""
    batches = [placed(at, record_bytes=300) for at in range(600)]
    async with store_on_disk(tmp_path, batches) as store:
        before = waits_for_the_disk()
        found = await store.read(LOGLET, Offset(0), Offset(600), max_bytes=MIB)
        waits = waits_for_the_disk() - before
        pages = sum(cached_pages(tmp_path / "data.mdb"))
    assert [batch for _, batch in found] == batches
    assert waits < pages // 2


async def test_large_batches_among_small_ones_are_read_at_once(tmp_path: Path) -> None:
    batches = [placed(at, record_bytes=300 if at % 2 else 40_000) for at in range(20)]
    async with store_on_disk(tmp_path, batches) as store:
        before = waits_for_the_disk()
        found = await store.read(LOGLET, Offset(0), Offset(20), max_bytes=MIB)
        waits = waits_for_the_disk() - before
    assert [batch for _, batch in found] == batches
    assert waits < 20


async def test_a_disk_that_fails_is_a_store_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "no good")

    async with store_on_disk(tmp_path, [placed(0, record_bytes=40_000)]) as store:
        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(StoreFailed, match="no good"):
            store.loglets()
        with pytest.raises(StoreFailed, match="no good"):
            await store.find_time(LOGLET, Offset(0), Offset(1), 0)
        with pytest.raises(StoreFailed, match="no good"):
            await store.read(LOGLET, Offset(0), Offset(1), max_bytes=1)
        with pytest.raises(StoreFailed, match="no good"):
            await store.find_trimmed(LOGLET, Offset(1), max_batches=1, max_bytes=1)
        with pytest.raises(StoreFailed, match="no good"):
            await store.scan(LOGLET, Offset(0), Offset(1), verify=True, max_batches=1, max_bytes=1)
        monkeypatch.undo()


async def test_a_look_at_keys_reads_no_batch(tmp_path: Path) -> None:
    """Or each look for holes of the controller would read a store from its beginning to its end."""
    batches = [placed(at, record_bytes=20_000) for at in range(400)]
    path = tmp_path / "data.mdb"
    async with store_on_disk(tmp_path, batches) as store:
        before = sum(cached_pages(path))
        found = await store.scan(
            LOGLET, Offset(3), Offset(400), verify=False, max_batches=390, max_bytes=MIB
        )
        read = sum(cached_pages(path)) - before
    assert [(it.first, it.end) for it in found] == [(at, at + 1) for at in range(3, 393)]
    assert read < 40, "those of the tree, and a first page of a batch for each leaf"


async def test_a_search_by_time_reads_a_page_of_each_batch_that_it_looks_at(tmp_path: Path) -> None:
    batches = [placed(at, record_bytes=400_000, timestamp_ms=1_000 + at) for at in range(40)]
    path = tmp_path / "data.mdb"
    async with store_on_disk(tmp_path, batches) as store:
        before = sum(cached_pages(path))
        found = await store.find_time(LOGLET, Offset(0), Offset(40), 1_020)
        assert sum(cached_pages(path)) - before < 30
    assert parse_placement(found.after).first == 20


async def test_a_start_reads_a_page_of_the_last_batch(tmp_path: Path) -> None:
    path = tmp_path / "data.mdb"
    async with store_on_disk(tmp_path, [placed(0, record_bytes=4 * MIB)]) as store:
        before = sum(cached_pages(path))
        assert [it.local_tail for it in store.loglets()] == [1]
        assert sum(cached_pages(path)) - before < 10


@pytest.mark.parametrize("record_bytes", [300, 400_000])
async def test_what_is_to_be_deleted_is_not_read_again(tmp_path: Path, record_bytes: int) -> None:
    """Of a large batch its first page, which LMDB looks at; of small ones their leaves."""
    batches = [placed(at, record_bytes=record_bytes) for at in range(40)]
    path = tmp_path / "data.mdb"
    async with store_on_disk(tmp_path, batches) as store:
        before = sum(cached_pages(path))
        found = await store.find_trimmed(LOGLET, Offset(40), max_batches=30, max_bytes=64 * MIB)
        assert found == DropBatches(LOGLET, Offset(30), 30, sum(map(len, batches[:30])))
        read = sum(cached_pages(path)) - before
        assert read <= 40, "a page for each batch, and those of the tree"
        await store.commit([found])
        assert sum(cached_pages(path)) - before <= 80, "with what the commit has written"
        left = await store.read(LOGLET, Offset(0), Offset(99), max_bytes=64 * MIB)
        assert [first for first, _ in left] == list(range(30, 40))
