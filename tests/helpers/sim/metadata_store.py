"""A simulated metadata store: linearizable values with latency and outages.

`SimMetadata` is the service, outside of every node; `SimMetadataStore` is one node's way to it.
An operation takes effect at one moment between its call and its return. In an outage, and for a
host that the network cuts off from the host `metadata`, it raises `MetadataUnavailable` after a
while; one that begins while an answer is on its way loses the answer, and the change stays made.

With `unknown_probability` a change ends as `MetadataUnavailable` in one of three ways: it was made,
it was not made, or it is made later, when its caller has given it up. `lag_s` holds back what a
host's watches tell it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from helpers.sim.network import SimNetwork
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

METADATA_HOST: Final = "metadata"

_PATIENCE_S: Final = 0.5
_LATE_MAX_S: Final = 3.0


class SimMetadata:
    """The values, their history, and whether the service is up."""

    def __init__(
        self, world: World, network: SimNetwork | None = None, *, delay_max_s: float = 0.002
    ) -> None:
        self.up = True
        self.unknown_probability = 0.0  # of a change whose outcome its caller does not learn
        self.lag_s: dict[str, float] = {}  # host → how late its watches tell
        self.delay_max_s = delay_max_s
        self.network = network
        self.trace = world.trace
        self.random = world.random("metadata")
        self.entries: dict[str, Entry] = {}
        self.history: list[Changed | Deleted] = []  # of the whole run: watchers go on from a place
        self.on_change: Callable[[Changed | Deleted], None] = lambda _change: None
        self._changed = asyncio.Event()

    def store(self, host: str = "") -> SimMetadataStore:
        """A node's way to it."""
        return SimMetadataStore(self, host)

    def reaches(self, host: str, *, back: bool = False) -> bool:
        """A message gets through: from the host to the store, or back."""
        if not self.up:
            return False
        if self.network is None:
            return True
        way = (METADATA_HOST, host) if back else (host, METADATA_HOST)
        return not (self.network.is_cut(*way) or self.network.is_refused(*way))

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

    def swap_late(self, key: str, value: bytes | None, expected: Version) -> None:
        """A request that its caller has given up arrives."""
        with contextlib.suppress(VersionMismatch):
            self.swap(key, value, expected)

    def record(self, change: Changed | Deleted) -> None:
        self.history.append(change)
        self.on_change(change)
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait_for_change(self, seen: int) -> None:
        """Return once the history is longer than `seen`."""
        while len(self.history) <= seen:
            await self._changed.wait()


class SimMetadataStore:
    """`MetadataStore` of one node, for one life of it."""

    def __init__(self, metadata: SimMetadata, host: str) -> None:
        self._metadata = metadata
        self._host = host
        self.dead = False  # whatever the dying process asks for is not heard

    async def get(self, key: str) -> Entry | None:
        await self._travel()
        found = self._metadata.entries.get(key)
        await self._travel(back=True)
        return found

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        return await self._swap(key, value, expected)

    async def delete(self, key: str, *, expected: Version) -> None:
        await self._swap(key, None, expected)

    async def list(self, prefix: str) -> Sequence[Entry]:
        await self._travel()
        found = self._under(prefix)
        await self._travel(back=True)
        return found

    async def _swap(self, key: str, value: bytes | None, expected: Version) -> Version:
        await self._travel()
        metadata, draw = self._metadata, self._metadata.random
        if metadata.unknown_probability and draw.random() < metadata.unknown_probability:
            how = draw.choice(["made", "not made", "late"])
            metadata.trace.add(f"metadata {self._host} {key} unknown: {how}")
            if how == "made":
                metadata.swap(key, value, expected)
            elif how == "late":
                assert metadata.network is not None
                late_s = draw.uniform(0, _LATE_MAX_S)
                metadata.network.after(late_s, metadata.swap_late, key, value, expected)
            await asyncio.sleep(draw.uniform(0, _PATIENCE_S))
            raise MetadataUnavailable("the simulated metadata store's answer got lost")
        version = metadata.swap(key, value, expected)
        await self._travel(back=True)
        return version

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
            lag_s = metadata.lag_s.get(self._host)
            if lag_s is not None:
                await asyncio.sleep(metadata.random.uniform(0, lag_s))
            news, seen = metadata.history[seen:], len(metadata.history)
            for change in news:
                key = change.entry.key if isinstance(change, Changed) else change.key
                if key.startswith(prefix):
                    yield change

    async def close(self) -> None:
        """Nothing is held."""

    def _under(self, prefix: str) -> Sequence[Entry]:
        entries = sorted(self._metadata.entries.items())
        return [entry for key, entry in entries if key.startswith(prefix)]

    async def _travel(self, *, back: bool = False) -> None:
        """One way of a round trip."""
        metadata = self._metadata
        await asyncio.sleep(metadata.random.uniform(0, metadata.delay_max_s / 2))
        if self.dead or not metadata.reaches(self._host, back=back):
            await asyncio.sleep(_PATIENCE_S)
            raise MetadataUnavailable("the simulated metadata store is down")

    async def _travel_for_ever(self) -> None:
        while True:
            try:
                await self._travel()
            except MetadataUnavailable:
                continue
            return
