"""Scrub: every node reads, slowly, all that its own store holds, and has damage repaired.

A flipped bit is found when a batch is read; a batch that nobody reads would keep it until the other
copies are gone too (field note 24). So each node goes through its own loglets once in a while: each
batch is read from disk and compared with its checksums. Segments with damage are mended by this
node itself, from the other replicas, the way that the controller's backfill does it; two who do it
at the same time do no harm. Damage that a reader met is repaired the same way, at once.

A pass is not remembered over a restart. The first one begins a while after the start, so a node
that restarts every day is still scrubbed every day, in part at least.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from random import Random
from typing import Final

from metadata.records import LogRecord, NodeRecord, Replica, Segment
from metadata.view import ClusterView
from node.controller.backfill import Backfill
from node.controller.config import ControllerConfig
from node.controller.metrics import ControllerMetrics
from node.controller.pace import Pace
from node.controller.work import Job, WorkBoard
from node.coverage import Range, merge
from node.replica_door import ReplicaDoor
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.tasks import run_together

log = logging.getLogger("node")

MET_MAX: Final = 1_000
"""Loglets with damage that readers met and that waits to be repaired; the next pass finds more."""
MET_PAUSE_S: Final = 0.5

FIRST_AFTER_S: Final = 300.0
"""After a start, or a tenth of the period if that is less: others need the disk more then."""


class Scrub:
    """See the module's docstring. For a node with the role log-server."""

    def __init__(
        self,
        *,
        own: NodeRecord,
        view: ClusterView,
        door: ReplicaDoor,
        backfill: Backfill,
        board: WorkBoard,
        clock: Clock,
        random: Random,
        config: ControllerConfig,
        metrics: ControllerMetrics,
    ) -> None:
        self._self = Replica(node_id=own.node_id, storage_id=own.storage_id)
        self._view = view
        self._door = door
        self._backfill = backfill
        self._board = board
        self._clock = clock
        self._random = random
        self._metrics = metrics
        self._every_s = config.scrub_every_s
        self._passes = config.scrub_bytes_per_s > 0
        self._pace = Pace(max(config.scrub_bytes_per_s, 1), clock)
        self._met: dict[LogletId, list[Range]] = {}  # damage that readers met, to be repaired
        self._wake = asyncio.Event()

    def on_damage(self, loglet: LogletId, first: Offset, end: Offset) -> None:
        """A reader met damage in [first, end); it is repaired as soon as may be."""
        if len(self._met) < MET_MAX or loglet in self._met:
            self._met[loglet] = merge((*self._met.get(loglet, ()), (first, end)))
            self._wake.set()

    async def run(self) -> None:
        """Scrub again and again, and repair what readers meet, until cancelled."""
        runs = {"scrub-met": self._repair_met()}
        if self._passes:
            runs["scrub-passes"] = self._pass_for_ever()
        await run_together(runs)

    async def _pass_for_ever(self) -> None:
        first_s = min(FIRST_AFTER_S, self._every_s / 10)
        await self._clock.sleep(first_s * self._random.uniform(0.8, 1.2))
        while True:
            begun_s = self._clock.monotonic_s()
            await self._pass()
            spent_s = self._clock.monotonic_s() - begun_s
            pause_s = self._every_s * self._random.uniform(0.9, 1.1) - spent_s
            await self._clock.sleep(max(pause_s, first_s))

    async def _repair_met(self) -> None:
        while True:
            await self._wake.wait()
            await self._clock.sleep(MET_PAUSE_S)  # one reader may meet more, and others the same
            self._wake.clear()
            met, self._met = self._met, {}
            if not met:
                continue
            records = {record.log_id: record for record, _ in self._view.logs()}
            for loglet, ranges in met.items():
                record = records.get(loglet.log_id)
                for segment in () if record is None else _own_segments(record, self._self):
                    if record is not None and segment.index == loglet.segment_index:
                        await self._repair(record, segment, ranges)

    async def _pass(self) -> None:
        """Every segment that names this store, once."""
        records = [record for record, _ in self._view.logs()]
        found = 0
        with self._board.doing("scrub", f"node {self._self.node_id}", total=len(records)) as job:
            for record in records:
                for segment in _own_segments(record, self._self):
                    job.message = f"log {record.name} segment {segment.index}"
                    found += await self._scrub(record, segment, job)
                job.done += 1
        log.info("scrub.done", extra={"logs": len(records), "damaged": found})

    async def _scrub(self, record: LogRecord, segment: Segment, job: Job) -> bool:
        """One segment; whether it was damaged here."""
        loglet = LogletId(LogId(record.log_id), segment.index)
        try:
            damaged = await self._look(segment, loglet)
        except SharedLogError as error:
            # Not opened here, or the process stops: nothing to be said of the disk.
            log.debug("scrub.passed_over", extra={"loglet": str(loglet), "error": str(error)})
            return False
        if damaged:
            job.message = f"repairs log {record.name} segment {segment.index}"
            await self._repair(record, segment, damaged)
        return bool(damaged)

    async def _repair(self, record: LogRecord, segment: Segment, damaged: Sequence[Range]) -> None:
        fields = {"log": record.name, "segment": segment.index, "ranges": list(damaged[:10])}
        log.warning("scrub.damaged", extra=fields)
        self._metrics.scrub_damaged.inc()
        mended = await self._backfill.mend(record, segment, only=damaged, verify=True)
        log.info("scrub.repaired", extra={**fields, "bytes": mended.copied_bytes})

    async def _look(self, segment: Segment, loglet: LogletId) -> list[Range]:
        """Read all that is held here of a segment; returns what of it is damaged."""
        status = await self._door.status(self._self, loglet)
        if status is None:
            return []
        at = segment.base
        end = Offset(status.local_tail) if segment.end is None else segment.end
        damaged: list[Range] = []
        while at < end:
            page = await self._door.page(self._self, loglet, at, end, verify=True)
            damaged.extend((Offset(it.first), Offset(it.end)) for it in page.damaged)
            at = Offset(page.next)
            self._metrics.scrubbed_bytes.inc(page.bytes)
            await self._pace.spend(page.bytes)
        return merge(damaged)


def _own_segments(record: LogRecord, own: Replica) -> list[Segment]:
    """Those that name this very store."""
    return [
        segment
        for segment in record.chain
        if any(
            (replica.node_id, replica.storage_id) == (own.node_id, own.storage_id)
            for replica in segment.nodeset
        )
    ]
