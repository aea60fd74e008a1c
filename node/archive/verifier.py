"""Whether the archive has what a log's manifest names: all of it there, whole, and adjoining.

Reads only. A finding is something that a person must see to; that the archive does not answer is
none, and ends the verification with the error.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from loglet.archive.errors import CorruptObject, ManifestCorrupt
from loglet.archive.examine import examine, read_blocks
from loglet.archive.layout import log_prefix, manifest_key
from loglet.archive.manifest import Manifest, ObjectEntry, PageEntry
from loglet.archive.manifests import Manifests
from loglet.archive.object_reads import TAIL_BYTES
from loglet.archive.object_store import ObjectStore
from metadata.records import LogRecord
from node.peers import in_parallel
from sharedlog.errors import ObjectNotFound, SharedLogError
from sharedlog.ids import Offset

OBJECTS_AT_ONCE: Final = 16
WHOLE_AT_ONCE: Final = 2
"""Objects that are read whole at the same time."""

MISSING: Final = "missing"
SIZE: Final = "size"
DAMAGED: Final = "damaged"
MISPLACED: Final = "misplaced"


class Finding(NamedTuple):
    """Something that is wrong."""

    key: str
    first: Offset
    end: Offset
    kind: str
    message: str


@dataclass(slots=True)
class Verified:
    """How far a verification is, and what the last step has found."""

    done: int = 0  # objects and pages
    total: int = 0
    size: int = 0  # bytes that were read
    findings: list[Finding] = field(default_factory=list)


class Verifier:
    """See the module's docstring."""

    def __init__(self, store: ObjectStore, manifests: Manifests) -> None:
        self._store = store
        self._manifests = manifests

    async def verify(self, record: LogRecord, *, full: bool) -> AsyncGenerator[Verified, None]:
        """Look at all that the log's manifest names; `full`: at every byte of it.

        Raises:
            ArchiveUnavailable, ArchiveUnsuitable.

        **Cancellation:** ends it.
        """
        state = Verified()
        manifest = await self._manifest(record, state)
        if manifest is None:
            yield state
            return
        state.total = len(manifest.pages) + len(manifest.entries)
        state.total += sum(page.objects for page in manifest.pages)
        yield state
        for page in manifest.pages:
            state.findings = []
            entries = await self._page(page, state)
            yield state
            async with aclosing(self._objects(manifest, entries, state, full=full)) as steps:
                async for step in steps:
                    yield step
        async with aclosing(self._objects(manifest, manifest.entries, state, full=full)) as steps:
            async for step in steps:
                yield step

    async def _manifest(self, record: LogRecord, state: Verified) -> Manifest | None:
        """The log's, if it can be read; whether it is what the chain says is found as well."""
        key = manifest_key(self._manifests.cluster_id, record.log_id)
        try:
            loaded = await self._manifests.load(record.log_id)
        except ManifestCorrupt as error:
            told = Finding(key, record.start, record.archived_end, DAMAGED, str(error))
            state.findings.append(told)
            return None
        manifest = None if loaded is None else loaded.manifest
        if manifest is None and record.archived_end == 0:
            return None
        end = Offset(0) if manifest is None else manifest.end
        if end < record.archived_end:
            text = f"the manifest ends at {end}, the chain says {record.archived_end} is archived"
            kind = MISSING if manifest is None else MISPLACED
            state.findings.append(Finding(key, end, record.archived_end, kind, text))
        if manifest is not None and manifest.start > record.start:
            text = f"the manifest starts at {manifest.start}, the log at {record.start}"
            told = Finding(key, record.start, manifest.start, MISPLACED, text)
            state.findings.append(told)
        return manifest

    async def _page(self, page: PageEntry, state: Verified) -> Sequence[ObjectEntry]:
        state.done += 1

        def wrong(kind: str, message: str) -> None:
            state.findings.append(Finding(page.key, page.first, page.end, kind, message))

        try:
            entries = await self._manifests.page(page.key)
        except ObjectNotFound:
            state.done += page.objects
            wrong(MISSING, f"the page of {page.objects} objects is not there")
            return ()
        except ManifestCorrupt as error:
            state.done += page.objects
            wrong(DAMAGED, str(error))
            return ()
        adjoin = all(before.end == after.first for before, after in pairwise(entries))
        if (
            not entries
            or not adjoin
            or ((entries[0].first, entries[-1].end) != (page.first, page.end))
        ):
            wrong(MISPLACED, "its objects do not adjoin, or cover another range")
        return entries

    async def _objects(
        self, manifest: Manifest, entries: Sequence[ObjectEntry], state: Verified, *, full: bool
    ) -> AsyncGenerator[Verified, None]:
        own = log_prefix(manifest.cluster_id, manifest.log_id)

        async def check(entry: ObjectEntry) -> tuple[int, Finding | None] | SharedLogError:
            try:
                return await self._object(entry, is_own=entry.key.startswith(own), full=full)
            except SharedLogError as error:
                return error

        at_once = WHOLE_AT_ONCE if full else OBJECTS_AT_ONCE
        for at in range(0, len(entries), at_once):
            part = entries[at : at + at_once]
            # What was purged is there no more.
            checked = await in_parallel(check, [it for it in part if it.end > manifest.start])
            state.done += len(part)
            state.findings = []
            for result in checked:
                if isinstance(result, SharedLogError):
                    raise result
                state.size += result[0]
                if result[1] is not None:
                    state.findings.append(result[1])
            yield state

    async def _object(
        self, entry: ObjectEntry, *, is_own: bool, full: bool
    ) -> tuple[int, Finding | None]:
        """Bytes that were read, and what is wrong."""

        def wrong(kind: str, message: str) -> Finding:
            return Finding(entry.key, entry.first, entry.end, kind, message)

        size = 0
        try:
            found = await examine(self._store, entry.key)
            size = min(TAIL_BYTES, found.size)
            if found.size != entry.size:
                text = f"it has {found.size} bytes, {entry.size} by the manifest"
                return size, wrong(SIZE, text)
            if not found.footer.holds(entry.first, entry.end, entry.records, is_own=is_own):
                text = f"by its footer it holds {found.footer.range_text}"
                return size, wrong(MISPLACED, text)
            if full:
                async with aclosing(read_blocks(self._store, entry.key, found.blocks)) as blocks:
                    async for block, _ in blocks:
                        size += block.size
        except ObjectNotFound:
            return size, wrong(MISSING, "the object is not there")
        except CorruptObject as error:
            return size, wrong(DAMAGED, str(error))
        return size, None
