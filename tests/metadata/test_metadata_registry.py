"""Registering nodes, making and changing logs, over a real store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from metadata.core import Load
from metadata.embedded import EmbeddedMetadataStore
from metadata.encoding import decode_node, node_key
from metadata.errors import MetadataCorrupt
from metadata.records import LogRecord, NodeRecord
from metadata.registry import (
    change_log,
    create_log,
    fetch_log,
    join_cluster,
    list_logs,
    register_node,
)
from metadata.store import ABSENT, Entry, MetadataStore, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    InvalidArgument,
    InvalidLogName,
    LogExists,
    LogNotFound,
    LogUnavailable,
    VersionMismatch,
    WrongCluster,
)
from sharedlog.ids import LogId, NodeId, Offset, StorageId


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    yield opened
    await opened.close()


class Racy:
    """A store in which every reader of a key waits until `parties` have read it: all then race."""

    def __init__(self, store: EmbeddedMetadataStore, parties: int) -> None:
        self._store = store
        self._left = parties
        self._all_read = asyncio.Event()

    async def get(self, key: str) -> Entry | None:
        found = await self._store.get(key)
        if key != "cluster" and self._left:
            self._left -= 1
            if not self._left:
                self._all_read.set()
            await self._all_read.wait()
        return found

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def racy(store: EmbeddedMetadataStore, parties: int) -> MetadataStore:
    found: object = Racy(store, parties)
    return found  # type: ignore[return-value]  # __getattr__ passes on the rest


async def register(
    store: MetadataStore,
    node_id: str = "n1",
    *,
    storage_id: str = "s1",
    cluster_id: str = "",
    roles: tuple[str, ...] = ("log-server", "sequencer"),
) -> NodeRecord:
    return await register_node(
        store,
        node_id=NodeId(node_id),
        storage_id=StorageId(storage_id),
        address=f"{node_id}:4100",
        roles=roles,
        known_cluster_id=cluster_id,
        new_id=lambda: "c1",
        now_ms=1,
    )


async def create(
    store: MetadataStore,
    alive: list[NodeRecord],
    *,
    name: str = "orders",
    nonce: str = "a",
    replicas: int = 1,
    log_id: int = 1,
) -> tuple[LogRecord, Version]:
    return await create_log(
        store,
        name=name,
        replicas=replicas,
        write_quorum=0,
        nonce=nonce,
        alive=alive,
        load=Load(),
        log_id=LogId(log_id),
        now_ms=2,
    )


async def test_each_start_has_a_generation_of_its_own(store: EmbeddedMetadataStore) -> None:
    assert [(await register(store)).generation for _ in range(3)] == [1, 2, 3]
    assert (await register(store, "n2")).generation == 1


async def test_concurrent_starts_have_different_generations(store: EmbeddedMetadataStore) -> None:
    """Field note 27: of several processes of one node each gets another generation.

    All read the same record before any of them writes.
    """
    async with asyncio.TaskGroup() as group:
        racing = racy(store, 8)
        tasks = [group.create_task(register(racing, storage_id=f"s{i}")) for i in range(8)]
    records = [task.result() for task in tasks]
    assert sorted(record.generation for record in records) == list(range(1, 9))
    entry = await store.get(node_key(NodeId("n1")))
    assert entry is not None
    assert decode_node(entry) == max(records, key=lambda record: record.generation)


async def test_the_first_node_makes_the_cluster_and_the_rest_join(
    store: EmbeddedMetadataStore,
) -> None:
    """However many start at once: all are told the same cluster."""
    ids = iter(["c1", "c2", "c3"])
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(
                join_cluster(store, known_cluster_id="", new_id=lambda: next(ids), now_ms=7)
            )
            for _ in range(3)
        ]
    found = {task.result() for task in tasks}
    assert len(found) == 1
    (cluster,) = found
    again = await join_cluster(
        store, known_cluster_id=cluster.cluster_id, new_id=lambda: "c9", now_ms=8
    )
    assert again == cluster


async def test_a_node_of_another_cluster_is_refused(store: EmbeddedMetadataStore) -> None:
    """It must not register, or its disk would be taken for one of this cluster's."""
    await register(store, cluster_id="")
    with pytest.raises(WrongCluster, match="belongs to cluster c2"):
        await register(store, "n2", cluster_id="c2")
    assert await store.get(node_key(NodeId("n2"))) is None
    assert (await register(store, "n2", cluster_id="c1")).generation == 1


async def test_a_node_that_knows_its_cluster_makes_no_other(store: EmbeddedMetadataStore) -> None:
    """An empty metadata store under a node with a past is a mistake, not a new cluster."""
    with pytest.raises(WrongCluster, match="is empty"):
        await register(store, cluster_id="c1")
    assert not await store.list("")


async def test_a_wiped_store_under_an_old_identity(store: EmbeddedMetadataStore) -> None:
    """Field note 20: the node registers its new storage_id; nodesets go on naming the old one."""
    before = await register(store, storage_id="old")
    log, _ = await create(store, [before])
    after = await register(store, storage_id="new")
    assert (after.storage_id, after.generation) == ("new", 2)
    found, _ = await fetch_log(store, "orders")
    assert found == log
    assert [replica.storage_id for replica in found.open_segment.nodeset] == ["old"]


async def test_bad_registrations_are_refused(store: EmbeddedMetadataStore) -> None:
    with pytest.raises(InvalidArgument, match="no node id"):
        await register(store, "n/1")
    with pytest.raises(InvalidArgument, match="unknown role 'cook'"):
        await register(store, roles=("cook",))
    assert not await store.list("")


async def test_a_damaged_record_is_not_taken_for_absence(store: EmbeddedMetadataStore) -> None:
    """Field note 24: a node whose record is damaged must not begin again at generation 1."""
    await store.put("nodes/n1", b"00000000 {}", expected=ABSENT)
    with pytest.raises(MetadataCorrupt, match="nodes/n1"):
        await register(store)


async def test_a_create_repeated_with_its_nonce_finds_its_log(
    store: EmbeddedMetadataStore,
) -> None:
    """Field note 50: the answer of the first try may have been lost."""
    node = await register(store)
    first = await create(store, [node], nonce="a", log_id=1)
    assert await create(store, [node], nonce="a", log_id=2) == first
    assert await create(store, [], nonce="a", log_id=3) == first  # even when no node is alive
    with pytest.raises(LogExists) as error:
        await create(store, [node], nonce="b")
    assert error.value.name == "orders"
    assert await fetch_log(store, "orders") == first


async def test_without_a_nonce_every_create_is_a_new_one(store: EmbeddedMetadataStore) -> None:
    node = await register(store)
    await create(store, [node], nonce="")
    with pytest.raises(LogExists):
        await create(store, [node], nonce="")


async def test_of_concurrent_creates_one_wins(store: EmbeddedMetadataStore) -> None:
    """Two tries of one create agree; the other create is told that the log exists."""
    node = await register(store)
    results = await asyncio.gather(
        *(create(store, [node], nonce="ab"[i % 2], log_id=i + 1) for i in range(6)),
        return_exceptions=True,
    )
    made = [result for result in results if isinstance(result, tuple)]
    refused = [result for result in results if isinstance(result, LogExists)]
    assert len(made) == len(refused) == 3
    assert all(result == made[0] for result in made)


async def test_a_repeat_finds_its_log_though_none_could_be_made_now(
    store: EmbeddedMetadataStore,
) -> None:
    """The servers that the first try saw have died since: that is no matter to what it made."""
    node = await register(store)
    made = await create(store, [node], nonce="a")
    assert await create(store, [], nonce="a") == made
    with pytest.raises(LogExists):
        await create(store, [], nonce="b")


async def test_a_log_needs_alive_nodes_and_a_name(store: EmbeddedMetadataStore) -> None:
    node = await register(store)
    with pytest.raises(LogUnavailable):
        await create(store, [node], replicas=2)
    with pytest.raises(InvalidArgument):
        await create(store, [node], replicas=0)
    with pytest.raises(InvalidLogName):
        await create(store, [node], name="a b")
    with pytest.raises(InvalidLogName):
        await fetch_log(store, "")
    with pytest.raises(LogNotFound):
        await fetch_log(store, "orders")
    assert await list_logs(store) == []


async def test_logs_are_listed_by_name(store: EmbeddedMetadataStore) -> None:
    node = await register(store)
    for index, name in enumerate(["b", "a/2", "a/1"]):
        await create(store, [node], name=name, log_id=index)
    assert [log.name for log, _ in await list_logs(store)] == ["a/1", "a/2", "b"]
    assert [log.name for log, _ in await list_logs(store, prefix="a/")] == ["a/1", "a/2"]


async def test_a_chain_moves_by_compare_and_swap_and_by_the_rules(
    store: EmbeddedMetadataStore,
) -> None:
    node = await register(store)
    old, version = await create(store, [node])
    ended = replace(old.open_segment, end=Offset(10))
    follower = replace(old.open_segment, index=1, base=Offset(10))
    new = replace(old, chain=(ended, follower))
    moved = await change_log(store, old, new, expected=version)
    assert await fetch_log(store, "orders") == (new, moved)
    with pytest.raises(VersionMismatch):
        await change_log(store, old, new, expected=version)
    with pytest.raises(InvalidArgument):
        await change_log(store, new, old, expected=moved)
