"""What a log's next segment is to be, and what becomes of segments whose log servers go away.

**Rules of this file.** Pure functions over records; nothing is asked, timed or changed in place.
The procedure that seals, repairs and extends is `node/reconfigure.py`; it takes its plan from
here, and its new record, which `metadata/core.py:check_chain_change` then checks once more.

**The next segment** (`plan_next`). Members of the present nodeset that can go on do so: a move that
nobody needs costs copies. But one of two in the same location gives way to a node elsewhere, and
the node that is to order a log near its writers becomes one. The others are replaced by the nodes
that carry least, spread over locations. A nodeset always has `replicas` members, so when there are
too few nodes, members that can't be counted on stay in it as *stopgaps*, in this order:

1. draining nodes that answer. They would rather go, yet a log that goes on is worth more;
2. nodes that don't answer: their stores may come back, with the records of before;
3. lost stores. They never answer, but without them a three-node cluster with one lost disk could
   not replace a dead sequencer although a write quorum of the log is well.

A plan is made only if those that answer contain a write quorum. Who is worse off with a stopgap
than before (a drain, say) looks at `Plan.stopgaps` before going on.

**Replicas** (`replica_state`). A replica is *lost* for ever when its node has come back with
another store, or when an operator or the controller has written down that the store is gone.
Whether a node answers is not to be seen in the records and never a reason to call a replica lost.

**Replacement servers** (`choose_replacements`) join a segment that is being ended, or a closed one
whose replicas are lost or drained; they stand in the places of those whom they replace, in the same
location where that can be had, since a spread is judged by the locations in the nodeset.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from metadata.core import (
    Candidate,
    Load,
    can_hold,
    can_order,
    check_near,
    check_nodeset,
    check_quorum,
    choose_sequencer,
    fill_nodeset,
    is_near,
    lacking_spread,
    majority,
    nearest,
    replica_of,
    too_few,
)
from metadata.quorum import QuorumRule
from metadata.records import (
    STATE_DATA_LOSS,
    STATE_DRAINING,
    STATE_GONE,
    STATE_READ_WRITE,
    LogRecord,
    LostRange,
    NodeRecord,
    Replica,
    Segment,
    Spread,
)
from sharedlog.errors import InvalidArgument, LogUnavailable
from sharedlog.ids import NodeId, Offset, SequencerId

ReplicaState = Literal["present", "draining", "away", "lost"]
"""See `replica_state`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What is to be different from the next segment on; None: as it is, or whatever is best.

    A node of `avoid` counts as one that does not answer: it never orders, and it is a member only
    as a stopgap. A node of `not_sequencer` may stay a member, for one that is back in a moment.
    What is named explicitly is taken in spite of both.
    """

    sequencer: NodeId | None = None
    nodeset: tuple[NodeId, ...] | None = None
    replicas: int | None = None
    write_quorum: int | None = None  # None and another `replicas`: the majority of those
    spread: Spread | None = None
    near: str | None = None  # where the writers are; "": nowhere in particular
    avoid: frozenset[NodeId] = frozenset()
    not_sequencer: frozenset[NodeId] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The configuration of a log's next segment, and what is wanted of those after it."""

    replicas: int
    write_quorum: int
    spread: Spread
    nodeset: tuple[Replica, ...]
    sequencer: SequencerId
    near: str = ""
    stopgaps: frozenset[NodeId] = frozenset()  # members kept for want of better ones


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeUse:
    """How a log uses a node, and why it can't do without it, if so."""

    log: str
    segments: int  # that name the node's present store
    open_segments: int  # of these: 0 or 1
    is_sequencer: bool
    obstacle: str  # "" if all of it can be moved elsewhere


def plan_next(
    record: LogRecord,
    change: Change,
    alive: Sequence[NodeRecord],
    load: Load,
    *,
    known: Sequence[NodeRecord] = (),
) -> Plan:
    """The next segment of a log.

    `alive`: the nodes that answer, in whatever state (that is judged here). `known`: all that are
    registered; it tells a lost replica from one that is merely away, and makes errors clearer.

    Raises:
        InvalidArgument: the change itself is wrong: an unknown node, a nodeset of another size
            than the replicas, a quorum or a spread that can't be.
        LogUnavailable: too few nodes are alive; the message says what is missing.
    """
    replicas = record.replicas if change.replicas is None else change.replicas
    spread = record.spread if change.spread is None else change.spread
    write_quorum = change.write_quorum
    if write_quorum is None:
        same = replicas == record.replicas
        write_quorum = record.write_quorum if same else majority(replicas)
    check_quorum(replicas=replicas, write_quorum=write_quorum, spread=spread)
    near = record.near if change.near is None else change.near
    check_near(near)
    nodes = _Nodes.of(alive, known)
    stopgaps: frozenset[NodeId] = frozenset()
    if change.nodeset is not None:
        nodeset = _named_nodeset(change.nodeset, nodes, replicas=replicas)
        check_nodeset(nodeset, write_quorum, spread)
    else:
        usable = nodes.without(change.avoid)
        prefer = change.sequencer or _preferred(record.open_segment, change, usable, load, near)
        nodeset, stopgaps = _chosen_nodeset(
            record.open_segment,
            usable,
            load,
            replicas=replicas,
            spread=spread,
            prefer=prefer,
            near=near,
        )
        _check_answering(nodeset, usable, write_quorum, spread)
    return Plan(
        replicas=replicas,
        write_quorum=write_quorum,
        spread=spread,
        nodeset=nodeset,
        sequencer=_planned_sequencer(
            record.open_segment, change, nodes, nodeset, load=load, near=near
        ),
        near=near,
        stopgaps=stopgaps,
    )


def _preferred(segment: Segment, change: Change, usable: _Nodes, load: Load, near: str) -> NodeId:
    """A node that is to be a member, so that who orders the log has a copy of its own."""
    present = segment.sequencer.node_id
    if _stays(segment, usable.alive, near):
        return present
    able = [it for it in usable.alive.values() if it.node_id not in change.not_sequencer]
    return nearest(able, load, near) or present


def _stays(segment: Segment, alive: Mapping[NodeId, NodeRecord], near: str) -> bool:
    """Who orders the log is near its writers, as far as its node is known to be alive."""
    node = alive.get(segment.sequencer.node_id)
    return node is not None and is_near(node.location, near)


@dataclass(frozen=True, slots=True)
class _Nodes:
    alive: dict[NodeId, NodeRecord]
    known: dict[NodeId, NodeRecord]  # those of `alive` too

    @classmethod
    def of(cls, alive: Sequence[NodeRecord], known: Sequence[NodeRecord]) -> _Nodes:
        return cls(
            {node.node_id: node for node in alive},
            {node.node_id: node for node in (*known, *alive)},
        )

    def without(self, avoid: frozenset[NodeId]) -> _Nodes:
        left = {node_id: node for node_id, node in self.alive.items() if node_id not in avoid}
        return _Nodes(left, self.known)

    def named(self, node_id: NodeId) -> NodeRecord:
        """A node that a person asked for, which is to take work."""
        node = self.alive.get(node_id)
        if node is None and node_id in self.known:
            raise LogUnavailable(f"node {node_id} does not answer")
        if node is None:
            raise InvalidArgument(f"there is no node {node_id!r}")
        if node.state != STATE_READ_WRITE:
            raise InvalidArgument(f"node {node_id} is {node.state}: it takes no new segments")
        return node


def _named_nodeset(names: Sequence[NodeId], nodes: _Nodes, *, replicas: int) -> tuple[Replica, ...]:
    if len(names) != replicas:
        raise InvalidArgument(
            f"the nodeset names {len(names)} nodes for {replicas} replicas; "
            f"change the replicas as well, or name {replicas}"
        )
    found = [nodes.named(node_id) for node_id in names]
    for node in found:
        if not can_hold(node):
            raise InvalidArgument(f"node {node.node_id} is no log server")
    return tuple(replica_of(node) for node in found)


def _chosen_nodeset(
    segment: Segment,
    nodes: _Nodes,
    load: Load,
    *,
    replicas: int,
    spread: Spread,
    prefer: NodeId,
    near: str,
) -> tuple[tuple[Replica, ...], frozenset[NodeId]]:
    """The members, and those of them that are stopgaps."""
    old = {replica.node_id: replica for replica in segment.nodeset}
    firm = []
    weights = load.weights(nodes.alive)
    for node in nodes.alive.values():
        if can_hold(node):
            replica = replica_of(node)
            kept = node.node_id in old and old[node.node_id].storage_id == replica.storage_id
            is_preferred = node.node_id == prefer
            is_pulled = is_preferred and near and is_near(node.location, near)
            tier = int(not (is_preferred and (kept or is_pulled)))
            rank = 2 * (not kept) + (not is_preferred)
            firm.append(Candidate(replica, tier, weights[node.node_id], rank))
    taken = {candidate.replica.node_id for candidate in firm}
    # No node is named twice: one that has a new store is a new member, if it is one at all.
    makeshift = [
        _stopgap(replica, nodes) for node_id, replica in old.items() if node_id not in taken
    ]
    nodeset = fill_nodeset((), [*firm, *makeshift], size=replicas, spread=spread)
    if len(nodeset) < replicas:
        raise LogUnavailable(too_few(replicas=replicas, able=len(firm)))
    stopgaps = frozenset(it.node_id for it in nodeset if it.node_id not in taken)
    return _in_old_places(segment.nodeset, nodeset), stopgaps


def _in_old_places(old: tuple[Replica, ...], nodeset: Sequence[Replica]) -> tuple[Replica, ...]:
    """The same members, in the order of the old ones: the same nodeset if nothing changed."""
    left = {(it.node_id, it.storage_id): it for it in nodeset}  # a label may have changed
    kept = [left.pop((it.node_id, it.storage_id), None) for it in old]
    fresh = list(left.values())
    ordered = [it or (fresh.pop(0) if fresh else None) for it in kept]
    found = (*(it for it in ordered if it is not None), *fresh)
    assert len(found) == len(nodeset)
    return old if found == old else found


def _stopgap(replica: Replica, nodes: _Nodes) -> Candidate:
    """A present member that nobody would choose anew, worse than any that one would."""
    node = nodes.known.get(replica.node_id)
    match replica_state(replica, node):
        case "lost":
            return Candidate(replica, tier=_TIER_LOST)
        case "draining" if replica.node_id in nodes.alive:
            return Candidate(replica, tier=_TIER_DRAINING)
        case _:
            return Candidate(replica, tier=_TIER_AWAY)


_TIER_DRAINING: Final = 10
_TIER_AWAY: Final = 11
_TIER_LOST: Final = 12


def _check_answering(
    nodeset: Sequence[Replica], nodes: _Nodes, write_quorum: int, spread: Spread
) -> None:
    """Raises `LogUnavailable` unless those members that answer contain a write quorum."""
    answering = [
        index
        for index, replica in enumerate(nodeset)
        if replica_state(replica, nodes.alive.get(replica.node_id)) in {"present", "draining"}
    ]
    rule = QuorumRule.make(nodeset, write_quorum, spread)
    if rule.is_write_quorum(answering):
        return
    raise LogUnavailable(
        lacking_spread((nodeset[index] for index in answering), spread)
        or f"a write quorum of {write_quorum} needs as many log servers; {len(answering)} "
        f"that could be used {'is' if len(answering) == 1 else 'are'} alive"
    )


def _planned_sequencer(
    segment: Segment,
    change: Change,
    nodes: _Nodes,
    nodeset: Sequence[Replica],
    *,
    load: Load,
    near: str,
) -> SequencerId:
    if change.sequencer is not None:
        node = nodes.named(change.sequencer)
        if not can_order(node):
            raise InvalidArgument(f"node {node.node_id} is no sequencer")
        return SequencerId(node.node_id, node.generation)
    unwanted = change.avoid | change.not_sequencer
    able = [it for it in nodes.alive.values() if it.node_id not in unwanted and can_order(it)]
    present = next((it for it in able if it.node_id == segment.sequencer.node_id), None)
    others_near = near and any(is_near(it.location, near) for it in able)
    if present is not None and (is_near(present.location, near) or not others_near):
        return SequencerId(present.node_id, present.generation)
    return choose_sequencer(able, nodeset=nodeset, load=load, near=near)


def end_segment(
    record: LogRecord,
    *,
    end: Offset,
    timestamp_ms: int,
    plan: Plan,
    nonce: str,
    nodeset_of_ended: tuple[Replica, ...] | None = None,
    lost: Sequence[LostRange] = (),
) -> LogRecord:
    """The log after its open segment has ended at `end`, followed by the planned one.

    An empty segment leaves the chain; the new one takes its place with the next index (field note
    15). The new one's timestamp is the ended one's, or `timestamp_ms` (the last one in it) if that
    is later. `nodeset_of_ended`: with replacement servers. `lost` is added to what the ended
    segment has lost, or, if that leaves the chain, to what the new one takes over from it.
    """
    was = record.open_segment
    assert end >= was.base
    assert nonce
    all_lost = (*was.lost, *lost)
    empty = end == was.base
    opened = Segment(
        index=was.index + 1,
        base=end,
        # The very same objects where they are equal, which keeps encoding a long chain cheap.
        sequencer=was.sequencer if plan.sequencer == was.sequencer else plan.sequencer,
        nodeset=was.nodeset if plan.nodeset == was.nodeset else plan.nodeset,
        write_quorum=plan.write_quorum,
        spread=plan.spread,
        timestamp_ms=max(was.timestamp_ms, timestamp_ms),
        lost=all_lost if empty else (),
    )
    ended = replace(was, end=end, nodeset=nodeset_of_ended or was.nodeset, lost=all_lost)
    return replace(
        record,
        replicas=plan.replicas,
        write_quorum=plan.write_quorum,
        spread=plan.spread,
        near=plan.near,
        chain=(*record.chain[:-1], *(() if empty else (ended,)), opened),
        change_nonce=nonce,
    )


def replica_state(replica: Replica, node: NodeRecord | None) -> ReplicaState:
    """How it stands with a member of a nodeset, by what is registered of its node now.

    - "present": its node serves this very store. Whether it answers now is another matter.
    - "draining": the same, and it is to be replaced.
    - "away": its node is not registered, or serves no store at all; the store may come back.
    - "lost": another store has taken its place, or it was declared gone or lost (field note 20:
      a wiped node at the same address is another log server). What is declared of a node that
      serves no store is meant of its last one.
    """
    if node is None:
        return "away"
    last = node.last_storage_id
    if (last and last != replica.storage_id) or node.state in {STATE_GONE, STATE_DATA_LOSS}:
        return "lost"
    if not node.storage_id:
        return "away"
    return "draining" if node.state == STATE_DRAINING else "present"


def choose_replacements(
    segment: Segment, lost: Collection[int], alive: Sequence[NodeRecord], load: Load
) -> tuple[Replica, ...]:
    """The nodeset of `segment` with others in the places `lost` (indexes); the rest stays put.

    Raises:
        LogUnavailable: too few other log servers are alive, or none that keeps the spread.
    """
    members: list[Replica | None] = [
        None if index in lost else replica for index, replica in enumerate(segment.nodeset)
    ]
    leaving = {segment.nodeset[index].storage_id for index in lost}
    free = [node for node in alive if can_hold(node) and node.storage_id not in leaving]
    weights = load.weights(node.node_id for node in free)
    for index in sorted(lost):
        replaced = segment.nodeset[index]
        kept = [member for member in members if member is not None]
        found = fill_nodeset(
            kept,
            [
                Candidate(
                    replica_of(node),
                    int(node.location != replaced.location),
                    weights[node.node_id],
                )
                for node in free
            ],
            size=len(kept) + 1,
            spread=segment.spread,
        )
        if len(found) == len(kept):
            raise LogUnavailable(
                f"segment {segment.index} needs {len(lost)} other log servers in place of those "
                "that it lost; too few are alive that it does not have already"
            )
        members[index] = found[-1]
    nodeset = tuple(member for member in members if member is not None)
    lacking = lacking_spread(nodeset, segment.spread)
    if lacking:
        raise LogUnavailable(f"segment {segment.index} would lack its {lacking}")
    return nodeset


def check_drain(
    records: Iterable[LogRecord],
    node: NodeRecord,
    nodes: Sequence[NodeRecord],
    *,
    alive: Collection[NodeId] | None = None,
    store_lost: bool = False,
) -> list[NodeUse]:
    """What each log that uses `node` needs it for, over every segment (field note 33).

    `nodes`: all that are registered; `alive`: those that answer (None: all). `store_lost`: the
    node's store can't be copied from any more.
    """
    answering = [it for it in nodes if alive is None or it.node_id in alive]
    others = [it for it in answering if it.node_id != node.node_id]
    sources = {it.node_id: it for it in (others if store_lost else answering)}
    uses = []
    for record in records:
        named = {id(it.nodeset): _names(it.nodeset, node) for it in _distinct(record.chain)}
        using = [segment for segment in record.chain if named[id(segment.nodeset)]]
        in_open = record.open_segment in using[-1:]
        is_sequencer = record.open_segment.sequencer.node_id == node.node_id
        if not (using or is_sequencer):
            continue
        obstacle = ""
        if in_open or is_sequencer:
            obstacle = _open_obstacle(record, node, others, nodes, sources)
        for segment in _distinct(it for it in using if it.end is not None):
            obstacle = obstacle or _obstacle(record, segment, node, others, sources)
        uses.append(
            NodeUse(
                log=record.name,
                segments=len(using),
                open_segments=int(in_open),
                is_sequencer=is_sequencer,
                obstacle=obstacle,
            )
        )
    return uses


def _distinct(segments: Iterable[Segment]) -> Iterable[Segment]:
    """One for each configuration: thousands of segments have few, and share the very objects."""
    return {(id(it.nodeset), it.write_quorum, it.spread): it for it in segments}.values()


def _names(nodeset: Sequence[Replica], node: NodeRecord) -> bool:
    """The nodeset names the store that the node has, or had last."""
    return any(
        replica.node_id == node.node_id and replica.storage_id == node.last_storage_id
        for replica in nodeset
    )


def _obstacle(
    record: LogRecord,
    segment: Segment,
    node: NodeRecord,
    others: Sequence[NodeRecord],
    sources: Mapping[NodeId, NodeRecord],
) -> str:
    """Why a closed segment can't do without the node, or ""."""
    lacking = _lacking_sources(segment, sources)
    if lacking:
        return lacking
    place = next(i for i, it in enumerate(segment.nodeset) if it.node_id == node.node_id)
    if len(segment.nodeset) > record.replicas:
        rest = segment.nodeset[:place] + segment.nodeset[place + 1 :]
        if QuorumRule.make(rest, segment.write_quorum, segment.spread).is_write_quorum(
            range(len(rest))
        ):
            return ""  # the log wants fewer replicas by now: nobody need take its place
    try:
        choose_replacements(segment, {place}, others, Load())
    except LogUnavailable as error:
        return str(error)
    return ""


def _open_obstacle(
    record: LogRecord,
    node: NodeRecord,
    others: Sequence[NodeRecord],
    nodes: Sequence[NodeRecord],
    sources: Mapping[NodeId, NodeRecord],
) -> str:
    """Why the log can't go on without the node, or ""."""
    if _names(record.open_segment.nodeset, node):
        lacking = _lacking_sources(record.open_segment, sources)
        if lacking:
            return lacking
    try:
        plan = plan_next(
            record, Change(avoid=frozenset({node.node_id})), others, Load(), known=nodes
        )
    except LogUnavailable as error:
        return str(error)
    if node.node_id in plan.stopgaps:
        return f"the next segment: {too_few(replicas=plan.replicas, able=plan.replicas - 1)}"
    return ""


def _lacking_sources(segment: Segment, sources: Mapping[NodeId, NodeRecord]) -> str:
    """Why it is not sure that all of the segment can be copied, or "".

    Every batch is on some write quorum; so all are sure to be found only on a seal quorum.
    """
    readable = [
        index
        for index, replica in enumerate(segment.nodeset)
        if replica_state(replica, sources.get(replica.node_id)) in {"present", "draining"}
    ]
    if QuorumRule.of(segment).is_seal_quorum(readable):
        return ""
    return (
        f"segment {segment.index} could be copied from {len(readable)} of its "
        f"{len(segment.nodeset)} log servers only: they may lack some of it"
    )
