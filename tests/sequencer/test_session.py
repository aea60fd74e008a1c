"""One append session: results in order, and back-pressure."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from sequencer.core import InFlight
from sequencer.producers import REMEMBERED_MAX
from sequencer.session import BATCH_COST_BYTES_MIN, AppendSession, SessionSlot
from sharedlog.errors import CorruptBatch, Unreachable
from sharedlog.ids import Offset
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.v1 import log_pb2, types_pb2

MEGABYTE = b"x" * 1_000_000


class FakeStream:
    """A client: what it has sent, what it has read, and whether it reads at all."""

    def __init__(self, batches: list[bytes], *, reads_max: int = 1_000_000) -> None:
        self.to_send = deque(batches)
        self.sent = 0
        self.answers: list[log_pb2.AppendSessionResponse] = []
        self.reads_max = reads_max
        self.gone = asyncio.Event()

    async def send(self, message: log_pb2.AppendSessionResponse) -> None:
        if len(self.answers) >= self.reads_max:
            await self.gone.wait()
            raise Unreachable("the client went away")
        self.answers.append(message)

    async def receive(self) -> SessionRequest | None:
        if not self.to_send:
            return None
        self.sent += 1
        return SessionRequest(batch=self.to_send.popleft())

    def moved(self) -> bool:
        return bool(self.answers) and self.answers[-1].HasField("moved")

    def results(self) -> list[log_pb2.AppendResult]:
        return [result for answer in self.answers for result in answer.results]


def make_session(
    stream: FakeStream, submitted: list[SessionSlot], *, bytes_max: int = 8_000_000
) -> AppendSession:
    def submit(request: SessionRequest, slot: SessionSlot) -> None:
        if request.batch in (b"bad", b""):
            raise CorruptBatch("bad")
        submitted.append(slot)

    return AppendSession(
        stream,
        opened=log_pb2.AppendSessionOpened(
            sequencer=types_pb2.SequencerId(node_id="n1", generation=1),
            in_flight_bytes_max=bytes_max,
        ),
        submit=submit,
        gate=lambda: None,
        wait_for_room=lambda: None,
    )


def commit(slot: SessionSlot, first: int) -> None:
    slot.committed(InFlight(Offset(first), Offset(first + 1), 7, b"", None))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_results_leave_in_the_order_of_the_requests() -> None:
    """The third was refused at once; its result still comes third, after those of the others."""
    stream, submitted = FakeStream([b"a", b"b", b"bad", b"c"]), list[SessionSlot]()
    session = make_session(stream, submitted)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        await settle()
        assert stream.results() == []
        commit(submitted[1], 11)
        await settle()
        assert stream.results() == [], "the first is not done"
        commit(submitted[0], 10)
        await settle()
        assert [result.first_offset for result in stream.results()] == [10, 11, 0]
        assert stream.results()[2].error.kind == "CorruptBatch"
        commit(submitted[2], 12)
    assert [result.first_offset for result in stream.results()] == [10, 11, 0, 12]


async def test_a_session_is_not_read_beyond_its_bound() -> None:
    """Unanswered bytes are bounded while no write quorum answers; a lone batch always fits."""
    stream, submitted = FakeStream([MEGABYTE] * 50), list[SessionSlot]()
    session = make_session(stream, submitted)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        await settle()
        assert stream.sent == 9, "eight fill the bound, the one that goes beyond it is the last"
        for number, slot in enumerate(submitted[:4]):
            commit(slot, number)
        await settle()
        assert stream.sent == 13
        for number in range(4, 50):
            while number >= len(submitted):
                await settle()
            commit(submitted[number], number)
    assert [result.first_offset for result in stream.results()] == list(range(50))


async def test_a_client_that_reads_no_acks_is_read_no_further() -> None:
    """Committed but unread results count against the bound: nothing piles up in the node."""
    stream, submitted = FakeStream([MEGABYTE] * 50, reads_max=1), list[SessionSlot]()
    session = make_session(stream, submitted)
    running = asyncio.create_task(session.run())
    committed = 0
    for _ in range(20):
        await settle()
        for slot in submitted[committed:]:
            commit(slot, committed)
            committed += 1
    # One message of results waits to be written; what it holds was released before.
    assert stream.sent < 25
    stream.gone.set()
    with pytest.raises(Unreachable):
        await running


async def test_a_session_without_batches_ends_well() -> None:
    stream = FakeStream([])
    await make_session(stream, []).run()
    assert stream.answers[0].opened.sequencer.node_id == "n1"
    assert stream.results() == []


async def test_a_session_that_ends_leaves_the_others_waiting_for_room() -> None:
    """All sessions wait for the same room; the end of one must not end another's reading."""
    room = asyncio.get_running_loop().create_future()
    submitted = list[SessionSlot]()
    sessions = []
    for _ in range(2):
        session = make_session(FakeStream([b"a", b"b"]), submitted)
        session._wait_for_room = lambda: None if room.done() else room
        sessions.append(asyncio.create_task(session.run()))
    await settle()
    assert len(submitted) == 2, "both were read as far as there was room"
    sessions[0].cancel()
    await asyncio.wait([sessions[0]])
    room.set_result(None)
    await settle()
    assert len(submitted) == 3, "the other one is read on"
    for number, slot in enumerate(submitted):
        commit(slot, number)
    async with asyncio.timeout(5):
        await sessions[1]


async def test_empty_batches_without_end_are_not_read_without_end() -> None:
    """Each has a result to be kept until the client reads it, however small the batch was."""
    stream = FakeStream([b""] * 1_000, reads_max=1)
    session = make_session(stream, [], bytes_max=50 * BATCH_COST_BYTES_MIN)
    running = asyncio.create_task(session.run())
    for _ in range(20):
        await settle()
    assert stream.sent < 200
    stream.gone.set()
    with pytest.raises(Unreachable):
        await running


async def test_batches_that_come_while_nothing_is_admitted_wait_and_are_never_lost() -> None:
    stream, submitted = FakeStream([b"a", b"b"]), list[SessionSlot]()
    session = make_session(stream, submitted)
    gate = asyncio.get_running_loop().create_future()
    session._gate = lambda: None if gate.done() else gate
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        await settle()
        assert (stream.sent, submitted) == (1, []), "one is held, the rest is not read"
        gate.set_result(None)
        await settle()
        for number, slot in enumerate(submitted):
            commit(slot, number)
    assert [result.first_offset for result in stream.results()] == [0, 1]


async def test_a_session_that_is_moved_sends_what_is_known_then_moved_and_ends_well() -> None:
    """What has no result before `moved` was never admitted: the client sends it elsewhere as
    new.
    """
    stream, submitted = FakeStream([b"a", b"b", b"bad", b"c"]), list[SessionSlot]()
    stream.to_send.append(b"never taken")
    session = make_session(stream, submitted)
    running = asyncio.create_task(session.run())
    await settle()
    commit(submitted[0], 5)
    submitted[1].dropped()
    session.end_moved(log_pb2.SessionMoved(chain_version=9))
    async with asyncio.timeout(5):
        await running
    assert [result.first_offset for result in stream.results()] == [5]
    assert stream.answers[-1].moved.chain_version == 9


async def test_an_idle_session_is_moved_too() -> None:
    """Nothing is in flight and nothing comes: the client must hear of it all the same."""
    stream = FakeStream([])
    session = make_session(stream, [])
    blocked: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def say_nothing() -> None:
        await blocked

    stream.receive = say_nothing  # type: ignore[method-assign] # a client that keeps its side open
    running = asyncio.create_task(session.run())
    await settle()
    session.end_moved(log_pb2.SessionMoved())
    async with asyncio.timeout(5):
        await running
    assert stream.moved()


async def test_a_session_that_must_end_can_wait_for_its_results() -> None:
    """With `flush` every batch that was taken gets its result first; without, those there are."""
    for flush in (True, False):
        stream, submitted = FakeStream([b"a", b"b"]), list[SessionSlot]()
        session = make_session(stream, submitted)
        running = asyncio.create_task(session.run())
        await settle()
        commit(submitted[0], 0)
        session.end(Unreachable("the node shuts down"), flush=flush)
        await settle()
        assert running.done() is not flush
        commit(submitted[1], 1)
        with pytest.raises(Unreachable):
            await running
        assert len(stream.results()) == (2 if flush else 1)


async def test_a_session_has_only_so_many_batches_unanswered() -> None:
    """So many are remembered for a client that comes back to ask (`producers.py`)."""
    stream, submitted = FakeStream([b"x"] * 100), list[SessionSlot]()
    session = make_session(stream, submitted)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(session.run())
        await settle()
        for _ in range(10):
            await settle()
        assert len(submitted) == REMEMBERED_MAX
        number = 0
        while number < 100:
            while number >= len(submitted):
                await settle()
            commit(submitted[number], number)
            number += 1
    assert len(stream.results()) == 100
