"""A log server that is asked for a moment looks where a reader would be served, no further."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.log_servers import LOGLET, ME, OTHER, Served, open_store, opened, placed, serve

from loglet.config import LogServerConfig
from loglet.messages import CommittedTail, StoreRequest
from loglet.wire import loglet_to_proto
from sharedlog.batch import parse_placement
from sharedlog.errors import Overloaded, ProtocolError, WrongStorage
from sharedlog.ids import Offset, StorageId
from sharedlog.rpc.methods import FIND_TIME
from sharedlog.v1 import log_server_pb2

BATCHES = [placed(0, 2), placed(2, 3), placed(5, 1), placed(6, 4)]  # at 1,000 ms + first


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A log server that holds BATCHES of LOGLET and knows that [0, 5) is committed."""
    config = LogServerConfig(reserve_bytes=0, open_reads_max=1)
    async with serve(open_store(tmp_path), config) as server:
        await server.store_all(StoreRequest(server.storage_id, ME, [opened()]))
        hint = [CommittedTail(LOGLET, Offset(5))]
        await server.store_all(StoreRequest(server.storage_id, ME, batches=BATCHES, committed=hint))
        yield server


def seen(answer: log_server_pb2.FindTimeResponse) -> tuple[int | None, int | None, int]:
    """Where the earlier one ends, where the later one begins, and how far was looked."""
    before = parse_placement(answer.before).end if answer.before else None
    after = parse_placement(answer.after).first if answer.after else None
    return before, after, answer.visible


async def test_what_is_not_committed_is_not_looked_at(served: Served) -> None:
    """As for a reader: another sequencer may have the log end below what is held here."""
    assert seen(await served.find_time(1_002)) == (2, 2, 5)
    assert seen(await served.find_time(1_003)) == (5, None, 5)
    assert seen(await served.find_time(9_999)) == (5, None, 5)
    assert seen(await served.find_time(0)) == (None, 0, 5)
    assert seen(await served.find_time(9_999, end=4)) == (2, None, 5)
    assert seen(await served.find_time(0, start=2)) == (None, 2, 5)
    assert seen(await served.find_time(0, start=5)) == (None, None, 5)


async def test_the_segments_end_proves_more(served: Served) -> None:
    """Whether the caller brings it or the server was told, and never beyond it."""
    assert seen(await served.find_time(1_006, segment_end=6)) == (6, None, 6)
    await served.tell_ends((LOGLET, 6))
    assert seen(await served.find_time(1_005)) == (5, 5, 6)
    assert seen(await served.find_time(1_006)) == (6, None, 6)
    with pytest.raises(ProtocolError):
        await served.find_time(1_006, segment_end=10)


async def test_what_was_never_opened_has_nothing(served: Served) -> None:
    """It is no error: the log may begin there at any moment."""
    assert seen(await served.find_time(5, loglet=OTHER)) == (None, None, 0)
    assert seen(await served.find_time(5, loglet=OTHER, segment_end=9)) == (None, None, 9)


async def test_another_store_and_one_read_too_many_are_refused(served: Served) -> None:
    """A search holds a place like a read; one of another disk is answered by nobody."""
    wrong = log_server_pb2.FindTimeRequest(
        storage_id=StorageId("b" * 32), loglet=loglet_to_proto(LOGLET), end=9
    )
    with pytest.raises(WrongStorage):
        await served.transport.call(served.address, FIND_TIME, wrong, timeout_s=5)
    stream = await served.read(0)
    await stream.receive()
    with pytest.raises(Overloaded):
        await served.find_time(1_000)
    stream.cancel()
