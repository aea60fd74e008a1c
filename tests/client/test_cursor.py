"""A durable cursor, from its owner's side, against nodes in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from helpers.memory_server import MemoryCluster, memory_cluster

import sharedlog
from sharedlog.errors import (
    CursorLost,
    CursorNotFound,
    InvalidArgument,
    LogNotFound,
    MetadataUnavailable,
)

VALUES = [b"%d" % index for index in range(10)]


@pytest.fixture
async def memory() -> AsyncIterator[MemoryCluster]:
    async with memory_cluster() as cluster:
        cluster.fill("orders", VALUES)
        yield cluster


@pytest.fixture
async def cluster(memory: MemoryCluster) -> AsyncIterator[sharedlog.Cluster]:
    config = sharedlog.ClientConfig(backoff_min_s=0.001, backoff_max_s=0.01)
    async with sharedlog.connect(memory.address, config=config) as connected:
        yield connected


@pytest.fixture
async def hasty(memory: MemoryCluster) -> AsyncIterator[sharedlog.Cluster]:
    """One that has no time for a second try, for writes that are to fail: a try that its deadline
    cuts short would fail for that reason."""
    config = sharedlog.ClientConfig(timeout_s=1.0, backoff_min_s=2.0, backoff_max_s=2.0)
    async with sharedlog.connect(memory.address, config=config) as connected:
        yield connected


async def take(cursor: sharedlog.Cursor, count: int) -> list[int]:
    return [record.offset async for record in cursor.read(limit=count)]


@pytest.mark.parametrize("routing", ["smart", "plain"])
async def test_who_comes_next_goes_on_where_the_one_before_committed(
    memory: MemoryCluster, routing: sharedlog.cluster.Routing
) -> None:
    """In either routing: what was committed is not handed out again, and what was not is."""
    async with sharedlog.connect(memory.address, routing=routing) as cluster:
        log = cluster.log("orders")
        async with log.cursor("billing", start=2) as cursor:
            assert (cursor.position, cursor.epoch) == (2, 1)
            assert await take(cursor, 3) == [2, 3, 4]
            await cursor.commit()
            assert await take(cursor, 2) == [5, 6]
        async with log.cursor("billing", start=0) as cursor:
            assert (cursor.position, cursor.epoch) == (5, 2)
            assert await cursor.lag() == 5
            assert [record.offset async for record in cursor.read()] == [5, 6, 7, 8, 9]


async def test_the_older_owner_is_told_and_moves_nothing(cluster: sharedlog.Cluster) -> None:
    """Its next write fails with where the cursor is; so does everything it does afterwards."""
    log = cluster.log("orders")
    async with log.cursor("billing", commit_every_s=0, owner_name="old") as old:
        await take(old, 2)
        await old.commit()
        async with log.cursor("billing", commit_every_s=0, owner_name="new") as new:
            await take(new, 3)
            await new.commit()
            await take(old, 1)
            with pytest.raises(CursorLost) as lost:
                await old.commit()
            assert (lost.value.position, lost.value.epoch, lost.value.owner) == (5, 2, "new")
            with pytest.raises(CursorLost):
                await old.seek(0)
            with pytest.raises(CursorLost):
                await old.flush()
            assert (await log.cursors.get("billing")).position == 5


async def test_commits_are_written_together(
    memory: MemoryCluster, cluster: sharedlog.Cluster
) -> None:
    """Many commits are few writes; leaving the block writes the last."""
    log = cluster.log("orders")
    async with log.cursor("billing", commit_every_s=3600) as cursor:
        opened = memory.metadata.puts
        async for _ in cursor.read():
            await cursor.commit()
        assert cursor.next_offset == 10
        await asyncio.sleep(0.02)  # the first goes out at once
        assert memory.metadata.puts - opened <= 1
    assert memory.metadata.puts - opened <= 2
    assert (await log.cursors.get("billing")).position == 10


async def test_what_is_committed_is_written_by_itself_in_time(
    memory: MemoryCluster, cluster: sharedlog.Cluster
) -> None:
    """Within `commit_every_s`, without anybody's flush; a store that is away is tried again."""
    log = cluster.log("orders")
    async with log.cursor("billing", commit_every_s=0.005) as cursor:
        memory.metadata.refused_puts = 3
        for position in (3, 5, 8):
            await cursor.commit(position)
        async with asyncio.timeout(5):
            while cursor.position != 8:  # noqa: ASYNC110  nothing tells of a write
                await asyncio.sleep(0.005)
    assert (await log.cursors.get("billing")).position == 8


async def test_a_write_whose_answer_was_lost_is_made_once(
    memory: MemoryCluster, cluster: sharedlog.Cluster
) -> None:
    """Opening, committing and seeking: the repeat finds its own doing."""
    log = cluster.log("orders")
    memory.metadata.lost_answers = 1
    async with log.cursor("billing", commit_every_s=0) as cursor:
        assert cursor.epoch == 1
        memory.metadata.lost_answers = 1
        await cursor.commit(4)
        memory.metadata.lost_answers = 1
        await cursor.seek(2)
        assert cursor.position == 2
    assert (await log.cursors.get("billing")).position == 2


async def test_a_write_that_was_not_cleared_up_is_followed_by_one_that_says_as_much(
    memory: MemoryCluster, hasty: sharedlog.Cluster
) -> None:
    """A seek back that failed is still a seek back when it is written at last."""
    log = hasty.log("orders")
    async with log.cursor("billing", commit_every_s=0) as cursor:
        await cursor.commit(8)
        memory.metadata.refused_puts = 10_000
        with pytest.raises(MetadataUnavailable):
            await cursor.seek(3)
        memory.metadata.refused_puts = 0
        await cursor.commit(4)
        assert cursor.position == 4


async def test_a_position_runs_back_only_by_seek(cluster: sharedlog.Cluster) -> None:
    """A commit below an earlier one is refused before anything is sent; seek moves reading too."""
    log = cluster.log("orders")
    async with log.cursor("billing") as cursor:
        assert await take(cursor, 5) == [0, 1, 2, 3, 4]
        await cursor.commit()
        with pytest.raises(InvalidArgument, match="seek"):
            await cursor.commit(4)
        await cursor.seek(1)
        assert (cursor.position, cursor.next_offset) == (1, 1)
        assert await take(cursor, 2) == [1, 2]
        await cursor.commit()
    assert (await log.cursors.get("billing")).position == 3


async def test_an_operator_may_seek_list_and_delete(cluster: sharedlog.Cluster) -> None:
    """Whoever has the cursor then loses it."""
    log = cluster.log("orders")
    async with log.cursor("a") as first, log.cursor("b", start=7):
        names = [(it.name, it.position) for it in await log.cursors.list()]
        assert names == [("a", 0), ("b", 7)]
        assert (await log.cursors.seek("a", 6)).position == 6
        await first.commit(8)
        with pytest.raises(CursorLost) as lost:
            await first.flush()
        assert lost.value.owner == "seek"
        assert await log.cursors.delete("b")
        assert not await log.cursors.delete("b")
    with pytest.raises(CursorNotFound):
        await log.cursors.get("b")
    with pytest.raises(CursorNotFound):
        await log.cursors.seek("b", 1)


async def test_of_owners_that_come_at_once_the_last_has_it(cluster: sharedlog.Cluster) -> None:
    """Each opening succeeds, in some order; every owner but the last is told at its next write."""
    log = cluster.log("orders")
    cursors = [log.cursor("billing", commit_every_s=0) for _ in range(5)]
    await asyncio.gather(*(cursor.open() for cursor in cursors))
    assert sorted(cursor.epoch for cursor in cursors) == [1, 2, 3, 4, 5]
    found = await asyncio.gather(
        *(cursor.commit(5 + cursor.epoch) for cursor in cursors), return_exceptions=True
    )
    assert sum(error is None for error in found) == 1
    assert sum(isinstance(error, CursorLost) for error in found) == 4
    assert (await log.cursors.get("billing")).position == 10
    for cursor in cursors:
        await cursor.close()


async def test_the_callers_own_error_comes_first(
    memory: MemoryCluster, hasty: sharedlog.Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """What was committed before it is written all the same; that it could not be is only logged."""
    log = hasty.log("orders")

    async def fail(position: int, *, refused_puts: int) -> None:
        async with log.cursor("billing", commit_every_s=3600) as cursor:
            memory.metadata.refused_puts = refused_puts
            await cursor.commit(position)
            raise KeyError

    with pytest.raises(KeyError):
        await fail(3, refused_puts=0)
    assert (await log.cursors.get("billing")).position == 3
    with pytest.raises(KeyError):
        await fail(4, refused_puts=10_000)
    assert "cursor.not_written" in caplog.messages


async def test_a_cancelled_owner_writes_what_it_committed(cluster: sharedlog.Cluster) -> None:
    """Applications end by cancellation; what they had done by then is not done again."""
    log = cluster.log("orders")
    committed = asyncio.Event()

    async def work() -> None:
        async with log.cursor("billing", commit_every_s=3600) as cursor:
            await cursor.commit(1)
            await cursor.commit(7)
            committed.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await committed.wait()
    working.cancel()
    await asyncio.wait({working})
    assert working.cancelled()
    assert (await log.cursors.get("billing")).position == 7


async def test_what_cannot_be_is_refused(cluster: sharedlog.Cluster) -> None:
    """Names, positions, use before opening and after closing, a log that does not exist."""
    log = cluster.log("orders")
    with pytest.raises(InvalidArgument):
        log.cursor("c", start=-1)
    with pytest.raises(InvalidArgument):
        log.cursor("c", commit_every_s=-1)
    with pytest.raises(InvalidArgument, match="no cursor's name"):
        await log.cursor("a/b").open()
    with pytest.raises(LogNotFound):
        await cluster.log("nothing").cursor("c").open()
    cursor = log.cursor("c")
    with pytest.raises(InvalidArgument, match="not open"):
        await cursor.commit(1)
    await cursor.close()
    cursor = log.cursor("c")
    await cursor.open()
    with pytest.raises(InvalidArgument, match="opened before"):
        await cursor.open()
    with pytest.raises(InvalidArgument):
        await cursor.commit(-1)
    await cursor.close()
    await cursor.close()
    with pytest.raises(InvalidArgument, match="closed"):
        await cursor.commit(1)


async def test_leaving_the_cluster_lets_cursors_go(memory: MemoryCluster) -> None:
    """No timer and no task outlives it."""
    async with sharedlog.connect(memory.address) as cluster:
        cursor = await cluster.log("orders").cursor("billing", commit_every_s=0.001).open()
        await cursor.commit(3)
    with pytest.raises(InvalidArgument, match="closed"):
        await cursor.commit(4)
