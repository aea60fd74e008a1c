"""Reads at a segment's end, for a repair, and of headers alone."""

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
)

from loglet.config import LogServerConfig
from loglet.messages import CommittedTail, StoreRequest
from sharedlog.batch import (
    HEADERS_BYTES,
    NO_PRODUCER,
    BatchBuilder,
    BatchProducer,
    Placement,
    parse_batch_header,
    parse_placement,
    parse_producer,
    place_batch,
)
from sharedlog.errors import ProtocolError
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.read_answer import DAMAGED, HOLE, ReadAnswer
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1.log_server_pb2 import ReadGap, ReadLogletRequest

ReadStream = ClientStream[ReadLogletRequest, ReadAnswer]
BATCHES = [placed(0, 2), placed(2, 3), placed(5), placed(6, 2)]


@pytest.fixture(params=["grpc", "loopback", "from disk"])
async def served(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """A log server that holds [0, 8) of LOGLET, committed up to 2 as far as it knows."""
    config = LogServerConfig(
        tail_cache_bytes=0 if request.param == "from disk" else 1 << 20,
        heartbeat_s=0.05,
        reserve_bytes=0,
    )
    async with serve(open_store(tmp_path), config, loopback=request.param == "loopback") as server:
        await server.store_all(request_of(BATCHES))
        yield server


def request_of(batches: list[bytes]) -> StoreRequest:
    message = request(batches, opens=[opened()])
    message.committed = [CommittedTail(LOGLET, Offset(2))]
    return message


async def messages(stream: ReadStream) -> list[ReadAnswer]:
    """Everything until the end."""
    found: list[ReadAnswer] = []
    async with asyncio.timeout(WAIT_S):
        while (message := await stream.receive()) is not None:
            found.append(message)
    stream.cancel()
    return found


def batches(found: list[ReadAnswer]) -> list[bytes]:
    return [placed for message in found for placed in message.batches]


def gaps(found: list[ReadAnswer]) -> list[tuple[ReadGap.Reason.ValueType, int, int]]:
    return [it.gap for it in found if it.gap is not None]


def told_ends(found: list[ReadAnswer]) -> list[int | None]:
    return [it.told_end for it in found]


async def parked(server: Served, loglet: LogletId = LOGLET, start: int = 0) -> ReadStream:
    """A follower that has got all that there is, and waits."""
    stream = await server.read(start, loglet=loglet)
    async with asyncio.timeout(WAIT_S):
        while (message := await stream.receive()) is not None and message.batches:
            pass
    return stream


async def test_a_parked_reader_gets_all_up_to_the_end_and_hears_of_it(served: Served) -> None:
    """Field note 8: pushed, not polled; the last message names the end, and the stream ends."""
    stream = await parked(served)
    await served.tell_ends((LOGLET, 6))
    found = await messages(stream)
    assert batches(found) == BATCHES[1:3]
    assert [it.committed_tail for it in found] == [2] * len(found), "the end is kept apart"
    assert told_ends(found)[-1] == 6
    assert all(end is None for end in told_ends(found)[:-1])


async def test_nothing_beyond_the_end_is_served(served: Served) -> None:
    """Field note 7: what a loser left beyond the end is invisible, for a repair as well."""
    await served.seal()
    await served.tell_ends((LOGLET, 5))
    for start, end, for_repair in ((0, None, False), (0, 8, False), (0, None, True), (0, 8, True)):
        found = await messages(await served.read(start, end=end, for_repair=for_repair))
        assert batches(found) == BATCHES[:2]
        assert told_ends(found)[-1] == 5
        assert not gaps(found)


@pytest.mark.parametrize("start", [5, 6, 90])
async def test_a_read_at_or_after_the_end_hears_of_it_at_once(served: Served, start: int) -> None:
    """Field note 8: nobody waits for what will never come."""
    await served.tell_ends((LOGLET, 5))
    (message,) = await messages(await served.read(start))
    assert (message.told_end, list(message.batches)) == (5, [])


async def test_a_read_that_ends_before_the_end_is_as_ever(served: Served) -> None:
    """A bounded read needs to know nothing of the segment's end; below it all is committed."""
    await served.tell_ends((LOGLET, 6))
    found = await messages(await served.read(0, end=5))
    assert batches(found) == BATCHES[:2]
    assert told_ends(found)[-1] is None
    found = await messages(await served.read(0, no_wait=True))
    assert batches(found) == BATCHES[:3]
    assert told_ends(found)[-1] == 6


async def test_the_readers_end_must_be_the_told_one(served: Served) -> None:
    """An end never changes: two of them mean that somebody is mistaken, and nothing is served."""
    await served.tell_ends((LOGLET, 6))
    assert batches(await messages(await served.read(0, segment_end=6))) == BATCHES[:3]
    with pytest.raises(ProtocolError, match="ended at 6, not 5"):
        await messages(await served.read(0, segment_end=5))


async def test_a_lagging_server_says_what_it_lacks_of_an_ended_segment(served: Served) -> None:
    """A reader at a server that was skipped goes elsewhere, and does not wait for ever."""
    stream = await parked(served, start=0)
    await served.tell_ends((LOGLET, 9))
    found = await messages(stream)
    assert batches(found) == BATCHES[1:]
    assert gaps(found) == [(HOLE, 8, 9)]


async def test_readers_of_an_unknown_loglet_hear_of_its_end(served: Served) -> None:
    """Field note 8: a server that never heard of the segment frees those who wait at it."""
    waiting = await parked(served, OTHER, 3)
    beyond = await parked(served, OTHER, 7)
    await served.tell_ends((OTHER, 7))
    assert gaps(await messages(waiting)) == [(HOLE, 3, 7)]
    assert told_ends(await messages(beyond)) == [7]
    later = await served.read(7, loglet=OTHER)
    async with asyncio.timeout(WAIT_S):
        message = await later.receive()
    assert message is not None
    assert message.told_end is None, "nothing is kept of a loglet that is not known"
    later.cancel()


async def test_for_a_repair_all_that_is_held_is_served(served: Served) -> None:
    """Committed or not, up to the local tail; then the stream ends."""
    await served.seal()
    found = await messages(await served.read(2, for_repair=True))
    assert batches(found) == BATCHES[1:]
    assert told_ends(found)[-1] is None
    assert batches(await messages(await served.read(2, end=6, for_repair=True))) == BATCHES[1:3]
    (message,) = await messages(await served.read(8, for_repair=True))
    assert (list(message.batches), message.committed_tail) == ([], 2)
    assert (await served.seal()).committed_tail == 2


@pytest.mark.parametrize("loglet", [LOGLET, OTHER])
async def test_without_a_seal_nothing_is_served_for_a_repair(
    served: Served, loglet: LogletId
) -> None:
    """Field note 2: what an unsealed server holds or lacks proves nothing."""
    with pytest.raises(ProtocolError, match="not sealed"):
        await messages(await served.read(0, loglet=loglet, for_repair=True))


async def test_for_a_repair_holes_are_said(served: Served) -> None:
    """Field note 5: a hole is a typed gap with its range, and no end."""
    push = request([placed(20, committed=2)])
    push.committed = [CommittedTail(LOGLET, Offset(20))]
    await served.store_all(push)
    await served.seal()
    found = await messages(await served.read(5, for_repair=True))
    assert batches(found) == BATCHES[2:]
    assert gaps(found) == [(HOLE, 8, 20)]
    assert batches(await messages(await served.read(20, for_repair=True))) == [
        placed(20, committed=2)
    ]


async def test_headers_are_sent_without_their_records(served: Served) -> None:
    """Who made which batch, and where it lies: all that tells a repetition from a new batch."""
    producer = BatchProducer(77, 1, 5)
    builder = BatchBuilder()
    builder.append(b"value")
    batch = builder.encode(producer)
    placement = Placement(LOGLET, Offset(8), 1, 2_000, Offset(2), parse_batch_header(batch).crc32c)
    await served.store_all(request([place_batch(placement, batch)]))
    await served.tell_ends((LOGLET, 9))
    found = batches(await messages(await served.read(0, headers_only=True)))
    assert found[:4] == [placed[:HEADERS_BYTES] for placed in BATCHES]
    assert [parse_placement(it).first for it in found] == [0, 2, 5, 6, 8]
    assert [parse_producer(it) for it in found] == [*[NO_PRODUCER] * 4, producer]


@pytest.mark.parametrize("headers_only", [True, False])
async def test_damage_is_said_for_a_repair_and_under_headers(
    tmp_path: Path, headers_only: bool
) -> None:
    """Field notes 5 and 24: a batch whose payload is damaged is no source, not even of a header."""
    whole = [placed(0), placed(1, 3, text="needle"), placed(4)]
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request(whole, opens=[opened()]))
        await server.seal()
    damage_file(tmp_path, b"needle")
    async with serve(open_store(tmp_path)) as server:
        size = HEADERS_BYTES if headers_only else None
        stream = await server.read(0, for_repair=True, headers_only=headers_only)
        found = await messages(stream)
        assert batches(found) == [whole[0][:size]]
        assert gaps(found) == [(DAMAGED, 1, 4)]
        stream = await server.read(4, for_repair=True, headers_only=headers_only)
        assert batches(await messages(stream)) == [whole[2][:size]]
