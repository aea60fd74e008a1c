"""One term of the controller: what its holder does, from taking the lease to losing it.

Three kinds of loop: heartbeats; one that looks at the whole (`core.py`) whenever chains, nodes or
heartbeats bring news, and every `DECIDE_EVERY_S` anyway; and pools of workers that carry out what
it finds (`pool.py`), each log by at most one worker of a pool at a time:

| pool       | does                                                                      |
|------------|---------------------------------------------------------------------------|
| `failover` | gives a log without a sequencer another one (`node/failover.py`)            |
| `replace`  | rolls an open segment off a store or sequencer that it should not use       |
| `tend`     | backfills a log's newest segments, moves closed ones off stores to be left  |
| `sweep`    | backfills all of a log's segments, slowly, one log after the other          |
| `forward`  | ends open segments that somebody has sealed and left                        |
| `balance`  | moves one log to a node that orders fewer                                   |

A worker looks again before it acts: what was true when its log was found may be over. Everything
here ends with the term, and nothing needs to be undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, Protocol

from metadata.reconfiguration import Change
from metadata.records import (
    STATE_DRAINING,
    LogRecord,
    NodeRecord,
    Segment,
)
from metadata.removal import declare_gone
from metadata.store import MetadataStore, Version
from metadata.view import ClusterView
from node.causes import Cause
from node.controller.config import ControllerConfig
from node.controller.core import (
    Health,
    Move,
    Picture,
    Roll,
    drain_obstacle,
    drain_state,
    is_gone,
    next_move,
    next_spread,
    to_copy,
    to_roll,
    without_sequencer,
)
from node.controller.heartbeats import Heartbeats
from node.controller.index import SegmentIndex
from node.controller.ledger import Ledger
from node.controller.metrics import ControllerMetrics
from node.controller.open_looks import OpenLooks
from node.controller.pool import RETRY_MAX_S, Pool
from node.controller.tend import Tending
from node.controller.work import Job, WorkBoard
from node.failover import Reconfigures
from node.liveness import Liveness
from sharedlog.clock import Clock
from sharedlog.errors import LogUnavailable, SharedLogError
from sharedlog.ids import NodeId
from sharedlog.rpc.transport import Transport
from sharedlog.tasks import run_together

log = logging.getLogger("node")

DECIDE_EVERY_S: Final = 1.0
SEALED_GRACE_S: Final = 2.0
"""An open segment that is found sealed is left to whoever sealed it for so long."""
REST_SHARE: Final = 9.0
"""After a look at the whole the controller rests so many times as long as that took."""
GATHER_S: Final = 0.05
"""News seldom comes alone: so long is waited for more of it."""

_REPLACES_AT_ONCE: Final = 4
_TENDED_AT_ONCE: Final = 4


class FailsOver(Protocol):
    """What is needed of `node/failover.py:Failover`."""

    async def ensure(self, record: LogRecord) -> tuple[LogRecord, Version]:
        """The log's chain, once the sequencer of its open segment answers."""
        ...


@dataclass(frozen=True, slots=True)
class _Sealed:
    """An open segment that was found sealed."""

    index: int
    due_s: float  # when it is ended, if nobody has done it by then


class Term:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        view: ClusterView,
        index: SegmentIndex,
        store: MetadataStore,
        transport: Transport,
        liveness: Liveness,
        failover: FailsOver,
        reconfigurer: Reconfigures,
        tending: Tending,
        open_looks: OpenLooks,
        board: WorkBoard,
        clock: Clock,
        random: Random,
        config: ControllerConfig,
        metrics: ControllerMetrics,
    ) -> None:
        self._view = view
        self._metrics = metrics
        self._store = store
        self._failover = failover
        self._reconfigurer = reconfigurer
        self._tending = tending
        self._open_looks = open_looks
        self._board = board
        self._clock = clock
        self._random = random
        self._config = config
        self._began_s = clock.monotonic_s()
        self._index = index
        self._health = Health(missed_max=config.missed_max)
        self._wake = asyncio.Event()
        self._serial = 0  # of the index: which changes were seen
        self._rolls: Mapping[str, Roll] = {}
        self._moves: dict[str, Move] = {}  # for balance, by log: the one that is under way
        self._moved_s: dict[str, float] = {}  # when a log was last moved for balance
        self._sealed: dict[str, _Sealed] = {}  # open segments that were found sealed, by log
        self._drains: dict[NodeId, Job] = {}
        self._up: set[NodeId] = set()  # as of the last look
        self._next_drain_look_s = self._began_s
        self._next_sweep_s = self._began_s + self._jitter(config.sweep_every_s)
        self._heartbeats = Heartbeats(
            health=self._health,
            liveness=liveness,
            view=view,
            transport=transport,
            clock=clock,
            random=random,
            config=config,
            on_news=self._wake.set,
        )
        self._failovers = self._pool("failover", self._fail_over, config.failovers_max, 5.0)
        self._replaces = self._pool("replace", self._roll, _REPLACES_AT_ONCE)
        self._tends = self._pool("tend", self._tend, _TENDED_AT_ONCE)
        self._sweeps = self._pool("sweep", self._sweep, 1)
        self._forwards = self._pool("forward", self._roll_forward, _REPLACES_AT_ONCE)
        self._balances = self._pool("balance", self._balance, 1)
        self._pools = {
            "failover": self._failovers,
            "replace": self._replaces,
            "tend": self._tends,
            "sweep": self._sweeps,
            "forward": self._forwards,
            "balance": self._balances,
        }

    def _pool(
        self,
        what: str,
        handle: Callable[[str], Awaitable[None]],
        workers: int,
        retry_max_s: float = RETRY_MAX_S,
    ) -> Pool[str]:
        return Pool(
            what,
            handle,
            workers=workers,
            clock=self._clock,
            random=self._random,
            retry_max_s=retry_max_s,
        )

    @property
    def ledger(self) -> Ledger:
        """What this term has found of closed segments; not to be changed."""
        return self._tending.ledger

    async def run(self) -> None:
        """Be the controller, until cancelled."""
        try:
            await run_together(
                {
                    "controller-heartbeats": self._heartbeats.run(),
                    "controller-view": self._follow_view(),
                    "controller-decide": self._decide_for_ever(),
                    "controller-failover": self._failovers.run(),
                    "controller-replace": self._replaces.run(),
                    "controller-tend": self._tends.run(),
                    "controller-sweep": self._sweeps.run(),
                    "controller-forward": self._forwards.run(),
                    "controller-open-looks": self._look_at_open_for_ever(),
                    "controller-balance": self._balances.run(),
                }
            )
        finally:
            for job in self._drains.values():
                self._board.end(job)

    # ------------------------------------------------------------------ looking at the whole

    async def _follow_view(self) -> None:
        while True:
            await self._view.wait_changed()
            self._wake.set()

    async def _decide_for_ever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._jitter(DECIDE_EVERY_S)):
                    await self._wake.wait()
            except TimeoutError:
                pass
            else:
                await self._clock.sleep(GATHER_S)
            self._wake.clear()
            begun_s = self._clock.monotonic_s()
            await self._decide()
            # In a large cluster a look takes its time; most of the time is for others.
            spent_s = self._clock.monotonic_s() - begun_s
            await self._clock.sleep(min(REST_SHARE * spent_s, DECIDE_EVERY_S))

    async def _decide(self) -> None:
        self._index.catch_up()
        picture = self._picture()
        self._offer_changed(picture)
        for name in without_sequencer(picture):
            self._failovers.offer(name)
        self._rolls = to_roll(picture)
        for name in sorted(self._rolls):
            self._replaces.offer(name)
        for name in sorted(to_copy(picture)):
            self._tends.offer(name)
        for name, sealed in self._sealed.items():
            if sealed.due_s <= picture.now_s:
                self._forwards.offer(name)
        for pool in self._pools.values():
            pool.retry_due()
        self._metrics.waiting({what: pool.waiting for what, pool in self._pools.items()})
        self._offer_move(picture)
        if picture.now_s >= self._next_sweep_s:
            self._next_sweep_s = picture.now_s + self._jitter(self._config.sweep_every_s)
            self._tending.forget_all()
            self._offer_sweep(record.name for record, _ in self._view.logs())
        if picture.now_s >= self._next_drain_look_s:
            self._next_drain_look_s = picture.now_s + DECIDE_EVERY_S / 2
            await self._look_at_drains(picture)

    def _picture(self) -> Picture:
        nodes = {node.node_id: node for node in self._view.nodes()}
        return Picture(self._index, nodes, self._health, self._clock.monotonic_s(), self._config)

    def _offer_changed(self, picture: Picture) -> None:
        """Logs whose chains changed, and those with copies on a node that is back."""
        first = not self._serial
        names, self._serial = self._index.changed_since(self._serial)
        if first:
            self._offer_sweep(names)
        else:
            for name in names:
                self._tends.offer(name)
        up = {node_id for node_id in picture.nodes if self._health.is_up(node_id)}
        for node_id in sorted(up - self._up):
            node = picture.nodes[node_id]
            use = self._index.store((node_id, node.storage_id))
            for name in use.open_logs:
                self._tending.look_at_open(name)
            self._offer_sweep(sorted(use.closed_logs | use.open_logs))
        self._up = up

    def _offer_sweep(self, names: Iterable[str]) -> None:
        for name in names:
            self._sweeps.offer(name)

    def _offer_move(self, picture: Picture) -> None:
        """One log to another node, if the nodes have settled and nothing else is going on."""
        now_s = picture.now_s
        if not (self._balances.idle and self._failovers.idle and self._replaces.idle):
            return
        rest_s = self._config.balance_pause_s
        self._moved_s = {it: at for it, at in self._moved_s.items() if now_s < at + rest_s}
        move = next_spread(picture, self._moved_s.keys())
        if move is None and now_s >= self._began_s + self._config.balance_after_s:
            move = next_move(picture, self._moved_s.keys())
        if move is not None:
            self._moves = {move.name: move}
            self._balances.offer(move.name)

    async def _look_at_open_for_ever(self) -> None:
        """Have open segments looked at in which more is committed than was found complete."""
        while True:
            await self._clock.sleep(self._jitter(self._config.backfill_every_s))
            for name in await self._open_looks.due(self._picture(), self._tending.is_open_due):
                self._tending.look_at_open(name)
                self._sweeps.offer(name)

    async def _look_at_drains(self, picture: Picture) -> None:
        """Show how drains go, and end those that are done."""
        draining = {
            node_id: node for node_id, node in picture.nodes.items() if node.state == STATE_DRAINING
        }
        for node_id in [it for it in self._drains if it not in draining]:
            self._board.end(self._drains.pop(node_id))
        for node_id, node in draining.items():
            job = self._drains.get(node_id)
            if job is None:
                job = self._drains[node_id] = self._board.begin("drain", f"node {node_id}")
            left = drain_state(node, self._index)
            job.total = max(job.total, left.segments + left.sequenced)
            job.done = job.total - left.segments - left.sequenced
            if left.done:
                job.message = "nothing names it any more"
                await self._set_gone(node)
                continue
            obstacle = drain_obstacle(node, picture)
            job.message = (
                f"waits: {obstacle}"
                if obstacle
                else f"to be moved: segments {left.segments}, logs that it orders {left.sequenced}"
            )

    async def _set_gone(self, node: NodeRecord) -> None:
        # The view may lag: a log that was created a moment ago could name the node still, or the
        # drain be over, or the node have another disk. The store is asked, for "gone" says that
        # nobody needs this disk any more.
        try:
            nodes = {it.node_id: it for it in await self._view.refresh_nodes()}
            now = nodes.get(node.node_id)
            same = now is not None and now.last_storage_id == node.last_storage_id
            if now is None or not same or now.state != STATE_DRAINING:
                return
            if await declare_gone(self._store, now, any_store=False):
                return
        except SharedLogError as error:
            fields = {"node": node.node_id, "error": str(error)}
            log.warning("drain.not_ended", extra=fields)
        else:
            log.info("drain.done", extra={"node": node.node_id})

    # ------------------------------------------------------------------ doing

    async def _fail_over(self, name: str) -> None:
        self._index.catch_up()
        use = self._index.log(name)
        if use is not None and is_gone(use.record.open_segment.sequencer, self._picture()):
            self._index.learn(*await self._failover.ensure(use.record))

    async def _roll(self, name: str) -> None:
        roll, use = self._rolls.get(name), self._index.log(name)
        if roll is None or use is None:
            return
        change = Change(avoid=frozenset(roll.avoid))
        segment = use.record.open_segment
        reason = "; ".join(roll.reasons)
        planned = await self._reconfigurer.preview(name, change)
        if roll.uses(planned) >= roll.uses(segment):
            raise LogUnavailable(f"log {name}: no other nodes can take it over: {reason}")
        kind = "drain" if roll.for_drain else "replace"
        with self._board.doing(kind, f"log {name}", reason):
            done = await self._reconfigurer.reconfigure(
                name,
                change,
                reason=reason,
                cause=Cause.DRAIN if roll.for_drain else Cause.REPLACE,
                segment_index=segment.index,
            )
        self._index.learn(done.record, done.version)

    async def _tend(self, name: str) -> None:
        await self._tend_log(name, thorough=False)

    async def _sweep(self, name: str) -> None:
        await self._tend_log(name, thorough=True)

    async def _tend_log(self, name: str, *, thorough: bool) -> None:
        use = self._index.log(name)
        if use is not None:
            tended = await self._tending.tend(
                use.record, use.version, self._picture, thorough=thorough
            )
            self._index.learn(tended.record, tended.version)
            if tended.sealed:
                self._note_sealed(name, use.record.open_segment)
            if tended.problem:
                raise LogUnavailable(tended.problem)

    def _note_sealed(self, name: str, segment: Segment) -> None:
        """Have the segment ended, if nobody does: who sealed it gets some time for that."""
        noted = self._sealed.get(name)
        if noted is None or noted.index != segment.index:
            due_s = self._clock.monotonic_s() + self._jitter(SEALED_GRACE_S)
            self._sealed[name] = _Sealed(segment.index, due_s)

    async def _roll_forward(self, name: str) -> None:
        """Finish what somebody began: a seal without an end to the segment (field note 10)."""
        self._index.catch_up()
        sealed, use = self._sealed.get(name), self._index.log(name)
        if sealed is None:
            return
        if use is not None and use.record.open_segment.index == sealed.index:
            reason = "its open segment is sealed, and nobody has ended it"
            with self._board.doing("failover", f"log {name}", reason):
                done = await self._reconfigurer.reconfigure(
                    name,
                    reason=reason,
                    cause=Cause.SEALED,
                    segment_index=sealed.index,
                    planned=False,
                )
            self._index.learn(done.record, done.version)
        if self._sealed.get(name) is sealed:
            del self._sealed[name]

    async def _balance(self, name: str) -> None:
        move, use = self._moves.pop(name, None), self._index.log(name)
        if move is None or use is None:
            return
        self._moved_s[name] = self._clock.monotonic_s()
        segment = use.record.open_segment
        if segment.sequencer.node_id != move.source:
            return
        # Its copies stay where they are, unless a place for one is needed at the target.
        done = await self._reconfigurer.reconfigure(
            name,
            Change(sequencer=move.target),
            reason=move.reason,
            cause=Cause.BALANCE,
            segment_index=segment.index,
        )
        self._index.learn(done.record, done.version)
        self._wake.set()

    def _jitter(self, seconds: float) -> float:
        return seconds * self._random.uniform(0.9, 1.1)
