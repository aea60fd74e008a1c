"""The archive's parts in a node, and how they hang together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

from loglet.archive.manifests import Manifests
from loglet.archive.object_store import ObjectStore
from loglet.archive.offload import Offloader
from loglet.archive.probe import probe
from loglet.archive.proof import Proof
from loglet.archive.writer import ObjectWriter
from loglet.service import LogServer
from metadata.records import LogRecord, NodeRecord
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.archive.archivist import Archivist
from node.archive.cleaner import Cleaner
from node.archive.config import OffloadConfig
from node.archive.door import ReplicaReads
from node.archive.metrics import ArchiveMetrics
from node.archive.objects import ArchivedObjects
from node.archive.reads import ArchiveReads
from node.archive.service import ArchiveService, ArchiveTools
from node.archive.trimmer import Trimmer
from node.archive.work import Archive, Checkpoint, History
from node.controller.work import WorkBoard
from node.offsets import Offsets
from node.problems import WAITS
from node.replica_door import ReplicaDoor
from node.tails import Tails
from sequencer.service import Sequencer
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import SequencerId
from sharedlog.rpc.transport import Server, Transport

log = logging.getLogger("node")

PROBE_RETRY_MIN_S: Final = 1.0
PROBE_RETRY_MAX_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveGround:
    """What the parts stand on."""

    me: SequencerId
    cluster_id: str
    objects: ObjectStore | None
    store: MetadataStore
    view: ClusterView
    log_server: LogServer | None
    sequencer: Sequencer | None
    usable: Callable[[], Sequence[NodeRecord]]
    tails: Tails
    offsets: Offsets
    transport: Transport
    board: WorkBoard
    clock: Clock
    random: Random
    new_id: Callable[[], str]
    metrics: ArchiveMetrics
    config: OffloadConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePart:
    """Reads of replicas, and what is done to logs' history."""

    reads: ReplicaReads
    history: History
    archived: ArchivedObjects | None
    archivist: Archivist | None
    service: ArchiveService
    proof: Proof | None  # None: there is no archive

    def register(self, server: Server) -> None:
        """Serve all of it on `server`."""
        self.reads.register(server)
        self.service.register(server)

    def runs(self) -> Iterator[tuple[str, Coroutine[Any, Any, None]]]:
        """What must run, by name."""
        if self.archived is not None:
            yield "archived-objects", self.archived.run()
        if self.archivist is not None:
            yield "archivist", self.archivist.run()


def build_archive(ground: ArchiveGround) -> ArchivePart:
    """Build the parts; nothing runs yet."""
    manifests, archived, archive, tools = None, None, None, None
    proof = None if ground.objects is None else Proof(ground.objects, ground.new_id)
    if ground.objects is not None and proof is not None:
        manifests = Manifests(
            ground.objects,
            cluster_id=ground.cluster_id,
            clock=ground.clock,
            new_id=ground.new_id,
            prove=proof.made,
        )
        archived = ArchivedObjects(
            ground.objects,
            manifests,
            metrics=ground.metrics,
            block_cache_bytes=ground.config.block_cache_bytes,
        )
        ground.view.on_log(archived.on_log)
        for record, version in ground.view.logs():
            archived.on_log(record, version)
        writer = ObjectWriter(ground.objects, clock=ground.clock, new_id=ground.new_id)
        cleaner = Cleaner(ground.objects, manifests, clock=ground.clock)
        archive = Archive(manifests, Offloader(manifests, writer), cleaner)
        trial = partial(probe, ground.objects, ground.new_id)
        tools = ArchiveTools(ground.objects, manifests, cleaner, probe=trial)
    door = ReplicaDoor(view=ground.view, transport=ground.transport)
    history = History(
        store=ground.store,
        view=ground.view,
        tails=ground.tails,
        transport=ground.transport,
        clock=ground.clock,
        random=ground.random,
        new_id=ground.new_id,
        trimmer=Trimmer(view=ground.view, transport=ground.transport, door=door),
        archive=archive,
        object_bytes=ground.config.object_bytes,
        metrics=ground.metrics,
        checkpoint=_checkpoint(ground),
        own_storage="" if ground.log_server is None else ground.log_server.storage_id,
    )
    held = None if ground.log_server is None else ground.log_server.reads
    return ArchivePart(
        reads=ReplicaReads(held, None if archived is None else ArchiveReads(archived)),
        history=history,
        archived=archived,
        archivist=_archivist(ground, manifests, proof, history),
        proof=proof,
        service=ArchiveService(
            me=ground.me,
            view=ground.view,
            transport=ground.transport,
            history=history,
            offsets=ground.offsets,
            tools=tools,
        ),
    )


def _checkpoint(ground: ArchiveGround) -> Checkpoint:
    """Writes the state of logs that this process orders."""

    async def checkpoint(record: LogRecord) -> bool:
        if ground.sequencer is None or record.open_segment.sequencer != ground.me:
            return False
        try:
            await ground.sequencer.checkpoint(record)
        except SharedLogError as error:
            fields = {"log": record.name, "error": str(error)}
            log.info("archive.no_checkpoint", extra=fields)
            return False
        return True

    return checkpoint


def _archivist(
    ground: ArchiveGround, manifests: Manifests | None, proof: Proof | None, history: History
) -> Archivist | None:
    if ground.sequencer is None:
        return None

    async def ready() -> None:
        """Wait until the archive has shown that it does what is relied on."""
        if ground.objects is None or proof is None:
            return
        url = ground.objects.url
        pauses = Backoff(ground.random, min_s=PROBE_RETRY_MIN_S, max_s=PROBE_RETRY_MAX_S)
        with ground.board.if_told("archive", url) as told:
            while True:
                try:
                    await proof.made()
                except SharedLogError as error:
                    fields = {"archive": url, "error": str(error)}
                    log.warning("archive.not_usable", extra=fields)
                    told(f"{WAITS}{error}")
                    await ground.clock.sleep(pauses.next_s())
                else:
                    log.info("archive.ready", extra={"archive": url})
                    return

    return Archivist(
        me=ground.me,
        view=ground.view,
        sequencer=ground.sequencer,
        log_server=None if ground.log_server is None else ground.log_server.reads,
        usable=ground.usable,
        tails=ground.tails,
        history=history,
        manifests=manifests,
        since=ground.offsets.of,
        metrics=ground.metrics,
        ready=ready,
        board=ground.board,
        clock=ground.clock,
        random=ground.random,
        config=ground.config,
    )
