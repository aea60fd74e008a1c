"""The interfaces that shells speak to instead of gRPC, so that the simulator can stand in for it.

Two kinds of method are enough: a *call* (one request, one answer) and a *stream* (any number of
messages each way, flow-controlled; one that takes a single request simply receives once).

Messages cross this interface as objects; a `Method` says how they become bytes. An in-process
transport passes the objects themselves, so a message must not be changed once it has been sent.

Errors: whatever a handler raises as a `SharedLogError` is raised again, same class and fields, by
the peer's `call` or `receive`. A connection that can't be made or breaks raises `Unreachable`;
anything else that goes wrong at the peer is a `ProtocolError`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from sharedlog.errors import ProtocolError, SharedLogError

Req = TypeVar("Req")
Resp = TypeVar("Resp")
Message = TypeVar("Message")
Sent = TypeVar("Sent", contravariant=True)
Received = TypeVar("Received", covariant=True)


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Resp]):
    """One method of a service: its path on the wire, and how its messages become bytes and back.

    `path` is "/sharedlog.v1.LogService/Append". A decoder may raise anything on malformed bytes;
    the peer then gets an error and the connection lives on.
    """

    path: str
    encode_request: Callable[[Req], bytes]
    decode_request: Callable[[bytes], Req]
    encode_response: Callable[[Resp], bytes]
    decode_response: Callable[[bytes], Resp]
    streaming: bool = False
    waiting_max: int = 64
    """Messages that may wait in one direction of a stream within a process, where nothing else
    bounds them; a `send` beyond it waits for the reader."""


def decode(raw: bytes, decoder: Callable[[bytes], Message], path: str) -> Message:
    """Run one of a method's decoders on what the peer sent.

    gRPC's own call of a decoder would log its failure and then deliver None, as if the stream had
    ended well.

    Raises:
        ProtocolError: malformed bytes.
        SharedLogError: as the decoder raised it.
    """
    try:
        return decoder(raw)
    except SharedLogError:
        raise
    except Exception as error:  # a decoder may raise anything, and the peer is to blame for it
        kind = type(error).__name__
        raise ProtocolError(f"{len(raw)} bytes that are no message of {path}: {kind}") from error


class Stream(Protocol[Sent, Received]):
    """One side of a stream. At most one `send` and one `receive` at a time."""

    async def send(self, message: Sent) -> None:
        """Send; waits while the peer does not read (flow control).

        Raises:
            Unreachable: the connection is gone, or the peer has ended the stream.
            SharedLogError: the peer ended the stream with this error.

        **Cancellation:** the message may or may not have been sent; the stream must not be used for
        sending again.
        """
        ...

    async def receive(self) -> Received | None:
        """The next message, or None once the peer has ended the stream well.

        Raises:
            Unreachable: the connection is gone.
            SharedLogError: the peer ended the stream with this error.

        **Cancellation:** safe on the client's side only between messages: treat the stream as used
        up.
        """
        ...


class ClientStream(Stream[Sent, Received], Protocol[Sent, Received]):
    """The side that opened the stream."""

    async def end(self) -> None:
        """Say that nothing more will be sent; the peer's `receive` returns None."""
        ...

    def cancel(self) -> None:
        """Drop the stream at once, both ways. Idempotent, also after the stream's end."""
        ...


class ServerStream(Stream[Sent, Received], Protocol[Sent, Received]):
    """The side of the handler. It ends when the handler returns (well) or raises (so)."""


class Transport(Protocol):
    """Opens calls and streams to addresses (host:port).

    Connections are made, shared and made anew within.
    """

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        """One request, one answer.

        Raises:
            Unreachable: no connection within the time, or it broke: the peer may have done the
            work. DeadlineExceeded: no answer in time: the peer may have done the work.
            SharedLogError: what the peer's handler raised.

        **Cancellation:** stops the wait, not what the peer does.
        """
        ...

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        """Open a stream.

        Returns at once; a connection that can't be made shows in `send` or `receive`. The
        caller must `cancel` it when done, whatever happened.
        """
        ...

    async def close(self) -> None:
        """Close all connections; streams still open end as `Unreachable`."""
        ...


CallHandler = Callable[[Req], Awaitable[Resp]]
StreamHandler = Callable[[ServerStream[Resp, Req]], Awaitable[None]]


class Server(Protocol):
    """Takes calls and streams. Handlers are added before it starts."""

    def add_call(self, method: Method[Req, Resp], handler: CallHandler[Req, Resp]) -> None:
        """Serve a call. The handler is cancelled if the caller goes away."""
        ...

    def add_stream(self, method: Method[Req, Resp], handler: StreamHandler[Resp, Req]) -> None:
        """Serve a stream. The handler is cancelled if the peer goes away."""
        ...
