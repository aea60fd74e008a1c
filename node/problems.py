"""What is wrong with a cluster, told from what its nodes answered and its chains name.

One line for a person each: what is wrong, and what to do if that is known; what mends itself says
so. Pure: nothing is asked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from metadata.quorum import QuorumRule
from metadata.reconfiguration import replica_state
from metadata.records import STATE_DATA_LOSS, STATE_GONE, LogRecord, NodeRecord, Replica, Segment
from node.controller.index import SegmentIndex, Store
from node.coverage import Range
from node.peers import own_status
from node.problem_codes import ProblemCode as Code
from node.reconfigure import Trouble
from sharedlog.errors import SharedLogError
from sharedlog.ids import NodeId, SequencerId, StorageId
from sharedlog.v1 import cluster_pb2

LOG_PROBLEMS_MAX: Final = 100
"""Problems of logs that are told one by one; the rest is told as a number."""

WORK_MAX: Final = 1_000
"""Pieces of work that one answer tells of."""

WARNING: Final = cluster_pb2.Problem.SEVERITY_WARNING
ERROR: Final = cluster_pb2.Problem.SEVERITY_ERROR

START_GRACE_S: Final = 10.0
"""While a node is younger than this it is no problem that nobody is the controller yet."""

WAITS: Final = "waits: "
"""How the message of work that can't go on begins."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an open segment stands."""

    takes_appends: bool  # its sequencer's process is up, and a write quorum of its replicas
    sequencer_up: bool
    away: tuple[NodeId, ...]  # replicas whose node does not answer, or has another store
    lost: tuple[NodeId, ...]  # replicas without whose stores nobody can end the segment

    @property
    def is_well(self) -> bool:
        """Nothing is wrong with it."""
        return self.takes_appends and not self.away


@dataclass(slots=True, kw_only=True)
class Found:
    """What the nodes answered, and what the chains name."""

    nodes: Sequence[NodeRecord]
    index: SegmentIndex
    metadata_up: bool
    statuses: list[cluster_pb2.NodeStatus] = field(default_factory=list)
    work: list[cluster_pb2.Work] = field(default_factory=list)
    generations: dict[NodeId, int] = field(default_factory=dict)  # of the alive nodes
    stores: dict[NodeId, StorageId] = field(default_factory=dict)  # that alive nodes serve
    lagging: dict[int, set[str]] = field(default_factory=dict)  # by log_id: nodes that lag
    losses: dict[int, str] = field(default_factory=dict)  # by log_id: as the controller tells
    _problems: list[cluster_pb2.Problem] = field(default_factory=list)
    _known: dict[NodeId, NodeRecord] = field(default_factory=dict)
    # By nodeset (the index has one object for each), sequencer and write quorum.
    _standings: dict[tuple[int, SequencerId, int], Standing] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known = {node.node_id: node for node in self.nodes}

    def take(
        self, node: NodeRecord, answer: cluster_pb2.GetStatusResponse | SharedLogError
    ) -> None:
        """Take one node's answer."""
        status = self._status(node, answer)
        status.state = node.state
        use = self.index.store((node.node_id, node.storage_id))
        status.segments = use.segments
        status.open_segments = len(use.open_logs)
        self.statuses.append(status)

    def _status(
        self, node: NodeRecord, answer: cluster_pb2.GetStatusResponse | SharedLogError
    ) -> cluster_pb2.NodeStatus:
        subject = f"node {node.node_id}"
        needed = node.state != STATE_GONE  # otherwise nothing names it: it may well be switched off
        if isinstance(answer, SharedLogError):
            if needed:
                text = f"is down: {answer}"
                self._problems.append(problem_of(ERROR, subject, text, code=Code.NODE_DOWN))
            return _dead(node, str(answer))
        status = own_status(answer)
        if status.node_id != node.node_id:
            text = f"at {node.address} answers {status.node_id or 'somebody else'}"
            if needed:
                self._problems.append(problem_of(ERROR, subject, text, code=Code.WRONG_NODE))
            return _dead(node, text)
        self.generations[node.node_id] = status.generation
        self.stores[node.node_id] = StorageId(status.storage_id)
        if status.read_only:
            text = "takes no stores: its disk, or its store's limit, is full"
            self._problems.append(problem_of(ERROR, subject, text, code=Code.STORE_FULL))
        for it in answer.logs:
            if it.under_replicated_on:
                self.lagging.setdefault(it.log_id, set()).update(it.under_replicated_on)
            if it.unrepairable:
                self.losses[it.log_id] = it.unrepairable
        self._problems.extend(it for it in answer.problems if it not in self._problems)
        self.work.extend(answer.work[: WORK_MAX - len(self.work)])
        return status

    def problems(self, controller: str) -> list[cluster_pb2.Problem]:
        """What is wrong with nodes, and with what should go on by itself."""
        found = list(self._problems)
        starting = not controller and any(
            it.alive and it.uptime_s < START_GRACE_S for it in self.statuses
        )
        if self.metadata_up and controller not in self.generations and not starting:
            text = f"{controller} holds its lease and does not answer" if controller else ""
            text = text or "no node holds its lease"
            text += "; another one takes over in a few seconds"
            found.append(problem_of(WARNING, "controller", text, code=Code.NO_CONTROLLER))
        waiting = {  # once, if several nodes wait for the same
            (it.subject, it.kind): it for it in self.work if it.message.startswith(WAITS)
        }
        found += [
            problem_of(WARNING, it.subject, f"{it.kind} {it.message}", code=Code.WORK_WAITS)
            for it in waiting.values()
        ]
        return found

    def serves(self, replica: Replica) -> bool:
        """The replica's node answers, with the very store that the chain names."""
        return self.stores.get(replica.node_id) == replica.storage_id

    def serves_store(self, store: Store) -> bool:
        """The same of a store."""
        return self.stores.get(store[0]) == store[1]

    def standing(self, record: LogRecord) -> Standing:
        """How a log's open segment stands; logs with equal configurations are judged once."""
        segment = record.open_segment
        # By the stores, not the locations, which only a spread judges by.
        use = self.index.log(record.name)
        stores = () if use is None else use.open_stores
        if segment.spread or use is None or use.record is not record:
            return self._judge_segment(segment)
        key = (id(stores), segment.sequencer, segment.write_quorum)
        known = self._standings.get(key)
        if known is None:
            known = self._standings[key] = self._judge_segment(segment)
        return known

    def unrepairable(self, record: LogRecord) -> str:
        """Why a log can't go on by itself any more, and what to do; "" if it can."""
        lost = self.standing(record).lost
        if not lost:
            return self.losses.get(record.log_id, "")
        index = record.open_segment.index
        return (
            f"the stores of segment {index} on {', '.join(lost)} are lost, and nobody else can "
            f"tell what was committed: `sharedlog log accept-loss {record.name} --segment {index}` "
            "gives up what they had"
        )

    def _judge_segment(self, segment: Segment) -> Standing:
        served = [index for index, it in enumerate(segment.nodeset) if self.serves(it)]
        rule = QuorumRule.of(segment)
        named = segment.sequencer
        sequencer_up = self.generations.get(named.node_id) == named.generation
        away = [it.node_id for index, it in enumerate(segment.nodeset) if index not in served]
        return Standing(
            takes_appends=sequencer_up and rule.is_write_quorum(served),
            sequencer_up=sequencer_up,
            away=tuple(away),
            lost=self._lost_for_good(segment, rule, served) if away else (),
        )

    def _lost_for_good(
        self, segment: Segment, rule: QuorumRule, served: Sequence[int]
    ) -> tuple[NodeId, ...]:
        """Members whose stores are lost, if without them nobody can end the segment."""
        lost = [
            index
            for index, replica in enumerate(segment.nodeset)
            if index not in served
            and replica_state(replica, self._known.get(replica.node_id)) == "lost"
        ]
        others = [index for index in range(len(segment.nodeset)) if index not in lost]
        if rule.is_seal_quorum(others):
            return ()
        return tuple(segment.nodeset[index].node_id for index in lost)


def judge(
    record: LogRecord, found: Found, lacking: Mapping[str, int]
) -> Sequence[cluster_pb2.Problem]:
    """What is wrong with a log, as far as nodes and chain tell."""
    standing = found.standing(record)
    lagging: Sequence[str] = ()
    if record.log_id in found.lagging:
        lagging = sorted(found.lagging[record.log_id].difference(standing.away))
    closed = lacking.get(record.name, 0)
    if standing.is_well and not (lagging or closed or record.log_id in found.losses):
        return ()
    subject = f"log {record.name}"
    problems = []
    unrepairable = found.unrepairable(record)
    if unrepairable:
        stopped = not standing.takes_appends
        text = "takes no appends and is unrepairable: " if stopped else "has lost records: "
        code = Code.UNREPAIRABLE if stopped else Code.RECORDS_LOST
        problems.append(problem_of(ERROR, subject, text + unrepairable, code=code))
    elif not standing.takes_appends:
        text = f"takes no appends: {_why_stopped(record, found, standing)}"
        problems.append(problem_of(ERROR, subject, text, code=Code.NO_APPENDS))
    if standing.away or lagging:
        words = [f"{name} is away" for name in standing.away]
        words += [f"{name} lags" for name in lagging]
        text = f"has fewer than {record.replicas} copies: {', '.join(words)}"
        problems.append(problem_of(WARNING, subject, text, code=Code.UNDER_REPLICATED))
    if closed:
        text = f"{closed} of its closed segments {'has' if closed == 1 else 'have'} a copy on a "
        text += "log server that is away or lost"
        code = Code.HISTORY_UNDER_REPLICATED
        problems.append(problem_of(WARNING, subject, text, code=code))
    return problems


def _why_stopped(record: LogRecord, found: Found, standing: Standing) -> str:
    """Why a log takes no appends now."""
    segment = record.open_segment
    named = segment.sequencer
    if standing.sequencer_up:
        up = len(segment.nodeset) - len(standing.away)
        return (
            f"{up} of {len(segment.nodeset)} replicas are up, {segment.write_quorum} must be"
            + "".join(f" in {count} of {level}" for level, count in segment.spread)
        )
    what = (
        f"its sequencer, {named.node_id} in its life {named.generation}, is gone"
        if named.node_id in found.generations
        else f"its sequencer's node, {named.node_id}, is down"
    )
    if not found.metadata_up:
        return f"{what}; it is replaced once the metadata store answers"
    return f"{what}; it is being replaced"


def lacking_copies(found: Found) -> dict[str, int]:
    """By log: its closed segments with a copy on a store that does not answer."""
    names = {
        name
        for store, use in found.index.stores().items()
        if use.closed_logs and not found.serves_store(store)
        for name in use.closed_logs
    }
    return {name: found.index.closed_lacking(name, found.serves_store) for name in names}


def store_problems(found: Found) -> list[cluster_pb2.Problem]:
    """Stores that chains name and that are lost: wiped or swapped disks, or declared so."""
    known = {node.node_id: node for node in found.nodes}
    problems = []
    for (node_id, storage_id), use in sorted(found.index.stores().items()):
        node = known.get(node_id)
        if node is None:
            continue
        count = use.segments
        have = f"{count} {'segment has' if count == 1 else 'segments have'} a copy on"
        if node.storage_id != storage_id:
            text = f"serves another store than {storage_id[:8]}…, which {have}: was its disk wiped?"
            code = Code.STORE_REPLACED
        elif node.state in {STATE_DATA_LOSS, STATE_GONE}:
            said = "declared lost" if node.state == STATE_DATA_LOSS else "removed"
            text, code = f"its store, which {have}, was {said}", Code.STORE_LOST
        else:
            continue
        problems.append(problem_of(ERROR, f"node {node_id}", text, code=code))
    return problems


def loss_of(ranges: Mapping[int, Sequence[Range]]) -> str:
    """What no replica of some closed segments has, and what to do; `ranges` by segment index."""
    index, lost = min(ranges.items())
    first, end = lost[0]
    more = f", and {len(ranges) - 1} further segments" if len(ranges) > 1 else ""
    return (
        f"no replica of segment {index} has offsets {first} to {end - 1}{more}: "
        f"`sharedlog log check` shows all, `accept-loss --segment {index}` gives them up"
    )


def trouble_of(trouble: Trouble) -> str:
    """Why a log could not be reconfigured."""
    text = f"could not be reconfigured: {trouble.message}"
    if trouble.attempts > 1:
        text += f" (tried {trouble.attempts:,} times)"
    return text


def log_problems(problems: Sequence[cluster_pb2.Problem]) -> list[cluster_pb2.Problem]:
    """The worst of them, and how many more there are."""
    ordered = sorted(problems, key=lambda problem: -problem.severity)
    told = ordered[:LOG_PROBLEMS_MAX]
    if len(ordered) > len(told):
        rest = ordered[LOG_PROBLEMS_MAX:]
        text = f"{len(rest):,} more problems like these"
        told.append(problem_of(rest[0].severity, "logs", text, code=Code.MORE_PROBLEMS))
    return told


def problem_of(
    severity: cluster_pb2.Problem.Severity.ValueType, subject: str, message: str, *, code: Code
) -> cluster_pb2.Problem:
    """A problem as a message."""
    return cluster_pb2.Problem(severity=severity, subject=subject, message=message, code=code)


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
