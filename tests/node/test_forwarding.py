"""Append sessions that a node forwards: what passes through, what a plain append makes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.failover_parts import World3, log_record, node_record, running
from helpers.sim import run_virtual

from metadata.records import NodeRecord
from node.appends import AppendLimits, Appends
from node.liveness import Life
from node.routing import Router
from sharedlog.batch import encode_records
from sharedlog.errors import (
    AppendIndefinite,
    LogUnavailable,
    NotSequencer,
    RecordTooLarge,
    SharedLogError,
    Unreachable,
)
from sharedlog.rpc.errors import error_to_proto
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.methods import APPEND_SESSION
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp, ServerStream, Transport
from sharedlog.v1 import log_pb2, types_pb2

Stream = ServerStream[log_pb2.AppendSessionResponse, SessionRequest]
Handler = Callable[[Stream], Awaitable[None]]
Request, Response = SessionRequest, log_pb2.AppendSessionResponse
OPENED = Response(opened=log_pb2.AppendSessionOpened(floor=7))
MOVED = Response(moved=log_pb2.SessionMoved(address="n3:1", chain_version=9))
BATCH = encode_records([(b"x", None, None)])


@asynccontextmanager
async def forwarding(sequencer: Handler) -> AsyncIterator[tuple[Appends, Loopback]]:
    """Node n1, which forwards sessions to `sequencer` on n2; and a way to open one at n1."""
    world = World3()
    world.put_nodes(*(node_record(f"n{n}") for n in range(1, 4)))
    world.put_log(log_record("orders", "n2"))
    far, near = Loopback(), Loopback()
    far.add_stream(APPEND_SESSION, sequencer)
    async with running(world, "n1") as part:
        router = Router(
            me=part.me,
            view=part.view,
            sequencer=None,
            failover=part.failover,
            liveness=part.liveness,
            clock=part.clock,
            random=Random(1),
            timeout_s=5.0,
        )
        limits = AppendLimits(sessions_max=10, append_timeout_s=30.0, peer_timeout_s=5.0)
        unused: Any = None
        appends = Appends(
            router=router, maker=unused, transport=far, clock=part.clock, limits=limits
        )
        near.add_stream(APPEND_SESSION, appends.session)
        try:
            yield appends, near
        finally:
            await near.close()
            await far.close()


def test_a_session_passes_through_as_it_is() -> None:
    """Who the producer is and what is to be resolved reaches the sequencer unchanged; it alone
    learns that the session was forwarded, and by which chain. Its answers come back as they are,
    the last word, `moved`, included, and end the session well."""

    async def main() -> None:
        received: list[SessionRequest] = []

        async def sequencer(stream: Stream) -> None:
            first = await stream.receive()
            assert first is not None
            received.append(first)
            await stream.send(OPENED)
            while (request := await stream.receive()) is not None:
                received.append(request)
                if len(received) == 3:
                    results = [log_pb2.AppendResult(first_offset=5)]
                    await stream.send(Response(results=results))
                    await stream.send(MOVED)
                    return

        async with forwarding(sequencer) as (_, near):
            opening = log_pb2.AppendSessionOpen(
                log="orders",
                producer_id=123,
                producer_epoch=4,
                next_sequence=56,
                unresolved=True,
                resolve_from=78,
            )
            stream = near.stream("n1:1", APPEND_SESSION)
            await stream.send(Request(open=opening))
            assert await stream.receive() == OPENED
            for value in (b"one", b"two"):
                await stream.send(Request(batch=value))
            answer = await stream.receive()
            assert answer is not None
            assert answer.results[0].first_offset == 5
            assert await stream.receive() == MOVED
            assert await stream.receive() is None
        forwarded = received[0].open
        assert forwarded is not None
        assert forwarded.direct_only
        assert forwarded.min_chain_version > 0
        opening.direct_only, opening.min_chain_version = True, forwarded.min_chain_version
        assert forwarded == opening
        assert [it.batch for it in received[1:]] == [b"one", b"two"]

    run_virtual(main)


def test_a_broken_way_to_the_sequencer_is_not_a_broken_way_to_this_node() -> None:
    """The client's own connection is well: it hears `LogUnavailable`, never `Unreachable`."""

    async def main() -> None:
        async def sequencer(stream: Stream) -> None:
            await stream.receive()
            await stream.send(OPENED)
            raise Unreachable("it died")

        async with forwarding(sequencer) as (_, near):
            stream = near.stream("n1:1", APPEND_SESSION)
            await stream.send(Request(open=log_pb2.AppendSessionOpen(log="orders")))
            assert await stream.receive() == OPENED
            with pytest.raises(LogUnavailable, match="sequencer of orders, n2 at n2:1"):
                await stream.receive()

    run_virtual(main)


async def _append(handlers: list[Handler]) -> log_pb2.AppendResponse:
    """A plain append at n1; each session at the sequencer is served by the next handler."""
    left = list(handlers)

    async def sequencer(stream: Stream) -> None:
        await left.pop(0)(stream)

    done: log_pb2.AppendResponse | SharedLogError
    async with forwarding(sequencer) as (appends, _):
        record = types_pb2.Record(value=b"x")
        try:
            done = await appends.append(log_pb2.AppendRequest(log="orders", records=[record]))
        except SharedLogError as error:  # raised below: the parts' task group would wrap it
            done = error
    assert not left, "it gave up too soon"
    if isinstance(done, SharedLogError):
        raise done
    return done


async def _refuse_to_open(stream: Stream) -> None:
    await stream.receive()
    raise NotSequencer("not I")


async def _break_before_opening(stream: Stream) -> None:
    raise Unreachable("reset")


async def _move_before_the_batch(stream: Stream) -> None:
    await stream.receive()
    await stream.send(OPENED)
    await stream.receive()
    await stream.send(MOVED)


async def _break_after_the_batch(stream: Stream) -> None:
    await stream.receive()
    await stream.send(OPENED)
    await stream.receive()
    raise Unreachable("reset")


def _answer(error: SharedLogError | None) -> Handler:
    async def serve(stream: Stream) -> None:
        await stream.receive()
        await stream.send(OPENED)
        request = await stream.receive()
        assert request is not None
        assert request.batch == BATCH
        result = log_pb2.AppendResult(first_offset=40)
        if error is not None:
            result.error.CopyFrom(error_to_proto(error))
        await stream.send(Response(results=[result]))

    return serve


def test_a_plain_append_goes_on_while_nothing_was_appended() -> None:
    """Refused, broken before the batch left, moved away before it was taken, refused by the word of
    the sequencer: each is definite, so it is made elsewhere, and the caller sees success."""

    async def main() -> None:
        handlers = [
            _refuse_to_open,
            _break_before_opening,
            _move_before_the_batch,
            _answer(NotSequencer("moved on")),
            _answer(None),
        ]
        done = await _append(handlers)
        assert (done.first_offset, done.next_offset) == (40, 41)

    run_virtual(main)


@pytest.mark.parametrize(
    ("handler", "wanted"),
    [
        (_break_after_the_batch, AppendIndefinite),
        (_answer(AppendIndefinite("sealed meanwhile")), AppendIndefinite),
        (_answer(RecordTooLarge(size_bytes=2, max_bytes=1)), RecordTooLarge),
    ],
)
def test_a_plain_append_is_sent_once_it_may_be_in_the_log(
    handler: Handler, wanted: type[Any]
) -> None:
    """From the moment that its batch may be in the log it is never sent again, and says so."""

    async def main() -> None:
        with pytest.raises(wanted):
            await _append([handler])

    run_virtual(main)


async def _hang_after_the_batch(stream: Stream) -> None:
    await stream.receive()
    await stream.send(OPENED)
    await stream.receive()
    await asyncio.Event().wait()


@pytest.mark.parametrize("error", [LogUnavailable("the node does no ping now"), OSError("a bug")])
def test_whatever_fails_after_the_batch_was_sent_is_indefinite(error: Exception) -> None:
    """Also what has nothing to do with the batch: that this node stops, or fails otherwise."""

    async def main() -> None:
        async with forwarding(_hang_after_the_batch) as (appends, _):

            async def probe(_: NodeRecord) -> Life:
                raise error

            appends._router._liveness = SimpleNamespace(probe=probe)
            record = types_pb2.Record(value=b"x")
            request = log_pb2.AppendRequest(log="orders", records=[record])
            with pytest.raises(AppendIndefinite):
                await appends.append(request)

    run_virtual(main)


def test_a_sequencer_that_takes_nothing_more_is_still_heard() -> None:
    """It refuses the next batch before it has said what became of those in flight: the client gets
    those results and where the log has gone, for only the way up has ended."""

    async def main() -> None:
        refused = asyncio.Event()

        async def sequencer(stream: Stream) -> None:
            await stream.receive()
            await stream.send(OPENED)
            await stream.receive()
            await refused.wait()
            await asyncio.sleep(1)
            await stream.send(Response(results=[log_pb2.AppendResult(first_offset=5)]))
            await stream.send(MOVED)

        async with forwarding(sequencer) as (appends, near):
            appends._transport = _DeafAfter(appends._transport, 2, refused)
            stream = near.stream("n1:1", APPEND_SESSION)
            await stream.send(Request(open=log_pb2.AppendSessionOpen(log="orders")))
            assert await stream.receive() == OPENED
            for value in (b"one", b"two", b"three"):
                await stream.send(Request(batch=value))
            answer = await stream.receive()
            assert answer is not None
            assert answer.results[0].first_offset == 5
            assert await stream.receive() == MOVED
            assert await stream.receive() is None

    run_virtual(main)


class _DeafAfter:
    """A transport whose streams can't be written any more after some messages."""

    def __init__(self, transport: Transport, messages: int, refused: asyncio.Event) -> None:
        self._transport = transport
        self._messages = messages
        self._refused = refused

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        stream = self._transport.stream(address, method)
        send, left = stream.send, self._messages

        async def send_some(message: Req) -> None:
            nonlocal left
            if left == 0:
                self._refused.set()
                raise Unreachable("nothing more is taken")
            left -= 1
            await send(message)

        return cast(
            "ClientStream[Req, Resp]",
            SimpleNamespace(
                send=send_some, receive=stream.receive, end=stream.end, cancel=stream.cancel
            ),
        )

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        raise AssertionError("not used")

    async def close(self) -> None: ...
