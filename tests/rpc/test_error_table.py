"""What each error says of itself is said once and is true: for calls, and for appends under way."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from helpers.all_errors import BYTES, CLASSES, example, with_grpc

import sharedlog
from sharedlog.append_queue import AppendQueue
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    ConditionFailed,
    DeadlineExceeded,
    LogUnavailable,
    NotAppended,
    ProducerFenced,
    ProtocolError,
    SharedLogError,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.rpc import methods
from sharedlog.rpc.grpc_client import GrpcTransport, error_of_status
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.v1 import log_pb2, types_pb2

ROOT = Path(__file__).parent.parent.parent

TABLE = {
    grpc.StatusCode.OK: Unreachable,
    grpc.StatusCode.CANCELLED: Unreachable,
    grpc.StatusCode.UNKNOWN: ProtocolError,
    grpc.StatusCode.INVALID_ARGUMENT: ProtocolError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: ProtocolError,
    grpc.StatusCode.ALREADY_EXISTS: ProtocolError,
    grpc.StatusCode.PERMISSION_DENIED: ProtocolError,
    grpc.StatusCode.UNAUTHENTICATED: ProtocolError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unreachable,
    grpc.StatusCode.FAILED_PRECONDITION: ProtocolError,
    grpc.StatusCode.ABORTED: ProtocolError,
    grpc.StatusCode.OUT_OF_RANGE: ProtocolError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.INTERNAL: ProtocolError,
    grpc.StatusCode.UNAVAILABLE: Unreachable,
    grpc.StatusCode.DATA_LOSS: ProtocolError,
}
"""What a status means that comes without an error of ours."""

FAILURES = [status for status in grpc.StatusCode if status is not grpc.StatusCode.OK]


# What the classes say.


@pytest.mark.parametrize("cls", CLASSES, ids=lambda found: found.__name__)
def test_every_class_says_what_to_do(cls: type[SharedLogError]) -> None:
    """Its own advice, as a clause; an outcome that it or a base below the root states; and no
    outcome of a call that was wrong, or of a state that was another, is unknown."""
    if cls is SharedLogError:
        return
    assert "advice" in vars(cls), f"{cls.__name__} states no advice: what is its caller to do?"
    assert cls.advice
    assert not cls.advice.endswith(".")
    assert "|" not in cls.advice
    stated = any("outcome" in vars(base) for base in cls.__mro__ if base is not SharedLogError)
    assert stated, f"{cls.__name__} states no outcome: is an append that ends with it in the log?"
    assert cls.outcome in ("definite", "indefinite")
    assert cls.fault in ("call", "data", "state", "cluster")
    if cls.fault != "cluster":
        assert cls.outcome == "definite"
        assert not cls.retryable


def test_the_page_says_what_the_classes_say() -> None:
    """docs/errors.md has each of them, with what it says."""
    tool = [sys.executable, "tools/errors_page.py", "--check"]
    done = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run: python tools/errors_page.py\n{done.stderr}"


# Statuses without an error of ours.


def test_the_table_has_every_status() -> None:
    """A status that gRPC gains is missed."""
    assert set(TABLE) == set(grpc.StatusCode)


@pytest.mark.parametrize("status", list(grpc.StatusCode), ids=lambda status: status.name)
def test_a_status_of_somebody_else_proves_nothing(status: grpc.StatusCode) -> None:
    """Never definite, whatever it is called."""
    error = error_of_status("a:1", status, "said so")
    assert type(error) is TABLE[status]
    assert error.outcome == "indefinite"
    assert "a:1" in str(error)


@pytest.mark.parametrize(
    ("status", "details", "expected"),
    [
        (grpc.StatusCode.INTERNAL, "Internal error from Core", Unreachable),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2", Unreachable),
        (grpc.StatusCode.UNKNOWN, "Stream removed (Connection reset by peer)", Unreachable),
        (grpc.StatusCode.UNKNOWN, "Exception calling application", ProtocolError),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "CLIENT: Sent message larger than max (2 vs. 1)",
            ProtocolError,
        ),
    ],
)
def test_grpc_has_words_of_its_own(
    status: grpc.StatusCode, details: str, expected: type[SharedLogError]
) -> None:
    """A connection that broke may be tried again; a message that is too large never fits."""
    assert type(error_of_status("a:1", status, details)) is expected


class Proxy:
    """A node whose words never reach the client: each log's sessions end with the status that the
    log's name says, the first one after a batch was taken, the later ones at once."""

    def __init__(self) -> None:
        self.server = grpc.aio.server()
        self.address = ""
        self.opened: set[str] = set()
        self.taken: set[str] = set()

    async def start(self) -> None:
        service = grpc.method_handlers_generic_handler(
            "sharedlog.v1.LogService",
            {
                "DescribeLog": grpc.unary_unary_rpc_method_handler(self.describe),
                "AppendSession": grpc.stream_stream_rpc_method_handler(self.session),
                "FindTail": grpc.unary_unary_rpc_method_handler(self.tail),
            },
        )
        self.server.add_generic_rpc_handlers((service,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    async def describe(self, raw: bytes, _: Any) -> bytes:
        name = methods.DESCRIBE_LOG.decode_request(raw).name
        node = types_pb2.NodeAddress(node_id="n1", address=self.address, generation=1)
        segment = types_pb2.Segment(sequencer=types_pb2.SequencerId(node_id="n1", generation=1))
        found = types_pb2.LogDescription(
            name=name, log_id=1, chain_version=1, chain=[segment], nodes=[node]
        )
        answer = log_pb2.DescribeLogResponse(log=found)
        return methods.DESCRIBE_LOG.encode_response(answer)

    async def tail(self, raw: bytes, context: Any) -> bytes:
        name = methods.FIND_TAIL.decode_request(raw).log
        await context.abort(grpc.StatusCode[name], "a proxy says so")
        raise AssertionError

    async def session(self, _: object, context: Any) -> None:
        opening = methods.APPEND_SESSION.decode_request(await context.read()).open
        assert opening is not None
        if opening.log not in self.opened:
            self.opened.add(opening.log)
            opened = log_pb2.AppendSessionOpened(
                batch_bytes_max=1 << 20, in_flight_bytes_max=1 << 20, in_flight_batches_max=64
            )
            answer = log_pb2.AppendSessionResponse(opened=opened)
            await context.write(methods.APPEND_SESSION.encode_response(answer))
            if await context.read() is not grpc.aio.EOF:
                self.taken.add(opening.log)
        await context.abort(grpc.StatusCode[opening.log], "a proxy says so")


async def test_an_append_under_way_is_never_called_lost_by_a_status() -> None:
    """Each status in turn ends the session that has the batch, and every later one: the append is
    indefinite when its time is up, and not before, and names the reason."""
    proxy = Proxy()
    await proxy.start()
    config = sharedlog.ClientConfig(timeout_s=0.2, backoff_min_s=0.01)
    try:
        async with sharedlog.connect(proxy.address, config=config) as cluster:
            names = [status.name for status in FAILURES]
            appends = [cluster.log(name).append(b"x", timeout_s=0.5) for name in names]
            results = await asyncio.gather(*appends, return_exceptions=True)
            tails = [cluster.log(name).tail(timeout_s=0.1) for name in names]
            calls = await asyncio.gather(*tails, return_exceptions=True)
        assert proxy.taken == set(names)
        found = dict(zip(names, map(type, results), strict=True))
        assert found == dict.fromkeys(names, AppendIndefinite)
        for status, error in zip(FAILURES, calls, strict=True):
            assert isinstance(error, TABLE[status] | DeadlineExceeded), status
    finally:
        await proxy.server.stop(0)


# Errors of ours.


@pytest.mark.parametrize("cls", CLASSES, ids=lambda found: found.__name__)
def test_an_answer_to_an_append_is_believed_if_it_is_definite(cls: type[SharedLogError]) -> None:
    """A session answers a batch with each class of error, and later its time is up. It fails with
    that error, or definitely for a refusal that may pass. What proves nothing becomes
    `AppendIndefinite`, and so does all else if an earlier session had the batch; but not a failed
    condition, which is looked at only when the batch is known not to be in the log."""
    for had_before in (False, True):
        queue = AppendQueue(AppenderConfig(timeout_s=5), producer_id=1)
        pending = queue.put(b"x", None, None, timeout_s=5, now_s=0)
        if had_before:
            send(queue)
            queue.on_session_lost()
        send(queue)
        error = example(cls)
        queue.on_result(Offset(0), error)
        if not pending.done():
            queue.on_session_moved()
            queue.on_time(5, error)
        queue.check_invariants()
        final = pending.exception()
        if cls.outcome == "indefinite" or (had_before and not issubclass(cls, ConditionFailed)):
            assert type(final) is AppendIndefinite
        else:
            passing = cls.retryable or issubclass(cls, LogUnavailable | ProducerFenced)
            assert isinstance(final, NotAppended | LogUnavailable if passing else cls)
            assert final.outcome == "definite"


def send(queue: AppendQueue) -> None:
    """Its one batch, on a new session."""
    queue.opening()
    queue.on_opened(floor=Offset(0))
    assert queue.next_to_send(0) is not None


async def test_every_error_crosses_grpc_with_its_status() -> None:
    """Class, message and fields for our client, status and text for any other."""
    examples = {cls.__name__: example(cls) for cls in CLASSES}

    async def refuse(request: bytes) -> bytes:
        raise examples[request.decode()]

    async def scenario(transport: GrpcTransport, address: str) -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(BYTES.path)
            for name, error in examples.items():
                with pytest.raises(type(error)) as ours:
                    await transport.call(address, BYTES, name.encode(), timeout_s=5)
                assert type(ours.value) is type(error)
                assert (str(ours.value), vars(ours.value)) == (str(error), vars(error))
                with pytest.raises(grpc.aio.AioRpcError) as raw:
                    await call(name.encode())
                assert raw.value.code() is grpc.StatusCode[error.grpc_status]
                assert raw.value.details() == str(error)

    def add(server: GrpcServer) -> None:
        server.add_call(BYTES, refuse)

    await with_grpc(add, scenario)
