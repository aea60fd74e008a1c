"""Plans a log's next segment by what this node knows of the others, without asking anybody.

Who answers is `liveness.py`'s knowledge, who has how much to do is `load.py`'s, and the choice is
`metadata/reconfiguration.py`'s. A plan that turns out to be wrong costs a further reconfiguration,
so there is no waiting here: a failover is as fast as its plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from metadata.core import can_hold, replica_of
from metadata.quorum import QuorumRule
from metadata.reconfiguration import Change, Plan, plan_next, replica_state
from metadata.records import (
    STATE_DRAINING,
    STATE_READ_WRITE,
    LogRecord,
    NodeRecord,
    Replica,
    Segment,
)
from metadata.registry import check_room
from metadata.view import ClusterView
from node.liveness import Life, Sign
from node.load import LoadIndex
from sharedlog.errors import LogUnavailable
from sharedlog.ids import NodeId


class Knows(Protocol):
    """What is needed of `node/liveness.py:Liveness`."""

    def usable(self) -> Sequence[NodeRecord]:
        """Nodes that may be given something to do."""
        ...

    def known(self, node: NodeRecord) -> Life | None:
        """What was last learnt of a process, None if nothing."""
        ...

    def free_bytes(self, node_id: NodeId) -> int | None:
        """What is left on its disk for batches, None if it is not known."""
        ...


class Planner:
    """See the module's docstring."""

    def __init__(self, *, view: ClusterView, liveness: Knows) -> None:
        self._view = view
        self._liveness = liveness
        self._load = LoadIndex(view, liveness.free_bytes)

    def plan(self, record: LogRecord, change: Change, *, optional: bool) -> Plan:
        """The next segment. Raises what `plan_next` raises.

        `LogUnavailable` too if the chain can't take another segment: to be found out before the
        open one is sealed, for then nothing could follow it. A change that is `optional` leaves the
        last of the room to those after a death, and is not begun where it can't be ended.
        """
        if optional:
            check_sealable(record.name, record.open_segment, self._replica_may_answer)
        alive = self._alive()
        try:
            plan = self._plan(record, change, alive)
        except LogUnavailable:
            full = self._full_members(record)
            if not full:
                raise
            plan = self._plan(record, change, [*alive, *full])
        check_room(record, plan, optional=optional)
        return plan

    def planned(self, plan: Plan) -> AbstractContextManager[None]:
        """While it is being carried out, others see it coming."""
        return self._load.planned(plan)

    def replacements(self) -> list[Replica]:
        """Log servers that could take a lost one's place, those with least to do first."""
        able = [node for node in self._liveness.usable() if can_hold(node)]
        weights = self._load.load.weights(node.node_id for node in able)
        able.sort(key=lambda node: (weights[node.node_id], node.node_id))
        return [replica_of(node) for node in able]

    def may_answer(self, node: NodeRecord) -> bool:
        """The process is not known to be gone or silent."""
        life = self._liveness.known(node)
        return life is None or life.answers

    def _replica_may_answer(self, replica: Replica) -> bool:
        node = self._view.node(replica.node_id)
        if node is None:
            return False
        # A lost store has no say in who answers: the attempt finds out what can be done.
        return replica_state(replica, node) == "lost" or self.may_answer(node)

    def _plan(self, record: LogRecord, change: Change, alive: Sequence[NodeRecord]) -> Plan:
        return plan_next(record, change, alive, self._load.load, known=self._view.nodes())

    def _full_members(self, record: LogRecord) -> list[NodeRecord]:
        """Members of the log whose disks are full.

        They have room for seals and repairs. So if it can't do without them, the log can still get
        another sequencer, its last records stay readable, and it goes on once there is room again.
        """
        members = {replica.node_id for replica in record.open_segment.nodeset}
        return [
            node
            for node in self._view.nodes()
            if node.node_id in members
            and node.state == STATE_READ_WRITE
            and (life := self._liveness.known(node)) is not None
            and life.read_only
            and life.sign is Sign.ALIVE
        ]

    def _alive(self) -> list[NodeRecord]:
        """Nodes that may answer: those that drain are no use for new work, but hold what they hold.

        They count where a plan has no better ones.
        """
        draining = [
            node
            for node in self._view.nodes()
            if node.state == STATE_DRAINING and self.may_answer(node)
        ]
        return [*self._liveness.usable(), *draining]


def check_sealable(name: str, segment: Segment, may_answer: Callable[[Replica], bool]) -> None:
    """Raise `LogUnavailable` if too few log servers of the open segment answer here to end it.

    Trying all the same would seal those that do answer, and leave the log so.
    """
    able = [at for at, replica in enumerate(segment.nodeset) if may_answer(replica)]
    if not QuorumRule.of(segment).is_seal_quorum(able):
        raise LogUnavailable(
            f"log {name}: {len(able)} of the {len(segment.nodeset)} log servers of its open "
            "segment answer this node, which is no seal quorum"
        )
