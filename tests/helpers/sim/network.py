"""A network of simulated hosts: `Transport` and `Server` over virtual time, with faults.

Messages cross as bytes, through the method's own codecs, so that no two processes share an object
and every message that the simulator carries could have been carried by gRPC.

A stream is two pipes, one each way. Within a pipe order is kept and nothing is lost, as TCP has it;
each stream has its own delays, so streams overtake one another. What goes wrong goes wrong as it
does under TCP and HTTP/2:

- delay, mostly short and sometimes long (`NetworkConfig`);
- `cut` stops messages from one host to another, in one direction or both. What is under way waits
  and arrives after `mend`, unless the cut outlives `keepalive_s`: then the streams of that pair
  break;
- `break_connections` breaks the streams of a pair at once: what is under way is lost;
- `crash` ends a host. Its peers are told (the kernel's reset) after a delay, or, if `silent`,
  find out by `keepalive_s` like the peers of a machine that lost its power.

A pipe holds at most `window_messages` that were not received; more make `send` wait.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic

from helpers.sim.world import World

from sharedlog.errors import DeadlineExceeded, ProtocolError, SharedLogError, Unreachable
from sharedlog.rpc.errors import error_from_proto, error_to_proto
from sharedlog.rpc.transport import (
    CallHandler,
    ClientStream,
    Method,
    Req,
    Resp,
    StreamHandler,
    decode,
)
from sharedlog.v1 import types_pb2

_REAL_MACHINE = ("GetStatus",)
"""Methods whose answers tell of the machine that runs the simulation, e.g. its memory in use: their
content is no part of the trace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """How the network behaves when nothing is broken; times in seconds."""

    delay_min_s: float = 0.000_05
    delay_max_s: float = 0.000_5
    slow_probability: float = 0.01
    """Of a message that takes up to `slow_max_s` instead."""
    slow_max_s: float = 0.03
    keepalive_s: float = 15.0
    """After so long without a way through, both ends give a stream up."""
    window_messages: int = 64


@dataclass(frozen=True, slots=True)
class _End:
    """The last thing in a pipe: the sender is done, or failed with a wire-encoded error."""

    error: bytes | None


class SimNetwork:
    """All hosts. A host is the part of an address before the colon, and one process at a time."""

    def __init__(self, world: World, config: NetworkConfig | None = None) -> None:
        self.config = config or NetworkConfig()
        self.trace = world.trace
        self._random = world.random("network")
        self._servers: dict[str, SimServer] = {}
        self._connections: list[_Connection] = []  # open ones, in order of opening
        self._cuts: dict[tuple[str, str], int] = {}  # (from, to) → number of the cut
        self._cut_count = 0
        self._powered_off: set[str] = set()  # crashed silently: not even a refusal comes back

    def transport(self, host: str) -> SimTransport:
        """A process's way out."""
        return SimTransport(self, host)

    def server(self, address: str) -> SimServer:
        """A process's way in; it is reached once `start` was called."""
        return SimServer(self, address)

    def cut(self, source: str, target: str, *, both_ways: bool = True) -> None:
        """Let nothing through from `source` to `target`."""
        self.trace.add(f"cut {source} {target} {'both' if both_ways else 'one'}")
        for pair in [(source, target), (target, source)][: 2 if both_ways else 1]:
            self._cut_count += 1
            self._cuts[pair] = self._cut_count
            loop = asyncio.get_running_loop()
            loop.call_later(self.config.keepalive_s, self._give_up, pair, self._cut_count)

    def mend(self, source: str, target: str) -> None:
        """Undo `cut`, both ways: what waited is delivered."""
        self.trace.add(f"mend {source} {target}")
        for pair in ((source, target), (target, source)):
            self._cuts.pop(pair, None)
        for connection in self._between(source, target):
            connection.flush()

    def break_connections(self, one: str, other: str) -> None:
        """Break every stream between two hosts; what is under way is lost."""
        self.trace.add(f"break {one} {other}")
        for connection in self._between(one, other):
            connection.break_both("the connection broke")

    def crash(self, host: str, *, silent: bool = False) -> None:
        """End a host's process; `silent`: nobody is told, as when the machine loses its power."""
        self.trace.add(f"crash {host}{' silent' if silent else ''}")
        if silent:
            self._powered_off.add(host)
        for address in [address for address in self._servers if host_of(address) == host]:
            del self._servers[address]
        for connection in [c for c in self._connections if host in (c.client, c.server)]:
            connection.crash(host, silent=silent)

    def is_cut(self, source: str, target: str) -> bool:
        """Nothing gets through now."""
        gone = self._powered_off
        return (source, target) in self._cuts or source in gone or target in gone

    def delay(self) -> float:
        """How long one message takes."""
        config, draw = self.config, self._random
        if draw.random() < config.slow_probability:
            return draw.uniform(config.delay_max_s, config.slow_max_s)
        return draw.uniform(config.delay_min_s, config.delay_max_s)

    def listen(self, server: SimServer) -> None:
        assert server.address not in self._servers, f"{server.address} is in use"
        self._powered_off.discard(host_of(server.address))
        self._servers[server.address] = server

    def unlisten(self, server: SimServer) -> None:
        if self._servers.get(server.address) is server:
            del self._servers[server.address]

    def connect(self, client: str, address: str, path: str) -> _Connection:
        """Open a stream; the server hears of it, or refuses it, after a delay."""
        connection = _Connection(self, client, address, path)
        self._connections.append(connection)
        return connection

    def find_server(self, address: str) -> SimServer | None:
        return self._servers.get(address)

    def forget(self, connection: _Connection) -> None:
        if connection in self._connections:
            self._connections.remove(connection)

    def _between(self, one: str, other: str) -> list[_Connection]:
        return [c for c in self._connections if {c.client, c.server} == {one, other}]

    def _give_up(self, pair: tuple[str, str], number: int) -> None:
        if self._cuts.get(pair) == number:
            for connection in self._between(*pair):
                connection.break_both("keepalive got no answer")
            loop = asyncio.get_running_loop()
            loop.call_later(self.config.keepalive_s, self._give_up, pair, number)


class _Connection:
    """One stream between two hosts: a pipe each way, and the handler at the server's end."""

    def __init__(self, network: SimNetwork, client: str, address: str, path: str) -> None:
        self.network = network
        self.client = client
        self.server = host_of(address)
        self.address = address
        self.path = path
        self.label = path.rsplit("/", 1)[-1]
        self.requests = _Pipe(self, client, self.server, on_first=self._accept)
        self.responses = _Pipe(self, self.server, client)
        self.accepted: SimServer | None = None
        self.handler: asyncio.Task[None] | None = None
        self.server_crashed = False
        self._client_over = False
        self._server_over = False
        loop = asyncio.get_running_loop()
        # The opening itself is a message: an unreachable server shows even if nothing is sent.
        self.requests.carry(None)
        self._patience = loop.call_later(network.config.keepalive_s, self._no_answer)

    def _no_answer(self) -> None:
        if self.accepted is None:
            self.break_both("no connection in time")

    def _accept(self) -> None:
        server = self.network.find_server(self.address)
        if server is None:
            self.trace(f"refused {self.label}")
            self.responses.break_after_delay(f"can't reach {self.address}: connection refused")
            return
        self.accepted = server
        self.handler = server.accept(self)

    def trace(self, event: str) -> None:
        self.network.trace.add(f"{self.client}-{self.server} {event}")

    def flush(self) -> None:
        self.requests.flush()
        self.responses.flush()

    def break_both(self, why: str) -> None:
        """Both ends find the stream broken, now."""
        error = Unreachable(f"can't reach {self.address}: {why}")
        self.requests.fail(error)
        self.responses.fail(error)
        self.end_client()
        self.end_server()

    def crash(self, host: str, *, silent: bool) -> None:
        """One end is gone at once; the other notices later."""
        error = Unreachable(f"{host} is gone")
        dead, other = (
            (self.responses, self.requests)
            if host == self.server
            else (self.requests, self.responses)
        )
        dead.stop_sending(error)  # what it had already sent may still arrive
        other.stop_receiving()
        if host == self.server:
            self.server_crashed = True
            self.end_server()
        else:
            self.end_client()
        after = self.network.config.keepalive_s if silent else self.network.delay()
        asyncio.get_running_loop().call_later(after, self.break_both, "connection reset")

    def cancel_by_client(self) -> None:
        """The client dropped the stream: the server hears of it after a delay."""
        if self._client_over:
            return
        error = Unreachable("the stream was cancelled here")
        self.requests.stop_sending(error)
        self.responses.fail(error)
        self.end_client()
        self.requests.reset_after_delay(self.end_server)

    def end_client(self) -> None:
        self._client_over = True
        self._forget_if_over()

    def end_server(self) -> None:
        """Nothing is left to do at the server's end."""
        self._server_over = True
        if self.handler is not None:
            self.handler.cancel()
        self._forget_if_over()

    def _forget_if_over(self) -> None:
        if self._client_over and self._server_over:
            self._patience.cancel()
            self.network.forget(self)


class _Pipe:
    """One direction of a stream: under way, arrived, and whoever waits at its ends."""

    def __init__(
        self,
        connection: _Connection,
        source: str,
        target: str,
        *,
        on_first: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._network = connection.network
        self._source = source
        self._target = target
        self._on_first = on_first
        self._under_way: deque[bytes | _End | None] = deque()
        self._arrived: deque[bytes | _End] = deque()
        # Invariant: _unreceived <= window_messages, the messages under way and arrived.
        self._unreceived = 0
        self._due_s = 0.0  # when the last one under way arrives
        self._to_deliver = 0  # of those under way: due, but held by a cut
        self._sender_error: SharedLogError | None = None
        self._receiver_error: SharedLogError | None = None
        self._receiving = True
        self._changed: asyncio.Event = asyncio.Event()

    async def send(self, message: bytes) -> None:
        while (
            self._sender_error is None and self._unreceived >= self._network.config.window_messages
        ):
            await self._wait()
        if self._sender_error is not None:
            raise self._sender_error
        self._unreceived += 1
        self.carry(message)

    def send_end(self, error: bytes | None) -> None:
        """The sender is done; what it sent before arrives before."""
        if self._sender_error is None:
            self._sender_error = Unreachable("nothing can be sent after the end of the stream")
            self.carry(_End(error))

    def carry(self, message: bytes | _End | None) -> None:
        """Put something on its way, behind all that is."""
        loop = asyncio.get_running_loop()
        self._due_s = max(self._due_s, loop.time() + self._network.delay())
        self._under_way.append(message)
        loop.call_at(self._due_s, self._deliver_one)

    async def receive(self) -> bytes | None:
        while not self._arrived:
            if self._receiver_error is not None:
                raise self._receiver_error
            await self._wait()
        message = self._arrived[0]
        if isinstance(message, _End):  # stays: asked again it answers the same
            if message.error is None:
                return None
            raise error_from_proto(types_pb2.Error.FromString(message.error))
        self._arrived.popleft()
        self._unreceived -= 1
        self._change()
        return message

    def fail(self, error: SharedLogError) -> None:
        """Both ends of the pipe find it broken; what is under way is lost."""
        self._under_way.clear()
        self._to_deliver = 0
        self._receiving = False
        if self._sender_error is None:
            self._sender_error = error
        if not any(isinstance(message, _End) for message in self._arrived):
            self._arrived.clear()
            self._receiver_error = error
        self._change()

    def stop_sending(self, error: SharedLogError) -> None:
        """Nothing more goes in."""
        self._sender_error = error
        self._change()

    def stop_receiving(self) -> None:
        """The receiver is no more: whatever arrives is dropped."""
        self._receiving = False

    def break_after_delay(self, why: str) -> None:
        """The receiver finds the pipe broken after a delay."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._network.delay(), self._connection.break_both, why)

    def reset_after_delay(self, then: Callable[[], None]) -> None:
        """The receiver is told of a reset, which overtakes nothing but drops what is unread."""
        loop = asyncio.get_running_loop()

        def reset() -> None:
            if self._network.is_cut(self._source, self._target):
                loop.call_later(self._network.config.keepalive_s, then)
                return
            self.fail(Unreachable("the client went away"))
            then()

        loop.call_later(self._network.delay(), reset)

    def flush(self) -> None:
        """The cut is mended: what was held arrives now."""
        held, self._to_deliver = self._to_deliver, 0
        for _ in range(held):
            self._deliver_one()

    def _deliver_one(self) -> None:
        if not self._under_way:  # lost by `fail`
            return
        if self._network.is_cut(self._source, self._target):
            self._to_deliver += 1
            return
        message = self._under_way.popleft()
        if message is None:
            if self._on_first is not None and self._receiving:
                self._on_first()
            return
        if not self._receiving:
            return
        self._trace(message)
        self._arrived.append(message)
        self._change()

    def _trace(self, message: bytes | _End) -> None:
        label = self._connection.label
        if isinstance(message, _End):
            what = "end" if message.error is None else "error"
        elif label in _REAL_MACHINE:
            what = "?"
        else:
            what = f"{len(message)}B {zlib.crc32(message):08x}"
        self._network.trace.add(f"{self._source}>{self._target} {label} {what}")

    async def _wait(self) -> None:
        event = self._changed
        await event.wait()

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class SimStream(Generic[Req, Resp]):
    """One end of a stream; `Req` is what it sends."""

    def __init__(
        self,
        connection: _Connection,
        *,
        outgoing: _Pipe,
        incoming: _Pipe,
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
            await self._outgoing.send(self._encode(message))
        finally:
            self._sending = False

    async def receive(self) -> Resp | None:
        raw = await self._incoming.receive()
        return None if raw is None else decode(raw, self._decode, self._connection.path)

    async def end(self) -> None:
        self._outgoing.send_end(None)

    def cancel(self) -> None:
        self._connection.cancel_by_client()


class SimTransport:
    """`Transport` of one host."""

    def __init__(self, network: SimNetwork, host: str) -> None:
        self._network = network
        self._host = host
        self._closed = False
        self._open: list[_Connection] = []

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        stream = self.stream(address, method)
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
        self._open = [known for known in self._open if known in self._network._connections]
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

    def add_call(self, method: Method[Req, Resp], handler: CallHandler[Req, Resp]) -> None:
        self._calls[method.path] = (method, handler)

    def add_stream(self, method: Method[Req, Resp], handler: StreamHandler[Resp, Req]) -> None:
        self._streams[method.path] = (method, handler)

    def start(self) -> None:
        self._network.listen(self)

    async def stop(self) -> None:
        """Stop listening and end what runs; peers find their streams broken."""
        self._network.unlisten(self)
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    def accept(self, connection: _Connection) -> asyncio.Task[None]:
        """Serve a new stream in a task of its own."""
        loop = asyncio.get_running_loop()
        name = f"{self.address} {connection.label}"
        task = loop.create_task(self._serve(connection), name=name)
        self._running.append(task)
        task.add_done_callback(lambda task: self._over(connection, task))
        return task

    async def _serve(self, connection: _Connection) -> None:
        if connection.path in self._calls:
            method, handler = self._calls[connection.path]
            raw = await connection.requests.receive()
            if raw is None:
                raise ProtocolError("a call without a request")
            request = decode(raw, method.decode_request, method.path)
            response = method.encode_response(await handler(request))
            await connection.responses.send(response)
        elif connection.path in self._streams:
            method, stream_handler = self._streams[connection.path]
            await stream_handler(_server_stream(connection, method))
        else:
            raise ProtocolError(f"{self.address} does not serve {connection.path}")

    def _over(self, connection: _Connection, task: asyncio.Task[None]) -> None:
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
            connection.responses.send_end(error_to_proto(error).SerializeToString())
            ended = error
        else:
            assert isinstance(error, Exception)
            self.failures.append(error)
            ended = ProtocolError(f"{type(error).__name__} in {connection.path}")
            connection.responses.send_end(error_to_proto(ended).SerializeToString())
        loop = asyncio.get_running_loop()
        loop.call_later(self._network.delay(), connection.requests.stop_sending, ended)
        connection.requests.stop_receiving()
        connection.end_server()


def _server_stream(connection: _Connection, method: Method[Req, Resp]) -> SimStream[Resp, Req]:
    return SimStream(
        connection,
        outgoing=connection.responses,
        incoming=connection.requests,
        encode=method.encode_response,
        decode_with=method.decode_request,
    )


def host_of(address: str) -> str:
    """The host of "host:port"."""
    return address.rsplit(":", 1)[0]
