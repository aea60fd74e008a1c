"""Moving a cluster's metadata from one store to another, such that never both are live.

**Theory of operation.** Each key is closed in the store that it leaves, by compare-and-swap on the
version that is copied, before it appears in the other one (`moved.py`). A change that a node makes
meanwhile either comes first, and then the swap fails and the newer value is taken; or it finds the
key closed, and fails. A key that is not there can't be closed: who makes one looks at `cluster`
afterwards, before it believes in it (`standing.py`). So no change can be lost, even if a node still
runs that nobody noticed. Such a node keeps its picture, goes on appending and reading, and can
change nothing.

The key `cluster` goes first in the source and last in the target:

1. target: `cluster` becomes `moving from SOURCE`: no node starts there;
2. source: `cluster` becomes `moved to TARGET`: no node starts there any more;
3. all other keys: closed in the source, then copied, some at a time;
4. a listing of both is compared; what is new in the source goes back to 3;
5. target: `cluster` becomes what it was, by a compare-and-swap on 1.

Each step finds out what was done before, so an interrupted run is simply run again. `undo` goes the
other way as long as 5 has not come: first it takes the marker of 1 away, on which 5 depends.

The lease of the controller is not copied: nobody holds it in the other store. Versions are the
store's own, and no value holds one.

**A check before all that** refuses to begin while nodes live: one answers a ping, or the lease is
renewed. It is there for people: what it can't see, the steps above stand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from metadata.encoding import decode_cluster, decode_lease, decode_node
from metadata.errors import MetadataCorrupt
from metadata.moved import Marked, moved_to, moving_from, where_moved, where_moving
from metadata.records import CLUSTER_KEY, CONTROLLER_KEY, NODES_PREFIX
from metadata.store import ABSENT, Entry, MetadataStore, Version
from sharedlog.clock import Clock
from sharedlog.errors import (
    SharedLogError,
    VersionMismatch,
    WrongCluster,
)
from sharedlog.rpc.methods import PING
from sharedlog.rpc.transport import Transport
from sharedlog.tasks import first_error
from sharedlog.v1 import cluster_pb2

AT_ONCE: Final = 16
"""Keys that are moved at the same time."""
RACES_MAX: Final = 20
"""Of a key with a node, in a pass."""
PASSES_MAX: Final = 100
"""Listings after which the source is still not quiet: a node must be writing to it."""
PING_TIMEOUT_S: Final = 2.0
LEASE_SLACK: Final = 1.2
"""Of a lease's time: a holder that lives has renewed it by then."""

_NOT_COPIED: Final = frozenset((CLUSTER_KEY, CONTROLLER_KEY))

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """A store, and the URL that names it in the other one."""

    store: MetadataStore
    url: str


@dataclass(slots=True)
class Progress:
    """How far it is; counts are of keys, without `cluster` and the lease."""

    keys: int = 0  # of the source
    bytes: int = 0  # of their values
    moved: int = 0  # closed in the source and present in the target
    copied: int = 0  # of these, by this run
    done: bool = False  # the target is complete, and nodes can start on it
    already: bool = False  # and was so before this run
    versions_fall: bool = False  # clients that go on running remember larger versions
    _on_change: Callable[[Progress], None] = field(default=lambda _: None, repr=False)

    def tell(self) -> None:
        """Something has changed."""
        self._on_change(self)


async def living_nodes(store: MetadataStore, transport: Transport, clock: Clock) -> list[str]:
    """Signs that a node of this cluster runs, each a clause for a person. A hint.

    Raises:
        MetadataUnavailable.

    **Cancellation:** ends it.
    """
    lease = await store.get(CONTROLLER_KEY)
    signs: list[str] = []

    async def ask(entry: Entry) -> None:
        try:
            node = decode_node(replace(entry, value=_plain(entry.value)))
        except MetadataCorrupt:
            return
        try:
            answer = await transport.call(
                node.address, PING, cluster_pb2.PingRequest(), timeout_s=PING_TIMEOUT_S
            )
        except SharedLogError:
            return
        if answer.node_id == node.node_id:
            signs.append(f"node {node.node_id} answers at {node.address}")

    await _in_parallel(ask, await store.list(NODES_PREFIX))
    if not signs and lease is not None and await _is_renewed(store, lease, clock):
        signs.append("the controller's lease is being renewed")
    return sorted(signs)


async def _is_renewed(store: MetadataStore, lease: Entry, clock: Clock) -> bool:
    try:
        record = decode_lease(lease)
    except MetadataCorrupt:
        return False
    if not record.holder:
        return False
    await clock.sleep(record.ttl_ms / 1000 * LEASE_SLACK)
    now = await store.get(CONTROLLER_KEY)
    return now is not None and now.version != lease.version


@dataclass(frozen=True, slots=True)
class Plan:
    """What `look` found in the two stores."""

    cluster: bytes  # the value of `cluster`, without a marker
    cluster_id: str
    source_version: Version | None  # of `cluster` in the source; None: it is marked already
    target_version: Version  # of `cluster` in the target; ABSENT: there is none
    complete: bool  # the target is complete
    keys: int
    bytes: int

    @property
    def begun(self) -> bool:
        """An earlier run has got somewhere."""
        return self.source_version is None or self.target_version != ABSENT


async def look(source: Place, target: Place) -> Plan:
    """What there is to do; changes nothing.

    Raises:
        WrongCluster: the source has no cluster, or was moved elsewhere; the target is not empty.
        MetadataUnavailable, MetadataCorrupt.

    **Cancellation:** ends it.
    """
    entry = await source.store.get(CLUSTER_KEY)
    if entry is None:
        raise WrongCluster(f"{source.url} has no cluster: there is nothing to move")
    if where_moving(entry.value):
        raise WrongCluster(f"{source.url} is being filled itself: finish that first")
    marked = where_moved(entry.value)
    if marked is not None and marked.url != target.url:
        raise WrongCluster(f"{source.url} was moved already, to {marked.url}")
    value = entry.value if marked is None else marked.value
    cluster_id = decode_cluster(Entry(CLUSTER_KEY, value, entry.version)).cluster_id
    there = await target.store.get(CLUSTER_KEY)
    complete = marked is not None and there is not None and there.value == value
    if not complete:
        await _check_target(source, target, there, value)
    listed = [it for it in await source.store.list("") if it.key not in _NOT_COPIED]
    return Plan(
        cluster=value,
        cluster_id=cluster_id,
        source_version=None if marked is not None else entry.version,
        target_version=ABSENT if there is None else there.version,
        complete=complete,
        keys=len(listed),
        bytes=sum(len(_plain(it.value)) for it in listed),
    )


async def _check_target(source: Place, target: Place, there: Entry | None, value: bytes) -> None:
    if there is None:
        if await target.store.list(""):
            raise WrongCluster(f"{target.url} is not empty, and holds no cluster: take another one")
        return
    begun = where_moving(there.value)
    if begun is None:
        raise WrongCluster(f"{target.url} holds a cluster already: an empty store is needed")
    if begun != Marked(source.url, value):
        raise WrongCluster(f"{target.url} is being filled from {begun.url}: take another one")


async def migrate(source: Place, target: Place, plan: Plan, progress: Progress) -> None:
    """Move everything; run it again if it was interrupted. See the module's docstring.

    Whether nodes live is for the caller to ask before.

    Raises:
        WrongCluster: somebody writes to the target, or the source is not quiet.
        MetadataUnavailable, MetadataCorrupt: it is not complete; run it again.

    **Cancellation:** likewise.
    """
    progress.keys, progress.bytes = plan.keys, plan.bytes
    if plan.complete:
        progress.moved, progress.done, progress.already = plan.keys, True, True
        return
    version = plan.target_version
    if version == ABSENT:
        marker = moving_from(source.url, plan.cluster)
        version = await target.store.put(CLUSTER_KEY, marker, expected=ABSENT)
    if plan.source_version is not None:
        marker = moved_to(target.url, plan.cluster)
        await source.store.put(CLUSTER_KEY, marker, expected=plan.source_version)
    await _move_all(source, target, progress)
    try:
        await target.store.put(CLUSTER_KEY, plan.cluster, expected=version)
    except VersionMismatch as error:
        there = await target.store.get(CLUSTER_KEY)
        if there is None or there.value != plan.cluster:  # else another run has finished it
            raise WrongCluster(f"{target.url} was changed meanwhile: was it undone?") from error
    progress.done = True
    progress.tell()


async def _move_all(source: Place, target: Place, progress: Progress) -> None:
    """Until a listing of the source has nothing that the target lacks."""
    mover = _Mover(source, target, progress)
    for _ in range(PASSES_MAX):
        here = {it.key: it for it in await source.store.list("") if it.key not in _NOT_COPIED}
        there = {it.key: it for it in await target.store.list("") if it.key not in _NOT_COPIED}
        foreign = sorted(there.keys() - here.keys())
        if foreign:
            raise WrongCluster(
                f"{target.url} has a key {foreign[0]!r} that {source.url} lacks: somebody else "
                "writes to it"
            )
        left = [it for it in here.values() if not mover.is_moved(it, there.get(it.key))]
        progress.keys, progress.moved = len(here), len(here) - len(left)
        progress.tell()
        if not left:
            falls = (it.version > there[it.key].version for it in here.values())
            progress.versions_fall = any(falls)
            return
        await _in_parallel(mover.move, left)
    raise WrongCluster(f"{source.url} is not quiet: a node goes on writing to it; stop all nodes")


class _Mover:
    def __init__(self, source: Place, target: Place, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._progress = progress

    def is_moved(self, here: Entry, there: Entry | None) -> bool:
        """Raises `WrongCluster` if the target has another value."""
        marked = where_moved(here.value)
        if there is not None and (marked is None or marked.value != there.value):
            raise self._foreign(here.key)
        return there is not None

    async def move(self, entry: Entry) -> None:
        """One key; a later pass tries again what changes too often."""
        value = await self._close(entry)
        if value is None:
            return
        try:
            await self._target.store.put(entry.key, value, expected=ABSENT)
        except VersionMismatch as error:
            raise self._foreign(entry.key) from error
        self._progress.copied += 1
        self._progress.moved += 1
        self._progress.tell()

    async def _close(self, entry: Entry) -> bytes | None:
        """The value that the key had last; None: it is gone, or others change it all the time."""
        found: Entry | None = entry
        for _ in range(RACES_MAX):
            if found is None:
                return None
            marked = where_moved(found.value)
            if marked is not None:
                return marked.value
            closed = moved_to(self._target.url, found.value)
            try:
                await self._source.store.put(found.key, closed, expected=found.version)
            except VersionMismatch:
                found = await self._source.store.get(entry.key)
            else:
                return found.value
        return None

    def _foreign(self, key: str) -> WrongCluster:
        return WrongCluster(f"{self._target.url} has another value of {key!r}: it is in use")


async def undo(source: Place, target: Place, progress: Progress) -> None:
    """Make the source what it was, as long as the target is not complete. Safe to repeat.

    Raises:
        WrongCluster: the target is complete: move it back instead, to an empty store.
        MetadataUnavailable, MetadataCorrupt: it is not done; run it again.

    **Cancellation:** likewise.
    """
    entry = await source.store.get(CLUSTER_KEY)
    marked = None if entry is None else where_moved(entry.value)
    if marked is not None and marked.url != target.url:
        raise WrongCluster(f"{source.url} was moved to {marked.url}, not to {target.url}")
    there = await target.store.get(CLUSTER_KEY)
    if there is not None:
        begun = where_moving(there.value)
        if begun is None or begun.url != source.url:
            raise WrongCluster(
                f"{target.url} holds a cluster, and not a part of one from {source.url}: what is "
                "complete can be moved to an empty store"
            )
        try:
            await target.store.delete(CLUSTER_KEY, expected=there.version)
        except VersionMismatch as error:
            raise WrongCluster(f"{target.url} was changed meanwhile") from error
    # A run that was under way may have closed keys after an earlier undoing had opened them.
    listed = await source.store.list("")
    closed = [it for it in listed if (mark := where_moved(it.value)) and mark.url == target.url]
    progress.keys = len(closed)

    async def reopen(it: Entry) -> None:
        found = where_moved(it.value)
        assert found is not None
        copy = await target.store.get(it.key)
        if copy is not None and copy.value == found.value:
            await target.store.delete(it.key, expected=copy.version)
        await source.store.put(it.key, found.value, expected=it.version)
        progress.moved += 1
        progress.tell()

    await _in_parallel(reopen, [it for it in closed if it.key != CLUSTER_KEY])
    if marked is not None and entry is not None:
        await reopen(entry)


def _plain(value: bytes) -> bytes:
    marked = where_moved(value)
    return value if marked is None else marked.value


async def _in_parallel(work: Callable[[Entry], Awaitable[None]], entries: Sequence[Entry]) -> None:
    """Some at a time. Raises the first error; the rest is left then."""
    waiting: Iterable[Entry] = iter(entries)

    async def run() -> None:
        for entry in waiting:
            await work(entry)

    try:
        async with asyncio.TaskGroup() as group:
            for index in range(min(AT_ONCE, len(entries))):
                group.create_task(run(), name=f"migrate-{index}")
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors
