"""What every log server's store promises of moments and of trims: both kinds of store.

See `loglet/store.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.log_servers import LOGLET, ME, OTHER, open_store, placed
from helpers.sim import SimDisk, World

from loglet.store import DropBatches, LogStore, PutBatch, PutLoglet
from sharedlog.batch import HEADERS_BYTES, parse_placement
from sharedlog.ids import LogletId, Offset


@pytest.fixture(params=["lmdb", "simulated"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LogStore]:
    made: LogStore
    made = open_store(tmp_path) if request.param == "lmdb" else SimDisk(World(1), "d").open()
    await made.commit([PutLoglet(it, Offset(0), ME, False, Offset(0)) for it in (LOGLET, OTHER)])
    yield made
    await made.close()


def put(first: int, count: int, timestamp_ms: int, loglet: LogletId = LOGLET) -> PutBatch:
    batch = placed(first, count, timestamp_ms=timestamp_ms, loglet=loglet, record_bytes=3_000)
    return PutBatch(loglet, Offset(first), Offset(first + count), batch)


async def neighbours(
    store: LogStore, timestamp_ms: int, start: int = 0, end: int = 1_000
) -> tuple[int | None, int | None]:
    """Where the last earlier batch ends, and where the first later one begins."""
    found = await store.find_time(LOGLET, Offset(start), Offset(end), timestamp_ms)
    assert {len(found.before), len(found.after)} <= {0, HEADERS_BYTES}
    before = parse_placement(found.before).end if found.before else None
    after = parse_placement(found.after).first if found.after else None
    return before, after


async def test_a_moment_lies_between_two_batches(store: LogStore) -> None:
    """The last batch that is earlier and the first that is not, whatever other loglets hold."""
    await store.commit([put(0, 3, 10), put(3, 1, 10), put(4, 200, 20), put(204, 1, 20)])
    await store.commit([put(0, 500, 15, OTHER), put(205, 7, 30)])
    assert await neighbours(store, 0) == (None, 0)
    assert await neighbours(store, 10) == (None, 0)
    assert await neighbours(store, 11) == (4, 4)
    assert await neighbours(store, 20) == (4, 4)
    assert await neighbours(store, 21) == (205, 205)
    assert await neighbours(store, 30) == (205, 205)
    assert await neighbours(store, 31) == (212, None)


async def test_only_the_range_is_looked_at(store: LogStore) -> None:
    """One that reaches beyond the end is nobody's neighbour; one that begins below the start is."""
    await store.commit([put(0, 10, 10), put(10, 10, 20), put(20, 10, 30)])
    assert await neighbours(store, 25, end=20) == (20, None)
    assert await neighbours(store, 15, end=20) == (10, 10)
    assert await neighbours(store, 5, start=10) == (None, 10)
    assert await neighbours(store, 15, start=5) == (10, 10)
    assert await neighbours(store, 15, end=15) == (10, None)
    assert await neighbours(store, 15, start=7, end=7) == (None, None)
    assert await neighbours(store, 15, start=30) == (None, None)


async def test_a_hole_shows_at_its_edges(store: LogStore) -> None:
    """The two batches do not adjoin: what lies between them somebody else must tell."""
    await store.commit([put(0, 1, 10), put(1, 1, 20), put(50, 1, 30), put(51, 1, 40)])
    assert await neighbours(store, 15) == (1, 1)
    assert await neighbours(store, 25) == (2, 50)
    assert await neighbours(store, 30) == (2, 50)
    assert await neighbours(store, 35) == (51, 51)
    assert await neighbours(store, 25, start=2, end=50) == (None, None)


async def test_a_loglet_without_batches_has_no_neighbours(store: LogStore) -> None:
    """Nor has one that nobody ever opened."""
    assert await neighbours(store, 5) == (None, None)
    unknown = LogletId(LOGLET.log_id, 9)
    assert await store.find_time(unknown, Offset(0), Offset(9), 5) == (b"", b"")


async def held(store: LogStore, loglet: LogletId = LOGLET) -> list[tuple[int, int]]:
    found = await store.scan(
        loglet, Offset(0), Offset(1 << 40), verify=True, max_batches=10_000, max_bytes=1 << 30
    )
    assert all(it.placement_bytes is not None for it in found)
    return [(it.first, it.end) for it in found]


def trimmed(local_start: int, timestamp_ms: int = 99) -> PutLoglet:
    return PutLoglet(
        LOGLET, Offset(0), ME, False, Offset(local_start), last_timestamp_ms=timestamp_ms
    )


async def find(store: LogStore, below: int, **limits: int) -> DropBatches | None:
    wanted = {"max_batches": 100, "max_bytes": 1 << 30} | limits
    return await store.find_trimmed(LOGLET, Offset(below), **wanted)


async def test_what_was_trimmed_is_found_and_deleted(store: LogStore) -> None:
    """What ends at or below the local start goes; a batch across it stays, and so do others'."""
    await store.commit(
        [put(0, 3, 1), put(3, 2, 2), put(5, 5, 3), put(10, 1, 4), put(0, 9, 1, OTHER)]
    )
    await store.commit([trimmed(7)])
    chunk = await find(store, 7)
    assert chunk is not None
    size = len(put(0, 3, 1).placed) + len(put(3, 2, 2).placed)
    assert chunk == DropBatches(LOGLET, Offset(5), 2, size)
    await store.commit([put(11, 1, 5), chunk])
    assert await held(store) == [(5, 10), (10, 11), (11, 12)]
    assert await held(store, OTHER) == [(0, 9)]
    assert await find(store, 7) is None
    (state,) = [it for it in store.loglets() if it.loglet == LOGLET]
    assert (state.local_start, state.local_tail, state.last_timestamp_ms) == (7, 12, 99)


async def test_chunks_are_bounded(store: LogStore) -> None:
    """By number and by bytes; a batch that is larger than the bound goes alone."""
    await store.commit([put(it, 1, it) for it in range(10)])
    await store.commit([trimmed(10)])
    size = len(put(0, 1, 0).placed)
    for limits, count in (
        ({"max_batches": 3}, 3),
        ({"max_bytes": 2 * size + 1}, 2),
        ({"max_bytes": 1}, 1),
        ({}, 4),
    ):
        chunk = await find(store, 10, **limits)
        assert chunk is not None
        assert (chunk.batches, chunk.size) == (count, count * size)
        await store.commit([chunk])
    assert await held(store) == []
    (state,) = [it for it in store.loglets() if it.loglet == LOGLET]
    assert (state.local_tail, state.committed_tail, state.last_timestamp_ms) == (10, 10, 99)


async def test_room_comes_back(store: LogStore) -> None:
    """Many times what is kept can be stored, as long as the rest is deleted."""
    first = 0
    most = 0
    for turn in range(40):
        batches = [put(first + it, 1, first) for it in range(100)]
        await store.commit(batches)
        first += 100
        await store.commit([trimmed(max(0, first - 150))])
        while (chunk := await find(store, max(0, first - 150), max_batches=30)) is not None:
            await store.commit([chunk])
        if turn == 10:
            most = store.space().file_bytes
    assert [it for it, _ in await held(store)] == list(range(first - 150, first))
    space = store.space()
    assert 0 < space.used_bytes <= space.file_bytes
    assert space.file_bytes <= 1.2 * most
