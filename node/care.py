"""The parts of a node that look after the cluster and its data, and how they hang together.

Every node has all of them: any may be asked to inspect a log or to change a node's state, each
scrubs its own store, and each looks at the controller's lease and may become the controller.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from metadata.records import NodeRecord
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.accept_loss import LossAcceptance
from node.controller.backfill import Backfill
from node.controller.config import ControllerConfig
from node.controller.index import SegmentIndex
from node.controller.metrics import ControllerMetrics
from node.controller.open_looks import OpenLooks
from node.controller.pace import Pace
from node.controller.rereplicate import Rereplication
from node.controller.scrub import Scrub
from node.controller.service import Controller
from node.controller.states import NodeStates
from node.controller.tend import Tending
from node.controller.term import FailsOver, Term
from node.controller.work import WorkBoard
from node.failover import Reconfigures
from node.integrity import Integrity
from node.liveness import Liveness
from node.load import LoadIndex
from node.peers import Peers
from node.replica_door import ReplicaDoor
from sharedlog.clock import Clock
from sharedlog.ids import SequencerId
from sharedlog.rpc.transport import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Care:
    """See the module's docstring."""

    board: WorkBoard
    index: SegmentIndex
    load: LoadIndex
    controller: Controller
    scrub: Scrub | None  # with the role log-server
    integrity: Integrity
    losses: LossAcceptance
    states: NodeStates

    def runs(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What must run, by name."""
        yield "controller", self.controller.run()
        if self.scrub is not None:
            yield "scrub", self.scrub.run()


@dataclass(frozen=True, slots=True, kw_only=True)
class CareGround:
    """What the parts stand on."""

    own: NodeRecord
    config: ControllerConfig
    store: MetadataStore
    view: ClusterView
    transport: Transport
    liveness: Liveness
    failover: FailsOver
    reconfigurer: Reconfigures
    board: WorkBoard
    clock: Clock
    random: Random
    new_id: Callable[[], str]
    registry: CollectorRegistry


def build_care(ground: CareGround) -> Care:
    """Build the parts; nothing runs yet."""
    view, clock = ground.view, ground.clock
    index, load = SegmentIndex(), LoadIndex(view, ground.liveness.free_bytes)
    view.on_log(index.mark)
    for record, version in view.logs():
        index.mark(record, version)
    metrics = ControllerMetrics(ground.registry)
    door = ReplicaDoor(view=view, transport=ground.transport)
    pace = Pace(ground.config.backfill_bytes_per_s, clock)
    backfill = Backfill(door=door, pace=pace, metrics=metrics)
    return Care(
        board=ground.board,
        index=index,
        load=load,
        controller=Controller(
            me=SequencerId(ground.own.node_id, ground.own.generation),
            store=ground.store,
            new_term=lambda: _new_term(ground, index, load, backfill, metrics),
            clock=clock,
            random=ground.random,
            new_id=ground.new_id,
            config=ground.config,
            metrics=metrics,
        ),
        scrub=_scrub(ground, door, backfill, metrics) if ground.own.storage_id else None,
        integrity=Integrity(view=view, door=door),
        losses=LossAcceptance(
            view=view,
            load=load,
            store=ground.store,
            door=door,
            backfill=backfill,
            liveness=ground.liveness,
            clock=clock,
            new_id=ground.new_id,
        ),
        states=NodeStates(store=ground.store, view=view, liveness=ground.liveness),
    )


def _new_term(
    ground: CareGround,
    index: SegmentIndex,
    load: LoadIndex,
    backfill: Backfill,
    metrics: ControllerMetrics,
) -> Term:
    rereplication = Rereplication(store=ground.store, backfill=backfill, new_id=ground.new_id)
    return Term(
        view=ground.view,
        index=index,
        store=ground.store,
        transport=ground.transport,
        liveness=ground.liveness,
        failover=ground.failover,
        reconfigurer=ground.reconfigurer,
        tending=Tending(
            load=load,
            backfill=backfill,
            rereplication=rereplication,
            board=ground.board,
            metrics=metrics,
            clock=ground.clock,
        ),
        open_looks=OpenLooks(peers=Peers(view=ground.view, transport=ground.transport)),
        board=ground.board,
        clock=ground.clock,
        random=ground.random,
        config=ground.config,
        metrics=metrics,
    )


def _scrub(
    ground: CareGround, door: ReplicaDoor, backfill: Backfill, metrics: ControllerMetrics
) -> Scrub:
    return Scrub(
        own=ground.own,
        view=ground.view,
        door=door,
        backfill=backfill,
        board=ground.board,
        clock=ground.clock,
        random=ground.random,
        config=ground.config,
        metrics=metrics,
    )
