"""A node's picture of the cluster: nodes and logs, kept current by two watches.

Theory of operation: `run` watches `nodes/` and `logs/` and does nothing else than keep two
dictionaries equal to what the watches told. Lookups are plain dictionary reads, good for the
append and read path: with the metadata store down they go on answering (field note 52). What they
answer may be stale, by the time that a change takes to arrive or for as long as the store is away;
the protocol above stands that.

An answer to a `get`, and a record that this process wrote itself (`learn`), is kept only over an
older one of the same log. If one were kept that the watch has not told of, and the log was deleted
before the watch got to it, no deletion would ever be told, and it would stay for ever. What the
watch has told once, it will also say is gone. Versions only grow, but for that: a deletion always
removes what is known, whatever its version, since a watch that missed it can only guess that; a
log that was made anew is told again after it. (Logs can't be deleted yet. The view is ready.)

A damaged value is never taken for absence: the last good one stays, `damaged` names the key, and a
`fetch_log` that finds nothing cached reads the store and raises `MetadataCorrupt`.

`connected` comes from a probe, a small read once in a while, since a watch that is silent does
not say whether the store is well.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeVar

from metadata.chain_encoding import ChainDecoder
from metadata.core import check_log_name
from metadata.encoding import decode_log, decode_node
from metadata.errors import MetadataCorrupt
from metadata.records import CLUSTER_KEY, LOGS_PREFIX, NODES_PREFIX, LogRecord, NodeRecord
from metadata.store import (
    ABSENT,
    Changed,
    Deleted,
    Entry,
    MetadataStore,
    SnapshotComplete,
    Version,
)
from sharedlog.clock import Clock
from sharedlog.errors import LogNotFound, SharedLogError
from sharedlog.ids import NodeId

log = logging.getLogger(__name__)

PROBE_EVERY_S: Final = 2.0
"""How often `connected` is asked anew."""
PROBE_TIMEOUT_S: Final = 2.0
"""A store that does not answer a small read in this time counts as away."""

Record = TypeVar("Record", NodeRecord, LogRecord)


class ClusterView:
    """See the module's docstring. `run` must be running for anything to be known."""

    def __init__(self, store: MetadataStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._nodes: dict[str, tuple[NodeRecord, Version]] = {}  # by key
        self._logs: dict[str, tuple[LogRecord, Version]] = {}  # by key
        self._order: list[str] | None = None  # the same keys, sorted; None: to be sorted anew
        self._chains = ChainDecoder()
        self._damaged: dict[str, MetadataCorrupt] = {}
        self._nodes_ready = asyncio.Event()
        self._logs_ready = asyncio.Event()
        self._change = asyncio.Event()  # set, and replaced by a new one, at each change
        self._connected = False
        self._log_listeners: list[Callable[[LogRecord, Version], None]] = []

    # ------------------------------------------------------------------ lookups

    @property
    def connected(self) -> bool:
        """The metadata store answered lately."""
        return self._connected

    @property
    def ready(self) -> bool:
        """Nodes and logs have been told completely at least once."""
        return self._nodes_ready.is_set() and self._logs_ready.is_set()

    @property
    def damaged(self) -> Mapping[str, MetadataCorrupt]:
        """Keys whose present value is damaged."""
        return self._damaged

    def node(self, node_id: NodeId) -> NodeRecord | None:
        """A node as it last registered; maybe stale."""
        found = self._nodes.get(NODES_PREFIX + node_id)
        return None if found is None else found[0]

    def nodes(self) -> list[NodeRecord]:
        """All nodes that ever registered, in order of their ids; maybe stale."""
        return [self._nodes[key][0] for key in sorted(self._nodes)]

    def log(self, name: str) -> tuple[LogRecord, Version] | None:
        """A log and the version of its chain, if known here; maybe stale."""
        return self._logs.get(LOGS_PREFIX + name)

    def logs(self) -> list[tuple[LogRecord, Version]]:
        """All logs known here, in order of their names; maybe stale."""
        return [self._logs[key] for key in self._log_keys()]

    def page(
        self, prefix: str, *, after: str, limit: int
    ) -> tuple[list[tuple[LogRecord, Version]], bool]:
        """Logs whose names start with `prefix` and come after `after`, and whether there are more.

        In order of their names, at most `limit`; maybe stale. Costs what it returns.
        """
        keys = self._log_keys()
        start = max(
            bisect_left(keys, LOGS_PREFIX + prefix), bisect_right(keys, LOGS_PREFIX + after)
        )
        found: list[tuple[LogRecord, Version]] = []
        for index in range(start, len(keys)):
            if not keys[index].startswith(prefix, len(LOGS_PREFIX)):
                break
            if len(found) == limit:
                return found, True
            found.append(self._logs[keys[index]])
        return found, False

    def _log_keys(self) -> Sequence[str]:
        """Keys of all logs known here, in order; sorted anew when there are others."""
        if self._order is None:
            self._order = sorted(self._logs)
        return self._order

    async def fetch_node(self, node_id: NodeId) -> NodeRecord | None:
        """A node, maybe stale; one that is not known here is asked of the store. None: unknown.

        Raises:
            MetadataUnavailable: not known here, and the store does not answer. MetadataCorrupt.
        """
        found = self.node(node_id)
        if found is not None:
            return found
        entry = await self._store.get(NODES_PREFIX + node_id)
        return None if entry is None else decode_node(entry)

    async def refresh_nodes(self) -> list[NodeRecord]:
        """All nodes as the store has them now, or newer, in order of their ids; they are kept.

        Of a damaged record the last good one, if there was one: it is in `damaged`.

        Raises:
            MetadataUnavailable: the store does not answer.
        """
        entries = await self._store.list(NODES_PREFIX)
        self._connected = True
        fresh: list[NodeRecord] = []
        for entry in entries:
            known = self._nodes.get(entry.key)
            if known is not None and known[1] >= entry.version:
                fresh.append(known[0])  # the watch may have told more meanwhile
                continue
            try:
                node = decode_node(entry)
            except MetadataCorrupt:
                if known is not None:
                    fresh.append(known[0])
                continue
            self._nodes[entry.key] = node, entry.version
            self._announce()
            fresh.append(node)
        return sorted(fresh, key=lambda node: node.node_id)

    async def fetch_log(self, name: str) -> tuple[LogRecord, Version]:
        """A log, maybe stale; one that is not known here is asked of the store.

        Raises:
            InvalidLogName, LogNotFound. MetadataUnavailable: not known here, and the store does
            not answer. MetadataCorrupt.
        """
        found = self.log(name)
        return await self.refresh_log(name) if found is None else found

    async def refresh_log(self, name: str) -> tuple[LogRecord, Version]:
        """A log as the store has it now, or newer. Raises what `fetch_log` raises."""
        check_log_name(name)
        key = LOGS_PREFIX + name
        entry = await self._store.get(key)
        self._connected = True
        if entry is None:
            raise LogNotFound(name=name)
        known = self._logs.get(key)
        if known is not None and known[1] >= entry.version:
            return known  # the watch has told as much meanwhile
        fresh = self._decode_log(entry)
        self.learn(fresh, entry.version)
        return fresh, entry.version

    async def log_at_least(self, name: str, version: int) -> tuple[LogRecord, Version]:
        """A log as of `version` of its chain or newer; asked of the store if it is older here.

        An older one is returned only if `version` never was one of this log: it was made anew, or
        the caller is mistaken. Raises what `fetch_log` raises.
        """
        found = self.log(name)
        if found is not None and found[1] >= version:
            return found
        return await self.refresh_log(name)

    def learn(self, record: LogRecord, version: Version) -> None:
        """The store has had this; if it is news of a log that is known here, keep it at once.

        For a record that this process has just written: waiting for the watch to tell it would only
        cost time.
        """
        key = LOGS_PREFIX + record.name
        known = self._logs.get(key)
        if known is not None and known[1] < version:
            self._logs[key] = record, version
            self._tell(record, version)
            self._announce()

    # ------------------------------------------------------------------ waiting

    def on_log(self, listener: Callable[[LogRecord, Version], None]) -> None:
        """Call `listener` with each log that changes or comes up from now on, as it is told.

        For those who would have to look at every log at every change otherwise. It must be quick,
        and must not raise.
        """
        self._log_listeners.append(listener)

    async def wait_ready(self) -> None:
        """Wait until nodes and logs are known."""
        await self._nodes_ready.wait()
        await self._logs_ready.wait()

    async def wait_changed(self) -> None:
        """Wait for the next change of any node or log, or of `connected`."""
        await self._change.wait()

    async def wait_superseded(self, own: NodeRecord) -> NodeRecord:
        """Wait until a newer process of the node `own` has registered; returns its record.

        The older one must stop then (field note 27).
        """
        while True:
            change = self._change
            found = self.node(own.node_id)
            if found is not None and found.generation > own.generation:
                return found
            await change.wait()

    async def wait_log(
        self, name: str, accept: Callable[[LogRecord], bool], *, min_version: int = ABSENT
    ) -> tuple[LogRecord, Version]:
        """Wait until the log is known, at `min_version` or newer, and `accept` says yes to it."""
        while True:
            change = self._change
            found = self.log(name)
            if found is not None and found[1] >= min_version and accept(found[0]):
                return found
            await change.wait()

    # ------------------------------------------------------------------ keeping up

    async def run(self) -> None:
        """Keep the view current until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow_nodes(), name="view-nodes")
            group.create_task(self._follow_logs(), name="view-logs")
            group.create_task(self._probe(), name="view-probe")

    async def _follow_nodes(self) -> None:
        await self._follow(NODES_PREFIX, decode_node, self._nodes, self._nodes_ready)

    async def _follow_logs(self) -> None:
        await self._follow(LOGS_PREFIX, self._decode_log, self._logs, self._logs_ready)

    def _decode_log(self, entry: Entry) -> LogRecord:
        return decode_log(entry, self._chains)

    async def _follow(
        self,
        prefix: str,
        decode: Callable[[Entry], Record],
        known: dict[str, tuple[Record, Version]],
        ready: asyncio.Event,
    ) -> None:
        # A watch ends only by the cancellation of this task, which is raised within it: it closes.
        async for event in self._store.watch(prefix):
            match event:
                case Changed(entry):
                    self._on_changed(entry, decode, known)
                case Deleted(key, _):
                    known.pop(key, None)
                    self._order = None
                    self._chains.forget(key)
                    self._damaged.pop(key, None)
                case SnapshotComplete():
                    ready.set()
            self._announce()

    def _tell(self, record: LogRecord, version: Version) -> None:
        for listener in self._log_listeners:
            listener(record, version)

    def _announce(self) -> None:
        self._change.set()
        self._change = asyncio.Event()

    def _on_changed(
        self,
        entry: Entry,
        decode: Callable[[Entry], Record],
        known: dict[str, tuple[Record, Version]],
    ) -> None:
        old = known.get(entry.key)
        if old is not None and old[1] >= entry.version:
            self._damaged.pop(entry.key, None)
            return  # it was learnt before the watch told it
        try:
            record = decode(entry)
            known[entry.key] = record, entry.version
            if old is None:
                self._order = None
            self._damaged.pop(entry.key, None)
            if isinstance(record, LogRecord):
                self._tell(record, entry.version)
        except MetadataCorrupt as error:
            self._damaged[entry.key] = error
            extra = {"key": entry.key, "error": str(error)}
            log.error("metadata.value_damaged", extra=extra)  # noqa: TRY400 - no traceback needed

    async def _probe(self) -> None:
        while True:
            was = self._connected
            error = ""
            try:
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._store.get(CLUSTER_KEY)
                self._connected = True
            except (SharedLogError, TimeoutError) as caught:
                self._connected = False
                error = str(caught) or "no answer in time"
            if was != self._connected:
                self._announce()
            if was and not self._connected:
                log.warning("metadata.lost", extra={"error": error})
            elif self._connected and not was:
                log.info("metadata.connected")
            await self._clock.sleep(PROBE_EVERY_S)
