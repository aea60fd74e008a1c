"""A node that is told to stop gives its logs to others first, so that nobody sees it go.

Every log that this process orders is reconfigured as planned: admission stops, what is in flight
commits, another node takes over, and sessions are told where to. Logs in use go first, for an idle
log misses nothing if it waits for its next user. They are dealt out in turn, beginning with whoever
orders fewest, and the nodeset stays as it is: this node is most likely back in a moment.

It ends when nothing is left, when nobody is left to give to (the rest of the cluster stops, too, or
there is no rest), or when its time is up. What is left then is failed over by those who need it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from metadata.core import can_order, count_load
from metadata.reconfiguration import Change
from metadata.records import LogRecord, NodeRecord
from metadata.view import ClusterView
from node.causes import Cause
from node.controller.work import Job, WorkBoard
from node.failover import Reconfigures
from node.liveness import Liveness
from sequencer.service import Sequencer
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import NodeId

log = logging.getLogger("node")

MOVES_AT_ONCE: Final = 16
LOOK_AROUND_S: Final = 0.05
"""Others may have been told to stop at the same moment: so long they get to say so."""
ROUNDS_MAX: Final = 3
"""Logs whose move failed are tried again, each time with those nodes that are usable by then."""
_REASON: Final = "its sequencer's process is told to stop"


@dataclass(slots=True)
class HandedOver:
    """How it went."""

    moved: int = 0
    left: int = 0


class HandOver:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        view: ClusterView,
        liveness: Liveness,
        reconfigurer: Reconfigures,
        sequencer: Sequencer | None,
        board: WorkBoard,
        clock: Clock,
    ) -> None:
        self._view = view
        self._liveness = liveness
        self._reconfigurer = reconfigurer
        self._sequencer = sequencer
        self._board = board
        self._clock = clock

    async def run(self, *, timeout_s: float) -> HandedOver:
        """Hand over what can be handed over within the time.

        **Cancellation:** stops it; moves under way may or may not be made.
        """
        self._liveness.stopping = True
        done = HandedOver()
        if not self._mine():
            return done
        began_s = self._clock.monotonic_s()
        try:
            async with asyncio.timeout(timeout_s):
                await self._clock.sleep(LOOK_AROUND_S)
                await self._rounds(done)
        except TimeoutError:
            log.warning("handover.out_of_time", extra={"timeout_s": timeout_s})
        done.left = len(self._mine())
        seconds = round(self._clock.monotonic_s() - began_s, 3)
        fields = {"moved": done.moved, "left": done.left, "seconds": seconds}
        log.info("handover.done", extra=fields)
        return done

    async def _rounds(self, done: HandedOver) -> None:
        for _ in range(ROUNDS_MAX):
            mine = self._mine()
            takers = self._takers(await self._liveness.survey())
            if not mine:
                return
            if not takers or not self._view.connected:
                why = "the metadata store is away" if takers else "no other node is there"
                log.info("handover.impossible", extra={"logs": len(mine), "reason": why})
                return
            log.info("handover.began", extra={"logs": len(mine), "to": sorted(takers)})
            node = f"node {mine[0].open_segment.sequencer.node_id}"
            with self._board.doing("hand-over", node, total=len(mine)) as job:
                await self._deal_out(mine, takers, done, job)

    async def _deal_out(
        self, mine: Sequence[LogRecord], takers: Sequence[NodeId], done: HandedOver, job: Job
    ) -> None:
        places = asyncio.Semaphore(MOVES_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for record, taker in zip(mine, _in_turn(takers), strict=False):
                await places.acquire()
                job.done = done.moved
                job.message = f"{record.name} to {taker}"
                task = tasks.create_task(
                    self._move(record, taker, done), name=f"hand-over {record.name}"
                )
                task.add_done_callback(partial(_release, places))

    def _mine(self) -> list[LogRecord]:
        """The logs that this process orders, those in use first."""
        if self._sequencer is None:
            return []
        sequencer = self._sequencer
        found = [
            record
            for record, _ in self._view.logs()
            if record.open_segment.sequencer == sequencer.me
        ]
        found.sort(key=lambda it: sequencer.committed_tail(it.loglet(it.open_segment)) is None)
        return found

    def _takers(self, usable: Sequence[NodeRecord]) -> list[NodeId]:
        """Nodes that can order logs, those that order fewest first."""
        load = count_load(record for record, _ in self._view.logs())
        able = [node.node_id for node in usable if can_order(node)]
        return sorted(able, key=lambda node_id: (load.sequencers[node_id], node_id))

    async def _move(self, record: LogRecord, taker: NodeId, done: HandedOver) -> None:
        segment = record.open_segment
        change = Change(sequencer=taker, not_sequencer=frozenset((segment.sequencer.node_id,)))
        fields = {"log": record.name, "to": taker}
        try:
            moved = await self._reconfigurer.reconfigure(
                record.name,
                change,
                reason=_REASON,
                cause=Cause.HAND_OVER,
                segment_index=segment.index,
                planned=True,
            )
        except SharedLogError as error:
            log.warning("handover.failed", extra=fields | {"error": str(error)})
            return
        done.moved += 1
        log.info("handover.moved", extra=fields | {"pause_ms": round(moved.pause_ms, 1)})


def _in_turn(takers: Sequence[NodeId]) -> Iterator[NodeId]:
    while True:
        yield from takers


def _release(places: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
    places.release()
