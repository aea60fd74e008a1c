"""How much goes with a commit: deleting keeps up with storing, and a commit stays small."""

import asyncio
from contextlib import suppress
from typing import Self, cast

import pytest
from prometheus_client import CollectorRegistry

from loglet.config import LogServerConfig
from loglet.metrics import LogServerMetrics
from loglet.store import DropBatches, LogStore
from loglet.sweep import (
    CHUNK_BATCHES_MAX,
    CHUNK_BATCHES_MIN,
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    Sweep,
)
from sharedlog.clock import SystemClock
from sharedlog.ids import LogId, LogletId, Offset

A, B = LogletId(LogId(1), 0), LogletId(LogId(2), 0)


class Batches:
    """Of each loglet what is stored and not deleted yet; a batch takes one offset."""

    def __init__(self, batch_bytes: int, steps: int) -> None:
        self.batch_bytes = batch_bytes
        self.steps = steps
        self.starts = dict.fromkeys((A, B), 0)
        self.asked: list[tuple[int, int]] = []

    async def find_trimmed(
        self, loglet: LogletId, below: Offset, *, max_batches: int, max_bytes: int
    ) -> DropBatches | None:
        self.asked.append((max_batches, max_bytes))
        for _ in range(self.steps):
            await asyncio.sleep(0)
        count = min(below - self.starts[loglet], max_batches, max_bytes // self.batch_bytes)
        end = Offset(self.starts[loglet] + count)
        return DropBatches(loglet, end, count, count * self.batch_bytes) if count else None


class Writer:
    """Commits that store so many batches each, and take along what the sweep has found."""

    def __init__(self, batch_bytes: int = 100, find_steps: int = 1) -> None:
        self.store = Batches(batch_bytes, find_steps)
        self.sweep = Sweep(
            store=cast("LogStore", self.store),
            clock=SystemClock(),
            config=LogServerConfig(reserve_bytes=0),
            metrics=LogServerMetrics(CollectorRegistry()),
        )

    async def commit(self, batches: int) -> None:
        chunk = self.sweep.take()
        await asyncio.sleep(0)
        if chunk is not None:
            self.store.starts[chunk.loglet] = chunk.end
            self.sweep.done(chunk, well=True, alone=False)
        self.sweep.on_stored(batches, batches * self.store.batch_bytes)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.sweep.run(lambda: None))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


@pytest.mark.parametrize("find_steps", [1, 2, 5, 9])
async def test_deleting_keeps_up_with_storing(find_steps: int) -> None:
    """However many commits go by until the next chunk is found, each commit is one step."""
    batches, kept, tail, most = 300, 4_000, 0, 0
    async with Writer(find_steps=find_steps) as writer:
        for _ in range(1_000):
            await writer.commit(batches)
            tail += batches
            writer.sweep.add(A, Offset(max(0, tail - kept)))
            most = max(most, tail - writer.store.starts[A])
    assert tail >= 50 * kept
    assert most <= kept + 5 * (find_steps + 2) * batches


async def test_what_is_stored_counts_for_every_loglet_together() -> None:
    """A loglet that is done takes nothing from the others."""
    async with Writer() as writer:
        writer.sweep.add(A, Offset(10))
        writer.sweep.add(B, Offset(5_000))
        for _ in range(3):
            await asyncio.sleep(0)
        await writer.commit(1_000)  # with the one chunk of A
        for _ in range(8):
            await asyncio.sleep(0)
        chunk = writer.sweep.take()
    assert chunk is not None
    assert (chunk.loglet, chunk.batches) == (B, 2_000)


async def test_a_chunk_has_bounds() -> None:
    """Neither what was stored while nothing was to go nor a storm of appends makes it large."""
    async with Writer(batch_bytes=100_000) as writer:
        await asyncio.sleep(0)
        for _ in range(50):
            await writer.commit(1_000)
        writer.sweep.add(A, Offset(1_000_000))
        for _ in range(3):
            await asyncio.sleep(0)
        await writer.commit(50_000)  # with the first chunk
        for _ in range(3):
            await asyncio.sleep(0)
    assert writer.store.asked[0] == (CHUNK_BATCHES_MIN, CHUNK_BYTES_MIN)
    assert writer.store.asked[1] == (CHUNK_BATCHES_MAX, CHUNK_BYTES_MAX)
