"""Manifests in an object store: read, and changed by compare-and-swap.

**An answer that got lost.** A swap may be refused although this very call made it, when the client
library has sent it twice; and one that timed out may have been made, or may yet be. So after
anything but success the manifest is read back, and its salt tells whose change it is (field notes
48, 49). If that can't be found out the outcome stays unknown, and nobody deletes anything for it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

from loglet.archive.errors import CorruptObject
from loglet.archive.layout import manifest_key, page_key
from loglet.archive.manifest import (
    Manifest,
    ObjectEntry,
    Write,
    page_of,
    paged,
    wants_page,
)
from loglet.archive.manifest_codec import (
    decode_manifest,
    decode_page,
    encode_manifest,
    encode_page,
)
from loglet.archive.object_store import ObjectStore
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError, SwapConflict
from sharedlog.ids import LogId

log = logging.getLogger(__name__)


Prove = Callable[[], Awaitable[None]]
"""Returns once the store has shown that it compares and swaps (`Proof.made`), or raises."""


async def taken_as_proven() -> None:
    """For who changes nothing, or knows the store."""


class Loaded(NamedTuple):
    """A manifest as it was read or written, and the store's version of it."""

    manifest: Manifest
    version: str


class ManifestConflict(Exception):
    """Somebody else has changed the manifest meanwhile: read it again and decide anew."""


class Manifests:
    """The manifests of one cluster's logs."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        cluster_id: str,
        clock: Clock,
        new_id: Callable[[], str],
        prove: Prove = taken_as_proven,
    ) -> None:
        self.cluster_id = cluster_id
        self._store = store
        self._prove = prove
        self._clock = clock
        self._new_id = new_id

    def of(self, cluster_id: str) -> Manifests:
        """Those of another cluster, in the same archive."""
        return Manifests(
            self._store,
            cluster_id=cluster_id,
            clock=self._clock,
            new_id=self._new_id,
            prove=self._prove,
        )

    def write(self) -> Write:
        """What tells the next change from every other."""
        return Write(salt=self._new_id(), now_ms=self._clock.now_ms())

    async def load(self, log_id: LogId) -> Loaded | None:
        """The manifest of a log; None if there is none.

        Raises:
            ManifestCorrupt: it is damaged. ArchiveUnavailable: nobody knows.
        """
        key = manifest_key(self.cluster_id, log_id)
        found = await self._store.read_versioned(key)
        if found is None:
            return None
        return Loaded(decode_manifest(key, found.data), found.version)

    async def replace(self, before: Loaded | None, manifest: Manifest) -> Loaded:
        """Put a changed manifest in the place of the one it was made of; None: there was none.

        Raises:
            ManifestConflict: somebody else's is there now; this one never will be, but it may have
            been for a moment. ArchiveUnavailable: it may have been made, or may yet be.
            ArchiveUnsuitable: the store can't be trusted with it.
        """
        await self._prove()
        key = manifest_key(self.cluster_id, manifest.log_id)
        data = encode_manifest(key, manifest)
        expected = before.version if before is not None else None
        try:
            return Loaded(manifest, await self._store.swap(key, data, expected))
        except SwapConflict as conflict:
            now = await self.load(manifest.log_id)
            if now is None or now.manifest.salt != manifest.salt:
                raise ManifestConflict(key) from conflict
        except SharedLogError as error:
            now = await self.load(manifest.log_id)
            if now is None or now.manifest.salt != manifest.salt:
                raise
            log.info("archive.lost_answer", extra={"key": key, "error": str(error)})
        return now

    async def make_room(self, loaded: Loaded) -> Loaded:
        """Move older entries to a page if the manifest has become long.

        Raises:
            As `replace`; CorruptObject: the store has not what was uploaded. A page that was
            written for nothing is swept like any orphan.
        """
        if not wants_page(loaded.manifest):
            return loaded
        key = page_key(self.cluster_id, loaded.manifest.log_id, self._new_id())
        page, held = page_of(loaded.manifest, key)
        data = encode_page(key, held)
        await self._store.upload(key, _once(data))
        # Nothing else names those objects once the page does.
        if await self._store.read(key) != data:
            raise CorruptObject(f"{key}: the store has another page than was uploaded")
        return await self.replace(loaded, paged(loaded.manifest, page, self.write()))

    async def page(self, key: str) -> tuple[ObjectEntry, ...]:
        """What a page holds.

        Raises:
            ManifestCorrupt, ObjectNotFound, ArchiveUnavailable.
        """
        return decode_page(key, await self._store.read(key))

    async def entries(self, manifest: Manifest) -> AsyncIterator[ObjectEntry]:
        """Every object that the manifest names, in order; those of pages are read as they come."""
        for page in manifest.pages:
            for entry in await self.page(page.key):
                if entry.end > manifest.start:
                    yield entry
        for entry in manifest.entries:
            yield entry


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
