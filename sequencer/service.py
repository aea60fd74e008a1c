"""The sequencer as the node uses it: many loglets, their links, appends and tails.

A loglet becomes active with its first append or find-tail in this process and then costs a small
object, no task. Tasks exist per log server (`link.py`) and per open session (`session.py`) only.

This is the shell: it carries out what `core.py` and `find_tail.py` decide. All of it runs on the
event loop's thread, between awaits, so an event and its effects are one step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol, assert_never

from loglet.messages import Confirmed, StoreRefused, StoreResponse
from metadata.records import LogRecord, Replica, Segment
from sequencer.config import SequencerConfig
from sequencer.core import (
    Acknowledge,
    Effect,
    FailAppends,
    InFlight,
    LogletSequencer,
    PublishTail,
    ResumeReplica,
    StoreBatch,
)
from sequencer.find_tail import AnswerTail, AskUnsealed, FindTailEffect, FindTailRounds
from sequencer.link import Directory, ReplicaLink
from sequencer.metrics import SequencerMetrics
from sequencer.session import BATCH_COST_BYTES_MIN, AppendSession, SessionStream
from sharedlog.batch import PLACEMENT_BYTES, check_batch
from sharedlog.clock import Clock
from sharedlog.errors import (
    AppendIndefinite,
    DeadlineExceeded,
    LogUnavailable,
    NotSequencer,
    Overloaded,
    Sealed,
    SharedLogError,
    WrongSequencer,
)
from sharedlog.ids import LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.transport import Transport


class Ticket(Protocol):
    """Who waits for a batch."""

    def committed(self, batch: InFlight) -> None:
        """The batch is on a write quorum."""
        ...

    def failed(self, error: SharedLogError) -> None:
        """The batch ended with this error."""
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


@dataclass(slots=True, eq=False)
class _Active:
    """A loglet that this process orders."""

    name: str
    core: LogletSequencer
    rounds: FindTailRounds
    links: Sequence[ReplicaLink]
    # Replicas that refused a store: not tried again before a pause is over.
    paused: set[int] = field(default_factory=set)


class _FutureTicket:
    __slots__ = ("_future",)

    def __init__(self, future: asyncio.Future[InFlight]) -> None:
        self._future = future

    def committed(self, batch: InFlight) -> None:
        if not self._future.done():
            self._future.set_result(batch)

    def failed(self, error: SharedLogError) -> None:
        if not self._future.done():
            self._future.set_exception(error)


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
    ) -> None:
        config.validate()
        self.me = me
        self._transport = transport
        self._directory = directory
        self._clock = clock
        self._random = random
        self._config = config
        self._metrics = metrics
        self._active: dict[LogletId, _Active] = {}
        self._links: dict[tuple[NodeId, StorageId], ReplicaLink] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._in_flight_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self._draining = False

    async def run(self) -> None:
        """Own the links' tasks, until cancelled; what is in flight then is indefinite."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for link in self._links.values():
                self._start(tasks, link)
            await asyncio.get_running_loop().create_future()

    def check_owner(self, record: LogRecord) -> Segment:
        """The log's open segment, if this process, in this life, orders it.

        Raises:
            NotSequencer: another node does.
            LogUnavailable: an older life of this node did, or the segment has ended.
        """
        segment = record.open_segment
        owner = segment.sequencer
        if owner.node_id != self.me.node_id:
            raise NotSequencer(
                f"log {record.name} is ordered by {owner.node_id}, not {self.me.node_id}",
                sequencer_node_id=owner.node_id,
            )
        if owner != self.me:
            raise LogUnavailable(
                f"log {record.name} takes no appends: its sequencer, {owner.node_id} in life "
                f"{owner.generation}, is gone (the node is in life {self.me.generation}); "
                "reads go on"
            )
        active = self._active.get(record.loglet(segment))
        if active is not None and active.core.ended is not None:
            raise LogUnavailable(f"log {record.name} takes no appends: {active.core.ended}")
        if self._draining:
            raise LogUnavailable(f"node {self.me.node_id} is shutting down")
        return segment

    async def serve_session(self, stream: SessionStream, record: LogRecord) -> None:
        """Serve an append session whose open message was received, until the client ends it.

        Raises:
            NotSequencer, LogUnavailable: see `check_owner`.
            Overloaded: too much is in flight.
        """
        self.check_owner(record)
        self._check_load()
        session = AppendSession(
            stream,
            me=self.me,
            bytes_max=self._config.session_bytes_max,
            submit=lambda batch, slot: self._submit(record, batch, slot),
            wait_for_room=self._wait_for_room,
        )
        await session.run()

    async def append(self, record: LogRecord, batch: bytes, *, timeout_s: float) -> AppendedBatch:
        """Append one batch; returns once it is committed.

        Raises:
            NotSequencer, LogUnavailable, Overloaded, CorruptBatch, InvalidArgument: not appended.
            AppendIndefinite: no write quorum in time, or the segment ended meanwhile.

        **Cancellation:** stops the wait, not the write: the batch may still commit.
        """
        self._check_load()
        future: asyncio.Future[InFlight] = asyncio.get_running_loop().create_future()
        self._submit(record, batch, _FutureTicket(future))
        try:
            async with asyncio.timeout(timeout_s):
                done = await future
        except TimeoutError as error:
            raise AppendIndefinite(
                f"log {record.name}: no write quorum within {timeout_s:g} s; "
                "the append may yet be committed"
            ) from error
        return AppendedBatch(done.first, done.end, done.timestamp_ms)

    async def find_tail(self, record: LogRecord, *, timeout_s: float = 10.0) -> Offset:
        """The tail, linearizable; see `find_tail.py`.

        Raises:
            NotSequencer, LogUnavailable: see `check_owner`; also if the segment ends meanwhile.
            DeadlineExceeded: no write quorum answered in time.

        **Cancellation:** safe.
        """
        active = self._activate(record, self.check_owner(record))
        caller: asyncio.Future[Offset] = asyncio.get_running_loop().create_future()
        effects = active.rounds.on_find_tail(caller, active.core.committed_tail)
        # The servers must know the loglet before they can say whether it is sealed.
        self._bring_into_step(active)
        self._apply_tail(active, effects)
        try:
            async with asyncio.timeout(timeout_s):
                return await caller
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"log {record.name}: no write quorum confirmed the tail within {timeout_s:g} s"
            ) from error
        finally:
            committed = active.core.committed_tail
            self._apply_tail(active, active.rounds.on_withdrawn(caller, committed))

    def committed_tail(self, loglet: LogletId) -> Offset | None:
        """What this process knows to be committed; None if the loglet is not active."""
        active = self._active.get(loglet)
        return None if active is None else active.core.committed_tail

    def status(self) -> SequencerStatus:
        """What this process orders and which replicas lag."""
        lagging = {
            loglet: [active.links[replica].replica.node_id for replica in replicas]
            for loglet, active in self._active.items()
            if (replicas := active.core.lagging())
        }
        return SequencerStatus(len(self._active), self._in_flight_bytes, lagging)

    async def drain(self, *, timeout_s: float) -> None:
        """Admit nothing more and wait, at most so long, for what is in flight."""
        self._draining = True
        deadline_s = self._clock.monotonic_s() + timeout_s
        while self._in_flight_bytes and self._clock.monotonic_s() < deadline_s:
            await self._clock.sleep(0.005)

    def _check_load(self) -> None:
        if self._in_flight_bytes >= self._config.in_flight_bytes_max:
            raise Overloaded(
                f"node {self.me.node_id} has {self._in_flight_bytes:,} bytes of appends in flight",
                retry_after_s=self._config.overloaded_retry_s,
            )

    def _wait_for_room(self) -> asyncio.Future[None] | None:
        if self._in_flight_bytes < self._config.in_flight_bytes_max:
            return None
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        return self._room

    def _submit(self, record: LogRecord, batch: bytes, ticket: Ticket) -> None:
        try:
            segment = self.check_owner(record)
            header = check_batch(batch)
        except SharedLogError as error:
            self._metrics.rejected.labels(type(error).__name__).inc()
            raise
        active = self._activate(record, segment)
        entry = _Timed(ticket, self._clock.monotonic_s())
        effects = active.core.on_append(header, batch, entry, self._clock.now_ms())
        self._in_flight_bytes += max(len(batch), BATCH_COST_BYTES_MIN)
        self._apply(active, effects)
        self._bring_into_step(active)

    def _activate(self, record: LogRecord, segment: Segment) -> _Active:
        loglet = record.loglet(segment)
        active = self._active.get(loglet)
        if active is None:
            core = LogletSequencer(
                loglet,
                base=segment.base,
                replicas=len(segment.nodeset),
                write_quorum=segment.write_quorum,
            )
            rounds = FindTailRounds(len(segment.nodeset), segment.write_quorum)
            links = [self._link(replica) for replica in segment.nodeset]
            active = self._active[loglet] = _Active(record.name, core, rounds, links)
        return active

    def _link(self, replica: Replica) -> ReplicaLink:
        key = (replica.node_id, replica.storage_id)
        link = self._links.get(key)
        if link is None:
            link = ReplicaLink(
                replica,
                me=self.me,
                transport=self._transport,
                directory=self._directory,
                clock=self._clock,
                random=self._random,
                config=self._config,
                metrics=self._metrics,
                listener=self,
            )
            self._links[key] = link
            if self._tasks is not None:
                self._start(self._tasks, link)
        return link

    def _start(self, tasks: asyncio.TaskGroup, link: ReplicaLink) -> None:
        tasks.create_task(link.run(), name=f"link-{link.replica.node_id}")

    # What the links tell.

    def on_link_up(self, link: ReplicaLink) -> None:
        """Bring those logs into step that have something in flight or a tail to find.

        A server that has started again has forgotten the tail of the others, too: should no append
        follow, it would never serve what was committed last.
        """
        for active, replica in self._members(link):
            core = active.core
            effects = active.rounds.on_link_ready(replica)
            if core.in_flight or effects:
                self._bring_into_step(active)
            elif core.committed_tail > core.base:
                link.publish(core.loglet, core.committed_tail)
            self._apply_tail(active, effects)

    def on_link_down(self, link: ReplicaLink) -> None:
        """Every log on the link is out of step."""
        for active, replica in self._members(link):
            self._out_of_step(active, replica)

    def on_link_room(self, link: ReplicaLink) -> None:
        """Bring those logs back into step that were skipped."""
        for active, replica in self._members(link):
            if active.core.in_flight and not active.core.in_step(replica):
                self._bring_into_step(active)

    def on_response(self, link: ReplicaLink, response: StoreResponse) -> None:
        """Stored ranges, refusals, confirmations."""
        for stored in response.stored:
            active = self._active.get(stored.loglet)
            if active is not None:
                replica = active.links.index(link)
                self._apply(active, active.core.on_stored(replica, stored.first, stored.end))
        for refused in response.refused:
            self._on_refused(link, refused)
        for confirmed in response.confirmed:
            self._on_confirmed(link, confirmed)

    def _on_refused(self, link: ReplicaLink, refused: StoreRefused) -> None:
        active = self._active.get(refused.loglet)
        if active is None:
            return
        if isinstance(refused.error, Sealed | WrongSequencer):
            self._end(active, refused.error)
            return
        replica = active.links.index(link)
        self._out_of_step(active, replica)
        if replica not in active.paused:
            active.paused.add(replica)
            loop = asyncio.get_running_loop()
            loop.call_later(self._config.refused_retry_s, self._on_pause_over, active, replica)

    def _on_pause_over(self, active: _Active, replica: int) -> None:
        active.paused.discard(replica)
        if active.core.in_flight:
            self._bring_into_step(active)

    def _on_confirmed(self, link: ReplicaLink, confirmed: Confirmed) -> None:
        active = self._active.get(confirmed.loglet)
        if active is None:
            return
        if confirmed.sealed:
            self._end(active, Sealed(f"loglet {confirmed.loglet} is sealed"))
            return
        effects = active.rounds.on_unsealed(
            active.links.index(link), confirmed.round_id, active.core.committed_tail
        )
        self._apply_tail(active, effects)

    def _end(self, active: _Active, reason: SharedLogError) -> None:
        self._apply(active, active.core.on_ended(reason))
        for link in active.links:
            link.forget(active.core.loglet)
        for caller in active.rounds.drop_all():
            assert isinstance(caller, asyncio.Future)
            if not caller.done():
                caller.set_exception(
                    LogUnavailable(f"log {active.name}: its segment ended: {reason}")
                )

    def _members(self, link: ReplicaLink) -> Iterable[tuple[_Active, int]]:
        for active in list(self._active.values()):
            if link in active.links and active.core.ended is None:
                yield active, active.links.index(link)

    # Effects.

    def _bring_into_step(self, active: _Active) -> None:
        core = active.core
        for replica, link in enumerate(active.links):
            if not core.in_step(replica) and link.ready and replica not in active.paused:
                self._apply(active, core.on_ready(replica))

    def _out_of_step(self, active: _Active, replica: int) -> None:
        if active.core.in_step(replica):
            node = active.links[replica].replica.node_id
            self._metrics.replica_skips.labels(node).inc()
            active.core.on_out_of_step(replica)

    def _apply(self, active: _Active, effects: Sequence[Effect]) -> None:
        loglet = active.core.loglet
        for effect in effects:
            match effect:
                case StoreBatch(replicas, batch):
                    for replica in replicas:
                        if not active.links[replica].offer(loglet, batch):
                            self._out_of_step(active, replica)
                case ResumeReplica(replica, committed, batches):
                    self._resume(active, replica, committed, batches)
                case Acknowledge(batches):
                    self._acknowledge(batches)
                case PublishTail(replicas, committed):
                    for replica in replicas:
                        active.links[replica].publish(loglet, committed)
                case FailAppends(batches, error):
                    self._fail(batches, error)
                case _:
                    assert_never(effect)

    def _apply_tail(self, active: _Active, effects: Sequence[FindTailEffect]) -> None:
        for effect in effects:
            match effect:
                case AskUnsealed(round_id, replicas):
                    for replica in replicas:
                        if active.links[replica].up:
                            active.links[replica].confirm(active.core.loglet, round_id)
                case AnswerTail(callers, tail):
                    for caller in callers:
                        assert isinstance(caller, asyncio.Future)
                        if not caller.done():
                            caller.set_result(tail)
                case _:
                    assert_never(effect)

    def _resume(
        self, active: _Active, replica: int, committed: Offset, batches: Sequence[InFlight]
    ) -> None:
        loglet, link = active.core.loglet, active.links[replica]
        link.open(loglet, active.core.base)
        link.publish(loglet, committed)
        for batch in batches:
            if not link.offer(loglet, batch):
                self._out_of_step(active, replica)
                return

    def _acknowledge(self, batches: Sequence[InFlight]) -> None:
        metrics = self._metrics
        now_s = self._clock.monotonic_s()
        records = size = 0
        for batch in batches:
            timed = batch.ticket
            assert isinstance(timed, _Timed)
            timed.ticket.committed(batch)
            metrics.commit_seconds.observe(now_s - timed.admitted_s)
            records += batch.end - batch.first
            size += len(batch.placed)
        metrics.batches.inc(len(batches))
        metrics.records.inc(records)
        metrics.bytes.inc(size)
        self._released(batches)

    def _fail(self, batches: Sequence[InFlight], error: AppendIndefinite) -> None:
        self._metrics.indefinite.inc(len(batches))
        for batch in batches:
            assert isinstance(batch.ticket, _Timed)
            batch.ticket.ticket.failed(error)
        self._released(batches)

    def _released(self, batches: Sequence[InFlight]) -> None:
        self._in_flight_bytes -= sum(
            max(len(batch.placed) - PLACEMENT_BYTES, BATCH_COST_BYTES_MIN) for batch in batches
        )
        self._metrics.in_flight_bytes.set(self._in_flight_bytes)
        room = self._room
        if room is not None and self._in_flight_bytes < self._config.in_flight_bytes_max:
            self._room = None
            if not room.done():
                room.set_result(None)


@dataclass(slots=True)
class _Timed:
    """A ticket and when its batch was admitted, monotonic seconds."""

    ticket: Ticket
    admitted_s: float
