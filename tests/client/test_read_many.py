"""Several logs read as one: over a cluster in memory, through its faults."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from helpers.memory_log import MemoryLog
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog import merged_reads
from sharedlog.batch import Record, encode_records
from sharedlog.cluster import Cluster, Routing
from sharedlog.errors import InvalidArgument, LogNotFound, LogUnavailable, OffsetOutOfRange
from sharedlog.limits import READ_MANY_MAX
from sharedlog.log import Log

ROUTINGS = pytest.mark.parametrize("routing", ["smart", "plain"])
Found = list[tuple[str, int]]


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        yield cluster


def connect(memory: MemoryCluster, routing: Routing = "smart") -> Cluster:
    return sharedlog.connect(memory.address, routing=routing)


def append(log: MemoryLog, *times_ms: int, size: int = 1) -> None:
    for time_ms in times_ms:
        log.append(encode_records([(b"x" * size, None, None)]), timestamp_ms=time_ms)


def three(memory: MemoryCluster) -> None:
    """Logs whose records lie between each other."""
    append(memory.create("a"), 10, 40, 70, 70)
    append(memory.create("b"), 20, 50, 70)
    append(memory.create("c"), 5, 30, 60, 90)


async def first_of(records: AsyncIterator[tuple[str, Record]], count: int) -> Found:
    found: Found = []
    async with asyncio.timeout(20):
        while len(found) < count:
            name, record = await anext(records)
            found.append((name, record.timestamp_ms))
    return found


MERGED = [
    *[("c", 5), ("a", 10), ("b", 20), ("c", 30), ("a", 40), ("b", 50), ("c", 60)],
    *[("a", 70), ("a", 70), ("b", 70), ("c", 90)],
]


@ROUTINGS
async def test_records_come_by_time(memory: MemoryCluster, routing: Routing) -> None:
    """Up to the tails as they are, whatever the order in which the logs are named."""
    three(memory)
    async with connect(memory, routing) as cluster:
        for names in (["a", "b", "c"], ["c", "b", "a"]):
            async with asyncio.timeout(20):
                found = [(it, rec.timestamp_ms) async for it, rec in cluster.read_many(names)]
            assert found == MERGED


async def test_starts_are_one_for_all_or_one_for_each(memory: MemoryCluster) -> None:
    """A log that is not named starts at 0; a `Log` does as well as its name."""
    three(memory)
    async with connect(memory) as cluster:
        logs: list[str | Log] = [cluster.log("a"), "b", "c"]
        starts: dict[str, sharedlog.Start] = {"a": 3, "b": sharedlog.from_time(50)}
        found = [(it, rec.timestamp_ms) async for it, rec in cluster.read_many(logs, start=starts)]
        assert found == [("c", 5), ("c", 30), ("b", 50), ("c", 60), ("a", 70), ("b", 70), ("c", 90)]
        since = cluster.read_many(["a", "b", "c"], start=sharedlog.from_time(60))
        assert [(it, rec.timestamp_ms) async for it, rec in since] == MERGED[6:]
        last = cluster.read_many(["a", "b"], start=sharedlog.from_tail(1))
        assert [(it, rec.timestamp_ms) async for it, rec in last] == [("a", 70), ("b", 70)]


async def test_what_can_not_be_is_refused(memory: MemoryCluster) -> None:
    """At once, and by name; nothing to read is no error."""
    three(memory)
    async with connect(memory) as cluster:
        for names, start in (
            (["a", "a"], 0),
            ([f"l{it}" for it in range(65)], 0),
            (["a"], {"b": 1}),
        ):
            with pytest.raises(InvalidArgument):
                cluster.read_many(names, start=start)
        assert READ_MANY_MAX == 64
        assert [it async for it in cluster.read_many([])] == []
        for follow in (False, True):
            with pytest.raises(LogNotFound, match="'nothing'"):
                await anext(cluster.read_many(["a", "nothing"], follow=follow))
        with pytest.raises(OffsetOutOfRange) as raised:
            await anext(cluster.read_many(["a", "b"], start={"b": 99}))
        assert raised.value.__notes__ == ["while log b was read"]


@ROUTINGS
async def test_a_follower_is_told_of_all_in_order(memory: MemoryCluster, routing: Routing) -> None:
    """History first, exactly; then what comes, though the other logs are idle."""
    three(memory)
    async with connect(memory, routing) as cluster:
        records = cluster.read_many(["a", "b", "c"], follow=True)
        async with contextlib.aclosing(records):
            assert await first_of(records, 11) == MERGED
            for name, time_ms in (("b", 100), ("a", 110), ("a", 120), ("c", 130)):
                append(memory.logs[name], time_ms)
                await memory.wait_for_change(0)
            assert await first_of(records, 4) == [("b", 100), ("a", 110), ("a", 120), ("c", 130)]


async def test_a_log_without_a_sequencer_holds_back_for_a_while(
    memory: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the others go on without it, and it comes in again when it is heard of."""
    monkeypatch.setattr(merged_reads, "HOLD_S", 0.05)
    three(memory)
    config = sharedlog.ClientConfig(timeout_s=1.0)  # each look for a tail takes so long
    async with sharedlog.connect(memory.address, config=config) as cluster:
        records = cluster.read_many(["a", "b"], follow=True)
        async with contextlib.aclosing(records):
            await first_of(records, 7)
            for node in memory.nodes.values():
                node.faults.find_tail_error = LogUnavailable("no sequencer")
            append(memory.logs["a"], 100, 110)
            assert await first_of(records, 2) == [("a", 100), ("a", 110)]
            append(memory.logs["b"], 90)
            assert await first_of(records, 1) == [("b", 90)], "late rather than never"


async def test_what_waits_is_bounded(memory: MemoryCluster) -> None:
    """A log that is far behind in time is not gathered up while another one is handed out."""
    slow = memory.create("slow")
    append(slow, *range(10, 110))
    fast = memory.create("fast")
    append(fast, *range(1_000, 1_100), size=200_000)
    async with connect(memory) as cluster:
        records = cluster.read_many(["slow", "fast"])
        found = [name async for name, _ in records]
    assert found == ["slow"] * 100 + ["fast"] * 100


async def test_a_room_takes_no_more_than_it_has() -> None:
    """But one batch of any size; and who waits goes on once something was handed out."""
    room = merged_reads._Room()
    await room.take(merged_reads._ROOM_BYTES * 3)
    waiting = asyncio.ensure_future(room.take(1))
    await asyncio.sleep(0)
    assert not waiting.done()
    room.give_back(merged_reads._ROOM_BYTES * 3)
    await waiting
    for _ in range(merged_reads._ROOM_BATCHES - 1):
        await room.take(0)
    last = asyncio.ensure_future(room.take(0))
    await asyncio.sleep(0)
    assert not last.done()
    room.give_back(0)
    await last


async def test_leaving_early_leaves_nothing_behind(memory: MemoryCluster) -> None:
    """No task, and no stream at a server."""
    three(memory)
    async with connect(memory) as cluster:
        before = asyncio.all_tasks()
        records = cluster.read_many(["a", "b", "c"], follow=True)
        await first_of(records, 2)
        await records.aclose()
        names = {task.get_name() for task in asyncio.all_tasks() - before}
        assert not any("read" in name or "look" in name for name in names)
