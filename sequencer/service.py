"""The sequencer as the node uses it: many loglets, their sessions, appends and tails.

This is the shell: it carries out what the cores decide. All of it runs on the event loop's thread,
between awaits, so an event and its effects are one step. Tasks exist per log server (`link.py`) and
per open session (`session.py`) only, and one that looks around now and then.

**How a log leaves.** Three kinds of news end or hold what this process does with a log:

| news                     | what happens                                                    |
|--------------------------|-----------------------------------------------------------------|
| a move is announced      | `prepare_move`: nothing is admitted, what is in flight goes on  |
| a log server says SEALED | what is in flight ends as indefinite; nothing is admitted       |
| the chain has moved      | `on_chain`: the outcome of all in flight is known; sessions end |

Between the first two and the third everybody waits, each for as long as it said, since nobody knows
yet who orders the log next. If the move is given up (`resume`, or nothing comes of it in
`move_wait_s`) appends are admitted again. A loglet that ended is never taken up again, and one that
the chain has left neither, however old the chain is that a caller comes with (`moves.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from metadata.quorum import QuorumRule
from metadata.records import LogRecord, Segment
from sequencer.admission import (
    NO_CONDITIONS,
    Admission,
    Conditions,
    PlainSender,
    Sender,
    conditions_of,
)
from sequencer.config import WATCH_EVERY_S, SequencerConfig
from sequencer.core import InFlight, LogletSequencer
from sequencer.find_tail import FindTailRounds
from sequencer.history import HistoryScanner, LogHistory
from sequencer.link import Directory
from sequencer.loglets import ActiveLoglet, FutureTicket, MovedOn
from sequencer.metrics import SequencerMetrics
from sequencer.moves import KnownChain, KnownChains, end_of
from sequencer.opening import Claim, Openings, producer_of
from sequencer.producers import REMEMBERED_MAX, IdleProducers, ProducerTable, Remembered
from sequencer.replication import Replication
from sequencer.session import AppendSession, SessionSlot, SessionStream
from sequencer.standing import stand
from sequencer.state import CHECKPOINT
from sequencer.state_recovery import StateRecovery
from sequencer.watch import Watch
from sharedlog.clock import Clock
from sharedlog.errors import (
    AppendIndefinite,
    DeadlineExceeded,
    LogUnavailable,
    Overloaded,
    SharedLogError,
)
from sharedlog.ids import LogId, LogletId, NodeId, Offset, SequencerId
from sharedlog.limits import BATCH_BYTES_MAX
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import log_pb2, types_pb2

log = logging.getLogger(__name__)


class SequencerListener(Protocol):
    """Whom the sequencer tells what it can't mend by itself. Must not raise, nor wait."""

    def on_sealed(self, name: str, loglet: LogletId) -> None:
        """A log server has sealed the loglet, and the chain is not known to have moved.

        Said again every `move_wait_s` while that is so: nothing else here would bring it on.
        """
        ...

    def on_replicas_away(self, name: str, loglet: LogletId, node_ids: Sequence[NodeId]) -> None:
        """These log servers keep the log from committing, or were skipped for long."""
        ...


@dataclass(frozen=True, slots=True)
class AppendedBatch:
    """Where a batch went: offsets [first, end), and the time that it got."""

    first: Offset
    end: Offset
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class SequencerStatus:
    """What this process orders."""

    logs: int
    in_flight_bytes: int
    lagging: Mapping[LogletId, Sequence[NodeId]]  # only loglets that have such replicas
    sealed: int = 0  # logs that have ended here, and nobody knows yet who orders them now
    moved: int = 0  # times that a log's chain has left a loglet of this process behind


class Sequencer:
    """See the module's docstring. Usable once `run` has been started."""

    def __init__(
        self,
        *,
        me: SequencerId,
        transport: Transport,
        directory: Directory,
        clock: Clock,
        random: Random,
        config: SequencerConfig,
        metrics: SequencerMetrics,
        listener: SequencerListener | None = None,
        history: HistoryScanner | None = None,
    ) -> None:
        config.validate()
        self.me = me
        self.listener = listener  # may be set later, before `run`
        self._directory = directory
        self._clock = clock
        self._random = random
        self._config = config
        self._metrics = metrics
        self._active: dict[LogletId, ActiveLoglet] = {}
        self._of_log: dict[LogId, list[ActiveLoglet]] = {}  # the same, by log
        self._chains = KnownChains(me)
        self._idle_producers = IdleProducers(config.producers_max)
        self._watch = Watch(config)
        self._replication = Replication(
            me=me,
            transport=transport,
            directory=directory,
            clock=clock,
            random=random,
            config=config,
            metrics=metrics,
            on_ended=self._on_ended,
        )
        if history is None:
            history = LogHistory(
                transport=transport,
                directory=directory,
                clock=clock,
                random=random,
                own=me.node_id,
            )
        self._admission = Admission(
            replication=self._replication, watch=self._watch, clock=clock, metrics=metrics
        )
        self._openings = Openings(
            history=history,
            admission=self._admission,
            clock=clock,
            config=config,
            metrics=metrics,
        )
        self._states = StateRecovery(
            history=history,
            clock=clock,
            random=random,
            config=config,
            metrics=metrics,
            latest=self._chains.latest,
        )
        self._moved, self._draining, self._stopped = 0, False, False
        metrics.watch(lambda: stand(self._active.values(), clock.monotonic_s()))

    async def run(self) -> None:
        """Own the links' tasks, until cancelled; what is in flight then is indefinite."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._replication.start(tasks)
                self._states.start(tasks)
                while True:
                    await self._clock.sleep(WATCH_EVERY_S * (1 + 0.2 * self._random.random()))
                    self._look_around()
        finally:
            self._stopped = True
            for active in self._active.values():
                active.stop_gate_timer()

    def check_owner(self, record: LogRecord) -> Segment:
        """The log's open segment, if this process, in this life, orders it as far as is known.

        Raises:
            NotSequencer: another node does.
            LogUnavailable: an older life of this node did, or the node is shutting down.
        """
        segment = self._chains.owned(self._chains.newest(record, 0).record)
        if self._draining:
            raise LogUnavailable(f"node {self.me.node_id} is shutting down")
        return segment

    # Appends and tails.

    async def serve_session(
        self,
        stream: SessionStream,
        record: LogRecord,
        opening: log_pb2.AppendSessionOpen | None = None,
        *,
        chain_version: int = 0,
    ) -> None:
        """Serve an append session whose open message was received, until its end.

        That is when the client ends it; or, well and with `moved` as the last message, when
        another process orders the log.

        Raises:
            NotSequencer, LogUnavailable: see `check_owner`; or the log is held for too long, or
            could not be searched for batches that the session repeats.
            ProducerFenced: a newer session or epoch of the producer is known.
            Overloaded: too much is in flight.
        """
        self._check_load()

        async def admitting() -> tuple[ActiveLoglet, KnownChain]:
            return await self._admitting(record, chain_version, self._config.move_wait_s)

        producer = producer_of(opening) if opening is not None else None
        if opening is None or producer is None:
            active, chain = await admitting()
            await self._run_session(stream, active, chain, None)
            return
        claim = self._openings.claim(
            producer,
            admitting,
            resolve_segment=opening.resolve_segment,
            name=opening.producer_name,
        )
        async with claim as claimed:
            await self._run_session(stream, claimed.active, claimed.chain, claimed)

    async def append(
        self,
        record: LogRecord,
        batch: bytes,
        *,
        timeout_s: float,
        conditions: Conditions = NO_CONDITIONS,
    ) -> AppendedBatch:
        """Append one batch of no producer; returns once it is committed.

        Raises:
            NotSequencer, LogUnavailable, Overloaded, CorruptBatch, InvalidArgument,
            ConditionFailed: not appended.
            AppendIndefinite: no write quorum in time, or the segment ended meanwhile.

        **Cancellation:** stops the wait, not the write: the batch may still commit.
        """
        self._check_load()

        def submit(active: ActiveLoglet, ticket: FutureTicket) -> None:
            self._admission.submit(active, PlainSender(), batch, conditions, ticket)

        return await self._append_one(record, submit, timeout_s)

    async def checkpoint(self, record: LogRecord, *, timeout_s: float = 10.0) -> AppendedBatch:
        """Write the log's state into the log once more, so that it needs nothing from before.

        Raises:
            NotSequencer, LogUnavailable: not written. AppendIndefinite: it may be there later.

        **Cancellation:** as for `append`.
        """

        def write(active: ActiveLoglet, ticket: FutureTicket) -> None:
            self._admission.control(active, CHECKPOINT, ticket)

        return await self._append_one(record, write, timeout_s)

    async def find_tail(self, record: LogRecord, *, timeout_s: float = 10.0) -> Offset:
        """The tail, linearizable; see `find_tail.py`.

        Raises:
            NotSequencer, LogUnavailable: see `check_owner`.
            DeadlineExceeded: no write quorum answered in time.

        **Cancellation:** safe.
        """
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            left_s = deadline_s - self._clock.monotonic_s()
            active, _ = await self._admitting(record, 0, left_s)
            try:
                async with asyncio.timeout(deadline_s - self._clock.monotonic_s()):
                    return await self._find_tail(active)
            except MovedOn:
                continue
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"log {record.name}: no write quorum confirmed the tail within {timeout_s:g} s"
                ) from error

    def committed_tail(self, loglet: LogletId) -> Offset | None:
        """What this process knows to be committed; None if the loglet is not active."""
        active = self._active.get(loglet)
        return None if active is None else active.core.committed_tail

    def record_bytes(self, loglet: LogletId) -> float | None:
        """Mean size of the records that this process has committed; None if there are none."""
        active = self._active.get(loglet)
        return None if active is None else active.record_bytes

    def status(self) -> SequencerStatus:
        """What this process orders and which replicas lag."""
        owned = [active for active in self._active.values() if active.core.ended is None]
        return SequencerStatus(
            logs=len(owned),
            in_flight_bytes=self._replication.in_flight_bytes,
            lagging={it.loglet: nodes for it in owned if (nodes := it.lagging_on())},
            sealed=len(self._active) - len(owned),
            moved=self._moved,
        )

    # Moves.

    async def prepare_move(self, record: LogRecord, *, timeout_s: float) -> tuple[bool, Offset]:
        """Admit nothing more of the log, and wait, at most so long, for what is in flight.

        Returns whether all of it was committed, and the committed tail. Sessions stay open and are
        not read; whoever else comes waits. That ends with `on_chain`, `resume`, or by itself after
        `move_wait_s`.

        Raises:
            NotSequencer, LogUnavailable: see `check_owner`.

        **Cancellation:** ends the wait; the log is held as if it had returned.
        """
        active, _ = self._activate(record, 0)
        core = active.core
        if core.ended is not None:
            return False, core.committed_tail
        active.close_gate()
        active.stop_gate_timer()
        loop = asyncio.get_running_loop()
        wait_s = self._config.move_wait_s
        active.gate_timer = loop.call_later(wait_s, self._resume_unasked, active)
        try:
            async with asyncio.timeout(timeout_s):
                while core.in_flight:
                    await active.wait_progress()
        except TimeoutError:
            return False, core.committed_tail
        return core.ended is None, core.committed_tail

    def resume(self, loglet: LogletId) -> None:
        """The announced move did not happen: admit again. No harm if there was none."""
        active = self._active.get(loglet)
        if active is not None and active.core.ended is None:
            active.open_gate()

    def on_chain(self, record: LogRecord, version: int) -> None:
        """This is the log's chain. Cheap, and may be told of any log, any number of times."""
        self._chains.learn(record, version)
        for active in list(self._of_log.get(record.log_id, ())):
            if active.segment.index < record.open_segment.index:
                self._leave(active, KnownChain(record, version))

    async def drain(self, *, timeout_s: float) -> None:
        """Admit nothing more and wait, at most so long, for what is in flight."""
        self._draining = True
        over = LogUnavailable(f"node {self.me.node_id} is shutting down")
        for active in self._active.values():
            for session in active.sessions:
                session.end(over, flush=True)
        deadline_s = self._clock.monotonic_s() + timeout_s
        while self._replication.in_flight_bytes and self._clock.monotonic_s() < deadline_s:
            await self._clock.sleep(0.005)

    def _resume_unasked(self, active: ActiveLoglet) -> None:
        active.gate_timer = None
        if active.core.ended is None:
            extra = {"log": active.name, "loglet": str(active.loglet)}
            log.warning("sequencer.move_abandoned", extra=extra)
            active.open_gate()

    def _on_ended(self, active: ActiveLoglet, reason: SharedLogError) -> None:
        """A replica says that the loglet is over; the chain is not known to have moved."""
        extra = {"log": active.name, "loglet": str(active.loglet), "reason": str(reason)}
        log.info("sequencer.sealed", extra=extra)
        self._metrics.sealed.inc()
        self._replication.finish(active, active.core.on_ended(reason))
        self._send_away(active)
        active.close_gate()
        self._ask_for_chain(active)

    def _ask_for_chain(self, active: ActiveLoglet) -> None:
        """Have the chain moved on, and ask again should that take longer than anyone waits."""
        active.stop_gate_timer()
        if self._stopped:
            return
        loop = asyncio.get_running_loop()
        active.gate_timer = loop.call_later(self._config.move_wait_s, self._give_up, active)
        if self.listener is not None:
            self.listener.on_sealed(active.name, active.loglet)

    def _give_up(self, active: ActiveLoglet) -> None:
        """The sessions have waited long enough to hear where the log has gone."""
        error = LogUnavailable(f"log {active.name} takes no appends: {active.core.ended}")
        for session in active.sessions:
            session.end(error)
        self._ask_for_chain(active)

    def _leave(self, active: ActiveLoglet, chain: KnownChain) -> None:
        """The chain has moved on: everybody is told, and the loglet is never taken up again."""
        now = chain.record.open_segment
        reason = LogUnavailable(f"log {active.name} is ordered by {now.sequencer}")
        end = end_of(chain.record, active.segment)
        core = active.core
        effects = core.on_ended(reason) if end is None else core.on_closed(end, reason)
        self._replication.finish(active, effects)
        self._send_away(active)
        active.left = True
        active.producers.drop_all()
        del self._active[active.loglet]
        of_log = self._of_log[chain.record.log_id]
        of_log.remove(active)
        if not of_log:
            del self._of_log[chain.record.log_id]
        self._moved += 1
        self._metrics.moved.inc()
        node = self._directory(now.sequencer.node_id)
        moved = log_pb2.SessionMoved(
            sequencer=_sequencer_id(now.sequencer),
            address=node.address if node is not None else "",
            chain_version=chain.version,
        )
        for session in active.sessions:
            session.end_moved(moved)
        active.open_gate()
        extra = {"log": active.name, "loglet": str(active.loglet), "to": str(now.sequencer)}
        log.info("sequencer.moved", extra=extra)

    def _send_away(self, active: ActiveLoglet) -> None:
        """Callers for the tail ask again: they wait at the gate, or go where the log has gone."""
        for caller in active.rounds.drop_all():
            assert isinstance(caller, asyncio.Future)
            if not caller.done():
                caller.set_exception(MovedOn("the loglet is over"))

    # Within.

    async def _admitting(
        self, record: LogRecord, version: int, timeout_s: float
    ) -> tuple[ActiveLoglet, KnownChain]:
        """The log's loglet, once it admits, wherever its chain has gone by then.

        Raises:
            NotSequencer, LogUnavailable: see `check_owner`; or it was held for all that time.
        """
        active, chain = self._activate(record, version)
        if active.gate is None:
            return active, chain
        try:
            async with asyncio.timeout(timeout_s):
                while active.gate is not None:
                    await asyncio.shield(active.gate)
                    active, chain = self._activate(record, version)
        except TimeoutError as error:
            why = active.core.ended or active.stateless or "it is about to be moved"
            raise LogUnavailable(f"log {record.name} takes no appends: {why}") from error
        return active, chain

    def _activate(self, record: LogRecord, version: int) -> tuple[ActiveLoglet, KnownChain]:
        self.check_owner(record)
        chain = self._chains.newest(record, version)
        segment = chain.record.open_segment
        loglet = chain.record.loglet(segment)
        active = self._active.get(loglet)
        if active is not None:
            return active, chain
        if self._of_log.get(record.log_id):
            self.on_chain(chain.record, chain.version)  # a caller brought the news
        self._chains.learn(chain.record, chain.version, ordered=True)
        rule = QuorumRule.of(segment)
        active = ActiveLoglet(
            chain.record.name,
            segment,
            LogletSequencer(
                loglet, base=segment.base, rule=rule, last_timestamp_ms=segment.timestamp_ms
            ),
            FindTailRounds(rule),
            ProducerTable(segment.base, self._idle_producers),
        )
        self._active[loglet] = active
        self._of_log.setdefault(record.log_id, []).append(active)
        self._replication.attach(active, segment.nodeset)
        self._states.take_over(active, chain.record)
        return active, chain

    async def _run_session(
        self,
        stream: SessionStream,
        active: ActiveLoglet,
        chain: KnownChain,
        claimed: Claim | None,
    ) -> None:
        opened = log_pb2.AppendSessionOpened(
            sequencer=_sequencer_id(self.me),
            batch_bytes_max=BATCH_BYTES_MAX,
            in_flight_bytes_max=self._config.session_bytes_max,
            in_flight_batches_max=REMEMBERED_MAX,
            # Not the next offset: should the segment end below it, a batch of this session that is
            # sent again may lie lower, in the next segment; but never below what is committed.
            floor=active.core.committed_tail,
            chain_version=chain.version,
            segment_index=active.segment.index,
        )
        if claimed is not None and claimed.life is not None:
            opened.producer_epoch = claimed.life.epoch
            opened.next_sequence = claimed.life.next_sequence
        sender: Sender = PlainSender() if claimed is None else claimed.session

        def submit(request: SessionRequest, slot: SessionSlot) -> None:
            self._admission.submit(active, sender, request.batch, conditions_of(request), slot)

        session = AppendSession(
            stream,
            opened=opened,
            submit=submit,
            gate=lambda: active.gate,
            wait_for_room=self._replication.wait_for_room,
        )
        if claimed is not None:
            claimed.session.owner = session
        active.sessions[session] = None
        try:
            await session.run()
        finally:
            active.remove(session)
            self._admission.forget(active, session)

    async def _append_one(
        self,
        record: LogRecord,
        submit: Callable[[ActiveLoglet, FutureTicket], None],
        timeout_s: float,
    ) -> AppendedBatch:
        """Submit a batch where the log is, and wait until it is committed; see `append`."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            active, _ = await self._admitting(record, 0, deadline_s - self._clock.monotonic_s())
            future: asyncio.Future[InFlight | Remembered] = (
                asyncio.get_running_loop().create_future()
            )
            ticket = FutureTicket(future)
            submit(active, ticket)
            try:
                async with asyncio.timeout(deadline_s - self._clock.monotonic_s()):
                    done = await future
            except MovedOn:
                continue
            except TimeoutError as error:
                raise AppendIndefinite(
                    f"log {record.name}: no write quorum within {timeout_s:g} s; "
                    "the append may yet be committed"
                ) from error
            finally:
                if future.cancelled():
                    self._admission.withdraw(active, ticket)
            return AppendedBatch(done.first, done.end, done.timestamp_ms)

    async def _find_tail(self, active: ActiveLoglet) -> Offset:
        caller: asyncio.Future[Offset] = asyncio.get_running_loop().create_future()
        self._replication.ask_for_tail(active, caller)
        try:
            return await caller
        finally:
            effects = active.rounds.on_withdrawn(caller, active.core.committed_tail)
            self._replication.apply_tail(active, effects)

    def _check_load(self) -> None:
        if self._replication.in_flight_bytes >= self._config.in_flight_bytes_max:
            raise Overloaded(
                f"node {self.me.node_id} has {self._replication.in_flight_bytes:,} bytes of "
                "appends in flight",
                retry_after_s=self._config.overloaded_retry_s,
            )

    def _look_around(self) -> None:
        """What nothing else would notice: time that passes without progress."""
        for active, nodes in self._watch.find_away(self._clock.monotonic_s()):
            extra = {"log": active.name, "loglet": str(active.loglet), "nodes": nodes}
            log.info("sequencer.replicas_away", extra=extra)
            if self.listener is not None:
                self.listener.on_replicas_away(active.name, active.loglet, nodes)
        self._replication.close_idle()


def _sequencer_id(sequencer: SequencerId) -> types_pb2.SequencerId:
    return types_pb2.SequencerId(node_id=sequencer.node_id, generation=sequencer.generation)
