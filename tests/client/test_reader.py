"""Reading: ranges, following, and going round everything that a replica can get wrong."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.batch import encode_records
from sharedlog.cluster import Cluster, Routing
from sharedlog.errors import (
    DataLoss,
    InvalidArgument,
    LogUnavailable,
    OffsetOutOfRange,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.log import Log
from sharedlog.reader import LogReader
from sharedlog.v1 import log_server_pb2

HOLE = log_server_pb2.ReadGap.REASON_HOLE
DAMAGED = log_server_pb2.ReadGap.REASON_DAMAGED
TRIMMED = log_server_pb2.ReadGap.REASON_TRIMMED
VALUES = [b"%03d" % i for i in range(100)]
QUICK = sharedlog.ReaderConfig(silence_s=0.2, timeout_s=10.0, idle_check_s=0.05)
"""Leaves a silent server soon; a process that waits for a core is no failure."""
HASTY = sharedlog.ReaderConfig(silence_s=0.2, timeout_s=0.5, idle_check_s=0.05)
"""For reads that are to fail."""


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        cluster.fill("orders", VALUES, batch=7)
        yield cluster


def connect(
    memory: MemoryCluster,
    routing: Routing = "smart",
    read_config: sharedlog.ReaderConfig = QUICK,
) -> Cluster:
    return sharedlog.connect(memory.address, routing=routing, read_config=read_config)


async def values(log: Log, start: int = 0, end: int | None = None, **how: int) -> list[bytes]:
    async with asyncio.timeout(20):
        records = log.read(start, end, **how)  # type: ignore[arg-type]  # options by name
        return [record.value async for record in records]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the server makes true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the server has no event for each of these
            await asyncio.sleep(0.005)


def is_read(memory: MemoryCluster) -> bool:
    return any(node.reads_opened for node in memory.nodes.values())


async def follow(log: Log, start: int, count: int) -> list[bytes]:
    found = []
    async with asyncio.timeout(20), contextlib.aclosing(log.read(start, follow=True)) as records:
        async for record in records:
            found.append(record.value)
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("routing", ["smart", "plain"])
@pytest.mark.parametrize(
    ("start", "end", "limit"),
    [
        (0, None, None),
        (0, 1, None),
        (3, 11, None),
        (6, 8, None),
        (7, 14, None),
        (99, None, None),
        (100, None, None),
        (50, 50, None),
        (50, 10, None),
        (0, 1_000, None),
        (13, None, 1),
        (13, None, 30),
        (13, 20, 30),
        (13, 20, 0),
        (90, None, 1_000),
    ],
)
async def test_a_range_is_exactly_that(
    memory: MemoryCluster, routing: Routing, start: int, end: int | None, limit: int | None
) -> None:
    """Batches are clipped to [start, end) and to `limit`, wherever in a batch the bounds fall."""
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        got = [r async for r in log.read(start, end, limit=limit)]
    wanted = list(enumerate(VALUES))[start:end][:limit]
    assert [(r.offset, r.value) for r in got] == wanted


@pytest.mark.parametrize("routing", ["smart", "plain"])
@pytest.mark.parametrize("follows", [False, True])
async def test_beyond_the_tail_and_below_zero_are_errors(
    memory: MemoryCluster, routing: Routing, follows: bool
) -> None:
    """OffsetOutOfRange carries the tail; the tail itself is a fine place to start."""
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        with pytest.raises(OffsetOutOfRange) as raised:
            await anext(log.read(101, follow=follows))
        assert raised.value.tail == 100
        with pytest.raises(OffsetOutOfRange):
            await anext(log.read(-1, follow=follows))
        with pytest.raises(InvalidArgument):
            await anext(log.read(0, limit=-1))


async def test_a_read_ends_at_the_tail_of_its_start(memory: MemoryCluster) -> None:
    """Records that come while a read runs are not part of it."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        got = []
        async for record in log.read(95):
            got.append(record.value)
            await memory.append(memory.logs["orders"], encode_records([(b"later", None, None)]))
        assert got == VALUES[95:]


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_a_follower_gets_records_as_they_come(
    memory: MemoryCluster, routing: Routing
) -> None:
    """Field note 39: pushed on the one stream that is open, not polled."""
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        got: asyncio.Queue[bytes] = asyncio.Queue()

        async def run() -> None:
            async for record in log.read(100, follow=True):
                got.put_nowait(record.value)

        following = asyncio.create_task(run())
        for i in range(20):
            assert await log.append(b"new %d" % i) == 100 + i
            async with asyncio.timeout(5):
                assert await got.get() == b"new %d" % i
        following.cancel()
        with pytest.raises(asyncio.CancelledError):
            await following
    assert sum(node.reads_opened for node in memory.nodes.values()) == 1


async def test_following_up_to_an_end(memory: MemoryCluster) -> None:
    """`follow` with `end` waits for records that do not exist yet, and then ends."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        reading = asyncio.create_task(values(log, 98, 102, follow=True))
        await log.append_batch([b"a", b"b", b"c"])
        assert await reading == [b"098", b"099", b"a", b"b"]


@pytest.mark.slow
async def test_an_empty_log_can_be_read_and_followed(memory: MemoryCluster) -> None:
    """A log that no log server has heard of yet is empty; its first record reaches followers."""
    memory.create("empty")
    for node in memory.nodes.values():
        node.faults.not_open = True
    async with connect(memory, read_config=HASTY) as cluster:
        log = cluster.log("empty")
        assert await values(log) == []
        following = asyncio.create_task(follow(log, 0, 1))
        await asyncio.sleep(2 * HASTY.timeout_s)
        assert not following.done(), "waiting for a first record is no failure, however long"
        for node in memory.nodes.values():
            node.faults.not_open = False
        await log.append(b"first")
        assert await following == [b"first"]


@pytest.mark.parametrize("reason", [HOLE, DAMAGED, TRIMMED])
async def test_a_gap_is_read_from_another_replica(
    memory: MemoryCluster, reason: log_server_pb2.ReadGap.Reason.ValueType
) -> None:
    """A flipped bit in a stored batch, a hole or a trimmed range is served by the other replicas,
    each of which may have gaps of its own."""
    memory.nodes["n1"].faults.gaps = [(7, 28, reason)]
    memory.nodes["n2"].faults.gaps = [(28, 42, reason), (70, 77, reason)]
    memory.nodes["n3"].faults.gaps = [(0, 7, reason), (42, 49, reason)]
    async with connect(memory) as cluster:
        assert await values(cluster.log("orders")) == VALUES
    opened = sum(node.reads_opened for node in memory.nodes.values())
    assert opened <= 10, "a replica is not asked again for what it said that it lacks"


async def test_damage_on_the_wire_is_found_and_read_again(memory: MemoryCluster) -> None:
    """Wrong CRC on the wire: no reader sees such a record, another replica serves it."""
    for node in memory.nodes.values():
        node.faults.corrupt = dict.fromkeys((0, 30, 60, 99), 1)
    async with connect(memory) as cluster:
        assert await values(cluster.log("orders")) == VALUES
    async with connect(memory, "plain") as cluster:
        assert await values(cluster.log("orders")) == VALUES
    left = sum(sum(node.faults.corrupt.values()) for node in memory.nodes.values())
    assert left < 12, "damaged bytes were really sent"


async def test_a_range_that_all_replicas_lost_is_an_error(memory: MemoryCluster) -> None:
    """Promise 5: never a skip. The error names the range; what lies before it is served."""
    memory.nodes["n1"].faults.gaps = [(14, 35, DAMAGED)]
    memory.nodes["n2"].faults.gaps = [(21, 28, HOLE)]
    memory.nodes["n3"].faults.corrupt = {21: 100}
    async with connect(memory) as cluster:
        got: list[bytes] = []

        async def read() -> None:
            async for record in cluster.log("orders").read():
                got.append(record.value)  # noqa: PERF401  # kept when the read fails

        with pytest.raises(DataLoss) as raised:
            await read()
    assert got == VALUES[:21]
    assert raised.value.first == 21
    assert 21 < raised.value.end <= 28


@pytest.mark.slow
async def test_silence_is_not_loss(memory: MemoryCluster) -> None:
    """Field note 5: a replica that has not said that it lacks the range may still have it."""
    memory.nodes["n1"].faults.gaps = [(21, 28, DAMAGED)]
    memory.nodes["n2"].faults.gaps = [(21, 28, HOLE)]
    memory.nodes["n3"].faults.silent = True
    async with connect(memory, read_config=HASTY) as cluster:
        with pytest.raises(Unreachable, match="21"):
            await values(cluster.log("orders"))


@pytest.mark.parametrize("name", ["n1", "n2", "n3"])
async def test_the_preferred_replica_is_asked_first(memory: MemoryCluster, name: str) -> None:
    """And alone, as long as it serves; where it does not, the read goes on elsewhere."""
    async with connect(memory) as cluster:
        usual = cluster.log("orders")._reads._reader()
        assert isinstance(usual, LogReader)
        reader = LogReader(
            usual._transport,
            usual._describe,
            usual._clock,
            usual._rng,
            config=QUICK,
            prefer=f"{name}-store",
        )

        async def count() -> int:
            end = Offset(len(VALUES))
            async with contextlib.aclosing(reader.read(Offset(0), end, committed=end)) as chunks:
                return sum([it.end - it.first async for c in chunks for it in c.placements])

        assert await count() == len(VALUES)
        asked = {it: node.reads_opened for it, node in memory.nodes.items() if node.reads_opened}
        assert asked == {name: 1}
        await memory.nodes[name].stop()
        assert await count() == len(VALUES)


@pytest.mark.slow
async def test_a_dead_or_silent_replica_is_left(memory: MemoryCluster) -> None:
    """Reads go on while any replica serves; a stream that says nothing is given up."""
    memory.nodes["n2"].faults.silent = True
    await memory.nodes["n3"].stop()
    async with connect(memory) as cluster:
        for _ in range(3):
            assert await values(cluster.log("orders")) == VALUES


async def test_a_wiped_replica_is_not_asked(memory: MemoryCluster) -> None:
    """A node whose store is not the one in the chain never serves for it, whatever it holds."""
    memory.nodes["n1"].storage_id = "another"
    memory.nodes["n2"].storage_id = "another"
    async with connect(memory) as cluster:
        assert await values(cluster.log("orders")) == VALUES
    assert memory.nodes["n1"].reads_opened == memory.nodes["n2"].reads_opened == 0


async def test_a_store_swapped_after_the_description_was_fetched(memory: MemoryCluster) -> None:
    """WrongStorage, like any refusal, makes the reader fetch the route anew and go elsewhere."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        await log.describe()
        memory.nodes["n1"].storage_id = "another"
        memory.nodes["n2"].storage_id = "another"
        assert await values(log) == VALUES


async def test_a_long_lived_reader_follows_moved_nodes(memory: MemoryCluster) -> None:
    """Field note 34: after every node has moved to another address the reader goes on."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        following = asyncio.create_task(follow(log, 0, 101))
        await until(lambda: is_read(memory))
        for node_id in ("n2", "n3"):
            node = memory.nodes[node_id]
            await node.stop()
            node.address = ""
            await node.start()
        memory.nodes["n1"].storage_id = "another"
        await memory.append(memory.logs["orders"], encode_records([(b"moved", None, None)]))
        assert await following == [*VALUES, b"moved"]


@pytest.mark.slow
async def test_a_replica_that_lags_is_left_for_one_that_does_not(memory: MemoryCluster) -> None:
    """Below the tail that FindTail gave, a replica that knows less can't hold the read up."""
    memory.nodes["n1"].faults.known_tail = 10
    memory.nodes["n2"].faults.known_tail = 0
    async with connect(memory) as cluster:
        for _ in range(3):
            assert await values(cluster.log("orders")) == VALUES


async def test_a_follower_on_a_cut_off_replica_moves(memory: MemoryCluster) -> None:
    """Heartbeats from a replica that hears nothing more of the log do not keep a follower there."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        following = asyncio.create_task(follow(log, 100, 1))
        await until(lambda: is_read(memory))
        serving = next(node for node in memory.nodes.values() if node.reads_opened)
        serving.faults.known_tail = 100
        await log.append(b"new")
        assert await following == [b"new"]
        assert sum(node.reads_opened for node in memory.nodes.values()) > 1


async def test_without_a_sequencer_reads_end_at_the_known_tail(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader says that the end is not certain, and calls no offset out of range on a guess."""
    for node in memory.nodes.values():
        node.faults.find_tail_error = LogUnavailable("the sequencer is gone")
    config = sharedlog.ClientConfig(timeout_s=1.0)
    async with sharedlog.connect(memory.address, config=config, read_config=QUICK) as cluster:
        log = cluster.log("orders")
        with caplog.at_level(logging.WARNING):
            assert await values(log) == VALUES
        assert [record.getMessage() for record in caplog.records] == ["read.stale_tail"]
        told: list[str] = []
        assert [r.value async for r in log.read(90, on_stale=told.append)] == VALUES[90:]
        assert "the sequencer is gone" in told[0]
        with pytest.raises(LogUnavailable):
            await values(log, 101)
        with pytest.raises(LogUnavailable):
            await log.tail()
        assert await log.known_tail() == 100


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_without_a_sequencer_a_range_ends_at_the_known_tail(
    memory: MemoryCluster, routing: Routing
) -> None:
    """Whether a range lies wholly in the log is not known then: what is known of it comes, and the
    reader is told that this may not be all, although the records are there."""
    for node in memory.nodes.values():
        node.faults.find_tail_error = LogUnavailable("the sequencer is gone")
        node.faults.known_tail = 91
    config = sharedlog.ClientConfig(timeout_s=1.0)
    async with sharedlog.connect(
        memory.address, routing=routing, config=config, read_config=QUICK
    ) as cluster:
        told: list[str] = []
        records = cluster.log("orders").read(85, 95, on_stale=told.append)
        assert [record.value async for record in records] == VALUES[85:91]
        assert "reading up to 91, the highest that a log server knows" in told[0]


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_a_read_survives_the_death_of_its_node(
    memory: MemoryCluster, routing: Routing
) -> None:
    """Whichever node serves, killing it in the middle costs nothing but a moment."""
    addresses = [node.address for node in memory.nodes.values()]
    async with sharedlog.connect(addresses, routing=routing, read_config=QUICK) as cluster:
        log = cluster.log("orders")
        following = asyncio.create_task(follow(log, 0, 101))
        await until(lambda: is_read(memory))
        serving = next(node for node in memory.nodes.values() if node.reads_opened)
        await serving.stop()
        await memory.append(memory.logs["orders"], encode_records([(b"more", None, None)]))
        assert await following == [*VALUES, b"more"]


async def test_read_batches_gives_whole_lists(memory: MemoryCluster) -> None:
    """The fast way to read: the records of each batch at once, clipped like all reads."""
    async with connect(memory) as cluster:
        lists = [batch async for batch in cluster.log("orders").read_batches(3, 20)]
    assert [len(batch) for batch in lists] == [4, 7, 6]
    assert [record.offset for batch in lists for record in batch] == list(range(3, 20))


async def test_leaving_a_read_early_ends_its_stream(memory: MemoryCluster) -> None:
    """`break` and `aclose` leave no task and no stream behind."""
    async with connect(memory) as cluster:
        before = len(asyncio.all_tasks())
        assert await follow(cluster.log("orders"), 0, 5) == VALUES[:5]
        await until(lambda: len(asyncio.all_tasks()) <= before)
