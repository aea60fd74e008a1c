"""Which process must do what a caller asked of a log: this one or another, through failovers too.

A log's open segment names the one process, in one life, that orders it. If that process is this
one, the call is served here; if it lives elsewhere, the call is forwarded there. If its life is
over, or it does not answer, the caller waits while the log gets another sequencer
(`failover.py`), at most for `peer_timeout_s`; so a caller meets a failover as a pause.

The cached view may be behind. Being behind is harmless, for the asked process checks its own part
again and says `NotSequencer`; then the chain is read again, and the call goes where that says. A
caller that knows of a newer chain says so (`min_version`), and is not sent to where the log was.

`serve` is that loop, for any call that may be tried again as long as it has *definitely* done
nothing: an attempt says so by raising `NotSequencer` or `RouteLost`. Everything else that it raises
is the caller's to hear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Final, Protocol, TypeVar

from metadata.records import LogRecord, NodeRecord
from metadata.store import Version
from metadata.view import ClusterView
from node.freshness import fresh_log
from node.liveness import Life
from sequencer.service import Sequencer
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import (
    LogUnavailable,
    MetadataUnavailable,
    NotSequencer,
    SharedLogError,
    Unreachable,
    Unrepairable,
)
from sharedlog.ids import NodeId, SequencerId

PATIENCE_S: Final = 0.3
"""So long another process may take to answer before it is pinged."""
PATIENCE_AGAIN_S: Final = 1.0
"""The same, once it has answered a ping."""
ANY_VERSION: Final = Version(0)
_PAUSE_MIN_S: Final = 0.02
_PAUSE_MAX_S: Final = 0.5

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Here:
    """This process orders the log."""

    record: LogRecord
    version: Version
    sequencer: Sequencer


@dataclass(frozen=True, slots=True)
class There:
    """The process `node` orders the log, as far as the view knows."""

    record: LogRecord
    version: Version
    node: NodeRecord  # in the life that the chain names


Route = Here | There


class RouteLost(Exception):
    """The process does not answer, and has done nothing that the caller must know of."""

    def __init__(self, route: There, reason: str) -> None:
        self.error = sequencer_silent(route, reason)
        super().__init__(str(self.error))


class Ensures(Protocol):
    """What is needed of `node/failover.py:Failover`."""

    async def ensure(self, record: LogRecord) -> tuple[LogRecord, Version]:
        """The log's chain, once its sequencer answers."""
        ...


class Probes(Protocol):
    """What is needed of `node/liveness.py:Liveness`."""

    async def probe(self, node: NodeRecord) -> Life:
        """Whether the process answers."""
        ...


class Router:
    """Finds the process that orders a log, and waits while there is none."""

    def __init__(
        self,
        *,
        me: SequencerId,
        view: ClusterView,
        sequencer: Sequencer | None,
        failover: Ensures,
        liveness: Probes,
        clock: Clock,
        random: Random,
        timeout_s: float,
    ) -> None:
        self._me = me
        self._view = view
        self._sequencer = sequencer
        self._failover = failover
        self._liveness = liveness
        self._clock = clock
        self._random = random
        self._timeout_s = timeout_s

    async def find(self, name: str, *, min_version: Version = ANY_VERSION) -> Route:
        """The process that orders the log `name`; waits while it gets one.

        Raises:
            LogNotFound: there is no such log.
            LogUnavailable: nobody orders it, and that took too long to change, or can't.
            MetadataUnavailable: the log is not in the view, and the metadata store is away.
        """
        return await self._find(name, min_version, _Until(self._clock, self._timeout_s))

    async def serve(
        self,
        name: str,
        attempt: Callable[[Route, float], Awaitable[Result]],
        *,
        min_version: Version = ANY_VERSION,
        direct_only: bool = False,
    ) -> Result:
        """What `attempt` gives, made at the process that orders the log, wherever that goes.

        `attempt` is told how many seconds are left. See the module's docstring.

        Raises:
            NotSequencer: with `direct_only`, it is another process. Otherwise what `find` raises,
            and what the attempt does.
        """
        until = _Until(self._clock, self._timeout_s)
        pauses = Backoff(self._random, min_s=_PAUSE_MIN_S, max_s=_PAUSE_MAX_S)
        route = await self._find(name, min_version, until)
        while True:
            if direct_only and isinstance(route, There):
                raise not_here(route)
            before = route
            try:
                return await attempt(route, until.left_s)
            except NotSequencer as error:
                if until.over:
                    raise
                why: SharedLogError = error
                route = await self._find_again(before, until)
            except RouteLost as lost:
                if until.over:
                    raise lost.error from lost
                why = lost.error
                route = await self._recover(before.record, lost.error, until)
            if route.version == before.version:
                # Nothing has changed but time: the other side's view is behind, or the way to it
                # is cut for this node alone.
                await self._clock.sleep(pauses.next_s())
                if until.over:
                    raise why

    async def wait_for(
        self, route: There, run: Coroutine[Any, Any, Result], *, timeout_s: float
    ) -> Result:
        """What `run` gives, which waits for the route's process: given up once that is gone.

        Raises:
            RouteLost: it is unreachable or dead, or took longer than `timeout_s`, or nobody here
            can tell whether it lives.
            SharedLogError: what `run` raised but `Unreachable`.
        """
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(_outcome(run), name=f"ask {route.node.node_id}")
            reason = await self._give_up(task, route, _Until(self._clock, timeout_s))
            if reason:
                task.cancel()
        if reason:
            raise RouteLost(route, reason)
        outcome = task.result()
        if isinstance(outcome, Unreachable):
            raise RouteLost(route, str(outcome)) from outcome
        if isinstance(outcome, SharedLogError):
            raise outcome
        return outcome

    async def _give_up(self, task: asyncio.Task[Any], route: There, until: _Until) -> str:
        """Wait for the task; why not to wait any longer, "" once it is done."""
        patience_s = PATIENCE_S
        while True:
            done, _ = await asyncio.wait([task], timeout=min(patience_s, until.left_s))
            if done:
                return ""
            if until.over:
                return "no answer in time"
            try:
                life = await self._liveness.probe(route.node)
            except SharedLogError as error:  # this process stops, and asks nobody any more
                return "" if task.done() else str(error)
            if not (life.answers or task.done()):
                return life.reason
            patience_s = PATIENCE_AGAIN_S

    async def _find(self, name: str, min_version: Version, until: _Until) -> Route:
        record, version = await fresh_log(self._view, name, min_version=min_version)
        return await self._route(record, version, until)

    async def _find_again(self, route: Route, until: _Until) -> Route:
        """After the process that the route led to said that it is not the one."""
        record, version = await fresh_log(self._view, route.record.name, refresh=True)
        return await self._route(record, version, until)

    async def _route(self, record: LogRecord, version: Version, until: _Until) -> Route:
        """Where the chain leads; or, if that is nowhere, where it does once it was changed."""
        route = await self._resolve(record, version)
        if route is not None:
            return route
        named = record.open_segment.sequencer
        over = LogUnavailable(gone(record.name, named.node_id, named.generation))
        return await self._recover(record, over, until)

    async def _resolve(self, record: LogRecord, version: Version) -> Route | None:
        """Where the chain leads; None: to a process that is no more, or unknown."""
        named = record.open_segment.sequencer
        if named == self._me and self._sequencer is not None:
            return Here(record, version, self._sequencer)
        node = await self._node(named)
        return None if node is None else There(record, version, node)

    async def _node(self, named: SequencerId) -> NodeRecord | None:
        """The node, in the life that is named; None: that life is over, or it is unknown."""
        if named.node_id == self._me.node_id:
            return None
        try:
            # A node that the view lacks may be new: the store knows.
            node = await self._view.fetch_node(named.node_id)
        except MetadataUnavailable:
            return None
        if node is None or node.generation > named.generation:
            return None
        return replace(node, generation=named.generation)

    async def _recover(self, record: LogRecord, over: LogUnavailable, until: _Until) -> Route:
        """Wait for the log to have a sequencer that answers; `over` says why it needs one.

        Raises:
            LogUnavailable: it takes too long; the message has the last reason known.
        """
        why = over
        pauses = Backoff(self._random, min_s=2 * _PAUSE_MIN_S, max_s=_PAUSE_MAX_S)
        while not until.over:
            try:
                async with asyncio.timeout(until.left_s):
                    record, version = await self._failover.ensure(record)
                route = await self._resolve(record, version)
                if route is not None:
                    return route
            except TimeoutError:
                break
            except Unrepairable:
                raise
            except (LogUnavailable, MetadataUnavailable) as error:
                why = LogUnavailable(f"{over}; it can't have another now: {error}")
                why.__cause__ = error
            await self._clock.sleep(min(pauses.next_s(), until.left_s))
        raise why


class _Until:
    """A moment after which nothing is tried any more."""

    __slots__ = ("_at_s", "_clock")

    def __init__(self, clock: Clock, timeout_s: float) -> None:
        self._clock = clock
        self._at_s = clock.monotonic_s() + timeout_s

    @property
    def left_s(self) -> float:
        """Seconds until then, at least 0."""
        return max(0.0, self._at_s - self._clock.monotonic_s())

    @property
    def over(self) -> bool:
        """It has passed."""
        return self.left_s <= 0


async def _outcome(run: Coroutine[Any, Any, Result]) -> Result | SharedLogError:
    """An error as a value: a task group would wrap it."""
    try:
        return await run
    except SharedLogError as error:
        return error


def not_here(route: There) -> NotSequencer:
    """What a caller is told who will not be forwarded."""
    node_id = route.node.node_id
    return NotSequencer(
        f"{route.record.name} is ordered by {node_id}, not by this node",
        sequencer_node_id=node_id,
    )


def gone(name: str, node_id: NodeId, generation: int) -> str:
    """Why a log has no sequencer."""
    return f"the sequencer of {name}, {node_id} in its life {generation}, is gone"


def sequencer_silent(route: There, reason: str) -> LogUnavailable:
    """The process that orders the log does not answer.

    Not `Unreachable`: to the caller that would mean the node that it asked.
    """
    node = route.node
    return LogUnavailable(
        f"the sequencer of {route.record.name}, {node.node_id} at {node.address}, "
        f"does not answer: {reason or 'no answer in time'}"
    )
