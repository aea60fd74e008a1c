"""Moves the committed prefix of a log into the archive, one object after the other.

**Order** (DESIGN.md §9). Each step is safe to repeat, and what a crash leaves behind at any of them
is either nothing or an orphan:

    1. upload an object of batches from the manifest's end on, committed ones alone
    2. verify what the store has by reading all of it back
    3. swap the manifest for one that names it
    4. raise the chain's `archived_end`

The manifest is the truth; `archived_end` in the chain is what everybody else knows of it, and is
never ahead: a chain that is tells of a manifest that was lost, and then nothing is archived upon
what is left (`ManifestBehind`). A manifest that is ahead tells of somebody who stopped between 3
and 4; the next attempt begins with 4. Log servers drop nothing above `archived_end`.

**What was committed** stays in the log, but for a loss that an operator accepts: then a segment may
end below what an object has that the chain does not know of yet, and the log gives those offsets a
second time. So a manifest says in which segment it was ahead, and one that the chain contradicts is
never followed (`ManifestCorrupt`).

**Two at once** write two objects for the same range, and one swap wins. The other finds that, and
its object is an orphan: whoever swapped in vain never deletes it, for it can't always tell
(field note 48).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Protocol

from loglet.archive.errors import ManifestBehind, ManifestCorrupt
from loglet.archive.layout import manifest_key
from loglet.archive.manifest import (
    LogSettings,
    Manifest,
    ObjectEntry,
    extended,
    new_manifest,
    purged,
)
from loglet.archive.manifests import Loaded, Manifests
from loglet.archive.writer import ObjectWriter, ReadCommitted, Wanted
from metadata.archive_rules import Committed, committed_end
from metadata.records import LogRecord, LostRange
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset

log = logging.getLogger(__name__)

_CONFLICTS_MAX = 10


class Chain(Protocol):
    """A log's record in the metadata store."""

    async def fetch(self) -> LogRecord:
        """As it is now.

        Raises:
            LogNotFound: the log is gone, or is another one by now. MetadataUnavailable.
        """
        ...

    async def set_archived_end(self, known: Committed) -> LogRecord:
        """Raise it to `known.tail`, unless it is there already; the record as it is then.

        Raises:
            As `fetch`. InvalidArgument: not all of that is in the log, for the segment ended below.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step has done."""

    manifest: Manifest
    record: LogRecord  # its `archived_end` is the manifest's end
    made: ObjectEntry | None  # None: all was archived already


class Offloader:
    """See the module's docstring; one object serves all logs of a node."""

    def __init__(self, manifests: Manifests, writer: ObjectWriter) -> None:
        self._manifests = manifests
        self._writer = writer

    async def step(
        self, chain: Chain, known: Committed, read: ReadCommitted, *, bytes_max: int
    ) -> Step:
        """Archive one object of what lies below `known.tail`, the whole way to the chain.

        All of that is committed, and `read` reads it. If the segment has ended below meanwhile,
        only what lies below its end is archived.

        Raises:
            ManifestBehind, ManifestCorrupt: a person must act. CorruptObject: the store has not
            what was uploaded. ArchiveUnavailable, MetadataUnavailable, ManifestConflict: try again.
            What `read` raises. Nothing is lost in any case, and nothing is done twice by a repeat.

        **Cancellation:** safe at any moment, likewise.
        """
        record = await chain.fetch()
        loaded = await self._current(record)
        if loaded.manifest.end > record.archived_end:
            record = await self._catch_up(chain, loaded.manifest, record)
        loaded = await self._manifests.make_room(loaded)
        committed = min(known.tail, committed_end(record, known))
        if committed <= loaded.manifest.end:
            return Step(manifest=loaded.manifest, record=record, made=None)
        lost = [it for segment in record.chain for it in segment.lost]
        entry = await self._writer.write(
            Wanted(
                cluster_id=self._manifests.cluster_id,
                log_id=record.log_id,
                first=loaded.manifest.end,
                end=committed,
                lost=lost,
                bytes_max=bytes_max,
            ),
            read,
        )
        loaded = await self._name(loaded, record, entry, lost)
        record = await self._catch_up(chain, loaded.manifest, record)
        return Step(manifest=loaded.manifest, record=record, made=entry)

    async def catch_up(self, chain: Chain) -> LogRecord:
        """Have the chain tell of all that is archived; the record as it is then.

        Raises:
            As `step`.
        """
        record = await chain.fetch()
        loaded = await self._manifests.load(record.log_id)
        if loaded is None or loaded.manifest.end <= record.archived_end:
            return record
        return await self._catch_up(chain, loaded.manifest, record)

    async def check(self, chain: Chain) -> None:
        """Make sure that the manifest has all that the chain says is archived.

        Raises:
            ManifestBehind: it has not. ManifestCorrupt. ArchiveUnavailable, MetadataUnavailable:
            nobody knows.
        """
        record = await chain.fetch()
        self._check_end(await self._manifests.load(record.log_id), record)

    async def purge(self, chain: Chain) -> Manifest:
        """Have the manifest start where the log does; the manifest then.

        Raises:
            As `step`.
        """
        return (await self._current(await chain.fetch())).manifest

    async def _catch_up(self, chain: Chain, manifest: Manifest, record: LogRecord) -> LogRecord:
        """Raise the chain's `archived_end` to the manifest's."""
        try:
            return await chain.set_archived_end(Committed(manifest.segment, manifest.end))
        except InvalidArgument as error:
            raise ManifestCorrupt(
                f"it names offsets up to {manifest.end}, archived when segment {manifest.segment} "
                f"was open, and not all of them are in the log: {error}",
                key=manifest_key(self._manifests.cluster_id, record.log_id),
            ) from error

    async def _current(self, record: LogRecord) -> Loaded:
        """The manifest, made if there is none, purged up to the log's start."""
        loaded = await self._manifests.load(record.log_id)
        self._check_end(loaded, record)
        if loaded is None:
            made = new_manifest(
                self._manifests.cluster_id,
                record.log_id,
                settings_of(record),
                record.start,
                self._manifests.write(),
            )
            return await self._manifests.replace(None, made)
        if loaded.manifest.start < record.start:
            # Nobody reads below the start any more. Who purges deletes the objects, or a sweep.
            write = self._manifests.write()
            return await self._manifests.replace(
                loaded, purged(loaded.manifest, record.start, write)
            )
        return loaded

    def _check_end(self, loaded: Loaded | None, record: LogRecord) -> None:
        end = Offset(0) if loaded is None else loaded.manifest.end
        if end < record.archived_end:
            key = manifest_key(self._manifests.cluster_id, record.log_id)
            raise ManifestBehind(key=key, end=end, archived_end=record.archived_end)

    async def _name(
        self, loaded: Loaded, record: LogRecord, entry: ObjectEntry, lost: list[LostRange]
    ) -> Loaded:
        """Name a verified object in the manifest that it was made upon."""
        within = [it for it in lost if entry.first <= it.first < entry.end]
        segment = record.open_segment.index
        write = self._manifests.write()
        manifest = extended(loaded.manifest, entry, within, write, segment=segment)
        return await self._manifests.replace(
            loaded, replace(manifest, settings=settings_of(record))
        )


def settings_of(record: LogRecord) -> LogSettings:
    """What a manifest keeps of a log's settings."""
    return LogSettings(
        name=record.name,
        replicas=record.replicas,
        write_quorum=record.write_quorum,
        spread=record.spread,
    )
