"""Reconfiguration: how everything about a log changes, and how it goes on after a death.

Any node can do this to any log, several at once; the compare-and-swap decides, and who loses adopts
what the winner wrote. What one reconfiguration does is in `move.py`: plan, stop admission, seal,
find the tail, repair (`repair.py`), extend. Here it is kept in order:

* **One at a time.** Reconfigurations of one log are single flight within the process. Who only
  wants the open segment ended shares the flight that is under way, and its outcome; who wants
  something of the next segment gets a flight of its own.
* **It belongs to nobody's call.** A caller that goes away leaves nothing half done.
* **Troubles are remembered** until the log's chain has moved, for `status`. The pace of further
  attempts is the caller's (`failover.py`; field note 18).
* **One line tells of each,** `reconfiguration.done`: why, from which segment to which, who sealed,
  how long each step took, and what came of it. Failures after the first in a row are told at debug.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final

from metadata.reconfiguration import Change, end_segment
from metadata.records import LogRecord, Segment
from metadata.store import MetadataStore, Version
from metadata.view import ClusterView
from node.causes import Cause
from node.ends import EndTeller
from node.flights import Flights
from node.metrics import ReconfigurationMetrics
from node.move import Movable, Move, Reconfigured, Tools, ended_segment
from node.planner import Knows, Planner
from node.repair import SegmentSealer
from sharedlog.clock import Clock
from sharedlog.errors import (
    InvalidArgument,
    LogNotFound,
    LogUnavailable,
    MetadataUnavailable,
    SharedLogError,
    Unrepairable,
)
from sharedlog.ids import SequencerId
from sharedlog.rpc.transport import Transport
from sharedlog.tasks import run_together

log = logging.getLogger("node")

__all__ = ["Reconfigured", "Reconfigurer", "Trouble"]

RESTARTS_MAX: Final = 5
"""Times that a reconfiguration begins anew because the chain moved under it."""

_AS_IT_IS: Final = Change()


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """Why a log could not be reconfigured the last time that it was tried."""

    log: str
    segment_index: int
    message: str
    unrepairable: bool  # a person has to decide
    attempts: int  # in a row
    since_ms: int  # Unix time of the first of them


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What is to be done."""

    name: str
    change: Change
    reason: str
    cause: Cause
    segment_index: int | None
    planned: bool

    @property
    def kind(self) -> str:
        """For metrics."""
        return "planned" if self.planned else "unplanned"


class Reconfigurer:
    """See the module's docstring. `run` must be running for anything to be done."""

    def __init__(
        self,
        *,
        me: SequencerId,
        store: MetadataStore,
        view: ClusterView,
        transport: Transport,
        clock: Clock,
        random: Random,
        new_id: Callable[[], str],
        liveness: Knows,
        sequencer: Movable | None,
        metrics: ReconfigurationMetrics,
    ) -> None:
        self._view = view
        self._clock = clock
        self._metrics = metrics
        self._new_id = new_id
        self._planner = Planner(view=view, liveness=liveness)
        self._ends = EndTeller(view=view, transport=transport, clock=clock, random=random)
        self._tools = Tools(
            me=me,
            store=store,
            view=view,
            transport=transport,
            clock=clock,
            new_id=new_id,
            planner=self._planner,
            sealer=SegmentSealer(view=view, transport=transport, clock=clock, random=random),
            ends=self._ends,
            sequencer=sequencer,
            metrics=metrics,
        )
        self._flights: Flights[str, Reconfigured] = Flights("reconfiguration")
        self._troubles: dict[str, Trouble] = {}

    async def run(self) -> None:
        """Own the work, until cancelled."""
        await run_together({"reconfigure": self._flights.run(), "tell-ends": self._ends.run()})

    # ------------------------------------------------------------------ for everybody

    async def reconfigure(
        self,
        name: str,
        change: Change = _AS_IT_IS,
        *,
        reason: str,
        cause: Cause = Cause.OTHER,
        segment_index: int | None = None,
        planned: bool = True,
    ) -> Reconfigured:
        """End the log's open segment and begin another, changed as `change` says.

        With `segment_index` only that segment is ended, by this call or by whoever is faster; if it
        has an end already, the present chain is the answer (`adopted`). `planned`: its sequencer
        is asked to stop admitting and to drain first, if it can be reached. `reason` is for people,
        `cause` for metrics.

        Raises:
            InvalidArgument: the change itself is wrong. LogNotFound.
            LogUnavailable: not now, and why; `Unrepairable`: not without a person.
            MetadataUnavailable: the store is away. If it went away at the very end, the change may
            have been made.

        **Cancellation:** stops the wait, not the reconfiguration.
        """
        order = _Order(
            name=name,
            change=change,
            reason=reason,
            cause=cause,
            segment_index=segment_index,
            planned=planned,
        )
        while True:
            mine: list[bool] = []

            def make(mine: list[bool] = mine) -> Coroutine[Any, Any, Reconfigured]:
                mine.append(True)
                return self._run(order)

            shared = self._flights.under_way(name)
            try:
                done = await self._flights.join(name, make)
            except SharedLogError:
                if mine or not shared or segment_index is not None:
                    raise
                continue  # another's change that failed says nothing of this one
            if mine:
                return done
            if segment_index is not None and done.opened.index > segment_index:
                return replace(done, adopted=True)

    async def preview(self, name: str, change: Change = _AS_IT_IS) -> Segment:
        """The segment that `change` would open, if the present one ended where it begins.

        Raises:
            InvalidArgument, LogNotFound, LogUnavailable, MetadataUnavailable: as `reconfigure`.
        """
        record, _ = await self._view.refresh_log(name)
        plan = self._planner.plan(record, change, optional=True)
        base = record.open_segment.base
        after = end_segment(record, end=base, timestamp_ms=0, plan=plan, nonce=self._new_id())
        return after.open_segment

    def troubles(self) -> Mapping[str, Trouble]:
        """Logs that this process could not reconfigure the last time, by name."""
        for name, trouble in list(self._troubles.items()):
            found = self._view.log(name)
            if found is None or found[0].open_segment.index > trouble.segment_index:
                del self._troubles[name]
        return dict(self._troubles)

    # ------------------------------------------------------------------ one flight

    async def _run(self, order: _Order) -> Reconfigured:
        begun_s = self._clock.monotonic_s()
        steps: dict[str, object] = {}
        try:
            done = await self._restarting(order, steps)
        except SharedLogError as error:
            self._tell(order, _outcome(error), begun_s, steps | {"error": str(error)})
            raise
        self._troubles.pop(order.name, None)
        opened = {
            "to_segment": done.opened.index,
            "sequencer": str(done.opened.sequencer),
            "nodeset": [replica.node_id for replica in done.opened.nodeset],
        }
        self._tell(order, "adopted" if done.adopted else "won", begun_s, steps | opened)
        return done

    async def _restarting(self, order: _Order, steps: dict[str, object]) -> Reconfigured:
        """Moves, until one is made or adopted; `steps` is told how the last one went."""
        index = order.segment_index
        for restarts in range(RESTARTS_MAX):
            record, version = await self._view.fetch_log(order.name)
            steps.clear()
            steps |= {"segment": record.open_segment.index, "restarts": restarts}
            if index is not None and record.open_segment.index > index:
                steps["segment"] = index
                return _adopt(record, version, index)
            move = Move(self._tools, record, order.change, planned=order.planned, cause=order.cause)
            try:
                done = await move.run()
            except SharedLogError as error:
                # A plan that can't be made is no trouble for a log that goes on as it is.
                if move.sealing or not order.planned:
                    self._note_trouble(record, error)
                raise
            finally:
                steps |= {"base": record.open_segment.base, **move.steps}
            adopted_other = done is not None and done.adopted and order.change != _AS_IT_IS
            if done is not None and not (adopted_other and index is None):
                return done
        raise LogUnavailable(f"log {order.name}: its chain moves faster than it can be changed")

    def _tell(
        self, order: _Order, outcome: str, begun_s: float, steps: Mapping[str, object]
    ) -> None:
        seconds = self._clock.monotonic_s() - begun_s
        self._metrics.count(order.kind, order.cause, outcome, seconds)
        trouble = self._troubles.get(order.name)
        again = "error" in steps and trouble is not None and trouble.attempts > 1
        fields = {
            "log": order.name,
            "outcome": outcome,
            "kind": order.kind,
            "cause": str(order.cause),
            "reason": order.reason,
            "ms": round(seconds * 1_000, 2),
            **steps,
        }
        log.log(logging.DEBUG if again else logging.INFO, "reconfiguration.done", extra=fields)

    def _note_trouble(self, record: LogRecord, error: SharedLogError) -> None:
        if isinstance(error, InvalidArgument | LogNotFound):
            return
        index = record.open_segment.index
        before = self._troubles.get(record.name)
        if before is not None and before.segment_index != index:
            before = None
        self._troubles[record.name] = Trouble(
            log=record.name,
            segment_index=index,
            message=str(error),
            unrepairable=isinstance(error, Unrepairable),
            attempts=1 if before is None else before.attempts + 1,
            since_ms=self._clock.now_ms() if before is None else before.since_ms,
        )


def _adopt(record: LogRecord, version: Version, segment_index: int) -> Reconfigured:
    """The chain has left the segment behind already."""
    opened = record.open_segment
    # One that ended empty is gone from the chain, with its configuration.
    was = replace(opened, index=segment_index, end=None)
    return Reconfigured(
        record=record,
        version=version,
        ended=ended_segment(record, was),
        opened=opened,
        adopted=True,
    )


def _outcome(error: SharedLogError) -> str:
    match error:
        case Unrepairable():
            return "unrepairable"
        case LogUnavailable():
            return "unavailable"
        case MetadataUnavailable():
            return "metadata"
        case _:
            return "refused"
