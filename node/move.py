"""One reconfiguration of one log, step by step; `reconfigure.py` says when and how often.

    plan → (planned: the sequencer stops admitting) → seal, find tail, repair → compare-and-swap

* **Nothing is sealed that can't be extended.** The plan is made and the metadata store asked
  before, since a sealed log takes no appends: with the store away, too few nodes alive, or a chain
  that is full, the log stays as it is (field note 52). What is planned, and can be done without,
  is refused while a full chain has still room for failovers.
* **The pause is short.** While the old sequencer drains, the chain is read again; all seals go out
  at once; what can wait (telling log servers the end) is done afterwards.
* **Every outcome is known.** A compare-and-swap whose answer was lost is settled by reading the
  attempt's id back; until then nobody is told of a new segment. One that lost because another field
  of the record changed is made again with the same end.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from metadata.reconfiguration import Change, Plan, end_segment
from metadata.records import LogRecord, NodeRecord, Segment
from metadata.registry import commit_change
from metadata.store import MetadataStore, Version
from metadata.view import ClusterView
from node.causes import Cause
from node.ends import EndTeller
from node.metrics import ReconfigurationMetrics
from node.planner import Planner
from node.repair import SealedSegment, SegmentSealer
from sharedlog.clock import Clock
from sharedlog.errors import LogNotFound, LogUnavailable, SharedLogError
from sharedlog.ids import LogletId, Offset, SequencerId
from sharedlog.rpc.methods import PREPARE_MOVE
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import admin_pb2

log = logging.getLogger("node")

log = logging.getLogger("node")

DRAIN_TIMEOUT_S: Final = 0.5
"""A sequencer that has not drained after this time is sealed all the same: the chain then says what
became of what was in flight."""


class Movable(Protocol):
    """What is needed of `sequencer/service.py:Sequencer`."""

    async def prepare_move(self, record: LogRecord, *, timeout_s: float) -> tuple[bool, Offset]:
        """Admit nothing more of the log and drain it."""
        ...

    def resume(self, loglet: LogletId) -> None:
        """Admit again."""
        ...

    def on_chain(self, record: LogRecord, version: int) -> None:
        """The log's chain has moved."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconfigured:
    """A log after a reconfiguration, one's own or somebody else's."""

    record: LogRecord
    version: Version
    ended: Segment  # with its end; one that was empty is not in the chain any more
    opened: Segment
    adopted: bool  # somebody else's was faster
    repaired_records: int = 0
    pause_ms: float = 0.0  # from the stop of admission to the won compare-and-swap


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What every move works with."""

    me: SequencerId
    store: MetadataStore
    view: ClusterView
    transport: Transport
    clock: Clock
    new_id: Callable[[], str]
    planner: Planner
    sealer: SegmentSealer
    ends: EndTeller
    sequencer: Movable | None
    metrics: ReconfigurationMetrics


class Move:
    """See the module's docstring. Good for one `run`."""

    def __init__(
        self,
        tools: Tools,
        record: LogRecord,
        change: Change,
        *,
        planned: bool,
        cause: Cause = Cause.OTHER,
    ) -> None:
        self._tools = tools
        self._record = record
        self._segment = record.open_segment
        self._loglet = record.loglet(self._segment)
        self._change = change
        self._planned = planned
        self._cause = cause
        self._begun_s = tools.clock.monotonic_s()
        self._held: NodeRecord | None = None  # another node, whose sequencer was told to wait
        self.sealing = False
        """The log may be sealed by now, so that it takes no appends before its chain has moved."""
        self.steps: dict[str, object] = {}
        """What is done so far, and how long each step took: for one line in the log."""

    async def run(self) -> Reconfigured | None:
        """Do it; None if the chain is not what it was when the record was read: look again.

        Raises:
            InvalidArgument, LogNotFound, LogUnavailable, MetadataUnavailable.
        """
        tools = self._tools
        plan = tools.planner.plan(self._record, self._change, optional=self._planned)
        done = False
        with tools.planner.planned(plan):
            try:
                record, version = await self._hold_and_read()
                held_s = tools.clock.monotonic_s() - self._begun_s
                self.steps["hold_ms"] = round(held_s * 1_000, 2)
                if not self._is_open(record):
                    return None
                self.sealing = True
                sealed = await self._seal(record)
                if sealed is None:
                    return None
                found = await self._extend(record, version, plan, sealed)
                done = True
                return found
            except SharedLogError:
                await self._resume_there()
                raise
            finally:
                if not done and tools.sequencer is not None:
                    tools.sequencer.resume(self._loglet)

    def _is_open(self, record: LogRecord) -> bool:
        """The segment is still the open one of that very log."""
        same = record.log_id == self._record.log_id
        return same and record.open_segment.index == self._segment.index

    # ------------------------------------------------------------------ before the seal

    async def _hold_and_read(self) -> tuple[LogRecord, Version]:
        """The chain as the store has it; meanwhile, if that is planned, admission stops."""
        name = self._record.name
        if not self._planned:
            return await self._tools.view.refresh_log(name)
        async with asyncio.TaskGroup() as tasks:
            hold = tasks.create_task(self._hold(), name=f"hold {name}")
            outcome = await self._read(name)
            if isinstance(outcome, SharedLogError):
                hold.cancel()
        if isinstance(outcome, SharedLogError):
            raise outcome
        return outcome

    async def _read(self, name: str) -> tuple[LogRecord, Version] | SharedLogError:
        # An error as a value: a task group would wrap it.
        try:
            return await self._tools.view.refresh_log(name)
        except SharedLogError as error:
            return error

    async def _hold(self) -> None:
        """Have the sequencer stop admitting and drain. Best effort: the seal does without."""
        tools, named = self._tools, self._segment.sequencer
        try:
            if named == tools.me and tools.sequencer is not None:
                await tools.sequencer.prepare_move(self._record, timeout_s=DRAIN_TIMEOUT_S)
                return
            node = tools.view.node(named.node_id)
            gone = node is None or node.generation != named.generation
            if node is None or gone or not tools.planner.may_answer(node):
                return
            request = admin_pb2.PrepareMoveRequest(
                log=self._record.name, segment_index=self._segment.index
            )
            self._held = node
            await tools.transport.call(
                node.address, PREPARE_MOVE, request, timeout_s=DRAIN_TIMEOUT_S
            )
        except SharedLogError as error:
            fields = {"log": self._record.name, "sequencer": str(named), "error": str(error)}
            log.info("log.not_held", extra=fields)

    async def _resume_there(self) -> None:
        """Tell a sequencer elsewhere that nothing came of it: by itself it would wait for long.

        Should a log server have been sealed it hears of that now, and follows it up.
        """
        if self._held is None:
            return
        request = admin_pb2.PrepareMoveRequest(
            log=self._record.name, segment_index=self._segment.index, resume=True
        )
        try:
            await self._tools.transport.call(
                self._held.address, PREPARE_MOVE, request, timeout_s=DRAIN_TIMEOUT_S
            )
        except SharedLogError as error:
            fields = {"log": self._record.name, "node": self._held.node_id, "error": str(error)}
            log.info("log.not_resumed", extra=fields)

    # ------------------------------------------------------------------ seal and extend

    async def _seal(self, record: LogRecord) -> SealedSegment | None:
        """None if it failed, and somebody else has ended the segment meanwhile."""
        tools = self._tools
        try:
            sealed = await tools.sealer.seal(record, candidates=tools.planner.replacements())
        except LogUnavailable as error:
            # Somebody may have been faster: then the end is why servers refused to be repaired.
            fresh = await self._read(record.name)
            if isinstance(fresh, SharedLogError) or self._is_open(fresh[0]):
                raise error from None
            return None
        ending = sealed.ending
        self.steps |= {
            "seal_ms": round(sealed.seal_ms, 2),
            "repair_ms": round(sealed.repair_ms, 2),
            "sealed": list(sealed.sealed),
            "tail": ending.end,
            "committed_tail": ending.committed_tail,
            "repaired_records": ending.repaired_records,
        }
        tools.metrics.sealed(self._cause)
        return sealed

    async def _extend(
        self, record: LogRecord, version: Version, plan: Plan, sealed: SealedSegment
    ) -> Reconfigured:
        """The compare-and-swap, and who is told of it."""
        tools, ending, nonce = self._tools, sealed.ending, self._tools.new_id()
        replaced = ending.nodeset if ending.nodeset != self._segment.nodeset else None

        def build(found: LogRecord) -> LogRecord | None:
            if found.log_id != record.log_id:
                raise LogNotFound(name=record.name)
            if not self._is_open(found):
                return None
            return end_segment(
                found,
                end=ending.end,
                timestamp_ms=ending.last_timestamp_ms,
                plan=plan,
                nonce=nonce,
                nodeset_of_ended=replaced,
            )

        extend_s = tools.clock.monotonic_s()
        after, version, made = await commit_change(
            tools.store, record.name, build, nonce, start=(record, version)
        )
        now_s = tools.clock.monotonic_s()
        tools.view.learn(after, version)
        if tools.sequencer is not None:
            tools.sequencer.on_chain(after, version)
        ended, opened = ended_segment(after, self._segment), after.open_segment
        assert ended.end is not None
        tools.ends.tell(
            dict.fromkeys((*self._segment.nodeset, *ended.nodeset)), self._loglet, ended.end
        )
        done = Reconfigured(
            record=after,
            version=version,
            ended=ended,
            opened=opened,
            adopted=not made,
            repaired_records=ending.repaired_records,
            pause_ms=(now_s - self._begun_s) * 1_000,
        )
        self.steps["cas_ms"] = round((now_s - extend_s) * 1_000, 2)
        self._note(done)
        return done

    def _note(self, done: Reconfigured) -> None:
        """What came of it, for the one line that tells of it, and for metrics."""
        self.steps |= {
            "end": done.ended.end,
            "pause_ms": round(done.pause_ms, 2),
            "ended_nodeset": [replica.node_id for replica in done.ended.nodeset],
        }
        if not done.adopted:
            kind = "planned" if self._planned else "unplanned"
            self._tools.metrics.moved(
                kind, pause_s=done.pause_ms / 1_000, repaired_records=done.repaired_records
            )


def ended_segment(record: LogRecord, was: Segment) -> Segment:
    """The segment `was` as the chain ended it; one that ended empty is not there any more."""
    at = bisect_right(record.chain, was.index, key=lambda segment: segment.index)
    if at and record.chain[at - 1].index == was.index:
        return record.chain[at - 1]
    base = record.chain[at].base
    return replace(was, base=base, end=base)
