"""Archives, by itself, the logs that this node is to archive; trims and purges those it orders.

Who archives which log is said by `responsible.py`; trims and purges follow a log's retention. Once
in a while each log is looked at. What is due is done beside the others, a bounded number at a time;
one log's troubles keep no other from it, and are tried again with growing pauses. All of it can be
done twice, so it does not matter that another node may do it by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Protocol

from loglet.archive.manifests import Manifests
from loglet.archive.offload import Step
from metadata.archive_rules import Committed
from metadata.core import can_order
from metadata.records import LogRecord, NodeRecord
from metadata.view import ClusterView
from node.archive.config import OffloadConfig
from node.archive.due import Backlog
from node.archive.metrics import ArchiveMetrics
from node.archive.responsible import TAKE_OVER_S, TAKEN_OVER_S, archiver_of
from node.archive.retention import local_start_wanted, start_wanted
from node.archive.troubles import Troubles
from node.archive.work import History
from node.controller.work import Job, WorkBoard
from node.tails import Tails
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogId, LogletId, NodeId, Offset, SequencerId, StorageId
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


class KnowsTail(Protocol):
    """Where an open segment ends by now: its sequencer knows best, a log server a little less."""

    def committed_tail(self, loglet: LogletId) -> Offset | None:
        """All below is committed; None: nothing is known of the loglet."""
        ...

    def record_bytes(self, loglet: LogletId) -> float | None:
        """Mean size of records of late; None if there were none."""
        ...


@dataclass(slots=True)
class _Kept:
    """What is known of one log."""

    orders: bool  # this process orders it
    archives: bool  # and, or, this node is to archive it
    backlog: Backlog
    backoff: Backoff
    tell_backoff: Backoff
    not_before_s: float = 0.0  # monotonic; after trouble
    retention_at_s: float = 0.0  # when retention is looked at next
    told: Offset = field(default_factory=lambda: Offset(0))  # all log servers know of this trim
    tell_at_s: float = 0.0  # monotonic; when those that do not know are told again
    is_busy: bool = False
    due_since_s: float | None = None  # monotonic; something is to be archived, and nothing was
    took_over_s: float | None = (
        None  # monotonic; when this process began to archive it all the same
    )


class Archivist:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        sequencer: KnowsTail,
        log_server: KnowsTail | None,
        usable: Callable[[], Sequence[NodeRecord]],
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
        self._log_server = log_server
        self._usable = usable
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
        able = self._able()
        own = {
            record.log_id: (record, orders, archives)
            for record, _ in self._view.logs()
            for orders, archives in (self._duties(record, able),)
            if orders or archives
        }
        for log_id in [it for it in self._kept if it not in own]:
            del self._kept[log_id]
            self._troubles.remove(log_id)
        asked = 0
        for log_id, (record, orders, archives) in own.items():
            kept = self._kept.get(log_id)
            if kept is None and asked >= TAILS_PER_LOOK_MAX:
                continue
            if kept is None:
                asked += orders
                kept = await self._begin(record, orders=orders)
            kept.orders, kept.archives = orders, archives
            self._see(record, kept, now_s)
            if (
                not kept.is_busy
                and now_s >= kept.not_before_s
                and self._is_due(record, kept, now_s)
            ):
                kept.is_busy = True
                tasks.create_task(self._tend(record, kept), name=f"archive {record.name}")

    def _able(self) -> Collection[tuple[NodeId, StorageId]]:
        """Nodes that may archive, with their stores: none if there is no archive."""
        if not self._history.has_archive:
            return ()
        return {(it.node_id, it.storage_id) for it in self._usable() if can_order(it)}

    def _duties(
        self, record: LogRecord, able: Collection[tuple[NodeId, StorageId]]
    ) -> tuple[bool, bool]:
        """Whether this process orders the log, and whether it is to archive it."""
        orders = record.open_segment.sequencer == self._me
        archiver = archiver_of(record, able) == self._me.node_id
        # The node's own former life may be named, and there is nobody else.
        return orders, archiver and (orders or self._log_server is not None)

    async def _begin(self, record: LogRecord, *, orders: bool) -> _Kept:
        tail = record.open_segment.base
        if orders:
            with contextlib.suppress(SharedLogError):
                tail = await self._tails.known(record.name)
        backoff, tell_backoff = (
            Backoff(self._random, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S) for _ in range(2)
        )
        backlog = Backlog(record.archived_end, tail)
        kept = self._kept[record.log_id] = _Kept(orders, False, backlog, backoff, tell_backoff)
        # Not all at once after a start.
        every_s = self._config.retention_every_s
        kept.retention_at_s = self._clock.monotonic_s() + self._random.uniform(0, every_s)
        return kept

    def _see(self, record: LogRecord, kept: _Kept, now_s: float) -> None:
        """How much of the log waits to be archived, and for how long nobody has done it."""
        backlog = kept.backlog
        if record.archived_end > backlog.archived_end:
            kept.due_since_s = None
            kept.retention_at_s = min(kept.retention_at_s, now_s)
        knows = self._sequencer if kept.orders else self._log_server
        if knows is not None:
            loglet = record.loglet(record.open_segment)
            backlog.committed_mean(knows.record_bytes(loglet))
            tail = knows.committed_tail(loglet)
            # A log that moved with its last records may rest: nobody has opened the new segment.
            committed = max(backlog.committed, record.open_segment.base) if tail is None else tail
            backlog.look(record.archived_end, committed, now_s)
        if not self._is_offload_due(kept, now_s):
            kept.due_since_s = None
        elif kept.due_since_s is None:
            kept.due_since_s = now_s
        elif kept.orders and now_s - kept.due_since_s >= TAKE_OVER_S:
            kept.took_over_s = now_s

    def _is_due(self, record: LogRecord, kept: _Kept, now_s: float) -> bool:
        if self._should_offload(kept, now_s) or self._should_tell(record, kept, now_s):
            return True
        return self._should_retain(record, kept, now_s)

    def _should_retain(self, record: LogRecord, kept: _Kept, now_s: float) -> bool:
        has_limits = record.retention != NO_RETENTION
        return kept.orders and has_limits and now_s >= kept.retention_at_s

    def _should_tell(self, record: LogRecord, kept: _Kept, now_s: float) -> bool:
        return kept.orders and record.trimmed > kept.told and now_s >= kept.tell_at_s

    def _should_offload(self, kept: _Kept, now_s: float) -> bool:
        took_over = kept.took_over_s is not None and now_s - kept.took_over_s < TAKEN_OVER_S
        return (kept.archives or took_over) and self._is_offload_due(kept, now_s)

    def _is_offload_due(self, kept: _Kept, now_s: float) -> bool:
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
        if self._should_retain(record, kept, now_s):
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
        return sum(kept.backlog.bytes_guess for kept in self._kept.values() if kept.orders)
