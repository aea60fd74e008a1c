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
from typing import Any

from helpers.memory_log import MemoryLog
from helpers.memory_metadata import MemoryMetadata
from helpers.memory_sessions import MemorySessions, Session

from loglet.time_search import find_neighbours
from metadata.store import Version
from node.cursor_service import CursorService
from sharedlog.batch import (
    HEADERS_BYTES,
    PLACEMENT_BYTES,
    Placement,
    encode_records,
    may_have_key,
    parse_placement,
)
from sharedlog.checksum import crc32c
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    LogExists,
    LogletNotOpen,
    LogNotFound,
    NotSequencer,
    OffsetOutOfRange,
    SharedLogError,
    WrongStorage,
)
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.rpc import methods
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.read_answer import Gap, ReadAnswer
from sharedlog.rpc.transport import ServerStream
from sharedlog.v1 import cluster_pb2, log_pb2, log_server_pb2, types_pb2

Reason = log_server_pb2.ReadGap.Reason
LogletRead = ServerStream[ReadAnswer, log_server_pb2.ReadLogletRequest]
PlainRead = ServerStream[log_pb2.ReadResponse, log_pb2.ReadRequest]

CLUSTER_ID = "memory"
NOBODY = "127.0.0.1:1"


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
    time_errors: deque[SharedLogError] = field(default_factory=deque)
    damaged_placements: set[int] = field(default_factory=set)  # first offsets of their batches
    read_errors: deque[SharedLogError] = field(default_factory=deque)
    describe_errors: deque[SharedLogError] = field(default_factory=deque)
    report_errors: deque[SharedLogError] = field(default_factory=deque)
    stale_view: types_pb2.LogDescription | None = None  # what it tells of every log
    stale_for: int = 0  # so many descriptions; 0: until somebody asks for a newer one
    unsaid: set[int] = field(default_factory=set)  # batches that are left out in silence
    untold: bool = False  # the log server is never told that a segment ended
    beyond: list[bytes] = field(default_factory=list)  # sent in place of what these begin with


class MemoryNode:
    """One node: its own port, its own faults; the logs are the cluster's."""

    def __init__(self, cluster: MemoryCluster, node_id: str) -> None:
        self.node_id = node_id
        self.storage_id = f"{node_id}-store"
        self.faults = Faults()
        self.address = ""
        self.sessions_opened = 0
        self.reads_opened = 0
        self.times_asked = 0
        self.batches_received = 0
        self.batches_skipped = 0
        self.openings: list[log_pb2.AppendSessionOpen] = []
        self.most_unanswered = 0  # batches of one session at a time
        self.acks = asyncio.Event()  # unset: batches are taken and not answered
        self.acks.set()
        self.running = asyncio.Event()  # unset: paused, as by SIGSTOP
        self.running.set()
        self._cluster = cluster
        self._server: GrpcServer | None = None
        self._sessions = MemorySessions(self, cluster)

    async def start(self) -> None:
        """Listen: on a free port the first time, on the same one again later."""
        server = GrpcServer()
        server.add_call(methods.CREATE_LOG, self._create_log)
        server.add_call(methods.DESCRIBE_LOG, self._describe_log)
        server.add_call(methods.LIST_LOGS, self._list_logs)
        server.add_call(methods.FIND_TAIL, self._find_tail)
        server.add_call(methods.GET_KNOWN_TAIL, self._get_known_tail)
        server.add_call(methods.FIND_OFFSET, self._find_offset)
        server.add_call(methods.FIND_TIME, self._find_time)
        server.add_call(methods.GET_NODES, self._get_nodes)
        server.add_call(methods.GET_STATUS, self._get_status)
        server.add_call(methods.LIST_LOGLETS, self._list_loglets)
        server.add_call(methods.REPORT_SUSPECT, self._report_suspect)
        cluster: Any = self._cluster  # which is all the view that cursors need
        CursorService(store=cluster.metadata, view=cluster, clock=SystemClock()).register(server)
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
        self.acks.clear()
        try:
            yield
        finally:
            self.acks.set()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep every connection and do nothing at all, for as long as the block lasts."""
        self.running.clear()
        try:
            yield
        finally:
            self.running.set()

    def works(self) -> bool:
        """It is up and not paused."""
        return self._server is not None and self.running.is_set()

    # LogService.

    async def _create_log(self, request: log_pb2.CreateLogRequest) -> log_pb2.CreateLogResponse:
        log = self._cluster.create(request.name, nonce=request.nonce)
        return log_pb2.CreateLogResponse(log=self._cluster.describe(log))

    async def _describe_log(
        self, request: log_pb2.DescribeLogRequest
    ) -> log_pb2.DescribeLogResponse:
        await self.running.wait()
        cluster, faults = self._cluster, self.faults
        cluster.describes += 1
        if faults.describe_errors:
            raise faults.describe_errors.popleft()
        log = cluster.find(request.name)
        found = log.describe(
            start=request.chain_from, limit=request.chain_limit, open_only=request.open_only
        )
        stale = faults.stale_view
        if stale is not None:
            faults.stale_for -= 1
            if faults.stale_for > 0 or request.min_chain_version <= stale.chain_version:
                found = stale
            if faults.stale_for == 0:
                faults.stale_view = None
        answer = log_pb2.DescribeLogResponse(log=cluster.with_addresses(found))
        cluster.describe_bytes += answer.ByteSize()
        return answer

    async def _list_logs(self, request: log_pb2.ListLogsRequest) -> log_pb2.ListLogsResponse:
        names = sorted(self._cluster.logs)
        names = [n for n in names if n.startswith(request.prefix) and n > request.after]
        page = names[: min(request.limit, self._cluster.page)]
        logs = [self._cluster.describe(self._cluster.logs[name]) for name in page]
        more = len(names) > len(page)
        if request.summaries:
            summaries = [types_pb2.LogSummary(log_id=log.log_id, name=log.name) for log in logs]
            return log_pb2.ListLogsResponse(summaries=summaries, more=more)
        return log_pb2.ListLogsResponse(logs=logs, more=more)

    async def _find_tail(self, request: log_pb2.FindTailRequest) -> log_pb2.FindTailResponse:
        await self.running.wait()
        if self.faults.find_tail_errors:
            raise self.faults.find_tail_errors.popleft()
        if self.faults.find_tail_error is not None:
            raise self.faults.find_tail_error
        log = self._cluster.find(request.log)
        self.check_direct(log, direct_only=request.direct_only)
        return log_pb2.FindTailResponse(tail=log.tail)

    async def _get_known_tail(
        self, request: log_pb2.GetKnownTailRequest
    ) -> log_pb2.GetKnownTailResponse:
        return log_pb2.GetKnownTailResponse(tail=self._known_tail(self._cluster.find(request.log)))

    async def _find_offset(self, request: log_pb2.FindOffsetRequest) -> log_pb2.FindOffsetResponse:
        log = self._cluster.find(request.log)
        return log_pb2.FindOffsetResponse(offset=log.find_offset(request.timestamp_ms))

    async def _get_nodes(self, _: cluster_pb2.GetNodesRequest) -> cluster_pb2.GetNodesResponse:
        return cluster_pb2.GetNodesResponse(
            cluster_id=CLUSTER_ID, nodes=self._cluster.node_addresses()
        )

    async def _get_status(self, _: cluster_pb2.GetStatusRequest) -> cluster_pb2.GetStatusResponse:
        return cluster_pb2.GetStatusResponse(cluster_id=CLUSTER_ID)

    async def _session(self, stream: Session) -> None:
        await self._sessions.serve(stream)

    def check_direct(self, log: MemoryLog, *, direct_only: bool) -> None:
        """Raise NotSequencer if another node orders the log and the caller wants none other."""
        if direct_only and log.sequencer != self.node_id:
            raise NotSequencer("another node", sequencer_node_id=log.sequencer)

    # ClusterService.

    async def _report_suspect(
        self, request: cluster_pb2.ReportSuspectRequest
    ) -> cluster_pb2.ReportSuspectResponse:
        await self.running.wait()
        self._cluster.reports.append((self.node_id, request))
        if self.faults.report_errors:
            raise self.faults.report_errors.popleft()
        log = self._cluster.find(request.log)
        if not self._cluster.nodes[log.sequencer].works():
            await self._cluster.roll(log, self.node_id)
        segment = log.open_segment
        return cluster_pb2.ReportSuspectResponse(
            chain_version=log.chain_version,
            sequencer=types_pb2.SequencerId(
                node_id=segment.sequencer, generation=segment.generation
            ),
            address=self._cluster.address_of(log.sequencer),
        )

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
        key_hash = crc32c(request.key) if request.HasField("key") else None
        async for batches, known in self._batches(log, request.start, end):
            sent, skipped = self._sift(batches, key_hash)
            message = log_pb2.ReadResponse(batches=sent, committed_tail=known, skipped=skipped)
            await stream.send(message)

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

    async def _find_time(
        self, request: log_server_pb2.FindTimeRequest
    ) -> log_server_pb2.FindTimeResponse:
        self.times_asked += 1
        await self.running.wait()
        if request.storage_id != self.storage_id:
            raise WrongStorage(f"this is {self.storage_id}")
        if self.faults.time_errors:
            raise self.faults.time_errors.popleft()
        log = self._cluster.by_id(request.loglet.log_id)
        index = request.loglet.segment_index
        visible = self._told_end(log, index)
        if request.HasField("segment_end"):
            visible = Offset(request.segment_end)
        if visible is None:
            visible = self._known_tail(log)
        if self.faults.not_open:
            return log_server_pb2.FindTimeResponse(visible=visible)

        def walk(first: Offset, end: Offset) -> Iterator[tuple[Offset, Offset, bytes]]:
            for placement, placed in log.from_offset(first):
                if placement.first >= end:
                    return
                if placement.loglet.segment_index == index and self._gap_at(placement) is None:
                    fixed = placed[:HEADERS_BYTES]
                    if placement.first in self.faults.damaged_placements:
                        fixed = bytes(len(fixed))
                    yield placement.first, placement.end, fixed

        loglet = LogletId(log.log_id, index)
        end = Offset(min(request.end, visible))
        found = find_neighbours(walk, loglet, Offset(request.start), end, request.timestamp_ms)
        return log_server_pb2.FindTimeResponse(
            before=found.before, after=found.after, visible=visible
        )

    async def _read_loglet(self, stream: LogletRead) -> None:
        request = await stream.receive()
        assert request is not None
        self.reads_opened += 1
        await self.running.wait()
        if request.storage_id != self.storage_id:
            raise WrongStorage(f"this is {self.storage_id}")
        if self.faults.read_errors:
            raise self.faults.read_errors.popleft()
        if self.faults.silent:
            await asyncio.Event().wait()
        if self.faults.not_open:
            raise LogletNotOpen("never opened here")
        log = self._cluster.by_id(request.loglet.log_id)
        index = request.loglet.segment_index
        end = request.end if request.HasField("end") else None
        if request.no_wait and not request.HasField("segment_end"):
            known = self._known_tail(log)
            end = known if end is None else min(end, known)
        async for batches, known in self._batches(log, request.start, end, index):
            await self.running.wait()
            key_hash = request.key_digest if request.HasField("key_digest") else None
            for placed in batches:
                placement = parse_placement(placed)
                gap = self._gap_at(placement)
                if gap is not None:
                    message = ReadAnswer(known, gap=gap)
                    await stream.send(message)
                    return
                sent, skipped = self._sift([placed], key_hash)
                message = ReadAnswer(
                    known,
                    [self._on_the_wire(placement, it) for it in sent],
                    skipped=[(Offset(it.first), Offset(it.end)) for it in skipped],
                )
                await stream.send(message)
            if not batches:
                await stream.send(ReadAnswer(known))
        told = self._told_end(log, index)
        if told is not None and not request.HasField("segment_end"):
            await stream.send(ReadAnswer(Offset(0), told_end=told))

    def _sift(
        self, batches: list[bytes], key_hash: int | None
    ) -> tuple[list[bytes], list[types_pb2.SkippedRange]]:
        """What may have the key, and the ranges of the others; it may leave them unsaid."""
        sent: list[bytes] = []
        skipped = []
        for placed in batches:
            if key_hash is None or may_have_key(placed, key_hash):
                sent.append(placed)
                continue
            self.batches_skipped += 1
            placement = parse_placement(placed)
            if placement.first not in self.faults.unsaid:
                skipped.append(types_pb2.SkippedRange(first=placement.first, end=placement.end))
        return sent, skipped

    def _told_end(self, log: MemoryLog, index: int) -> Offset | None:
        """Where the segment ended, if this log server was told."""
        segment = log.segment(index)
        if self.faults.untold:
            return None
        if segment is None:  # it was empty, and another has taken its place
            return log.open_segment.base if log.open_segment.index > index else None
        return segment.end

    def _gap_at(self, placement: Placement) -> Gap | None:
        for first, end, reason in self.faults.gaps:
            if first < placement.end and placement.first < end:
                return Gap(reason, Offset(first), Offset(end))
        return None

    def _on_the_wire(self, placement: Placement, placed: bytes) -> bytes:
        for other in self.faults.beyond:
            if parse_placement(other).first == placement.first:
                return other
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
        self, log: MemoryLog, start: int, end: int | None, index: int | None = None
    ) -> AsyncIterator[tuple[list[bytes], Offset]]:
        """Committed batches as they come, and heartbeats while none do; of one segment if given."""
        position = start
        while True:
            segment = None if index is None else log.segment(index)
            stops = [end, None if segment is None else segment.end]
            stop = min((found for found in stops if found is not None), default=None)
            if stop is not None and position >= stop:
                if end is None or position < end:
                    if not self.faults.untold:
                        return
                else:
                    return
            if index is not None and segment is None and self._told_end(log, index) is not None:
                return
            known = self._known_tail(log)
            if segment is not None and segment.end is not None:
                known = Offset(min(known, segment.end))
            ready = []
            for placement, placed in log.from_offset(position):
                if placement.end > known or (stop is not None and placement.first >= stop):
                    break
                ready.append(placed)
                position = placement.end
            yield ready, known
            if stop is None or position < stop or self.faults.untold:
                await self._cluster.wait_for_change(self._cluster.heartbeat_s)


class MemoryCluster:
    """Some nodes and their logs."""

    def __init__(self, nodes: int = 3) -> None:
        self.nodes = {f"n{i}": MemoryNode(self, f"n{i}") for i in range(1, nodes + 1)}
        self.logs: dict[str, MemoryLog] = {}
        self.metadata = MemoryMetadata()
        self.page = 1_000
        self.heartbeat_s = 0.02
        self.describes = 0
        self.describe_bytes = 0
        self.in_flight_batches_max = 64
        self.reports: list[tuple[str, cluster_pb2.ReportSuspectRequest]] = []
        self.out_of_reach: set[str] = set()  # nodes that live, but not for the client
        self.moves: dict[str, asyncio.Event] = {}  # by log: its sequencer has handed it over
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
        log = MemoryLog(name, LogId(len(self.logs) + 1), "n1", list(self.nodes), nonce)
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

    async def fetch_log(self, name: str) -> tuple[MemoryLog, Version]:
        """As a node's view does."""
        return self.find(name), Version(1)

    def by_id(self, log_id: int) -> MemoryLog:
        """The log of this id."""
        return next(log for log in self.logs.values() if log.log_id == log_id)

    async def append(self, log: MemoryLog, batch: bytes) -> Offset:
        """Append and tell those who follow."""
        first = log.append(batch)
        self._tell()
        return first

    async def roll(
        self,
        log: MemoryLog,
        sequencer: str | None = None,
        nodeset: list[str] | None = None,
        *,
        planned: bool = False,
    ) -> None:
        """Begin another segment; `planned`: the sessions of the old sequencer are told so."""
        log.roll(sequencer, nodeset)
        if planned and log.name in self.moves:
            self.moves.pop(log.name).set()
        self._tell()

    def moving(self, log: MemoryLog) -> asyncio.Event:
        """Set once the log's present sequencer has handed it over."""
        return self.moves.setdefault(log.name, asyncio.Event())

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def wait_for_change(self, timeout_s: float) -> None:
        """Until something is appended anywhere, or the time is up."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def address_of(self, node_id: str) -> str:
        """Where the client is sent for this node."""
        return NOBODY if node_id in self.out_of_reach else self.nodes[node_id].address

    def node_addresses(self) -> list[types_pb2.NodeAddress]:
        """How to reach the nodes."""
        return [
            types_pb2.NodeAddress(
                node_id=node.node_id,
                address=self.address_of(node.node_id),
                generation=1,
                storage_id=node.storage_id,
            )
            for node in self.nodes.values()
        ]

    def describe(self, log: MemoryLog) -> types_pb2.LogDescription:
        """The log's description."""
        return self.with_addresses(log.describe())

    def with_addresses(self, description: types_pb2.LogDescription) -> types_pb2.LogDescription:
        """The description, with how to reach the nodes now."""
        del description.nodes[:]
        description.nodes.extend(self.node_addresses())
        return description


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
