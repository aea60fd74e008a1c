"""What is counted of public requests, and the one line that tells of each.

`Requests` is a `Server` before the port's: it adds every method there, those of the public services
with a handler around it that counts, takes the time, and writes a line, `request.done`. What a
handler knows and nobody else does (which log, which offsets) it adds by `note`. Nothing is done per
record, and what only the line needs is looked up when there is one.

Which requests have a line is the setting `request_log`: all, none, or those that were slow. A call
is slow if it took `slow_request_s`; a stream if its first answer did: how long it stays open is its
client's affair, and a read that follows may have nothing to send for long.

Calls of a node to itself, and what nodes ask of each other's log servers, are none of this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final, Generic

from google.protobuf.message import Message

from node.config import RequestLog
from node.metrics import RequestMetrics
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.rpc.caller import caller
from sharedlog.rpc.grpc_server import GrpcServerStream
from sharedlog.rpc.methods import APPEND_SESSION, PING
from sharedlog.rpc.transport import (
    CallHandler,
    Method,
    Req,
    Resp,
    Server,
    ServerStream,
    StreamHandler,
)
from sharedlog.v1 import log_pb2

log = logging.getLogger("node.requests")

PUBLIC: Final = frozenset(
    f"{name}Service"
    for name in ("Log", "Cluster", "Namespace", "Cursor", "Admin", "Archive", "History")
)
_QUIET: Final = frozenset((PING.path,))
_NAMES: Final = ("log", "name", "prefix")
"""Fields of requests that say what a call is about; the first that there is."""

_NOTES: ContextVar[dict[str, object] | None] = ContextVar("notes", default=None)


def note(**fields: object) -> None:
    """Add to the line of the request that is being served; nothing outside of one."""
    notes = _NOTES.get()
    if notes is not None:
        notes.update(fields)


class Requests:
    """See the module's docstring."""

    def __init__(
        self,
        server: Server,
        *,
        clock: Clock,
        metrics: RequestMetrics,
        written: RequestLog,
        slow_s: float,
    ) -> None:
        self._server = server
        self._clock = clock
        self._metrics = metrics
        self._slow_s = {"off": float("inf"), "slow": slow_s, "all": 0.0}[written]

    def add_call(self, method: Method[Req, Resp], handler: CallHandler[Req, Resp]) -> None:
        """See `Server.add_call`."""
        if not _is_public(method):
            self._server.add_call(method, handler)
            return
        name, clock = _name_of(method), self._clock
        took: list[Callable[[float], None]] = []  # made with the first call: most see none

        async def serve(request: Req) -> Resp:
            notes: dict[str, object] = {}
            _NOTES.set(notes)
            begun_s = clock.monotonic_s()
            outcome = "failed"
            try:
                answer = await handler(request)
                outcome = "ok"
                return answer
            except (SharedLogError, asyncio.CancelledError) as error:
                outcome = _outcome(error)
                raise
            finally:
                seconds = clock.monotonic_s() - begun_s
                if not took:
                    took.append(self._metrics.timer(name))
                took[0](seconds)
                self._metrics.count(name, outcome)
                if seconds >= self._slow_s:
                    self._tell(name, outcome, seconds, {**_about(request), **notes})

        self._server.add_call(method, serve)

    def add_stream(self, method: Method[Req, Resp], handler: StreamHandler[Resp, Req]) -> None:
        """See `Server.add_stream`."""
        if not _is_public(method):
            self._server.add_stream(method, handler)
            return
        name, clock = _name_of(method), self._clock
        watch = _WatchedSession if method.path == APPEND_SESSION.path else _Watched

        async def serve(stream: ServerStream[Resp, Req]) -> None:
            notes: dict[str, object] = {}
            _NOTES.set(notes)
            begun_s = clock.monotonic_s()
            watched = watch(stream, clock)
            outcome = "failed"
            try:
                await handler(watched)
                outcome = "ok"
            except (SharedLogError, asyncio.CancelledError) as error:
                outcome = _outcome(error)
                raise
            finally:
                self._metrics.count(name, outcome)
                now_s = clock.monotonic_s()
                first_s = (watched.first_s or now_s) - begun_s
                waits = "follow" in notes  # for what is not there yet
                if first_s >= self._slow_s and not (waits and self._slow_s):
                    told = watched.told() | {"first_ms": round(first_s * 1_000, 2)}
                    self._tell(name, outcome, now_s - begun_s, told | notes)

        self._server.add_stream(method, serve)

    def _tell(self, method: str, outcome: str, seconds: float, fields: dict[str, object]) -> None:
        known: dict[str, object] = {"method": method, "outcome": outcome, "peer": caller()}
        log.info("request.done", extra={**known, "ms": round(seconds * 1_000, 2), **fields})


class _Watched(Generic[Resp, Req]):
    """A stream of which is known when it first answered."""

    __slots__ = ("_clock", "first_s", "stream")

    def __init__(self, stream: ServerStream[Resp, Req], clock: Clock) -> None:
        self.stream = stream
        self._clock = clock
        self.first_s: float | None = None

    async def send(self, message: Resp) -> None:
        """See `Stream.send`."""
        if self.first_s is None:
            self.first_s = self._clock.monotonic_s()
        await self.stream.send(message)

    async def receive(self) -> Req | None:
        """See `Stream.receive`."""
        return await self.stream.receive()

    def told(self) -> dict[str, object]:
        """What is known of it, for the line."""
        if not isinstance(self.stream, GrpcServerStream):
            return {}
        return {"bytes_in": self.stream.received_bytes, "bytes_out": self.stream.sent_bytes}


class _WatchedSession(_Watched[Resp, Req]):
    """An append session. Its messages are kept rather than looked into: they are many."""

    __slots__ = ("_batches", "_first", "_last")

    def __init__(self, stream: ServerStream[Resp, Req], clock: Clock) -> None:
        super().__init__(stream, clock)
        self._batches = 0
        self._first: log_pb2.AppendSessionResponse | None = None
        self._last: log_pb2.AppendSessionResponse | None = None

    async def send(self, message: Resp) -> None:
        """See `Stream.send`."""
        assert isinstance(message, log_pb2.AppendSessionResponse)
        if self.first_s is None:
            self.first_s = self._clock.monotonic_s()
        elif count := len(message.results):
            self._batches += count
            self._last = message
            if self._first is None:
                self._first = message
        await self.stream.send(message)

    def told(self) -> dict[str, object]:
        """The first offset of the first and of the last batch; null if that one was refused."""
        told: dict[str, object] = super().told()
        if self._first is not None and self._last is not None:
            first, last = self._first.results[0], self._last.results[-1]
            told |= {"batches": self._batches, "first": _offset(first), "last": _offset(last)}
        return told


def _offset(result: log_pb2.AppendResult) -> int | None:
    return None if result.HasField("error") else result.first_offset


def _is_public(method: Method[Any, Any]) -> bool:
    service = method.path.split("/")[1].rpartition(".")[2]
    return service in PUBLIC and method.path not in _QUIET


def _name_of(method: Method[Any, Any]) -> str:
    """E.g. LogService/Append."""
    return method.path.rpartition(".")[2]


def _outcome(error: BaseException) -> str:
    return "cancelled" if isinstance(error, asyncio.CancelledError) else type(error).__name__


def _about(request: object) -> dict[str, object]:
    """What a call is about, and how large it was."""
    if not isinstance(request, Message):
        return {}
    fields = request.DESCRIPTOR.fields_by_name
    named = next((name for name in _NAMES if name in fields), None)
    about: dict[str, object] = {} if named is None else {"log": getattr(request, named)}
    return about | {"bytes_in": request.ByteSize()}
