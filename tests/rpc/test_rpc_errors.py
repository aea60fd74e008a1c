"""Errors between processes: class, message and fields arrive as they were raised."""

from __future__ import annotations

import contextlib
import json
import socket
from typing import Any

import grpc
import pytest
from helpers.all_errors import BYTES, CLASSES, example, with_grpc

from sharedlog import errors
from sharedlog.errors import InvalidLogName, ProtocolError, SharedLogError
from sharedlog.rpc.errors import TEXT_BYTES_MAX, copy_error, error_from_proto, error_to_proto
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.transport import Method
from sharedlog.v1 import types_pb2


@pytest.mark.parametrize("cls", CLASSES, ids=lambda found: found.__name__)
def test_every_error_survives_the_wire(cls: type[SharedLogError]) -> None:
    """Class, message and fields are the same after the way through bytes."""
    error = example(cls)
    raw = error_to_proto(error).SerializeToString()
    back = error_from_proto(types_pb2.Error.FromString(raw))
    assert type(back) is cls
    assert str(back) == str(error)
    assert vars(back) == vars(error)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda found: found.__name__)
def test_every_error_has_a_status_and_its_fields_are_json(cls: type[SharedLogError]) -> None:
    """`grpc_status` names a real status other than OK, and no name is used twice."""
    assert grpc.StatusCode[cls.grpc_status] is not grpc.StatusCode.OK
    assert [found.__name__ for found in CLASSES].count(cls.__name__) == 1
    json.dumps(vars(example(cls)))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda found: found.__name__)
def test_a_copy_is_equal_and_names_its_origin(cls: type[SharedLogError]) -> None:
    """`copy_error` makes another error with the same content."""
    error = example(cls)
    copied = copy_error(error)
    assert copied is not error
    assert type(copied) is cls
    assert (str(copied), vars(copied)) == (str(error), vars(error))
    assert copied.__cause__ is error


def test_every_error_is_in_the_tree_of_the_docstring() -> None:
    """The page that a reader sees first lists all that `sharedlog.errors` defines."""
    listed = errors.__doc__ or ""
    for cls in CLASSES:
        if cls.__module__ == "sharedlog.errors":
            assert cls.__name__ in listed.split(), cls.__name__


def test_a_class_of_a_newer_version_is_a_protocol_error() -> None:
    """An unknown kind keeps its name and message for a person."""
    back = error_from_proto(types_pb2.Error(kind="FromTheFuture", message="look out"))
    assert type(back) is ProtocolError
    assert str(back) == "FromTheFuture: look out"


def test_malformed_fields_are_a_protocol_error() -> None:
    """A peer's garbage never raises anything but a typed error."""
    wire = types_pb2.Error(kind="LogNotFound", message="m", fields={"name": "{not json"})
    assert type(error_from_proto(wire)) is ProtocolError


BYTES_STREAM: Method[bytes, bytes] = Method(
    "/sharedlog.v1.TestService/BytesStream", bytes, bytes, bytes, bytes, streaming=True
)
TEXT: Method[str, str] = Method(BYTES.path, str.encode, bytes.decode, str.encode, bytes.decode)
TEXT_STREAM: Method[str, str] = Method(
    BYTES_STREAM.path, str.encode, bytes.decode, str.encode, bytes.decode, streaming=True
)


async def test_garbage_in_a_request_is_an_error_and_the_connection_lives() -> None:
    """What a handler's decoder refuses never reaches the handler; the next request does."""

    async def echo(request: str) -> str:
        return request

    async def scenario(transport: GrpcTransport, address: str) -> None:
        with pytest.raises(ProtocolError, match="no message of"):
            await transport.call(address, BYTES, b"\xff\xff", timeout_s=5)
        assert await transport.call(address, BYTES, b"fine", timeout_s=5) == b"fine"

    await with_grpc(lambda server: server.add_call(TEXT, echo), scenario)


async def test_garbage_in_a_stream_ends_it_with_an_error() -> None:
    """It is not taken for the stream's end, which would lose what follows in silence."""
    got = []

    async def collect(stream: Any) -> None:
        while (message := await stream.receive()) is not None:
            got.append(message)

    async def scenario(transport: GrpcTransport, address: str) -> None:
        stream = transport.stream(address, BYTES_STREAM)
        await stream.send(b"fine")
        await stream.send(b"\xff\xff")
        with pytest.raises(ProtocolError, match="no message of"):
            await stream.receive()
        stream.cancel()

    await with_grpc(lambda server: server.add_stream(TEXT_STREAM, collect), scenario)
    assert got == ["fine"]


async def test_garbage_in_an_answer_is_an_error_and_not_the_end() -> None:
    """The client's side decodes as strictly: gRPC alone would deliver None."""

    async def garbage(request: bytes) -> bytes:
        return b"\xff\xff"

    async def garbage_stream(stream: Any) -> None:
        await stream.send(b"\xff\xff")

    def add(server: GrpcServer) -> None:
        server.add_call(BYTES, garbage)
        server.add_stream(BYTES_STREAM, garbage_stream)

    async def scenario(transport: GrpcTransport, address: str) -> None:
        with pytest.raises(ProtocolError, match="no message of"):
            await transport.call(address, TEXT, "x", timeout_s=5)
        stream = transport.stream(address, TEXT_STREAM)
        with pytest.raises(ProtocolError, match="no message of"):
            await stream.receive()
        stream.cancel()

    await with_grpc(add, scenario)


@pytest.mark.parametrize("text", ["n", "ü", "𝄞", "\0", '"'])
async def test_a_long_text_in_an_error_is_cut_and_the_error_arrives(text: str) -> None:
    """An error travels in a header, and gRPC drops a call with large headers: texts are bounded."""

    async def refuse(request: bytes) -> bytes:
        raise InvalidLogName(name=text * 1_000_000)

    async def scenario(transport: GrpcTransport, address: str) -> None:
        with pytest.raises(InvalidLogName) as it:
            await transport.call(address, BYTES, b"", timeout_s=5)
        assert TEXT_BYTES_MAX - 10 < len(it.value.name.encode()) <= TEXT_BYTES_MAX
        assert TEXT_BYTES_MAX - 10 < len(str(it.value).encode()) <= TEXT_BYTES_MAX

    await with_grpc(lambda server: server.add_call(BYTES, refuse), scenario)


async def test_a_generated_client_sees_status_and_text() -> None:
    """A client that knows nothing of ours gets the class's status and the message as details."""

    async def refuse(request: bytes) -> bytes:
        raise InvalidLogName(name="no good")

    async def scenario(transport: GrpcTransport, address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(BYTES.path)
            with pytest.raises(grpc.aio.AioRpcError) as it:
                await call(b"")
        assert it.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "'no good' is no log name" in (it.value.details() or "")

    await with_grpc(lambda server: server.add_call(BYTES, refuse), scenario)


async def test_garbage_on_the_port_does_not_stop_the_server() -> None:
    """Bytes that are no HTTP/2 at all disturb no other connection.

    When gRPC hangs up on such a peer is its own business; on a busy machine it may take long.
    """

    async def echo(request: bytes) -> bytes:
        return request

    async def scenario(transport: GrpcTransport, address: str) -> None:
        host, port = address.split(":")
        for noise in (b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 16, b"\x00" * 10):
            # A plain socket: whatever fails, it is closed here and not found by a later test.
            with socket.create_connection((host, int(port))) as connection:
                with contextlib.suppress(OSError):  # the server may hang up at any moment
                    connection.sendall(noise)
                    connection.shutdown(socket.SHUT_WR)
                assert await transport.call(address, BYTES, noise, timeout_s=15) == noise

    await with_grpc(lambda server: server.add_call(BYTES, echo), scenario)


async def test_a_message_over_the_limit_is_refused_with_an_error() -> None:
    """gRPC's own limit is a typed error here, and the connection lives on."""

    async def echo(request: bytes) -> bytes:
        return b"ok"

    async def scenario(transport: GrpcTransport, address: str) -> None:
        with pytest.raises(ProtocolError, match="RESOURCE_EXHAUSTED"):
            await transport.call(address, BYTES, bytes(17 << 20), timeout_s=10)
        assert await transport.call(address, BYTES, b"small", timeout_s=5) == b"ok"

    await with_grpc(lambda server: server.add_call(BYTES, echo), scenario)


async def test_a_port_in_use_is_an_os_error() -> None:
    """Two servers never share a port in silence."""

    async def scenario(transport: GrpcTransport, address: str) -> None:
        second = GrpcServer()
        with pytest.raises(OSError, match="can't listen on"):
            await second.start(address)
        await second.stop(grace_s=0)

    await with_grpc(lambda server: None, scenario)


async def test_nobody_listening_is_unreachable() -> None:
    """A refused connection is Unreachable, for calls and for streams, at once."""

    async def scenario(transport: GrpcTransport, address: str) -> None:
        with pytest.raises(errors.Unreachable):
            await transport.call("127.0.0.1:1", BYTES, b"", timeout_s=5)
        stream = transport.stream("127.0.0.1:1", BYTES_STREAM)
        with pytest.raises(errors.Unreachable):
            await stream.receive()
        stream.cancel()

    await with_grpc(lambda server: None, scenario)
