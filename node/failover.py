"""A log whose sequencer is gone gets another one, without a person.

Whoever misses a log's sequencer comes here: a call that this node should forward (`ensure`), a
client that lost its session (`ReportSuspect`), this node's own sequencer that met a sealed log
server or lost some of its replicas (`SequencerListener`), and a node that has just started and
finds logs that its former life ordered (`heal`). Any node can do it, several may at once, and
nobody needs to be told: the chain decides who won, and the others take what it says.

**A healthy sequencer is never fenced** (field notes 32, 35). Before anything is sealed, the process
that the chain names is asked whether it lives. If it does, nothing is done here, whatever the
suspicion: that others can't reach it is no reason to stop it for those who can. What only the
sequencer can see (too few log servers answer it, one stays away) it decides itself.

**Detection is a hint.** A process that was only slow, paused or cut off is sealed off by its
successor's reconfiguration and finds out when it meets `SEALED`; what it acknowledged before is
below its segment's end. The damper of wrong hints is `pacing.py`.

A sequencer that can't reach a seal quorum of its own log can't end its segment either. Then it asks
those nodes that it does reach to do it in its place (`help`), again and again while the log stands
still. Whoever helps takes the log himself if he can: given back to a process that could not end one
segment, it would need the same help with the next.

A process that answers pings is left alone, but its segment need not be well: somebody may have
sealed it and died, where the sequencer does not hear of it or can do nothing about it. So a node
that is told of such a suspect looks at the segment (`look_into`), and ends one that it finds sealed
and left so. That fences nobody: who sealed it has done so already.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from random import Random
from typing import Any, Final, Protocol

from metadata.core import can_order
from metadata.quorum import QuorumRule
from metadata.reconfiguration import Change, replica_state
from metadata.records import LogRecord, NodeRecord, Replica, Segment
from metadata.store import Version
from metadata.view import ClusterView
from node.causes import Cause
from node.controller.work import WorkBoard
from node.flights import Flights
from node.liveness import DEAD_FRESH_S, Life, Liveness
from node.pacing import Pacing
from node.peers import Peers
from node.planner import check_sealable
from node.reconfigure import Reconfigured
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import (
    LogNotFound,
    LogUnavailable,
    SharedLogError,
    Unrepairable,
)
from sharedlog.ids import LogletId, NodeId, SequencerId
from sharedlog.rpc.methods import RECONFIGURE
from sharedlog.rpc.transport import Transport
from sharedlog.tasks import run_together
from sharedlog.v1 import admin_pb2

log = logging.getLogger("node")

HEAL_AT_ONCE: Final = 16
HEAL_AFTER_S: Final = 0.3
"""After a start: on average so long until the logs of the former life are looked after. A client
that needs one of them does not wait for it: it asks."""

ROLL_AFTER_S: Final = 0.3
"""After a sequencer met a seal that nobody had told it of: whoever sealed the loglet is most likely
to extend the chain within this time."""

ROLL_OTHERS_AFTER_S: Final = 1.0
"""The same for another node that has found the seal: a sequencer that can do it has done it by
then."""

WARN_AT_ATTEMPT: Final = 3
"""Of a row that fails. While nodes start or stop together a first attempt often fails, and a log
that stays without a sequencer is told once, and shown by `status` for as long as it lasts."""

_RETRY_MIN_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0
_HELP_TIMEOUT_S: Final = 5.0
_HELP_WAIT_MAX_S: Final = 2.0
"""Longer a helper keeps nobody waiting before it begins: it refuses."""
_HELPERS_MAX: Final = 3  # in one round


class Reconfigures(Protocol):
    """What is needed of `node/reconfigure.py:Reconfigurer`."""

    async def reconfigure(
        self,
        name: str,
        change: Change = ...,
        *,
        reason: str,
        cause: Cause = ...,
        segment_index: int | None = None,
        planned: bool = True,
    ) -> Reconfigured:
        """End the open segment and begin another."""
        ...

    async def preview(self, name: str, change: Change) -> Segment:
        """The segment that would follow."""
        ...


class Failover:
    """See the module's docstring. `run` must be running for anything to be done."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        liveness: Liveness,
        reconfigurer: Reconfigures,
        transport: Transport,
        board: WorkBoard,
        clock: Clock,
        random: Random,
    ) -> None:
        self._me = me
        self._view = view
        self._liveness = liveness
        self._reconfigurer = reconfigurer
        self._transport = transport
        self._board = board
        self._clock = clock
        self._random = random
        self._pacing: Pacing[str] = Pacing()
        self._ensuring: Flights[str, tuple[LogRecord, Version]] = Flights("failover")
        self._peers = Peers(view=view, transport=transport)
        # By what is done, too: a replacement under way must not keep a seal from being followed up.
        self._rolling: Flights[tuple[str, str, LogletId], None] = Flights("roll-forward")

    async def run(self) -> None:
        """Own the work, until cancelled."""
        await run_together(
            {
                "failover": self._ensuring.run(),
                "roll-forward": self._rolling.run(),
                "heal": self._heal(),
            }
        )

    async def ensure(self, record: LogRecord) -> tuple[LogRecord, Version]:
        """The log's chain, once the sequencer of its open segment answers.

        `record` is what the caller acted by when it found no sequencer. If the chain is known to
        have moved on, or its sequencer answers a ping after all, it is returned as it is.

        Raises:
            LogUnavailable: it can't be reconfigured now, and why; `Unrepairable`: not without a
            person. MetadataUnavailable: it waits for the metadata store. LogNotFound.

        **Cancellation:** stops the wait, not the reconfiguration.
        """
        return await self._ensuring.join(record.name, lambda: self._ensure(record))

    async def help(
        self, name: str, change: Change, *, segment_index: int, reason: str
    ) -> Reconfigured:
        """End a segment in place of its sequencer, which can't.

        Raises:
            LogUnavailable: this node can't either, or did so a moment ago. MetadataUnavailable,
            LogNotFound, InvalidArgument.
        """
        record, _ = await self._view.fetch_log(name)
        segment = record.open_segment
        if segment.index == segment_index:
            await self._survey()
            self._check_sealable(name, segment)
            wait_s = self._pacing.wait_s(name, self._clock.monotonic_s())
            if wait_s > _HELP_WAIT_MAX_S:
                raise LogUnavailable(f"log {name} was reconfigured a moment ago")
            await self._clock.sleep(wait_s)
        return await self._reconfigure(
            name, change, index=segment_index, reason=reason, cause=Cause.HELP
        )

    def look_into(self, record: LogRecord) -> None:
        """The log's sequencer is alive, and yet somebody gets no answers from it."""
        name, loglet = record.name, record.loglet(record.open_segment)
        self._rolling.start(("look", name, loglet), lambda: self._look_into(name, loglet))

    # ------------------------------------------------- what the local sequencer finds out

    def on_sealed(self, name: str, loglet: LogletId) -> None:
        """A replica refused a store as sealed, and the chain is not known to have moved.

        Whoever sealed it may have died on the way (field note 10), so it is rolled forward.
        """
        self._rolling.start(("roll", name, loglet), lambda: self._roll_forward(name, loglet))

    def on_replicas_away(self, name: str, loglet: LogletId, node_ids: Sequence[NodeId]) -> None:
        """So many replicas are away, or for so long, that the log should do without them."""
        away = frozenset(node_ids)
        self._rolling.start(
            ("replace", name, loglet), lambda: self._replace_members(name, loglet, away)
        )

    # ------------------------------------------------- a sequencer that is gone

    async def _ensure(self, record: LogRecord) -> tuple[LogRecord, Version]:
        found, version = await self._newest(record)
        if found.open_segment.index > record.open_segment.index:
            return found, version
        life = await self._life(found)
        if life.answers:
            return found, version
        wait_s = self._pacing.wait_s(found.name, self._clock.monotonic_s())
        if wait_s > 0:
            fields = {"log": found.name, "wait_s": round(wait_s, 3)}
            log.debug("failover.waits", extra=fields)
            await self._clock.sleep(wait_s)
        if wait_s > DEAD_FRESH_S and (await self._life(found)).answers:
            return await self._newest(found)
        return await self._replace_sequencer(found, life)

    async def _newest(self, record: LogRecord) -> tuple[LogRecord, Version]:
        """The log as the view has it; the store is asked by whoever changes it."""
        found, version = await self._view.fetch_log(record.name)
        if found.open_segment.index < record.open_segment.index:
            return await self._view.refresh_log(record.name)
        return found, version

    async def _life(self, record: LogRecord) -> Life:
        """Whether the process that the chain names lives; all nodes are asked at the same time.

        The others are asked for the plan's sake, which is then made without a wait.
        """
        async with asyncio.TaskGroup() as tasks:
            survey = tasks.create_task(self._survey(), name="ask-nodes")
            outcome = await self._outcome(record.open_segment.sequencer)
            if isinstance(outcome, SharedLogError) or outcome.answers:
                survey.cancel()
        if isinstance(outcome, SharedLogError):
            raise outcome
        return outcome

    async def _outcome(self, named: SequencerId) -> Life | SharedLogError:
        # An error as a value: a task group would wrap it.
        try:
            return await self._liveness.sequencer(named)
        except SharedLogError as error:
            return error

    async def _survey(self) -> None:
        await self._liveness.survey()

    async def _replace_sequencer(self, record: LogRecord, life: Life) -> tuple[LogRecord, Version]:
        name, segment = record.name, record.open_segment
        reason = f"its sequencer, {segment.sequencer}, is {life.sign.value}: {life.reason}"
        change = Change(avoid=self._dead_now(segment.sequencer.node_id))
        self._check_sealable(name, segment)  # all were asked just now
        done = await self._reconfigure(
            name, change, index=segment.index, reason=reason, cause=Cause.FAILOVER
        )
        return done.record, Version(done.version)

    def _dead_now(self, node_id: NodeId) -> frozenset[NodeId]:
        """The node, unless it lives on in a further life."""
        node = self._view.node(node_id)
        life = None if node is None else self._liveness.known(node)
        lives_on = node is not None and (life is None or life.answers)
        return frozenset() if lives_on else frozenset((node_id,))

    async def _reconfigure(
        self, name: str, change: Change, *, index: int, reason: str, cause: Cause
    ) -> Reconfigured:
        """Do it, say so, and remember it for the pacing."""
        began_s = self._clock.monotonic_s()
        fields: dict[str, Any] = {"log": name, "segment": index, "reason": reason}
        try:
            with self._board.doing("failover", f"log {name} segment {index}", reason):
                done = await self._reconfigurer.reconfigure(
                    name,
                    change,
                    reason=reason,
                    cause=cause,
                    segment_index=index,
                    # Its sequencer is the one that asks, and is well.
                    planned=cause is Cause.REPLACE,
                )
        except SharedLogError as error:
            now_s = self._clock.monotonic_s()
            attempts = self._pacing.attempted(name, now_s, succeeded=False)
            level = logging.WARNING if attempts == WARN_AT_ATTEMPT else logging.DEBUG
            fields |= {"error": str(error), "attempts": attempts}
            log.log(level, "failover.failed", extra=fields)
            raise
        now_s = self._clock.monotonic_s()
        if not done.adopted:
            self._pacing.attempted(name, now_s, succeeded=True)
        fields |= {
            "sequencer": str(done.record.open_segment.sequencer),
            "adopted": done.adopted,
            "seconds": round(now_s - began_s, 4),
        }
        log.info("failover.done", extra=fields)
        return done

    # ------------------------------------------------- a sequencer's own troubles

    async def _roll_forward(self, name: str, loglet: LogletId) -> None:
        """Give the log a further segment, unless somebody else does; until it has one."""
        pauses = Backoff(self._random, min_s=ROLL_AFTER_S, max_s=_RETRY_MAX_S)
        while not await self._moved(name, loglet, within_s=pauses.next_s()):
            segment = self._open_segment(name, loglet)
            if segment is None and self._view.log(name) is None:
                return  # it was deleted
            if segment is None:
                continue
            reason = "its open segment is sealed"
            try:
                await self._reconfigure(
                    name, Change(), index=segment.index, reason=reason, cause=Cause.SEALED
                )
            except LogNotFound:
                return
            except Unrepairable:
                continue  # nobody else can do it either, before a person has decided
            except SharedLogError:  # said already; again after a longer pause
                await self._ask_for_help(name, segment, reason)

    async def _look_into(self, name: str, loglet: LogletId) -> None:
        """End the segment in place of its sequencer if it is sealed and left so."""
        segment = self._open_segment(name, loglet)
        if segment is None:
            return
        statuses = await self._peers.loglet_statuses(segment, [loglet])
        if not any(status.sealed for found in statuses if found is not None for status in found):
            return
        if segment.sequencer == self._me:
            self.on_sealed(name, loglet)
            return
        if await self._moved(name, loglet, within_s=ROLL_OTHERS_AFTER_S):
            return
        change = Change(not_sequencer=frozenset((segment.sequencer.node_id,)))
        reason = f"its open segment is sealed, and {segment.sequencer} does not end it"
        try:
            await self.help(name, change, segment_index=segment.index, reason=reason)
        except SharedLogError as error:
            log.debug("failover.not_rolled", extra={"log": name, "error": str(error)})

    async def _moved(self, name: str, loglet: LogletId, *, within_s: float) -> bool:
        """Whether the log's chain moves beyond the loglet within the time."""

        def beyond(record: LogRecord) -> bool:
            return (
                record.log_id != loglet.log_id or record.open_segment.index > loglet.segment_index
            )

        try:
            async with asyncio.timeout(within_s):
                await self._view.wait_log(name, beyond)
        except TimeoutError:
            return False
        return True

    def _open_segment(self, name: str, loglet: LogletId) -> Segment | None:
        """The loglet's segment, if it is still the open one as far as is known."""
        found = self._view.log(name)
        if found is None or found[0].loglet(found[0].open_segment) != loglet:
            return None
        return found[0].open_segment

    async def _replace_members(self, name: str, loglet: LogletId, away: frozenset[NodeId]) -> None:
        """Replace members that are away by others, if there are others (field note 32)."""
        segment = self._open_segment(name, loglet)
        if segment is None:
            return
        await self._survey()
        reason = f"log servers are away: {', '.join(sorted(away))}"
        try:
            self._check_sealable(name, segment)
            await self._replace(name, segment, away, reason)
        except LogNotFound:
            return
        except SharedLogError as error:
            log.info("failover.replace_failed", extra={"log": name, "error": str(error)})
            if not isinstance(error, Unrepairable):
                await self._ask_for_help(name, segment, reason)

    async def _replace(
        self, name: str, segment: Segment, away: frozenset[NodeId], reason: str
    ) -> None:
        """Raises what `reconfigure` does, and `LogUnavailable` if the log can't go on without."""
        # This process is known to be well, but it may be about to give its logs to others.
        sequencer = self._me.node_id if self._takes_logs() else None
        change = Change(sequencer=sequencer, avoid=away)
        planned = await self._reconfigurer.preview(name, change)
        missed = away.intersection(replica.node_id for replica in segment.nodeset)
        if missed == away.intersection(replica.node_id for replica in planned.nodeset):
            log.debug("failover.no_replacement", extra={"log": name, "away": sorted(away)})
            rest = [at for at, it in enumerate(segment.nodeset) if it.node_id not in away]
            if not QuorumRule.of(segment).is_write_quorum(rest):
                raise LogUnavailable(f"log {name} has no others to go on with")
            return
        await self._clock.sleep(self._pacing.wait_s(name, self._clock.monotonic_s()))
        await self._reconfigure(
            name, change, index=segment.index, reason=reason, cause=Cause.REPLACE
        )

    def _takes_logs(self) -> bool:
        own = self._view.node(self._me.node_id)
        return own is not None and can_order(own) and not self._liveness.stopping

    def _check_sealable(self, name: str, segment: Segment) -> None:
        check_sealable(name, segment, self._may_answer)

    def _may_answer(self, replica: Replica) -> bool:
        node = self._view.node(replica.node_id)
        if node is None:
            return False
        if replica_state(replica, node) == "lost":
            return True  # no matter of who answers: the attempt finds out what can be done
        life = self._liveness.known(node)
        return life is None or life.answers

    async def _ask_for_help(self, name: str, segment: Segment, reason: str) -> None:
        """Others may reach the log servers that this process does not."""
        helpers = [node for node in await self._liveness.survey() if not self._is_me(node)]
        self._random.shuffle(helpers)
        helpers.sort(key=can_order, reverse=True)
        for node in helpers[:_HELPERS_MAX]:
            request = admin_pb2.ReconfigureRequest(
                log=name,
                sequencer=node.node_id if can_order(node) else "",
                not_sequencer=[segment.sequencer.node_id],
                reason=reason,
                segment_index=segment.index,
                direct_only=True,
            )
            try:
                await self._transport.call(
                    node.address, RECONFIGURE, request, timeout_s=_HELP_TIMEOUT_S
                )
            except SharedLogError as error:
                fields = {"log": name, "asked": node.node_id, "error": str(error)}
                log.info("failover.no_help", extra=fields)
                continue
            self._pacing.attempted(name, self._clock.monotonic_s(), succeeded=True)
            log.info("failover.helped", extra={"log": name, "by": node.node_id})
            return

    def _is_me(self, node: NodeRecord) -> bool:
        return node.node_id == self._me.node_id

    # ------------------------------------------------- logs of a former life

    async def _heal(self) -> None:
        """Reconfigure the logs that earlier lives of this node ordered; then wait for ever."""
        await self._clock.sleep(HEAL_AFTER_S * (0.5 + self._random.random()))
        pauses = Backoff(self._random, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
        while orphans := self._orphans():
            places = asyncio.Semaphore(HEAL_AT_ONCE)
            async with asyncio.TaskGroup() as tasks:
                for record in orphans:
                    await places.acquire()
                    task = tasks.create_task(self._heal_one(record), name=f"heal {record.name}")
                    task.add_done_callback(partial(_release, places))
            if self._orphans():
                await self._clock.sleep(pauses.next_s())
        await asyncio.get_running_loop().create_future()

    def _orphans(self) -> list[LogRecord]:
        return [record for record, _ in self._view.logs() if self._is_orphan(record)]

    def _is_orphan(self, record: LogRecord) -> bool:
        named = record.open_segment.sequencer
        return named.node_id == self._me.node_id and named.generation < self._me.generation

    async def _heal_one(self, record: LogRecord) -> None:
        found = self._view.log(record.name)
        if found is None or not self._is_orphan(found[0]):
            return
        try:
            await self.ensure(found[0])
        except SharedLogError as error:
            log.debug("failover.not_healed", extra={"log": record.name, "error": str(error)})


def _release(places: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
    places.release()
