"""A metadata store to which nothing is added once the cluster has been moved away from it.

A move (`migration.py`) closes each key, so a node that runs on unnoticed can change none. What it
can't close is a key that is not there: such a node could make a log that the other store never
hears of, acknowledge appends to it, and lose them with the old store.

So whoever has made a key, or has found that there is one already, reads the record of the cluster
after that, before it believes it. If that does not say that the cluster has moved, then the key was
made before it did, and the listing with which a move ends, which comes later still, has it. If it
does say so, the key is deleted again. If a move has closed it already that fails, and it has moved
with the others; so the outcome is told as unknown, and is one that no retry here finds to be good.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from metadata.moved import check_moved
from metadata.records import CLUSTER_KEY
from metadata.store import ABSENT, Entry, MetadataStore, Version, WatchEvent
from sharedlog.errors import MetadataUnavailable, SharedLogError, VersionMismatch, WrongCluster


class StandingMetadataStore:
    """A `MetadataStore` before another one; see there and in the module's docstring."""

    def __init__(self, store: MetadataStore) -> None:
        self._store = store
        self._moved = False  # when it was looked at last

    async def get(self, key: str) -> Entry | None:
        """See `MetadataStore.get`."""
        return await self._store.get(key)

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        """See `MetadataStore.put`.

        Raises:
            MetadataUnavailable: besides, the cluster was moved; a key that was to be made may be in
                the other store.
        """
        if expected != ABSENT or key == CLUSTER_KEY:
            return await self._store.put(key, value, expected=expected)
        if self._moved:  # each key that is made, even for a moment, can be seen by others
            await self._check_standing(key)
        try:
            version = await self._store.put(key, value, expected=expected)
        except VersionMismatch:
            await self._check_standing(key)
            raise
        try:
            await self._check_standing(key)
        except MetadataUnavailable:
            if self._moved:
                with suppress(SharedLogError):  # closed, and so moved; or nobody knows
                    await self._store.delete(key, expected=version)
            raise
        return version

    async def delete(self, key: str, *, expected: Version) -> None:
        """See `MetadataStore.delete`."""
        await self._store.delete(key, expected=expected)

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `MetadataStore.list`."""
        return await self._store.list(prefix)

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """See `MetadataStore.watch`."""
        return self._store.watch(prefix)

    async def close(self) -> None:
        """See `MetadataStore.close`."""
        await self._store.close()

    async def _check_standing(self, key: str) -> None:
        """Raises `MetadataUnavailable` if the cluster has moved."""
        cluster = await self._store.get(CLUSTER_KEY)
        try:
            if cluster is not None:
                check_moved(cluster.value)
        except WrongCluster as error:
            self._moved = True
            raise MetadataUnavailable(f"{key} can't be made here: {error}") from error
        self._moved = False
