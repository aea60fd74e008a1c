"""Appends at the front door: served by this process's sequencer, or forwarded to the right one.

Forwarding keeps two promises:

* **It never goes in circles**: a forwarded session is `direct_only`, so a node that does not order
  the log says so rather than forward again.
* **Definite stays definite.** A plain `Append` for another node travels as a session: until that
  node has answered that the session is open, no batch has been sent, so up to there it can go
  elsewhere when the log moves or its sequencer dies. From the moment the batch is sent, a broken
  connection is `AppendIndefinite`; only a sequencer that says that it took nothing is believed.

A log that does not exist is created first if the call says so (`create`), by the node that was
asked, and then served as any other: until then nothing has been appended, so a creation that fails
is a definite failure.

The opening of a session is forwarded as it came: whose batches they are, and which of them are to
be resolved, is between the client and the sequencer. A forwarded session copies messages both ways,
one at a time each way: whoever does not read makes the other side wait (flow control of the
transport), and nothing piles up here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from metadata.core import check_log_name
from metadata.store import Version
from node.limits import Places
from node.log_maker import LogMaker
from node.requests import note
from node.routing import Here, Route, RouteLost, Router, There, sequencer_silent
from node.wire import record_columns
from sequencer.admission import conditions_of
from sharedlog.batch import encode_records, parse_batch_header
from sharedlog.clock import Clock
from sharedlog.control import check_fencing_token
from sharedlog.errors import (
    AppendIndefinite,
    DeadlineExceeded,
    InvalidArgument,
    LogNotFound,
    NotSequencer,
    ProtocolError,
    SharedLogError,
    Unreachable,
)
from sharedlog.rpc.errors import error_from_proto
from sharedlog.rpc.methods import APPEND_SESSION
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import ClientStream, ServerStream, Transport
from sharedlog.tasks import first_error
from sharedlog.v1 import log_pb2

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_Session = ServerStream[log_pb2.AppendSessionResponse, SessionRequest]
_Upstream = ClientStream[SessionRequest, log_pb2.AppendSessionResponse]


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendLimits:
    """See the fields of the same names in `NodeConfig`."""

    sessions_max: int
    append_timeout_s: float
    peer_timeout_s: float


class Appends:
    """`Append` and `AppendSession` of the public API."""

    def __init__(
        self,
        *,
        router: Router,
        maker: LogMaker,
        transport: Transport,
        clock: Clock,
        limits: AppendLimits,
    ) -> None:
        self._router = router
        self._maker = maker
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
        message = SessionRequest(
            encode_records(record_columns(request.records)),
            match_offset=request.match_offset if request.HasField("match_offset") else None,
            fencing_token=request.fencing_token if request.HasField("fencing_token") else None,
        )
        return await self._append(request.log, message, create=request.create)

    async def fence(self, request: log_pb2.FenceRequest) -> log_pb2.FenceResponse:
        """Set the log's fencing token.

        Raises:
            AppendIndefinite: it may have been set. FencingTokenMismatch: another one was expected.
            SharedLogError: anything else is definite.
        """
        check_fencing_token(request.token)
        message = SessionRequest(
            encode_records([(b"", None, None)]),
            fencing_token=request.expected if request.HasField("expected") else None,
            set_fencing_token=request.token,
        )
        done = await self._append(request.log, message)
        return log_pb2.FenceResponse(offset=done.first_offset)

    async def _append(
        self, name: str, message: SessionRequest, *, create: bool = False
    ) -> log_pb2.AppendResponse:
        check_log_name(name)

        async def attempt(route: Route, left_s: float) -> log_pb2.AppendResponse:
            if isinstance(route, There):
                return await self._append_there(route, message, left_s)
            return await self._append_here(route, message)

        with self._places.take():
            done = await self._made_first(
                name, lambda: self._router.serve(name, attempt), create=create
            )
        note(first=done.first_offset, end=done.next_offset)
        return done

    async def session(self, stream: _Session) -> None:
        """Serve one session until the client ends it, or the log moves."""
        with self._places.take():
            opening = await self._receive_opening(stream)
            note(log=opening.log)

            async def attempt(route: Route, left_s: float) -> _Forwarded | None:
                if isinstance(route, There):
                    return await self._open_upstream(route, opening, left_s)
                await route.sequencer.serve_session(
                    stream, route.record, opening, chain_version=route.version
                )
                return None

            forwarded = await self._made_first(
                opening.log,
                lambda: self._router.serve(
                    opening.log,
                    attempt,
                    min_version=Version(opening.min_chain_version),
                    direct_only=opening.direct_only,
                ),
                create=opening.create,
            )
            if forwarded is not None:
                note(forwarded_to=forwarded.route.node.node_id)
                await self._forward_session(stream, forwarded)

    async def _made_first(
        self, name: str, serve: Callable[[], Awaitable[Result]], *, create: bool
    ) -> Result:
        """What `serve` gives, once the log exists; with `create` it is made if it does not.

        That there is no such log is said before anything was appended, and so is why it can't be
        made.
        """
        try:
            return await serve()
        except LogNotFound:
            if not create:
                raise
        await self._maker.ensure(name)
        return await serve()

    async def _receive_opening(self, stream: _Session) -> log_pb2.AppendSessionOpen:
        try:
            async with asyncio.timeout(self._limits.peer_timeout_s):
                first = await stream.receive()
        except TimeoutError as error:
            raise DeadlineExceeded("no first message came; it opens the session") from error
        if first is None or first.open is None or first.batch:
            raise InvalidArgument("the first message opens the session and carries no batch")
        check_log_name(first.open.log)
        return first.open

    async def _append_here(self, route: Here, message: SessionRequest) -> log_pb2.AppendResponse:
        done = await route.sequencer.append(
            route.record,
            message.batch,
            timeout_s=self._limits.append_timeout_s,
            conditions=conditions_of(message),
        )
        return log_pb2.AppendResponse(
            first_offset=done.first, next_offset=done.end, timestamp_ms=done.timestamp_ms
        )

    async def _append_there(
        self, route: There, message: SessionRequest, left_s: float
    ) -> log_pb2.AppendResponse:
        opening = log_pb2.AppendSessionOpen(log=route.record.name)
        forwarded = await self._open_upstream(route, opening, left_s)
        upstream = forwarded.upstream
        try:
            result = await self._router.wait_for(
                route, _append_one(upstream, message), timeout_s=self._limits.append_timeout_s
            )
        except NotSequencer:
            raise  # it said that it took nothing
        except Exception as error:  # of the stream or of this node, not of the batch
            if not isinstance(error, SharedLogError | RouteLost):
                log.exception("append.failed", extra={"log": route.record.name})
            raise AppendIndefinite(
                f"the batch was sent to the sequencer, {route.node.node_id}, and its outcome "
                f"is unknown: {error}"
            ) from error
        finally:
            upstream.cancel()
        if result.HasField("error"):
            raise error_from_proto(result.error)
        count = parse_batch_header(message.batch).record_count
        return log_pb2.AppendResponse(
            first_offset=result.first_offset,
            next_offset=result.first_offset + count,
            timestamp_ms=result.timestamp_ms,
        )

    async def _open_upstream(
        self, route: There, opening: log_pb2.AppendSessionOpen, left_s: float
    ) -> _Forwarded:
        """Open the session at the sequencer, as the client did here.

        Raises:
            RouteLost, NotSequencer: nothing was sent that matters.
        """
        sent = log_pb2.AppendSessionOpen()
        sent.CopyFrom(opening)
        sent.direct_only = True
        sent.min_chain_version = max(sent.min_chain_version, route.version)
        upstream = self._transport.stream(route.node.address, APPEND_SESSION)
        try:
            answer = await self._router.wait_for(route, _open(upstream, sent), timeout_s=left_s)
        except BaseException:
            upstream.cancel()
            raise
        return _Forwarded(route, upstream, answer)

    async def _forward_session(self, stream: _Session, forwarded: _Forwarded) -> None:
        upstream = forwarded.upstream
        try:
            await stream.send(forwarded.opened)
            async with asyncio.TaskGroup() as tasks:
                up = tasks.create_task(_copy_up(stream, upstream), name="forward-session")
                while (answer := await forwarded.receive()) is not None:
                    await stream.send(answer)
                up.cancel()
        except BaseExceptionGroup as group:
            raise first_error(group) from None
        finally:
            upstream.cancel()


@dataclass(frozen=True, slots=True)
class _Forwarded:
    """A session that another process serves."""

    route: There
    upstream: _Upstream
    opened: log_pb2.AppendSessionResponse

    async def receive(self) -> log_pb2.AppendSessionResponse | None:
        """The next answer.

        Raises:
            LogUnavailable: the connection to the sequencer broke; not `Unreachable`, which to the
            client would mean this node.
        """
        try:
            return await self.upstream.receive()
        except Unreachable as error:
            raise sequencer_silent(self.route, str(error)) from error


async def _open(
    upstream: _Upstream, opening: log_pb2.AppendSessionOpen
) -> log_pb2.AppendSessionResponse:
    await upstream.send(SessionRequest(open=opening))
    answer = await upstream.receive()
    if answer is None or not answer.HasField("opened"):
        raise ProtocolError("the sequencer did not open the session")
    return answer


async def _append_one(upstream: _Upstream, message: SessionRequest) -> log_pb2.AppendResult:
    await upstream.send(message)
    await upstream.end()
    answer = await upstream.receive()
    if answer is not None and answer.HasField("moved") and not answer.results:
        raise NotSequencer("the log moved before the batch was admitted")
    if answer is None or len(answer.results) != 1:
        raise ProtocolError("the sequencer ended the session without an answer")
    return answer.results[0]


async def _copy_up(stream: _Session, upstream: _Upstream) -> None:
    """Pass on what the client sends, for as long as the sequencer takes it.

    A sequencer that takes nothing more may still have something to say: results, where the log has
    gone, or why it ends. That is for whoever reads its answers, and ends the session.
    """
    while (request := await stream.receive()) is not None:
        try:
            await upstream.send(request)
        except SharedLogError as error:
            log.debug("session.upstream_ended", extra={"error": str(error)})
            return
    with suppress(SharedLogError):
        await upstream.end()
