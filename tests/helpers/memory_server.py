"""A cluster in memory behind real gRPC: honest about the log, with faults on command.

It stands in for a real cluster where a test needs a fault that a real one meets seldom: an answer
that never comes, a flipped bit on the wire, a replica that lags. It keeps the promises of the
public API: dense offsets, one order, nothing acknowledged that is not in the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from sharedlog.batch import (
    PLACEMENT_BYTES,
    Placement,
    check_batch,
    encode_records,
    parse_placement,
    place_batch,
)
from sharedlog.errors import (
    LogExists,
    LogletNotOpen,
    LogNotFound,
    NotSequencer,
    OffsetOutOfRange,
    SharedLogError,
    Unreachable,
    WrongStorage,
)
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.rpc import methods
from sharedlog.rpc.errors import error_to_proto
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.transport import ServerStream
from sharedlog.tasks import first_error
from sharedlog.v1 import cluster_pb2, log_pb2, log_server_pb2, types_pb2

Reason = log_server_pb2.ReadGap.Reason
Session = ServerStream[log_pb2.AppendSessionResponse, log_pb2.AppendSessionRequest]
LogletRead = ServerStream[log_server_pb2.ReadLogletResponse, log_server_pb2.ReadLogletRequest]
PlainRead = ServerStream[log_pb2.ReadResponse, log_pb2.ReadRequest]

CLUSTER_ID = "memory"
START = Offset(0)


@dataclass(slots=True)
class MemoryLog:
    """One log: its placed batches, in order."""

    name: str
    log_id: LogId
    sequencer: str
    write_quorum: int
    nodeset: list[str]
    batches: list[bytes] = field(default_factory=list)
    tail: Offset = START
    nonce: str = ""

    def append(self, batch: bytes) -> Offset:
        """Take a batch; returns its first offset."""
        header = check_batch(batch)
        first = self.tail
        placement = Placement(
            LogletId(self.log_id, 0),
            first,
            header.record_count,
            timestamp_ms=1_000 + len(self.batches),
            committed_tail=first,
            batch_crc32c=header.crc32c,
        )
        self.batches.append(place_batch(placement, batch))
        self.tail = placement.end
        return first

    def from_offset(self, start: int) -> Iterator[tuple[Placement, bytes]]:
        """Placed batches from the one that holds `start` on."""
        for placed in self.batches:
            placement = parse_placement(placed)
            if placement.end > start:
                yield placement, placed


@dataclass(slots=True)
class Faults:
    """What one node does wrong. All lists are used up from the front."""

    refuse_sessions: deque[SharedLogError] = field(default_factory=deque)
    batch_errors: deque[SharedLogError | None] = field(default_factory=deque)
    drop_session_after: int | None = None  # batches received; then the session breaks, once
    admit_dropped: bool = False  # the batch at which it breaks gets into the log all the same
    find_tail_errors: deque[SharedLogError] = field(default_factory=deque)
    find_tail_error: SharedLogError | None = None
    gaps: list[tuple[int, int, Reason.ValueType]] = field(default_factory=list)
    corrupt: dict[int, int] = field(default_factory=dict)  # offset → so many times (a flipped bit)
    known_tail: int | None = None  # of the log server: it knows no higher tail
    silent: bool = False  # reads are taken and never answered
    not_open: bool = False  # the log server never heard of any loglet
    read_errors: deque[SharedLogError] = field(default_factory=deque)
    describe_errors: deque[SharedLogError] = field(default_factory=deque)


class MemoryNode:
    """One node: its own port, its own faults; the logs are the cluster's."""

    def __init__(self, cluster: MemoryCluster, node_id: str) -> None:
        self.node_id = node_id
        self.storage_id = f"{node_id}-store"
        self.faults = Faults()
        self.address = ""
        self.sessions_opened = 0
        self.reads_opened = 0
        self.batches_received = 0
        self._cluster = cluster
        self._server: GrpcServer | None = None
        self._acks = asyncio.Event()
        self._acks.set()

    async def start(self) -> None:
        """Listen: on a free port the first time, on the same one again later."""
        server = GrpcServer()
        server.add_call(methods.CREATE_LOG, self._create_log)
        server.add_call(methods.DESCRIBE_LOG, self._describe_log)
        server.add_call(methods.LIST_LOGS, self._list_logs)
        server.add_call(methods.FIND_TAIL, self._find_tail)
        server.add_call(methods.GET_KNOWN_TAIL, self._get_known_tail)
        server.add_call(methods.GET_NODES, self._get_nodes)
        server.add_call(methods.GET_STATUS, self._get_status)
        server.add_call(methods.LIST_LOGLETS, self._list_loglets)
        server.add_stream(methods.APPEND_SESSION, self._session)
        server.add_stream(methods.READ, self._read)
        server.add_stream(methods.READ_LOGLET, self._read_loglet)
        port = await server.start(self.address or "127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server = server

    async def stop(self) -> None:
        """End at once, as a killed process does."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s=0)

    @contextmanager
    def held_acks(self) -> Iterator[None]:
        """Take batches and answer none, for as long as the block lasts."""
        self._acks.clear()
        try:
            yield
        finally:
            self._acks.set()

    # LogService.

    async def _create_log(self, request: log_pb2.CreateLogRequest) -> log_pb2.CreateLogResponse:
        log = self._cluster.create(request.name, nonce=request.nonce)
        return log_pb2.CreateLogResponse(log=self._cluster.describe(log))

    async def _describe_log(
        self, request: log_pb2.DescribeLogRequest
    ) -> log_pb2.DescribeLogResponse:
        self._cluster.describes += 1
        if self.faults.describe_errors:
            raise self.faults.describe_errors.popleft()
        log = self._cluster.find(request.name)
        return log_pb2.DescribeLogResponse(log=self._cluster.describe(log))

    async def _list_logs(self, request: log_pb2.ListLogsRequest) -> log_pb2.ListLogsResponse:
        names = sorted(self._cluster.logs)
        names = [n for n in names if n.startswith(request.prefix) and n > request.after]
        page = names[: min(request.limit, self._cluster.page)]
        logs = [self._cluster.describe(self._cluster.logs[name]) for name in page]
        return log_pb2.ListLogsResponse(logs=logs, more=len(names) > len(page))

    async def _find_tail(self, request: log_pb2.FindTailRequest) -> log_pb2.FindTailResponse:
        if self.faults.find_tail_errors:
            raise self.faults.find_tail_errors.popleft()
        if self.faults.find_tail_error is not None:
            raise self.faults.find_tail_error
        log = self._cluster.find(request.log)
        self._check_direct(log, direct_only=request.direct_only)
        return log_pb2.FindTailResponse(tail=log.tail)

    async def _get_known_tail(
        self, request: log_pb2.GetKnownTailRequest
    ) -> log_pb2.GetKnownTailResponse:
        return log_pb2.GetKnownTailResponse(tail=self._known_tail(self._cluster.find(request.log)))

    async def _get_nodes(self, _: cluster_pb2.GetNodesRequest) -> cluster_pb2.GetNodesResponse:
        return cluster_pb2.GetNodesResponse(
            cluster_id=CLUSTER_ID, nodes=self._cluster.node_addresses()
        )

    async def _get_status(self, _: cluster_pb2.GetStatusRequest) -> cluster_pb2.GetStatusResponse:
        return cluster_pb2.GetStatusResponse(cluster_id=CLUSTER_ID)

    def _check_direct(self, log: MemoryLog, *, direct_only: bool) -> None:
        if direct_only and log.sequencer != self.node_id:
            raise NotSequencer("another node", sequencer_node_id=log.sequencer)

    async def _session(self, stream: Session) -> None:
        opening = await stream.receive()
        assert opening is not None
        if self.faults.refuse_sessions:
            raise self.faults.refuse_sessions.popleft()
        log = self._cluster.find(opening.open.log)
        self._check_direct(log, direct_only=opening.open.direct_only)
        self.sessions_opened += 1
        sequencer = types_pb2.SequencerId(node_id=log.sequencer, generation=1)
        opened = log_pb2.AppendSessionOpened(sequencer=sequencer)
        await stream.send(log_pb2.AppendSessionResponse(opened=opened))
        results: asyncio.Queue[log_pb2.AppendResult | None] = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._answer(stream, results))
                while (request := await stream.receive()) is not None:
                    self.batches_received += 1
                    results.put_nowait(await self._take(log, request.batch))
                results.put_nowait(None)
        except BaseExceptionGroup as group:
            raise first_error(group) from None

    async def _take(self, log: MemoryLog, batch: bytes) -> log_pb2.AppendResult:
        faults = self.faults
        if faults.drop_session_after is not None:
            faults.drop_session_after -= 1
            if faults.drop_session_after < 0:
                faults.drop_session_after = None
                if faults.admit_dropped:
                    await self._cluster.append(log, batch)
                raise Unreachable("dropped by the test")
        error = faults.batch_errors.popleft() if faults.batch_errors else None
        if error is not None:
            return log_pb2.AppendResult(error=error_to_proto(error))
        try:
            first = await self._cluster.append(log, batch)
        except SharedLogError as refused:
            return log_pb2.AppendResult(error=error_to_proto(refused))
        return log_pb2.AppendResult(first_offset=first, timestamp_ms=1)

    async def _answer(
        self, stream: Session, results: asyncio.Queue[log_pb2.AppendResult | None]
    ) -> None:
        while True:
            ready = [await results.get()]
            await self._acks.wait()
            while not results.empty():
                ready.append(results.get_nowait())
            answer = [result for result in ready if result is not None]
            if answer:
                await stream.send(log_pb2.AppendSessionResponse(results=answer))
            if ready[-1] is None:
                return

    async def _read(self, stream: PlainRead) -> None:
        request = await stream.receive()
        assert request is not None
        self.reads_opened += 1
        log = self._cluster.find(request.log)
        if request.start > log.tail:
            raise OffsetOutOfRange(offset=request.start, tail=log.tail)
        tail = log.tail
        end = request.end if request.HasField("end") else None
        if not request.follow:
            end = tail if end is None else min(end, tail)
        async for batches, known in self._batches(log, request.start, end):
            await stream.send(log_pb2.ReadResponse(batches=batches, committed_tail=known))

    # LogServerService.

    async def _list_loglets(
        self, request: log_server_pb2.ListLogletsRequest
    ) -> log_server_pb2.ListLogletsResponse:
        found = [
            log_server_pb2.LogletStatus(
                loglet=types_pb2.LogletId(log_id=log.log_id, segment_index=0),
                committed_tail=self._known_tail(log),
                local_tail=log.tail,
            )
            for log in self._cluster.logs.values()
        ]
        return log_server_pb2.ListLogletsResponse(loglets=found)

    async def _read_loglet(self, stream: LogletRead) -> None:
        request = await stream.receive()
        assert request is not None
        self.reads_opened += 1
        if request.storage_id != self.storage_id:
            raise WrongStorage(f"this is {self.storage_id}")
        if self.faults.read_errors:
            raise self.faults.read_errors.popleft()
        if self.faults.silent:
            await asyncio.Event().wait()
        if self.faults.not_open:
            raise LogletNotOpen("never opened here")
        log = self._cluster.by_id(request.loglet.log_id)
        end = request.end if request.HasField("end") else None
        if request.no_wait:
            known = self._known_tail(log)
            end = known if end is None else min(end, known)
        position = request.start
        async for batches, known in self._batches(log, position, end):
            for placed in batches:
                placement = parse_placement(placed)
                gap = self._gap_at(placement)
                if gap is not None:
                    message = log_server_pb2.ReadLogletResponse(committed_tail=known, gap=gap)
                    await stream.send(message)
                    return
                message = log_server_pb2.ReadLogletResponse(
                    batches=[self._on_the_wire(placement, placed)], committed_tail=known
                )
                await stream.send(message)
            if not batches:
                await stream.send(log_server_pb2.ReadLogletResponse(committed_tail=known))

    def _gap_at(self, placement: Placement) -> log_server_pb2.ReadGap | None:
        for first, end, reason in self.faults.gaps:
            if first < placement.end and placement.first < end:
                return log_server_pb2.ReadGap(reason=reason, first=first, end=end)
        return None

    def _on_the_wire(self, placement: Placement, placed: bytes) -> bytes:
        for offset, times in self.faults.corrupt.items():
            if placement.first <= offset < placement.end and times > 0:
                self.faults.corrupt[offset] = times - 1
                at = PLACEMENT_BYTES + (len(placed) - PLACEMENT_BYTES) // 2
                return placed[:at] + bytes((placed[at] ^ 1,)) + placed[at + 1 :]
        return placed

    def _known_tail(self, log: MemoryLog) -> Offset:
        known = self.faults.known_tail
        return log.tail if known is None else Offset(min(known, log.tail))

    async def _batches(
        self, log: MemoryLog, start: int, end: int | None
    ) -> AsyncIterator[tuple[list[bytes], Offset]]:
        """Committed batches as they come, and heartbeats while none do."""
        position = start
        while end is None or position < end:
            known = self._known_tail(log)
            ready = []
            for placement, placed in log.from_offset(position):
                if placement.end > known or (end is not None and placement.first >= end):
                    break
                ready.append(placed)
                position = placement.end
            yield ready, known
            if end is None or position < end:
                await self._cluster.wait_for_change(self._cluster.heartbeat_s)


class MemoryCluster:
    """Some nodes and their logs."""

    def __init__(self, nodes: int = 3) -> None:
        self.nodes = {f"n{i}": MemoryNode(self, f"n{i}") for i in range(1, nodes + 1)}
        self.logs: dict[str, MemoryLog] = {}
        self.page = 1_000
        self.heartbeat_s = 0.02
        self.describes = 0
        self._changed = asyncio.Event()

    @property
    def address(self) -> str:
        """Of the first node, which is also the sequencer of every log at first."""
        return self.nodes["n1"].address

    def create(self, name: str, *, nonce: str = "") -> MemoryLog:
        """Make a log."""
        if name in self.logs:
            if nonce and self.logs[name].nonce == nonce:
                return self.logs[name]
            raise LogExists(name=name)
        log = MemoryLog(name, LogId(len(self.logs) + 1), "n1", 2, list(self.nodes), nonce=nonce)
        self.logs[name] = log
        return log

    def fill(self, name: str, values: list[bytes], *, batch: int = 1) -> MemoryLog:
        """Make a log with these records, `batch` to a batch."""
        log = self.create(name)
        for at in range(0, len(values), batch):
            log.append(encode_records((value, None, None) for value in values[at : at + batch]))
        return log

    def find(self, name: str) -> MemoryLog:
        """The log, or LogNotFound."""
        if name not in self.logs:
            raise LogNotFound(name=name)
        return self.logs[name]

    def by_id(self, log_id: int) -> MemoryLog:
        """The log of this id."""
        return next(log for log in self.logs.values() if log.log_id == log_id)

    async def append(self, log: MemoryLog, batch: bytes) -> Offset:
        """Append and tell those who follow."""
        first = log.append(batch)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return first

    async def wait_for_change(self, timeout_s: float) -> None:
        """Until something is appended anywhere, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def node_addresses(self) -> list[types_pb2.NodeAddress]:
        """How to reach the nodes."""
        return [
            types_pb2.NodeAddress(
                node_id=node.node_id,
                address=node.address,
                generation=1,
                storage_id=node.storage_id,
            )
            for node in self.nodes.values()
        ]

    def describe(self, log: MemoryLog) -> types_pb2.LogDescription:
        """The log's description."""
        nodeset = [
            types_pb2.Replica(node_id=node_id, storage_id=f"{node_id}-store")
            for node_id in log.nodeset
        ]
        segment = types_pb2.Segment(
            index=0,
            base=0,
            sequencer=types_pb2.SequencerId(node_id=log.sequencer, generation=1),
            nodeset=nodeset,
            write_quorum=log.write_quorum,
        )
        return types_pb2.LogDescription(
            log_id=log.log_id,
            name=log.name,
            replicas=len(nodeset),
            write_quorum=log.write_quorum,
            chain=[segment],
            nodes=self.node_addresses(),
        )


@asynccontextmanager
async def memory_cluster(nodes: int = 3) -> AsyncIterator[MemoryCluster]:
    """A running cluster in memory."""
    cluster = MemoryCluster(nodes)
    try:
        for node in cluster.nodes.values():
            await node.start()
        yield cluster
    finally:
        for node in cluster.nodes.values():
            await node.stop()
