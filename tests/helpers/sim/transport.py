"""What a simulated process has of the network: `Transport`, `Server` and the ends of streams."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any, Final, Generic

from google.protobuf.message import Message
from helpers.sim.connection import Connection, Pipe
from helpers.sim.network import SimNetwork

from sharedlog.errors import DeadlineExceeded, ProtocolError, SharedLogError, Unreachable
from sharedlog.rpc.errors import error_to_proto
from sharedlog.rpc.transport import (
    CallHandler,
    ClientStream,
    Method,
    Req,
    Resp,
    StreamHandler,
    decode,
)


class SimStream(Generic[Req, Resp]):
    """One end of a stream; `Req` is what it sends."""

    def __init__(
        self,
        connection: Connection,
        *,
        outgoing: Pipe,
        incoming: Pipe,
        encode: Callable[[Req], bytes],
        decode_with: Callable[[bytes], Resp],
    ) -> None:
        self._connection = connection
        self._outgoing = outgoing
        self._incoming = incoming
        self._encode = encode
        self._decode = decode_with
        self._sending = False

    async def send(self, message: Req) -> None:
        assert not self._sending, f"two sends at once on {self._connection.path}: gRPC has no such"
        self._sending = True
        try:
            await self._outgoing.send(_encoded(message, self._encode))
        finally:
            self._sending = False

    async def receive(self) -> Resp | None:
        raw = await self._incoming.receive()
        return None if raw is None else decode(raw, self._decode, self._connection.path)

    async def end(self) -> None:
        self._outgoing.send_end(None)

    def cancel(self) -> None:
        self._connection.cancel_by_client()


_OPEN_MAX: Final = 256  # beyond it those that are over are forgotten


class SimTransport:
    """`Transport` of one host."""

    def __init__(self, network: SimNetwork, host: str) -> None:
        self._network = network
        self._host = host
        self._closed = False
        self._open: list[Connection] = []

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        stream = self.stream(address, method)
        network = self._network
        if network.config.repeat:
            network.repeat(self._host, address, method, _encoded(request, method.encode_request))
        try:
            async with asyncio.timeout(timeout_s):
                await stream.send(request)
                response = await stream.receive()
        except TimeoutError as error:
            raise DeadlineExceeded(f"no answer from {address} in time") from error
        finally:
            stream.cancel()
        if response is None:
            raise ProtocolError(f"{address} ended a call without an answer")
        return response

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        connection = self._network.connect(self._host, address, method.path)
        if len(self._open) > _OPEN_MAX:
            self._open = [known for known in self._open if known in self._network.connections]
        self._open.append(connection)
        if self._closed:
            connection.break_both("the transport is closed")
        return SimStream(
            connection,
            outgoing=connection.requests,
            incoming=connection.responses,
            encode=method.encode_request,
            decode_with=method.decode_response,
        )

    async def close(self) -> None:
        self._closed = True
        for connection in self._open:
            connection.cancel_by_client()


class SimServer:
    """`Server` of one host; owns the tasks of its handlers."""

    def __init__(self, network: SimNetwork, address: str) -> None:
        self._network = network
        self.address = address
        self._calls: dict[str, tuple[Method[Any, Any], CallHandler[Any, Any]]] = {}
        self._streams: dict[str, tuple[Method[Any, Any], StreamHandler[Any, Any]]] = {}
        self._running: list[asyncio.Task[None]] = []
        self.failures: list[Exception] = []  # of handlers, other than SharedLogErrors: our bugs
        # Handlers belong to the host that started the server, not to who happens to call it.
        self._context: contextvars.Context | None = None

    def add_call(self, method: Method[Req, Resp], handler: CallHandler[Req, Resp]) -> None:
        self._calls[method.path] = (method, handler)

    def add_stream(self, method: Method[Req, Resp], handler: StreamHandler[Resp, Req]) -> None:
        self._streams[method.path] = (method, handler)

    def start(self) -> None:
        self._context = contextvars.copy_context()
        self._network.listen(self)

    async def stop(self) -> None:
        """Stop listening and end what runs; peers find their streams broken."""
        self._network.unlisten(self)
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def accept(self, connection: Connection) -> asyncio.Task[None]:
        """Serve a new stream in a task of its own."""
        loop = asyncio.get_running_loop()
        name = f"{self.address} {connection.label}"
        task = loop.create_task(self._serve(connection), name=name, context=self._context)
        self._running.append(task)
        task.add_done_callback(lambda task: self._over(connection, task))
        return task

    async def _serve(self, connection: Connection) -> None:
        if connection.path in self._calls:
            method, handler = self._calls[connection.path]
            raw = await connection.requests.receive()
            if raw is None:
                raise ProtocolError("a call without a request")
            request = decode(raw, method.decode_request, method.path)
            response = _encoded(await handler(request), method.encode_response)
            await connection.responses.send(response)
        elif connection.path in self._streams:
            method, stream_handler = self._streams[connection.path]
            await stream_handler(_server_stream(connection, method))
        else:
            raise ProtocolError(f"{self.address} does not serve {connection.path}")

    def _over(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._running.remove(task)
        if connection.server_crashed:  # its end can't be seen from outside
            return
        if task.cancelled():
            connection.break_both("the peer dropped the stream")
            return
        error = task.exception()
        if error is None:
            connection.responses.send_end(None)
            ended: SharedLogError = Unreachable("the peer has ended the stream")
        elif isinstance(error, SharedLogError):
            connection.responses.send_end(_encoded_error(error))
            ended = error
        else:
            assert isinstance(error, Exception)
            self.failures.append(error)
            ended = ProtocolError(f"{type(error).__name__} in {connection.path}")
            connection.responses.send_end(_encoded_error(ended))
        network = self._network
        delay_s = network.delay(connection.server, connection.client)
        network.after(delay_s, connection.requests.stop_sending, ended)
        connection.requests.stop_receiving()
        connection.end_server()


def _server_stream(connection: Connection, method: Method[Req, Resp]) -> SimStream[Resp, Req]:
    return SimStream(
        connection,
        outgoing=connection.responses,
        incoming=connection.requests,
        encode=method.encode_response,
        decode_with=method.decode_request,
    )


def _encoded(message: object, encode: Callable[[Any], bytes]) -> bytes:
    """As `encode` does it, but maps in an order that is the same in every process."""
    if isinstance(message, Message):
        return message.SerializeToString(deterministic=True)
    return encode(message)


def _encoded_error(error: SharedLogError) -> bytes:
    return error_to_proto(error).SerializeToString(deterministic=True)
