"""The one line, and the counts, of each public request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from node.config import RequestLog
from node.metrics import RequestMetrics
from node.requests import Requests, note
from sharedlog.clock import SystemClock
from sharedlog.errors import LogNotFound
from sharedlog.rpc import methods
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import Server, ServerStream
from sharedlog.v1 import cluster_pb2, log_pb2

FOUND = log_pb2.FindTailResponse(tail=7)


class Case:
    """A server of a few methods behind `Requests`."""

    def __init__(self, server: Server, written: RequestLog, *, slow_s: float = 60.0) -> None:
        self.registry = CollectorRegistry()
        requests = Requests(
            server,
            clock=SystemClock(),
            metrics=RequestMetrics(self.registry),
            written=written,
            slow_s=slow_s,
        )
        requests.add_call(methods.FIND_TAIL, self._find_tail)
        requests.add_call(methods.PING, self._ping)
        requests.add_stream(methods.APPEND_SESSION, self._session)
        requests.add_stream(methods.READ, self._read)

    async def _find_tail(self, request: log_pb2.FindTailRequest) -> log_pb2.FindTailResponse:
        if request.log == "none":
            raise LogNotFound(name="none")
        if request.log == "bug":
            raise KeyError(request.log)
        if request.log == "never":
            await asyncio.Event().wait()
        note(tail=7)
        return FOUND

    async def _ping(self, _: cluster_pb2.PingRequest) -> cluster_pb2.PingResponse:
        return cluster_pb2.PingResponse()

    async def _session(self, stream: ServerStream[Any, Any]) -> None:
        note(log="orders")
        await stream.send(log_pb2.AppendSessionResponse(opened=log_pb2.AppendSessionOpened()))
        offset = 10
        while await stream.receive() is not None:
            results = [log_pb2.AppendResult(first_offset=offset + it) for it in (0, 5)]
            await stream.send(log_pb2.AppendSessionResponse(results=results))
            offset += 10

    async def _read(self, stream: ServerStream[Any, Any]) -> None:
        request = await stream.receive()
        assert request is not None
        note(log=request.log, **({"follow": True} if request.follow else {}))

    def count(self, method: str, outcome: str) -> float:
        labels = {"method": method, "outcome": outcome}
        return self.registry.get_sample_value("sharedlog_node_requests_total", labels) or 0.0


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(it) for it in caplog.records if it.message == "request.done"]


async def ask(door: Loopback, log: str, *, timeout_s: float = 5.0) -> log_pb2.FindTailResponse:
    request = log_pb2.FindTailRequest(log=log)
    return await door.call("n1", methods.FIND_TAIL, request, timeout_s=timeout_s)


async def test_a_call_has_one_line_with_what_its_handler_noted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Method, outcome, time, size, and what the handler alone knows; the answer as it was."""
    door = Loopback()
    case = Case(door, "all")
    with caplog.at_level(logging.INFO, logger="node.requests"):
        assert await ask(door, "orders") == FOUND
    (line,) = lines(caplog)
    assert (line["method"], line["outcome"]) == ("LogService/FindTail", "ok")
    assert (line["log"], line["tail"]) == ("orders", 7)
    assert line["bytes_in"] == log_pb2.FindTailRequest(log="orders").ByteSize()
    assert line["ms"] >= 0
    assert case.count("LogService/FindTail", "ok") == 1
    labels = {"method": "LogService/FindTail"}
    name = "sharedlog_node_request_seconds_count"
    assert case.registry.get_sample_value(name, labels) == 1


async def test_every_end_of_a_call_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """An error by its class, a bug as failed, a caller that went away as cancelled."""
    door = Loopback()
    case = Case(door, "off")
    with pytest.raises(LogNotFound):
        await ask(door, "none")
    with pytest.raises(Exception, match="KeyError"):
        await ask(door, "bug")
    with pytest.raises(Exception, match="no answer"):
        await ask(door, "never", timeout_s=0.01)
    await door.call("n1", methods.PING, cluster_pb2.PingRequest(), timeout_s=5)
    for _ in range(100):
        if case.count("LogService/FindTail", "cancelled"):
            break
        await asyncio.sleep(0)
    outcomes = ("LogNotFound", "failed", "cancelled")
    assert [case.count("LogService/FindTail", it) for it in outcomes] == [1, 1, 1]
    assert case.count("ClusterService/Ping", "ok") == 0, "pings are many, and nobody's request"
    assert lines(caplog) == []


async def test_only_slow_calls_have_a_line_by_default(caplog: pytest.LogCaptureFixture) -> None:
    """Above the threshold; a stream by its first answer, but for a read that follows."""
    with caplog.at_level(logging.INFO, logger="node.requests"):
        door = Loopback()
        Case(door, "slow", slow_s=60.0)
        await ask(door, "orders")
        assert lines(caplog) == []
        door = Loopback()
        Case(door, "slow", slow_s=1e-9)
        await ask(door, "orders")
        assert len(lines(caplog)) == 1
        for follow in (True, False):
            stream = door.stream("n1", methods.READ)
            await stream.send(log_pb2.ReadRequest(log="orders", follow=follow))
            assert await stream.receive() is None
    assert [it["method"] for it in lines(caplog)] == ["LogService/FindTail", "LogService/Read"]


async def test_a_session_has_one_line_with_its_batches_bytes_and_peer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many batches: how many, the first offset and the last batch's, and who it was."""
    server, transport = GrpcServer(), GrpcTransport()
    Case(server, "all")
    port = await server.start("127.0.0.1:0")
    try:
        with caplog.at_level(logging.INFO, logger="node.requests"):
            stream = transport.stream(f"127.0.0.1:{port}", methods.APPEND_SESSION)
            sent = SessionRequest(batch=b"x" * 100)
            for _ in range(3):
                await stream.send(sent)
            await stream.end()
            while await stream.receive() is not None:
                pass
            stream.cancel()
            for _ in range(1_000):
                if lines(caplog):
                    break
                await asyncio.sleep(0.001)
    finally:
        await transport.close()
        await server.stop(grace_s=0)
    (line,) = lines(caplog)
    assert (line["method"], line["outcome"], line["log"]) == (
        *("LogService/AppendSession", "ok"),
        "orders",
    )
    assert (line["batches"], line["first"], line["last"]) == (6, 10, 35)
    assert line["bytes_in"] == 3 * len(methods.APPEND_SESSION.encode_request(sent))
    assert line["bytes_out"] > 0
    assert "127.0.0.1:" in line["peer"]
    assert line["first_ms"] <= line["ms"]
