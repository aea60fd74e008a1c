"""The public API of real nodes: any node serves it, and forwards what another must do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import NodeProcess, wait_until

from sharedlog.batch import BatchBuilder, decode_placed, encode_records
from sharedlog.clock import SystemClock
from sharedlog.codec import make_compressor
from sharedlog.errors import (
    AppendIndefinite,
    BatchTooLarge,
    CorruptBatch,
    EmptyBatch,
    InvalidArgument,
    InvalidLogName,
    LogExists,
    LogNotFound,
    LogUnavailable,
    MetadataUnavailable,
    NotSequencer,
    OffsetOutOfRange,
    Overloaded,
    RecordTooLarge,
    SequenceGap,
    SharedLogError,
)
from sharedlog.limits import RECORD_BYTES_MAX
from sharedlog.rpc import methods
from sharedlog.rpc.errors import error_from_proto
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import Method, Req, Resp
from sharedlog.v1 import cluster_pb2, log_pb2, types_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLOCK = SystemClock()
Nodes = dict[str, NodeProcess]


def start_cluster(stack: ExitStack, folder: Path) -> Nodes:
    """Three nodes, and "m" that hosts the metadata and nothing else."""
    host = NodeProcess(folder / "m", "m", roles=("metadata",))
    url = f"embedded://{host.address}"
    settings = {"SHAREDLOG_READS_MAX": "3", "SHAREDLOG_PEER_TIMEOUT_S": "2"}
    nodes = {"m": host}
    for name in ("n1", "n2", "n3"):
        nodes[name] = NodeProcess(folder / name, name, metadata=url, settings=settings)
    for node in nodes.values():
        stack.enter_context(node)
    for node in nodes.values():
        node.wait_ready()
    return nodes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """A cluster for all tests that kill nothing; each uses logs of its own."""
    with ExitStack() as stack:
        yield start_cluster(stack, tmp_path_factory.mktemp("cluster"))


class Caller:
    """Calls nodes by name."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.transport = GrpcTransport()

    async def call(self, node: str, method: Method[Req, Resp], request: Req) -> Resp:
        return await self.transport.call(self.nodes[node].address, method, request, timeout_s=10)

    async def create(
        self, log: str, replicas: int = 3, via: str = "n1"
    ) -> types_pb2.LogDescription:
        request = log_pb2.CreateLogRequest(name=log, replicas=replicas)
        return (await self.call(via, methods.CREATE_LOG, request)).log

    async def append(self, log: str, *values: bytes, via: str = "n1") -> log_pb2.AppendResponse:
        records = [types_pb2.Record(value=value) for value in values]
        request = log_pb2.AppendRequest(log=log, records=records)
        return await self.call(via, methods.APPEND, request)

    async def tail(self, log: str, via: str = "n1") -> int:
        request = log_pb2.FindTailRequest(log=log)
        return (await self.call(via, methods.FIND_TAIL, request)).tail

    async def read(self, via: str, request: log_pb2.ReadRequest) -> list[types_pb2.Record]:
        stream = self.transport.stream(self.nodes[via].address, methods.READ_RECORDS)
        try:
            await stream.send(request)
            await stream.end()
            found: list[types_pb2.Record] = []
            while (answer := await stream.receive()) is not None:
                found.extend(answer.records)
            return found
        finally:
            stream.cancel()

    async def status(self, via: str) -> cluster_pb2.GetStatusResponse:
        return await self.call(via, methods.GET_STATUS, cluster_pb2.GetStatusRequest())


@pytest.fixture
async def caller(nodes: Nodes) -> AsyncIterator[Caller]:
    calling = Caller(nodes)
    yield calling
    await calling.transport.close()


def others(log: types_pb2.LogDescription) -> list[str]:
    """Nodes that do not order the log."""
    sequencer = log.chain[-1].sequencer.node_id
    return [name for name in ("n1", "n2", "n3", "m") if name != sequencer]


async def test_every_node_appends_finds_the_tail_and_reads(caller: Caller) -> None:
    """Whichever node is asked, one without a role in it too, the log is the same."""
    await caller.create("any")
    for index, name in enumerate(("n1", "n2", "n3", "m")):
        done = await caller.append("any", b"a", b"b", via=name)
        assert (done.first_offset, done.next_offset) == (2 * index, 2 * index + 2)
        assert await caller.tail("any", via=name) == 2 * index + 2
    for name in ("n1", "n2", "n3", "m"):
        read = await caller.read(name, log_pb2.ReadRequest(log="any"))
        assert [(record.offset, record.value) for record in read] == [
            (offset, b"ab"[offset % 2 :][:1]) for offset in range(8)
        ]


async def test_direct_calls_are_not_forwarded(caller: Caller) -> None:
    """`direct_only`: a node that does not order the log names the one that does."""
    log = await caller.create("direct")
    sequencer = log.chain[-1].sequencer.node_id
    for name in others(log):
        request = log_pb2.FindTailRequest(log="direct", direct_only=True)
        with pytest.raises(NotSequencer) as refused:
            await caller.call(name, methods.FIND_TAIL, request)
        assert refused.value.sequencer_node_id == sequencer
        stream = caller.transport.stream(caller.nodes[name].address, methods.APPEND_SESSION)
        opening = log_pb2.AppendSessionOpen(log="direct", direct_only=True)
        await stream.send(SessionRequest(open=opening))
        with pytest.raises(NotSequencer) as refused:
            await stream.receive()
        assert refused.value.sequencer_node_id == sequencer
        stream.cancel()
    request = log_pb2.FindTailRequest(log="direct", direct_only=True)
    assert (await caller.call(sequencer, methods.FIND_TAIL, request)).tail == 0


async def test_a_forwarded_session_is_as_good_as_a_direct_one(caller: Caller) -> None:
    """Pipelined batches keep their order; none overtakes a refused one; the end is orderly."""
    log = await caller.create("session")
    name = others(log)[0]
    stream = caller.transport.stream(caller.nodes[name].address, methods.APPEND_SESSION)
    opening = log_pb2.AppendSessionOpen(log="session")
    await stream.send(SessionRequest(open=opening))
    opened = await stream.receive()
    assert opened is not None
    assert opened.opened.sequencer.node_id == log.chain[-1].sequencer.node_id
    batches = [encode_records([(b"%d" % index, None, None)]) for index in range(100)]
    batches[50] = batches[50][:-1] + b"!"
    results: list[log_pb2.AppendResult] = []

    async def receive() -> None:
        while (answer := await stream.receive()) is not None:
            results.extend(answer.results)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(receive())
        for batch in batches:
            await stream.send(SessionRequest(batch=batch))
        await stream.end()
    stream.cancel()
    assert [result.HasField("error") for result in results] == [i >= 50 for i in range(100)]
    errors = [error_from_proto(result.error) for result in results[50:]]
    assert isinstance(errors[0], CorruptBatch)
    assert all(isinstance(error, SequenceGap) for error in errors[1:])
    assert [result.first_offset for result in results[:50]] == list(range(50))


@pytest.mark.parametrize(
    "first",
    [
        SessionRequest(batch=b"x"),
        SessionRequest(open=log_pb2.AppendSessionOpen(log="x"), batch=b"x"),
        SessionRequest(),
        SessionRequest(open=log_pb2.AppendSessionOpen(log="no/../*")),
    ],
)
async def test_a_session_must_be_opened_first(caller: Caller, first: SessionRequest) -> None:
    """A batch before the opening, or beside it, or a bad name: an invalid argument."""
    stream = caller.transport.stream(caller.nodes["n1"].address, methods.APPEND_SESSION)
    await stream.send(first)
    with pytest.raises(InvalidArgument):
        await stream.receive()
    stream.cancel()


@pytest.mark.parametrize("name", ["", "-x", "a b", "ü", "x" * 256, "a\n"])
async def test_bad_names_are_refused_everywhere(caller: Caller, name: str) -> None:
    """Every method checks the name before it does anything."""
    record = types_pb2.Record(value=b"x")
    calls = [
        caller.call("n1", methods.CREATE_LOG, log_pb2.CreateLogRequest(name=name)),
        caller.call("n1", methods.DESCRIBE_LOG, log_pb2.DescribeLogRequest(name=name)),
        caller.call("n1", methods.APPEND, log_pb2.AppendRequest(log=name, records=[record])),
        caller.call("n1", methods.FIND_TAIL, log_pb2.FindTailRequest(log=name)),
        caller.call("n1", methods.GET_KNOWN_TAIL, log_pb2.GetKnownTailRequest(log=name)),
        caller.read("n1", log_pb2.ReadRequest(log=name)),
    ]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, InvalidLogName)


async def test_unknown_logs_are_told_everywhere(caller: Caller) -> None:
    """A log that does not exist is `LogNotFound`, whatever is asked of it."""
    record = types_pb2.Record(value=b"x")
    calls = [
        caller.call("n2", methods.DESCRIBE_LOG, log_pb2.DescribeLogRequest(name="none")),
        caller.call("n2", methods.APPEND, log_pb2.AppendRequest(log="none", records=[record])),
        caller.call("n2", methods.FIND_TAIL, log_pb2.FindTailRequest(log="none")),
        caller.call("n2", methods.GET_KNOWN_TAIL, log_pb2.GetKnownTailRequest(log="none")),
        caller.read("n2", log_pb2.ReadRequest(log="none")),
    ]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, LogNotFound)


async def test_appends_that_can_not_be_are_definite(caller: Caller) -> None:
    """Empty, oversized (field note 37), malformed appends are refused; nothing is written."""
    await caller.create("bad")
    header = types_pb2.Header(name="a", value=b"1")
    big = types_pb2.Record(value=bytes(RECORD_BYTES_MAX))
    small = types_pb2.Record(value=b"x")
    cases: list[tuple[list[types_pb2.Record], type[SharedLogError]]] = [
        ([], EmptyBatch),
        ([big], RecordTooLarge),
        ([types_pb2.Record(value=bytes(5_000_000))] * 2, BatchTooLarge),
        ([small] * 65_537, BatchTooLarge),
        ([types_pb2.Record(value=b"x", headers=[header, header])], InvalidArgument),
    ]
    for records, wanted in cases:
        request = log_pb2.AppendRequest(log="bad", records=records)
        for name in ("n1", "n2", "n3"):
            with pytest.raises(wanted):
                await caller.call(name, methods.APPEND, request)
    assert await caller.tail("bad") == 0


async def test_reads_keep_to_their_range(caller: Caller) -> None:
    """Start inclusive, end exclusive, at most `limit`, never beyond the tail, clipped."""
    await caller.create("range")
    for _ in range(3):
        await caller.append("range", *(b"x" for _ in range(10)))
    cases: list[tuple[dict[str, Any], range]] = [
        ({"start": 5, "end": 7}, range(5, 7)),
        ({"start": 8, "limit": 5}, range(8, 13)),
        ({"start": 28, "limit": 5}, range(28, 30)),
        ({"start": 25, "end": 1_000}, range(25, 30)),
        ({"start": 30}, range(0)),
        ({"start": 3, "end": 3}, range(0)),
        ({"start": 9, "end": 12, "follow": True}, range(9, 12)),
        ({"start": 9, "limit": 2, "follow": True}, range(9, 11)),
    ]
    for fields, wanted in cases:
        request = log_pb2.ReadRequest(log="range", **fields)
        found = [record.offset for record in await caller.read("n2", request)]
        assert found == list(wanted), fields
    with pytest.raises(OffsetOutOfRange) as beyond:
        await caller.read("n3", log_pb2.ReadRequest(log="range", start=31))
    assert (beyond.value.offset, beyond.value.tail) == (31, 30)
    with pytest.raises(InvalidArgument, match="before it starts"):
        await caller.read("n3", log_pb2.ReadRequest(log="range", start=5, end=4))


async def test_records_of_one_key(caller: Caller) -> None:
    """Clipped, counted by `limit`, and each message says how far it goes; compressed ones too."""
    await caller.create("keys")
    builder = BatchBuilder()
    for index in range(6):
        builder.append(b"value " * 100, b"even" if index % 2 == 0 else b"odd")
    batch = builder.encode(compressor=make_compressor("zstd"))
    stream = caller.transport.stream(caller.nodes["n1"].address, methods.APPEND_SESSION)
    opening = log_pb2.AppendSessionOpen(log="keys")
    await stream.send(SessionRequest(open=opening))
    for _ in range(3):
        await stream.send(SessionRequest(batch=batch))
    await stream.end()
    while await stream.receive() is not None:
        pass
    stream.cancel()
    assert await caller.tail("keys") == 18
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"key": b"odd"}, list(range(1, 18, 2))),
        ({"key": b"odd", "start": 4, "end": 9}, [5, 7]),
        ({"key": b"odd", "start": 4, "limit": 5}, [5, 7, 9, 11, 13]),
        ({"key": b"even", "limit": 2, "follow": True}, [0, 2]),
        ({"key": b"neither"}, []),
    ]
    for fields, wanted in cases:
        request = log_pb2.ReadRequest(log="keys", **fields)
        assert [it.offset for it in await caller.read("n2", request)] == wanted, fields
    reading = caller.transport.stream(caller.nodes["m"].address, methods.READ_RECORDS)
    await reading.send(log_pb2.ReadRequest(log="keys", key=b"neither"))
    next_offset = 0
    while (answer := await reading.receive()) is not None:
        assert not answer.records
        assert answer.next_offset >= next_offset
        next_offset = answer.next_offset
    reading.cancel()
    assert next_offset == 18, "all of it was looked at"


async def test_plain_reads_bring_batches_as_they_are_stored(caller: Caller) -> None:
    """`Read` sends placed batches that cover the range."""
    await caller.create("placed")
    await caller.append("placed", b"a", b"b", b"c")
    stream = caller.transport.stream(caller.nodes["m"].address, methods.READ)
    await stream.send(log_pb2.ReadRequest(log="placed", start=1))
    answer = await stream.receive()
    assert answer is not None
    assert answer.committed_tail == 3
    assert [record.value for record in decode_placed(answer.batches[0])] == [b"a", b"b", b"c"]
    assert await stream.receive() is None
    stream.cancel()


async def test_followers_get_what_is_appended_and_free_their_place(caller: Caller) -> None:
    """A follower is pushed each batch; one that goes away makes room for the next."""
    await caller.create("follow")
    address = caller.nodes["n2"].address
    streams = [caller.transport.stream(address, methods.READ_RECORDS) for _ in range(3)]
    for stream in streams:
        await stream.send(log_pb2.ReadRequest(log="follow", follow=True))
    await _until_metric(caller, "n2", "sharedlog_node_reads 3.0")
    async with asyncio.timeout(60):
        await caller.append("follow", b"new", via="n3")
        for stream in streams:
            while (answer := await stream.receive()) is not None and not answer.records:
                pass
            assert answer is not None
            assert answer.records[0].value == b"new"
        with pytest.raises(Overloaded):  # reads_max is 3 here
            await caller.read("n2", log_pb2.ReadRequest(log="follow"))
        for stream in streams:
            stream.cancel()
    await _until_metric(caller, "n2", "sharedlog_node_reads 0.0")
    assert len(await caller.read("n2", log_pb2.ReadRequest(log="follow"))) == 1


async def _until_metric(caller: Caller, name: str, line: str) -> None:
    node = caller.nodes[name]
    await asyncio.to_thread(wait_until, lambda: line in node.get("/metrics")[1], f"no {line}")


async def test_creates_are_checked_and_told_apart_by_their_nonce(caller: Caller) -> None:
    """Field note 50: repeated with its nonce a create succeeds; a second one is `LogExists`."""
    request = log_pb2.CreateLogRequest(name="made", replicas=2, write_quorum=2, nonce="n")
    first = (await caller.call("n1", methods.CREATE_LOG, request)).log
    again = (await caller.call("n2", methods.CREATE_LOG, request)).log
    assert (first.log_id, first.write_quorum, len(first.chain[0].nodeset)) == (again.log_id, 2, 2)
    with pytest.raises(LogExists):
        await caller.create("made", replicas=2)
    for replicas, quorum in ((2, 1), (3, 4), (8, 5)):
        bad = log_pb2.CreateLogRequest(name="never", replicas=replicas, write_quorum=quorum)
        with pytest.raises(InvalidArgument):
            await caller.call("n1", methods.CREATE_LOG, bad)
    with pytest.raises(LogUnavailable, match="5 replicas need 5 log servers; 3"):
        await caller.create("never", replicas=5)


async def test_new_logs_are_spread_over_the_nodes(caller: Caller) -> None:
    """Sequencers and copies go where there are fewest."""
    logs = [await caller.create(f"spread{index}", replicas=1) for index in range(6)]
    # The node that is asked hears of each log by its watch, so the counts may be one behind.
    assert len({log.chain[0].sequencer.node_id for log in logs}) == 3


async def test_logs_are_described_and_listed(caller: Caller) -> None:
    """Pages in order of names; a description has the chain and where its nodes are."""
    for name in ("list/a", "list/b", "list/c"):
        await caller.create(name)

    async def page(**fields: Any) -> tuple[list[str], bool]:
        request = log_pb2.ListLogsRequest(prefix="list/", **fields)
        answer = await caller.call("n3", methods.LIST_LOGS, request)
        return [log.name for log in answer.logs], answer.more

    async with asyncio.timeout(60):
        while (await page())[0] != ["list/a", "list/b", "list/c"]:
            await CLOCK.sleep(0.02)  # its watch is on the way
    assert await page(limit=2) == (["list/a", "list/b"], True)
    assert await page(limit=2, after="list/b") == (["list/c"], False)
    request = log_pb2.DescribeLogRequest(name="list/a")
    log = (await caller.call("n3", methods.DESCRIBE_LOG, request)).log
    found = {node.node_id: node.address for node in log.nodes}
    assert found == {name: caller.nodes[name].address for name in ("n1", "n2", "n3")}


async def test_a_healthy_cluster_has_no_problems(caller: Caller) -> None:
    """Status: every node and log, and that the metadata store is a single point of failure."""
    await caller.create("healthy")
    await caller.append("healthy", b"x")
    async with asyncio.timeout(60):
        while (status := await caller.status("n2")).problems:
            await CLOCK.sleep(0.1)  # the first controller takes its lease
    assert [node.node_id for node in status.nodes] == ["m", "n1", "n2", "n3"]
    assert all(node.alive and node.generation == 1 for node in status.nodes)
    assert "single point of failure" in status.metadata
    assert status.log_count >= len(status.logs) > 0
    for log in status.logs:
        if log.name == "healthy":
            assert log.accepts_appends
            assert log.replicas_alive == 3
            assert log.known_tail <= 1, "a hint: never above the tail"


async def test_the_known_tail_of_an_idle_log_comes_by_itself(caller: Caller) -> None:
    """It is a hint that may be behind for a moment (ADR 5), and needs no further append."""
    await caller.create("idle")
    await caller.append("idle", b"x")
    async with asyncio.timeout(60):
        while True:
            logs = (await caller.status("n2")).logs
            if [log.known_tail for log in logs if log.name == "idle"] == [1]:
                break
            await asyncio.sleep(0.01)
    assert logs


async def test_faults_are_told_and_borne(tmp_path: Path) -> None:
    """A dead replica; a dead metadata store (field note 52); a dead sequencer, whose log waits for
    the metadata store and for nothing else: what goes on, and what status says of it."""
    with ExitStack() as stack:
        cluster = await asyncio.to_thread(start_cluster, stack, tmp_path)
        caller = Caller(cluster)
        try:
            await _faults(caller)
        finally:
            await caller.transport.close()


async def _faults(caller: Caller) -> None:
    log = await caller.create("orders")
    sequencer = log.chain[0].sequencer.node_id
    replica, other = (name for name in ("n1", "n2", "n3") if name != sequencer)
    await caller.append("orders", b"0", via=other)

    caller.nodes[replica].kill()
    assert (await caller.append("orders", b"1", via=other)).first_offset == 1
    await _told(caller, other, "orders has fewer than 3 copies")
    caller.nodes[replica].start()
    await asyncio.to_thread(caller.nodes[replica].wait_ready)

    caller.nodes["m"].kill()
    wait_until(lambda: "metadata" in caller.nodes[other].get("/readyz")[1], "loss not noticed")
    assert (await caller.append("orders", b"2", via=replica)).first_offset == 2
    assert len(await caller.read(other, log_pb2.ReadRequest(log="orders"))) == 3
    await _told(caller, other, "metadata store does not answer")
    with pytest.raises(MetadataUnavailable):
        await caller.create("more", via=other)

    caller.nodes[sequencer].kill()
    with pytest.raises(LogUnavailable, match=f"{sequencer} at .* does not answer"):
        await caller.append("orders", b"3", via=other)
    with pytest.raises(LogUnavailable, match=f"{sequencer} at .* does not answer"):
        await caller.read(other, log_pb2.ReadRequest(log="orders"))  # up to the tail, wherever
    assert len(await caller.read(other, log_pb2.ReadRequest(log="orders", end=3))) == 3
    await _told(caller, replica, f"{sequencer} is down")
    caller.nodes["m"].start()
    await asyncio.to_thread(caller.nodes["m"].wait_ready)
    assert (await _append_soon(caller, "orders", b"3", via=other)).first_offset == 3
    assert await caller.tail("orders", via=replica) == 4
    assert len(await caller.read(replica, log_pb2.ReadRequest(log="orders"))) == 4

    caller.nodes[sequencer].start()
    await asyncio.to_thread(caller.nodes[sequencer].wait_ready)
    assert (await caller.append("orders", b"4", via=sequencer)).first_offset == 4
    assert len(await caller.read(sequencer, log_pb2.ReadRequest(log="orders"))) == 5

    # With the metadata store up the plain calls of any node ride over it at the first try.
    request = log_pb2.DescribeLogRequest(name="orders", open_only=True)
    log = (await caller.call(other, methods.DESCRIBE_LOG, request)).log
    present = log.chain[0].sequencer.node_id
    asked = next(name for name in ("n1", "n2", "n3") if name != present)
    caller.nodes[present].kill()
    assert await caller.tail("orders", via=asked) == 5
    try:
        assert (await caller.append("orders", b"5", via="m")).first_offset == 5
    except AppendIndefinite:  # a second reconfiguration may come upon the first: it is told so
        assert await caller.tail("orders", via=asked) in {5, 6}


async def _append_soon(caller: Caller, log: str, value: bytes, via: str) -> log_pb2.AppendResponse:
    """Append, trying again for as long as nothing is appended because the log is not available."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await caller.append(log, value, via=via)
            except LogUnavailable:
                await CLOCK.sleep(0.1)


async def _told(caller: Caller, via: str, problem: str) -> None:
    """Wait until the node's status tells a problem."""
    async with asyncio.timeout(60):
        while True:
            problems = (await caller.status(via)).problems
            if any(problem in f"{it.subject} {it.message}" for it in problems):
                return
            await CLOCK.sleep(0.1)
