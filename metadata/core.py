"""What may be written to the metadata store: names, quorums, placement, and what may follow what.

**Rules of this file.** Pure functions over the records; no I/O, no time, no random numbers,
nothing is changed in place. A function that checks returns None or raises the error that a caller
gets to see, with the reason in its text. `registry.py` runs the procedures that need a store.

**Quorums.** A batch is committed once `write_quorum` of a segment's `replicas` have it. To move a
log, a *seal quorum* is sealed: any set that every write quorum meets, so `replicas - write_quorum
+ 1` servers. Only majorities or larger are taken (`2 * write_quorum > replicas`), because only
then does each write quorum contain a seal quorum: whoever can append can also reconfigure, and two
write quorums meet.

**Placement.** `choose_nodeset` takes alive nodes with the role "log-server", the asked-for node
first, then one at a time the one whose location holds fewest of those chosen, and of these the one
with the fewest open segments. `choose_sequencer` prefers the asked-for node, then a member of the
nodeset (it stores its own copy without the network), then the one that orders the fewest logs.
Ties go by node id, so the same inputs give the same placement.

**Chains.** A chain is a list of segments. Invariants of each one (`check_chain`):

- it has at least one segment; all but the last are closed, the last is open;
- each closed segment has `base < end`, and the next one's base is its end: offsets are dense;
- indexes grow from segment to segment, and may skip (an empty segment is replaced, index + 1);
- a nodeset names each node once, and its quorum is valid for its size.

A change (`check_chain_change`) keeps all that names the log, and every closed segment but for its
nodeset and write quorum (re-replication). The open one either stays as it is, or ends and is
followed by one with the next index at that end, or, if it ends empty, is replaced by that one.

**Generations** only grow; a node's record is never deleted, since a node that began again at 1
could pass for one of its former lives.

Not here: how a quorum of answers is counted (`loglet/quorum.py`), and who is alive (`node/`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from metadata.records import LogRecord, NodeRecord, Replica, Segment
from sharedlog.errors import InvalidArgument, InvalidLogName, LogUnavailable
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId
from sharedlog.limits import LOG_NAME_CHARS_MAX, REPLICAS_MAX

ROLE_LOG_SERVER: Final = "log-server"
ROLE_SEQUENCER: Final = "sequencer"
ROLE_METADATA: Final = "metadata"
ROLES: Final = (ROLE_LOG_SERVER, ROLE_SEQUENCER, ROLE_METADATA)

NODE_ID_CHARS_MAX: Final = 64
"""Characters of a node's id."""

_LOG_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/-]{{0,{LOG_NAME_CHARS_MAX - 1}}}")
_NODE_ID: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NODE_ID_CHARS_MAX - 1}}}")


@dataclass(slots=True)
class Load:
    """How many open segments each node holds, and how many it orders."""

    replicas: Counter[NodeId] = field(default_factory=Counter)
    sequencers: Counter[NodeId] = field(default_factory=Counter)


def check_log_name(name: str) -> None:
    """Raises `InvalidLogName`."""
    if not _LOG_NAME.fullmatch(name):
        raise InvalidLogName(name=name)


def check_node_id(node_id: str) -> None:
    """Raises `InvalidArgument`."""
    if not _NODE_ID.fullmatch(node_id):
        raise InvalidArgument(
            f"{node_id!r} is no node id: 1 to {NODE_ID_CHARS_MAX} of a-z A-Z 0-9 . _ -, "
            "starting with a letter or digit"
        )


def majority(replicas: int) -> int:
    """The least write quorum that is taken: more than half."""
    return replicas // 2 + 1


def check_quorum(*, replicas: int, write_quorum: int) -> None:
    """Raises `InvalidArgument`, with the reason, for a pair that is not taken."""
    if not 1 <= replicas <= REPLICAS_MAX:
        raise InvalidArgument(f"{replicas} replicas: a log has 1 to {REPLICAS_MAX}")
    if write_quorum > replicas:
        raise InvalidArgument(
            f"a write quorum of {write_quorum} can't be had from {replicas} replicas"
        )
    if 2 * write_quorum <= replicas:
        raise InvalidArgument(
            f"a write quorum of {write_quorum} of {replicas} replicas is no majority: two of them "
            "need not meet, and servers that can still take appends could not move the log; "
            f"the least is {majority(replicas)}"
        )


def effective_write_quorum(*, replicas: int, write_quorum: int) -> int:
    """`write_quorum`, or the majority for 0. Raises `InvalidArgument`."""
    found = write_quorum or majority(replicas)
    check_quorum(replicas=replicas, write_quorum=found)
    return found


def count_load(logs: Iterable[LogRecord]) -> Load:
    """The load that the open segments of `logs` are."""
    load = Load()
    for log in logs:
        segment = log.open_segment
        load.sequencers[segment.sequencer.node_id] += 1
        load.replicas.update(replica.node_id for replica in segment.nodeset)
    return load


def choose_nodeset(
    alive: Sequence[NodeRecord], *, replicas: int, load: Load, prefer: NodeId | None = None
) -> tuple[Replica, ...]:
    """The log servers of a new segment; `prefer` first if it is one.

    Raises:
        LogUnavailable: too few log servers are alive.
    """
    free = [node for node in alive if ROLE_LOG_SERVER in node.roles and node.storage_id]
    if len(free) < replicas:
        raise LogUnavailable(
            f"{replicas} replicas need {replicas} log servers; {len(free)} of this cluster "
            f"{'is' if len(free) == 1 else 'are'} alive"
        )
    chosen: list[NodeRecord] = []
    held: Counter[str] = Counter()
    while len(chosen) < replicas:
        best = min(
            free,
            key=lambda node: (
                node.node_id != prefer,
                held[node.location],
                load.replicas[node.node_id],
                node.node_id,
            ),
        )
        free.remove(best)
        chosen.append(best)
        held[best.location] += 1
    return tuple(
        Replica(node_id=node.node_id, storage_id=node.storage_id, location=node.location)
        for node in chosen
    )


def choose_sequencer(
    alive: Sequence[NodeRecord],
    *,
    nodeset: Sequence[Replica],
    load: Load,
    prefer: NodeId | None = None,
) -> SequencerId:
    """The process that is to order a new segment.

    Raises:
        LogUnavailable: no node with the role is alive.
    """
    able = [node for node in alive if ROLE_SEQUENCER in node.roles]
    if not able:
        raise LogUnavailable("no node with the role sequencer is alive")
    members = {replica.node_id for replica in nodeset}
    best = min(
        able,
        key=lambda node: (
            node.node_id != prefer,
            node.node_id not in members,
            load.sequencers[node.node_id],
            node.node_id,
        ),
    )
    return SequencerId(best.node_id, best.generation)


def new_log_record(
    *,
    name: str,
    log_id: LogId,
    replicas: int,
    write_quorum: int,
    alive: Sequence[NodeRecord],
    load: Load,
    created_ms: int,
    create_nonce: str,
    prefer: NodeId | None = None,
) -> LogRecord:
    """A log with its first segment, open at offset 0. `write_quorum` 0 takes the majority.

    Raises:
        InvalidLogName, InvalidArgument: name or quorum. LogUnavailable: too few nodes are alive.
    """
    check_log_name(name)
    quorum = effective_write_quorum(replicas=replicas, write_quorum=write_quorum)
    nodeset = choose_nodeset(alive, replicas=replicas, load=load, prefer=prefer)
    sequencer = choose_sequencer(alive, nodeset=nodeset, load=load, prefer=prefer)
    first = Segment(
        index=0, base=Offset(0), sequencer=sequencer, nodeset=nodeset, write_quorum=quorum
    )
    record = LogRecord(
        log_id=log_id,
        name=name,
        replicas=replicas,
        write_quorum=quorum,
        created_ms=created_ms,
        create_nonce=create_nonce,
        chain=(first,),
    )
    check_chain(record)
    return record


def next_generation(previous: NodeRecord | None) -> Generation:
    """The generation of a process that starts after the one that wrote `previous`."""
    return Generation(1 if previous is None else previous.generation + 1)


def check_chain(log: LogRecord) -> None:
    """Raises `InvalidArgument` if the chain breaks an invariant of the module's docstring."""
    check_quorum(replicas=log.replicas, write_quorum=log.write_quorum)
    if not log.chain:
        raise _bad(log, "has no segment")
    for segment in log.chain:
        members = {replica.node_id for replica in segment.nodeset}
        if len(members) != len(segment.nodeset):
            raise _bad(log, f"names a node twice in segment {segment.index}")
        check_quorum(replicas=len(members), write_quorum=segment.write_quorum)
    for before, after in zip(log.chain, log.chain[1:], strict=False):
        if before.end is None or before.end <= before.base:
            raise _bad(log, f"goes on after segment {before.index}, which is open or empty")
        if after.base != before.end or after.index <= before.index:
            raise _bad(log, f"has a segment {after.index} that does not follow {before.index}")
    if log.open_segment.end is not None:
        raise _bad(log, "has no open segment")


def check_chain_change(old: LogRecord, new: LogRecord) -> None:
    """Raises `InvalidArgument` unless `new` may replace `old`. `old` is taken to be valid."""
    if _identity(old) != _identity(new):
        raise _bad(new, "changes what names the log: its id, name or creation")
    check_chain(new)
    closed = old.chain[:-1]
    kept = new.chain[: len(closed)]
    if [_without_places(segment) for segment in closed] != [
        _without_places(segment) for segment in kept
    ]:
        raise _bad(new, "changes or drops a closed segment")
    _check_open_change(new, old.open_segment, new.chain[len(closed) :])


def _check_open_change(new: LogRecord, was: Segment, rest: Sequence[Segment]) -> None:
    """`rest` is what stands in the new chain from the place of the open segment `was` on."""
    match rest:
        case [same] if same == was:
            return
        case [follower] if follower.base == was.base and follower.index == was.index + 1:
            return  # `was` ended empty
        case [ended, follower] if follower.index == was.index + 1:
            if replace(ended, end=None) != was:
                raise _bad(new, f"changes segment {was.index} while it ends it")
        case _:
            raise _bad(new, f"does not follow from open segment {was.index}")


def _identity(log: LogRecord) -> tuple[LogId, str, int, str]:
    return log.log_id, log.name, log.created_ms, log.create_nonce


def _without_places(segment: Segment) -> Segment:
    return replace(segment, nodeset=(), write_quorum=0)


def _bad(log: LogRecord, what: str) -> InvalidArgument:
    return InvalidArgument(f"log {log.name!r}: the chain {what}")
