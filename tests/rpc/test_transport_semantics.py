"""What `Transport` and `Server` promise, proved for every implementation of them.

Each scenario runs against gRPC on a real socket, the loopback, and the simulated network.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.sim import SimNetwork, World, run_virtual

from sharedlog.errors import (
    DeadlineExceeded,
    LogNotFound,
    OffsetOutOfRange,
    ProtocolError,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.loopback import Loopback, RoutingTransport
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.read_answer import ReadAnswer
from sharedlog.rpc.transport import Method, Server, ServerStream, Transport


def _method(path: str, *, streaming: bool = False) -> Method[str, str]:
    return Method(
        path=f"/sharedlog.v1.TestService/{path}",
        encode_request=str.encode,
        decode_request=bytes.decode,
        encode_response=str.encode,
        decode_response=bytes.decode,
        streaming=streaming,
    )


CALL = _method("Call")
STREAM = _method("Stream", streaming=True)
UNKNOWN = _method("Unknown")
UNKNOWN_STREAM = _method("UnknownStream", streaming=True)

Wire = ServerStream[str, str]


@dataclass
class Peers:
    """A client and a server of one kind."""

    server: Server
    transport: Transport
    address: str
    start: Callable[[], Awaitable[str]]
    kill: Callable[[], Awaitable[None]]

    def stream(self) -> Any:
        return self.transport.stream(self.address, STREAM)

    async def call(self, request: str, *, timeout_s: float = 10.0) -> str:
        return await self.transport.call(self.address, CALL, request, timeout_s=timeout_s)


@asynccontextmanager
async def _grpc() -> AsyncIterator[Peers]:
    server, transport = GrpcServer(), GrpcTransport()

    async def start() -> str:
        return f"127.0.0.1:{await server.start('127.0.0.1:0')}"

    async def kill() -> None:
        await server.stop(grace_s=0)

    yield Peers(server, transport, "", start, kill)
    await transport.close()
    await server.stop(grace_s=0)


@asynccontextmanager
async def _loopback() -> AsyncIterator[Peers]:
    loopback = Loopback()
    # Routed, as a node has it: everything else would go over the network.
    routing = RoutingTransport({"self:1": loopback}, GrpcTransport())

    async def start() -> str:
        return "self:1"

    yield Peers(loopback, routing, "self:1", start, loopback.close)
    await routing.close()


@asynccontextmanager
async def _simulated() -> AsyncIterator[Peers]:
    network = SimNetwork(World(1))
    server = network.server("server:1")
    transport = network.transport("client")

    async def start() -> str:
        server.start()
        return "server:1"

    async def kill() -> None:
        network.crash("server")
        await server.stop()

    yield Peers(server, transport, "server:1", start, kill)
    await transport.close()
    await server.stop()


KINDS = {"grpc": _grpc, "loopback": _loopback, "simulated": _simulated}
Scenario = Callable[[Peers], Awaitable[None]]


@pytest.fixture(params=sorted(KINDS))
def run(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Runs a scenario under one kind: real time, or virtual time for the simulated network."""
    kind: str = request.param

    def run_it(
        scenario: Scenario,
        *,
        on_stream: Callable[[Wire], Awaitable[None]] | None = None,
        on_call: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        async def main() -> None:
            async with asyncio.timeout(20), KINDS[kind]() as peers:
                if on_stream is not None:
                    peers.server.add_stream(STREAM, on_stream)
                if on_call is not None:
                    peers.server.add_call(CALL, on_call)
                peers.address = await peers.start()
                await scenario(peers)

        if kind == "simulated":
            run_virtual(main)
        else:
            asyncio.run(main())

    return run_it


async def _echo(stream: Wire) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


async def _upper(request: str) -> str:
    return request.upper()


def test_a_call_is_answered(run: Callable[..., None]) -> None:
    """A call gets the handler's answer."""

    async def scenario(peers: Peers) -> None:
        assert await peers.call("hello") == "HELLO"

    run(scenario, on_call=_upper)


def test_an_error_of_a_call_is_raised_at_the_caller(run: Callable[..., None]) -> None:
    """Class, message and fields of a handler's error arrive."""

    async def refuse(request: str) -> str:
        raise OffsetOutOfRange(offset=7, tail=3)

    async def scenario(peers: Peers) -> None:
        with pytest.raises(OffsetOutOfRange, match="offset 7 is out of range: the tail is 3") as it:
            await peers.call("x")
        assert (it.value.offset, it.value.tail) == (7, 3)

    run(scenario, on_call=refuse)


def test_a_bug_in_a_handler_is_a_protocol_error(
    run: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """An exception of no typed class reaches the caller without its text, and others go on."""
    calls = 0

    async def fail(request: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError("a secret")
        return request

    async def scenario(peers: Peers) -> None:
        with pytest.raises(ProtocolError) as it:
            await peers.call("x")
        assert "ZeroDivisionError" in str(it.value)
        assert "secret" not in str(it.value)
        assert await peers.call("y") == "y"

    run(scenario, on_call=fail)


def test_a_call_ends_by_its_deadline_and_cancels_the_handler(run: Callable[..., None]) -> None:
    """No answer in time is DeadlineExceeded, and the handler does not linger."""
    cancelled = []

    async def scenario(peers: Peers) -> None:
        over = asyncio.Event()

        async def hang(request: str) -> str:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.append(request)
                over.set()
            raise AssertionError

        handlers.append(hang)
        with pytest.raises(DeadlineExceeded):
            await peers.call("x", timeout_s=0.1)
        await over.wait()

    handlers: list[Callable[[str], Awaitable[str]]] = []

    async def on_call(request: str) -> str:
        return await handlers[0](request)

    run(scenario, on_call=on_call)
    assert cancelled == ["x"]


def test_a_cancelled_caller_cancels_the_handler(run: Callable[..., None]) -> None:
    """A caller that goes away takes its handler with it, and stays cancelled itself."""

    async def scenario(peers: Peers) -> None:
        caller = asyncio.create_task(peers.call("x"))
        await started.wait()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        await over.wait()

    started, over = asyncio.Event(), asyncio.Event()

    async def hang(request: str) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            over.set()
        raise AssertionError

    run(scenario, on_call=hang)


def test_an_unknown_method_is_a_protocol_error(run: Callable[..., None]) -> None:
    """A server that lacks a method says so, to calls and streams."""

    async def scenario(peers: Peers) -> None:
        with pytest.raises(ProtocolError):
            await peers.transport.call(peers.address, UNKNOWN, "x", timeout_s=10)
        stream = peers.transport.stream(peers.address, UNKNOWN_STREAM)
        with pytest.raises(ProtocolError):
            await stream.receive()
        stream.cancel()

    run(scenario, on_call=_upper)


def test_messages_of_a_stream_keep_their_order_and_its_end_arrives(
    run: Callable[..., None],
) -> None:
    """Messages arrive in order, each once; the handler's return ends the stream well."""

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        wanted = [f"message {number}" for number in range(300)]

        async def send_all() -> None:
            for message in wanted:
                await stream.send(message)
            await stream.end()

        async with asyncio.TaskGroup() as group:
            group.create_task(send_all())
            got = [message async for message in _all(stream)]
        assert got == wanted
        assert await stream.receive() is None, "asked again it answers the same"
        stream.cancel()
        stream.cancel()

    run(scenario, on_stream=_echo)


def test_a_handler_may_return_before_its_client_ends(run: Callable[..., None]) -> None:
    """What was sent before the return arrives; later the client's sends are Unreachable."""

    async def greet(stream: Wire) -> None:
        await stream.send("hello")

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        assert await stream.receive() == "hello"
        assert await stream.receive() is None
        with pytest.raises(Unreachable):
            await _send_until_it_fails(stream)
        stream.cancel()

    run(scenario, on_stream=greet)


def test_an_error_mid_stream_arrives_after_what_was_sent(run: Callable[..., None]) -> None:
    """Messages before the error arrive, then the error, for `receive` and for `send`."""

    async def fail_late(stream: Wire) -> None:
        await stream.receive()
        await stream.send("one")
        await stream.send("two")
        raise LogNotFound(name="orders")

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        await stream.send("go")
        assert await stream.receive() == "one"
        assert await stream.receive() == "two"
        for _ in range(2):
            with pytest.raises(LogNotFound, match="orders") as it:
                await stream.receive()
            assert it.value.name == "orders"
        with pytest.raises(LogNotFound, match="orders"):
            await _send_until_it_fails(stream)
        stream.cancel()

    run(scenario, on_stream=fail_late)


def test_cancel_by_the_client_cancels_the_handler(run: Callable[..., None]) -> None:
    """`cancel` ends the handler, and the client's own waits as Unreachable, not as cancelled."""

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        await stream.send("x")
        assert await stream.receive() == "x"
        waiting = asyncio.create_task(_error_of(stream.receive()))
        await asyncio.sleep(0)
        stream.cancel()
        assert isinstance(await waiting, Unreachable)
        await over.wait()
        assert isinstance(await _error_of(stream.receive()), Unreachable)
        assert isinstance(await _error_of(stream.send("y")), Unreachable)

    over = asyncio.Event()

    async def echo(stream: Wire) -> None:
        try:
            await _echo(stream)
        finally:
            over.set()

    run(scenario, on_stream=echo)


def test_a_cancelled_receiver_is_cancelled(run: Callable[..., None]) -> None:
    """Cancelling a task in `receive` raises CancelledError there, never another error."""

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        waiting = asyncio.create_task(stream.receive())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        stream.cancel()

    run(scenario, on_stream=_echo)


def test_a_receiver_that_does_not_read_stops_the_sender(run: Callable[..., None]) -> None:
    """Flow control, client to server: what is sent and not read is bounded; reading frees it."""
    message = "x" * 100_000

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        sent = 0

        async def send_all() -> None:
            nonlocal sent
            for _ in range(500):
                await stream.send(message)
                sent += 1
            await stream.end()

        sending = asyncio.create_task(send_all())
        await _until_still(lambda: sent)
        assert 1 <= sent < 400
        assert not sending.done()
        read_now.set()
        assert await stream.receive() == "500"
        await sending
        stream.cancel()

    read_now = asyncio.Event()

    async def lazy(stream: Wire) -> None:
        await read_now.wait()
        count = 0
        while await stream.receive() is not None:
            count += 1
        await stream.send(str(count))

    run(scenario, on_stream=lazy)


def test_a_client_that_does_not_read_stops_the_handler(run: Callable[..., None]) -> None:
    """Flow control, server to client: a handler's sends wait for its reader."""
    sent = 0

    async def flood(stream: Wire) -> None:
        nonlocal sent
        for _ in range(500):
            await stream.send("x" * 100_000)
            sent += 1

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        assert await stream.receive() is not None
        await _until_still(lambda: sent)
        before = sent
        assert before < 400
        count = 1
        while count < before + 20:
            assert await stream.receive() is not None
            count += 1
        stream.cancel()

    run(scenario, on_stream=flood)


async def test_a_loopback_holds_few_messages_that_are_large() -> None:
    """A method says how many of its messages may wait; nothing else bounds them."""
    sent = 0

    async def flood(stream: Any) -> None:
        nonlocal sent
        for _ in range(500):
            await stream.send(ReadAnswer(Offset(0)))
            sent += 1

    loopback = Loopback()
    loopback.add_stream(READ_LOGLET, flood)
    stream = loopback.stream("own", READ_LOGLET)
    await _until_still(lambda: sent)
    assert sent == READ_LOGLET.waiting_max < 10
    await stream.receive()
    await _until_still(lambda: sent)
    assert sent == READ_LOGLET.waiting_max + 1
    stream.cancel()
    await loopback.close()


def test_a_killed_peer_is_unreachable(run: Callable[..., None]) -> None:
    """When the server goes away, waiting receivers and callers are told Unreachable."""

    async def hang(request: str) -> str:
        called.set()
        await asyncio.Event().wait()
        raise AssertionError

    called = asyncio.Event()

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        await stream.send("x")
        assert await stream.receive() == "x"
        receiving = asyncio.create_task(_error_of(stream.receive()))
        calling = asyncio.create_task(_error_of(peers.call("x")))
        await called.wait()
        await peers.kill()
        assert isinstance(await receiving, Unreachable)
        assert isinstance(await calling, Unreachable)
        assert isinstance(await _error_of(peers.call("x")), Unreachable)
        again = peers.stream()
        assert isinstance(await _error_of(again.receive()), Unreachable)
        stream.cancel()
        again.cancel()

    run(scenario, on_stream=_echo, on_call=hang)


def test_closing_the_transport_ends_open_streams_as_unreachable(run: Callable[..., None]) -> None:
    """`close` of one's own transport is no cancellation of the tasks that wait on it."""

    async def scenario(peers: Peers) -> None:
        stream = peers.stream()
        await stream.send("x")
        assert await stream.receive() == "x"
        receiving = asyncio.create_task(_error_of(stream.receive()))
        await asyncio.sleep(0)
        await peers.transport.close()
        assert isinstance(await receiving, Unreachable)
        stream.cancel()

    run(scenario, on_stream=_echo)


async def _all(stream: Any) -> AsyncIterator[str]:
    while (message := await stream.receive()) is not None:
        yield message


async def _error_of(awaitable: Awaitable[object]) -> BaseException | None:
    """The error that it raises; a stray CancelledError is returned like any other."""
    try:
        await awaitable
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  whatever it is
        return error
    return None


async def _send_until_it_fails(stream: Any) -> None:
    """The news of a stream's end may still be on its way when the first sends are made."""
    for _ in range(1_000):
        await stream.send("x")
        await asyncio.sleep(0.001)


async def _until_still(count: Callable[[], int]) -> None:
    """Wait until a count has stood still for a while: nothing tells that a sender waits."""
    seen, quiet = -1, 0
    while quiet < 5:
        await asyncio.sleep(0.02)
        seen, quiet = (count(), 0) if count() != seen else (seen, quiet + 1)
