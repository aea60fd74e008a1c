"""A node's picture of the cluster."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.metadata_process import MetadataProcess

from metadata.core import Load
from metadata.embedded import EmbeddedMetadataStore
from metadata.encoding import encode_log
from metadata.errors import MetadataCorrupt
from metadata.records import LogRecord, NodeRecord
from metadata.registry import change_log, create_log, register_node
from metadata.remote import RemoteMetadataStore
from metadata.store import (
    ABSENT,
    Changed,
    Deleted,
    Entry,
    MetadataStore,
    SnapshotComplete,
    Version,
    WatchEvent,
)
from metadata.view import ClusterView
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidLogName, LogNotFound, MetadataUnavailable
from sharedlog.ids import LogId, NodeId, Offset, StorageId
from sharedlog.rpc.grpc_client import GrpcTransport


class Counting:
    """Passes on to a store; counts gets of logs, and holds back what watches tell while `held`."""

    def __init__(self, store: EmbeddedMetadataStore) -> None:
        self._store = store
        self.log_gets = 0
        self.flowing = asyncio.Event()
        self.flowing.set()

    async def get(self, key: str) -> Entry | None:
        self.log_gets += key.startswith("logs/")
        return await self._store.get(key)

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        return await self._store.put(key, value, expected=expected)

    async def delete(self, key: str, *, expected: Version) -> None:
        await self._store.delete(key, expected=expected)

    async def list(self, prefix: str) -> Sequence[Entry]:
        return await self._store.list(prefix)

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        async for event in self._store.watch(prefix):
            await self.flowing.wait()
            yield event

    async def close(self) -> None:
        """Nothing of its own."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    yield opened
    await opened.close()


@asynccontextmanager
async def running(view: ClusterView) -> AsyncIterator[ClusterView]:
    task = asyncio.create_task(view.run())
    async with asyncio.timeout(20):
        await view.wait_ready()
    try:
        yield view
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def counting(store: EmbeddedMetadataStore) -> Counting:
    return Counting(store)


@pytest.fixture
async def view(counting: Counting) -> AsyncIterator[ClusterView]:
    async with running(ClusterView(counting, SystemClock())) as found:
        yield found


async def until(view: ClusterView, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await view.wait_changed()


async def register(store: MetadataStore, node_id: str = "n1") -> NodeRecord:
    return await register_node(
        store,
        node_id=NodeId(node_id),
        storage_id=StorageId("s"),
        address=f"{node_id}:1",
        roles=("log-server", "sequencer"),
        known_cluster_id="",
        new_id=lambda: "c1",
        now_ms=1,
    )


async def create(
    store: MetadataStore, node: NodeRecord, name: str = "orders"
) -> tuple[LogRecord, Version]:
    return await create_log(
        store,
        name=name,
        replicas=1,
        write_quorum=1,
        nonce=name,
        alive=[node],
        load=Load(),
        log_id=LogId(1),
        now_ms=1,
    )


def extended(log: LogRecord, end: int) -> LogRecord:
    last = log.open_segment
    ended = replace(last, end=Offset(end))
    follower = replace(last, index=last.index + 1, base=Offset(end))
    return replace(log, chain=(*log.chain[:-1], ended, follower))


async def test_the_view_follows_nodes_and_logs(
    store: EmbeddedMetadataStore, view: ClusterView
) -> None:
    assert view.ready
    assert view.connected
    assert view.nodes() == []
    assert view.node(NodeId("n1")) is None
    second, first = await register(store, "n2"), await register(store, "n1")
    log, version = await create(store, first)
    await until(view, lambda: len(view.nodes()) == 2 and view.log("orders") is not None)
    assert view.nodes() == [first, second]
    assert view.node(NodeId("n2")) == second
    assert view.log("orders") == (log, version)
    assert view.logs() == [(log, version)]
    await store.delete("logs/orders", expected=version)
    await until(view, lambda: view.log("orders") is None)
    with pytest.raises(LogNotFound):
        await view.fetch_log("orders")


async def test_a_log_in_the_cache_is_not_asked_for(
    store: EmbeddedMetadataStore, counting: Counting, view: ClusterView
) -> None:
    made = await create(store, await register(store))
    await until(view, lambda: view.log("orders") is not None)
    assert await view.fetch_log("orders") == made
    assert counting.log_gets == 0


async def test_logs_come_in_pages_in_the_order_of_their_names(
    counting: Counting, view: ClusterView
) -> None:
    """By prefix, from behind a name; a log that comes up or goes is in the next page, or not."""
    node = await register(counting)
    for name in ("b/2", "a", "b/1", "b", "b/3", "c"):
        await create(counting, node, name)
    await until(view, lambda: len(view.logs()) == 6)

    def page(prefix: str, after: str = "", limit: int = 10) -> tuple[list[str], bool]:
        found, more = view.page(prefix, after=after, limit=limit)
        return [record.name for record, _ in found], more

    assert page("") == (["a", "b", "b/1", "b/2", "b/3", "c"], False)
    assert page("b/", limit=2) == (["b/1", "b/2"], True)
    assert page("b/", after="b/2", limit=2) == (["b/3"], False)
    assert page("b/", limit=3) == (["b/1", "b/2", "b/3"], False)
    assert page("b/", after="c") == ([], False)
    assert page("d") == ([], False)
    await create(counting, node, "b/0")
    entry = await counting.get("logs/b/2")
    assert entry is not None
    await counting.delete("logs/b/2", expected=entry.version)
    await until(view, lambda: view.log("b/0") is not None and view.log("b/2") is None)
    assert page("b/") == (["b/0", "b/1", "b/3"], False)


async def test_a_log_that_is_not_known_yet_is_asked_of_the_store(
    store: EmbeddedMetadataStore, counting: Counting, view: ClusterView
) -> None:
    """A log made a moment ago through another node is found, though no watch has told it."""
    counting.flowing.clear()
    made = await create(store, await register(store))
    assert view.log("orders") is None
    assert await view.fetch_log("orders") == made
    assert counting.log_gets == 1
    with pytest.raises(LogNotFound):
        await view.fetch_log("other")
    with pytest.raises(InvalidLogName):
        await view.fetch_log("")


async def test_refresh_sees_what_the_watch_has_not_told(
    store: EmbeddedMetadataStore, counting: Counting, view: ClusterView
) -> None:
    """Field note 34: a reader that met an error gets the chain as it is now."""
    old, version = await create(store, await register(store))
    await until(view, lambda: view.log("orders") is not None)
    counting.flowing.clear()
    new = extended(old, 5)
    moved = await change_log(store, old, new, expected=version)
    assert await view.fetch_log("orders") == (old, version)
    assert await view.refresh_log("orders") == (new, moved)
    counting.flowing.set()
    await until(view, lambda: view.log("orders") == (new, moved))


async def test_waiting_for_a_log_ends_with_the_change(
    store: EmbeddedMetadataStore, view: ClusterView
) -> None:
    """Field note 8: a segment's end is pushed to who waits for it."""
    old, version = await create(store, await register(store))
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        waiting = group.create_task(view.wait_log("orders", lambda log: len(log.chain) > 1))
        moved = await change_log(store, old, extended(old, 5), expected=version)
    assert waiting.result() == (extended(old, 5), moved)


async def test_a_node_learns_that_it_is_superseded(
    store: EmbeddedMetadataStore, view: ClusterView
) -> None:
    """Field note 27: the older of two processes with one identity is told; the newer one is not."""
    older = await register(store)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        waiting = group.create_task(view.wait_superseded(older))
        await until(view, lambda: view.node(older.node_id) == older)
        assert not waiting.done()
        newer = await register(store)
    assert waiting.result() == newer
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await view.wait_superseded(newer)


async def test_a_damaged_value_is_not_absence(
    store: EmbeddedMetadataStore, view: ClusterView
) -> None:
    """Field note 24: the last good chain stays, the damage is shown; without one it is an error."""
    log, version = await create(store, await register(store))
    await until(view, lambda: view.log("orders") is not None)
    damaged = bytearray(encode_log(log))
    damaged[-5] ^= 1
    bad = await store.put("logs/orders", bytes(damaged), expected=version)
    await store.put("logs/other", bytes(damaged), expected=ABSENT)
    await until(view, lambda: len(view.damaged) == 2)
    assert view.log("orders") == (log, version)
    assert view.log("other") is None
    for name in ("orders", "other"):
        with pytest.raises(MetadataCorrupt, match=f"logs/{name}"):
            await view.refresh_log(name)
    with pytest.raises(MetadataCorrupt):
        await view.fetch_log("other")
    mended = await store.put("logs/orders", encode_log(log), expected=bad)
    await until(view, lambda: view.log("orders") == (log, mended))
    assert list(view.damaged) == ["logs/other"]


class Recorded(RemoteMetadataStore):
    """Notes what its watches tell."""

    seen: list[WatchEvent]

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        async for event in super().watch(prefix):
            self.seen.append(event)
            yield event


@pytest.mark.slow
@pytest.mark.cluster
async def test_the_view_outlives_the_metadata_process(tmp_path: Path) -> None:
    """Field note 52: without the store, lookups go on; after it, each change is told once."""
    transport = GrpcTransport()
    async with MetadataProcess(tmp_path / "store") as process:
        store = RemoteMetadataStore(
            transport, process.address, SystemClock(), lambda: uuid.uuid4().hex, timeout_s=10
        )
        impatient = RemoteMetadataStore(
            transport, process.address, SystemClock(), lambda: "", timeout_s=0.1
        )
        node = await register(store)
        log, version = await create(store, node)
        gone, gone_version = await create(store, node, "gone")
        recorded = Recorded(transport, process.address, SystemClock(), lambda: "", timeout_s=0.5)
        recorded.seen = []
        async with running(ClusterView(recorded, SystemClock())) as view:
            await process.kill()
            await until(view, lambda: not view.connected)
            assert view.log("orders") == (log, version)
            assert await view.fetch_log("gone") == (gone, gone_version)
            with pytest.raises(MetadataUnavailable):
                await view.fetch_log("unknown")
            with pytest.raises(MetadataUnavailable):
                await impatient.get("cluster")
            await process.start()
            newer = await register(store)
            await store.delete("logs/gone", expected=gone_version)
            moved = await change_log(store, log, extended(log, 9), expected=version)
            await until(view, lambda: view.log("gone") is None and view.nodes() == [newer])
            await until(view, lambda: view.log("orders") == (extended(log, 9), moved))
            await until(view, lambda: view.connected)
        told = [event.entry.key for event in recorded.seen if isinstance(event, Changed)]
        assert sorted(told) == ["logs/gone", "logs/orders", "logs/orders", "nodes/n1", "nodes/n1"]
        deleted = [event.key for event in recorded.seen if isinstance(event, Deleted)]
        assert deleted == ["logs/gone"]
        assert recorded.seen.count(SnapshotComplete()) == 2  # once for each of the two watches
    await transport.close()


async def test_nodes_are_asked_of_the_store_when_the_watch_lags(
    store: EmbeddedMetadataStore, counting: Counting, view: ClusterView
) -> None:
    """`refresh_nodes` and `fetch_node` know a node before the watch has told of it.

    A damaged record is not taken for absence: the last good one stands.
    """
    first = await register(store, "n1")
    await until(view, lambda: view.nodes() == [first])
    counting.flowing.clear()
    second = await register(store, "n2")
    assert view.nodes() == [first]
    assert await view.refresh_nodes() == [first, second]
    assert await view.fetch_node(NodeId("n2")) == second
    assert await view.fetch_node(NodeId("n3")) is None
    entry = await store.get("nodes/n1")
    assert entry is not None
    await store.put("nodes/n1", b"damaged", expected=entry.version)
    assert await view.refresh_nodes() == [first, second]
    counting.flowing.set()
