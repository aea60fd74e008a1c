"""The parts of a running node and how they hang together. `process.py` starts and stops them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from loglet.metrics import LogServerMetrics
from loglet.service import LogServer
from loglet.store import LogStore
from metadata.records import NodeRecord
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.appends import AppendLimits, Appends
from node.cluster_service import ClusterReport, LocalReport
from node.config import NodeConfig
from node.front_door import FrontDoor
from node.orphans import OrphanTails
from node.peers import Peers
from node.reads import Reads
from node.routing import Router
from node.tails import Tails
from sequencer.metrics import SequencerMetrics
from sequencer.service import Sequencer
from sharedlog.clock import Clock
from sharedlog.ids import SequencerId
from sharedlog.rpc.transport import Server, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the parts stand on: who the node is, and its doors to the world."""

    config: NodeConfig
    cluster_id: str
    own: NodeRecord
    store: MetadataStore
    view: ClusterView
    log_store: LogStore | None  # with the role log-server
    transport: Transport
    clock: Clock
    random: Random
    new_id: Callable[[], str]
    registry: CollectorRegistry
    started_s: float  # monotonic

    @property
    def me(self) -> SequencerId:
        """This process as a sequencer."""
        return SequencerId(self.own.node_id, self.own.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that runs once the node has registered."""

    log_server: LogServer | None
    sequencer: Sequencer | None
    appends: Appends
    reads: Reads
    front_door: FrontDoor
    cluster: ClusterReport
    orphans: OrphanTails

    def register(self, server: Server) -> None:
        """Serve all of it on `server`."""
        if self.log_server is not None:
            self.log_server.register(server)
        self.front_door.register(server)
        self.cluster.register(server)

    def runs(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What must run, by name, in the order of starting."""
        if self.log_server is not None:
            yield "log-server", self.log_server.run()
        if self.sequencer is not None:
            yield "sequencer", self.sequencer.run()
        yield "orphans", self.orphans.run()

    def problem(self) -> str:
        """What an operator should know of a node that serves, "" if nothing."""
        return self.cluster.local.problem()

    async def drain(self, *, timeout_s: float) -> None:
        """Admit no appends, and wait for those in flight."""
        if self.sequencer is not None:
            await self.sequencer.drain(timeout_s=timeout_s)


def build_services(ground: Ground) -> Services:
    """Build the parts for the node's roles; nothing runs yet."""
    config, view, transport, clock = ground.config, ground.view, ground.transport, ground.clock
    log_server, sequencer = _build_log_server(ground), _build_sequencer(ground)
    router = Router(ground.me, view, sequencer)
    peers = Peers(view=view, transport=transport)
    tails = Tails(
        view=view,
        router=router,
        peers=peers,
        transport=transport,
        timeout_s=config.peer_timeout_s,
    )
    appends = Appends(router=router, transport=transport, clock=clock, limits=_limits(config))
    reads = Reads(
        view=view,
        transport=transport,
        clock=clock,
        random=ground.random,
        tails=tails,
        reads_max=config.reads_max,
    )
    front_door = FrontDoor(
        store=ground.store,
        view=view,
        peers=peers,
        appends=appends,
        reads=reads,
        tails=tails,
        clock=clock,
        random=ground.random,
        new_id=ground.new_id,
        default_replicas=config.replicas,
    )
    local = LocalReport(
        cluster_id=ground.cluster_id,
        own=ground.own,
        view=view,
        log_server=log_server,
        sequencer=sequencer,
        clock=clock,
        started_s=ground.started_s,
    )
    return Services(
        log_server=log_server,
        sequencer=sequencer,
        appends=appends,
        reads=reads,
        front_door=front_door,
        cluster=ClusterReport(
            local=local, view=view, peers=peers, metadata_url=config.metadata_url
        ),
        orphans=OrphanTails(me=ground.me, view=view, peers=peers, transport=transport, clock=clock),
    )


def _limits(config: NodeConfig) -> AppendLimits:
    return AppendLimits(
        sessions_max=config.sessions_max,
        append_timeout_s=config.append_timeout_s,
        peer_timeout_s=config.peer_timeout_s,
    )


def _build_log_server(ground: Ground) -> LogServer | None:
    if ground.log_store is None:
        return None
    return LogServer(
        node_id=ground.own.node_id,
        store=ground.log_store,
        clock=ground.clock,
        config=ground.config.log_server,
        metrics=LogServerMetrics(ground.registry),
    )


def _build_sequencer(ground: Ground) -> Sequencer | None:
    if "sequencer" not in ground.config.roles:
        return None
    return Sequencer(
        me=ground.me,
        transport=ground.transport,
        directory=ground.view.node,
        clock=ground.clock,
        random=ground.random,
        config=ground.config.sequencer,
        metrics=SequencerMetrics(ground.registry),
    )
