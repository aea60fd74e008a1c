"""The cluster as a whole (ClusterService): who is in it, what is wrong, and what is being done.

`LocalReport` says what this node knows of itself; it is cheap, for every node asks every other.
`ClusterReport` asks all nodes at once and puts the answers together, problems first. Whatever the
number of logs, it makes one status call per node and one ListLoglets per log server: at most
`LOGS_LISTED_MAX` logs are listed, those with problems first, and only those are looked up. What
chains name is counted by an index that only looks at chains that have changed.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from loglet.service import LogServer
from metadata.records import STATE_GONE, LogRecord, NodeRecord, Replica
from metadata.url import parse_metadata_url
from metadata.view import ClusterView
from node.controller.index import SegmentIndex
from node.controller.service import Controller
from node.controller.work import WorkBoard
from node.peers import Peers, in_parallel
from node.problem_codes import ProblemCode
from node.problems import (
    ERROR,
    Found,
    judge,
    lacking_copies,
    log_problems,
    loss_of,
    problem_of,
    store_problems,
    trouble_of,
)
from node.reconfigure import Trouble
from node.wire import node_address, sequencer_id
from sequencer.service import Sequencer
from sharedlog import __version__
from sharedlog.clock import Clock
from sharedlog.ids import LogId, LogletId
from sharedlog.rpc.methods import GET_NODES, GET_STATUS, PING
from sharedlog.rpc.transport import Server
from sharedlog.v1 import cluster_pb2

log = logging.getLogger(__name__)

LOGS_LISTED_MAX: Final = 1_000
TROUBLES_MAX: Final = 100
"""Logs of which one node tells why it could not reconfigure them; the oldest troubles."""


class LocalReport:
    """What the node says of itself."""

    def __init__(
        self,
        *,
        cluster_id: str,
        own: NodeRecord,
        view: ClusterView,
        log_server: LogServer | None,
        sequencer: Sequencer | None,
        board: WorkBoard,
        controller: Controller | None,
        stopping: Callable[[], bool],
        troubles: Callable[[], Mapping[str, Trouble]] = dict,
        clock: Clock,
        started_s: float,
    ) -> None:
        self.cluster_id = cluster_id
        self._own = own
        self._view = view
        self._log_server = log_server
        self._sequencer = sequencer
        self._board = board
        self._controller = controller
        self._stopping = stopping
        self._troubles = troubles
        self._clock = clock
        self._started_s = started_s

    @property
    def controller(self) -> str:
        """Who holds the controller's lease, as far as this node knows; "" if nobody does."""
        return "" if self._controller is None else self._controller.holder

    async def ping(self, _: cluster_pb2.PingRequest) -> cluster_pb2.PingResponse:
        """Handler of Ping."""
        server = self._log_server
        return cluster_pb2.PingResponse(
            node_id=self._own.node_id,
            generation=self._own.generation,
            storage_id=self._own.storage_id,
            read_only=server is not None and server.read_only,
            stopping=self._stopping(),
            disk_free_bytes=None if server is None else server.free_bytes,
        )

    def problem(self) -> str:
        """What an operator should know although the node serves, "" if nothing."""
        if not self._view.connected:
            return "the metadata store does not answer"
        if self._log_server is not None and self._log_server.read_only:
            return "the store is read-only: its disk, or its limit, is full"
        return ""

    def status(self) -> cluster_pb2.GetStatusResponse:
        """This node, and those of its logs that some replica does not keep up with."""
        own = self._own
        node = cluster_pb2.NodeStatus(
            node_id=own.node_id,
            address=own.address,
            http_address=own.http_address,
            generation=own.generation,
            storage_id=own.storage_id,
            location=own.location,
            roles=own.roles,
            alive=True,
            rss_anon_bytes=_rss_anon_bytes(),
            uptime_s=self._clock.monotonic_s() - self._started_s,
            version=__version__,
        )
        if self._log_server is not None:
            served = self._log_server.status()
            node.read_only = served.read_only
            node.disk_free_bytes = served.space.free_bytes
            node.store_bytes = served.space.used_bytes
            node.loglets = served.loglets
        logs: list[cluster_pb2.LogStatus] = []
        if self._sequencer is not None:
            ordered = self._sequencer.status()
            node.sequenced_logs = ordered.logs
            for loglet in sorted(ordered.lagging)[:LOGS_LISTED_MAX]:
                lagging = list(ordered.lagging[loglet])
                logs.append(
                    cluster_pb2.LogStatus(log_id=loglet.log_id, under_replicated_on=lagging)
                )
        logs.extend(self._losses())
        return cluster_pb2.GetStatusResponse(
            cluster_id=self.cluster_id,
            problems=self._told_troubles(),
            nodes=[node],
            logs=logs,
            controller=self.controller,
            work=self._board.shown(),
        )

    def _losses(self) -> list[cluster_pb2.LogStatus]:
        """Logs of which the controller, if it is this node, found records that nobody has."""
        term = None if self._controller is None else self._controller.term
        if term is None:
            return []
        return [
            cluster_pb2.LogStatus(log_id=log_id, unrepairable=loss_of(ranges))
            for log_id, ranges in term.ledger.losses(LOGS_LISTED_MAX)
        ]

    def _told_troubles(self) -> list[cluster_pb2.Problem]:
        """Logs that this node tried to reconfigure and could not."""
        troubles = sorted(self._troubles().values(), key=lambda it: it.since_ms)
        return [
            problem_of(
                ERROR, f"log {it.log}", trouble_of(it), code=ProblemCode.RECONFIGURATION_FAILED
            )
            for it in troubles[:TROUBLES_MAX]
        ]


class ClusterReport:
    """Serves ClusterService."""

    def __init__(
        self,
        *,
        local: LocalReport,
        view: ClusterView,
        index: SegmentIndex,
        peers: Peers,
        metadata_url: str,
    ) -> None:
        self.local = local
        self._view = view
        self._peers = peers
        self._metadata = parse_metadata_url(metadata_url).describe()
        self._index = index

    def register(self, server: Server) -> None:
        """Serve every method of ClusterService on `server`."""
        server.add_call(GET_NODES, self.get_nodes)
        server.add_call(GET_STATUS, self.get_status)
        server.add_call(PING, self.local.ping)

    async def get_nodes(self, _: cluster_pb2.GetNodesRequest) -> cluster_pb2.GetNodesResponse:
        """The nodes that this one knows, without those that are gone."""
        nodes = [node_address(it) for it in self._view.nodes() if it.state != STATE_GONE]
        return cluster_pb2.GetNodesResponse(cluster_id=self.local.cluster_id, nodes=nodes)

    async def get_status(
        self, request: cluster_pb2.GetStatusRequest
    ) -> cluster_pb2.GetStatusResponse:
        """Problems, nodes, logs."""
        if request.local_only:
            return self.local.status()
        nodes = self._view.nodes()
        answers = await self._peers.statuses(nodes)
        logs = self._view.logs()
        self._index.catch_up()
        found = Found(nodes=nodes, index=self._index, metadata_up=self._view.connected)
        for node, answer in zip(nodes, answers, strict=True):
            found.take(node, answer)
        lacking = lacking_copies(found)
        judged = [(judge(record, found, lacking), record) for record, _ in logs]
        judged.sort(key=lambda pair: (-_worst(pair[0]), pair[1].name))
        listed = [record for _, record in judged[:LOGS_LISTED_MAX]]
        tails = await self._known_tails(listed, found)
        problems = [
            *self._metadata_problems(),
            *found.problems(self.local.controller),
            *store_problems(found),
            *log_problems([problem for problems, _ in judged for problem in problems]),
        ]
        problems.sort(key=lambda problem: -problem.severity)
        return cluster_pb2.GetStatusResponse(
            cluster_id=self.local.cluster_id,
            problems=problems,
            nodes=found.statuses,
            logs=[_log_status(record, found, tails, lacking) for record in listed],
            metadata=self._metadata,
            log_count=len(logs),
            controller=self.local.controller,
            work=found.work,
        )

    def _metadata_problems(self) -> list[cluster_pb2.Problem]:
        problems = []
        if not self._view.connected:
            text = "does not answer; appends and reads go on, new logs and reconfigurations wait"
            code = ProblemCode.METADATA_AWAY
            problems.append(problem_of(ERROR, "metadata store", text, code=code))
        for key, error in sorted(self._view.damaged.items()):
            code = ProblemCode.METADATA_DAMAGED
            problems.append(problem_of(ERROR, f"metadata {key}", str(error), code=code))
        return problems

    async def _known_tails(
        self, records: Sequence[LogRecord], found: Found
    ) -> Mapping[LogletId, int]:
        """The highest committed tail of each open segment that an alive log server knows."""
        wanted: dict[Replica, list[LogletId]] = defaultdict(list)
        for record in records:
            for replica in record.open_segment.nodeset:
                if found.serves(replica):
                    # Its location is that of the segment's making; the server is the same.
                    server = Replica(node_id=replica.node_id, storage_id=replica.storage_id)
                    wanted[server].append(record.loglet(record.open_segment))

        async def ask(replica: Replica) -> list[tuple[LogletId, int]]:
            statuses = await self._peers.ask_loglets(replica, wanted[replica]) or ()
            return [
                (LogletId(LogId(it.loglet.log_id), it.loglet.segment_index), it.committed_tail)
                for it in statuses
            ]

        tails: dict[LogletId, int] = {}
        for answers in await in_parallel(ask, wanted):
            for loglet, tail in answers:
                tails[loglet] = max(tail, tails.get(loglet, 0))
        return tails


def _log_status(
    record: LogRecord,
    found: Found,
    tails: Mapping[LogletId, int],
    lacking: Mapping[str, int],
) -> cluster_pb2.LogStatus:
    segment = record.open_segment
    standing = found.standing(record)
    away = set(standing.away)
    alive = len(segment.nodeset) - len(away)
    return cluster_pb2.LogStatus(
        name=record.name,
        log_id=record.log_id,
        replicas=record.replicas,
        write_quorum=record.write_quorum,
        sequencer=sequencer_id(segment.sequencer),
        accepts_appends=standing.takes_appends,
        known_tail=max(segment.base, tails.get(record.loglet(segment), 0)),
        replicas_alive=alive,
        under_replicated_on=sorted(away | found.lagging.get(record.log_id, set())),
        segments=len(record.chain),
        unrepairable=found.unrepairable(record),
        segments_under_replicated=lacking.get(record.name, 0),
    )


def _worst(problems: Sequence[cluster_pb2.Problem]) -> int:
    return max((int(problem.severity) for problem in problems), default=0)


def _rss_anon_bytes() -> int:
    """Memory of the process that is no file's; 0 where the system does not tell."""
    try:
        with Path("/proc/self/status").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
