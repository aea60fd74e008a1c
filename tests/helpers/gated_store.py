"""A log server's store whose commits wait at a gate, so that a test can look at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from loglet.lmdb_store import LmdbLogStore
from loglet.store import DropBatches, HeldBatch, LogletState, Neighbours, StoreSpace, Write
from sharedlog.ids import LogletId, Offset, StorageId


class GatedStore:
    """A real store whose commits wait at a gate, and fail on command."""

    def __init__(self, inner: LmdbLogStore) -> None:
        self.inner = inner
        self.gate = asyncio.Event()
        self.gate.set()
        self.groups: list[list[Write]] = []
        self.failures: dict[int, Exception] = {}  # by the number of the commit, from 1

    @property
    def storage_id(self) -> StorageId:
        return self.inner.storage_id

    def loglets(self) -> Sequence[LogletState]:
        return self.inner.loglets()

    async def commit(self, writes: Sequence[Write]) -> None:
        self.groups.append(list(writes))
        failure = self.failures.get(len(self.groups))
        await self.gate.wait()
        if failure is not None:
            raise failure
        await self.inner.commit(writes)

    async def read(
        self, loglet: LogletId, start: Offset, end: Offset, *, max_bytes: int
    ) -> list[tuple[Offset, bytes]]:
        return await self.inner.read(loglet, start, end, max_bytes=max_bytes)

    async def scan(
        self,
        loglet: LogletId,
        start: Offset,
        end: Offset,
        *,
        verify: bool,
        max_batches: int,
        max_bytes: int,
    ) -> list[HeldBatch]:
        return await self.inner.scan(
            loglet, start, end, verify=verify, max_batches=max_batches, max_bytes=max_bytes
        )

    async def find_time(
        self, loglet: LogletId, start: Offset, end: Offset, timestamp_ms: int
    ) -> Neighbours:
        return await self.inner.find_time(loglet, start, end, timestamp_ms)

    async def find_trimmed(
        self, loglet: LogletId, below: Offset, *, max_batches: int, max_bytes: int
    ) -> DropBatches | None:
        return await self.inner.find_trimmed(
            loglet, below, max_batches=max_batches, max_bytes=max_bytes
        )

    def space(self) -> StoreSpace:
        return self.inner.space()

    async def close(self) -> None:
        await self.inner.close()
