"""Real node processes: how they start, how they end, and what does not harm them."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from helpers.processes import ALL_ROLES, DEADLINE_S, NodeProcess, hold_port, wait_until

from sharedlog.errors import WrongStorage
from sharedlog.limits import MIB
from sharedlog.rpc.errors import ERROR_METADATA_KEY, error_from_proto
from sharedlog.v1 import cluster_pb2, log_pb2, log_server_pb2, types_pb2

Answer = TypeVar("Answer", bound=Message)
pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    """A cluster of one. A stop that waited until its time is up would not end for `wait_exit`."""
    settings = {"SHAREDLOG_SHUTDOWN_GRACE_S": "60"}
    with NodeProcess(tmp_path / "n1", "n1", roles=ALL_ROLES, settings=settings) as started:
        yield started.wait_ready()


def unary(address: str, method: str, request: Message, answer: type[Answer]) -> Answer:
    """A call as any generated client makes it."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(
            f"/sharedlog.v1.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        found = call(request, timeout=DEADLINE_S)
    assert isinstance(found, answer)
    return found


def append(node: NodeProcess, *values: bytes) -> log_pb2.AppendResponse:
    request = log_pb2.AppendRequest(
        log="orders", records=[types_pb2.Record(value=value) for value in values]
    )
    return unary(node.address, "LogService/Append", request, log_pb2.AppendResponse)


def known_tail(node: NodeProcess) -> int:
    request = log_pb2.GetKnownTailRequest(log="orders")
    answer = log_pb2.GetKnownTailResponse
    return unary(node.address, "LogService/GetKnownTail", request, answer).tail


def create(node: NodeProcess, replicas: int = 1) -> types_pb2.LogDescription:
    request = log_pb2.CreateLogRequest(name="orders", replicas=replicas, nonce="test")
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            made = unary(node.address, "LogService/CreateLog", request, log_pb2.CreateLogResponse)
        except grpc.RpcError as error:
            # A node that has just started may not be known yet, or miss a ping on a busy machine.
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > deadline_s:
                raise
            time.sleep(0.1)
        else:
            return made.log


def test_a_node_stops_when_asked(node: NodeProcess) -> None:
    """SIGTERM: exit code 0, well before its time is up, and the last word is that it stopped."""
    create(node)
    append(node, b"x")
    assert node.terminate() == 0
    assert node.events()[-1]["event"] == "node.stopped"


def test_a_node_restarts_on_its_data(node: NodeProcess) -> None:
    """The same store and cluster, the next generation; its log reads on, and takes appends as a
    further segment: the new process resumes nothing of the old one's."""
    create(node)
    append(node, b"x")
    before = node.events("node.ready")[0]
    assert node.terminate() == 0
    node.start().wait_ready()
    after = node.events("node.ready")[0]
    assert after["storage_id"] == before["storage_id"]
    assert (before["generation"], after["generation"]) == (1, 2)
    assert append(node, b"y").first_offset == 1
    request = log_pb2.DescribeLogRequest(name="orders")
    log = unary(node.address, "LogService/DescribeLog", request, log_pb2.DescribeLogResponse).log
    assert [(it.index, it.base, it.sequencer.generation) for it in log.chain] == [
        (0, 0, 1),
        (1, 1, 2),
    ]


def test_a_restarted_node_looks_after_its_logs_by_itself(node: NodeProcess) -> None:
    """Nobody asks for the log, and it has a living sequencer again soon after the restart, and with
    it every tail that the process before had proved and told nobody."""
    create(node)
    append(node, b"x")
    node.kill()
    node.start().wait_ready()
    healed = node.wait_event("failover.done")
    assert (healed["log"], healed["sequencer"]) == ("orders", "n1.2")
    wait_until(lambda: known_tail(node) == 1, "the tail was not found again")


def test_health_metrics_and_reflection_answer(node: NodeProcess) -> None:
    """Standard health and reflection over gRPC; /healthz, /readyz and /metrics over HTTP."""
    with grpc.insecure_channel(node.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "sharedlog.v1.LogService"):
            status = health.Check(
                health_pb2.HealthCheckRequest(service=service), timeout=DEADLINE_S
            ).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=DEADLINE_S)
        names = {service.name for service in answer.list_services_response.service}
    assert {f"sharedlog.v1.{name}" for name in ("LogService", "ClusterService")} <= names
    assert node.get("/healthz") == (200, '{"status": "alive"}')
    assert node.get("/readyz") == (200, '{"status": "ready", "reason": "serving"}')
    status, metrics = node.get("/metrics")
    assert status == 200
    for line in ("sharedlog_node_ready 1.0", "sharedlog_node_generation 1.0"):
        assert line in metrics
    assert "sharedlog_sequencer_commit_seconds_bucket" in metrics
    assert "sharedlog_log_server_commit_seconds_bucket" in metrics


@pytest.mark.parametrize("which", ["listen", "http"])
def test_a_port_in_use_is_told(tmp_path: Path, which: str) -> None:
    """Exit code 1 and a line that names the address, before the start counts for anything."""
    node = NodeProcess(tmp_path / "n1", "n1", roles=ALL_ROLES)
    with hold_port() as held:
        taken = f"127.0.0.1:{held.getsockname()[1]}"
        node.settings[f"SHAREDLOG_{which.upper()}"] = taken
        with node:
            assert node.wait_exit() == 1
    failed = node.events("node.failed")[0]
    assert taken in str(failed["error"])
    assert not node.data.exists()


def test_a_store_in_use_is_told_and_harms_nobody(tmp_path: Path, node: NodeProcess) -> None:
    """A second process on the same folder ends with exit code 1; the first goes on."""
    second = NodeProcess(tmp_path / "again", "n1", roles=ALL_ROLES)
    second.settings["SHAREDLOG_DIR"] = str(node.data)
    with second:
        assert second.wait_exit() == 1
    assert "in use" in str(second.events("node.failed")[0]["error"])
    create(node)
    append(node, b"x")


def test_of_two_nodes_with_one_identity_the_older_stops(tmp_path: Path, node: NodeProcess) -> None:
    """Field note 27: the older process stops itself with exit code 1 and says so. Both start at
    once, so the older may learn of the newer before it serves."""
    url = f"embedded://{node.address}"
    with (
        NodeProcess(tmp_path / "n2-a", "n2", metadata=url) as one,
        NodeProcess(tmp_path / "n2-b", "n2", metadata=url) as other,
    ):
        wait_until(lambda: one.ended() or other.ended(), "neither of the two stopped")
        older, newer = (one, other) if one.ended() else (other, one)
        assert older.wait_exit() == 1
        failed = older.events("node.failed")[0]
        assert failed["kind"] == "Superseded"
        assert f"n2 was started again, at {newer.address}, as generation 2" in str(failed["error"])
        newer.wait_ready()
        assert newer.wait_event("node.ready")["generation"] == 2


def test_a_wiped_store_is_a_new_one(tmp_path: Path, node: NodeProcess) -> None:
    """Field note 20: under the old node id a wiped disk gets a new storage_id. A request for the
    old one is refused as `WrongStorage`: it never answers for what the old one knew."""
    with NodeProcess(tmp_path / "n2", "n2", metadata=f"embedded://{node.address}") as other:
        other.wait_ready()
        log = create(node, replicas=2)
        append(node, b"x")
        old = str(other.events("node.ready")[0]["storage_id"])
        assert other.terminate() == 0
        shutil.rmtree(other.data)
        other.start().wait_ready()
        assert other.events("node.ready")[0]["storage_id"] != old
        loglet = types_pb2.LogletId(log_id=log.log_id, segment_index=0)
        request = log_server_pb2.ListLogletsRequest(storage_id=old, loglets=[loglet])
        with pytest.raises(grpc.RpcError) as refused:
            unary(
                other.address,
                "LogServerService/ListLoglets",
                request,
                log_server_pb2.ListLogletsResponse,
            )
        trailing: dict[str, Any] = dict(cast("Any", refused.value.trailing_metadata()))
        wire = types_pb2.Error.FromString(trailing[ERROR_METADATA_KEY])
        assert isinstance(error_from_proto(wire), WrongStorage)


def test_garbage_on_the_port_harms_nobody(node: NodeProcess) -> None:
    """Random bytes, half a preface, a TLS hello, HTTP/1: the connection ends, others go on."""
    host, port = node.address.split(":")
    noise = bytes(range(256)) * 64
    for garbage in (
        noise,
        b"PRI * HTTP/2.0\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(garbage)
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise)
        with suppress(ConnectionResetError):  # ended with some of the noise unread
            while connection.recv(4096):
                pass
    with grpc.insecure_channel(node.address) as channel:
        raw: Any = channel.unary_unary("/sharedlog.v1.LogService/CreateLog")
        with pytest.raises(grpc.RpcError):
            raw(noise, timeout=5)  # no message of that method
    create(node)
    assert append(node, b"x").next_offset == 1


def test_a_node_waits_for_its_metadata_store(tmp_path: Path) -> None:
    """The store being away at the start is said and waited out; it is ready soon after."""
    first = NodeProcess(tmp_path / "n1", "n1", roles=ALL_ROLES)
    with NodeProcess(tmp_path / "n2", "n2", metadata=f"embedded://{first.address}") as second:
        waiting = second.wait_event("node.waiting_for_metadata")
        assert waiting["metadata"] == f"embedded://{first.address}"
        assert second.get("/healthz")[0] == 200
        assert second.get("/readyz") == (503, '{"status": "not ready", "reason": "starting"}')
        with first:
            second.wait_ready()


def test_a_node_that_waits_can_be_stopped(tmp_path: Path) -> None:
    """SIGTERM ends the wait for the metadata store too, as asked: exit code 0."""
    with hold_port() as closed:
        url = f"embedded://127.0.0.1:{closed.getsockname()[1]}"
        with NodeProcess(tmp_path / "n1", "n1", metadata=url) as node:
            node.wait_event("node.waiting_for_metadata")
            assert node.terminate() == 0


def test_a_node_refuses_another_cluster(tmp_path: Path, node: NodeProcess) -> None:
    """A node that belongs to one cluster does not register in another: exit code 1, told why."""
    with NodeProcess(tmp_path / "n2", "n2", metadata=f"embedded://{node.address}") as stray:
        stray.wait_ready()
        assert stray.terminate() == 0
        with NodeProcess(tmp_path / "other", "n1", roles=ALL_ROLES) as other:
            other.wait_ready()
            stray.settings["SHAREDLOG_METADATA"] = f"embedded://{other.address}"
            assert stray.start().wait_exit() == 1
            failed = stray.events("node.failed")[0]
            assert failed["kind"] == "WrongCluster"


def test_open_streams_do_not_hold_a_stop(node: NodeProcess) -> None:
    """A session and a follower that nobody ends: the node stops in time, and both are told."""
    create(node)
    append(node, b"x")
    with grpc.insecure_channel(node.address) as channel:
        session: Any = channel.stream_stream(
            "/sharedlog.v1.LogService/AppendSession",
            request_serializer=log_pb2.AppendSessionRequest.SerializeToString,
            response_deserializer=log_pb2.AppendSessionResponse.FromString,
        )
        follower: Any = channel.unary_stream(
            "/sharedlog.v1.LogService/ReadRecords",
            request_serializer=log_pb2.ReadRequest.SerializeToString,
            response_deserializer=log_pb2.ReadRecordsResponse.FromString,
        )
        silent = threading.Event()

        def requests() -> Iterator[log_pb2.AppendSessionRequest]:
            yield log_pb2.AppendSessionRequest(open=log_pb2.AppendSessionOpen(log="orders"))
            silent.wait()

        opened = session(requests())
        assert next(opened).HasField("opened")
        followed = follower(log_pb2.ReadRequest(log="orders", follow=True))
        assert next(followed).records[0].value == b"x"
        assert node.terminate() == 0
        for stream in (opened, followed):
            with pytest.raises(grpc.RpcError):
                list(stream)
        silent.set()


def test_a_second_signal_stops_at_once(tmp_path: Path, node: NodeProcess) -> None:
    """An append can't reach its write quorum, so the first SIGTERM waits for it; the second one
    does not. Both end with exit code 0, and the append as indefinite or cut off."""
    with NodeProcess(tmp_path / "n2", "n2", metadata=f"embedded://{node.address}") as other:
        other.wait_ready()
        log = create(node, replicas=2)
        assert log.chain[0].sequencer.node_id == "n1"
        append(node, b"x")
        other.signal(signal.SIGSTOP)
        with grpc.insecure_channel(node.address) as channel:
            call: Any = channel.unary_unary(
                "/sharedlog.v1.LogService/Append",
                request_serializer=log_pb2.AppendRequest.SerializeToString,
            )
            request = log_pb2.AppendRequest(log="orders", records=[types_pb2.Record(value=b"y")])
            stuck = call.future(request, timeout=30)
            wait_until(
                lambda: "sharedlog_node_append_sessions 1.0" in node.get("/metrics")[1],
                "the append did not get there",
            )
            node.signal(signal.SIGTERM)
            node.wait_event("node.stopping")
            time.sleep(1)
            assert not node.events("node.stopped"), "it waits"
            assert node.terminate() == 0
            with pytest.raises(grpc.RpcError):
                stuck.result()
        assert node.events("node.stopping_at_once")


def test_a_full_store_is_told(node: NodeProcess) -> None:
    """Field note 26: a store at its limit says so in /readyz and status, is chosen for no new log,
    and serves what it has."""
    create(node)
    append(node, *(bytes(100_000) for _ in range(15)))
    assert node.terminate() == 0
    node.settings["SHAREDLOG_LOG_SERVER__RESERVE_BYTES"] = "0"
    node.settings["SHAREDLOG_LOG_SERVER__STORE_BYTES_MAX"] = str(MIB)
    node.start().wait_ready()
    status_code, body = node.get("/readyz")
    assert status_code == 200
    assert json.loads(body)["reason"].startswith("serving; the store is read-only")
    request = cluster_pb2.GetStatusRequest()
    status = unary(node.address, "ClusterService/GetStatus", request, cluster_pb2.GetStatusResponse)
    assert status.nodes[0].read_only
    assert any("takes no stores" in problem.message for problem in status.problems)
    with pytest.raises(grpc.RpcError) as unchosen:
        unary(
            node.address,
            "LogService/CreateLog",
            log_pb2.CreateLogRequest(name="more", replicas=1),
            log_pb2.CreateLogResponse,
        )
    assert "1 replicas need 1 log servers; 0" in str(unchosen.value.details())
    wait_until(lambda: known_tail(node) == 15, "the tail was not found again")
    with grpc.insecure_channel(node.address) as channel:
        read: Any = channel.unary_stream(
            "/sharedlog.v1.LogService/ReadRecords",
            request_serializer=log_pb2.ReadRequest.SerializeToString,
            response_deserializer=log_pb2.ReadRecordsResponse.FromString,
        )
        answers = list(read(log_pb2.ReadRequest(log="orders"), timeout=10))
    assert sum(len(answer.records) for answer in answers) == 15
