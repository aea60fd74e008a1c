"""Logs that begin with archived history: forked from a log, or restored from the archive.

Both make a new log whose manifest names the objects of another one; nothing is copied. Of the log
that is restored only the manifest is needed, in whatever cluster it was.

**Order.** Everything is named by the new log's id, which follows from the request (`new_log_id`):
a repeated request goes on where the one before has stopped, at whatever step.

 1. A fork only: what lies below the fork is archived, if it is not yet.
 2. All whose objects are to be named get the new log's directory among their `forks`, each by
    compare-and-swap, the origin last. From then on nobody deletes an object of theirs without
    asking the new log's manifest; while that is not there, an empty one is put in its place first,
    and then this begins anew. The origin's swap proves besides that what was read of its manifest
    still holds.
 3. The new log's manifest is written, once, where none is, or an empty one.
 4. The log's record is created, with what that manifest says.

Who stops before 4 leaves a directory with at most a manifest behind, and the name is free.

**The cut.** A log can be forked at the end of any batch. An offset within a batch would leave half
of it in the new log, and the whole is what has the checksum; so the fork moves down to where that
batch begins, and the answer says where it is.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, Protocol

from loglet.archive.layout import (
    ManifestPlace,
    directory_of,
    parse_directory,
    parse_manifest_key,
)
from loglet.archive.manifest import (
    Cut,
    LogSettings,
    Manifest,
    ObjectEntry,
    PageEntry,
    cut_pages,
    forked,
    new_manifest,
    with_fork,
)
from loglet.archive.manifests import Loaded, ManifestConflict, Manifests, Prove, taken_as_proven
from loglet.archive.object_format import block_at
from loglet.archive.object_store import ObjectStore
from metadata.archive_rules import Committed
from metadata.core import check_log_name
from metadata.history_rules import ArchivedHistory
from metadata.namespaces import Asked
from metadata.records import LogRecord, NodeRecord
from metadata.registry import fetch_log
from metadata.store import MetadataStore, Version
from node.archive.objects import ArchivedObjects
from sharedlog.batch import parse_placement
from sharedlog.clock import Clock
from sharedlog.errors import ArchiveUnavailable, InvalidArgument, LogExists, LogNotFound
from sharedlog.ids import LogId, Offset

log = logging.getLogger("node")

CONFLICTS_MAX: Final = 10
"""Swaps of one manifest that are lost in a row before it is given up: somebody archives the log."""

FORKS_MAX: Final = 1_000
"""Logs that name objects of one other: each stands in a manifest that is written as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A log that begins with archived history."""

    record: LogRecord
    version: Version
    start: Offset  # of the history
    end: Offset  # where the log goes on
    is_new: bool  # False: an earlier request has made it


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedCluster:
    """What the archive has of a cluster."""

    cluster_id: str
    logs: int


class Offloading(Protocol):
    """What `History` does for a fork; see there."""

    async def committed(self, name: str) -> tuple[LogRecord, Committed]:
        """The log, and its tail."""
        ...

    async def offload(self, record: LogRecord, known: Committed, upto: Offset) -> LogRecord:
        """Archive all below `upto`; the log's record then."""
        ...


class Making(Protocol):
    """What `LogMaker` does for a fork; see there."""

    async def create(
        self, name: str, asked: Asked, *, nonce: str, log_id: LogId, history: ArchivedHistory
    ) -> tuple[LogRecord, Version, Sequence[NodeRecord]]:
        """Make the log, or find it made."""
        ...


class Forks:
    """See the module's docstring. One object serves all requests of a node."""

    def __init__(
        self,
        *,
        cluster_id: str,
        store: MetadataStore,
        objects: ObjectStore,
        archived: ArchivedObjects,
        history: Offloading,
        maker: Making,
        clock: Clock,
        new_id: Callable[[], str],
        prove: Prove = taken_as_proven,
    ) -> None:
        self._prove = prove
        self._cluster_id = cluster_id
        self._store = store
        self._objects = objects
        self._archived = archived
        self._history = history
        self._maker = maker
        self._clock = clock
        self._new_id = new_id

    async def fork(
        self, name: str, new_name: str, at: Offset | None, asked: Asked, *, nonce: str
    ) -> Made:
        """A new log with what lies below `at`, or below the tail, in log `name`.

        The log may begin below `at`, where a batch lies across that: see the module's docstring.

        Raises:
            InvalidLogName, LogNotFound, LogExists. InvalidArgument: nothing of the log lies below
            `at`, or not all of that is committed. What `History.offload` and `LogMaker.create`
            raise: the same request can be made again.

        **Cancellation:** it may be done in part; the same request goes on there.
        """
        found = await self.find(new_name, nonce)
        if found is not None:
            return found
        record, known = await self._history.committed(name)
        if at is None:
            at = known.tail
        if at > known.tail:
            raise InvalidArgument(f"log {name} ends at {known.tail}: it can't be forked at {at}")
        if at <= record.start:
            raise InvalidArgument(f"log {name} begins at {record.start}: nothing lies below {at}")
        if at > record.archived_end:
            record = await self._history.offload(record, known, known.tail)
        wanted = LogSettings(
            name=new_name,
            replicas=asked.replicas or record.replicas,
            write_quorum=asked.write_quorum or (0 if asked.replicas else record.write_quorum),
            spread=record.spread if asked.spread is None else asked.spread,
        )
        origin = ManifestPlace(self._cluster_id, record.log_id)
        return await self._make(origin, wanted, at, nonce)

    async def restore(self, origin: Manifest, new_name: str, asked: Asked) -> Made:
        """A new log with all that `origin` names.

        Raises:
            As `fork`.

        **Cancellation:** as for `fork`.
        """
        nonce = restore_nonce(origin)
        found = await self.find(new_name, nonce)
        if found is not None:
            return found
        settings = origin.settings
        wanted = LogSettings(
            name=new_name,
            replicas=asked.replicas or settings.replicas,
            write_quorum=asked.write_quorum or (0 if asked.replicas else settings.write_quorum),
            spread=settings.spread if asked.spread is None else asked.spread,
        )
        return await self._make(
            ManifestPlace(origin.cluster_id, origin.log_id), wanted, None, nonce
        )

    async def find(self, name: str, nonce: str) -> Made | None:
        """The log of that name, if it was made by the same request; None if the name is free.

        Raises:
            LogExists: it was made otherwise. InvalidLogName, MetadataUnavailable.
        """
        check_log_name(name)
        try:
            record, version = await fetch_log(self._store, name)
        except LogNotFound:
            return None
        if record.create_nonce != nonce:
            raise LogExists(name=name)
        return _made(record, version, is_new=False)

    async def clusters(self) -> list[ArchivedCluster]:
        """The clusters of which the archive has logs.

        Raises:
            ArchiveUnavailable.

        **Cancellation:** safe.
        """
        counts: dict[str, int] = {}
        async for info in self._objects.list(""):
            place = parse_manifest_key(info.key)
            if place is not None:
                counts[place.cluster_id] = counts.get(place.cluster_id, 0) + 1
        return [ArchivedCluster(cluster_id=it, logs=counts[it]) for it in sorted(counts)]

    async def places(self, cluster_id: str) -> AsyncGenerator[ManifestPlace, None]:
        """Where there are manifests of a cluster, in the order of the logs' ids.

        Raises:
            ArchiveUnavailable.

        **Cancellation:** safe.
        """
        async for info in self._objects.list(f"{cluster_id}/"):
            place = parse_manifest_key(info.key)
            if place is not None and place.cluster_id == cluster_id:
                yield place

    async def manifest(self, place: ManifestPlace) -> Manifest:
        """The one that is there.

        Raises:
            InvalidArgument: there is none. ManifestCorrupt, ArchiveUnavailable.

        **Cancellation:** safe.
        """
        return (await self._origin(place)).manifest

    # ------------------------------------------------------------------ the steps

    async def _make(
        self, origin: ManifestPlace, wanted: LogSettings, at: Offset | None, nonce: str
    ) -> Made:
        log_id = new_log_id(self._cluster_id, wanted.name, nonce)
        manifest = await self._manifest(origin, wanted, at, log_id)
        record, version, _ = await self._maker.create(
            wanted.name,
            Asked(
                replicas=wanted.replicas,
                write_quorum=wanted.write_quorum or None,
                spread=wanted.spread,
            ),
            nonce=nonce,
            log_id=log_id,
            history=history_of(manifest),
        )
        if record.log_id != log_id:
            raise LogExists(name=wanted.name)
        fields = {"log": wanted.name, "origin": directory_of(*origin), "end": manifest.end}
        log.info("log.forked", extra=fields)
        return _made(record, version, is_new=True)

    async def _manifest(
        self, origin: ManifestPlace, wanted: LogSettings, at: Offset | None, log_id: LogId
    ) -> Manifest:
        """The new log's manifest, written by now."""
        manifests = self._of(self._cluster_id)
        directory = directory_of(self._cluster_id, log_id)
        for _ in range(CONFLICTS_MAX):
            written = await manifests.load(log_id)
            if written is not None and not written.manifest.is_held:
                return written.manifest
            found = await self._origin(origin)
            _check_room(found.manifest, directory)
            cut = await self._cut(found.manifest, at)
            entries = await self._entries(found.manifest, cut.end)
            for other in found.manifest.origins:
                await self._register(other, directory)
            empty = new_manifest(self._cluster_id, log_id, wanted, Offset(0), manifests.write())
            try:
                await self._replace(found, with_fork(found.manifest, directory, manifests.write()))
                made = await manifests.replace(written, forked(found.manifest, cut, entries, empty))
            except ManifestConflict:
                continue
            return made.manifest
        raise ArchiveUnavailable(f"the manifest of {directory_of(*origin)} changes all the time")

    async def _origin(self, origin: ManifestPlace) -> Loaded:
        found = await self._of(origin.cluster_id).load(origin.log_id)
        if found is None:
            raise InvalidArgument(f"the archive has no manifest of {directory_of(*origin)}")
        return found

    async def _register(self, owner: str, directory: str) -> None:
        """Have the log in directory `owner` say that its objects are named in `directory` too."""
        place = parse_directory(owner)
        assert place is not None, f"{owner} was written by `directory_of`"
        for _ in range(CONFLICTS_MAX):
            found = await self._of(place.cluster_id).load(place.log_id)
            if found is None:
                # Then nobody purges it. Its objects may be there all the same: a read shows that.
                log.warning("fork.origin_missing", extra={"origin": owner, "fork": directory})
                return
            _check_room(found.manifest, directory)
            try:
                write = self._of(place.cluster_id).write()
                await self._replace(found, with_fork(found.manifest, directory, write))
            except ManifestConflict:
                continue
            return
        raise ArchiveUnavailable(f"the manifest of {owner} changes all the time")

    async def _replace(self, found: Loaded, manifest: Manifest) -> None:
        if manifest is not found.manifest:
            await self._of(manifest.cluster_id).replace(found, manifest)

    async def _entries(self, manifest: Manifest, end: Offset) -> list[ObjectEntry]:
        """Those behind the pages that lie below `end`."""
        _, across = cut_pages(manifest, end)
        if across is None:
            return list(manifest.entries)
        return list(await self._of(manifest.cluster_id).page(across.key))

    async def _cut(self, manifest: Manifest, at: Offset | None) -> Cut:
        """Where a history that is to end at `at` ends: at the end of a batch.

        Raises:
            InvalidArgument: nothing lies below. CorruptObject, ObjectNotFound, ArchiveUnavailable.
        """
        if at is None or at == manifest.end:
            return Cut(manifest.end, last_ms_of(manifest))
        if not manifest.start < at < manifest.end:
            raise InvalidArgument(
                f"[{manifest.start}, {manifest.end}) is archived: no fork of that ends at {at}"
            )
        entry = await self._archived.entry_at(manifest, Offset(at - 1))
        assert entry is not None, "a manifest has no gaps"
        opened = await self._archived.open(entry)
        number = block_at(opened.blocks, Offset(at - 1))
        if number == len(opened.blocks) or opened.blocks[number].first >= at:
            # The loss of what lies there was accepted.
            return Cut(at, opened.blocks[number - 1].last_ms if number > 0 else entry.first_ms)
        placements = [parse_placement(it) for it in await self._archived.block(opened, number)]
        last = next(it for it in reversed(placements) if it.first < at)
        if last.end > at and last.first <= manifest.start:
            raise InvalidArgument(f"{at} lies within the log's first batch: nothing ends below")
        if last.end > at:
            return await self._cut(manifest, last.first)
        return Cut(at, last.timestamp_ms)

    def _of(self, cluster_id: str) -> Manifests:
        return Manifests(
            self._objects,
            cluster_id=cluster_id,
            clock=self._clock,
            new_id=self._new_id,
            prove=self._prove,
        )


def new_log_id(cluster_id: str, name: str, nonce: str) -> LogId:
    """The id of the log that a request makes, however often it is made."""
    digest = blake2b(f"{cluster_id}\n{name}\n{nonce}".encode(), digest_size=8).digest()
    return LogId(int.from_bytes(digest, "big"))


def restore_nonce(origin: Manifest) -> str:
    """A log is restored once under each name."""
    return f"restored {directory_of(origin.cluster_id, origin.log_id)}"


def last_ms_of(manifest: Manifest) -> int:
    """Of the last batch that it names; 0 if it names none."""
    parts: tuple[PageEntry | ObjectEntry, ...] = (*manifest.pages, *manifest.entries)
    return parts[-1].last_ms if parts else 0


def history_of(manifest: Manifest) -> ArchivedHistory:
    """What a log of this manifest begins with."""
    return ArchivedHistory(
        start=manifest.start,
        end=manifest.end,
        last_ms=last_ms_of(manifest),
        lost=manifest.lost,
    )


def _check_room(manifest: Manifest, directory: str) -> None:
    if len(manifest.forks) >= FORKS_MAX and directory not in manifest.forks:
        raise InvalidArgument(
            f"the objects of log {manifest.settings.name} are shared by {FORKS_MAX} others already"
        )


def _made(record: LogRecord, version: Version, *, is_new: bool) -> Made:
    end = record.chain[0].end if record.chain[0].is_archived else None
    return Made(
        record=record,
        version=version,
        start=record.start,
        end=Offset(0) if end is None else end,
        is_new=is_new,
    )
