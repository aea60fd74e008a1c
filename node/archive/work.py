"""What is done to a log's history: offloaded, trimmed, purged. Each can be done again, by anybody.

**Offload** is `loglet/archive/offload.py`, step by step until a tail is reached.

**Trim**: what lies below is archived, the chain says that it is trimmed, and only then are log
servers told. What a sequencer needs to take the log over stays with them: the last batch, and the
control batch with the log's state, so that a failover never waits for the archive. The answer says
how far the trim went (field note 44). A state that was set long ago would keep all since then at
the log servers; so the process that orders the log writes it once more, at the tail (`checkpoint`).

**Purge**: the chain says where the log starts, so that no reader goes below any more; then the
manifest; then log servers drop it; at last the objects that nobody names are deleted
(`cleaner.py`). Whoever stops on the way leaves objects behind, which a sweep deletes.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from random import Random
from typing import Final

from loglet.archive.manifest import Manifest, ObjectEntry
from loglet.archive.manifests import ManifestConflict, Manifests
from loglet.archive.offload import Offloader, Step
from metadata.archive_registry import set_purged, set_trimmed
from metadata.archive_rules import Committed
from metadata.history_rules import archived_until
from metadata.records import LogRecord
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.archive.chain import StoredChain
from node.archive.cleaner import Cleaner, Dropped
from node.archive.metrics import ArchiveMetrics
from node.archive.trimmer import Trimmer
from node.offsets import describer
from node.tails import Tails
from sharedlog.batch import Placement, parse_placement
from sharedlog.clock import Clock
from sharedlog.errors import (
    ArchiveUnavailable,
    DataLoss,
    InvalidArgument,
    LogNotFound,
    LogUnavailable,
    Purged,
    SharedLogError,
)
from sharedlog.ids import NodeId, Offset
from sharedlog.read_progress import ReadChunk
from sharedlog.reader import Describe, LogReader
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import types_pb2

log = logging.getLogger("node")

CONFLICTS_MAX: Final = 10
"""Swaps lost in a row after which an offload gives up: others archive the log."""


Told = Callable[[Step], Awaitable[bool]]
"""Hears of each object that was made, and says whether to go on."""

Checkpoint = Callable[[LogRecord], Awaitable[bool]]
"""Has the log's state written at its tail; False: not by this process, or not now."""


async def go_on(_: Step) -> bool:
    """Archives until all is."""
    return True


async def _no_checkpoint(_: LogRecord) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """What a trim has come to."""

    record: LogRecord
    below: Offset  # log servers keep nothing below it, once they were all told
    waiting: list[NodeId]  # those that were not


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What a purge has come to."""

    record: LogRecord
    start_before: Offset
    waiting: list[NodeId]  # log servers that were not told yet
    dropped: Dropped  # was deleted
    left: str  # why more than that may have to be; "": nothing


@dataclass(frozen=True, slots=True)
class Archive:
    """What a log's history is moved with."""

    manifests: Manifests
    offloader: Offloader
    cleaner: Cleaner


class History:
    """See the module's docstring. `archive` None: there is none."""

    def __init__(
        self,
        *,
        store: MetadataStore,
        view: ClusterView,
        tails: Tails,
        transport: Transport,
        clock: Clock,
        random: Random,
        new_id: Callable[[], str],
        trimmer: Trimmer,
        archive: Archive | None,
        object_bytes: int,
        metrics: ArchiveMetrics,
        checkpoint: Checkpoint = _no_checkpoint,
        own_storage: str = "",
    ) -> None:
        self._store = store
        self._view = view
        self._tails = tails
        self._transport = transport
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._trimmer = trimmer
        self._archive = archive
        self._object_bytes = object_bytes
        self._metrics = metrics
        self._checkpoint = checkpoint
        self._own_storage = own_storage

    @property
    def has_archive(self) -> bool:
        """There is somewhere to offload to."""
        return self._archive is not None

    async def committed(self, name: str) -> tuple[LogRecord, Committed]:
        """The log, and its tail, linearizable. Raises what `Tails.find_tail` raises."""
        record, _ = await self._view.fetch_log(name)
        while True:
            tail, before = await self._tails.of(name), record
            record, _ = await self._view.fetch_log(name)
            # A tail says nothing of a segment that was opened since.
            if record.open_segment.index == before.open_segment.index:
                return record, Committed(record.open_segment.index, tail)

    async def offload(
        self,
        record: LogRecord,
        known: Committed,
        upto: Offset,
        *,
        told: Told = go_on,
    ) -> LogRecord:
        """Archive all below `upto`, which is `known` to be committed; the log's record then.

        Raises:
            InvalidArgument: there is no archive. What `Offloader.step` raises, but for conflicts.

        **Cancellation:** safe at any moment.
        """
        if self._archive is None:
            raise InvalidArgument("the cluster has no archive: set [archive] url on all nodes")
        chain = self._chain(record)
        conflicts = 0
        while True:
            began_s = self._clock.monotonic_s()
            try:
                step = await self._archive.offloader.step(
                    chain,
                    Committed(known.segment_index, upto),
                    self._reader(record.name),
                    bytes_max=self._object_bytes,
                )
            except ManifestConflict as error:
                conflicts += 1
                if conflicts >= CONFLICTS_MAX:
                    raise _contended(record) from error
                continue
            conflicts = 0
            if step.made is not None:
                self._count(step.made, self._clock.monotonic_s() - began_s)
            if step.made is None or not await told(step):
                return step.record

    async def catch_up(self, record: LogRecord) -> None:
        """Have the chain tell of all that is archived, also of what its writer could not tell.

        Raises:
            ManifestCorrupt: a person must act. ArchiveUnavailable: nobody knows. LogNotFound,
            MetadataUnavailable.

        **Cancellation:** safe at any moment.
        """
        if self._archive is not None:
            await self._archive.offloader.catch_up(self._chain(record))

    async def trim_point(self, record: LogRecord, known: Committed, below: Offset) -> Offset:
        """How far a trim below `below` would go; it may write a checkpoint, this does not.

        Raises:
            InvalidArgument: as for `trim`.

        **Cancellation:** ends the wait.
        """
        self._check_trim(record, min(below, known.tail))
        last = await self._last_batch(record.name, known.tail)
        return min(below, known.tail, Offset(0 if last is None else last.first))

    async def trim(
        self, record: LogRecord, known: Committed, below: Offset, *, told: Told = go_on
    ) -> Trimmed:
        """Have log servers keep nothing below `below`, or as near to it as may be.

        Raises:
            InvalidArgument: it is not archived, and there is no archive. ManifestBehind: the
            archive has lost some of it. What `offload` raises.

        **Cancellation:** safe at any moment.
        """
        self._check_trim(record, min(below, known.tail))
        known, needed = await self._needed(record, known, below)
        below = min(below, needed, known.tail)
        if below > max(record.archived_end, record.start):
            record = await self.offload(record, known, below, told=told)
        elif self._archive is not None and below > max(record.trimmed, record.start):
            # What log servers drop is in the archive alone.
            await self._archive.offloader.check(self._chain(record))
        record, _ = await set_trimmed(
            self._store, record.name, record.log_id, below, nonce=self._new_id()
        )
        return await self._tell(record, min(record.trimmed, needed))

    def _check_trim(self, record: LogRecord, below: Offset) -> None:
        kept = max(record.archived_end, record.start)
        if self._archive is None and below > kept:
            raise InvalidArgument(
                f"log {record.name} can't be trimmed up to {below}: the cluster has no archive for "
                f"what lies from {kept} on; `sharedlog log purge` drops records for ever"
            )

    async def purge(self, record: LogRecord, known: Committed, below: Offset) -> Forgotten:
        """Forget what lies below `below` for ever.

        Nobody reads it any more when this returns. That log servers and the archive still have some
        of it is no failure: the answer says so, and it goes later.

        Raises:
            InvalidArgument: not all of it is committed. LogUnavailable: another node has to do it.
            LogNotFound, MetadataUnavailable. What `committed` raises.

        **Cancellation:** it may be done in part; do it again.
        """
        start_before = record.start
        known, needed = await self._needed(record, known, below, purge=True)
        record, _ = await set_purged(
            self._store,
            record.name,
            record.log_id,
            below,
            nonce=self._new_id(),
            committed=known,
        )
        changed: tuple[Manifest, Manifest] | None = None
        dropped, left = Dropped(), ""
        try:
            changed = await self._purge_manifest(record)
        except SharedLogError as error:
            left = str(error)
        told = await self._tell(record, min(record.trimmed, needed))
        if self._archive is not None and changed is not None:
            try:
                dropped = await self._archive.cleaner.clean(*changed)
            except SharedLogError as error:
                left = str(error)
        if left:
            log.warning("archive.purge_incomplete", extra={"log": record.name, "error": left})
        return Forgotten(
            record=record,
            start_before=start_before,
            waiting=told.waiting,
            dropped=dropped,
            left=left,
        )

    async def would_drop(self, record: LogRecord, below: Offset) -> Dropped:
        """What a purge below `below` would delete in the archive.

        Raises:
            ManifestCorrupt, ObjectNotFound, ArchiveUnavailable.
        """
        if self._archive is None:
            return Dropped()
        loaded = await self._archive.manifests.load(record.log_id)
        if loaded is None:
            return Dropped()
        return await self._archive.cleaner.would_drop(loaded.manifest, below)

    async def _purge_manifest(self, record: LogRecord) -> tuple[Manifest, Manifest] | None:
        """Have the manifest start where the log does: before and after; None if there is none."""
        if self._archive is None:
            return None
        before = await self._archive.manifests.load(record.log_id)
        if before is None and record.archived_end == 0:
            return None
        for _ in range(CONFLICTS_MAX):
            try:
                now = await self._archive.offloader.purge(self._chain(record))
            except ManifestConflict:
                continue
            return (now if before is None else before.manifest), now
        raise _contended(record)

    async def tell(self, record: LogRecord, known: Committed) -> Trimmed:
        """Tell the log servers again how far the log is trimmed: some may not have heard.

        **Cancellation:** safe at any moment.
        """
        _, needed = await self._needed(record, known, record.trimmed)
        return await self._tell(record, min(record.trimmed, needed))

    async def _tell(self, record: LogRecord, below: Offset) -> Trimmed:
        waiting = await self._trimmer.trim(record, below, since=Offset(0))
        return Trimmed(record=record, below=below, waiting=waiting)

    async def _needed(
        self, record: LogRecord, known: Committed, below: Offset, *, purge: bool = False
    ) -> tuple[Committed, Offset]:
        """From where on log servers must keep the log for the next sequencer, and its tail then.

        If that is below `below` for the log's state alone, the state is written once more. With
        `purge` it has to be if it is in the archive alone, as that of a fork is that has nothing of
        its own yet.
        """
        last = await self._last_batch(record.name, known.tail)
        needed = _needed_from(last)
        if last is None:
            return known, needed
        is_lost = purge and _is_state_archived(record, last, below)
        if needed >= min(below, last.first) and not is_lost:
            return known, needed
        if not await self._checkpoint(record):
            if is_lost:
                raise LogUnavailable(
                    f"log {record.name} has no records of its own yet, and its fencing token and "
                    f"producers would go with what lies below {below}: append to it first, or ask "
                    f"node {record.open_segment.sequencer.node_id}, which orders it"
                )
            return known, needed
        now, known = await self.committed(record.name)
        if now.log_id != record.log_id:
            raise LogNotFound(name=record.name)
        return known, _needed_from(await self._last_batch(record.name, known.tail))

    async def _last_batch(self, name: str, tail: Offset) -> Placement | None:
        """The last batch below `tail`, which is committed; None if all was lost or purged."""
        reader = LogReader(
            self._transport,
            _untrimmed(describer(self._view, name)),
            self._clock,
            self._random,
            verify=parse_placement,
            headers_only=True,
        )
        while tail > 0:
            try:
                async with aclosing(reader.read(Offset(tail - 1), tail, committed=tail)) as chunks:
                    async for chunk in chunks:
                        if chunk.placements:
                            return chunk.placements[-1]
            except Purged:
                return None
            except DataLoss:
                record, _ = await self._view.fetch_log(name)
                lost = [it for segment in record.chain for it in segment.lost]
                here = [it.first for it in lost if it.first < tail <= it.end]
                if not here:
                    raise
                tail = min(here)
        return None

    def _count(self, made: ObjectEntry, seconds: float) -> None:
        metrics = self._metrics
        metrics.objects.inc()
        metrics.written_bytes.inc(made.size)
        metrics.written_records.inc(made.records)
        metrics.object_seconds.observe(seconds)

    def _reader(self, name: str) -> Callable[[Offset, Offset], AsyncGenerator[ReadChunk, None]]:
        """From this node's own log server if it can: that takes no network, and no copy."""
        reader = LogReader(
            self._transport,
            describer(self._view, name),
            self._clock,
            self._random,
            prefer=self._own_storage,
        )
        return lambda start, end: reader.read(start, end, committed=end)

    def _chain(self, record: LogRecord) -> StoredChain:
        return StoredChain(self._store, record.name, record.log_id, new_id=self._new_id)


def _needed_from(last: Placement | None) -> Offset:
    """From here on log servers must keep a log whose last batch this is."""
    if last is None:
        return Offset(0)
    if last.state_from == last.state_until:
        return Offset(last.first)
    return Offset(min(last.first, last.state_from))


def _is_state_archived(record: LogRecord, last: Placement, below: Offset) -> bool:
    """The log has a state, which no log server has, and some of it lies below `below`."""
    has_own = last.end > archived_until(record.chain)
    return not has_own and last.state_from < min(below, last.state_until)


def _untrimmed(describe: Describe) -> Describe:
    """For what log servers always keep, even of a log that was purged up to its tail."""

    async def described(
        position: Offset, *, refresh: bool = False, min_version: int = 0
    ) -> types_pb2.LogDescription:
        found = await describe(position, refresh=refresh, min_version=min_version)
        found.start = found.trimmed = 0
        return found

    return described


def _contended(record: LogRecord) -> ArchiveUnavailable:
    return ArchiveUnavailable(f"log {record.name} is archived by others at the same time")
