"""Deletes objects that nobody needs: those a purge let go, and those that nobody ever named.

An object may be deleted once no manifest names it and none ever will. Three things make that sure,
and where one of them is not known nothing is deleted:

* **The log's own manifest** names it no more, or never did. An object that is uploaded and not
  named yet belongs to somebody who is about to swap the manifest. So a sweep lists first, and then
  writes the manifest once more, as it is: who uploaded before that had read an older one, and its
  swap can only fail now. What is found in a listing is never a reason to delete, and neither is
  what is not found there (field note 48).
* **Forks.** A fork's manifest names objects of the log that it was made of, and enters itself in
  that log's manifest first. All of them are read, and their forks. One that can't be read keeps
  everything. One that is not there yet, and may never be, names nothing; whoever is making it
  must find out that something was deleted. So after all others were read an empty one is put in
  its place (`manifest.held`), which fails what is being made and has it look again.
* **The grace time** of a sweep keeps what is young, beyond need: an operator may look at it.

Objects of other logs' directories are never deleted: they belong to those.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Final

from loglet.archive.errors import ManifestBehind
from loglet.archive.layout import (
    directory_of,
    is_page_key,
    log_prefix,
    manifest_key,
    parse_directory,
    parse_object_key,
)
from loglet.archive.manifest import Manifest, ObjectEntry, PageEntry, held, purged
from loglet.archive.manifests import Loaded, ManifestConflict, Manifests
from loglet.archive.object_store import ObjectInfo, ObjectStore
from metadata.records import LogRecord
from sharedlog.clock import Clock
from sharedlog.errors import ArchiveUnavailable
from sharedlog.ids import Offset

DELETED_AT_ONCE: Final = 500
CONFLICTS_MAX: Final = 10


@dataclass(slots=True)
class Dropped:
    """What a purge lets go, or has let go."""

    objects: list[ObjectEntry] = field(default_factory=list)
    pages: list[PageEntry] = field(default_factory=list)

    @property
    def keys(self) -> list[str]:
        """Of all of it."""
        return [*(it.key for it in self.objects), *(it.key for it in self.pages)]

    @property
    def size(self) -> int:
        """Bytes, without pages."""
        return sum(it.size for it in self.objects)


@dataclass(slots=True)
class Swept:
    """One step of a sweep."""

    listed: int = 0  # in this step
    young: int = 0  # in this step: not named, and too young
    objects: list[ObjectInfo] = field(default_factory=list)  # deleted, or to be


class Cleaner:
    """See the module's docstring."""

    def __init__(self, store: ObjectStore, manifests: Manifests, *, clock: Clock) -> None:
        self._store = store
        self._manifests = manifests
        self._clock = clock

    # ------------------------------------------------------------------ after a purge

    async def dropped(self, before: Manifest, start: Offset) -> Dropped:
        """What of a log's own directory `before` names and a manifest from `start` on does not.

        Raises:
            ManifestCorrupt, ObjectNotFound, ArchiveUnavailable.
        """
        prefix = log_prefix(before.cluster_id, before.log_id)
        found = Dropped()
        found.pages = [it for it in before.pages if it.end <= start and it.key.startswith(prefix)]
        async for entry in self._entries(before, start):
            if entry.end <= start and entry.key.startswith(prefix):
                found.objects.append(entry)
        return found

    async def clean(self, before: Manifest, now: Manifest) -> Dropped:
        """Delete what `before` names and `now`, which has taken its place, does not.

        Raises:
            ManifestCorrupt, ObjectNotFound, ArchiveUnavailable: some of it may be there yet; a
            sweep deletes it.

        **Cancellation:** likewise.
        """
        found = await self._unneeded(before, now, now.start, write=True)
        await self._delete(found.keys)
        return found

    async def would_drop(self, manifest: Manifest, start: Offset) -> Dropped:
        """What of a log's own directory a purge up to `start` would delete, as it is now.

        Raises:
            As `dropped`.
        """
        return await self._unneeded(manifest, manifest, start, write=False)

    async def _unneeded(
        self, before: Manifest, now: Manifest, start: Offset, *, write: bool
    ) -> Dropped:
        found = await self.dropped(before, start)
        if found.keys:
            needed = await self._named_by_forks(now, start, write=write)
            found.objects = [it for it in found.objects if it.key not in needed]
            found.pages = [it for it in found.pages if it.key not in needed]
        return found

    # ------------------------------------------------------------------ sweep

    async def sweep(
        self, record: LogRecord, *, grace_ms: int, dry_run: bool
    ) -> AsyncGenerator[Swept, None]:
        """Delete the log's objects and pages that nobody names; each step tells what it did.

        Raises:
            ManifestBehind, ManifestCorrupt: a person must act. ObjectNotFound, ArchiveUnavailable:
            nothing is known. Nothing more is deleted then.

        **Cancellation:** ends it; what was told is deleted.
        """
        oldest_ms = self._clock.now_ms() - grace_ms
        prefix = log_prefix(self._manifests.cluster_id, record.log_id)
        candidates: list[ObjectInfo] = []
        step = Swept()
        listed = [it async for it in self._list(prefix)]
        loaded = await self._fenced(record, write=not dry_run and bool(listed))
        if loaded is None:
            yield Swept(listed=len(listed), young=len(listed))  # of an upload that is the first
            return
        named = await self._named(loaded.manifest, write=not dry_run)
        for info in listed:
            step.listed += 1
            if info.key in named:
                continue
            if info.modified_ms > oldest_ms:
                step.young += 1
            else:
                candidates.append(info)
        yield step
        for at in range(0, len(candidates), DELETED_AT_ONCE):
            part = candidates[at : at + DELETED_AT_ONCE]
            if not dry_run:
                await self._delete([it.key for it in part])
            yield Swept(objects=part)

    async def _list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        async for info in self._store.list(prefix):
            if parse_object_key(info.key) is not None or is_page_key(info.key):
                yield info

    async def _fenced(self, record: LogRecord, *, write: bool) -> Loaded | None:
        """The log's manifest, which nobody who read it before can change any more.

        None if nothing of the log was ever archived.

        Raises:
            ManifestBehind: it is not there, or not what it was.
        """
        for _ in range(CONFLICTS_MAX):
            loaded = await self._manifests.load(record.log_id)
            if loaded is None and record.archived_end == 0:
                return None
            end = Offset(0) if loaded is None else loaded.manifest.end
            if loaded is None or end < record.archived_end:
                key = manifest_key(self._manifests.cluster_id, record.log_id)
                raise ManifestBehind(key=key, end=end, archived_end=record.archived_end)
            # Of a purge that did not get so far, too.
            made = purged(loaded.manifest, record.start, self._manifests.write())
            if not write:
                return Loaded(made, loaded.version)
            try:
                return await self._manifests.replace(loaded, made)
            except ManifestConflict:
                continue
        raise ArchiveUnavailable(f"log {record.name} is archived by others at the same time")

    async def _named(self, manifest: Manifest, *, write: bool) -> set[str]:
        named = {page.key for page in manifest.pages}
        named |= {entry.key async for entry in self._entries(manifest, manifest.end)}
        return named | await self._named_by_forks(manifest, None, write=write)

    # ------------------------------------------------------------------ who names what

    async def _entries(self, manifest: Manifest, below: Offset) -> AsyncIterator[ObjectEntry]:
        """Those that begin below `below`, and that the manifest still means."""
        for page in manifest.pages:
            if page.first < below:
                for entry in await self._manifests.page(page.key):
                    if entry.end > manifest.start:
                        yield entry
        for entry in manifest.entries:
            if entry.first < below:
                yield entry

    async def _named_by_forks(
        self, manifest: Manifest, below: Offset | None, *, write: bool
    ) -> set[str]:
        """Keys that the log's forks name, and theirs; those that begin below `below` at least.

        With `write` no fork that is being made will name others.
        """
        named: set[str] = set()
        seen = {directory_of(manifest.cluster_id, manifest.log_id)}
        wanted, unmade = list(manifest.forks), list[str]()
        while wanted or unmade:
            if wanted:
                directory = wanted.pop()
                if directory in seen:
                    continue
                seen.add(directory)
                fork = await self._fork(directory, hold=False)
                if fork is None:
                    unmade.append(directory)
            else:
                fork = await self._fork(unmade.pop(), hold=write)
            if fork is None:
                continue
            wanted += fork.forks
            named |= {page.key for page in fork.pages}
            async for entry in self._entries(fork, fork.end if below is None else below):
                named.add(entry.key)
        return named

    async def _fork(self, directory: str, *, hold: bool) -> Manifest | None:
        """A fork's manifest; None if there is none. With `hold` nobody makes it unseen."""
        place = parse_directory(directory)
        assert place is not None, f"{directory} was written by `directory_of`"
        manifests = self._manifests.of(place.cluster_id)
        for _ in range(CONFLICTS_MAX):
            found = await manifests.load(place.log_id)
            if found is not None and not found.manifest.is_held:
                return found.manifest
            if not hold:
                return None
            try:
                await manifests.replace(found, held(*place, manifests.write()))
            except ManifestConflict:
                continue
            return None
        raise ArchiveUnavailable(f"the manifest of {directory} changes all the time")

    async def _delete(self, keys: Iterable[str]) -> None:
        wanted = list(keys)
        for at in range(0, len(wanted), DELETED_AT_ONCE):
            await self._store.delete(wanted[at : at + DELETED_AT_ONCE])
