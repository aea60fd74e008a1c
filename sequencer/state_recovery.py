"""Taking over a log's state: read from the log, before anything is admitted.

The batch before the segment's base says where the state lies (`state.py`); the control batch there
and the headers of what follows it are read from whichever log server has them (`history.py`), up to
the end that the chain gives each segment and not beyond. Until that is done the loglet's gate is
closed, and who comes waits. A log that has just begun has no state and no wait. The same batch
tells the log's last timestamp, where that of the segment is low (ADR 7).

What an operator has given up for lost may have held the state: then the last that is left counts,
and if its control batch is lost too, the log has no token and knows no named producer. That is said
in the log of the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from random import Random
from typing import Final

from metadata.history_rules import archived_until
from metadata.records import LogRecord
from sequencer.config import SequencerConfig
from sequencer.history import HistoryPage, HistoryScanner
from sequencer.loglets import ActiveLoglet
from sequencer.metrics import SequencerMetrics
from sequencer.state import NO_STATE, LogState, StateRange
from sharedlog.backoff import Backoff
from sharedlog.batch import BatchProducer, Placement
from sharedlog.clock import Clock
from sharedlog.control import decode_control
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset

log = logging.getLogger(__name__)

_RETRY_MIN_S: Final = 0.1
_RETRY_MAX_S: Final = 2.0


class StateRecovery:
    """Recovers the states of logs, so many at once; `latest` gives a chain as it is by now."""

    def __init__(
        self,
        *,
        history: HistoryScanner,
        clock: Clock,
        random: Random,
        config: SequencerConfig,
        metrics: SequencerMetrics,
        latest: Callable[[LogRecord], LogRecord],
    ) -> None:
        self._history = history
        self._latest = latest
        self._clock = clock
        self._random = random
        self._config = config
        self._metrics = metrics
        self._places = asyncio.Semaphore(config.recoveries_max)
        self._tasks: asyncio.TaskGroup | None = None
        self._early: list[tuple[ActiveLoglet, LogRecord]] = []

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Recover in this group from now on."""
        self._tasks = tasks
        early, self._early = self._early, []
        for active, record in early:
            self._start(tasks, active, record)

    def take_over(self, active: ActiveLoglet, record: LogRecord) -> None:
        """The loglet is new here: find its log's state, and open its gate then."""
        if last_offset(record, active.core.base) is None:
            active.on_state(LogState(expiry_s=self._config.named_producer_expiry_s))
            return
        active.await_state()
        if self._tasks is None:
            self._early.append((active, record))
        else:
            self._start(self._tasks, active, record)

    def _start(self, tasks: asyncio.TaskGroup, active: ActiveLoglet, record: LogRecord) -> None:
        tasks.create_task(self._run(active, record), name=f"state-{active.loglet}")

    async def _run(self, active: ActiveLoglet, record: LogRecord) -> None:
        backoff = Backoff(self._random, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
        began_s = self._clock.monotonic_s()
        while not active.left:
            # Who has the copies may have changed, and what cannot be had may have been given up.
            record = self._latest(record)
            try:
                async with self._places:
                    state = await self.recover(record, active.core.base)
            except SharedLogError as error:
                active.stateless = f"its state can't be read from it: {error}"
                extra = {"log": record.name, "error": str(error)}
                log.warning("state.unavailable", extra=extra)
                await self._clock.sleep(backoff.next_s())
                continue
            active.on_state(state)
            took_s = self._clock.monotonic_s() - began_s
            self._metrics.recoveries.observe(took_s)
            fields = {"log": record.name, "seconds": round(took_s, 4), "range": state.range}
            log.debug("state.recovered", extra=fields)
            return

    async def recover(self, record: LogRecord, base: Offset) -> LogState:
        """The state of the log behind all that lies below `base`.

        Raises:
            LogUnavailable: a part of the log that is needed can't be had.

        **Cancellation:** safe.
        """
        state = LogState(expiry_s=self._config.named_producer_expiry_s)
        # What is needed here is left on log servers by a purge, but not in the archive.
        record = replace(record, start=min(record.start, archived_until(record.chain)))
        last = last_offset(record, base)
        if last is None or last < record.start:
            return state
        placements: list[Placement] = []
        async for page in self._scan(record, last, Offset(last + 1)):
            placements += [placement for placement, _ in page.batches]
        assert len(placements) == 1, "a single offset that is not lost lies in one batch"
        state.last_ms = placements[0].timestamp_ms
        found = StateRange(placements[0].state_from, placements[0].state_until)
        if found == NO_STATE:
            return state
        batches: list[tuple[Placement, BatchProducer]] = []
        controls: list[bytes] = []
        async for page in self._scan(record, *found):
            batches += page.batches
            controls += page.controls
        if not controls:
            log.error("state.lost", extra={"log": record.name, "range": found})
            return state
        state.on_recovered(found, decode_control(controls[-1]), batches)
        state.is_archived = found.start < archived_until(record.chain)
        return state

    async def _scan(
        self, record: LogRecord, start: Offset, end: Offset
    ) -> AsyncGenerator[HistoryPage, None]:
        async with aclosing(self._history.scan(record, start, end)) as pages:
            async for page in pages:
                yield page


def last_offset(record: LogRecord, base: Offset) -> Offset | None:
    """The highest offset below `base` that is in the log and not given up for lost."""
    for segment in reversed(record.chain):
        position = base if segment.end is None else min(base, segment.end)
        for lost in reversed(segment.lost):
            if lost.first < position <= lost.end:
                position = lost.first
        if position > segment.base:
            return Offset(position - 1)
    return None
