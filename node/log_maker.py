"""New logs: where they go, and what they inherit. The one place where a node creates any.

A log is created because somebody asked for that (`CreateLog`), or by the first append to it, if
the append said so (`ensure`). Either way it gets what its namespaces say (`metadata/namespaces.py`)
on nodes that answer now, as the metadata store knows them now: a lagging view would miss nodes that
are ready, and refuse the log or make it too small, or miss a namespace that was just set. What a
creation has to look at, others that come at the same time look at with it (`rounds.py`).

Where it goes is decided by the counts of `load.py`, which cost the same whatever the number of
logs, and are told of each log that is made here at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from metadata.core import check_log_name
from metadata.history_rules import ArchivedHistory
from metadata.namespace_registry import fetch_namespaces, records_of
from metadata.namespaces import Asked, settings_of
from metadata.records import STATE_GONE, LogRecord, NamespaceRecord, NodeRecord
from metadata.registry import create_log
from metadata.store import MetadataStore, Version
from metadata.view import ClusterView
from node.flights import Flights
from node.liveness import DEAD_FRESH_S, Liveness
from node.load import LoadIndex
from node.rounds import Rounds
from sharedlog.clock import Clock
from sharedlog.errors import InvalidArgument, LogExists, LogUnavailable
from sharedlog.ids import LogId
from sharedlog.limits import NONCE_CHARS_MAX


@dataclass(frozen=True, slots=True)
class _Ground:
    """What a creation looks at."""

    nodes: Sequence[NodeRecord]
    alive: Sequence[NodeRecord]
    namespaces: Mapping[str, NamespaceRecord]


class LogMaker:
    """See the module's docstring. `run` must be running for `ensure` to do anything."""

    def __init__(
        self,
        *,
        store: MetadataStore,
        view: ClusterView,
        load: LoadIndex,
        liveness: Liveness,
        clock: Clock,
        random: Random,
        new_id: Callable[[], str],
        default_replicas: int,
    ) -> None:
        self._store = store
        self._view = view
        self._load = load
        self._liveness = liveness
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._default_replicas = default_replicas
        self._looks = Rounds(self._look)
        self._makings: Flights[str, None] = Flights("creation")

    async def run(self) -> None:
        """Own the creations that appends have asked for, until cancelled."""
        await self._makings.run()

    async def create(
        self,
        name: str,
        asked: Asked,
        *,
        nonce: str = "",
        log_id: LogId | None = None,
        history: ArchivedHistory | None = None,
    ) -> tuple[LogRecord, Version, Sequence[NodeRecord]]:
        """Make a log, or find the one that an earlier try with the same nonce made.

        Returns the cluster's nodes besides, as they were looked at. `log_id` and `history` are
        given together: see `metadata.registry.create_log`.

        Raises:
            InvalidLogName, InvalidArgument, LogExists.
            LogUnavailable: too few log servers are up. MetadataUnavailable: it may have been made.
        """
        check_log_name(name)
        if len(nonce) > NONCE_CHARS_MAX:
            raise InvalidArgument(f"the nonce has more than {NONCE_CHARS_MAX} characters")
        nonce = nonce or self._new_id()
        try:
            return await self._create(name, asked, nonce, log_id=log_id, history=history)
        except LogUnavailable:
            # A node that has just started may have been asked before it listened.
            await self._clock.sleep(DEAD_FRESH_S)
        return await self._create(name, asked, nonce, log_id=log_id, history=history)

    async def _create(
        self,
        name: str,
        asked: Asked,
        nonce: str,
        *,
        log_id: LogId | None,
        history: ArchivedHistory | None,
    ) -> tuple[LogRecord, Version, Sequence[NodeRecord]]:
        ground = await self._looks.join()
        settings = settings_of(
            name,
            ground.namespaces,
            asked=asked,
            default_replicas=self._usual_replicas(ground.nodes),
        )
        record, version = await create_log(
            self._store,
            name=name,
            replicas=settings.replicas.value,
            write_quorum=settings.write_quorum.value,
            spread=settings.spread.value,
            near=settings.near.value,
            created_with=settings.kept(),
            retention=settings.retention,
            nonce=nonce,
            alive=ground.alive,
            load=self._load.load,
            log_id=LogId(self._random.getrandbits(64)) if log_id is None else log_id,
            now_ms=self._clock.now_ms(),
            history=history,
        )
        self._load.learn(record)
        return record, version, ground.nodes

    async def ensure(self, name: str) -> None:
        """Make the log with what its namespaces say, unless it exists.

        Raises what `create` raises, but `LogExists`.

        **Cancellation:** stops the wait; the log may be made.
        """
        await self._makings.join(name, lambda: self._make(name))

    def _usual_replicas(self, nodes: Sequence[NodeRecord]) -> int:
        """Copies in a log of which nobody says: fewer in a cluster that has fewer servers."""
        servers = sum("log-server" in it.roles and it.state != STATE_GONE for it in nodes)
        return max(1, min(self._default_replicas, servers))

    async def _make(self, name: str) -> None:
        try:
            await self.create(name, Asked())
        except LogExists:
            return  # somebody else was faster

    async def _look(self) -> _Ground:
        nodes = await self._view.refresh_nodes()
        alive = await self._liveness.survey(nodes)
        namespaces = await fetch_namespaces(self._store)
        return _Ground(nodes, alive, records_of(namespaces))
