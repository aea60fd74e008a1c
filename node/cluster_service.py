"""The cluster as a whole (ClusterService): who is in it, and what is wrong with it.

`LocalReport` says what this node knows of itself; it is cheap, for every node asks every other.
`ClusterReport` asks all nodes at once and puts the answers together, problems first. Whatever the
number of logs, it makes one status call per node and one ListLoglets per log server: at most
`LOGS_LISTED_MAX` logs are listed, those with problems first, and only those are looked up.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from loglet.service import LogServer
from metadata.records import LogRecord, NodeRecord, Replica
from metadata.url import parse_metadata_url
from metadata.view import ClusterView
from node.peers import Peers, in_parallel, own_status
from node.routing import gone
from node.wire import node_address, sequencer_id
from sequencer.service import Sequencer
from sharedlog import __version__
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogId, LogletId, NodeId, StorageId
from sharedlog.rpc.methods import GET_NODES, GET_STATUS
from sharedlog.rpc.transport import Server
from sharedlog.v1 import cluster_pb2

log = logging.getLogger(__name__)

LOGS_LISTED_MAX: Final = 1_000
LOG_PROBLEMS_MAX: Final = 100
"""Problems of logs that are told one by one; the rest is told as a number."""

_WARNING = cluster_pb2.Problem.SEVERITY_WARNING
_ERROR = cluster_pb2.Problem.SEVERITY_ERROR


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
        clock: Clock,
        started_s: float,
    ) -> None:
        self.cluster_id = cluster_id
        self._own = own
        self._view = view
        self._log_server = log_server
        self._sequencer = sequencer
        self._clock = clock
        self._started_s = started_s

    def problem(self) -> str:
        """What an operator should know although the node serves, "" if nothing."""
        if not self._view.connected:
            return "the metadata store does not answer"
        if self._log_server is not None and self._log_server.status().read_only:
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
        return cluster_pb2.GetStatusResponse(cluster_id=self.cluster_id, nodes=[node], logs=logs)


class ClusterReport:
    """Serves ClusterService."""

    def __init__(
        self, *, local: LocalReport, view: ClusterView, peers: Peers, metadata_url: str
    ) -> None:
        self.local = local
        self._view = view
        self._peers = peers
        self._metadata = parse_metadata_url(metadata_url).describe()

    def register(self, server: Server) -> None:
        """Serve every method of ClusterService on `server`."""
        server.add_call(GET_NODES, self.get_nodes)
        server.add_call(GET_STATUS, self.get_status)

    async def get_nodes(self, _: cluster_pb2.GetNodesRequest) -> cluster_pb2.GetNodesResponse:
        """The nodes that this one knows."""
        nodes = [node_address(node) for node in self._view.nodes()]
        return cluster_pb2.GetNodesResponse(cluster_id=self.local.cluster_id, nodes=nodes)

    async def get_status(
        self, request: cluster_pb2.GetStatusRequest
    ) -> cluster_pb2.GetStatusResponse:
        """Problems, nodes, logs."""
        if request.local_only:
            return self.local.status()
        nodes = self._view.nodes()
        answers = await self._peers.statuses(nodes)
        found = _Found(nodes=nodes)
        for node, answer in zip(nodes, answers, strict=True):
            found.take(node, answer)
        records = [record for record, _ in self._view.logs()]
        judged = [(_judge(record, found), record) for record in records]
        judged.sort(key=lambda pair: (-_worst(pair[0]), pair[1].name))
        listed = [record for _, record in judged[:LOGS_LISTED_MAX]]
        tails = await self._known_tails(listed, found)
        problems = [
            *self._metadata_problems(),
            *found.problems,
            *_store_problems(records, self._view),
            *_log_problems([problem for problems, _ in judged for problem in problems]),
        ]
        problems.sort(key=lambda problem: -problem.severity)
        return cluster_pb2.GetStatusResponse(
            cluster_id=self.local.cluster_id,
            problems=problems,
            nodes=found.statuses,
            logs=[_log_status(record, found, tails) for record in listed],
            metadata=self._metadata,
            log_count=len(records),
        )

    def _metadata_problems(self) -> list[cluster_pb2.Problem]:
        problems = []
        if not self._view.connected:
            text = "does not answer; appends and reads go on, new logs and reconfigurations wait"
            problems.append(_problem(_ERROR, "metadata store", text))
        for key, error in sorted(self._view.damaged.items()):
            problems.append(_problem(_ERROR, f"metadata {key}", str(error)))
        return problems

    async def _known_tails(
        self, records: Sequence[LogRecord], found: _Found
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


@dataclass(slots=True, kw_only=True)
class _Found:
    """What the nodes answered."""

    nodes: Sequence[NodeRecord]
    statuses: list[cluster_pb2.NodeStatus] = field(default_factory=list)
    problems: list[cluster_pb2.Problem] = field(default_factory=list)
    generations: dict[NodeId, int] = field(default_factory=dict)  # of the alive nodes
    stores: dict[NodeId, StorageId] = field(default_factory=dict)  # that alive nodes serve
    lagging: dict[int, set[str]] = field(default_factory=dict)  # by log_id: nodes that lag

    def take(
        self, node: NodeRecord, answer: cluster_pb2.GetStatusResponse | SharedLogError
    ) -> None:
        """Take one node's answer."""
        if isinstance(answer, SharedLogError):
            self.statuses.append(_dead(node, str(answer)))
            self.problems.append(_problem(_ERROR, f"node {node.node_id}", f"is down: {answer}"))
            return
        status = own_status(answer)
        if status.node_id != node.node_id:
            text = f"at {node.address} answers {status.node_id or 'somebody else'}"
            self.statuses.append(_dead(node, text))
            self.problems.append(_problem(_ERROR, f"node {node.node_id}", text))
            return
        self.statuses.append(status)
        self.generations[node.node_id] = status.generation
        self.stores[node.node_id] = StorageId(status.storage_id)
        if status.read_only:
            text = "takes no stores: its disk, or its store's limit, is full"
            self.problems.append(_problem(_ERROR, f"node {node.node_id}", text))
        for lagging in answer.logs:
            self.lagging.setdefault(lagging.log_id, set()).update(lagging.under_replicated_on)

    def serves(self, replica: Replica) -> bool:
        """The replica's node answers, with the very store that the chain names."""
        return self.stores.get(replica.node_id) == replica.storage_id


def _judge(record: LogRecord, found: _Found) -> list[cluster_pb2.Problem]:
    """What is wrong with a log, as far as nodes and chain tell."""
    segment = record.open_segment
    named = segment.sequencer
    subject = f"log {record.name}"
    problems = []
    alive = found.generations.get(named.node_id)
    away = [replica.node_id for replica in segment.nodeset if not found.serves(replica)]
    up = len(segment.nodeset) - len(away)
    if alive is not None and alive != named.generation:
        text = f"takes no appends: {gone(record.name, named.node_id, named.generation)}"
        problems.append(_problem(_ERROR, subject, text))
    elif alive is None:
        text = f"takes no appends: its sequencer's node, {named.node_id}, is down"
        problems.append(_problem(_ERROR, subject, text))
    elif up < segment.write_quorum:
        text = f"takes no appends: {up} of {len(segment.nodeset)} replicas are up, "
        text += f"{segment.write_quorum} must be"
        problems.append(_problem(_ERROR, subject, text))
    lagging = sorted(found.lagging.get(record.log_id, set()) - set(away))
    if away or lagging:
        words = [*(f"{name} is away" for name in away), *(f"{name} lags" for name in lagging)]
        text = f"has fewer than {record.replicas} copies: {', '.join(words)}"
        problems.append(_problem(_WARNING, subject, text))
    return problems


def _log_status(
    record: LogRecord, found: _Found, tails: Mapping[LogletId, int]
) -> cluster_pb2.LogStatus:
    segment = record.open_segment
    away = {replica.node_id for replica in segment.nodeset if not found.serves(replica)}
    alive = len(segment.nodeset) - len(away)
    named = segment.sequencer
    sequencer_up = found.generations.get(named.node_id) == named.generation
    return cluster_pb2.LogStatus(
        name=record.name,
        log_id=record.log_id,
        replicas=record.replicas,
        write_quorum=record.write_quorum,
        sequencer=sequencer_id(named),
        accepts_appends=sequencer_up and alive >= segment.write_quorum,
        known_tail=max(segment.base, tails.get(record.loglet(segment), 0)),
        replicas_alive=alive,
        under_replicated_on=sorted(away | found.lagging.get(record.log_id, set())),
    )


def _store_problems(records: Sequence[LogRecord], view: ClusterView) -> list[cluster_pb2.Problem]:
    """Stores that chains name and their nodes no longer have: disks that were wiped or swapped."""
    logs: Counter[tuple[NodeId, StorageId]] = Counter()
    for record in records:
        for segment in record.chain:
            for replica in segment.nodeset:
                node = view.node(replica.node_id)
                if node is not None and node.storage_id != replica.storage_id:
                    logs[replica.node_id, replica.storage_id] += 1
    return [
        _problem(
            _ERROR,
            f"node {node_id}",
            f"serves another store than {storage_id[:8]}…, which {count} "
            f"{'segment has' if count == 1 else 'segments have'} a copy on: was its disk wiped?",
        )
        for (node_id, storage_id), count in sorted(logs.items())
    ]


def _log_problems(problems: Sequence[cluster_pb2.Problem]) -> list[cluster_pb2.Problem]:
    ordered = sorted(problems, key=lambda problem: -problem.severity)
    told = ordered[:LOG_PROBLEMS_MAX]
    if len(ordered) > len(told):
        rest = ordered[LOG_PROBLEMS_MAX:]
        told.append(_problem(rest[0].severity, "logs", f"{len(rest):,} more problems like these"))
    return told


def _worst(problems: Sequence[cluster_pb2.Problem]) -> int:
    return max((int(problem.severity) for problem in problems), default=0)


def _problem(
    severity: cluster_pb2.Problem.Severity.ValueType, subject: str, message: str
) -> cluster_pb2.Problem:
    return cluster_pb2.Problem(severity=severity, subject=subject, message=message)


def _dead(node: NodeRecord, error: str) -> cluster_pb2.NodeStatus:
    """A node that does not answer, as it last registered."""
    return cluster_pb2.NodeStatus(
        node_id=node.node_id,
        address=node.address,
        http_address=node.http_address,
        generation=node.generation,
        storage_id=node.storage_id,
        location=node.location,
        roles=node.roles,
        alive=False,
        error=error,
    )


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
