"""A simulated metadata store: linearizable values with latency and outages.

`SimMetadata` is the service, outside of every node; `SimMetadataStore` is one node's way to it.
An operation takes effect at one moment between its call and its return. In an outage it raises
`MetadataUnavailable` after a while; one that begins while an answer is on its way loses the answer,
and the change stays made.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from helpers.sim.world import World

from metadata.store import (
    ABSENT,
    Changed,
    Deleted,
    Entry,
    SnapshotComplete,
    Version,
    WatchEvent,
)
from sharedlog.errors import MetadataUnavailable, VersionMismatch


class SimMetadata:
    """The values, their history, and whether the service is up."""

    def __init__(self, world: World, *, delay_max_s: float = 0.002) -> None:
        self.up = True
        self.delay_max_s = delay_max_s
        self.trace = world.trace
        self.random = world.random("metadata")
        self.entries: dict[str, Entry] = {}
        self.history: list[Changed | Deleted] = []  # of the whole run: watchers go on from a place
        self._changed = asyncio.Event()

    def store(self) -> SimMetadataStore:
        """A node's way to it."""
        return SimMetadataStore(self)

    def swap(self, key: str, value: bytes | None, expected: Version) -> Version:
        """Set or (None) delete a key, if it has the expected version."""
        old = self.entries.get(key)
        actual = ABSENT if old is None else old.version
        if actual != expected:
            raise VersionMismatch(key=key, expected=expected or None, actual=actual or None)
        version = Version(len(self.history) + 1)
        if value is None:
            del self.entries[key]
            self.record(Deleted(key, version))
        else:
            entry = Entry(key, value, version)
            self.entries[key] = entry
            self.record(Changed(entry))
        self.trace.add(f"metadata {key} is at {version}")
        return version

    def record(self, change: Changed | Deleted) -> None:
        self.history.append(change)
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, seen: int) -> None:
        """Return once the history is longer than `seen`."""
        while len(self.history) <= seen:
            await self._changed.wait()


class SimMetadataStore:
    """`MetadataStore` of one node."""

    def __init__(self, metadata: SimMetadata) -> None:
        self._metadata = metadata

    async def get(self, key: str) -> Entry | None:
        await self._travel()
        found = self._metadata.entries.get(key)
        await self._travel()
        return found

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        await self._travel()
        version = self._metadata.swap(key, value, expected)
        await self._travel()
        return version

    async def delete(self, key: str, *, expected: Version) -> None:
        await self._travel()
        self._metadata.swap(key, None, expected)
        await self._travel()

    async def list(self, prefix: str) -> Sequence[Entry]:
        await self._travel()
        found = self._under(prefix)
        await self._travel()
        return found

    async def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        metadata = self._metadata
        await self._travel_for_ever()
        seen = len(metadata.history)
        for entry in self._under(prefix):
            yield Changed(entry)
        yield SnapshotComplete()
        while True:
            await metadata.wait_for_change(seen)
            await self._travel_for_ever()
            news, seen = metadata.history[seen:], len(metadata.history)
            for change in news:
                key = change.entry.key if isinstance(change, Changed) else change.key
                if key.startswith(prefix):
                    yield change

    def _under(self, prefix: str) -> Sequence[Entry]:
        entries = sorted(self._metadata.entries.items())
        return [entry for key, entry in entries if key.startswith(prefix)]

    async def _travel(self) -> None:
        """One way of a round trip."""
        metadata = self._metadata
        await asyncio.sleep(metadata.random.uniform(0, metadata.delay_max_s / 2))
        if not metadata.up:
            await asyncio.sleep(0.5)
            raise MetadataUnavailable("the simulated metadata store is down")

    async def _travel_for_ever(self) -> None:
        while True:
            try:
                await self._travel()
            except MetadataUnavailable:
                continue
            return
