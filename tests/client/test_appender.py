"""The appender against a server in memory: sessions, failures, back-pressure, deadlines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.batch import decode_placed
from sharedlog.errors import (
    AppendIndefinite,
    BatchTooLarge,
    EmptyBatch,
    InvalidArgument,
    LogNotFound,
    LogUnavailable,
    NotAppended,
    Overloaded,
    Purged,
    RecordTooLarge,
)
from sharedlog.limits import RECORD_BYTES_MAX


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        cluster.create("orders")
        yield cluster


def stored(memory: MemoryCluster, name: str = "orders") -> list[bytes]:
    return [r.value for placed in memory.logs[name].batches for r in decode_placed(placed)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the server makes true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the server has no event for each of these
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_records_come_back_with_offset_key_and_headers(
    memory: MemoryCluster, routing: sharedlog.cluster.Routing
) -> None:
    """An append gives the offset under which the very record is read back, in either routing."""
    async with sharedlog.connect(memory.address, routing=routing) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"hello", key=b"k", headers={"type": b"greeting"}) == 0
        assert await log.append(b"", key=b"") == 1
        assert await log.append_batch([b"x", (b"y", b"k2", {"a": b""})]) == range(2, 4)
        records = [record async for record in log.read()]
    assert [(r.offset, r.value, r.key, dict(r.headers)) for r in records] == [
        (0, b"hello", b"k", {"type": b"greeting"}),
        (1, b"", b"", {}),
        (2, b"x", None, {}),
        (3, b"y", b"k2", {"a": b""}),
    ]


async def test_an_appender_keeps_order_and_makes_large_batches(memory: MemoryCluster) -> None:
    """Thousands of appends travel in few batches, and lie in the order in which they were made."""
    values = [b"%06d" % i for i in range(20_000)]
    async with (
        sharedlog.connect(memory.address) as cluster,
        cluster.log("orders").appender() as appender,
    ):
        pending = [await appender.append(value) for value in values[:10_000]]
        pending += await appender.append_many(values[10_000:])
    assert [p.result() for p in pending] == list(range(20_000))
    assert stored(memory) == values
    assert memory.nodes["n1"].batches_received < 30
    assert memory.nodes["n1"].sessions_opened == 1


async def test_concurrent_appends_share_one_session(memory: MemoryCluster) -> None:
    """`Log.append` from many tasks batches by itself."""
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        offsets = await asyncio.gather(*[log.append(b"%d" % i) for i in range(500)])
        assert sorted(offsets) == list(range(500))
        assert cluster.log("orders") is log
    assert memory.nodes["n1"].sessions_opened == 1
    assert memory.nodes["n1"].batches_received < 20


async def test_append_waits_while_the_buffers_are_full(memory: MemoryCluster) -> None:
    """Back-pressure: with answers withheld, so many bytes are taken and then append waits."""
    node = memory.nodes["n1"]
    async with (
        sharedlog.connect(memory.address) as cluster,
        cluster.log("orders").appender(
            batch_bytes=1_000, in_flight_bytes=4_000, buffer_bytes=4_000
        ) as appender,
    ):
        taken = 0

        async def produce() -> None:
            nonlocal taken
            for _ in range(1_000):
                await appender.append(b"x" * 96)
                taken += 1

        with node.held_acks():
            producer = asyncio.create_task(produce())
            await until(lambda: node.batches_received >= 4)
            before = -1
            while before != taken:
                before = taken
                await asyncio.sleep(0.02)
            assert 80 * 100 <= taken * 100 <= 9_500
            assert not producer.done()
        await producer
    assert len(stored(memory)) == 1_000


async def test_a_record_larger_than_every_window_passes(memory: MemoryCluster) -> None:
    """Field note 42: a lone batch always fits."""
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        async with log.appender(batch_bytes=100, in_flight_bytes=100, buffer_bytes=100) as appender:
            for size in (10, 50_000, 10):
                await appender.append(b"x" * size)
        assert await cluster.log("orders").append(bytes(RECORD_BYTES_MAX - 4)) == 3
    assert [len(value) for value in stored(memory)] == [10, 50_000, 10, RECORD_BYTES_MAX - 4]


async def test_what_can_never_be_appended_is_refused_before_it_is_sent(
    memory: MemoryCluster,
) -> None:
    """Field note 37: too large, empty or not bytes is a definite error at once; others go on."""
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        with pytest.raises(RecordTooLarge):
            await log.append(bytes(RECORD_BYTES_MAX + 1))
        with pytest.raises(EmptyBatch):
            await log.append_batch([])
        with pytest.raises(BatchTooLarge):
            await log.append_batch([bytes(1024 * 1024)] * 9)
        for value, key, headers in (
            ("text", None, None),
            (b"", "text", None),
            (b"", b"", {"h": 1}),
        ):
            with pytest.raises(InvalidArgument):
                await log.append(value, key, headers)  # type: ignore[arg-type]  # the point
        with pytest.raises(InvalidArgument):
            log.appender(batch_bytes=0)
        assert await log.append(b"fine") == 0
    assert stored(memory) == [b"fine"]


@pytest.mark.parametrize("admitted", [True, False])
@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_a_session_lost_in_mid_flight_is_cleared_up(
    memory: MemoryCluster, routing: sharedlog.cluster.Routing, admitted: bool
) -> None:
    """Promise 4, field notes 36 and 41: whether or not the batch in flight got into the log before
    the session broke, its append succeeds, and it is there once."""
    node = memory.nodes["n1"]
    async with sharedlog.connect(memory.address, routing=routing) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"first") == 0
        node.faults.drop_session_after = 0
        node.faults.admit_dropped = admitted
        assert await log.append(b"second") == 1
        assert await log.append(b"third") == 2
    assert stored(memory) == [b"first", b"second", b"third"], "nothing twice, nothing lost"


async def test_what_a_purge_has_hidden_is_told_at_once_and_the_appender_goes_on(
    memory: MemoryCluster,
) -> None:
    """Promise 4: the batch may lie in what was purged, so it is not sent again."""
    node = memory.nodes["n1"]
    async with sharedlog.connect(memory.address) as cluster:
        appender = cluster.log("orders").appender(batch_records=1)
        assert await (await appender.append(b"first")) == 0
        node.faults.drop_session_after = 0
        node.faults.refuse_sessions.append(Purged(offset=1, start=5))
        lost = await appender.append(b"lost")
        async with asyncio.timeout(10):
            with pytest.raises(AppendIndefinite, match="begins at 5"):
                await lost
        assert await (await appender.append(b"next")) == 1
        await appender.abort()
    assert stored(memory) == [b"first", b"next"]


async def test_many_batches_in_flight_keep_their_order(memory: MemoryCluster) -> None:
    """Field note 36: with many batches on their way when the session breaks, one of them admitted
    and not answered, all are in the log once, in the order in which they were handed over."""
    node = memory.nodes["n1"]
    node.faults.admit_dropped = True
    async with sharedlog.connect(memory.address) as cluster:
        appender = cluster.log("orders").appender(batch_records=10)
        pending = []
        for i in range(600):
            if i % 100 == 0:
                await appender.flush()
                node.faults.drop_session_after = 3
            pending.append(await appender.append(b"%d" % i))
        await appender.close()
    assert [p.result() for p in pending] == list(range(600))
    assert stored(memory) == [b"%d" % i for i in range(600)]
    assert node.sessions_opened > 2
    assert len({opening.producer_id for opening in node.openings}) == 1


async def test_an_indefinite_answer_is_cleared_up_too(memory: MemoryCluster) -> None:
    """Field note 17: the sequencer does not know what became of a batch; the next session finds it
    out, and the caller gets the offset. What was sent behind it keeps its place."""
    node = memory.nodes["n1"]
    node.faults.batch_errors.extend([None, AppendIndefinite("sealed"), None])
    async with sharedlog.connect(memory.address) as cluster:
        appender = cluster.log("orders").appender(batch_records=1)
        pending = [await appender.append(b"%d" % i) for i in range(4)]
        await appender.close()
    assert [p.result() for p in pending] == [0, 1, 2, 3]
    assert node.openings[1].unresolved
    assert node.openings[1].next_sequence == 1
    assert node.openings[1].resolve_from == 1, "after the last batch that was acknowledged"


@pytest.mark.slow
async def test_it_reconnects_to_a_restarted_node(memory: MemoryCluster) -> None:
    """A node that is down for a while delays appends; none that comes then is lost, or fails."""
    node = memory.nodes["n1"]
    for other in ("n2", "n3"):  # nobody else may order the log
        memory.nodes[other].faults.report_errors.extend([LogUnavailable("not now")] * 100)
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"before") == 0
        await node.stop()
        appending = asyncio.create_task(log.append(b"after"))
        await asyncio.sleep(0.1)
        assert not appending.done()
        await node.start()
        assert await appending == 1
    assert stored(memory) == [b"before", b"after"]


async def test_not_sequencer_leads_to_the_one_that_is(memory: MemoryCluster) -> None:
    """A client with an old route follows the node that the answer names."""
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        await memory.roll(memory.logs["orders"], "n3")
        await log.close()
        assert await log.append(b"b") == 1
        assert await log.tail() == 2
    assert memory.nodes["n3"].batches_received == 1


@pytest.mark.slow
async def test_an_unavailable_log_fails_definitely_at_the_deadline(memory: MemoryCluster) -> None:
    """Never handed to a session: it is not in the log, and the error says why."""
    node = memory.nodes["n1"]
    node.faults.refuse_sessions.extend([LogUnavailable("the sequencer is gone")] * 100)
    async with sharedlog.connect(memory.address) as cluster:
        with pytest.raises(LogUnavailable, match="the sequencer is gone"):
            await cluster.log("orders").append(b"x", timeout_s=1.0)
        node.faults.refuse_sessions.clear()
        assert await cluster.log("orders").append(b"y") == 0
    assert stored(memory) == [b"y"]


@pytest.mark.slow
async def test_nobody_there_is_definite_too() -> None:
    """A cluster that can't be reached has the record for certain not."""
    config = sharedlog.ClientConfig(timeout_s=0.2)
    async with sharedlog.connect("127.0.0.1:1", config=config) as cluster:
        with pytest.raises(NotAppended):
            await cluster.log("orders").append(b"x", timeout_s=0.3)


async def test_an_answer_that_never_comes_is_indefinite(memory: MemoryCluster) -> None:
    """A batch in flight past its deadline may be in the log; what follows is served."""
    node = memory.nodes["n1"]
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        with node.held_acks(), pytest.raises(AppendIndefinite, match="no answer within"):
            await log.append(b"b", timeout_s=1.0)
        assert await log.append(b"c") == 2
    assert stored(memory) == [b"a", b"b", b"c"]


async def test_overload_is_tried_again(memory: MemoryCluster) -> None:
    """A batch that the server was too busy to take is sent again after a wait, in order."""
    busy = Overloaded("busy", retry_after_s=0.01)
    memory.nodes["n1"].faults.batch_errors.extend([None, busy, busy])
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        async with log.appender(batch_records=1, in_flight_bytes=1) as appender:
            pending = [await appender.append(b"%d" % i) for i in range(5)]
    assert [p.result() for p in pending] == list(range(5))
    assert stored(memory) == [b"%d" % i for i in range(5)]


async def test_an_unknown_log_is_a_definite_error(memory: MemoryCluster) -> None:
    """LogNotFound at once, for appends, reads and tails alike."""
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("nope")
        with pytest.raises(LogNotFound):
            await log.append(b"x")
        with pytest.raises(LogNotFound):
            await log.tail()
        with pytest.raises(LogNotFound):
            await anext(log.read())
        with pytest.raises(LogNotFound):
            await log.describe()


async def test_flush_and_close_raise_what_nobody_saw(
    memory: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """A failure that is never awaited is not lost, not printed, and raised once."""
    memory.nodes["n1"].faults.batch_errors.append(RecordTooLarge(size_bytes=9, max_bytes=8))
    with caplog.at_level(logging.ERROR):
        async with sharedlog.connect(memory.address) as cluster:
            appender = cluster.log("orders").appender()
            await appender.append(b"x")
            with pytest.raises(RecordTooLarge):
                await appender.flush()
            await appender.append(b"y")
            await appender.close()
            await appender.close()
            with pytest.raises(InvalidArgument, match="closed"):
                await appender.append(b"z")
    assert not caplog.records


async def test_a_body_that_fails_keeps_its_own_error(memory: MemoryCluster) -> None:
    """Leaving the block by an exception writes what was handed over, and raises that one."""
    async with sharedlog.connect(memory.address) as cluster:
        appender = cluster.log("orders").appender(linger_s=5)

        async def fail() -> None:
            async with appender:
                await appender.append(b"x")
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await fail()
    assert stored(memory) == [b"x"]


async def test_cancelling_stops_the_wait_not_the_write(memory: MemoryCluster) -> None:
    """One caller's cancellation does not reach the others of its batch, nor the record."""
    node = memory.nodes["n1"]
    async with sharedlog.connect(memory.address) as cluster:
        log = cluster.log("orders")
        with node.held_acks():
            waiting = [asyncio.create_task(log.append(b"%d" % i)) for i in range(3)]
            await until(lambda: node.batches_received > 0)
            waiting[1].cancel()
            await asyncio.sleep(0)
        assert await waiting[0] == 0
        assert await waiting[2] == 2
        with pytest.raises(asyncio.CancelledError):
            await waiting[1]
    assert stored(memory) == [b"0", b"1", b"2"]


async def test_linger_gathers_records_over_time(memory: MemoryCluster) -> None:
    """With a linger time, records of several turns become one batch; flush ends the wait."""
    async with sharedlog.connect(memory.address) as cluster:
        appender = cluster.log("orders").appender(linger_s=20)
        for i in range(5):
            await appender.append(b"%d" % i)
            await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await appender.flush()
        await appender.append(b"5")
        await appender.close()
    assert memory.nodes["n1"].batches_received == 2


async def test_leaving_the_cluster_drops_open_appenders(memory: MemoryCluster) -> None:
    """No task outlives the cluster object, and what was in flight is not called a success."""
    node = memory.nodes["n1"]
    with node.held_acks():
        async with sharedlog.connect(memory.address) as cluster:
            appender = cluster.log("orders").appender()
            pending = await appender.append(b"x")
            await until(lambda: node.batches_received > 0)
    with pytest.raises(AppendIndefinite):
        await pending
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("appender")]
