"""Reading along a chain: across boundaries, while it changes, round losses, and cheaply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from helpers.memory_log import START, MemoryLog
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.batch import Placement, check_batch, check_placed, encode_records, place_batch
from sharedlog.cluster import Cluster, Routing
from sharedlog.errors import DataLoss, OffsetOutOfRange
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.log import Log
from sharedlog.read_progress import check_batches
from sharedlog.v1 import log_server_pb2, types_pb2

HOLE = log_server_pb2.ReadGap.REASON_HOLE
QUICK = sharedlog.ReaderConfig(silence_s=0.2, timeout_s=2.0, idle_check_s=0.1)
PATIENT = sharedlog.ReaderConfig(silence_s=5.0, timeout_s=10.0, idle_check_s=5.0)
NODESETS = (["n1", "n2", "n3"], ["n2", "n3", "n4"], ["n3", "n4", "n5"], ["n5", "n1", "n2"])


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster(5) as cluster:
        cluster.create("orders").open_segment.nodeset = NODESETS[0]
        yield cluster


def connect(
    memory: MemoryCluster, routing: Routing = "smart", config: sharedlog.ReaderConfig = QUICK
) -> Cluster:
    return sharedlog.connect(memory.address, routing=routing, read_config=config)


def batch(value: int) -> bytes:
    return encode_records([(b"%d" % value, None, None)])


async def fill(memory: MemoryCluster, *, segments: int, records: int) -> MemoryLog:
    """So many closed segments of so many records, each with other replicas, and an open one."""
    log = memory.logs["orders"]
    for index in range(segments + 1):
        for _ in range(records):
            log.append(batch(log.tail))
        if index < segments:
            await memory.roll(log, nodeset=NODESETS[(index + 1) % len(NODESETS)])
    return log


async def read(log: Log, start: int = 0, end: int | None = None) -> list[int]:
    async with asyncio.timeout(20):
        return [int(record.value) async for record in log.read(start, end)]


async def read_into(found: list[int], log: Log) -> None:
    async for record in log.read():
        found.append(int(record.value))  # noqa: PERF401  # kept when the read fails


async def follow(log: Log, start: int, until_offset: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(20), contextlib.aclosing(log.read(start, follow=True)) as records:
        async for record in records:
            found.append(int(record.value))
            if record.offset + 1 == until_offset:
                break
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the server makes true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the server has no event for each of these
            await asyncio.sleep(0.002)


def reads(memory: MemoryCluster) -> int:
    return sum(node.reads_opened for node in memory.nodes.values())


async def test_a_read_runs_across_segments(memory: MemoryCluster) -> None:
    """Three closed segments on different log servers and an open one read as one log, from
    wherever one starts."""
    await fill(memory, segments=3, records=10)
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await read(log) == list(range(40))
        assert await read(log, 7, 33) == list(range(7, 33))
        for boundary in (10, 20, 30):
            assert await read(log, boundary, boundary + 1) == [boundary]
            assert await read(log, boundary - 1, boundary) == [boundary - 1]
            assert await read(log, boundary) == list(range(boundary, 40))


async def test_empty_segments_leave_no_trace(memory: MemoryCluster) -> None:
    """Field note 15: they are replaced, and the index of their successor is all that shows."""
    log_there = await fill(memory, segments=1, records=5)
    for _ in range(3):
        await memory.roll(log_there)
        await memory.roll(log_there)
        log_there.append(batch(log_there.tail))
    assert [segment.index for segment in log_there.chain] == [0, 1, 3, 5, 7]
    async with connect(memory) as cluster:
        assert await read(cluster.log("orders")) == list(range(13))


async def test_a_parked_follower_crosses_a_boundary_at_once(memory: MemoryCluster) -> None:
    """Field note 8: it waits at the end of a segment that is closed just then, and has the next
    record as soon as that is there: pushed, not after a poll or a pause."""
    log_there = await fill(memory, segments=0, records=3)
    loop = asyncio.get_running_loop()
    times = []
    async with connect(memory, config=PATIENT) as cluster:
        log = cluster.log("orders")
        for turn in range(8):
            opened = reads(memory)
            following = asyncio.create_task(follow(log, log_there.tail - 1, log_there.tail + 1))
            await until(lambda before=opened: reads(memory) > before)  # type: ignore[misc]  # a default binds it
            await asyncio.sleep(0.01)
            assert not following.done()
            nodeset = NODESETS[(turn + 1) % len(NODESETS)]
            await memory.roll(log_there, nodeset=nodeset, planned=True)
            started = loop.time()
            await memory.append(log_there, batch(log_there.tail))
            assert len(await following) == 2
            times.append(loop.time() - started)
    assert sorted(times)[len(times) // 2] < 0.1


async def test_a_follower_sees_all_of_a_log_that_keeps_changing(memory: MemoryCluster) -> None:
    """Appends and reconfigurations go on while several followers read: each sees every record, in
    order and once."""
    log_there = await fill(memory, segments=0, records=1)
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        following = [asyncio.create_task(follow(log, 0, 301)) for _ in range(3)]
        for value in range(1, 301):
            await memory.append(log_there, batch(value))
            if value % 20 == 0:
                nodeset = NODESETS[(value // 20) % len(NODESETS)]
                await memory.roll(log_there, nodeset=nodeset, planned=True)
            if value % 7 == 0:
                await asyncio.sleep(0.001)
        assert [await found for found in following] == [list(range(301))] * 3


async def test_a_node_that_has_not_heard_of_the_end_yet_is_asked_again(
    memory: MemoryCluster,
) -> None:
    """Field note 8: the log server was told of the end before the asked node's view shows it; the
    end comes from the chain alone, so the reader asks until that has it."""
    log_there = await fill(memory, segments=0, records=3)
    async with connect(memory, config=PATIENT) as cluster:
        log = cluster.log("orders")
        following = asyncio.create_task(follow(log, 0, 4))
        await until(lambda: reads(memory) > 0)
        view = log_there.describe()
        for node in memory.nodes.values():
            node.faults.stale_view, node.faults.stale_for = view, 2
        before = memory.describes
        await memory.roll(log_there, nodeset=NODESETS[1])
        await memory.append(log_there, batch(3))
        assert await following == [0, 1, 2, 3]
    assert 4 <= memory.describes - before <= 8, "it asks again, and not in a tight loop"


async def test_a_follower_whose_replicas_are_never_told_finds_out(memory: MemoryCluster) -> None:
    """Telling the ends is best effort: an idle follower looks at the chain itself now and then."""
    log_there = await fill(memory, segments=0, records=3)
    for node in memory.nodes.values():
        node.faults.untold = True
    async with connect(memory) as cluster:
        following = asyncio.create_task(follow(cluster.log("orders"), 0, 4))
        await until(lambda: reads(memory) > 0)
        await memory.roll(log_there, nodeset=NODESETS[2])
        await memory.append(log_there, batch(3))
        assert await following == [0, 1, 2, 3]


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_a_read_begun_with_an_old_description_ends_where_it_should(
    memory: MemoryCluster, routing: Routing
) -> None:
    """The client's route shows one open segment; by now there are four."""
    log_there = await fill(memory, segments=0, records=3)
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        assert await read(log) == [0, 1, 2]
        for _ in range(3):
            await memory.roll(log_there)
            log_there.append(batch(log_there.tail))
        assert await read(log) == list(range(6))
        assert await read(log, 2, 5) == [2, 3, 4]


async def test_a_replica_list_out_of_date_is_fetched_again(memory: MemoryCluster) -> None:
    """Field note 34: closed segments were moved to other log servers and the old ones are gone; a
    reader that knows the old list goes on."""
    log_there = await fill(memory, segments=2, records=5)
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await read(log, 0, 12) == list(range(12))
        for segment in log_there.chain:
            segment.nodeset = ["n4", "n5"]
        log_there.chain_version += 1
        for node_id in ("n2", "n3"):
            memory.nodes[node_id].storage_id = "wiped"
        memory.nodes["n1"].storage_id = "wiped"
        assert await read(log) == list(range(15))


async def test_an_accepted_loss_is_a_gap_with_two_ends(memory: MemoryCluster) -> None:
    """Field notes 18 and 19: never a wait and never a skip; the error says which offsets, since
    when and why, and reading begins again at its end."""
    log_there = await fill(memory, segments=1, records=5)
    log_there.lose(7, accepted_ms=1_700_000_000_000, reason="three disks of rack 4")
    for _ in range(5):
        log_there.append(batch(log_there.tail))
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        got: list[int] = []
        with pytest.raises(DataLoss, match=r"2023-11-14T22:13:20.*three disks of rack 4") as raised:
            await read_into(got, log)
        assert got == list(range(10))
        assert (raised.value.first, raised.value.end) == (10, 17)
        assert await read(log, raised.value.end) == list(range(17, 22))
        with pytest.raises(DataLoss) as raised:
            await read(log, 13)
        assert (raised.value.first, raised.value.end) == (13, 17)
        assert await read(log, 3, 10) == list(range(3, 10)), "what ends before it is not concerned"


async def test_what_replicas_still_have_of_a_lost_range_is_not_read(memory: MemoryCluster) -> None:
    """All readers see the same gap, whichever replica they ask."""
    log_there = await fill(memory, segments=1, records=10)
    lost = types_pb2.LostRange(first=4, end=8, accepted_ms=1, reason="damaged")
    log_there.chain[0].lost.append(lost)
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        got: list[int] = []
        with pytest.raises(DataLoss):
            await read_into(got, log)
        assert got == [0, 1, 2, 3]
        assert await read(log, 8) == list(range(8, 20))


async def test_a_loss_of_unknown_size_is_no_gap(memory: MemoryCluster) -> None:
    """`first == end`: nobody can say that a record is missing, so none is."""
    log_there = await fill(memory, segments=1, records=5)
    lost = types_pb2.LostRange(first=5, end=5, accepted_ms=1, reason="perhaps")
    log_there.chain[0].lost.append(lost)
    async with connect(memory) as cluster:
        assert await read(cluster.log("orders")) == list(range(10))


def placed(first: int, count: int) -> bytes:
    data = encode_records([(b"999", None, None)] * count)
    crc = check_batch(data).crc32c
    return place_batch(Placement(LogletId(LogId(1), 0), Offset(first), count, 1, START, crc), data)


@pytest.mark.parametrize(
    ("batches", "good"),
    [([(3, 2)], 1), ([(3, 2), (5, 1)], 1), ([(3, 3)], 0), ([(4, 1), (5, 1)], 1), ([(5, 1)], 0)],
)
def test_a_batch_beyond_the_end_of_its_segment_is_not_taken(
    batches: list[tuple[int, int]], good: int
) -> None:
    """Field note 7: [0, 5) is the segment, so whatever reaches beyond 5 is not in the log."""
    sent = [placed(first, count) for first, count in batches]
    position = Offset(batches[0][0])
    wanted = LogletId(LogId(1), 0)
    found = check_batches(check_placed, sent, position, wanted, 5)
    assert len(found.batches) == good
    assert (found.wrong is not None) == (good < len(sent))
    found = check_batches(check_placed, sent, position, wanted)
    all_of_it = (len(sent), None)
    assert (len(found.batches), found.wrong) == all_of_it, "while the segment is open, it may be"


async def test_what_lies_beyond_a_segments_end_is_never_read(memory: MemoryCluster) -> None:
    """Field note 7: replicas offer records above the end that the chain gives, whole and with right
    checksums, as a repair that lost the race has left them; another replica does not."""
    await fill(memory, segments=1, records=5)
    for node_id in ("n1", "n2"):
        memory.nodes[node_id].faults.beyond = [placed(4, 2)]
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        for _ in range(5):
            assert await read(log) == list(range(10))
            assert await read(log, 4, 7) == [4, 5, 6]


@pytest.mark.slow
async def test_a_hole_that_was_filled_is_read(memory: MemoryCluster) -> None:
    """Field note 31: two replicas had a hole and the third is silent; the hole is backfilled, and
    the read that had given those two up succeeds."""
    await fill(memory, segments=1, records=5)
    for node_id in ("n1", "n2"):
        memory.nodes[node_id].faults.gaps = [(2, 4, HOLE)]
    memory.nodes["n3"].faults.silent = True
    async with connect(memory) as cluster:
        reading = asyncio.create_task(read(cluster.log("orders")))
        await asyncio.sleep(0.5)
        assert not reading.done(), "a silent replica may have it"
        memory.nodes["n2"].faults.gaps.clear()
        assert await reading == list(range(10))


@pytest.mark.slow
async def test_thousands_of_segments_are_cheap(memory: MemoryCluster) -> None:
    """Opening, appending, asking for the tail and following cost the same with 3,000 segments; a
    read fetches the chain in slices; only who asks for all of it gets it."""
    log_there = await fill(memory, segments=3_000, records=1)
    tail = log_there.tail
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"%d" % tail) == tail
        assert await log.tail() == tail + 1
        assert await follow(log, tail - 1, tail + 1) == [tail - 1, tail]
        assert memory.describes <= 4
        assert memory.describe_bytes < 10_000
        assert await read(log, 1_000, 1_010) == list(range(1_000, 1_010))
        assert memory.describes <= 6
        assert memory.describe_bytes < 40_000
        before = memory.describes, memory.describe_bytes
        assert await read(log, 500, 1_500) == list(range(500, 1_500))
        assert memory.describes - before[0] <= 1_000 // 64 + 2
        assert memory.describe_bytes - before[1] < 300_000
        assert len((await log.describe()).chain) == 3_001


async def test_below_what_is_kept_is_out_of_range(memory: MemoryCluster) -> None:
    """A chain whose first segments are gone says so at once."""
    log_there = await fill(memory, segments=3, records=5)
    del log_there.chain[0]
    async with connect(memory) as cluster:
        with pytest.raises(OffsetOutOfRange):
            await read(cluster.log("orders"), 2)
        assert await read(cluster.log("orders"), 5) == list(range(5, 20))
