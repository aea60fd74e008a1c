"""Reading from threads: ahead, but not far; in the reader's thread what is the reader's; ended."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator

import pytest
from helpers.memory_thread import MemoryThread, memory_thread, until

import sharedlog.sync
from sharedlog.batch import Record
from sharedlog.errors import LogUnavailable, SharedLogError, Unreachable
from sharedlog.ids import Offset
from sharedlog.sync.read_ahead import AHEAD_BYTES, ReadAhead

VALUES = [b"%03d" % i for i in range(1_000)]


@pytest.fixture
def memory() -> Iterator[MemoryThread]:
    with memory_thread("orders", "empty") as cluster:
        cluster.call(lambda: cluster.memory.fill("full", VALUES, batch=7))
        yield cluster


def record(value: bytes) -> Record:
    return Record(Offset(0), value, None, {}, 0)


def test_records_and_batches(memory: MemoryThread) -> None:
    """All of them, in order, each way."""
    with sharedlog.sync.connect(memory.address) as cluster:
        log = cluster.log("full")
        assert [r.value for r in log.read()] == VALUES
        assert [r.offset for r in log.read(3, 10)] == list(range(3, 10))
        assert [len(batch) for batch in log.read_batches(3, 20)] == [4, 7, 6]
        assert next(log.read(start=5)).value == b"005"
        assert list(cluster.log("empty").read()) == []


def test_a_read_starts_with_its_first_record(memory: MemoryThread) -> None:
    """As an asyncio one does: no error before, and no stream."""
    with sharedlog.sync.connect(memory.address) as cluster:
        records = cluster.log("full").read(start=-1)
        assert not cluster._bridge._streams
        with pytest.raises(sharedlog.OffsetOutOfRange):
            next(records)


def test_leaving_the_loop_ends_the_stream(memory: MemoryThread) -> None:
    """By `break`, by `close`, or by letting go of it."""
    with sharedlog.sync.connect(memory.address) as cluster:
        log, bridge = cluster.log("full"), cluster._bridge
        for found in log.read(follow=True):
            if found.offset == 20:
                break
        until(lambda: not bridge._streams)
        records = log.read(follow=True)
        next(records)
        assert bridge._streams
        records.close()
        until(lambda: not bridge._streams)
        records = log.read(follow=True)
        next(records)
        del records
        until(lambda: not bridge._streams)


def test_a_follower_gets_what_comes_and_ends_with_the_cluster(memory: MemoryThread) -> None:
    """A thread that waits for records is told when the cluster is closed, and holds nothing up."""
    got: list[bytes] = []
    errors: list[SharedLogError] = []
    with sharedlog.sync.connect(memory.address) as cluster:
        log = cluster.log("orders")

        def follow() -> None:
            try:
                for record in log.read(follow=True):
                    got.append(record.value)  # noqa: PERF401  # seen while it follows
            except SharedLogError as error:
                errors.append(error)

        following = threading.Thread(target=follow)
        following.start()
        for i in range(10):
            log.append(b"%d" % i)
        until(lambda: len(got) == 10)
    following.join()
    assert got == [b"%d" % i for i in range(10)]
    assert [type(error) for error in errors] == [Unreachable]


def test_callbacks_are_called_by_the_reader(memory: MemoryThread) -> None:
    """`on_stale` runs where the records are used, and may itself use the client."""
    for node in memory.memory.nodes.values():
        node.faults.find_tail_error = LogUnavailable("no sequencer")
    config = sharedlog.ClientConfig(timeout_s=1.0)
    told: list[tuple[str, threading.Thread, int]] = []
    with sharedlog.sync.connect(memory.address, config=config) as cluster:
        log = cluster.log("full")

        def on_stale(why: str) -> None:
            told.append((why, threading.current_thread(), log.known_tail()))

        assert [r.value for r in log.read(990, on_stale=on_stale)] == VALUES[990:]
    assert len(told) == 1
    assert "no sequencer" in told[0][0]
    assert told[0][1] is threading.current_thread()
    assert told[0][2] == 1_000


async def endless(made: list[int], batch: list[Record]) -> AsyncGenerator[list[Record], None]:
    while True:
        made.append(len(batch))
        yield batch


async def until_true(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await asyncio.sleep(0)


@pytest.mark.parametrize(("count", "size"), [(1, 100_000), (50, 10_000), (5_000, 100), (1, 0)])
async def test_reading_ahead_has_a_bound(count: int, size: int) -> None:
    """A reader that does not read makes the client read some MiB and then wait, whatever the
    batches' size; when it takes them, more comes."""
    made: list[int] = []
    ahead: ReadAhead[list[Record]] = ReadAhead(asyncio.get_running_loop())
    pulling = asyncio.create_task(ahead.pull(endless(made, [record(bytes(size))] * count)))
    await until_true(lambda: ahead._waits)
    held = len(made)
    assert held * count * size <= AHEAD_BYTES + count * size
    assert len(ahead.take()) == held
    await until_true(lambda: len(made) > held)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling


async def test_what_was_read_before_a_failure_is_handed_out_first() -> None:
    """And then the failure is raised, each time that one asks."""

    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        raise LogUnavailable("gone")

    ahead: ReadAhead[int] = ReadAhead(asyncio.get_running_loop())
    await ahead.pull(failing())
    assert ahead.take() == [1, 2]
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            ahead.take()
