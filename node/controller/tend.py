"""One log after the other is brought to full strength: backfill, and re-replication.

What has been found complete is remembered (`ledger.py`) and not looked at again, so tending a log
that is well costs a walk over its chain and no question to anybody.

A log with news is tended at once: segments that must leave a store, and the newest closed ones. All
the rest, which for a new controller is the whole history of the cluster, is looked at *thoroughly*,
log by log, at no more than `LOOKS_PER_S` segments a second.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from metadata.reconfiguration import choose_replacements
from metadata.records import LogRecord, Replica, Segment
from metadata.store import Version
from node.controller.backfill import Backfill, Mended
from node.controller.core import (
    LEAVES_CLOSED,
    Picture,
    condition_of,
    leaving,
    usable_log_servers,
)
from node.controller.index import store_of
from node.controller.ledger import Ledger
from node.controller.metrics import ControllerMetrics
from node.controller.pace import Pace
from node.controller.rereplicate import Rereplication
from node.controller.work import WorkBoard
from node.load import LoadIndex
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset

log = logging.getLogger("node")

NEWEST: Final = 8
"""Closed segments that are looked at as soon as the log has changed."""
LOOKS_PER_S: Final = 100


@dataclass(slots=True)
class _Visit:
    """One log while it is tended."""

    record: LogRecord
    version: Version
    problem: str = ""  # the first thing that went wrong
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Tended:
    """A log after it was tended."""

    record: LogRecord  # its newest chain
    version: Version
    sealed: bool  # its open segment was sealed by somebody
    problem: str = ""  # why it has to be tended again soon


class Tending:
    """See the module's docstring. A log is tended by one task at a time."""

    def __init__(
        self,
        *,
        load: LoadIndex,
        backfill: Backfill,
        rereplication: Rereplication,
        board: WorkBoard,
        metrics: ControllerMetrics,
        clock: Clock,
    ) -> None:
        self._load = load
        self._backfill = backfill
        self._rereplication = rereplication
        self._board = board
        self._metrics = metrics
        self._ledger = Ledger()
        self._open_due: set[str] = set()
        self._looks = Pace(LOOKS_PER_S, clock)

    @property
    def ledger(self) -> Ledger:
        """What was found complete; not to be changed."""
        return self._ledger

    def look_at_open(self, name: str) -> None:
        """Have the log's open segment looked at, the next time that it is tended."""
        self._open_due.add(name)

    def forget_all(self) -> None:
        """Look at everything again."""
        self._ledger.forget_all()

    def is_open_due(self, record: LogRecord, committed: Offset) -> bool:
        """An open segment of which this tail is known should be looked at."""
        upto = self._ledger.open_upto(record.loglet(record.open_segment))
        return committed > (record.open_segment.base if upto is None else upto)

    async def tend(
        self,
        record: LogRecord,
        version: Version,
        picture: Callable[[], Picture],
        *,
        thorough: bool,
    ) -> Tended:
        """Bring a log's segments to full strength; only the newest ones unless `thorough`.

        A replica that is away is no failure: its segments are due again when it is back. If
        something could not be copied, or a store not be left, the result says so: try again later.

        **Cancellation:** safe.
        """
        visit = _Visit(record, version)
        closed = record.chain[:-1]
        if _has_to_leave(record.name, picture()):
            for segment in closed:
                await self._leave_stores(visit, segment, picture)
        for segment in closed if thorough else closed[-NEWEST:]:
            look = picture()
            if self._is_due(record, segment, look) and not leaving(segment, look):
                if thorough:
                    await self._looks.spend(1)
                await self._mend(visit, segment)
        if record.name in self._open_due:
            self._open_due.discard(record.name)
            visit.sealed = (await self._mend(visit, record.open_segment)).sealed
        return Tended(visit.record, visit.version, sealed=visit.sealed, problem=visit.problem)

    async def _leave_stores(
        self, visit: _Visit, segment: Segment, picture: Callable[[], Picture]
    ) -> None:
        """Off the stores that are to be left, one by one, the most urgent first.

        Each by itself: what is lost must not wait for a place for what is merely drained. What can
        not be moved is tried again in the same visit once another has made room. Failing that, the
        others shall be complete.
        """
        problem, tried = "", False
        while going := leaving(segment, look := picture()):
            problem, moved = "", False
            for index in going:
                try:
                    target = self._choose(segment, index, look)
                    # If this fails there may be damage where the copy was to come from.
                    tried = True
                    await self._move(visit, segment, index, target)
                except SharedLogError as error:
                    problem = problem or str(error)
                else:
                    moved = True
                    break
            found = _segment_of(visit.record, segment.index)
            if not moved or found is None or found.nodeset == segment.nodeset:
                break  # the last: somebody else is at it
            segment = found
        if problem:
            visit.problem = visit.problem or problem
            if self._is_due(visit.record, segment, picture()):
                await self._mend(visit, segment, verify=tried)

    def _choose(self, segment: Segment, index: int, look: Picture) -> Replica:
        """Raises `LogUnavailable`."""
        usable = usable_log_servers(look)
        return choose_replacements(segment, [index], usable, self._load.load)[index]

    async def _move(self, visit: _Visit, segment: Segment, index: int, target: Replica) -> None:
        with self._board.if_told("re-replicate", _subject(visit.record, segment)) as told:
            visit.record, visit.version = await self._rereplication.move(
                visit.record, segment, index, target, told=told
            )

    def _is_due(self, record: LogRecord, segment: Segment, look: Picture) -> bool:
        return self._ledger.is_due(record, segment, lambda it: _can_be_asked(it, look))

    async def _mend(self, visit: _Visit, segment: Segment, *, verify: bool = False) -> Mended:
        record = visit.record
        start = None
        if segment.end is None:
            start = self._ledger.open_upto(record.loglet(segment))
        with self._board.if_told("backfill", _subject(record, segment)) as told:
            mended = await self._backfill.mend(
                record, segment, start=start, verify=verify, told=told
            )
        self._ledger.on_mended(record, segment, mended)
        self._metrics.segments_lacking.set(self._ledger.lacking)
        self._metrics.records_lacking.set(self._ledger.lacking_records)
        _report(record, segment, mended)
        if mended.errors and not visit.problem:
            visit.problem = f"{_subject(record, segment)}: {mended.errors[0]}"
        elif self._is_unfinished(segment, mended) and not visit.problem:
            visit.problem = f"{_subject(record, segment)}: more was found lacking than was copied"
        return mended

    @staticmethod
    def _is_unfinished(segment: Segment, mended: Mended) -> bool:
        """Something is still lacking, and there is no reason why it could not be copied.

        Of an open segment that is usual, since its servers come and go: it is looked at again.
        """
        why = mended.away or mended.lost or mended.nobody
        return segment.end is not None and not mended.complete and not why


def _has_to_leave(name: str, look: Picture) -> bool:
    """A closed segment of the log is on a store that is to be left."""
    use = look.index.log(name)
    return use is not None and any(
        condition_of(store, look) in LEAVES_CLOSED for stores in use.closed for store in stores
    )


def _can_be_asked(replica: Replica, look: Picture) -> bool:
    return look.health.is_up(replica.node_id) and condition_of(store_of(replica), look) != "lost"


def _segment_of(record: LogRecord, index: int) -> Segment | None:
    return next((it for it in record.chain if it.index == index and it.end is not None), None)


def _subject(record: LogRecord, segment: Segment) -> str:
    return f"log {record.name} segment {segment.index}"


def _report(record: LogRecord, segment: Segment, mended: Mended) -> None:
    fields = {"log": record.name, "segment": segment.index}
    if mended.copied_bytes:
        log.info("segment.backfilled", extra={**fields, "bytes": mended.copied_bytes})
    if mended.nobody and not mended.away:
        first, end = mended.nobody[0]
        log.error("segment.lost", extra={**fields, "first": first, "end": end})
