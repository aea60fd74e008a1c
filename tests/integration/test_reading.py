"""Moments, limits and the last records, on real nodes: through segments, round a dead node."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import PATIENT

import sharedlog
from sharedlog.batch import Record
from sharedlog.cluster import Cluster, Routing
from sharedlog.dev_cluster import DevCluster
from sharedlog.errors import InvalidArgument
from sharedlog.log import Log
from sharedlog.rpc import methods
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.v1 import log_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROUTINGS = pytest.mark.parametrize("routing", ["smart", "plain"])
BATCHES = 40


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """Three nodes, and a log of some segments whose batches lie some milliseconds apart."""
    cluster = DevCluster(tmp_path_factory.mktemp("reading"), settings=PATIENT)
    asyncio.run(cluster.start())
    try:
        asyncio.run(_fill(cluster))
        yield cluster
    finally:
        asyncio.run(cluster.stop())


async def _fill(nodes: DevCluster) -> None:
    async with sharedlog.connect(nodes.addresses) as client:
        log = await client.create_log("orders", replicas=3)
        for index in range(BATCHES):
            values = [b"%d.%d" % (index, it) for it in range(1 + index % 3)]
            await log.append_batch((value, b"k", None) for value in values)
            if index % 10 == 9:
                await client.admin.reconfigure("orders", replicas=3)
            await asyncio.sleep(0.003)


@pytest.fixture
async def client(nodes: DevCluster, routing: Routing) -> AsyncIterator[Cluster]:
    async with sharedlog.connect(nodes.addresses, routing=routing) as connected:
        yield connected


async def all_of(log: Log) -> list[Record]:
    async with asyncio.timeout(30):
        return [record async for record in log.read()]


@ROUTINGS
async def test_every_moment_is_found(client: Cluster) -> None:
    """Each timestamp in the log, the one before and the one after: as by a look at all records."""
    log = client.log("orders")
    records = await all_of(log)
    tail = await log.tail()
    assert len((await log.describe()).chain) == 5
    times = {record.timestamp_ms for record in records}
    for moment_ms in sorted({it + by for it in times for by in (-1, 0, 1)}):
        wanted = next((it.offset for it in records if it.timestamp_ms >= moment_ms), tail)
        assert await log.find_offset(moment_ms) == wanted
    middle = records[len(records) // 2]
    moment = datetime.fromtimestamp(middle.timestamp_ms / 1_000, UTC)
    start = await log.find_offset(moment)
    found = [record async for record in log.read(sharedlog.from_time(moment), limit=5)]
    assert found == records[start : start + 5]
    assert found[0].timestamp_ms == middle.timestamp_ms


@ROUTINGS
async def test_what_was_just_acknowledged_counts(client: Cluster, routing: Routing) -> None:
    """A search right after an append finds that record, not the tail before it."""
    log = await client.create_log(f"fresh-{routing}")
    for _ in range(20):
        offset = await log.append(b"x")
        (record,) = [it async for it in log.read(offset, limit=1)]
        assert await log.find_offset(record.timestamp_ms + 1) == offset + 1
        assert await log.find_offset(record.timestamp_ms) <= offset


@ROUTINGS
async def test_the_last_and_the_limits(client: Cluster) -> None:
    """Backwards over segments; by bytes; from before the tail until a moment."""
    log = client.log("orders")
    records = await all_of(log)
    for count in (1, 7, 50, 1_000):
        assert await log.read_last(count) == records[-count:]
    until = records[60].timestamp_ms
    early = [it for it in records if it.timestamp_ms < until]
    assert [it async for it in log.read(until=until)] == early
    newest = [it async for it in log.read(sharedlog.from_tail(5))]
    assert newest == records[-5:]
    some = [it async for it in log.read(3, limit_bytes=23)]
    assert some == records[3 : 3 + len(some)]
    sizes = [len(it.value) + len(it.key or b"") for it in records[3:]]
    assert sum(sizes[: len(some)]) <= 23 < sum(sizes[: len(some) + 1])


@ROUTINGS
async def test_control_records_are_passed_over(client: Cluster, routing: Routing) -> None:
    """Between others and at the tail, where nothing follows; limits count what is read."""
    log = await client.create_log(f"fenced-{routing}")
    assert [await log.append(b"0"), await log.fence("a"), await log.append(b"2")] == [0, 1, 2]
    await log.fence("b", expected="a")
    assert await log.tail() == 4
    async with asyncio.timeout(20):
        assert [it.offset async for it in log.read()] == [0, 2]
        assert [it.offset async for it in log.read(limit=2)] == [0, 2]
        assert [it.offset async for it in log.read(1, limit=1)] == [2]
        assert [it.offset async for it in log.read(0, 2)] == [0]
        assert [it.offset async for it in log.read(3)] == []
        assert [it.offset async for it in log.read(include_control=True)] == [0, 1, 2, 3]
        assert [it.offset for it in await log.read_last(2)] == [0, 2]
        (second,) = await log.read_last(1)
        assert second.offset == 2
        assert await log.find_offset(second.timestamp_ms) <= 2
        merged = client.read_many([log], follow=True)
        assert [(await anext(merged))[1].offset for _ in range(2)] == [0, 2]
        await merged.aclose()


class Raw:
    """A generated client: protobuf messages, one node."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.transport = GrpcTransport()

    async def records(self, **fields: Any) -> list[int]:
        """Offsets of what `ReadRecords` sends."""
        stream = self.transport.stream(self.address, methods.READ_RECORDS)
        with contextlib.closing(_Cancelled(stream)):
            await stream.send(log_pb2.ReadRequest(log="orders", **fields))
            found: list[int] = []
            async with asyncio.timeout(20):
                while (answer := await stream.receive()) is not None:
                    found += [record.offset for record in answer.records]
        return found

    async def batches(self, **fields: Any) -> int:
        """How many batches `Read` sends."""
        stream = self.transport.stream(self.address, methods.READ)
        with contextlib.closing(_Cancelled(stream)):
            await stream.send(log_pb2.ReadRequest(log="orders", **fields))
            count = 0
            async with asyncio.timeout(20):
                while (answer := await stream.receive()) is not None:
                    count += len(answer.batches)
        return count


class _Cancelled:
    def __init__(self, stream: Any) -> None:
        self.close = stream.cancel


async def test_generated_clients_have_the_same_options(nodes: DevCluster) -> None:
    """`ReadRecords` keeps to them; `Read` sends whole batches, and ends with the right one."""
    async with sharedlog.connect(nodes.addresses) as client:
        records = await all_of(client.log("orders"))
    raw = Raw(nodes.addresses[0])
    try:
        last = records[-1].offset
        time_ms = records[40].timestamp_ms
        since = [it.offset for it in records if it.timestamp_ms >= time_ms]
        assert await raw.records(start_timestamp_ms=time_ms) == since
        assert await raw.records(start_timestamp_ms=time_ms, limit=4) == since[:4]
        assert await raw.records(last=3) == [last - 2, last - 1, last]
        assert await raw.records(last=0) == []
        before = [it.offset for it in records if it.timestamp_ms < time_ms]
        assert await raw.records(until_timestamp_ms=time_ms) == before
        assert await raw.records(start=2, limit_bytes=1) == [2]
        assert await raw.records(start=2, limit=3, follow=True) == [2, 3, 4]
        wanted = log_pb2.FindOffsetRequest(log="orders", timestamp_ms=time_ms)
        answer = await raw.transport.call(raw.address, methods.FIND_OFFSET, wanted, timeout_s=10)
        assert answer.offset == since[0]
        assert await raw.batches() == BATCHES
        assert await raw.batches(limit=4) == 3  # of one, two and three records
        assert await raw.batches(limit_bytes=1) == 1
        assert await raw.batches(until_timestamp_ms=records[3].timestamp_ms) == 2
        with pytest.raises(InvalidArgument, match="starts at"):
            await raw.records(start=1, last=2)
    finally:
        await raw.transport.close()


@ROUTINGS
async def test_with_a_dead_node_moments_are_found(tmp_path: Path, routing: Routing) -> None:
    """The other two hold all of it between them; what is known needs no sequencer."""
    async with DevCluster(tmp_path / "own") as nodes:
        await _fill(nodes)
        async with sharedlog.connect(nodes.addresses, routing=routing) as client:
            log = client.log("orders")
            records = await all_of(log)
            nodes.kill("n2")
            for record in records[::9]:
                first = next(it for it in records if it.timestamp_ms == record.timestamp_ms)
                assert await log.find_offset(record.timestamp_ms) == first.offset
            assert await log.read_last(9) == records[-9:]
