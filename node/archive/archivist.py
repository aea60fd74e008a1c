"""Archives, trims and purges by itself the logs that this node orders, as their retention says.

Once in a while each of them is looked at. What is due is done beside the others, a bounded number
at a time; one log's troubles keep no other from it, and are tried again with growing pauses. All of
it can be done twice, so it does not matter that another node may order the log by now.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

from loglet.archive.manifests import Manifests
from loglet.archive.offload import Step
from metadata.archive_rules import Committed
from metadata.records import LogRecord
from metadata.view import ClusterView
from node.archive.config import OffloadConfig
from node.archive.due import Backlog
from node.archive.metrics import ArchiveMetrics
from node.archive.retention import local_start_wanted, start_wanted
from node.archive.troubles import Troubles
from node.archive.work import History
from node.controller.work import Job, WorkBoard
from node.tails import Tails
from sequencer.service import Sequencer
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogId, Offset, SequencerId
from sharedlog.retention import NO_RETENTION

log = logging.getLogger("node")

LOOK_EVERY_S: Final = 1.0
TAILS_PER_LOOK_MAX: Final = 50
"""Logs whose tail is asked for in one look, of those that nobody has written to since the start."""
PURGES_PER_AGE: Final = 50
"""How often a log without an archive is purged while one `total_age` goes by, at most."""

_RETRY_MIN_S: Final = 1.0
_RETRY_MAX_S: Final = 60.0


Since = Callable[[str, int, Offset], Awaitable[Offset]]
"""The first offset of a log, by name, of a record at or after a moment (ms), below its tail."""


@dataclass(slots=True)
class _Kept:
    """What is known of one log."""

    backlog: Backlog
    backoff: Backoff
    tell_backoff: Backoff
    not_before_s: float = 0.0  # monotonic; after trouble
    retention_at_s: float = 0.0  # when retention is looked at next
    told: Offset = field(default_factory=lambda: Offset(0))  # all log servers know of this trim
    tell_at_s: float = 0.0  # monotonic; when those that do not know are told again
    is_busy: bool = False


class Archivist:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        sequencer: Sequencer,
        tails: Tails,
        history: History,
        manifests: Manifests | None,
        since: Since,
        metrics: ArchiveMetrics,
        ready: Callable[[], Awaitable[None]],
        board: WorkBoard,
        clock: Clock,
        random: Random,
        config: OffloadConfig,
    ) -> None:
        self._me = me
        self._view = view
        self._sequencer = sequencer
        self._tails = tails
        self._history = history
        self._manifests = manifests
        self._since = since
        self._metrics = metrics
        self._ready = ready
        self._board = board
        self._troubles = Troubles(board)
        self._clock = clock
        self._random = random
        self._config = config
        self._kept: dict[LogId, _Kept] = {}
        self._places = asyncio.Semaphore(config.offloads_max)
        metrics.troubled_logs.set_function(lambda: len(self._troubles))
        metrics.waiting_bytes.set_function(self._waiting_bytes)

    async def run(self) -> None:
        """Look after the logs, until cancelled."""
        await self._ready()
        async with asyncio.TaskGroup() as tasks:
            while True:
                await self._look(tasks)
                await self._clock.sleep(LOOK_EVERY_S * self._random.uniform(0.9, 1.1))

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        """Begin what is due."""
        now_s = self._clock.monotonic_s()
        own = {
            record.log_id: record
            for record, _ in self._view.logs()
            if record.open_segment.sequencer == self._me
        }
        for log_id in [it for it in self._kept if it not in own]:
            del self._kept[log_id]
            self._troubles.remove(log_id)
        asked = 0
        for log_id, record in own.items():
            kept = self._kept.get(log_id)
            if kept is None and asked >= TAILS_PER_LOOK_MAX:
                continue
            if kept is None:
                asked += 1
                kept = await self._begin(record)
            self._see(record, kept, now_s)
            if (
                not kept.is_busy
                and now_s >= kept.not_before_s
                and self._is_due(record, kept, now_s)
            ):
                kept.is_busy = True
                tasks.create_task(self._tend(record, kept), name=f"archive {record.name}")

    async def _begin(self, record: LogRecord) -> _Kept:
        try:
            tail = await self._tails.known(record.name)
        except SharedLogError:
            tail = record.open_segment.base
        backoff, tell_backoff = (
            Backoff(self._random, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S) for _ in range(2)
        )
        backlog = Backlog(record.archived_end, tail)
        kept = self._kept[record.log_id] = _Kept(backlog, backoff, tell_backoff)
        # Not all at once after a start.
        every_s = self._config.retention_every_s
        kept.retention_at_s = self._clock.monotonic_s() + self._random.uniform(0, every_s)
        return kept

    def _see(self, record: LogRecord, kept: _Kept, now_s: float) -> None:
        """How much of the log waits to be archived."""
        loglet = record.loglet(record.open_segment)
        tail = self._sequencer.committed_tail(loglet)
        committed = kept.backlog.committed if tail is None else tail
        kept.backlog.committed_mean(self._sequencer.record_bytes(loglet))
        kept.backlog.look(record.archived_end, committed, now_s)

    def _is_due(self, record: LogRecord, kept: _Kept, now_s: float) -> bool:
        if self._should_offload(kept, now_s) or self._should_tell(record, kept, now_s):
            return True
        return record.retention != NO_RETENTION and now_s >= kept.retention_at_s

    def _should_tell(self, record: LogRecord, kept: _Kept, now_s: float) -> bool:
        return record.trimmed > kept.told and now_s >= kept.tell_at_s

    def _should_offload(self, kept: _Kept, now_s: float) -> bool:
        return self._history.has_archive and kept.backlog.is_due(
            object_bytes=self._config.object_bytes,
            after_s=self._config.offload_after_s,
            now_s=now_s,
        )

    async def _tend(self, record: LogRecord, kept: _Kept) -> None:
        """Do what is due for one log; trouble is told, and tried again later."""
        try:
            while True:
                async with self._places:
                    record = await self._do(record, kept)
                kept.backoff.reset()
                self._troubles.remove(record.log_id)
                now_s = self._clock.monotonic_s()
                self._see(record, kept, now_s)
                # Enough for an object again: others that wait for a place have it first.
                if not self._should_offload(kept, now_s):
                    return
        except SharedLogError as error:
            pause_s = kept.backoff.next_s()
            kept.not_before_s = self._clock.monotonic_s() + pause_s
            fields = {"log": record.name, "error": str(error), "retry_s": round(pause_s, 1)}
            log.warning("archive.trouble", extra=fields)
            self._metrics.failures.inc()
            if record.log_id in self._kept:
                self._troubles.add(record.log_id, record.name, str(error))
        finally:
            kept.is_busy = False

    async def _do(self, record: LogRecord, kept: _Kept) -> LogRecord:
        known = Committed(record.open_segment.index, kept.backlog.committed)
        now_s = self._clock.monotonic_s()
        if self._should_offload(kept, now_s):
            with self._board.doing("archive", f"log {record.name}") as job:
                record = await self._offload(record, known, kept, job)
            kept.retention_at_s = now_s
        if record.retention != NO_RETENTION and now_s >= kept.retention_at_s:
            kept.retention_at_s = now_s + self._config.retention_every_s
            record = await self._retain(record, known, kept)
        if self._should_tell(record, kept, now_s):
            trimmed = await self._history.tell(record, known)
            if trimmed.waiting:
                # One that is away for long costs each of its logs a wait: the others come first.
                kept.tell_at_s = self._clock.monotonic_s() + kept.tell_backoff.next_s()
            else:
                kept.tell_backoff.reset()
                # They may keep a little more, for the next sequencer: the next trim takes that.
                kept.told = trimmed.record.trimmed
        return record

    async def _offload(
        self, record: LogRecord, known: Committed, kept: _Kept, job: Job
    ) -> LogRecord:
        """Archive what is committed, as long as that is enough for objects."""

        async def told(step: Step) -> bool:
            assert step.made is not None
            kept.backlog.archived(step.made.records, step.made.size)
            now_s = self._clock.monotonic_s()
            kept.backlog.look(step.manifest.end, known.tail, now_s)
            job.message = f"up to offset {step.manifest.end}"
            # What is left waits for more, lest there be a small object each time.
            return self._should_offload(kept, now_s)

        record = await self._history.offload(record, known, known.tail, told=told)
        kept.backlog.look(record.archived_end, known.tail, self._clock.monotonic_s())
        return record

    async def _retain(self, record: LogRecord, known: Committed, kept: _Kept) -> LogRecord:
        """Trim and purge what the log's retention lets go."""
        if self._manifests is None:
            return await self._retain_unarchived(record, known, kept)
        loaded = await self._manifests.load(record.log_id)
        if loaded is None:
            return record
        manifest, now_ms = loaded.manifest, self._clock.now_ms()
        entries = [it async for it in self._manifests.entries(manifest)]
        start = start_wanted(entries, record.start, record.retention, now_ms=now_ms)
        if start > record.start:
            record = (await self._history.purge(record, known, start)).record
        below = local_start_wanted(
            manifest, record.retention, now_ms=now_ms, beyond_bytes=kept.backlog.bytes_guess
        )
        if below > record.trimmed:
            record = (await self._history.trim(record, known, below)).record
        return record

    async def _retain_unarchived(
        self, record: LogRecord, known: Committed, kept: _Kept
    ) -> LogRecord:
        """Without an archive only `total_age` can be kept to: nothing else may be dropped."""
        age_s = record.retention.total_age_s
        if age_s is None:
            return record
        # Each purge is a change of the chain, so it goes by parts of the age.
        kept.retention_at_s += age_s / PURGES_PER_AGE
        oldest_ms = self._clock.now_ms() - 1_000 * age_s
        start = await self._since(record.name, oldest_ms, known.tail)
        if start > record.start:
            record = (await self._history.purge(record, known, start)).record
        return record

    def _waiting_bytes(self) -> int:
        if not self._history.has_archive:
            return 0
        return sum(kept.backlog.bytes_guess for kept in self._kept.values())
