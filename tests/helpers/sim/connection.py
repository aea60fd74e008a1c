"""A stream of the simulated network: two pipes, one each way. See `network.py`."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.rpc.errors import error_from_proto
from sharedlog.v1 import types_pb2

if TYPE_CHECKING:
    from helpers.sim.network import SimNetwork
    from helpers.sim.transport import SimServer

_REAL_MACHINE = ("GetStatus",)
"""Methods whose answers tell of the machine that runs the simulation, e.g. its memory in use: their
content is no part of the trace."""


@dataclass(frozen=True, slots=True)
class End:
    """The last thing in a pipe: the sender is done, or failed with a wire-encoded error."""

    error: bytes | None


class Connection:
    """One stream between two hosts: a pipe each way, and the handler at the server's end."""

    def __init__(self, network: SimNetwork, client: str, address: str, path: str) -> None:
        self.network = network
        self.client = client
        self.server = host_of(address)
        self.address = address
        self.path = path
        self.label = path.rsplit("/", 1)[-1]
        self.requests = Pipe(self, client, self.server, on_first=self._accept)
        self.responses = Pipe(self, self.server, client)
        self.accepted: SimServer | None = None
        self.handler: asyncio.Task[None] | None = None
        self.server_crashed = False
        self._client_over = False
        self._server_over = False
        # The opening itself is a message: an unreachable server shows even if nothing is sent.
        self.requests.carry(None)
        network.after(network.config.keepalive_s, self._no_answer)

    def _no_answer(self) -> None:
        if self.accepted is None:
            self.break_both("no connection in time")

    def _accept(self) -> None:
        server = self.network.find_server(self.address)
        if server is None or self.network.is_refused(self.client, self.server):
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
        network = self.network
        after_s = network.config.keepalive_s
        if not silent:
            after_s = network.delay(host, self.client if host == self.server else self.server)
        network.after(after_s, self.break_both, "connection reset")

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
            self.network.forget(self)


class Pipe:
    """One direction of a stream: under way, arrived, and whoever waits at its ends."""

    def __init__(
        self,
        connection: Connection,
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
        self._under_way: deque[bytes | End | None] = deque()
        self._arrived: deque[bytes | End] = deque()
        # The messages under way and arrived; `send` keeps it within window_messages.
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
        self.carry(message)

    def send_end(self, error: bytes | None) -> None:
        """The sender is done; what it sent before arrives before."""
        if self._sender_error is None:
            self._sender_error = Unreachable("nothing can be sent after the end of the stream")
            self.carry(End(error))

    def carry(self, message: bytes | End | None) -> None:
        """Put something on its way, behind all that is."""
        self._unreceived += isinstance(message, bytes)
        loop = asyncio.get_running_loop()
        network = self._network
        delay_s = network.delay(self._source, self._target)
        self._due_s = max(self._due_s, loop.time() + delay_s)
        self._under_way.append(message)
        loop.call_at(self._due_s, self._deliver_one, context=network.context)

    async def receive(self) -> bytes | None:
        while not self._arrived:
            if self._receiver_error is not None:
                raise self._receiver_error
            await self._wait()
        message = self._arrived[0]
        if isinstance(message, End):  # stays: asked again it answers the same
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
        if not any(isinstance(message, End) for message in self._arrived):
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
        network = self._network
        delay_s = network.delay(self._source, self._target)
        network.after(delay_s, self._connection.break_both, why)

    def reset_after_delay(self, then: Callable[[], None]) -> None:
        """The receiver is told of a reset, which overtakes nothing but drops what is unread."""
        network = self._network

        def reset() -> None:
            if network.is_cut(self._source, self._target):
                network.after(network.config.keepalive_s, then)
                return
            self.fail(Unreachable("the client went away"))
            then()

        network.after(network.delay(self._source, self._target), reset)

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

    def _trace(self, message: bytes | End) -> None:
        label = self._connection.label
        if isinstance(message, End):
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


def host_of(address: str) -> str:
    """The host of "host:port"."""
    return address.rsplit(":", 1)[0]
