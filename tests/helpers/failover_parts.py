"""Nodes that a `Liveness` can ping, logs that a `Failover` can move, and nothing behind them.

The metadata store and the view are real (simulated store); pings are answered as `Pings` is told;
a reconfiguration is the compare-and-swap alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, cast

from helpers.sim import SimClock, SimMetadata, World

from metadata.encoding import encode_log, encode_node, log_key, node_key
from metadata.reconfiguration import Change
from metadata.records import LogRecord, NodeRecord, Replica, Segment
from metadata.store import ABSENT
from metadata.view import ClusterView
from node.causes import Cause
from node.controller.work import WorkBoard
from node.failover import Failover
from node.liveness import Liveness
from node.reconfigure import Reconfigured
from sharedlog.errors import DeadlineExceeded, SharedLogError, Unreachable, VersionMismatch
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.methods import LIST_LOGLETS, PING, RECONFIGURE
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp
from sharedlog.v1 import admin_pb2, cluster_pb2, log_server_pb2

ROLES = ("log-server", "sequencer")


def node_record(name: str, generation: int = 1, *, state: str = "read-write") -> NodeRecord:
    return NodeRecord(
        node_id=NodeId(name),
        generation=Generation(generation),
        storage_id=StorageId(name * 8),
        address=f"{name}:1",
        http_address="",
        location="",
        roles=ROLES,
        state=state,
    )


def log_record(name: str, sequencer: str, generation: int = 1, *, nodes: int = 3) -> LogRecord:
    nodeset = tuple(
        Replica(node_id=NodeId(f"n{n}"), storage_id=StorageId(f"n{n}" * 8))
        for n in range(1, nodes + 1)
    )
    segment = Segment(
        index=0,
        base=Offset(0),
        sequencer=SequencerId(NodeId(sequencer), Generation(generation)),
        nodeset=nodeset,
        write_quorum=len(nodeset) // 2 + 1,
    )
    return LogRecord(
        log_id=LogId(hash(name) & 0xFFFF),
        name=name,
        replicas=len(nodeset),
        write_quorum=segment.write_quorum,
        created_ms=1,
        create_nonce="",
        chain=(segment,),
    )


@dataclass
class Pings:
    """How nodes answer: a generation, or an error text for "refused", "broken", "silent"."""

    answers: dict[str, int | str] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)  # addresses of pings, in order
    help_asked: list[str] = field(default_factory=list)
    help_requests: list[admin_pb2.ReconfigureRequest] = field(default_factory=list)
    helps: bool = False
    sealed: set[str] = field(default_factory=set)  # nodes that have sealed what they are asked for

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        if method.path == RECONFIGURE.path:
            self.help_asked.append(address)
            self.help_requests.append(cast("admin_pb2.ReconfigureRequest", request))
            if not self.helps:
                raise Unreachable("no help")
            return cast("Resp", admin_pb2.ReconfigureResponse())
        if method.path == LIST_LOGLETS.path:
            return cast("Resp", self._loglets(address))
        assert method.path == PING.path
        self.asked.append(address)
        node_id = address.partition(":")[0]
        answer = self.answers.get(node_id, 1)
        await asyncio.sleep(0.001)
        if answer == "refused":
            raise Unreachable(f"can't reach {address}: Connection refused")
        if answer == "broken":
            raise Unreachable(f"can't reach {address}: Socket closed")
        if answer == "silent":
            await asyncio.sleep(timeout_s)
            raise DeadlineExceeded(f"no answer from {address} in time")
        assert isinstance(answer, int)
        found = cluster_pb2.PingResponse(
            node_id=node_id, generation=answer, stopping=node_id in self.stopping
        )
        return cast("Resp", found)

    def _loglets(self, address: str) -> log_server_pb2.ListLogletsResponse:
        node_id = address.partition(":")[0]
        if isinstance(self.answers.get(node_id, 1), str):
            raise Unreachable(f"can't reach {address}")
        status = log_server_pb2.LogletStatus(sealed=node_id in self.sealed)
        return log_server_pb2.ListLogletsResponse(loglets=[status])

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        raise AssertionError("not used")

    async def close(self) -> None: ...


class FakeReconfigurer:
    """The compare-and-swap alone: the first node that is usable and not avoided gets the log."""

    def __init__(self, metadata: SimMetadata, view: ClusterView, liveness: Liveness) -> None:
        self._metadata = metadata
        self._view = view
        self._liveness = liveness
        self.error: SharedLogError | None = None
        self.takes_s = 0.01
        self.calls: list[tuple[str, Change, bool]] = []
        self.under_way = 0
        self.most_under_way = 0

    async def reconfigure(
        self,
        name: str,
        change: Change = Change(),  # noqa: B008  frozen
        *,
        reason: str,
        cause: Cause = Cause.OTHER,
        segment_index: int | None = None,
        planned: bool = True,
    ) -> Reconfigured:
        self.calls.append((name, change, planned))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        record, version = await self._view.refresh_log(name)
        ended = record.open_segment
        if segment_index is not None and ended.index != segment_index:
            return _done(record, version, ended, adopted=True)
        opened = replace(self._plan(record, change), index=ended.index + 1)
        new = replace(record, chain=(opened,))
        try:
            version = self._metadata.swap(log_key(name), encode_log(new), version)
        except VersionMismatch:  # somebody else was faster: his chain it is
            record, version = await self._view.refresh_log(name)
            return _done(record, version, ended, adopted=True)
        self._view.learn(new, version)
        return _done(new, version, ended, adopted=False)

    async def preview(self, name: str, change: Change) -> Segment:
        return self._plan((await self._view.fetch_log(name))[0], change)

    def _plan(self, record: LogRecord, change: Change) -> Segment:
        usable = [it for it in self._liveness.usable() if it.node_id not in change.avoid]
        named = change.sequencer or next(
            it.node_id for it in usable if it.node_id not in change.not_sequencer
        )
        node = self._view.node(named)
        assert node is not None
        members = [it for it in record.open_segment.nodeset if it.node_id not in change.avoid]
        spares = [it for it in usable if it.node_id not in {m.node_id for m in members}]
        members += [
            Replica(node_id=spare.node_id, storage_id=spare.storage_id)
            for spare in spares[: record.replicas - len(members)]
        ]
        stopgaps = [it for it in record.open_segment.nodeset if it.node_id in change.avoid]
        members += stopgaps[: record.replicas - len(members)]
        return replace(
            record.open_segment,
            sequencer=SequencerId(node.node_id, node.generation),
            nodeset=tuple(members),
        )


def _done(record: LogRecord, version: int, ended: Segment, *, adopted: bool) -> Reconfigured:
    return Reconfigured(
        record=record,
        version=cast("Any", version),
        ended=ended,
        opened=record.open_segment,
        adopted=adopted,
        repaired_records=0,
        pause_ms=0.0,
    )


class World3:
    """Nodes n1, n2, … that are registered, and the logs that were put."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.metadata = SimMetadata(self.world)
        self.pings = Pings()

    def put_nodes(self, *nodes: NodeRecord) -> None:
        for node in nodes:
            self._put(node_key(node.node_id), encode_node(node))

    def put_log(self, record: LogRecord) -> LogRecord:
        self._put(log_key(record.name), encode_log(record))
        return record

    def _put(self, key: str, value: bytes) -> None:
        entry = self.metadata.entries.get(key)
        self.metadata.swap(key, value, ABSENT if entry is None else entry.version)


@dataclass
class Part:
    """What one node has of it all."""

    me: SequencerId
    view: ClusterView
    liveness: Liveness
    reconfigurer: FakeReconfigurer
    failover: Failover
    pings: Pings
    clock: SimClock


@asynccontextmanager
async def running(
    world: World3, name: str, generation: int = 1, *, pings: Pings | None = None
) -> AsyncIterator[Part]:
    """One node's view, liveness and failover, which run."""
    clock = SimClock()
    me = SequencerId(NodeId(name), Generation(generation))
    asked = pings or world.pings
    view = ClusterView(world.metadata.store(name), clock)
    liveness = Liveness(me=me, view=view, transport=asked, clock=clock, ping_timeout_s=0.4)
    reconfigurer = FakeReconfigurer(world.metadata, view, liveness)
    failover = Failover(
        me=me,
        view=view,
        liveness=liveness,
        reconfigurer=reconfigurer,
        transport=asked,
        board=WorkBoard(me.node_id),
        clock=clock,
        random=Random(f"{world.world.seed}/{name}"),
    )
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(run) for run in (view.run(), liveness.run(), failover.run())]
        await view.wait_ready()
        try:
            yield Part(me, view, liveness, reconfigurer, failover, asked, clock)
        finally:
            for task in running:
                task.cancel()


def names(nodes: Sequence[NodeRecord]) -> list[str]:
    return [str(node.node_id) for node in nodes]


def sequencers(part: Part) -> dict[str, str]:
    return {record.name: str(record.open_segment.sequencer) for record, _ in part.view.logs()}
