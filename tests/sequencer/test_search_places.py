"""Searches at the opening of sessions: bounded, and no log in the way of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from metadata.records import LogRecord
from sequencer.config import SequencerConfig
from sequencer.history import HistoryPage
from sequencer.loglets import ActiveLoglet
from sequencer.metrics import SequencerMetrics
from sequencer.moves import KnownChain
from sequencer.opening import Openings
from sequencer.producers import IdleProducers, ProducerOpen, ProducerTable
from sequencer.state import LogState
from sharedlog.clock import SystemClock
from sharedlog.errors import LogUnavailable
from sharedlog.ids import Offset

CLOCK = SystemClock()


class SlowHistory:
    """Serves no page of the slow log before it is let go."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.reading: dict[str, int] = {}
        self.most: dict[str, int] = {}

    async def scan(
        self, record: LogRecord, start: Offset, end: Offset
    ) -> AsyncGenerator[HistoryPage, None]:
        name = record.name
        self.reading[name] = self.reading.get(name, 0) + 1
        self.most[name] = max(self.reading[name], self.most.get(name, 0))
        try:
            if name == "slow":
                await self.go.wait()
            yield HistoryPage((), end)
        finally:
            self.reading[name] -= 1


class Node:
    """The openings of a process, and the logs that it orders."""

    def __init__(self) -> None:
        self.history = SlowHistory()
        self.openings = Openings(
            history=self.history,
            admission=None,  # type: ignore[arg-type]  # of named producers only
            clock=CLOCK,
            config=SequencerConfig(searches_max=3, search_timeout_s=0.5),
            metrics=SequencerMetrics(CollectorRegistry()),
        )
        self._idle = IdleProducers(100)
        self._next_producer = 1

    def log(self, name: str, *, next_offset: int, committed: int) -> ActiveLoglet:
        """Its producers of old are forgotten: all above offset 100 must be searched."""
        core = SimpleNamespace(
            next_offset=next_offset, committed_tail=committed, loglet=name, last_timestamp_ms=0
        )
        table = ProducerTable(Offset(105), self._idle)
        active = ActiveLoglet(name, None, core, None, table)  # type: ignore[arg-type]  # not used
        active.on_state(LogState(expiry_s=1))
        return active

    def open(self, active: ActiveLoglet) -> asyncio.Task[None]:
        """Open a session of a further producer, which has something unresolved."""
        opening = ProducerOpen(self._next_producer, 0, 5, True, Offset(100))
        self._next_producer += 1

        async def admitting() -> tuple[ActiveLoglet, KnownChain]:
            record = SimpleNamespace(name=active.name, chain=(), start=0)
            return active, KnownChain(record, 1)  # type: ignore[arg-type]  # as much as is used

        async def run() -> None:
            async with self.openings.claim(opening, admitting):
                pass

        return asyncio.get_running_loop().create_task(run(), name="opens")


async def test_who_waits_for_a_commit_takes_nobodys_place() -> None:
    """A log without a write quorum: its sessions wait, and those of other logs do not."""
    node = Node()
    stuck = node.log("stuck", next_offset=110, committed=100)
    waiting = [node.open(stuck) for _ in range(8)]
    await CLOCK.sleep(0.02)
    async with asyncio.timeout(0.2):
        await node.open(node.log("well", next_offset=110, committed=110))
    for task in waiting:
        with pytest.raises(LogUnavailable):
            await task
    assert "stuck" not in node.history.most


async def test_a_log_that_is_read_slowly_leaves_places_to_others() -> None:
    """No log has all the places; those of its sessions that wait are served in the end."""
    node = Node()
    slow = node.log("slow", next_offset=110, committed=110)
    waiting = [node.open(slow) for _ in range(8)]
    await CLOCK.sleep(0.02)
    async with asyncio.timeout(0.2):
        await node.open(node.log("well", next_offset=110, committed=110))
    node.history.go.set()
    await asyncio.gather(*waiting)
    assert node.history.most == {"slow": 2, "well": 1}
