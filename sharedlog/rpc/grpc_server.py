"""`Server` over grpc.aio, with the standard health and reflection services.

The one place where an exception of a handler becomes a gRPC status: the class says which, and the
error itself travels in the trailing metadata, so that our own client raises it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any, Generic

import grpc

from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.rpc.caller import set_caller
from sharedlog.rpc.errors import ERROR_METADATA_KEY, error_to_proto
from sharedlog.rpc.grpc_client import CHANNEL_OPTIONS
from sharedlog.rpc.transport import CallHandler, Method, Req, Resp, StreamHandler, decode

log = logging.getLogger(__name__)

_SERVER_OPTIONS = (
    *CHANNEL_OPTIONS,
    # Two processes on one port would each get half of the connections, in silence.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)

_Context = grpc.aio.ServicerContext[Any, Any]


class GrpcServer:
    """Serves methods on one port until stopped."""

    def __init__(self) -> None:
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._health: Any = None

    def add_call(self, method: Method[Req, Resp], handler: CallHandler[Req, Resp]) -> None:
        """See `Server.add_call`."""

        async def serve(raw: bytes, context: _Context) -> bytes | None:
            set_caller(context.peer)

            async def run() -> bytes:
                request = decode(raw, method.decode_request, method.path)
                return method.encode_response(await handler(request))

            return await _guarded(method.path, context, run())

        self._handlers[method.path] = grpc.unary_unary_rpc_method_handler(serve)

    def add_stream(self, method: Method[Req, Resp], handler: StreamHandler[Resp, Req]) -> None:
        """See `Server.add_stream`."""

        async def serve(_: object, context: _Context) -> None:
            set_caller(context.peer)

            async def run() -> None:
                stream: GrpcServerStream[Resp, Req] = GrpcServerStream(context, method)
                await handler(stream)

            await _guarded(method.path, context, run())

        self._handlers[method.path] = grpc.stream_stream_rpc_method_handler(serve)

    async def start(self, address: str) -> int:
        """Listen on host:port (port 0 takes a free one); returns the port.

        Raises:
            OSError: the address can't be bound, e.g. because it is in use.
        """
        self._server.add_generic_rpc_handlers((_Handlers(self._handlers),))
        services = sorted({path.split("/")[1] for path in self._handlers})
        await self._add_health_and_reflection(services)
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(
                f"can't listen on {address}: is something else listening there?"
            ) from error
        await self._server.start()
        return port

    async def stop(self, *, grace_s: float) -> None:
        """Take no new calls, give those running `grace_s` seconds, then end them."""
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def _add_health_and_reflection(self, services: Sequence[str]) -> None:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
        from grpc_reflection.v1alpha import reflection

        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in ("", *services):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)


class GrpcServerStream(Generic[Resp, Req]):
    """See `ServerStream`."""

    def __init__(self, context: _Context, method: Method[Req, Resp]) -> None:
        self._context = context
        self._method = method
        self.received_bytes = 0  # of messages, as they came
        self.sent_bytes = 0  # likewise, those that were handed to the transport

    async def send(self, message: Resp) -> None:
        """See `Stream.send`."""
        raw = self._method.encode_response(message)
        self.sent_bytes += len(raw)
        try:
            await self._context.write(raw)
        except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
            raise Unreachable("the client went away") from error

    async def receive(self) -> Req | None:
        """See `Stream.receive`."""
        raw: Any = await self._context.read()
        if raw is grpc.aio.EOF:
            return None
        self.received_bytes += len(raw)
        return decode(raw, self._method.decode_request, self._method.path)


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)


async def _guarded(path: str, context: _Context, run: Coroutine[Any, Any, Resp]) -> Resp | None:
    """Run a handler; an error becomes the call's status."""
    try:
        return await run
    except SharedLogError as error:
        status = grpc.StatusCode[error.grpc_status]
        proto = error_to_proto(error)
        detail, wire = proto.message, proto.SerializeToString()
    except (
        Exception
    ) as error:  # the root of a request: it is logged, the caller told, and others go on
        log.exception("rpc.failed", extra={"method": path})
        status, wire = grpc.StatusCode.INTERNAL, b""
        detail = f"{type(error).__name__} in {path}"
    context.set_trailing_metadata(((ERROR_METADATA_KEY, wire),) if wire else ())
    context.set_code(status)
    context.set_details(detail)
    return None
