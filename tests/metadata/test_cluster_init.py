"""A cluster is made once, with its defaults, however often it is asked for; joined by its name."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
from helpers.memory_metadata import MemoryMetadata

from metadata.cluster_registry import (
    InitResult,
    Wanted,
    fetch_cluster,
    init_cluster,
    rename_cluster,
)
from metadata.encoding import encode_cluster
from metadata.namespace_registry import fetch_namespaces
from metadata.namespaces import NamespaceChange
from metadata.records import ClusterRecord
from metadata.registry import join_cluster
from metadata.store import ABSENT, Entry
from sharedlog.errors import InvalidArgument, MetadataUnavailable, VersionMismatch, WrongCluster
from sharedlog.retention import Retention

_ids = count(1)


def new_id() -> str:
    return f"{next(_ids):032x}"


async def init(
    store: MemoryMetadata, name: str = "prod", *, dry_run: bool = False, **defaults: Any
) -> InitResult:
    return await init_cluster(
        store,
        Wanted(name=name, defaults=NamespaceChange(**defaults)),
        new_id=new_id,
        now_ms=5,
        default_replicas=3,
        dry_run=dry_run,
    )


async def join(store: MemoryMetadata, name: str, **others: Any) -> ClusterRecord:
    return await join_cluster(
        store, known_cluster_id="", new_id=new_id, now_ms=6, name=name, **others
    )


async def test_a_dry_run_tells_and_the_run_does_what_it_told() -> None:
    store = MemoryMetadata()
    wanted: dict[str, Any] = {
        "replicas": 5,
        "spread": (("zone", 2),),
        "retention": Retention(local_age_s=7 * 86_400),
    }
    told = await init(store, dry_run=True, **wanted)
    assert not store.entries
    done = await init(store, **wanted)
    assert told.made
    assert done.made
    assert told.changes == done.changes
    assert done.changes == (
        ("name", "not set", "prod"),
        ("replicas", "not set", "5"),
        ("spread", "not set", "zone:2"),
        ("local_age", "not set", "7d"),
    )
    cluster = await fetch_cluster(store)
    assert cluster is not None
    assert (cluster.record.name, cluster.record.cluster_id) == ("prod", done.cluster_id)
    root = (await fetch_namespaces(store))[""].record
    assert (root.replicas, root.write_quorum, root.spread) == (5, None, (("zone", 2),))


async def test_again_there_is_nothing_to_do() -> None:
    """Nothing is written, the id stays; what is not asked for may be anything."""
    store = MemoryMetadata()
    first = await init(store, replicas=5)
    puts = store.puts
    for name, replicas in (("prod", 5), ("prod", None), ("", 5)):
        found = await init(store, name, replicas=replicas)
        assert (found.made, found.changes, found.conflicts) == (False, (), [])
        assert found.cluster_id == first.cluster_id
    assert store.puts == puts


async def test_what_differs_is_told_and_left_alone() -> None:
    store = MemoryMetadata()
    await init(store, replicas=5)
    before = dict(store.entries)
    found = await init(store, "test", replicas=3, write_quorum=2)
    assert found.conflicts == [
        ("name", "prod", "test"),
        ("replicas", "5", "3"),
        ("write_quorum", "not set", "2"),
    ]
    assert not found.changes
    assert store.entries == before


async def test_a_cluster_that_its_first_node_made_has_no_name_to_match() -> None:
    """Its defaults can be set by `init`, for nobody has set any; a name is a difference."""
    store = MemoryMetadata()
    made = await join(store, "")
    assert (await init(store, "prod")).conflicts == [("name", "not set", "prod")]
    found = await init(store, "", replicas=5)
    assert (found.made, found.cluster_id) == (False, made.cluster_id)
    assert found.changes == (("replicas", "not set", "5"),)


@pytest.mark.parametrize("defaults", [{"replicas": 9}, {"replicas": 3, "write_quorum": 1}])
async def test_what_can_not_be_makes_nothing(defaults: dict[str, Any]) -> None:
    store = MemoryMetadata()
    with pytest.raises(InvalidArgument):
        await init(store, **defaults)
    with pytest.raises(InvalidArgument, match="no name of a cluster"):
        await init(store, "a cluster")
    assert not store.entries


@pytest.mark.parametrize("answered", range(2))
async def test_a_lost_answer_is_settled_by_doing_it_again(answered: int) -> None:
    """Field note 50: the record was written, or the defaults were, and nobody heard of it."""
    store = MemoryMetadata()
    if answered == 0:
        store.lost_answers = 1
        with pytest.raises(MetadataUnavailable):
            await init(store, replicas=5)
    else:
        record = ClusterRecord(cluster_id="c" * 32, created_ms=1, name="prod")
        await store.put("cluster", encode_cluster(record), expected=ABSENT)
    again = await init(store, replicas=5)
    assert not again.made
    assert again.changes == (("replicas", "not set", "5"),)
    assert (await init(store, replicas=5)).changes == ()
    assert (await fetch_namespaces(store))[""].record.replicas == 5


class Interrupted(MemoryMetadata):
    """Other tasks run before each answer, as they do where answers take time."""

    async def get(self, key: str) -> Entry | None:
        found = await super().get(key)
        await asyncio.sleep(0)
        return found

    async def list(self, prefix: str) -> Sequence[Entry]:
        found = await super().list(prefix)
        await asyncio.sleep(0)
        return found


async def test_of_several_at_once_one_makes_it_and_nobody_mixes_it_up() -> None:
    """Those who ask for the same all succeed; whoever asks for something else is told."""
    store = Interrupted()
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(init(store, name, replicas=replicas))
            for name, replicas in (("prod", 5), ("test", 3), ("prod", 5), ("prod", 3))
        ]
    found = [task.result() for task in tasks]
    assert sum(it.made for it in found) == 1
    assert len({it.cluster_id for it in found}) == 1
    cluster = await fetch_cluster(store)
    assert cluster is not None
    root = (await fetch_namespaces(store))[""].record
    for it, (name, replicas) in zip(
        found, (("prod", 5), ("test", 3), ("prod", 5), ("prod", 3)), strict=True
    ):
        fits = (name, replicas) == (cluster.record.name, root.replicas)
        assert bool(it.conflicts) == (not fits)


async def test_a_node_waits_for_its_cluster_and_refuses_another() -> None:
    """One that is told a name makes no cluster, unless it hosts the store; and joins no other."""
    store = MemoryMetadata()
    with pytest.raises(MetadataUnavailable, match="`sharedlog cluster init --name prod` makes it"):
        await join(store, "prod", make=False)
    assert not store.entries
    made = await join(store, "prod")
    assert made.name == "prod"
    assert await join(store, "prod", make=False) == made
    assert await join(store, "") == made
    with pytest.raises(WrongCluster, match=r"is to join cluster test, but .* of cluster prod"):
        await join(store, "test")


async def test_a_rename_is_told_from_another_by_the_version() -> None:
    """The id stays; to repeat it is safe; over somebody else's change it fails."""
    store = MemoryMetadata()
    with pytest.raises(InvalidArgument, match="no cluster"):
        await rename_cluster(store, "prod", expected=None)
    made = await init(store)
    found = await fetch_cluster(store)
    assert found is not None
    renamed = await rename_cluster(store, "prod-2", expected=found.version)
    assert (renamed.record.name, renamed.record.cluster_id) == ("prod-2", made.cluster_id)
    assert await rename_cluster(store, "prod-2", expected=found.version) == renamed
    with pytest.raises(VersionMismatch):
        await rename_cluster(store, "prod-3", expected=found.version)
