"""Which segments name which store and which node orders what, kept up with the chains.

A cluster may have ten thousand logs with thousands of segments each; nobody can afford to walk them
for every look at the cluster. `SegmentIndex` is told of every log that changes, walks its chain
once when somebody wants to know, and answers from counts: its cost follows what changed, and what
is asked for.

Most segments of a log have one of a few nodesets, so closed segments are counted by nodeset: "how
many lack a copy" is a sum over the distinct ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from metadata.records import LogRecord, Replica, Segment
from metadata.store import Version
from sharedlog.ids import NodeId, SequencerId, StorageId

Store = tuple[NodeId, StorageId]
"""A log server in one life of its disk, wherever it was at the time."""

Stores = tuple[Store, ...]


@dataclass(slots=True)
class LogUse:
    """What one log uses."""

    record: LogRecord
    version: Version
    closed: Counter[Stores] = field(default_factory=Counter)  # closed segments by nodeset
    open_stores: Stores = ()


@dataclass(slots=True)
class StoreUse:
    """Who uses one store."""

    segments: int = 0  # closed and open ones, over all logs
    open_logs: set[str] = field(default_factory=set)  # whose open segment names it
    closed_logs: set[str] = field(default_factory=set)  # one of whose closed segments names it


class SegmentIndex:
    """See the module's docstring."""

    def __init__(self) -> None:
        self._logs: dict[str, LogUse] = {}
        self._stores: dict[Store, StoreUse] = {}
        self._ordered: dict[SequencerId, set[str]] = {}
        self._with_near: set[str] = set()
        self._with_spread: set[str] = set()
        self._marked: dict[str, tuple[LogRecord, Version]] = {}
        self._serial = 0
        self._serials: dict[str, int] = {}  # by log: its last change; in the order of these
        self._known: dict[Stores, Stores] = {}  # one object for each nodeset, however many logs

    def mark(self, record: LogRecord, version: Version) -> None:
        """A log has changed. Cheap: its chain is walked by `catch_up`."""
        marked = self._marked.get(record.name)
        if marked is None or marked[1] < version:
            self._marked[record.name] = record, version

    def catch_up(self) -> None:
        """Take in what was marked."""
        marked, self._marked = self._marked, {}
        for record, version in marked.values():
            self.learn(record, version)

    def changed_since(self, serial: int) -> tuple[list[str], int]:
        """Logs that changed after the call that returned `serial` (0: all), and the next serial."""
        self.catch_up()
        names: list[str] = []
        for name, changed in reversed(self._serials.items()):
            if changed <= serial:
                break
            names.append(name)
        return names[::-1], self._serial

    def learn(self, record: LogRecord, version: Version) -> None:
        """A log as it is now, unless a newer one is known."""
        known = self._logs.get(record.name)
        if known is not None and known.version >= version:
            return
        self._serial += 1
        self._serials.pop(record.name, None)
        self._serials[record.name] = self._serial
        self._forget(record.name)
        use = LogUse(record, version, open_stores=self._shared(record.open_segment))
        self._logs[record.name] = use
        for segment in record.chain[:-1]:
            use.closed[self._shared(segment)] += 1
        for stores, count in use.closed.items():
            for store in stores:
                found = self._store(store)
                found.segments += count
                found.closed_logs.add(record.name)
        for store in use.open_stores:
            found = self._store(store)
            found.segments += 1
            found.open_logs.add(record.name)
        self._ordered.setdefault(record.open_segment.sequencer, set()).add(record.name)
        if record.near:
            self._with_near.add(record.name)
        if record.spread:
            self._with_spread.add(record.name)

    def __len__(self) -> int:
        return len(self._logs)

    def names(self) -> list[str]:
        """Of all logs."""
        return list(self._logs)

    def log(self, name: str) -> LogUse | None:
        """What a log uses."""
        return self._logs.get(name)

    def stores(self) -> Mapping[Store, StoreUse]:
        """Every store that a segment names; not to be changed."""
        return self._stores

    def store(self, store: Store) -> StoreUse:
        """Who uses a store; not to be changed."""
        return self._stores.get(store) or StoreUse()

    def sequencers(self) -> Mapping[SequencerId, AbstractSet[str]]:
        """Names of the logs by the process that their open segment names; not to be changed."""
        return self._ordered

    def ordered_by(self, node_id: NodeId) -> set[str]:
        """Names of the logs that any life of this node orders."""
        return {
            name
            for sequencer, names in self._ordered.items()
            if sequencer.node_id == node_id
            for name in names
        }

    def with_near(self) -> AbstractSet[str]:
        """Names of the logs that are to be ordered near their writers; not to be changed."""
        return self._with_near

    def with_spread(self) -> AbstractSet[str]:
        """Names of the logs whose copies must lie in several places; not to be changed."""
        return self._with_spread

    def closed_lacking(self, name: str, serves: Callable[[Store], bool]) -> int:
        """Closed segments of a log of which some store does not serve."""
        use = self._logs.get(name)
        if use is None:
            return 0
        return sum(count for stores, count in use.closed.items() if not all(map(serves, stores)))

    def _store(self, store: Store) -> StoreUse:
        found = self._stores.get(store)
        if found is None:
            found = self._stores[store] = StoreUse()
        return found

    def _shared(self, segment: Segment) -> Stores:
        stores = tuple(map(store_of, segment.nodeset))
        return self._known.setdefault(stores, stores)

    def _forget(self, name: str) -> None:
        use = self._logs.pop(name, None)
        if use is None:
            return
        self._with_near.discard(name)
        self._with_spread.discard(name)
        for stores, count in use.closed.items():
            for store in stores:
                self._take_away(store, name, count)
        for store in use.open_stores:
            self._take_away(store, name, 1)
        sequencer = use.record.open_segment.sequencer
        self._ordered[sequencer].discard(name)
        if not self._ordered[sequencer]:
            del self._ordered[sequencer]

    def _take_away(self, store: Store, name: str, count: int) -> None:
        found = self._stores[store]
        found.segments -= count
        found.open_logs.discard(name)
        found.closed_logs.discard(name)
        if not found.segments:
            del self._stores[store]


def store_of(replica: Replica) -> Store:
    """The replica without its location, which is that of the time when the segment was made."""
    return replica.node_id, replica.storage_id
