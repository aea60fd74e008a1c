"""What operators use, on each kind of store: verify, sweep, inspect, export."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path

import pytest
from helpers.archive_stores import pieces
from helpers.archive_world import LOG_ID, World
from helpers.log_servers import CLUSTER
from helpers.memory_objects import FaultPlan

from loglet.archive import object_format, writer
from loglet.archive.export import export, open_writer
from loglet.archive.layout import ObjectName, log_prefix, object_key, page_key
from loglet.archive.manifest import Manifest
from loglet.archive.manifests import Manifests
from loglet.archive.object_store import ObjectStore
from loglet.archive.offline import (
    ObjectUrl,
    archived_batches,
    inspect_manifest,
    inspect_object,
    split_url,
)
from loglet.archive.offload import Offloader
from loglet.archive.writer import ObjectWriter
from node.archive.cleaner import Cleaner
from node.archive.verifier import Verifier
from sharedlog.batch import parse_placement
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, ObjectNotFound
from sharedlog.ids import Offset

CLOCK = SystemClock()
MANIFEST = log_prefix(CLUSTER, LOG_ID) + "manifest"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_format, "BLOCK_BYTES", 250)
    monkeypatch.setattr(writer, "READ_BACK_BYTES", 300)


@pytest.fixture
def world() -> World:
    return World(FaultPlan())


@pytest.fixture
def manifests(store: ObjectStore, world: World) -> Manifests:
    return Manifests(store, cluster_id=CLUSTER, clock=CLOCK, new_id=world.new_id)


@pytest.fixture
async def manifest(store: ObjectStore, world: World, manifests: Manifests) -> Manifest:
    """All of the world's log, archived there."""
    offloader = Offloader(manifests, ObjectWriter(store, clock=CLOCK, new_id=world.new_id))
    while True:
        step = await offloader.step(world.chain, world.known(60), world.read, bytes_max=600)
        if step.made is None:
            return step.manifest


async def keys(store: ObjectStore) -> set[str]:
    return {info.key async for info in store.list(log_prefix(CLUSTER, LOG_ID))}


async def test_verify_and_sweep(
    store: ObjectStore, world: World, manifests: Manifests, manifest: Manifest
) -> None:
    """Orphans go, with the grace time that they have had; all else stays, and is sound."""

    named = await keys(store)
    orphans = {
        object_key(CLUSTER, LOG_ID, ObjectName(Offset(0), "f" * 32)),
        page_key(CLUSTER, LOG_ID, "e" * 32),
    }
    for key in orphans:
        await store.upload(key, pieces(b"x"))
    cleaner = Cleaner(store, manifests, clock=CLOCK)

    async def sweep(grace_ms: int) -> set[str]:
        steps = cleaner.sweep(world.chain.record, grace_ms=grace_ms, dry_run=False)
        return {it.key async for step in steps for it in step.objects}

    assert await sweep(3_600_000) == set()
    assert await keys(store) == named | orphans
    # Below zero: the store's clock may have coarser ticks than ours.
    assert await sweep(-5_000) == orphans
    assert await keys(store) == named
    verifier = Verifier(store, manifests)
    steps = [step async for step in verifier.verify(world.chain.record, full=True)]
    assert steps[-1].done == steps[-1].total == len(manifest.entries)
    assert not any(step.findings for step in steps)
    await store.delete([manifest.entries[1].key])
    found = [
        finding
        async for step in verifier.verify(world.chain.record, full=False)
        for finding in step.findings
    ]
    assert [(it.key, it.kind) for it in found] == [(manifest.entries[1].key, "missing")]


async def test_inspect_and_export(
    store: ObjectStore, world: World, manifest: Manifest, tmp_path: Path
) -> None:
    """By URLs, as the command takes them."""
    entry = manifest.entries[1]
    assert split_url(f"{store.url}/{entry.key}") == ObjectUrl(store.url, entry.key)
    report = await inspect_object(store, entry.key, blocks=True, verify=True)
    assert report.problems == []
    assert (report.said["first"], report.said["end"]) == (entry.first, entry.end)
    whole = await inspect_manifest(store, MANIFEST, objects=True, verify=True)
    assert whole.problems == []
    assert (whole.said["log"], whole.said["object_count"]) == ("orders", len(manifest.entries))
    for start, end in ((0, None), (10, 31), (59, 60), (60, None)):
        batches = archived_batches(
            store,
            ObjectUrl(store.url, MANIFEST),
            Offset(start),
            None if end is None else Offset(end),
        )
        async with aclosing(batches):
            read = [placed async for part in batches for placed in part]
        wanted = [
            batch
            for batch in world.batches
            if (it := parse_placement(batch)).end > start and (end is None or it.first < end)
        ]
        assert [it for it in read if it in wanted] == wanted
        assert len(read) - len(wanted) <= 8, "blocks alone that overlap are read"
    out = tmp_path / "out.ndjson"
    made = open_writer("ndjson", out)
    start, end = Offset(10), Offset(31)
    batches = archived_batches(store, ObjectUrl(store.url, MANIFEST), start, end)
    assert await export(batches, made, start, end) == 21
    made.close()
    assert out.read_bytes().count(b"\n") == 21
    await store.delete([entry.key])
    told = await inspect_manifest(store, MANIFEST, objects=False, verify=True)
    assert told.problems == [f"{entry.key}: it is not there"]
    with pytest.raises(ObjectNotFound):
        await inspect_object(store, entry.key, blocks=False, verify=False)


@pytest.mark.parametrize("url", ["file:///a/b/", "s3://b/x/manifest", f"/tmp/page-{'e' * 32}"])
def test_what_is_no_object_is_refused(url: str) -> None:
    """With the reason: a folder, a manifest out of its place, a page."""
    with pytest.raises(InvalidArgument):
        split_url(url)
