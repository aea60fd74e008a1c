"""Appends at the front door: served by this process's sequencer, or forwarded to the right one.

Forwarding keeps two promises:

* **It never goes in circles**: a forwarded session is `direct_only`, so a node that does not order
the
  log says so rather than forward again.
* **Definite stays definite.** A plain `Append` for another node travels as a session: until that
  node has answered that the session is open, no batch has been sent, so a failure up to there is
  definite. From the moment the batch is sent, a broken connection is `AppendIndefinite`.

A forwarded session copies messages both ways, one at a time each way: whoever does not read makes
the other side wait (flow control of the transport), and nothing piles up here.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from metadata.core import check_log_name
from node.limits import Places
from node.routing import Here, Router, There, sequencer_silent
from node.wire import record_columns
from sharedlog.batch import encode_records, parse_batch_header
from sharedlog.clock import Clock
from sharedlog.errors import (
    AppendIndefinite,
    DeadlineExceeded,
    InvalidArgument,
    NotSequencer,
    ProtocolError,
    SharedLogError,
    Unreachable,
)
from sharedlog.rpc.errors import error_from_proto
from sharedlog.rpc.methods import APPEND_SESSION
from sharedlog.rpc.transport import ClientStream, ServerStream, Transport
from sharedlog.tasks import first_error
from sharedlog.v1 import log_pb2

log = logging.getLogger(__name__)

_Session = ServerStream[log_pb2.AppendSessionResponse, log_pb2.AppendSessionRequest]
_Upstream = ClientStream[log_pb2.AppendSessionRequest, log_pb2.AppendSessionResponse]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendLimits:
    """See the fields of the same names in `NodeConfig`."""

    sessions_max: int
    append_timeout_s: float
    peer_timeout_s: float


class Appends:
    """`Append` and `AppendSession` of the public API."""

    def __init__(
        self, *, router: Router, transport: Transport, clock: Clock, limits: AppendLimits
    ) -> None:
        self._router = router
        self._transport = transport
        self._clock = clock
        self._limits = limits
        self._places = Places("append sessions", limits.sessions_max)

    @property
    def sessions_open(self) -> int:
        """Sessions that run now, forwarded ones included."""
        return self._places.taken

    async def append(self, request: log_pb2.AppendRequest) -> log_pb2.AppendResponse:
        """Append the records as one batch.

        Raises:
            AppendIndefinite: no write quorum, or no answer, in time.
            SharedLogError: anything else is definite.
        """
        check_log_name(request.log)
        batch = encode_records(record_columns(request.records))
        with self._places.take():
            route = await self._router.find(request.log)
            if isinstance(route, There):
                try:
                    return await self._append_there(route, batch)
                except NotSequencer:
                    route = await self._router.find_again(route.record)
            if isinstance(route, There):
                return await self._append_there(route, batch)
            return await self._append_here(route, batch)

    async def session(self, stream: _Session) -> None:
        """Serve one session until the client ends it."""
        with self._places.take():
            started = self._clock.monotonic_s()
            opening = await self._receive_opening(stream)
            route = await self._router.find(opening.log)
            if isinstance(route, Here):
                await route.sequencer.serve_session(stream, route.record)
            elif opening.direct_only:
                node_id = route.node.node_id
                raise NotSequencer(
                    f"{opening.log} is ordered by {node_id}, not by this node",
                    sequencer_node_id=node_id,
                )
            else:
                await self._forward_session(stream, opening.log, route)
            seconds = round(self._clock.monotonic_s() - started, 3)
            log.debug(
                "session.ended",
                extra={
                    "log": opening.log,
                    "seconds": seconds,
                    "forwarded": not isinstance(route, Here),
                },
            )

    async def _receive_opening(self, stream: _Session) -> log_pb2.AppendSessionOpen:
        try:
            async with asyncio.timeout(self._limits.peer_timeout_s):
                first = await stream.receive()
        except TimeoutError as error:
            raise DeadlineExceeded("no first message came; it opens the session") from error
        if first is None or not first.HasField("open") or first.batch:
            raise InvalidArgument("the first message opens the session and carries no batch")
        check_log_name(first.open.log)
        return first.open

    async def _append_here(self, route: Here, batch: bytes) -> log_pb2.AppendResponse:
        timeout_s = self._limits.append_timeout_s
        done = await route.sequencer.append(route.record, batch, timeout_s=timeout_s)
        return log_pb2.AppendResponse(
            first_offset=done.first, next_offset=done.end, timestamp_ms=done.timestamp_ms
        )

    async def _append_there(self, route: There, batch: bytes) -> log_pb2.AppendResponse:
        upstream = self._transport.stream(route.node.address, APPEND_SESSION)
        try:
            await self._open_upstream(upstream, route)
            try:
                async with asyncio.timeout(self._limits.append_timeout_s):
                    result = await _append_one(upstream, batch)
            except (SharedLogError, TimeoutError) as error:  # of the stream, not of the batch
                reason = str(error) or f"no answer within {self._limits.append_timeout_s:g} s"
                raise AppendIndefinite(
                    f"the batch was sent to the sequencer, {route.node.node_id}, and its outcome "
                    f"is unknown: {reason}"
                ) from error
        finally:
            upstream.cancel()
        if result.HasField("error"):
            raise error_from_proto(result.error)
        count = parse_batch_header(batch).record_count
        return log_pb2.AppendResponse(
            first_offset=result.first_offset,
            next_offset=result.first_offset + count,
            timestamp_ms=result.timestamp_ms,
        )

    async def _open_upstream(
        self, upstream: _Upstream, route: There
    ) -> log_pb2.AppendSessionResponse:
        """Open the session at the sequencer; nothing was sent there if this raises."""
        opening = log_pb2.AppendSessionOpen(log=route.record.name, direct_only=True)
        try:
            async with asyncio.timeout(self._limits.peer_timeout_s):
                await upstream.send(log_pb2.AppendSessionRequest(open=opening))
                answer = await upstream.receive()
        except (Unreachable, TimeoutError) as error:
            raise sequencer_silent(route, error) from error
        if answer is None or not answer.HasField("opened"):
            raise ProtocolError(f"{route.node.node_id} did not open the session")
        return answer

    async def _forward_session(self, stream: _Session, name: str, route: There) -> None:
        upstream = self._transport.stream(route.node.address, APPEND_SESSION)
        try:
            await stream.send(await self._open_upstream(upstream, route))
            async with asyncio.TaskGroup() as tasks:
                up = tasks.create_task(_copy_up(stream, upstream), name=f"forward {name}")
                while (answer := await upstream.receive()) is not None:
                    await stream.send(answer)
                up.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            upstream.cancel()


async def _append_one(upstream: _Upstream, batch: bytes) -> log_pb2.AppendResult:
    await upstream.send(log_pb2.AppendSessionRequest(batch=batch))
    await upstream.end()
    answer = await upstream.receive()
    if answer is None or len(answer.results) != 1:
        raise ProtocolError("the sequencer ended the session without an answer")
    return answer.results[0]


async def _copy_up(stream: _Session, upstream: _Upstream) -> None:
    while (request := await stream.receive()) is not None:
        await upstream.send(request)
    await upstream.end()
