"""Read streams: what is committed, as soon as it is, and honest about the rest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.log_servers import (
    LOGLET,
    OTHER,
    WAIT_S,
    Served,
    damage_file,
    open_store,
    opened,
    placed,
    request,
    serve,
    until,
)

from loglet.config import LogServerConfig
from loglet.messages import CommittedTail, StoreRequest
from loglet.wire import read_query
from sharedlog.batch import PLACEMENT_BYTES
from sharedlog.errors import InvalidArgument, Overloaded, WrongStorage
from sharedlog.ids import Offset, StorageId
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.read_answer import DAMAGED, HOLE, Gap, ReadAnswer
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1 import log_server_pb2

ReadStream = ClientStream[log_server_pb2.ReadLogletRequest, ReadAnswer]
FAST = LogServerConfig(heartbeat_s=0.05, reserve_bytes=0)


def learn(tail: int, *batches: bytes) -> StoreRequest:
    message = request(batches)
    message.committed = [CommittedTail(LOGLET, Offset(tail))]
    return message


@pytest.fixture(params=[16 * 1024 * 1024, 0], ids=["from memory", "from disk"])
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A log server with LOGLET open, with the tail cache and without."""
    config = LogServerConfig(tail_cache_bytes=request.param, heartbeat_s=0.05, reserve_bytes=0)
    async with serve(open_store(tmp_path), config) as server:
        await server.store_all(StoreRequest(server.storage_id, learn(0).sequencer, [opened()]))
        yield server


async def drain(
    stream: ReadStream,
) -> tuple[list[bytes], list[Gap], int]:
    """Everything until the end: batches, gaps, and the committed tail that was told last."""
    batches: list[bytes] = []
    gaps: list[Gap] = []
    tail = -1
    async with asyncio.timeout(WAIT_S):
        while (message := await stream.receive()) is not None:
            batches += message.batches
            tail = message.committed_tail
            if message.gap is not None:
                gaps.append(message.gap)
    stream.cancel()
    return batches, gaps, tail


async def next_batches(stream: ReadStream, count: int) -> list[bytes]:
    """The next batches, heartbeats left out."""
    found: list[bytes] = []
    async with asyncio.timeout(WAIT_S):
        while len(found) < count:
            message = await stream.receive()
            assert message is not None
            assert message.gap is None
            found += message.batches
    return found


async def test_only_what_is_committed_is_read(served: Served) -> None:
    """A batch that is held and not known to be committed is invisible."""
    batches = [placed(0, 2), placed(2), placed(3, 4)]
    await served.store_all(request(batches))
    assert await drain(await served.read(0, no_wait=True)) == ([], [], 0)
    await served.store_all(learn(3))
    assert await drain(await served.read(0, no_wait=True)) == (batches[:2], [], 3)
    assert await drain(await served.read(1, end=2)) == (batches[:1], [], 3)
    assert await drain(await served.read(2, end=3)) == (batches[1:2], [], 3)
    assert await drain(await served.read(3, no_wait=True)) == ([], [], 3)


async def test_a_segments_end_is_proof(served: Served) -> None:
    """Field note 8: everything below the told end is served; it is no committed tail of ours."""
    batches = [placed(0, 2), placed(2, 3)]
    await served.store_all(request(batches))
    await served.seal()
    assert await drain(await served.read(0, segment_end=5)) == (batches, [], 0)
    assert await drain(await served.read(0, segment_end=2)) == (batches[:1], [], 0)
    assert (await served.seal()).committed_tail == 0
    stream = await served.read(0, segment_end=4)
    with pytest.raises(InvalidArgument):
        await drain(stream)


async def test_a_follower_is_woken_by_each_advance(served: Served) -> None:
    """Field notes 38 and 39: pushed and not polled, by a placement's tail and by a pushed one."""
    streams = [await served.read(0) for _ in range(20)]
    for stream in streams:
        first = await stream.receive()
        assert first is not None
        assert (list(first.batches), first.committed_tail) == ([], 0)
    one, two = placed(0, 2), placed(2, committed=2)
    await served.store_all(request([one]), request([two]))
    assert [await next_batches(it, 1) for it in streams] == [[one]] * 20
    await served.store_all(learn(3))
    assert [await next_batches(it, 1) for it in streams] == [[two]] * 20
    for stream in streams:
        stream.cancel()


async def test_an_idle_stream_has_a_heartbeat(served: Served) -> None:
    """The client learns that the server lives, and the committed tail."""
    await served.store_all(learn(7))
    stream = await served.read(9)
    async with asyncio.timeout(WAIT_S):
        beats = [await stream.receive() for _ in range(3)]
    assert [(it.committed_tail, len(it.batches)) for it in beats if it is not None] == [(7, 0)] * 3
    stream.cancel()


async def test_a_hole_is_said(served: Served) -> None:
    """A legal hole is a gap with its range, after what is sound; the stream ends there."""
    await served.store_all(request([placed(0)]), learn(10, placed(10)), learn(11))
    batches, (gap,), _ = await drain(await served.read(0))
    assert batches == [placed(0)]
    assert (gap.reason, gap.first, gap.end) == (HOLE, 1, 10)
    _, (gap,), _ = await drain(await served.read(5, end=8))
    assert (gap.reason, gap.first, gap.end) == (HOLE, 5, 8)
    assert await drain(await served.read(10, end=11)) == ([placed(10)], [], 11)


async def test_what_is_committed_and_not_here_is_a_hole(served: Served) -> None:
    """A server that was skipped knows what it lacks, and does not let the reader wait."""
    await served.store_all(learn(6))
    _, (gap,), tail = await drain(await served.read(0))
    assert (gap.reason, gap.first, gap.end, tail) == (HOLE, 0, 6, 6)
    _, (gap,), tail = await drain(await served.read(3, loglet=OTHER, segment_end=9))
    assert (gap.reason, gap.first, gap.end, tail) == (HOLE, 3, 9, 0)


async def test_a_reader_may_come_before_the_loglet(served: Served) -> None:
    """An unknown loglet is one that was not opened yet: the reader waits for it."""
    stream = await served.read(4, loglet=OTHER)
    first = await stream.receive()
    assert first is not None
    batch = placed(4, loglet=OTHER)
    message = request([batch], opens=[opened(OTHER, 4)])
    await served.store_all(message)
    push = request()
    push.committed = [CommittedTail(OTHER, Offset(5))]
    await served.store_all(push)
    assert await next_batches(stream, 1) == [batch]
    stream.cancel()


@pytest.mark.parametrize("follows", [True, False])
async def test_only_who_waits_for_the_tail_is_told_of(tmp_path: Path, *, follows: bool) -> None:
    """Each tail that is pushed at once is a message. A long read of what is committed, as the
    archive's, needs none of them."""
    config = LogServerConfig(read_message_bytes=1)
    async with serve(open_store(tmp_path), config, loopback=True) as server:
        batches = [placed(it) for it in range(20)]
        await server.store_all(request(batches, opens=[opened()]), learn(20))
        stream = await server.read(0, no_wait=not follows)
        assert await next_batches(stream, 1) == batches[:1]  # there are more, so it is open
        answers = await server.store_all(request([placed(20)]))
        assert [it.watched for answer in answers for it in answer.stored] == [follows]
        stream.cancel()
        await until(lambda: server.server.status().open_reads == 0)
        answers = await server.store_all(request([placed(21)]))
        assert [it.watched for answer in answers for it in answer.stored] == [False]


async def test_long_reads_come_in_bounded_messages(tmp_path: Path) -> None:
    """Messages hold about as many bytes as configured, at least one batch, and nothing is lost."""
    config = LogServerConfig(read_message_bytes=10_000, tail_cache_bytes=50_000)
    batches = [placed(it, 1, record_bytes=3_000 if it % 10 else 30_000) for it in range(100)]
    async with serve(open_store(tmp_path), config) as server:
        await server.store_all(request(batches, opens=[opened()]), learn(100))
        stream = await server.read(0, end=100)
        found: list[bytes] = []
        while (message := await stream.receive()) is not None:
            size = sum(map(len, message.batches))
            assert size <= 10_000 or len(message.batches) == 1
            found += message.batches
        assert found == batches


async def test_a_damaged_batch_is_said_and_never_sent(tmp_path: Path) -> None:
    """Field notes 5 and 24: a flipped bit is a typed gap of that batch alone."""
    batches = [placed(0, 2), placed(2, 3, text="needle"), placed(5)]
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request(batches, opens=[opened()]))
        assert (await server.seal()).local_tail == 6
    damage_file(tmp_path, b"needle")
    async with serve(open_store(tmp_path)) as server:
        found, (gap,), _ = await drain(await server.read(0, segment_end=6))
        assert found == batches[:1]
        assert (gap.reason, gap.first, gap.end) == (DAMAGED, 2, 5)
        found, (gap,), _ = await drain(await server.read(3, segment_end=6))
        assert (found, gap.first, gap.end) == ([], 3, 5)
        assert await drain(await server.read(5, segment_end=6)) == (batches[2:], [], 0)
        assert server.metric("damaged_batches_total") == 2
        answer = await server.seal()
        assert (answer.local_tail, answer.damaged) == (6, [(2, 5)]), "it keeps its place"


async def test_a_damaged_placement_still_has_its_range(tmp_path: Path) -> None:
    """If even the placement is damaged, the key says what the gap is, a hole behind it or not."""
    batches = [placed(0), placed(1, 3), placed(9, committed=9)]
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request(batches, opens=[opened()]))
    damage_file(tmp_path, batches[1][4:PLACEMENT_BYTES])
    async with serve(open_store(tmp_path)) as server:
        found, (gap,), _ = await drain(await server.read(0, segment_end=10))
        assert found == batches[:1]
        assert (gap.reason, gap.first, gap.end) == (DAMAGED, 1, 4)
        found, (gap,), _ = await drain(await server.read(2, segment_end=10))
        assert (found, gap.reason, gap.first, gap.end) == ([], DAMAGED, 2, 4)
        _, (gap,), _ = await drain(await server.read(4, segment_end=10))
        assert (gap.reason, gap.first, gap.end) == (HOLE, 4, 9)


async def test_open_reads_are_bounded(tmp_path: Path) -> None:
    """Everything has a maximum; a stream that ends makes room."""
    config = LogServerConfig(open_reads_max=1, heartbeat_s=0.05)
    async with serve(open_store(tmp_path), config) as server:
        first = await server.read(0)
        assert await first.receive() is not None
        with pytest.raises(Overloaded):
            await drain(await server.read(0))
        assert server.metric("open_reads") == 1
        first.cancel()
        await until(lambda: server.server.status().open_reads == 0)
        assert await drain(await server.read(0, no_wait=True)) == ([], [], 0)


async def test_a_read_names_its_store(served: Served) -> None:
    """Field note 20: a wiped disk does not serve what the old one had."""
    stream = served.transport.stream(served.address, READ_LOGLET)
    wire = log_server_pb2.ReadLogletRequest(storage_id="b" * 32)
    assert read_query(wire).storage_id == StorageId("b" * 32)
    await stream.send(wire)
    with pytest.raises(WrongStorage):
        await drain(stream)
