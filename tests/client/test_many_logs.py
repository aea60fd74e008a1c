"""A client with many logs: what it lets go of, and logs that are made by their first append."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable

import pytest
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.errors import InvalidArgument, LogNotFound, LogUnavailable
from sharedlog.idle_sessions import IdleSessions


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        yield cluster


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other tasks make true."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  there is no event for each of these
            await asyncio.sleep(0.005)


def appender_tasks() -> list[str]:
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("append")]


async def test_an_idle_log_has_no_task(memory: MemoryCluster) -> None:
    """Once its session has ended; the next append opens another and keeps its place in the order,
    for the producer is the same."""
    config = sharedlog.AppenderConfig(idle_s=0.02)
    memory.create("orders")
    async with sharedlog.connect(memory.address, append_config=config) as cluster:
        log = cluster.log("orders")
        assert await log.append(b"a") == 0
        await until(lambda: not appender_tasks())
        assert await log.append(b"b") == 1
        await until(lambda: not appender_tasks())
    first, second = memory.nodes["n1"].openings
    assert first.producer_id == second.producer_id
    assert (first.next_sequence, second.next_sequence) == (0, 1)


async def test_idle_sessions_are_bounded(memory: MemoryCluster) -> None:
    """Those that were used longest ago are let go; those that are used stay."""
    config = sharedlog.ClientConfig(idle_sessions_max=3)
    names = [f"log{index}" for index in range(10)]
    for name in names:
        memory.create(name)
    async with sharedlog.connect(memory.address, config=config) as cluster:
        for name in names:
            assert await cluster.log(name).append(b"x") == 0
            assert await cluster.log("log0").append(b"y") >= 1
        await until(lambda: len(appender_tasks()) <= 2 * 3)
        opened = memory.nodes["n1"].sessions_opened
        assert opened == len(names), "the one that was used all the while had one session"
        assert await cluster.log("log9").append(b"z") == 1
        assert memory.nodes["n1"].sessions_opened == opened
        assert await cluster.log("log1").append(b"z") == 1
        assert memory.nodes["n1"].sessions_opened == opened + 1


def test_the_one_that_is_idle_for_longest_is_let_go() -> None:
    """In the order in which they became idle, which is anew each time."""
    gone: list[str] = []

    class Session:
        def __init__(self, name: str) -> None:
            self.name = name

        def let_go(self) -> None:
            gone.append(self.name)

    a, b, c = Session("a"), Session("b"), Session("c")
    idle = IdleSessions(2)
    idle.add(a)
    idle.add(b)
    idle.discard(a)
    idle.add(a)
    idle.add(a)
    assert not gone
    idle.add(c)
    assert gone == ["b"]
    assert len(idle) == 2
    idle.discard(b)
    assert len(idle) == 2


async def test_logs_that_nobody_holds_are_forgotten(memory: MemoryCluster) -> None:
    """But for the last that were asked for, and those with an append under way."""
    config = sharedlog.ClientConfig(logs_kept_max=2)
    append_config = sharedlog.AppenderConfig(idle_s=0.02)
    for name in ("a", "b", "c", "d"):
        memory.create(name)
    async with sharedlog.connect(
        memory.address, config=config, append_config=append_config
    ) as cluster:
        held = cluster.log("a")
        for name in ("b", "c", "d"):
            await cluster.log(name).append(b"x")
        assert cluster.log("a") is held
        assert cluster.log("d") is cluster.log("d")
        await until(lambda: not appender_tasks())
        gc.collect()
        assert {name for name, _ in cluster._logs} == {"a", "d"}
        assert await cluster.log("b").append(b"y") == 1
        with memory.nodes["n1"].held_acks():
            append = asyncio.create_task(cluster.log("c").append(b"y"))
            await asyncio.sleep(0.01)
            for name in ("a", "b", "d"):
                cluster.log(name)
            gc.collect()
            assert ("c", False) in cluster._logs
        assert await append == 1


async def test_closing_waits_for_appends_to_any_number_of_logs(memory: MemoryCluster) -> None:
    """Those that were cancelled too: the write goes on."""
    names = [f"log{index}" for index in range(100)]
    for name in names:
        memory.create(name)
    config = sharedlog.ClientConfig(logs_kept_max=1)
    async with sharedlog.connect(memory.address, config=config) as cluster:
        with memory.nodes["n1"].held_acks():
            appends = [asyncio.create_task(cluster.log(name).append(b"x")) for name in names]
            await until(lambda: memory.nodes["n1"].batches_received == len(names))
            for append in appends:
                append.cancel()
            await asyncio.wait(appends)
        del appends, append
    assert all(memory.logs[name].tail == 1 for name in names)


# Made by the first append.


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_the_first_append_makes_the_log(
    memory: MemoryCluster, routing: sharedlog.cluster.Routing
) -> None:
    """By `append`, `append_batch` or an appender; nothing else makes it, and never unasked."""
    async with sharedlog.connect(memory.address, routing=routing) as cluster:
        with pytest.raises(LogNotFound):
            await cluster.log("a").append(b"x")
        log = cluster.log("a", create=True)
        with pytest.raises(LogNotFound):
            await log.tail()
        with pytest.raises(LogNotFound):
            _ = [record async for record in log.read()]
        assert not memory.logs
        assert await log.append(b"x") == 0
        assert await cluster.log("a").append(b"y") == 1
        assert await cluster.log("b", create=True).append_batch([b"x", b"y"]) == range(2)
        async with cluster.log("c", create=True).appender() as appender:
            await appender.append_many([b"x"] * 10)
        assert await cluster.log("c").tail() == 10
        assert sorted(memory.logs) == ["a", "b", "c"]


async def test_that_a_log_is_to_be_made_is_said_by_who_asks(memory: MemoryCluster) -> None:
    """One part of a program that makes logs does not change what another one does."""
    async with sharedlog.connect(memory.address) as cluster:
        assert cluster.log("a", create=True) is cluster.log("a", create=True)
        assert cluster.log("a", create=True) is not cluster.log("a")
        with pytest.raises(LogNotFound):
            await cluster.log("a").append(b"x")


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (InvalidArgument("its namespaces contradict"), InvalidArgument),
        (LogUnavailable("too few log servers"), LogUnavailable),
    ],
)
async def test_a_log_that_cannot_be_made_is_a_definite_failure(
    memory: MemoryCluster,
    error: sharedlog.SharedLogError,
    raised: type[sharedlog.SharedLogError],
) -> None:
    """For good, or at the deadline if it may pass: the record is in no log."""
    config = sharedlog.AppenderConfig(timeout_s=1.0)
    async with sharedlog.connect(memory.address, append_config=config) as cluster:
        for node in memory.nodes.values():
            node.faults.refuse_sessions.extend([error] * 100)
        with pytest.raises(raised):
            await cluster.log("a", create=True).append(b"x")
    assert not memory.logs


# Listing.


async def test_logs_are_listed_page_by_page(memory: MemoryCluster) -> None:
    """In short: a page says where the next one begins, and the iterator reads all of them."""
    names = [f"a/{index}" for index in range(7)]
    for name in (*names, "b/1"):
        memory.create(name)
    async with sharedlog.connect(memory.address) as cluster:
        page = await cluster.list_page("a/", limit=3)
        assert [log.name for log in page.logs] == names[:3]
        assert page.next_after == names[2]
        page = await cluster.list_page("a/", after=page.next_after, limit=100)
        assert [log.name for log in page.logs] == names[3:]
        assert page.next_after is None
        memory.page = 2
        assert [log.name async for log in cluster.iter_logs("a/")] == names
        assert [log.name async for log in cluster.iter_logs()] == [*names, "b/1"]
        assert [log.name async for log in cluster.iter_logs("c/")] == []
        for limit in (0, 1_001):
            with pytest.raises(InvalidArgument):
                await cluster.list_page(limit=limit)
