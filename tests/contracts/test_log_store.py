"""What every log server's store promises of moments (`loglet/store.py`): both kinds of store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.log_servers import LOGLET, ME, OTHER, open_store, placed
from helpers.sim import SimDisk, World

from loglet.store import LogStore, PutBatch, PutLoglet
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
