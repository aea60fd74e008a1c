"""The links to the log servers, and the effects of the cores carried out over them.

A link is shared by all loglets whose nodeset has its log server. What a link tells concerns only
the loglets on it, which it is kept with; one that no loglet is on any more is closed after a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, assert_never

from loglet.messages import Confirmed, StoreRefused, StoreResponse
from metadata.records import Replica
from sequencer.config import SequencerConfig
from sequencer.core import (
    Acknowledge,
    DropAppends,
    Effect,
    FailAppends,
    InFlight,
    PublishTail,
    ResumeReplica,
    StoreBatch,
)
from sequencer.find_tail import AnswerTail, AskUnsealed, FindTailEffect
from sequencer.link import Directory, ReplicaLink
from sequencer.loglets import ActiveLoglet, Timed
from sequencer.metrics import SequencerMetrics
from sequencer.session import BATCH_COST_BYTES_MIN
from sharedlog.batch import PLACEMENT_BYTES
from sharedlog.clock import Clock
from sharedlog.errors import AppendIndefinite, Sealed, SharedLogError, WrongSequencer
from sharedlog.ids import LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.transport import Transport

_PAUSES_AT_REST: Final = 20
"""`refused_retry_s` so many times: how long a server that can't open a log that rests is let be."""

OnEnded = Callable[[ActiveLoglet, SharedLogError], None]


@dataclass(slots=True, eq=False)
class _Use:
    """A link, its task, and the loglets on it: each with its index in the loglet's nodeset."""

    link: ReplicaLink
    task: asyncio.Task[None] | None = None
    loglets: dict[LogletId, tuple[ActiveLoglet, int]] = field(default_factory=dict)
    idle_since_s: float | None = None  # as far as was noticed


class Replication:
    """See the module's docstring.

    `on_ended` is called when a replica says that a loglet is over, and must end it by `finish`.
    """

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
        on_ended: OnEnded,
    ) -> None:
        self._me = me
        self._transport = transport
        self._directory = directory
        self._clock = clock
        self._random = random
        self._config = config
        self._metrics = metrics
        self._on_ended = on_ended
        self._uses: dict[tuple[NodeId, StorageId], _Use] = {}
        # Loglets that rest, with a replica that refused to open it and is asked again later.
        self._unopened: set[tuple[LogletId, int]] = set()
        self._tasks: asyncio.TaskGroup | None = None
        self._room: asyncio.Future[None] | None = None
        self.in_flight_bytes = 0
        metrics.in_flight_bytes.set_function(
            lambda: self.in_flight_bytes
        )  # costs an append nothing

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Run the links in this group, those to come too."""
        self._tasks = tasks
        for use in self._uses.values():
            self._start(tasks, use)

    def attach(self, active: ActiveLoglet, nodeset: Sequence[Replica]) -> None:
        """Give the loglet its links."""
        links = []
        for index, replica in enumerate(nodeset):
            use = self._use(replica)
            use.loglets[active.loglet] = active, index
            use.idle_since_s = None
            links.append(use.link)
        active.links = links

    def finish(self, active: ActiveLoglet, effects: Sequence[Effect]) -> None:
        """The loglet is over, with these effects: nothing more comes from its links."""
        self.apply(active, effects)
        for link in active.links:
            link.forget(active.loglet)
            use = self._uses.get(_key(link.replica))
            if use is not None:
                use.loglets.pop(active.loglet, None)
        active.tell_progress()

    def close_idle(self) -> None:
        """Close the links that no loglet was on for long enough. To be called now and then."""
        now_s = self._clock.monotonic_s()
        for key, use in list(self._uses.items()):
            if use.loglets:
                continue
            if use.idle_since_s is None:
                use.idle_since_s = now_s
            elif now_s - use.idle_since_s >= self._config.link_idle_s:
                del self._uses[key]
                if use.task is not None:
                    use.task.cancel()

    @property
    def links(self) -> int:
        """Links that are kept up."""
        return len(self._uses)

    def _use(self, replica: Replica) -> _Use:
        use = self._uses.get(_key(replica))
        if use is None:
            link = ReplicaLink(
                replica,
                me=self._me,
                transport=self._transport,
                directory=self._directory,
                clock=self._clock,
                random=self._random,
                config=self._config,
                metrics=self._metrics,
                listener=self,
            )
            use = self._uses[_key(replica)] = _Use(link)
            if self._tasks is not None:
                self._start(self._tasks, use)
        return use

    def _start(self, tasks: asyncio.TaskGroup, use: _Use) -> None:
        use.task = tasks.create_task(use.link.run(), name=f"link-{use.link.replica.node_id}")

    # What the links tell.

    def on_link_up(self, link: ReplicaLink) -> None:
        """Bring those logs into step that have something in flight, or that the server must open.

        A server that has started again has forgotten the tail of the others, too: should no append
        follow, it would never serve what was committed last.
        """
        for active, replica in self._resting_first(link):
            core = active.core
            effects = active.rounds.on_link_ready(replica)
            self._bring_back(active, replica, asks=bool(effects))
            if core.committed_tail > core.base and not core.in_step(replica):
                link.publish(core.loglet, core.committed_tail)
            self.apply_tail(active, effects)

    def on_link_down(self, link: ReplicaLink) -> None:
        """Every log on the link is out of step."""
        for active, replica in self._on(link):
            self._out_of_step(active, replica)

    def on_link_room(self, link: ReplicaLink) -> None:
        """Bring those logs back into step that were skipped."""
        for active, replica in self._resting_first(link):
            self._bring_back(active, replica)

    def on_response(self, link: ReplicaLink, response: StoreResponse) -> None:
        """Stored ranges, refusals, confirmations."""
        use = self._uses.get(_key(link.replica))
        if use is None or use.link is not link:
            return
        for stored in response.stored:
            found = use.loglets.get(stored.loglet)
            if found is not None:
                active, replica = found
                self.apply(active, active.core.on_stored(replica, stored.first, stored.end))
        for refused in response.refused:
            self._on_refused(use, refused)
        for confirmed in response.confirmed:
            self._on_confirmed(use, confirmed)

    def _on_refused(self, use: _Use, refused: StoreRefused) -> None:
        found = use.loglets.get(refused.loglet)
        if found is None:
            return
        active, replica = found
        if isinstance(refused.error, Sealed | WrongSequencer):
            self._on_ended(active, refused.error)
            return
        self._out_of_step(active, replica)
        if replica not in active.paused:
            active.paused.add(replica)
            loop = asyncio.get_running_loop()
            loop.call_later(self._config.refused_retry_s, self._on_pause_over, active, replica)

    def _on_pause_over(self, active: ActiveLoglet, replica: int) -> None:
        active.paused.discard(replica)
        if active.core.in_flight:
            self.bring_into_step(active)
        elif self._lacks_all(active, replica) and (active.loglet, replica) not in self._unopened:
            # Not even the loglet's record has room there, and each try costs that server a commit.
            self._unopened.add((active.loglet, replica))
            pause_s = _PAUSES_AT_REST * self._config.refused_retry_s
            loop = asyncio.get_running_loop()
            loop.call_later(pause_s, self._on_rest_over, active, replica)

    def _on_rest_over(self, active: ActiveLoglet, replica: int) -> None:
        self._unopened.discard((active.loglet, replica))
        self._bring_back(active, replica)

    def _on_confirmed(self, use: _Use, confirmed: Confirmed) -> None:
        found = use.loglets.get(confirmed.loglet)
        if found is None:
            return
        active, replica = found
        if confirmed.sealed:
            self._on_ended(active, Sealed(f"loglet {confirmed.loglet} is sealed"))
            return
        committed = active.core.committed_tail
        effects = active.rounds.on_unsealed(replica, confirmed.round_id, committed)
        self.apply_tail(active, effects)

    def _on(self, link: ReplicaLink) -> Iterable[tuple[ActiveLoglet, int]]:
        use = self._uses.get(_key(link.replica))
        # One that was closed may still end while another to the same server is in use.
        return list(use.loglets.values()) if use is not None and use.link is link else ()

    def _resting_first(self, link: ReplicaLink) -> Iterable[tuple[ActiveLoglet, int]]:
        """Those on the link, without those first that may leave no room on it."""
        return sorted(self._on(link), key=lambda it: it[0].core.in_flight > 0)

    # Effects.

    def _bring_back(self, active: ActiveLoglet, replica: int, *, asks: bool = False) -> None:
        """The replica can be sent something again: bring it into step, if there is a need.

        There is if something is in flight. In a log that rests there is if the replica has not
        opened it, and anything is committed, or asked (`asks`): nobody but its sequencer opens a
        loglet, so a server that never did would lack all of it until the next append, were that
        years away (field note 31). One that has opened it is left out of step: it may refuse
        batches, and in step it would look well.
        """
        if active.core.in_flight:
            self.bring_into_step(active)
        elif self._lacks_all(active, replica) or (asks and not active.core.has_opened(replica)):
            self._bring(active, replica)

    @staticmethod
    def _lacks_all(active: ActiveLoglet, replica: int) -> bool:
        """Something is committed, and the replica has not opened the loglet."""
        core = active.core
        return core.committed_tail > core.base and not core.has_opened(replica)

    def bring_into_step(self, active: ActiveLoglet) -> None:
        """Every replica that can be sent something and is not."""
        if not active.core.all_in_step:
            for replica in range(len(active.links)):
                self._bring(active, replica)

    def _bring(self, active: ActiveLoglet, replica: int) -> None:
        core, link = active.core, active.links[replica]
        if not core.in_step(replica) and link.ready and replica not in active.paused:
            self.apply(active, core.on_ready(replica))

    def _out_of_step(self, active: ActiveLoglet, replica: int) -> None:
        if active.core.in_step(replica):
            node = active.links[replica].replica.node_id
            self._metrics.replica_skips.labels(node).inc()
            active.core.on_out_of_step(replica)

    def apply(self, active: ActiveLoglet, effects: Sequence[Effect]) -> None:
        """Carry out what the loglet's core decided."""
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
                    self._acknowledge(active, batches)
                case PublishTail(replicas, committed):
                    for replica in replicas:
                        active.links[replica].publish(loglet, committed)
                case FailAppends(batches, error):
                    self._fail(active, batches, error)
                case DropAppends(batches):
                    self._drop(active, batches)
                case _:
                    assert_never(effect)

    def apply_tail(self, active: ActiveLoglet, effects: Sequence[FindTailEffect]) -> None:
        """Carry out what the loglet's rounds decided."""
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

    def ask_for_tail(self, active: ActiveLoglet, caller: asyncio.Future[Offset]) -> None:
        """Find the tail, in a round that begins from now on; the caller is told."""
        effects = active.rounds.on_find_tail(caller, active.core.committed_tail)
        # The servers must know the loglet before they can say whether it is sealed.
        if not active.core.all_in_step:
            for replica in range(len(active.links)):
                self._bring_back(active, replica, asks=True)
        self.apply_tail(active, effects)

    def _resume(
        self, active: ActiveLoglet, replica: int, committed: Offset, batches: Sequence[InFlight]
    ) -> None:
        loglet, link = active.core.loglet, active.links[replica]
        link.open(loglet, active.core.base)
        link.publish(loglet, committed)
        for batch in batches:
            if not link.offer(loglet, batch):
                self._out_of_step(active, replica)
                return

    def _acknowledge(self, active: ActiveLoglet, batches: Sequence[InFlight]) -> None:
        metrics = self._metrics
        now_s = self._clock.monotonic_s()
        records = size = 0
        for batch in batches:
            timed = batch.ticket
            assert isinstance(timed, Timed)
            timed.ticket.committed(batch)
            if active.repeated:
                for ticket in active.repeated.pop(batch.first, ()):
                    ticket.committed(batch)
            metrics.commit_seconds.observe(now_s - timed.admitted_s)
            records += batch.end - batch.first
            size += len(batch.placed)
        active.advanced_s = now_s
        active.committed_records += records
        active.committed_bytes += size
        metrics.batches.inc(len(batches))
        metrics.records.inc(records)
        metrics.bytes.inc(size)
        self._released(active, batches)

    def _fail(
        self, active: ActiveLoglet, batches: Sequence[InFlight], error: AppendIndefinite
    ) -> None:
        self._metrics.indefinite.inc(len(batches))
        for batch in batches:
            assert isinstance(batch.ticket, Timed)
            batch.ticket.ticket.failed(error)
            for ticket in active.repeated.pop(batch.first, ()):
                ticket.failed(error)
        self._released(active, batches)

    def _drop(self, active: ActiveLoglet, batches: Sequence[InFlight]) -> None:
        for batch in batches:
            assert isinstance(batch.ticket, Timed)
            batch.ticket.ticket.dropped()
            for ticket in active.repeated.pop(batch.first, ()):
                ticket.dropped()
        self._released(active, batches)

    # What is in flight.

    def admitted(self, batch: bytes) -> None:
        """A batch is in flight from now on."""
        self.in_flight_bytes += max(len(batch), BATCH_COST_BYTES_MIN)

    def wait_for_room(self) -> asyncio.Future[None] | None:
        """Shared by all who wait; None while there is room."""
        if self.in_flight_bytes < self._config.in_flight_bytes_max:
            return None
        if self._room is None or self._room.done():
            self._room = asyncio.get_running_loop().create_future()
        return self._room

    def _released(self, active: ActiveLoglet, batches: Sequence[InFlight]) -> None:
        self.in_flight_bytes -= sum(
            max(len(batch.placed) - PLACEMENT_BYTES, BATCH_COST_BYTES_MIN) for batch in batches
        )
        if active.progress is not None:
            active.tell_progress()
        room = self._room
        if room is not None and self.in_flight_bytes < self._config.in_flight_bytes_max:
            self._room = None
            if not room.done():
                room.set_result(None)


def _key(replica: Replica) -> tuple[NodeId, StorageId]:
    return replica.node_id, replica.storage_id
