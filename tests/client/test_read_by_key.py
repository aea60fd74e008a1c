"""Reading one key: no record of it is missed, and what is left out leaves no gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from helpers.memory_server import MemoryCluster, memory_cluster
from hypothesis import given
from hypothesis import strategies as st

import sharedlog
from sharedlog.batch import Placement, check_placed, encode_records, place_batch
from sharedlog.checksum import crc32c
from sharedlog.cluster import Cluster, Routing
from sharedlog.errors import InvalidArgument, Unreachable
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.log import Log
from sharedlog.read_progress import check_batches
from sharedlog.v1 import log_server_pb2

LOGLET = LogletId(LogId(1), 0)
DAMAGED = log_server_pb2.ReadGap.REASON_DAMAGED
QUICK = sharedlog.ReaderConfig(silence_s=0.2, timeout_s=10.0, idle_check_s=0.05)
"""Leaves a silent server soon; a process that waits for a core is no failure."""
HASTY = sharedlog.ReaderConfig(silence_s=0.2, timeout_s=0.5, idle_check_s=0.05)
"""For reads that are to fail."""
KEYS = [None if index % 5 == 0 else b"k%d" % (index // 6) for index in range(60)]
"""Records 0 to 59, in batches of three: each key in two or three of them, next to each other."""

smart_and_plain = pytest.mark.parametrize("routing", ["smart", "plain"])


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        log = cluster.create("orders")
        for at in range(0, len(KEYS), 3):
            rows = [(b"%d" % index, KEYS[index], None) for index in range(at, at + 3)]
            log.append(encode_records(rows))
        yield cluster


def connect(
    memory: MemoryCluster,
    routing: Routing = "smart",
    read_config: sharedlog.ReaderConfig = QUICK,
) -> Cluster:
    return sharedlog.connect(memory.address, routing=routing, read_config=read_config)


def offsets_of(key: bytes | None, start: int = 0, end: int | None = None) -> list[int]:
    found = [offset for offset, its_key in enumerate(KEYS) if its_key == key]
    return [offset for offset in found if start <= offset < (len(KEYS) if end is None else end)]


def skipped_by(memory: MemoryCluster) -> int:
    return sum(node.batches_skipped for node in memory.nodes.values())


async def offsets(log: Log, key: bytes, start: int = 0, **how: int | None) -> list[int]:
    async with asyncio.timeout(20):
        records = log.read(start, key=key, **how)  # type: ignore[arg-type]  # options by name
        return [record.offset async for record in records]


@smart_and_plain
@pytest.mark.parametrize(
    ("start", "end", "limit"),
    [(0, None, None), (7, None, None), (8, 9, None), (0, 10, 2), (0, None, 3), (0, None, 0)],
)
async def test_a_key_has_just_its_records(
    memory: MemoryCluster, routing: Routing, start: int, end: int | None, limit: int | None
) -> None:
    """Clipped to the range, `limit` counts them, and most batches never travel."""
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        for key in (b"k1", b"k9", b"nobody", b""):
            found = await offsets(log, key, start, end=end, limit=limit)
            assert found == offsets_of(key, start, end)[:limit]
    if end is None and limit != 0:
        assert skipped_by(memory) > 15


@smart_and_plain
async def test_a_follower_of_a_key_passes_over_the_others(
    memory: MemoryCluster, routing: Routing
) -> None:
    """It stands where the log does, and gets what comes with its key."""
    there = memory.logs["orders"]
    async with connect(memory, routing) as cluster, asyncio.timeout(20):
        found = []
        records = cluster.log("orders").read(50, follow=True, key=b"k9", limit=7)
        async with contextlib.aclosing(records):
            async for record in records:
                found.append(record.offset)
                if len(found) >= len(offsets_of(b"k9")):
                    for key in (b"k1", None, b"k9"):
                        await memory.append(there, encode_records([(b"later", key, None)]))
    assert found == [*offsets_of(b"k9"), 62, 65, 68][:7]


async def test_chunks_say_what_was_left_out(memory: MemoryCluster) -> None:
    """Every offset is in a batch or in a range that was left out, side by side."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        chunks = [
            chunk async for chunk in log._reads._reader().read(Offset(0), Offset(60), key=b"k4")
        ]
    ranges = [(it.first, it.end) for chunk in chunks for it in chunk.placements]
    assert len(ranges) < 6
    ranges += [skip for chunk in chunks for skip in chunk.skipped]
    ranges.sort()
    assert [first for first, _ in ranges] == [0, *(end for _, end in ranges[:-1])]
    assert ranges[-1][1] == 60


@smart_and_plain
async def test_what_is_left_out_in_silence_is_missed(
    memory: MemoryCluster, routing: Routing
) -> None:
    """A server that drops a batch and does not say so is not believed; another one serves."""
    memory.nodes["n1"].faults.unsaid.add(24)
    memory.nodes["n2"].faults.unsaid.add(24)
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        if routing == "smart":
            assert await offsets(log, b"k9") == offsets_of(b"k9")
    memory.nodes["n3"].faults.unsaid.add(24)
    async with connect(memory, routing, HASTY) as cluster:
        log = cluster.log("orders")
        with pytest.raises((sharedlog.DataLoss, Unreachable, sharedlog.errors.CorruptBatch)):
            await offsets(log, b"k9")


async def test_damage_is_gone_round_for_a_key_too(memory: MemoryCluster) -> None:
    """A gap in what would be left out is a gap."""
    for node_id in ("n1", "n2"):
        memory.nodes[node_id].faults.gaps.append((30, 36, DAMAGED))
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await offsets(log, b"k9") == offsets_of(b"k9")
        memory.nodes["n3"].faults.gaps.append((30, 36, DAMAGED))
        with pytest.raises(sharedlog.DataLoss) as raised:
            await offsets(log, b"k9")
        assert (raised.value.first, raised.value.end) == (30, 36)


@smart_and_plain
async def test_only_bytes_are_a_key(memory: MemoryCluster, routing: Routing) -> None:
    """Said at the first record, not by an endless search."""
    async with connect(memory, routing) as cluster:
        with pytest.raises(InvalidArgument, match="a key is bytes"):
            await anext(cluster.log("orders").read(key="k1"))  # type: ignore[arg-type]  # the point


# What is in a message.


def placed(first: int, count: int) -> bytes:
    data = encode_records([(b"x", None, None)] * count)
    crc = crc32c(data[4:])
    return place_batch(Placement(LOGLET, Offset(first), count, 1, Offset(0), crc), data)


def skip(first: int, end: int) -> tuple[Offset, Offset]:
    return Offset(first), Offset(end)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=12),
    st.integers(0, 30),
    st.data(),
)
def test_batches_and_ranges_together_leave_no_gap(
    parts: list[tuple[bool, int]], base: int, data: st.DataObject
) -> None:
    """Any mixture in order is taken whole; with one part missing, only what lies before it."""
    batches, ranges = [], []
    bounds = [base]
    for is_batch, count in parts:
        first = bounds[-1]
        if is_batch:
            batches.append(placed(first, count))
        else:
            ranges.append(skip(first, first + count))
        bounds.append(first + count)
    inside = data.draw(st.integers(base, bounds[1] - 1)) if parts else base
    found = check_batches(check_placed, batches, Offset(inside), LOGLET, skipped=ranges)
    assert found.wrong is None
    assert found.end == (bounds[-1] if parts else inside)
    assert found.batches == batches
    assert found.skipped == ranges
    if len(parts) >= 2:
        gone = data.draw(st.integers(0, len(parts) - 2))
        lost = bounds[gone]
        batches = [it for it in batches if check_placed(it).first != lost]
        ranges = [it for it in ranges if it[0] != lost]
        found = check_batches(check_placed, batches, Offset(inside), LOGLET, skipped=ranges)
        assert found.wrong is not None
        assert found.end == (lost if gone else inside)


@pytest.mark.parametrize(
    ("ranges", "end"),
    [
        ([(0, 0)], 0),
        ([(3, 1)], 0),
        ([(1, 4)], 0),
        ([(0, 2), (1, 3)], 2),
        ([(0, 2), (2, 2)], 2),
        ([(0, 2), (2, 9)], 2),
        ([(2, 4), (0, 2)], 0),
    ],
)
def test_ranges_that_can_not_be_are_refused(ranges: list[tuple[int, int]], end: int) -> None:
    """Empty, backwards, apart, overlapping, beyond the segment's end, out of order."""
    found = check_batches(
        check_placed, [], Offset(0), LOGLET, 8, skipped=[skip(*it) for it in ranges]
    )
    assert found.wrong is not None
    assert found.end == end
