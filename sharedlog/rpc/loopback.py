"""A process's own services, reached without a network: `Server` and `Transport` in one object.

A node's sequencer stores at the log server of its own process, and its front door calls both. Over
`Loopback` they use the same interface as for any peer, and so the same code; messages are handed
over as the objects they are, neither encoded nor copied.

What it keeps of a real connection, since callers rely on it: messages in order, a bound on what
waits (a `send` to a peer that does not read waits), a handler's error raised at the peer, a handler
cancelled when its peer goes away, everything ended as `Unreachable` by `close`.

A hop costs one wake-up of the event loop: `send` appends and wakes the reader, `receive` with a
message waiting does not suspend at all.

Handlers run in tasks owned by the `Loopback`: each ends with its stream or call, or in `close`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, TypeVar

from sharedlog.errors import DeadlineExceeded, ProtocolError, SharedLogError, Unreachable
from sharedlog.rpc.errors import copy_error
from sharedlog.rpc.transport import (
    CallHandler,
    ClientStream,
    Method,
    Req,
    Resp,
    StreamHandler,
    Transport,
)

log = logging.getLogger(__name__)

Message = TypeVar("Message")


class Loopback:
    """Serves handlers to its own process. Any address given to it means itself."""

    def __init__(self) -> None:
        self._calls: dict[str, CallHandler[Any, Any]] = {}
        self._streams: dict[str, StreamHandler[Any, Any]] = {}
        self._running: dict[asyncio.Task[None], LoopbackStream[Any, Any] | None] = {}
        self._closed = False

    def add_call(self, method: Method[Req, Resp], handler: CallHandler[Req, Resp]) -> None:
        """See `Server.add_call`."""
        self._calls[method.path] = handler

    def add_stream(self, method: Method[Req, Resp], handler: StreamHandler[Resp, Req]) -> None:
        """See `Server.add_stream`."""
        self._streams[method.path] = handler

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        """See `Transport.call`. `address` is only used in messages."""
        self._check_open(address)
        handler = self._calls.get(method.path)
        if handler is None:
            raise _unknown(address, method)
        answer: asyncio.Future[Resp] = asyncio.get_running_loop().create_future()

        async def answer_it() -> None:
            found = await handler(request)
            if not answer.done():
                answer.set_result(found)

        def end(error: SharedLogError | None) -> None:
            if not answer.done():
                answer.set_exception(error or Unreachable(f"{address} ended the call"))

        task = self._start(method.path, answer_it(), None, end)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer from {address} in time") from error
        finally:
            task.cancel()

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        """See `Transport.stream`."""
        requests: _Pipe[Req] = _Pipe(method.waiting_max)
        responses: _Pipe[Resp] = _Pipe(method.waiting_max)
        client: LoopbackStream[Req, Resp] = LoopbackStream(responses, requests)
        handler = self._streams.get(method.path)
        if self._closed or handler is None:
            client.fail(_unknown(address, method) if handler is None else _gone(address))
            return client
        server: LoopbackStream[Resp, Req] = LoopbackStream(requests, responses)
        client.task = self._start(method.path, _run(handler, server), client, client.peer_ended)
        return client

    async def close(self) -> None:
        """End every call and stream as `Unreachable` and wait for the handlers. Idempotent.

        The loopback is closed for good.
        """
        self._closed = True
        own = asyncio.current_task()
        running = [task for task in self._running if task is not own]
        for task in running:
            stream = self._running.get(task)
            if stream is not None:
                stream.fail(Unreachable("the process closes its connections"))
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _start(
        self,
        path: str,
        run: Coroutine[Any, Any, None],
        stream: LoopbackStream[Any, Any] | None,
        end: Callable[[SharedLogError | None], None],
    ) -> asyncio.Task[None]:
        """Run a handler in a task of its own; `end` is told its error, or None, when it is over."""
        task = asyncio.get_running_loop().create_task(run, name=f"loopback {path}")
        self._running[task] = stream

        def finished(task: asyncio.Task[None]) -> None:
            del self._running[task]
            end(_outcome(task, path))

        # A callback, since a task that is cancelled before its first step runs no `finally`.
        task.add_done_callback(finished)
        return task

    def _check_open(self, address: str) -> None:
        if self._closed:
            raise _gone(address)


class LoopbackStream(Generic[Req, Resp]):
    """One side of a stream; what one side sends is what the other receives."""

    __slots__ = ("_incoming", "_outgoing", "task")

    def __init__(self, incoming: _Pipe[Resp], outgoing: _Pipe[Req]) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self.task: asyncio.Task[None] | None = None  # the handler's, on the client's side

    async def send(self, message: Req) -> None:
        """See `Stream.send`."""
        await self._outgoing.put(message)

    async def receive(self) -> Resp | None:
        """See `Stream.receive`."""
        return await self._incoming.get()

    async def end(self) -> None:
        """See `ClientStream.end`."""
        self._outgoing.end(None)

    def cancel(self) -> None:
        """See `ClientStream.cancel`."""
        self.fail(Unreachable("the stream was cancelled here"))
        if self.task is not None:
            self.task.cancel()

    def fail(self, error: SharedLogError) -> None:
        """Break both directions at once; what waits in them is dropped."""
        self._incoming.fail(error)
        self._outgoing.fail(error)

    def peer_ended(self, error: SharedLogError | None) -> None:
        """The handler is over: what it sent can still be received, then its error, or None."""
        self._incoming.end(error)
        self._outgoing.fail(error or Unreachable("the peer has ended the stream"))


class _Pipe(Generic[Message]):
    """One direction of a stream: a bounded queue; its writer can end it, anyone can break it.

    One reader at a time; any number of writers.
    """

    __slots__ = ("_ended", "_error", "_failed", "_messages", "_messages_max", "_reader", "_writers")

    def __init__(self, messages_max: int) -> None:
        self._messages_max = messages_max
        self._messages: deque[Message] = deque()  # Invariant: at most so many of them
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()  # one for each waiting `put`
        self._ended = False  # the reader gets what waits, then the error or None
        self._failed = False  # implies ended; nothing more goes in or out
        self._error: SharedLogError | None = None

    async def put(self, message: Message) -> None:
        while len(self._messages) >= self._messages_max and not self._ended:
            turn = asyncio.get_running_loop().create_future()
            self._writers.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                # Woken and cancelled at the same moment: the next writer takes the turn.
                if turn.done() and not turn.cancelled():
                    self._wake_writer()
                raise
        if self._ended:
            if self._error is not None:
                raise copy_error(self._error)
            raise Unreachable("nothing can be sent after the end of the stream")
        self._messages.append(message)
        self._wake_reader()

    async def get(self) -> Message | None:
        while not self._messages:
            if self._ended:
                if self._error is not None:
                    raise copy_error(self._error)
                return None
            assert self._reader is None or self._reader.done(), "two readers of one stream"
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        if self._writers:
            self._wake_writer()
        return message

    def end(self, error: SharedLogError | None) -> None:
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._wake_all()

    def fail(self, error: SharedLogError) -> None:
        if self._failed:
            return
        self._failed = self._ended = True
        self._error = error
        self._messages.clear()
        self._wake_all()

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writer(self) -> None:
        while self._writers:
            turn = self._writers.popleft()
            if not turn.done():
                turn.set_result(None)
                return

    def _wake_all(self) -> None:
        self._wake_reader()
        while self._writers:
            self._wake_writer()


class RoutingTransport:
    """Some addresses over transports of their own, such as a node's own over its `Loopback`."""

    def __init__(self, local: Mapping[str, Transport], default: Transport) -> None:
        self._local = dict(local)
        self._default = default

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        """See `Transport.call`."""
        return await self._route(address).call(address, method, request, timeout_s=timeout_s)

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        """See `Transport.stream`."""
        return self._route(address).stream(address, method)

    async def close(self) -> None:
        """Close all of them."""
        for transport in (*self._local.values(), self._default):
            await transport.close()

    def _route(self, address: str) -> Transport:
        return self._local.get(address, self._default)


async def _run(handler: StreamHandler[Resp, Req], stream: LoopbackStream[Resp, Req]) -> None:
    await handler(stream)


def _outcome(task: asyncio.Task[None], path: str) -> SharedLogError | None:
    """What the peer is told of a handler that is over: its error, or None if it went well."""
    if task.cancelled():
        return Unreachable("the peer has dropped the request")
    error = task.exception()
    if error is None or isinstance(error, SharedLogError):
        return error
    if not isinstance(error, Exception):
        raise error
    log.error("rpc.failed", extra={"method": path}, exc_info=error)
    return ProtocolError(f"{type(error).__name__} in {path}")


def _gone(address: str) -> Unreachable:
    return Unreachable(f"can't reach {address}: the process closes its connections")


def _unknown(address: str, method: Method[Any, Any]) -> ProtocolError:
    return ProtocolError(f"{address} does not serve {method.path}")
