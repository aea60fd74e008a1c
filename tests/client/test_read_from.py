"""Reading from a moment or from before the tail, up to a limit, and backwards."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest
from helpers.memory_log import MemoryLog
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.batch import KIND_CONTROL, KIND_RECORDS, encode_records
from sharedlog.cluster import Cluster, Routing
from sharedlog.errors import DataLoss, InvalidArgument
from sharedlog.ids import Offset
from sharedlog.limits import READ_LAST_MAX
from sharedlog.log import Log

ROUTINGS = pytest.mark.parametrize("routing", ["smart", "plain"])


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        yield cluster


def connect(memory: MemoryCluster, routing: Routing = "smart") -> Cluster:
    return sharedlog.connect(memory.address, routing=routing)


def fill(memory: MemoryCluster, batches: int = 20, *, control: Collection[int] = ()) -> MemoryLog:
    """Batches of five, each 10 ms after the one before, from 1,000 ms on, in three segments.

    Those that begin at an offset of `control` hold control records.
    """
    log = memory.create("orders")
    for index in range(batches):
        kind = KIND_CONTROL if log.tail in control else KIND_RECORDS
        log.append(batch(log.tail, 5), timestamp_ms=1_000 + 10 * index, kind=kind)
        if index in (6, 13):
            log.roll()
    return log


def batch(first: int, count: int = 1) -> bytes:
    """Records that say their offset, with two digits."""
    return encode_records((b"%02d" % (first + it), None, None) for it in range(count))


async def offsets(log: Log, start: sharedlog.Start = 0, **how: Any) -> list[int]:
    async with asyncio.timeout(20):
        return [record.offset async for record in log.read(start, **how)]


@ROUTINGS
async def test_from_a_moment_until_another(memory: MemoryCluster, routing: Routing) -> None:
    """From the first record that is not earlier, up to the first that is not before `until`."""
    fill(memory)
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        from_time = sharedlog.from_time
        assert await offsets(log, from_time(1_050)) == list(range(25, 100))
        assert await offsets(log, from_time(1_051), until=1_070) == list(range(30, 35))
        assert await offsets(log, from_time(1_051), until=1_071) == list(range(30, 40))
        assert await offsets(log, 33, until=1_070) == [33, 34]
        assert await offsets(log, 40, until=1_070) == []
        assert await offsets(log, from_time(1_190), end=97) == [95, 96]
        assert await offsets(log, from_time(5_000)) == []
        assert await offsets(log, from_time(0), limit=3) == [0, 1, 2]


@ROUTINGS
async def test_from_so_far_before_the_tail(memory: MemoryCluster, routing: Routing) -> None:
    """Offsets, counted from the tail as it is when the read starts; at most all of them."""
    fill(memory)
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        assert await offsets(log, sharedlog.from_tail(3)) == [97, 98, 99]
        assert await offsets(log, sharedlog.from_tail(0)) == []
        assert await offsets(log, sharedlog.from_tail(99), limit=2) == [1, 2]
        assert await offsets(log, sharedlog.from_tail(1_000)) == list(range(100))


@ROUTINGS
async def test_limits_in_bytes(memory: MemoryCluster, routing: Routing) -> None:
    """Each record has two bytes here."""
    fill(memory)
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        assert await offsets(log, 3, limit_bytes=15) == list(range(3, 10))
        assert await offsets(log, 3, limit_bytes=1) == [3]
        assert await offsets(log, 3, limit_bytes=15, limit=2) == [3, 4]
        with pytest.raises(InvalidArgument):
            await offsets(log, limit_bytes=0)


@ROUTINGS
async def test_a_follower_from_a_moment_to_come(memory: MemoryCluster, routing: Routing) -> None:
    """What is appended before that moment is passed over."""
    log = fill(memory, 2)
    async with connect(memory, routing) as cluster:
        found: list[int] = []
        caught_up = asyncio.Event()

        def on_progress(progress: sharedlog.ReadProgress) -> None:
            if progress.position >= progress.tail:
                caught_up.set()

        async def follow() -> None:
            records = cluster.log("orders").read(
                sharedlog.from_time(2_000), follow=True, limit=2, on_progress=on_progress
            )
            found.extend([record.offset async for record in records])

        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            await caught_up.wait()
            log.append(batch(10), timestamp_ms=1_900)
            log.append(batch(11), timestamp_ms=2_000)
            await memory.append(log, batch(12))
        assert found == [11, 12]


@ROUTINGS
async def test_a_follower_ends_at_its_limits(memory: MemoryCluster, routing: Routing) -> None:
    """By records, by bytes, and by a moment once a record shows that it has come."""
    log = fill(memory, 2)
    async with connect(memory, routing) as cluster:
        reading = cluster.log("orders")
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            by_records = tasks.create_task(offsets(reading, 8, follow=True, limit=4))
            by_bytes = tasks.create_task(offsets(reading, 8, follow=True, limit_bytes=6))
            by_time = tasks.create_task(offsets(reading, 8, follow=True, until=3_000))
            for first in (10, 11, 12):
                log.append(batch(first), timestamp_ms=2_000)
            log.append(batch(13), timestamp_ms=3_000)
            await memory.append(log, batch(14))
        assert by_records.result() == [8, 9, 10, 11]
        assert by_bytes.result() == [8, 9, 10]
        assert by_time.result() == [8, 9, 10, 11, 12]


@ROUTINGS
async def test_control_records_are_passed_over(memory: MemoryCluster, routing: Routing) -> None:
    """Their offsets are gaps; a limit counts what is read, and goes on beyond them."""
    control = {0, 10, 15, 20, 50, 95}
    fill(memory, control=control)
    there = [it for it in range(100) if it - it % 5 not in control]
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        assert await offsets(log) == there
        assert await offsets(log, 7, limit=12) == [it for it in there if it >= 7][:12]
        assert await offsets(log, 7, end=22, limit=12) == [7, 8, 9]
        assert await offsets(log, include_control=True, limit=7) == list(range(7))
        assert [record.offset for record in await log.read_last(8)] == there[-8:]
        assert [record.offset for record in await log.read_last(80)] == there
        assert await offsets(log, 8, follow=True, limit=3) == [8, 9, 25]


async def test_progress_says_where_read_and_log_stand(memory: MemoryCluster) -> None:
    """With what was passed over counted in, and again and again while nothing comes."""
    fill(memory, 3, control={10})
    told: list[sharedlog.ReadProgress] = []
    enough = asyncio.Event()

    def on_progress(progress: sharedlog.ReadProgress) -> None:
        told.append(progress)
        if len(told) == 5:
            enough.set()

    async with connect(memory) as cluster:
        batches = cluster.log("orders").read_batches(follow=True, on_progress=on_progress)
        async with contextlib.aclosing(batches), asyncio.timeout(20):
            assert [record.offset for record in await anext(batches)] == [0, 1, 2, 3, 4]
            assert told == [], "they are not handed out before the reader comes again"
            await anext(batches)
            waiting = asyncio.ensure_future(anext(batches))
            await enough.wait()
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
    assert [progress.position for progress in told[:3]] == [5, 10, 15]
    assert set(told[3:]) == {(15, 15)}


@ROUTINGS
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 30, 100, 1_000])
async def test_the_last_records(memory: MemoryCluster, routing: Routing, count: int) -> None:
    """In order, across segments, and all of them if there are no more."""
    fill(memory)
    async with connect(memory, routing) as cluster:
        found = await cluster.log("orders").read_last(count)
    assert [record.offset for record in found] == list(range(100))[max(0, 100 - count) :]


async def test_the_last_of_an_empty_log_are_none(memory: MemoryCluster) -> None:
    """And more than can be held are refused."""
    memory.create("empty")
    async with connect(memory) as cluster:
        log = cluster.log("empty")
        assert await log.read_last(5) == []
        for wrong in (-1, READ_LAST_MAX + 1):
            with pytest.raises(InvalidArgument, match="65,536"):
                await log.read_last(wrong)


async def test_a_loss_among_the_last_is_an_error(memory: MemoryCluster) -> None:
    """One before them is not, though a guess at where they begin may reach into it."""
    log = fill(memory, 4)
    log.lose(10, accepted_ms=1, reason="two disks burnt")
    for first in (30, 31, 32, 33):
        log.append(batch(first), kind=KIND_CONTROL if first == 32 else KIND_RECORDS)
    async with connect(memory) as cluster:
        found = cluster.log("orders")
        assert [record.offset for record in await found.read_last(3)] == [30, 31, 33]
        with pytest.raises(DataLoss) as raised:
            await found.read_last(4)
    assert raised.value.end == Offset(30)
