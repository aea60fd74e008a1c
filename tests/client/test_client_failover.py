"""A client through the loss, the silence and the move of its sequencer: no error is seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial

import pytest
from helpers.memory_server import MemoryCluster, MemoryNode, memory_cluster

import sharedlog
from sharedlog.batch import decode_placed
from sharedlog.cluster import Cluster
from sharedlog.errors import (
    AppendIndefinite,
    DeadlineExceeded,
    LogUnavailable,
    NotAppended,
    ProducerFenced,
    SharedLogError,
    Unreachable,
)

QUICK = sharedlog.AppenderConfig(silence_s=0.1)
SOON_S = 20.0
"""Well before the 30 s of patience that an append has, and time enough for a process that has to
wait for a core."""


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        cluster.create("orders")
        yield cluster


def connect(memory: MemoryCluster, routing: sharedlog.cluster.Routing = "smart") -> Cluster:
    addresses = [node.address for node in memory.nodes.values()]
    return sharedlog.connect(addresses, routing=routing, append_config=QUICK)


def stored(memory: MemoryCluster) -> list[bytes]:
    return [r.value for placed in memory.logs["orders"].batches for r in decode_placed(placed)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that the server makes true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the server has no event for each of these
            await asyncio.sleep(0.005)


def has_more_sessions(node: MemoryNode, before: int) -> bool:
    return node.sessions_opened > before


async def test_a_killed_sequencer_is_reported_and_replaced(memory: MemoryCluster) -> None:
    """Field note 36: with batches in flight and unsent when the process dies, all are appended,
    once and in order, by the sequencer that the report has led to."""
    node = memory.nodes["n1"]
    async with connect(memory) as cluster:
        appender = cluster.log("orders").appender(batch_records=1, in_flight_bytes=200)
        assert await (await appender.append(b"0")) == 0
        with node.held_acks():
            pending = [await appender.append(b"%d" % i) for i in range(1, 20)]
            await until(lambda: node.batches_received > 2)
            await node.stop()
            async with asyncio.timeout(SOON_S):
                await appender.close()
        assert [p.result() for p in pending] == list(range(1, 20))
    assert stored(memory) == [b"%d" % i for i in range(20)]
    assert [request.segment_index for _, request in memory.reports] == [0]
    opening = memory.nodes[memory.logs["orders"].sequencer].openings[0]
    assert opening.direct_only
    assert opening.unresolved
    assert opening.min_chain_version == 2, "a node with an older view must look"


async def test_a_paused_sequencer_is_found_by_its_silence(memory: MemoryCluster) -> None:
    """Field note 16: the connection stands, nothing comes. Another one takes over; what the paused
    one does when it wakes up changes nothing."""
    node = memory.nodes["n1"]
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        with node.paused():
            async with asyncio.timeout(SOON_S):
                assert await log.append(b"b") == 1
        await asyncio.sleep(0.05)
        assert await log.append(b"c") == 2
    assert stored(memory) == [b"a", b"b", b"c"]
    assert "silent" in memory.reports[0][1].reason


@pytest.mark.slow
async def test_a_paused_node_at_the_opening_is_found_too(memory: MemoryCluster) -> None:
    """A session that is not answered at all costs a second, not the caller's patience."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        await log.describe()
        assert await log.tail() == 0
        with memory.nodes["n1"].paused():
            async with asyncio.timeout(SOON_S):
                assert await log.append(b"a") == 0
    assert memory.logs["orders"].sequencer != "n1"


@pytest.mark.slow
async def test_an_innocent_suspect_keeps_the_batches_and_is_not_hammered(
    memory: MemoryCluster,
) -> None:
    """With a write quorum out of reach the sequencer lives and can't answer: reports grow rarer,
    the caller waits, and gets its offset when the quorum is back."""
    node = memory.nodes["n1"]
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        with node.held_acks():
            waiting = asyncio.create_task(log.append(b"b"))
            await asyncio.sleep(1.5)
            assert not waiting.done()
            assert len(memory.reports) <= 5
            await until(lambda: len(memory.reports) >= 2)
            assert not waiting.done()
        assert await waiting == 1
        assert await log.append(b"c") == 2
    assert stored(memory) == [b"a", b"b", b"c"]
    assert memory.logs["orders"].chain_version == 1, "nothing was reconfigured"


async def test_a_move_is_followed_at_once(memory: MemoryCluster) -> None:
    """A planned hand-over under load: results first, then `moved`; what had none goes to the new
    sequencer as new. No report, no wait, no error, nothing twice."""
    log_there = memory.logs["orders"]
    pending = []
    sequencer, sessions_before = memory.nodes["n1"], 0
    async with (
        connect(memory) as cluster,
        cluster.log("orders").appender(batch_records=5) as appender,
    ):
        for i in range(1_000):
            pending.append(await appender.append(b"%d" % i))
            if i % 200 == 150:
                # Were the log to move on before the client has come, nobody could tell it so.
                await until(partial(has_more_sessions, sequencer, sessions_before))
                sequencer = memory.nodes["n2" if log_there.sequencer != "n2" else "n3"]
                sessions_before = sequencer.sessions_opened
                await memory.roll(log_there, sequencer.node_id, planned=True)
    assert [p.result() for p in pending] == list(range(1_000))
    assert stored(memory) == [b"%d" % i for i in range(1_000)]
    assert not memory.reports
    openings = [o for node in memory.nodes.values() for o in node.openings]
    assert all(opening.direct_only for opening in openings)
    assert max(opening.min_chain_version for opening in openings) == log_there.chain_version


async def test_an_idle_session_that_moved_is_opened_again_with_the_next_append(
    memory: MemoryCluster,
) -> None:
    """Nothing is in flight when the log moves: the next append finds the way."""
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        await memory.roll(memory.logs["orders"], "n2", planned=True)
        await until(lambda: not cluster.log("orders")._appender()._session)
        assert await log.append(b"b") == 1
    assert memory.nodes["n2"].batches_received == 1


async def test_all_appenders_of_a_log_share_one_report(memory: MemoryCluster) -> None:
    """Many sessions lose the same sequencer at once: one node is asked once."""
    async with connect(memory) as cluster:
        appenders = [cluster.log("orders").appender() for _ in range(8)]
        for appender in appenders:
            await (await appender.append(b"x"))
        await memory.nodes["n1"].stop()
        pending = [await appender.append(b"y") for appender in appenders]
        async with asyncio.timeout(SOON_S):
            offsets = [await p for p in pending]
        assert sorted(offsets) == list(range(8, 16))
        assert len(memory.reports) == 1
        for appender in appenders:
            await appender.close()


async def test_a_client_cut_off_from_the_sequencer_alone_goes_through_another_node(
    memory: MemoryCluster,
) -> None:
    """The others reach it, so it is innocent, and one of them forwards."""
    memory.out_of_reach.add("n1")
    async with sharedlog.connect(memory.nodes["n2"].address, append_config=QUICK) as cluster:
        log = cluster.log("orders")
        async with asyncio.timeout(SOON_S):
            assert await log.append(b"a") == 0
            assert await log.append(b"b") == 1
            assert await log.tail() == 2
    assert memory.logs["orders"].sequencer == "n1"
    assert not memory.nodes["n1"].openings


async def test_a_plain_client_leaves_a_silent_front_door(memory: MemoryCluster) -> None:
    """It knows nothing of sequencers, and yet sees no error when its node falls silent."""
    await memory.roll(memory.logs["orders"], "n3")
    async with connect(memory, "plain") as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        door = next(node for node in memory.nodes.values() if node.openings)
        with door.paused():
            async with asyncio.timeout(SOON_S):
                assert await log.append(b"b") == 1
    assert stored(memory) == [b"a", b"b"]


async def test_a_session_fenced_by_our_own_late_opening_is_opened_again(
    memory: MemoryCluster,
) -> None:
    """The id is random: nobody else has it. But if it goes on and on, somebody does."""
    node = memory.nodes["n1"]
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        node.faults.batch_errors.extend([None, ProducerFenced("a newer session")])
        assert await log.append(b"a") == 0
        assert await log.append(b"b") == 1
        node.faults.batch_errors.extend([ProducerFenced("a newer session")] * 100)
        with pytest.raises(ProducerFenced):
            await log.append(b"c")
    assert stored(memory) == [b"a", b"b"]


async def test_the_server_sees_no_more_batches_than_it_asked_for(memory: MemoryCluster) -> None:
    """`in_flight_batches_max` bounds what a sequencer has to remember of a producer."""
    memory.in_flight_batches_max = 3
    node = memory.nodes["n1"]
    async with connect(memory) as cluster:
        appender = cluster.log("orders").appender(batch_records=1)
        with node.held_acks():
            for i in range(20):
                await appender.append(b"%d" % i)
            await until(lambda: node.batches_received == 3)
            await asyncio.sleep(0.02)
        await appender.close()
    assert node.most_unanswered == 3
    assert stored(memory) == [b"%d" % i for i in range(20)]


@pytest.mark.slow
async def test_a_deadline_in_mid_failover_says_what_is_known(memory: MemoryCluster) -> None:
    """Promise 5: what was sent is indefinite, what was not is not in the log; and both for the
    reason that kept them."""
    node = memory.nodes["n1"]
    gone = LogUnavailable("no seal quorum")
    for other in ("n2", "n3"):
        memory.nodes[other].faults.report_errors.extend([gone] * 1_000)
    async with connect(memory) as cluster:
        appender = cluster.log("orders").appender(batch_records=1, in_flight_bytes=1, timeout_s=2.0)
        await (await appender.append(b"a"))
        with node.held_acks():
            sent = await appender.append(b"b")
            unsent = await appender.append(b"c")
            await until(lambda: node.batches_received == 2)
            await node.stop()
            outcomes: list[type[SharedLogError] | None] = []
            for pending in (sent, unsent):
                with pytest.raises((AppendIndefinite, LogUnavailable, NotAppended)) as raised:
                    await pending
                outcomes.append(type(raised.value))
        assert outcomes[0] is AppendIndefinite
        assert outcomes[1] in (LogUnavailable, NotAppended)
        await appender.abort()
    assert b"c" not in stored(memory)


@pytest.mark.parametrize("routing", ["smart", "plain"])
@pytest.mark.parametrize("how", ["stopped", "paused"])
async def test_the_tail_is_told_through_a_failover(
    memory: MemoryCluster, routing: sharedlog.cluster.Routing, how: str
) -> None:
    """Whoever asks while the sequencer is being replaced waits, and gets the true tail."""
    await memory.roll(memory.logs["orders"], "n2")
    node = memory.nodes["n2"]
    async with connect(memory, routing) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        assert await log.tail() == 1
        if how == "stopped":
            await node.stop()
            assert await log.tail() == 1
        else:
            with node.paused():
                async with asyncio.timeout(8):
                    assert await log.tail() == 1
        assert await log.append(b"b") == 1


async def test_the_tail_takes_no_longer_than_it_was_given(memory: MemoryCluster) -> None:
    """No node answers at all, not even where the log is: the caller's time is the caller's."""
    async with connect(memory) as cluster, contextlib.AsyncExitStack() as pauses:
        for node in memory.nodes.values():
            pauses.enter_context(node.paused())
        async with asyncio.timeout(5):  # without a limit of its own it has ten seconds
            with pytest.raises((DeadlineExceeded, Unreachable)):
                await cluster.log("orders").tail(timeout_s=0.2)


async def test_the_tail_waits_for_what_passes_and_fails_for_what_does_not(
    memory: MemoryCluster,
) -> None:
    """LogUnavailable may pass; when the time is up it is told."""
    node = memory.nodes["n1"]
    async with connect(memory) as cluster:
        log = cluster.log("orders")
        node.faults.find_tail_errors.extend([LogUnavailable("moving")] * 3)
        assert await log.tail() == 0
        node.faults.find_tail_error = LogUnavailable("gone")
        with pytest.raises(LogUnavailable, match="gone"):
            await log.tail(timeout_s=1.0)
