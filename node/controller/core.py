"""What the controller does next: decisions over what is known of nodes and chains, without I/O.

**Rules of this file.** Time comes in as monotonic seconds; nothing is asked, nothing is remembered
but by `Health`. Every decision is made anew from the present state, again and again ("level, not
edge"): what was missed, failed or undone by somebody else is simply found again the next time. So
no step needs to be recorded, and a new controller begins where the old one was.

**Health.** A node that answered its last heartbeat is *up*. One that missed `missed_max` in a row,
or at whose address nobody listens, is *silent*: what it orders is moved. How long a node has been
away counts from its last answer, or from the beginning of this controller's term: what happened
before is not known (field note 35). Health is a hint. The worst that a wrong one does is a
reconfiguration that was not needed.

**Stores** (`condition_of`). What is to become of the copies on a store:

| condition   | when                                                        | open     | closed |
|-------------|-------------------------------------------------------------|----------|--------|
| `well`      | its node answers with it                                    | stays    | stays  |
| `away`      | its node is silent, or runs without its store               | stays    | stays  |
| `long-away` | for `replace_after_s`                                       | replaced | stays  |
| `given-up`  | for `rereplicate_after_s`                                   | replaced | copied |
| `draining`  | an operator wants it empty                                  | replaced | copied |
| `lost`      | its node has another store, or it was declared lost or gone | replaced | copied |

Replaced, that is, if another log server can take its place: `spares`. Without one a reconfiguration
would change nothing and cost a pause each time.

**Balance** (`next_move`). One log at a time from the node that orders most to the one that orders
fewest, while they differ by more than `BALANCE_LOGS` logs and `BALANCE_SHARE` of the former; of the
logs in question one that keeps a copy at its new place, if there is any. Before that, and whatever
the numbers, a log goes home to where its writers are. A log that asks for a spread and could not
bear the loss of a zone, while there are nodes in enough of them, is spread anew (`next_spread`).

Not here: how a log is reconfigured (`node/reconfigure.py`, which chooses the nodes by
`metadata/reconfiguration.py`), and who holds the lease (`metadata/lease.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

from metadata.core import ROLE_LOG_SERVER, ROLE_SEQUENCER, Load, is_near, replica_of
from metadata.quorum import QuorumRule, place_of
from metadata.reconfiguration import Change, plan_next, replica_state
from metadata.records import (
    STATE_DRAINING,
    STATE_READ_WRITE,
    LogRecord,
    NodeRecord,
    Replica,
    Segment,
    Spread,
)
from node.controller.config import ControllerConfig
from node.controller.index import LogUse, SegmentIndex, Store, Stores, store_of
from sharedlog.errors import LogUnavailable
from sharedlog.ids import Generation, NodeId, SequencerId

Condition = Literal["well", "away", "long-away", "given-up", "draining", "lost"]

LEAVES_OPEN: Final = frozenset[Condition](("long-away", "given-up", "draining", "lost"))
"""Conditions in which a store is replaced in open segments."""
LEAVES_CLOSED: Final = frozenset[Condition](("given-up", "draining", "lost"))
"""Conditions in which a store is replaced in closed segments."""

_URGENCY: Final[tuple[Condition, ...]] = ("lost", "given-up", "draining")

BALANCE_LOGS: Final = 2
BALANCE_SHARE: Final = 0.25


@dataclass(slots=True)
class _Watched:
    """One node, as its heartbeats tell."""

    heard_s: float  # the last answer; or since when it is watched
    missed: int = 0  # heartbeats in a row
    heard: bool = False  # ever
    generation: Generation | None = None
    read_only: bool = False
    stopping: bool = False
    storeless_s: float | None = None  # since when it has answered that it has no store


class Health:
    """Which nodes answer, as far as heartbeats tell."""

    def __init__(self, *, missed_max: int) -> None:
        self._missed_max = missed_max
        self._nodes: dict[NodeId, _Watched] = {}

    def on_heard(
        self,
        node_id: NodeId,
        generation: Generation,
        now_s: float,
        *,
        read_only: bool = False,
        stopping: bool = False,
        storeless: bool = False,
    ) -> bool:
        """The node answered; whether it was silent, or is in another life, or is new here."""
        was = self._nodes.get(node_id)
        news = was is None or not was.heard or was.missed >= self._missed_max
        news = news or (was is not None and was.generation != generation)
        before_s = None if was is None else was.storeless_s
        self._nodes[node_id] = _Watched(
            now_s,
            heard=True,
            generation=generation,
            read_only=read_only,
            stopping=stopping,
            storeless_s=(now_s if before_s is None else before_s) if storeless else None,
        )
        return news

    def on_missed(self, node_id: NodeId, now_s: float) -> bool:
        """The node did not answer; whether it counts as silent from now on."""
        watched = self._nodes.setdefault(node_id, _Watched(now_s))
        watched.missed += 1
        return watched.missed == self._missed_max

    def on_gone(self, node_id: NodeId, now_s: float) -> bool:
        """Nobody listens at its address, so the process has ended; whether that is news."""
        watched = self._nodes.setdefault(node_id, _Watched(now_s))
        news = watched.missed < self._missed_max
        watched.missed = max(watched.missed + 1, self._missed_max)
        return news

    def is_up(self, node_id: NodeId) -> bool:
        """It answered lately, and is not about to stop."""
        watched = self._nodes.get(node_id)
        return (
            watched is not None
            and watched.heard
            and watched.missed < self._missed_max
            and not watched.stopping
        )

    def is_silent(self, node_id: NodeId) -> bool:
        """It has missed so many heartbeats that it counts as silent."""
        watched = self._nodes.get(node_id)
        return watched is not None and watched.missed >= self._missed_max

    def takes_stores(self, node_id: NodeId) -> bool:
        """It is up and has room."""
        watched = self._nodes.get(node_id)
        return watched is not None and self.is_up(node_id) and not watched.read_only

    def away_s(self, node_id: NodeId, now_s: float) -> float:
        """Since when it has been away; 0 unless it is silent."""
        watched = self._nodes.get(node_id)
        if watched is None or not self.is_silent(node_id):
            return 0.0
        return now_s - watched.heard_s

    def store_away_s(self, node_id: NodeId, now_s: float) -> float:
        """Since when its store has been away: it is silent, or answers that it has none; else 0."""
        watched = self._nodes.get(node_id)
        if watched is not None and watched.storeless_s is not None:
            return now_s - watched.storeless_s
        return self.away_s(node_id, now_s)


@dataclass(frozen=True, slots=True)
class Picture:
    """What decisions are made from."""

    index: SegmentIndex
    nodes: Mapping[NodeId, NodeRecord]
    health: Health
    now_s: float
    config: ControllerConfig


def condition_of(store: Store, picture: Picture) -> Condition:
    """See the module's docstring."""
    node_id, storage_id = store
    replica = Replica(node_id=node_id, storage_id=storage_id)
    node = picture.nodes.get(node_id)
    state = replica_state(replica, node)
    if state == "lost":
        return "lost"
    if node is not None and node.state == STATE_DRAINING:
        return "draining"
    away_s = picture.health.store_away_s(node_id, picture.now_s)
    config = picture.config
    if config.rereplicate_after_s and away_s >= config.rereplicate_after_s:
        return "given-up"
    if away_s > 0 and away_s >= config.replace_after_s:
        return "long-away"
    storeless = node is not None and state == "away"
    return "away" if storeless or picture.health.is_silent(node_id) else "well"


def usable_log_servers(picture: Picture) -> list[NodeRecord]:
    """Nodes that can be given further segments, in order of their ids."""
    return [
        node
        for _, node in sorted(picture.nodes.items())
        if ROLE_LOG_SERVER in node.roles
        and node.storage_id
        and node.state == STATE_READ_WRITE
        and picture.health.takes_stores(node.node_id)
    ]


def spares(stores: Stores, usable: Iterable[NodeRecord]) -> list[NodeRecord]:
    """Of the usable log servers those whose stores are not in the nodeset.

    One of its nodes may be among them, with another store than the nodeset names: it can take the
    place of the one that it lost.
    """
    return [node for node in usable if (node.node_id, node.storage_id) not in stores]


def without_sequencer(picture: Picture) -> list[str]:
    """Logs whose named process is silent, or was followed by another life of its node."""
    return [
        name
        for sequencer, logs in picture.index.sequencers().items()
        if is_gone(sequencer, picture)
        for name in sorted(logs)
    ]


def is_gone(sequencer: SequencerId, picture: Picture) -> bool:
    """The process is silent, or was followed by another life of its node."""
    node = picture.nodes.get(sequencer.node_id)
    if node is not None and node.generation > sequencer.generation:
        return True
    return picture.health.is_silent(sequencer.node_id)


@dataclass(slots=True)
class Roll:
    """A log to reconfigure, planned, and why."""

    name: str
    stores: set[Store] = field(default_factory=set)  # that its open segment should not name
    sequencers: set[NodeId] = field(default_factory=set)  # nodes that should not order it
    avoid: set[NodeId] = field(default_factory=set)  # nodes that count as ones that don't answer
    reasons: list[str] = field(default_factory=list)
    for_drain: bool = False

    def uses(self, segment: Segment) -> int:
        """How much of what it should not use a segment uses."""
        stores = sum(store_of(replica) in self.stores for replica in segment.nodeset)
        return stores + (segment.sequencer.node_id in self.sequencers)


def to_roll(picture: Picture) -> dict[str, Roll]:
    """Logs, by name, whose open segment names a store or a sequencer that it should not.

    A store only if another can take its place. A log without a sequencer is not here: it is
    failed over, which replaces its stores too.
    """
    rolls: dict[str, Roll] = {}
    usable = usable_log_servers(picture)
    has_spare: dict[Stores, bool] = {}  # thousands of logs share a few nodesets
    for store, use in picture.index.stores().items():
        condition = condition_of(store, picture) if use.open_logs else "well"
        if condition not in LEAVES_OPEN:
            continue
        for name in use.open_logs:
            log = picture.index.log(name)
            assert log is not None, "the index names logs that it knows"
            if log.open_stores not in has_spare:
                has_spare[log.open_stores] = bool(spares(log.open_stores, usable))
            if has_spare[log.open_stores]:
                _leave_store(rolls.setdefault(name, Roll(name)), store, condition, picture)
    for node_id, node in picture.nodes.items():
        if node.state == STATE_DRAINING and _others_order(picture, node_id):
            for name in picture.index.ordered_by(node_id):
                roll = rolls.setdefault(name, Roll(name))
                roll.sequencers.add(node_id)
                roll.reasons.append(f"{node_id}, which orders it, is drained")
                roll.for_drain = True
    orphans = without_sequencer(picture) if rolls else ()
    for name in orphans:
        rolls.pop(name, None)
    return rolls


def _leave_store(roll: Roll, store: Store, condition: Condition, picture: Picture) -> None:
    node_id, storage_id = store
    roll.stores.add(store)
    roll.reasons.append(f"the store of {node_id} is {condition}")
    roll.for_drain = roll.for_drain or condition == "draining"
    node = picture.nodes.get(node_id)
    if node is None or node.storage_id == storage_id:
        roll.avoid.add(node_id)  # otherwise it has another store by now, which may be used


def to_copy(picture: Picture) -> set[str]:
    """Logs with a closed segment on a store that is to be left, while there is another to go to."""
    if not usable_log_servers(picture):
        return set()
    return {
        name
        for store, use in picture.index.stores().items()
        if use.closed_logs and condition_of(store, picture) in LEAVES_CLOSED
        for name in use.closed_logs
    }


def leaving(segment: Segment, picture: Picture) -> list[int]:
    """Members of a closed segment's nodeset, by index, whose stores are to be left.

    The most urgent first: what is lost can't be copied from any more, what is drained can.
    """
    found = [
        (_URGENCY.index(condition), index)
        for index, replica in enumerate(segment.nodeset)
        if (condition := condition_of(store_of(replica), picture)) in LEAVES_CLOSED
    ]
    return [index for _, index in sorted(found)]


def _others_order(picture: Picture, node_id: NodeId) -> bool:
    return any(node != node_id for node in _usable_sequencers(picture))


def _usable_sequencers(picture: Picture) -> list[NodeId]:
    return [
        node_id
        for node_id, node in sorted(picture.nodes.items())
        if ROLE_SEQUENCER in node.roles
        and node.state == STATE_READ_WRITE
        and picture.health.is_up(node_id)
    ]


@dataclass(frozen=True, slots=True)
class Move:
    """A log to be ordered by another node, or with other log servers, for balance."""

    name: str
    source: NodeId
    target: NodeId
    reason: str


def next_move(picture: Picture, resting: Collection[str]) -> Move | None:
    """The next move for balance, if any; logs of `resting` were moved too short a while ago."""
    able = _usable_sequencers(picture)
    if len(able) < 2:
        return None
    home = _move_home(picture, able, resting)
    if home is not None:
        return home
    ordered: dict[NodeId, list[str]] = {node_id: [] for node_id in able}
    for sequencer, logs in picture.index.sequencers().items():
        if sequencer.node_id in ordered:
            ordered[sequencer.node_id].extend(logs)
    most = max(able, key=lambda node_id: (len(ordered[node_id]), node_id))
    fewest = min(able, key=lambda node_id: (len(ordered[node_id]), node_id))
    excess = len(ordered[most]) - len(ordered[fewest])
    if excess <= BALANCE_LOGS or excess <= BALANCE_SHARE * len(ordered[most]):
        return None
    free = [
        name
        for name in ordered[most]
        if name not in resting and not _leaves_home(picture, name, most, fewest)
    ]
    if not free:
        return None
    return Move(
        min(free, key=lambda name: (not _has_copy(picture, name, fewest), name)),
        most,
        fewest,
        f"{most} orders more logs than {fewest}",
    )


def next_spread(picture: Picture, resting: Collection[str]) -> Move | None:
    """A log that would stop with one place more, while its next segment would not.

    After a place was away its copies lie in fewer of them than there are. Only of logs that ask for
    a spread, by one that names places; who orders the log stays.
    """
    names = picture.index.with_spread()
    if not names:
        return None
    able, usable = _usable_sequencers(picture), usable_log_servers(picture)
    for name in sorted(names):
        log = picture.index.log(name)
        assert log is not None, "the index names logs that it knows"
        source = log.record.open_segment.sequencer.node_id
        if name not in resting and source in able and _could_survive_more(log.record, usable):
            return Move(name, source, source, "its copies lie in fewer places than there are")
    return None


def _could_survive_more(record: LogRecord, usable: Sequence[NodeRecord]) -> bool:
    """Of some level of its spread: the open segment can't do without any one place, and could."""
    segment = record.open_segment
    for level, _ in record.spread:
        if level == "node" or _survives(segment, level):
            continue
        there = {place_of(it, level) for it in segment.nodeset}
        if len({place_of(replica_of(it), level) for it in usable} | there) <= len(there):
            continue
        try:
            plan = plan_next(record, Change(), usable, Load(), known=usable)
        except LogUnavailable:
            continue
        rule = QuorumRule.make(plan.nodeset, plan.write_quorum, plan.spread)
        if rule.survives(level):
            return True
    return False


def _survives(segment: Segment, level: str) -> bool:
    if level not in dict(segment.spread):
        return True  # the log was told of the spread after this segment was made, and waits for it
    return _survives_places(tuple(segment.nodeset), segment.write_quorum, segment.spread, level)


@lru_cache(maxsize=1_000)
def _survives_places(
    nodeset: tuple[Replica, ...], write_quorum: int, spread: Spread, level: str
) -> bool:
    """Cached, for thousands of logs share a few nodesets."""
    return QuorumRule.make(nodeset, write_quorum, spread).survives(level)


def _move_home(picture: Picture, able: Sequence[NodeId], resting: Collection[str]) -> Move | None:
    """A log that is ordered away from its writers, while a node that is there could do it."""
    for name in sorted(picture.index.with_near()):
        log = picture.index.log(name)
        assert log is not None, "the index names logs that it knows"
        segment, near = log.record.open_segment, log.record.near
        source = segment.sequencer.node_id
        if name in resting or source not in able or _is_there(picture, source, near):
            continue
        targets = [it for it in able if _is_there(picture, it, near)]
        if targets:
            best = min(
                targets,
                key=lambda it: (
                    not _has_copy(picture, name, it),
                    len(picture.index.ordered_by(it)),
                    it,
                ),
            )
            return Move(name, source, best, f"{best} is near its writers")
    return None


def _leaves_home(picture: Picture, name: str, source: NodeId, target: NodeId) -> bool:
    log = picture.index.log(name)
    near = "" if log is None else log.record.near
    return _is_there(picture, source, near) and not _is_there(picture, target, near)


def _is_there(picture: Picture, node_id: NodeId, near: str) -> bool:
    node = picture.nodes.get(node_id)
    return node is not None and is_near(node.location, near)


def _has_copy(picture: Picture, name: str, node_id: NodeId) -> bool:
    log = picture.index.log(name)
    return log is not None and any(store[0] == node_id for store in log.open_stores)


@dataclass(frozen=True, slots=True)
class DrainState:
    """How far a node's drain is."""

    segments: int  # that still name its store
    sequenced: int  # logs that it still orders

    @property
    def done(self) -> bool:
        """Nothing names it any more."""
        return not self.segments and not self.sequenced


def drain_state(node: NodeRecord, index: SegmentIndex) -> DrainState:
    """What still names a draining node."""
    use = index.store((node.node_id, node.last_storage_id))
    return DrainState(use.segments, len(index.ordered_by(node.node_id)))


def drain_obstacle(node: NodeRecord, picture: Picture) -> str:
    """Why a drain can't go on, "" if it can: one line for a person."""
    index = picture.index
    use = index.store((node.node_id, node.last_storage_id))
    usable = usable_log_servers(picture)
    stuck = sorted(
        name
        for name in use.open_logs | use.closed_logs
        if (log := index.log(name)) is not None and _is_stuck(log, node.node_id, usable)
    )
    if stuck:
        more = "" if len(stuck) == 1 else f" and {len(stuck) - 1} more"
        return (
            f"no other log server can take a copy of {stuck[0]}{more}: {len(usable)} of the "
            "cluster take stores; add a node, or lower the logs' replicas"
        )
    if index.ordered_by(node.node_id) and not _others_order(picture, node.node_id):
        return "no other node can order logs"
    return ""


def _is_stuck(log: LogUse, node_id: NodeId, usable: Sequence[NodeRecord]) -> bool:
    """Some nodeset of the log that has the node has no spare."""
    return any(
        any(store[0] == node_id for store in stores) and not spares(stores, usable)
        for stores in (log.open_stores, *log.closed)
    )
