"""The parts of a running node and how they hang together. `process.py` starts and stops them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from prometheus_client import CollectorRegistry

from loglet.archive.object_store import ObjectStore
from loglet.metrics import LogServerMetrics
from loglet.service import LogServer
from loglet.store import LogStore
from metadata.records import NodeRecord
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.admin_service import AdminService
from node.appends import AppendLimits, Appends
from node.archive.fork import Forks
from node.archive.metrics import ArchiveMetrics
from node.archive.part import ArchiveGround, ArchivePart, build_archive
from node.care import Care, CareGround, build_care
from node.cluster_config_service import ClusterConfigService
from node.cluster_service import ClusterReport, LocalReport
from node.config import NodeConfig
from node.controller.work import WorkBoard
from node.cursor_service import CursorService
from node.failover import Failover
from node.front_door import FrontDoor
from node.handover import HandOver
from node.history_service import HistoryService
from node.liveness import Liveness
from node.log_maker import LogMaker
from node.log_settings import LogSettings
from node.metrics import ReconfigurationMetrics
from node.namespace_service import NamespaceService
from node.offsets import Offsets
from node.peers import Peers
from node.reads import Reads
from node.reconfigure import Reconfigurer
from node.routing import Router
from node.suspects import Suspects
from node.tails import Tails
from node.told_settings import NOTHING_TOLD, ToldSettings
from sequencer.history import LogHistory
from sequencer.metrics import SequencerMetrics
from sequencer.service import Sequencer
from sharedlog.clock import Clock
from sharedlog.ids import SequencerId
from sharedlog.rpc.transport import Server, Transport

HAND_OVER_SHARE: Final = 0.8
"""Of the time to stop; the rest is for what is in flight then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What the parts stand on: who the node is, and its doors to the world."""

    config: NodeConfig
    cluster_id: str
    own: NodeRecord
    store: MetadataStore
    view: ClusterView
    log_store: LogStore | None  # with the role log-server
    archive: ObjectStore | None  # where history goes, if anywhere
    transport: Transport
    clock: Clock
    random: Random
    new_id: Callable[[], str]
    registry: CollectorRegistry
    started_s: float  # monotonic
    told: ToldSettings = NOTHING_TOLD

    @property
    def me(self) -> SequencerId:
        """This process as a sequencer."""
        return SequencerId(self.own.node_id, self.own.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Movers:
    """What moves logs between sequencers, and those who want it."""

    board: WorkBoard
    liveness: Liveness
    reconfigurer: Reconfigurer
    failover: Failover
    handover: HandOver


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that runs once the node has registered."""

    clock: Clock
    log_server: LogServer | None
    sequencer: Sequencer | None
    movers: Movers
    care: Care
    maker: LogMaker
    appends: Appends
    reads: Reads
    front_door: FrontDoor
    settings: LogSettings
    namespaces: NamespaceService
    cursors: CursorService
    cluster: ClusterReport
    cluster_config: ClusterConfigService
    suspects: Suspects
    admin: AdminService
    archive: ArchivePart
    histories: HistoryService

    def register(self, server: Server) -> None:
        """Serve all of it on `server`."""
        if self.log_server is not None:
            self.log_server.register(server, with_reads=False)
        self.archive.register(server)
        self.histories.register(server)
        self.front_door.register(server)
        self.settings.register(server)
        self.namespaces.register(server)
        self.cursors.register(server)
        self.cluster.register(server)
        self.cluster_config.register(server)
        self.suspects.register(server)
        self.admin.register(server)

    def runs(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What must run, by name, in the order of starting."""
        if self.log_server is not None:
            yield "log-server", self.log_server.run()
        if self.sequencer is not None:
            yield "sequencer", self.sequencer.run()
        yield "liveness", self.movers.liveness.run()
        yield "reconfigurer", self.movers.reconfigurer.run()
        yield "failover", self.movers.failover.run()
        yield "log-maker", self.maker.run()
        yield from self.archive.runs()
        yield from self.care.runs()

    def problem(self) -> str:
        """What an operator should know of a node that serves, "" if nothing."""
        return self.cluster.local.problem()

    async def leave(self, *, timeout_s: float) -> None:
        """Hand over what others can take, then admit no appends and wait for those in flight.

        **Cancellation:** safe at any moment; the process ends anyway.
        """
        until_s = self.clock.monotonic_s() + timeout_s
        self.movers.liveness.stopping = True  # before anything else: nobody is to give us more
        await self.care.controller.resign()
        await self.movers.handover.run(timeout_s=timeout_s * HAND_OVER_SHARE)
        if self.sequencer is not None:
            left_s = until_s - self.clock.monotonic_s()
            await self.sequencer.drain(timeout_s=max(0.0, left_s))


def build_services(ground: Ground) -> Services:
    """Build the parts for the node's roles; nothing runs yet."""
    config, view = ground.config, ground.view
    log_server = _build_log_server(ground)
    liveness = _build_liveness(ground, log_server)
    sequencer = _build_sequencer(ground, liveness)
    movers = _build_movers(ground, liveness, sequencer)
    care = _build_care(ground, movers, log_server)
    peers = Peers(view=view, transport=ground.transport)
    router = _build_router(ground, sequencer, movers)
    tails = Tails(
        view=view,
        router=router,
        peers=peers,
        transport=ground.transport,
        timeout_s=config.peer_timeout_s,
    )
    maker = _build_maker(ground, liveness, care)
    appends = Appends(
        router=router,
        maker=maker,
        transport=ground.transport,
        clock=ground.clock,
        limits=_limits(config),
    )
    offsets, reads = _build_reads(ground, tails)
    archive = _build_archive(
        ground, log_server, sequencer, movers=movers, tails=tails, offsets=offsets
    )
    care.losses.ask_first(archive.history.catch_up)
    local = LocalReport(
        cluster_id=ground.cluster_id,
        own=ground.own,
        view=view,
        log_server=log_server,
        sequencer=sequencer,
        board=movers.board,
        controller=care.controller,
        stopping=lambda: movers.liveness.stopping,
        troubles=movers.reconfigurer.troubles,
        clock=ground.clock,
        started_s=ground.started_s,
    )
    return Services(
        clock=ground.clock,
        log_server=log_server,
        sequencer=sequencer,
        movers=movers,
        care=care,
        maker=maker,
        appends=appends,
        reads=reads,
        front_door=FrontDoor(
            view=view, maker=maker, appends=appends, reads=reads, offsets=offsets, tails=tails
        ),
        settings=LogSettings(store=ground.store, view=view, new_id=ground.new_id),
        namespaces=_build_namespaces(ground),
        cursors=CursorService(store=ground.store, view=view, clock=ground.clock),
        cluster=ClusterReport(
            local=local,
            view=view,
            peers=peers,
            index=care.index,
            metadata_url=config.metadata_url,
        ),
        cluster_config=_build_cluster_config(ground),
        suspects=Suspects(view=view, failover=movers.failover),
        admin=_build_admin(ground, sequencer, movers, care),
        archive=archive,
        histories=_build_histories(ground, archive, maker),
    )


def _limits(config: NodeConfig) -> AppendLimits:
    return AppendLimits(
        sessions_max=config.sessions_max,
        append_timeout_s=config.append_timeout_s,
        peer_timeout_s=config.peer_timeout_s,
    )


def _build_cluster_config(ground: Ground) -> ClusterConfigService:
    return ClusterConfigService(
        own=ground.own.node_id,
        store=ground.store,
        view=ground.view,
        transport=ground.transport,
        told=ground.told,
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


def _build_liveness(ground: Ground, log_server: LogServer | None) -> Liveness:
    return Liveness(
        me=ground.me,
        view=ground.view,
        transport=ground.transport,
        clock=ground.clock,
        ping_timeout_s=ground.config.ping_timeout_s,
        free_bytes=lambda: None if log_server is None else log_server.free_bytes,
    )


def _build_sequencer(ground: Ground, liveness: Liveness) -> Sequencer | None:
    if "sequencer" not in ground.config.roles:
        return None
    history = LogHistory(
        transport=ground.transport,
        directory=ground.view.node,
        clock=ground.clock,
        random=ground.random,
        own=ground.own.node_id,
        held_dead=liveness.held_dead,
    )
    sequencer = Sequencer(
        me=ground.me,
        transport=ground.transport,
        directory=ground.view.node,
        clock=ground.clock,
        random=ground.random,
        config=ground.config.sequencer,
        metrics=SequencerMetrics(ground.registry),
        history=history,
    )
    # Whoever moves a log tells nobody: its sequencer reads it in the chain, like everyone else.
    ground.view.on_log(sequencer.on_chain)
    return sequencer


def _build_movers(ground: Ground, liveness: Liveness, sequencer: Sequencer | None) -> Movers:
    view, transport, clock = ground.view, ground.transport, ground.clock
    board = WorkBoard(ground.own.node_id)
    reconfigurer = Reconfigurer(
        me=ground.me,
        store=ground.store,
        view=view,
        transport=transport,
        clock=clock,
        random=ground.random,
        new_id=ground.new_id,
        liveness=liveness,
        sequencer=sequencer,
        metrics=ReconfigurationMetrics(ground.registry),
    )
    failover = Failover(
        me=ground.me,
        view=view,
        liveness=liveness,
        reconfigurer=reconfigurer,
        transport=transport,
        board=board,
        clock=clock,
        random=ground.random,
    )
    if sequencer is not None:
        sequencer.listener = failover
    handover = HandOver(
        view=view,
        liveness=liveness,
        reconfigurer=reconfigurer,
        sequencer=sequencer,
        board=board,
        clock=clock,
    )
    return Movers(
        board=board,
        liveness=liveness,
        reconfigurer=reconfigurer,
        failover=failover,
        handover=handover,
    )


def _build_care(ground: Ground, movers: Movers, log_server: LogServer | None) -> Care:
    care = build_care(
        CareGround(
            own=ground.own,
            config=ground.config.controller,
            store=ground.store,
            view=ground.view,
            transport=ground.transport,
            liveness=movers.liveness,
            failover=movers.failover,
            reconfigurer=movers.reconfigurer,
            board=movers.board,
            clock=ground.clock,
            random=ground.random,
            new_id=ground.new_id,
            registry=ground.registry,
        )
    )
    if log_server is not None and care.scrub is not None:
        log_server.on_damage(care.scrub.on_damage)
    return care


def _build_router(ground: Ground, sequencer: Sequencer | None, movers: Movers) -> Router:
    return Router(
        me=ground.me,
        view=ground.view,
        sequencer=sequencer,
        failover=movers.failover,
        liveness=movers.liveness,
        clock=ground.clock,
        random=ground.random,
        timeout_s=ground.config.peer_timeout_s,
    )


def _build_reads(ground: Ground, tails: Tails) -> tuple[Offsets, Reads]:
    offsets = Offsets(
        view=ground.view,
        transport=ground.transport,
        clock=ground.clock,
        random=ground.random,
        tails=tails,
        searches_max=ground.config.reads_max,
    )
    reads = Reads(
        view=ground.view,
        transport=ground.transport,
        clock=ground.clock,
        random=ground.random,
        tails=tails,
        offsets=offsets,
        reads_max=ground.config.reads_max,
    )
    return offsets, reads


def _build_archive(
    ground: Ground,
    log_server: LogServer | None,
    sequencer: Sequencer | None,
    *,
    movers: Movers,
    tails: Tails,
    offsets: Offsets,
) -> ArchivePart:
    return build_archive(
        ArchiveGround(
            me=ground.me,
            cluster_id=ground.cluster_id,
            objects=ground.archive,
            store=ground.store,
            view=ground.view,
            log_server=log_server,
            sequencer=sequencer,
            usable=movers.liveness.usable,
            tails=tails,
            offsets=offsets,
            transport=ground.transport,
            board=movers.board,
            clock=ground.clock,
            random=ground.random,
            new_id=ground.new_id,
            metrics=ArchiveMetrics(ground.registry),
            config=ground.config.offload,
        )
    )


def _build_histories(ground: Ground, archive: ArchivePart, maker: LogMaker) -> HistoryService:
    forks = None
    proof = archive.proof
    if ground.archive is not None and archive.archived is not None and proof is not None:
        forks = Forks(
            cluster_id=ground.cluster_id,
            store=ground.store,
            objects=ground.archive,
            archived=archive.archived,
            history=archive.history,
            maker=maker,
            clock=ground.clock,
            new_id=ground.new_id,
            prove=proof.made,
        )
    return HistoryService(
        cluster_id=ground.cluster_id, view=ground.view, forks=forks, new_id=ground.new_id
    )


def _build_maker(ground: Ground, liveness: Liveness, care: Care) -> LogMaker:
    return LogMaker(
        store=ground.store,
        view=ground.view,
        load=care.load,
        liveness=liveness,
        clock=ground.clock,
        random=ground.random,
        new_id=ground.new_id,
        default_replicas=ground.config.replicas,
    )


def _build_namespaces(ground: Ground) -> NamespaceService:
    return NamespaceService(
        store=ground.store,
        clock=ground.clock,
        new_id=ground.new_id,
        default_replicas=ground.config.replicas,
    )


def _build_admin(
    ground: Ground, sequencer: Sequencer | None, movers: Movers, care: Care
) -> AdminService:
    return AdminService(
        me=ground.me,
        view=ground.view,
        transport=ground.transport,
        reconfigurer=movers.reconfigurer,
        sequencer=sequencer,
        helper=movers.failover,
        integrity=care.integrity,
        losses=care.losses,
        states=care.states,
    )
