"""A metadata store that is measured: how long each call takes, and how it fails.

It stands before any backend and changes nothing. A watch is not measured: it waits for most of its
life.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import TypeVar

from metadata.metrics import MetadataCallMetrics
from metadata.store import Entry, MetadataStore, Version, WatchEvent
from sharedlog.clock import Clock

T = TypeVar("T")


class MeteredMetadataStore:
    """A `MetadataStore` before another one; see there."""

    def __init__(self, store: MetadataStore, clock: Clock, metrics: MetadataCallMetrics) -> None:
        self._store = store
        self._clock = clock
        self._metrics = metrics

    async def get(self, key: str) -> Entry | None:
        """See `MetadataStore.get`."""
        return await self._measured("get", self._store.get(key))

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        """See `MetadataStore.put`."""
        return await self._measured("put", self._store.put(key, value, expected=expected))

    async def delete(self, key: str, *, expected: Version) -> None:
        """See `MetadataStore.delete`."""
        await self._measured("delete", self._store.delete(key, expected=expected))

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `MetadataStore.list`."""
        return await self._measured("list", self._store.list(prefix))

    def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        """See `MetadataStore.watch`."""
        return self._store.watch(prefix)

    async def close(self) -> None:
        """See `MetadataStore.close`."""
        await self._store.close()

    async def _measured(self, operation: str, call: Awaitable[T]) -> T:
        begun_s = self._clock.monotonic_s()
        try:
            return await call
        except Exception as error:
            self._metrics.failed(operation, type(error).__name__)
            raise
        finally:
            self._metrics.took(operation, self._clock.monotonic_s() - begun_s)
