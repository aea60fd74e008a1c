"""`Transport` over grpc.aio.

One channel per address, shared by everything in the process: gRPC multiplexes streams on one
connection and re-makes it with back-off. The back-off is kept short, since a node that restarts is
back within a second and its peers should find it at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, NoReturn

import grpc

from sharedlog.errors import DeadlineExceeded, ProtocolError, SharedLogError, Unreachable
from sharedlog.limits import KIB, MESSAGE_BYTES_MAX
from sharedlog.rpc.errors import ERROR_METADATA_KEY, error_from_proto
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp, decode
from sharedlog.v1 import types_pb2

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # Room for an error's trailing metadata whatever its texts hold.
    ("grpc.max_metadata_size", 64 * KIB),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Notices a peer that went away without closing: a black-holed connection never ends by itself.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
)


ErrorOfStatus = Callable[[str, grpc.StatusCode, str], SharedLogError]
"""What address, status and details mean, if no error of ours came with them."""


class GrpcTransport:
    """Calls and streams over gRPC.

    What it can be told is for servers that are not ours.

    Args:
        credentials: For TLS; None: in clear text.
        options: Instead of those of `CHANNEL_OPTIONS` that have the same name.
        metadata: Goes with each call and stream; asked for at its start.
        error_of: Reads the errors of a server that does not send ours.
    """

    def __init__(
        self,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        options: Mapping[str, int] = {},
        metadata: Callable[[], Sequence[tuple[str, str]]] = tuple,
        error_of: ErrorOfStatus | None = None,
    ) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._credentials = credentials
        self._options = tuple((dict(CHANNEL_OPTIONS) | dict(options)).items())
        self._metadata = metadata
        self._error_of = error_of or error_of_status

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        """See `Transport.call`."""
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
        call = self._channel(address).unary_unary(method.path)
        try:
            raw: Any = await call(
                method.encode_request(request), timeout=timeout_s, metadata=self._metadata()
            )
        except grpc.aio.AioRpcError as error:
            raise _typed_error(address, error, self._error_of) from error
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise _closed_here(address) from None
        return decode(raw, method.decode_response, method.path)

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        """See `Transport.stream`."""
        call: grpc.aio.StreamStreamCall[Any, Any]
        call = self._channel(address).stream_stream(method.path)(metadata=self._metadata())
        return GrpcClientStream(address, method, call, self._error_of)

    async def close(self) -> None:
        """See `Transport.close`."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(address, options=self._options)
            else:
                channel = grpc.aio.secure_channel(address, self._credentials, options=self._options)
            self._channels[address] = channel
        return channel


class GrpcClientStream(Generic[Req, Resp]):
    """See `ClientStream`."""

    def __init__(
        self,
        address: str,
        method: Method[Req, Resp],
        call: grpc.aio.StreamStreamCall[Any, Any],
        error_of: ErrorOfStatus,
    ) -> None:
        self._address = address
        self._method = method
        self._call = call
        self._error_of = error_of

    async def send(self, message: Req) -> None:
        """See `Stream.send`."""
        try:
            await self._call.write(self._method.encode_request(message))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            await self._raise_status(error)
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise _closed_here(self._address) from None

    async def receive(self) -> Resp | None:
        """See `Stream.receive`."""
        try:
            raw: Any = await self._call.read()
            if raw is grpc.aio.EOF and await self._call.code() is not grpc.StatusCode.OK:
                await self._raise_status(None)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            await self._raise_status(error)
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise _closed_here(self._address) from None
        if raw is grpc.aio.EOF:
            return None
        return decode(raw, self._method.decode_response, self._method.path)

    async def end(self) -> None:
        """See `ClientStream.end`."""
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            await self._raise_status(error)
        except asyncio.CancelledError:
            if _task_is_cancelled():
                raise
            raise _closed_here(self._address) from None

    def cancel(self) -> None:
        """See `ClientStream.cancel`."""
        self._call.cancel()

    async def _raise_status(self, cause: Exception | None) -> NoReturn:
        """Raise what ended the stream, as the peer's trailing metadata tells it."""
        call = self._call
        if isinstance(cause, grpc.aio.AioRpcError):
            raise _typed_error(self._address, cause, self._error_of) from cause
        if not call.done():  # then `code` would wait for the stream's end
            raise Unreachable("nothing can be sent after the end of the stream") from cause
        error = grpc.aio.AioRpcError(
            await call.code(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
            details=await call.details(),
        )
        raise _typed_error(self._address, error, self._error_of) from cause


def _typed_error(
    address: str, error: grpc.aio.AioRpcError, error_of: ErrorOfStatus
) -> SharedLogError:
    for key, value in error.trailing_metadata() or ():
        if key == ERROR_METADATA_KEY and isinstance(value, bytes):
            return error_from_proto(decode(value, types_pb2.Error.FromString, ERROR_METADATA_KEY))
    return error_of(address, error.code(), error.details() or "")


_NO_CONNECTION: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

# Words of gRPC's own, by which it says with another status that the connection broke. The first
# takes the place of the status that the peer sent, if it sent one
# (https://github.com/grpc/grpc/issues/36066).
_WRITE_FAILED: Final = "Internal error from Core"
_BROKEN: Final = (
    (grpc.StatusCode.INTERNAL, _WRITE_FAILED),
    (grpc.StatusCode.INTERNAL, "RST_STREAM"),
    (grpc.StatusCode.UNKNOWN, "Stream removed"),
)
TOO_LARGE: Final = "larger than max"
"""Of gRPC's own words too: the message is larger than this side takes."""


def error_of_status(address: str, status: grpc.StatusCode, details: str) -> SharedLogError:
    """What a status means that came without an error of ours: a proxy's, or gRPC's own.

    Whoever sent it does not know our promises, so none of these is definite, whatever the status
    says: a proxy's `NOT_FOUND` is not about a log.
    """
    if status is grpc.StatusCode.OK:
        return Unreachable(f"{address} has ended the stream")
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"no answer from {address} in time")
    if status in _NO_CONNECTION:
        return Unreachable(f"can't reach {address}: {details}")
    if any(status is broken and words in details for broken, words in _BROKEN):
        return Unreachable(f"the connection to {address} broke: {details}")
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and TOO_LARGE not in details:
        return Unreachable(f"{address} takes no more calls now: {details}")
    return ProtocolError(f"{address} answered {status.name}: {details}")


def _task_is_cancelled() -> bool:
    """Tell the two meanings of `CancelledError` apart.

    gRPC raises it both when the task that waits is cancelled and when the call was, by `cancel` or
    by closing its channel; only the first is the task's own.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _closed_here(address: str) -> Unreachable:
    return Unreachable(f"the stream or connection to {address} was closed here")
