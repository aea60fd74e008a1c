"""What may be written to the metadata store: names, quorums, placement, and what may follow what.

**Rules of this file.** Pure functions over the records; no I/O, no time, no random numbers,
nothing is changed in place. A function that checks returns None or raises the error that a caller
gets to see, with the reason in its text. `registry.py` runs the procedures that need a store.

**Quorums.** A batch is committed once `write_quorum` of a segment's `replicas` have it, in as many
places as the segment's spread asks for; to move a log, a *seal quorum* is sealed. `quorum.py` says
which sets are which. Only majorities or larger are taken (`2 * write_quorum > replicas`), because
only then does each write quorum contain a seal quorum: whoever can append can also reconfigure, and
two write quorums meet. A nodeset must be a write quorum as a whole, or nothing could ever commit.

**Placement.** `choose_nodeset` takes alive nodes with the role "log-server", the asked-for node
first, then one at a time the one whose location holds fewest of those chosen, and of these the one
with the fewest open segments for the room on its disk (`Load.weights`); but as long as the spread
lacks places, one in a new place.
(`fill_nodeset` is that choice by itself. A new zone may be a new region too, and each member is a
new node, so regions are seen to first: then no spread that can be had is missed.)
`choose_sequencer` prefers the asked-for node, then one that is near the log's writers (below), then
a member of the nodeset (it stores its own copy without the network), then the one that orders the
fewest logs. Ties go by node id, so the same inputs give the same placement. Nodes that are not
read-write get neither.

**Near.** A log may be told where its writers are: a location or the beginning of one, e.g. "eu-1"
or "eu-1.zone-a". Then a node that is there orders it, if any can, and is a member of its nodeset.
It is a wish and no condition: a log goes on without it.

**Chains.** A chain is a list of segments. Invariants of each one (`check_chain`):

- it has at least one segment; all but the last are closed, the last is open;
- each closed segment has `base < end`, and the next one's base is its end: offsets are dense;
- indexes grow from segment to segment, and may skip (an empty segment is replaced, index + 1);
- timestamps never fall from segment to segment (field note 43);
- a nodeset names each node once, and is a write quorum; only a first segment that is wholly in the
  archive has none (`history_rules.py`);
- what a segment has lost lies within it, in order, without overlap.

A change (`check_chain_change`) keeps all that names the log. What is wanted of later segments may
change freely, and so may the nonce. The open segment either stays as it is, or ends and is followed
by one with the next index at that end, or, if it ends empty, is replaced by that one, which takes
over what it had lost. A segment keeps everything for ever, but for this:

- when it ends, members of its nodeset may be replaced (DESIGN.md §6: servers that will never answer
  again), at least one stays, and the nodeset does not shrink;
- once it is closed, its nodeset may change (re-replication), and its write quorum may be raised,
  never lowered: the copies that were promised stay promised. It may shrink to the replicas that the
  log wants by now, not below, and never below its write quorum;
- what it has lost may grow, never shrink.

What is archived, trimmed and purged only grows, and no segment ends below (`archive_rules.py`).

A change that does not touch the closed segments costs one comparison of two tuples whose elements
are identical, however long the chain is, and checks only what is new.

**Length.** A chain is one value in the metadata store, so it can't grow for ever. A change that
would make it longer than `CHAIN_SEGMENTS_MAX` is refused (`registry.py` refuses one whose bytes are
too many). Changes that keep its length are always taken.

**Generations** only grow; a node's record is never deleted, since a node that began again at 1
could pass for one of its former lives.

Not here: which sets are quorums (`quorum.py`), what a log's next segment is to be
(`reconfiguration.py`), and who is alive (`node/`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

from metadata.archive_rules import check_offsets, check_offsets_change
from metadata.history_rules import check_archived_segment
from metadata.quorum import QuorumRule, format_spread, make_spread, place_of
from metadata.records import (
    STATE_READ_WRITE,
    CreatedWith,
    LogRecord,
    NodeRecord,
    Replica,
    Segment,
    Spread,
)
from sharedlog.errors import InvalidArgument, InvalidLogName, LogUnavailable
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId
from sharedlog.limits import LOG_NAME_CHARS_MAX, REPLICAS_MAX
from sharedlog.retention import NO_RETENTION, Retention, check_retention

ROLE_LOG_SERVER: Final = "log-server"
ROLE_SEQUENCER: Final = "sequencer"
ROLE_METADATA: Final = "metadata"
ROLES: Final = (ROLE_LOG_SERVER, ROLE_SEQUENCER, ROLE_METADATA)

NODE_ID_CHARS_MAX: Final = 64
"""Characters of a node's id."""

CHAIN_SEGMENTS_MAX: Final = 10_000
"""Segments of one chain: a change that makes it longer is refused."""

LOCATION_CHARS_MAX: Final = 128

_LOCATION: Final = re.compile(rf"(?=.{{1,{LOCATION_CHARS_MAX}}}$)[\w-]+(\.[\w-]+)*", re.ASCII)
_LOG_NAME: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._/-]{{0,{LOG_NAME_CHARS_MAX - 1}}}")
_NODE_ID: Final = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{NODE_ID_CHARS_MAX - 1}}}")


def _unknown(_: NodeId) -> int | None:
    return None


@dataclass(slots=True)
class Load:
    """How many open segments each node holds, how many it orders, and what its disk has left."""

    replicas: Counter[NodeId] = field(default_factory=Counter)
    sequencers: Counter[NodeId] = field(default_factory=Counter)
    free_bytes: Callable[[NodeId], int | None] = _unknown  # None: not known

    def weights(self, nodes: Iterable[NodeId]) -> dict[NodeId, float]:
        """How full each node is: where a further replica goes, it goes to the least.

        Open segments, the new one included, per byte that is free; who has not told counts as the
        mean of the others. Free space counts in steps of an eighth, lest a few bytes decide.
        """
        free = {it: self.free_bytes(it) for it in nodes}
        known = [_rounded(it) for it in free.values() if it is not None]
        mean = sum(known) / len(known) if known else 1.0
        return {
            node_id: (self.replicas[node_id] + 1) / max(mean if it is None else _rounded(it), 1)
            for node_id, it in free.items()
        }


def _rounded(free_bytes: int) -> int:
    """Its three leading bits."""
    drop = max(0, free_bytes.bit_length() - 3)
    return free_bytes >> drop << drop


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


def is_near(location: str, near: str) -> bool:
    """A node at `location` is where the writers are; everywhere is, if nobody says where."""
    return not near or location == near or location.startswith(f"{near}.")


def check_near(near: str) -> None:
    """Raises `InvalidArgument`. "" is taken: nowhere in particular."""
    if near and not _LOCATION.fullmatch(near):
        raise InvalidArgument(
            f"near {near!r} is no location: parts of a-z A-Z 0-9 _ - with points between, e.g. "
            f"eu-1.zone-a, at most {LOCATION_CHARS_MAX} characters"
        )


def check_cluster_name(name: str) -> None:
    """Raises `InvalidArgument`."""
    if not _NODE_ID.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is no name of a cluster: 1 to {NODE_ID_CHARS_MAX} of a-z A-Z 0-9 . _ -, "
            "starting with a letter or digit"
        )


def majority(replicas: int) -> int:
    """The least write quorum that is taken: more than half."""
    return replicas // 2 + 1


def check_quorum(*, replicas: int, write_quorum: int, spread: Spread = ()) -> None:
    """Raises `InvalidArgument`, with the reason, for what no nodeset at all could satisfy."""
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
    if make_spread(spread) != spread:
        raise InvalidArgument(f"spread {format_spread(spread)}: the levels are out of order")
    for level, count in spread:
        if count > replicas:
            raise InvalidArgument(
                f"spread {level}:{count} can't be had from {replicas} replicas: "
                f"they are in {replicas} places at most"
            )


def check_nodeset(nodeset: Sequence[Replica], write_quorum: int, spread: Spread = ()) -> None:
    """Raises `InvalidArgument`, with the reason, for a nodeset in which nothing could commit."""
    check_quorum(replicas=len(nodeset), write_quorum=write_quorum, spread=spread)
    if len({replica.node_id for replica in nodeset}) != len(nodeset):
        raise InvalidArgument("the nodeset names a node twice")
    rule = QuorumRule.make(nodeset, write_quorum, spread)
    if not rule.is_write_quorum(range(len(nodeset))):
        raise InvalidArgument(lacking_spread(nodeset, spread))


def lacking_spread(nodeset: Iterable[Replica], spread: Spread) -> str:
    """What these log servers lack of the spread, for an error's text; "" if nothing."""
    found = list(nodeset)
    for level, count in spread:
        places = sorted({place_of(replica, level) for replica in found})
        if len(places) < count:
            listed = ", ".join(place or "(no location)" for place in places)
            return f"spread {level}:{count}: the log servers are in {len(places)}: {listed}"
    return ""


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


def can_hold(node: NodeRecord) -> bool:
    """It takes new segments, if it is alive."""
    return ROLE_LOG_SERVER in node.roles and bool(node.storage_id) and _takes_work(node)


def can_order(node: NodeRecord) -> bool:
    """It takes logs to order, if it is alive."""
    return ROLE_SEQUENCER in node.roles and _takes_work(node)


def _takes_work(node: NodeRecord) -> bool:
    return node.state == STATE_READ_WRITE


def replica_of(node: NodeRecord) -> Replica:
    """The node, as a member of a segment made now."""
    return Replica(node_id=node.node_id, storage_id=node.storage_id, location=node.location)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A log server that could be a member.

    Of the lowest tier those whose location holds fewest members are taken first, and of these that
    with the lowest rank, and then load.
    """

    replica: Replica
    tier: int
    load: float = 0
    rank: int = 0


def fill_nodeset(
    chosen: Sequence[Replica], candidates: Iterable[Candidate], *, size: int, spread: Spread
) -> tuple[Replica, ...]:
    """`chosen`, and candidates after them until there are `size`, or none left.

    See "Placement" above. The caller checks whether the spread was had.
    """
    found = list(chosen)
    taken = {replica.node_id for replica in found}
    free = [candidate for candidate in candidates if candidate.replica.node_id not in taken]
    held = Counter(replica.location for replica in found)
    while len(found) < size and free:
        best = min(
            _in_new_places(free, found, spread) or free,
            key=lambda it: (
                it.tier,
                held[it.replica.location],
                it.rank,
                it.load,
                it.replica.node_id,
            ),
        )
        free = [it for it in free if it.replica.node_id != best.replica.node_id]
        found.append(best.replica)
        held[best.replica.location] += 1
    return tuple(found)


def _in_new_places(
    free: Sequence[Candidate], found: Sequence[Replica], spread: Spread
) -> list[Candidate]:
    """Those that bring the coarsest lacking level of the spread a new place; none if all is had."""
    wanted = dict(spread)
    for level in ("region", "zone"):  # each member is a new node anyway
        places = {place_of(replica, level) for replica in found}
        if len(places) < wanted.get(level, 0):
            return [it for it in free if place_of(it.replica, level) not in places]
    return []


def choose_nodeset(
    alive: Sequence[NodeRecord],
    *,
    replicas: int,
    load: Load,
    prefer: NodeId | None = None,
    spread: Spread = (),
) -> tuple[Replica, ...]:
    """The log servers of a new segment; `prefer` first if it is one.

    Raises:
        LogUnavailable: too few log servers are alive, or in too few places.
    """
    able = [node for node in alive if can_hold(node)]
    if len(able) < replicas:
        raise LogUnavailable(too_few(replicas=replicas, able=len(able)))
    weights = load.weights(node.node_id for node in able)
    nodeset = fill_nodeset(
        (),
        [
            Candidate(replica_of(node), int(node.node_id != prefer), weights[node.node_id])
            for node in able
        ],
        size=replicas,
        spread=spread,
    )
    lacking = lacking_spread(nodeset, spread)
    if lacking:
        raise LogUnavailable(lacking)
    return nodeset


def too_few(*, replicas: int, able: int) -> str:
    """What to say when there are too few log servers for a new segment."""
    return (
        f"{replicas} replicas need {replicas} log servers; {able} of this cluster "
        f"{'is' if able == 1 else 'are'} alive and may take new segments"
    )


def nearest(alive: Sequence[NodeRecord], load: Load, near: str) -> NodeId | None:
    """Of the nodes that are near and can both hold a log and order it, that with least to do."""
    able = [
        node
        for node in alive
        if can_hold(node) and can_order(node) and is_near(node.location, near)
    ]
    if not near or not able:
        return None
    weights = load.weights(node.node_id for node in able)
    return min(
        able,
        key=lambda it: (load.sequencers[it.node_id], weights[it.node_id], it.node_id),
    ).node_id


def choose_sequencer(
    alive: Sequence[NodeRecord],
    *,
    nodeset: Sequence[Replica],
    load: Load,
    prefer: NodeId | None = None,
    near: str = "",
) -> SequencerId:
    """The process that is to order a new segment.

    Raises:
        LogUnavailable: no node with the role is alive.
    """
    able = [node for node in alive if can_order(node)]
    if not able:
        raise LogUnavailable("no node with the role sequencer is alive and may order more logs")
    members = {replica.node_id for replica in nodeset}
    best = min(
        able,
        key=lambda node: (
            node.node_id != prefer,
            not is_near(node.location, near),
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
    spread: Spread = (),
    near: str = "",
    created_with: CreatedWith = (),
    retention: Retention = NO_RETENTION,
) -> LogRecord:
    """A log with its first segment, open at offset 0. `write_quorum` 0 takes the majority.

    Raises:
        InvalidLogName, InvalidArgument: name, quorum, spread, near or retention. LogUnavailable:
        too few nodes are alive.
    """
    check_log_name(name)
    quorum = effective_write_quorum(replicas=replicas, write_quorum=write_quorum)
    check_quorum(replicas=replicas, write_quorum=quorum, spread=spread)
    check_near(near)
    prefer = prefer or nearest(alive, load, near)
    nodeset = choose_nodeset(alive, replicas=replicas, load=load, prefer=prefer, spread=spread)
    first = Segment(
        index=0,
        base=Offset(0),
        sequencer=choose_sequencer(alive, nodeset=nodeset, load=load, prefer=prefer, near=near),
        nodeset=nodeset,
        write_quorum=quorum,
        spread=spread,
    )
    record = LogRecord(
        log_id=log_id,
        name=name,
        replicas=replicas,
        write_quorum=quorum,
        created_ms=created_ms,
        create_nonce=create_nonce,
        chain=(first,),
        spread=spread,
        near=near,
        created_with=created_with,
        retention=retention.limits(),
    )
    check_chain(record)
    return record


def next_generation(previous: NodeRecord | None) -> Generation:
    """The generation of a process that starts after the one that wrote `previous`."""
    return Generation(1 if previous is None else previous.generation + 1)


def check_chain(log: LogRecord) -> None:
    """Raises `InvalidArgument` if the chain breaks an invariant of the module's docstring."""
    check_quorum(replicas=log.replicas, write_quorum=log.write_quorum, spread=log.spread)
    check_near(log.near)
    check_retention(log.retention)
    check_offsets(log)
    if not log.chain:
        raise _bad(log, "has no segment")
    _check_links(log, log.chain)


def check_chain_change(old: LogRecord, new: LogRecord) -> None:
    """Raises `InvalidArgument` unless `new` may replace `old`. `old` is taken to be valid.

    Raises:
        LogUnavailable: the chain would become longer than chains may be.
    """
    if _identity(old) != _identity(new):
        raise _bad(new, "changes what names the log: its id, name or creation")
    check_quorum(replicas=new.replicas, write_quorum=new.write_quorum, spread=new.spread)
    closed = len(old.chain) - 1
    if len(new.chain) <= closed:
        raise _bad(new, "drops a segment")
    if len(new.chain) > max(len(old.chain), CHAIN_SEGMENTS_MAX):
        raise LogUnavailable(chain_too_long(new))
    if new.chain[:closed] != old.chain[:closed]:  # mostly the very same objects: fast
        for was, now in zip(old.chain[:closed], new.chain, strict=False):
            if now is not was:
                _check_closed_change(new, was, now)
    _check_links(new, new.chain[max(closed - 1, 0) :])
    _check_open_change(new, old.open_segment, new.chain[closed:])
    check_offsets_change(old, new)


def chain_too_long(log: LogRecord) -> str:
    """What to say when a log can't be given a further segment."""
    return (
        f"log {log.name!r} takes no further segment after {len(log.chain) - 1:,}: its chain is one "
        f"value of the metadata store, with at most {CHAIN_SEGMENTS_MAX:,} segments. Go on in a "
        "new log; this one stays readable"
    )


def _check_links(log: LogRecord, chain: Sequence[Segment]) -> None:
    """`chain` is the end of the log's chain, from some segment on."""
    for segment in chain:
        _check_segment(log, segment)
    for before, after in pairwise(chain):
        if before.end is None or before.end <= before.base:
            raise _bad(log, f"goes on after segment {before.index}, which is open or empty")
        if after.base != before.end or after.index <= before.index:
            raise _bad(log, f"has a segment {after.index} that does not follow {before.index}")
        if after.timestamp_ms < before.timestamp_ms:
            raise _bad(log, f"has a segment {after.index} that is earlier than {before.index}")
    if chain[-1].end is not None:
        raise _bad(log, "has no open segment")


def _check_segment(log: LogRecord, segment: Segment) -> None:
    try:
        if segment.is_archived:
            check_archived_segment(log, segment)
        else:
            check_nodeset(segment.nodeset, segment.write_quorum, segment.spread)
    except InvalidArgument as error:
        raise _bad(log, f"has a segment {segment.index} that can't be: {error}") from error
    reached = segment.base
    for lost in segment.lost:
        if lost.first < reached or lost.end < lost.first:
            raise _bad(log, f"names what segment {segment.index} has lost out of order")
        reached = lost.end
    if segment.end is not None and reached > segment.end:
        raise _bad(log, f"names losses beyond the end of segment {segment.index}")


def _check_closed_change(log: LogRecord, was: Segment, now: Segment) -> None:
    if _fixed(was) != _fixed(now):
        raise _bad(log, f"changes closed segment {was.index}")
    if now.write_quorum < was.write_quorum:
        raise _bad(log, f"lowers the write quorum of closed segment {was.index}")
    if was.is_archived != now.is_archived:
        raise _bad(log, f"gives segment {was.index} replicas, or takes all of them")
    if len(now.nodeset) < min(len(was.nodeset), log.replicas):
        raise _bad(log, f"takes replicas from closed segment {was.index}")
    _check_lost_grows(log, was, now)
    _check_segment(log, now)


def _check_open_change(log: LogRecord, was: Segment, rest: Sequence[Segment]) -> None:
    """`rest` is what stands in the new chain from the place of the open segment `was` on."""
    match rest:
        case [same] if same == was:
            return
        case [follower] if follower.base == was.base and follower.index == was.index + 1:
            if follower.timestamp_ms < was.timestamp_ms:
                raise _bad(log, f"has a segment {follower.index} that is earlier than {was.index}")
            _check_lost_grows(log, was, follower)  # `was` ended empty
        case [ended, follower] if follower.index == was.index + 1:
            _check_ended(log, was, ended)
        case _:
            raise _bad(log, f"does not follow from open segment {was.index}")


def _check_ended(log: LogRecord, was: Segment, ended: Segment) -> None:
    if _fixed(replace(ended, end=None)) != _fixed(was) or ended.write_quorum != was.write_quorum:
        raise _bad(log, f"changes segment {was.index} while it ends it")
    if len(ended.nodeset) < len(was.nodeset):
        raise _bad(log, f"takes replicas from segment {was.index} while it ends it")
    if not set(ended.nodeset) & set(was.nodeset):
        raise _bad(log, f"leaves segment {was.index} none of its replicas while it ends it")
    _check_lost_grows(log, was, ended)


def _check_lost_grows(log: LogRecord, was: Segment, now: Segment) -> None:
    if not set(was.lost) <= set(now.lost):
        raise _bad(log, f"forgets what segment {was.index} has lost")


def _identity(log: LogRecord) -> tuple[LogId, str, int, str, CreatedWith]:
    return log.log_id, log.name, log.created_ms, log.create_nonce, log.created_with


def _fixed(segment: Segment) -> Segment:
    """What never changes of a closed segment."""
    return replace(segment, nodeset=(), write_quorum=0, lost=())


def _bad(log: LogRecord, what: str) -> InvalidArgument:
    return InvalidArgument(f"log {log.name!r}: the chain {what}")
