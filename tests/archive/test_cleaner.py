"""Deleting what nobody needs: after a purge, and by a sweep; and what is never deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from helpers.archive_world import KEY, LOG_ID, World
from helpers.log_servers import CLUSTER
from helpers.memory_objects import FAULTS, Crash, Fault, FaultPlan, MemoryObjects

from loglet.archive import manifest as manifest_module
from loglet.archive import object_format, writer
from loglet.archive.errors import ManifestBehind, ManifestCorrupt
from loglet.archive.layout import ObjectName, manifest_key, object_key, page_key
from loglet.archive.manifest import LogSettings, Manifest, Write, new_manifest
from loglet.archive.manifest_codec import decode_manifest, encode_manifest
from loglet.archive.manifests import ManifestConflict, Manifests
from loglet.archive.object_store import ObjectInfo
from node.archive.cleaner import Cleaner, Dropped, Swept
from sharedlog.clock import SystemClock
from sharedlog.errors import ArchiveUnavailable
from sharedlog.ids import LogId, Offset

CLOCK = SystemClock()
ORPHAN = object_key(CLUSTER, LOG_ID, ObjectName(Offset(0), "f" * 32))
ORPHAN_PAGE = page_key(CLUSTER, LOG_ID, "e" * 32)
SETTINGS = LogSettings(name="copy", replicas=3, write_quorum=2)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_format, "BLOCK_BYTES", 250)
    monkeypatch.setattr(writer, "READ_BACK_BYTES", 300)


def manifests(world: World) -> Manifests:
    return Manifests(world.objects, cluster_id=CLUSTER, clock=CLOCK, new_id=world.new_id)


def cleaner(world: World) -> Cleaner:
    return Cleaner(world.objects, manifests(world), clock=CLOCK)


async def sweep(world: World, *, grace_ms: int = 0, dry_run: bool = False) -> list[str]:
    """Keys that were deleted, or would be."""
    steps: list[Swept] = [
        step
        async for step in cleaner(world).sweep(
            world.chain.record, grace_ms=grace_ms, dry_run=dry_run
        )
    ]
    return [it.key for step in steps for it in step.objects]


async def purge(world: World, start: int) -> tuple[Manifest, Manifest]:
    """The manifest before and after."""
    before = world.manifest()
    world.chain.record = replace(
        world.chain.record, start=Offset(start), trimmed=Offset(max(start, 0))
    )
    return before, await world.offloader().purge(world.chain)


def add_fork(world: World, log_id: int, made: Manifest | None, *, of: int = LOG_ID) -> None:
    """Name a fork in a log's manifest, and write the fork's own, unless it is not there yet."""
    key = manifest_key(CLUSTER, LogId(of))
    source = manifests_of(world, of)
    forks = (*source.forks, manifest_key(CLUSTER, LogId(log_id)).rpartition("/")[0])
    world.objects.objects[key] = encode_manifest(key, replace(source, forks=forks))
    if made is not None:
        fork_key = manifest_key(CLUSTER, LogId(log_id))
        world.objects.objects[fork_key] = encode_manifest(fork_key, made)


def manifests_of(world: World, log_id: int) -> Manifest:
    key = manifest_key(CLUSTER, LogId(log_id))
    return decode_manifest(key, world.objects.objects[key])


def fork_of(source: Manifest, log_id: int) -> Manifest:
    """A log that begins as all of another one."""
    made = new_manifest(CLUSTER, LogId(log_id), SETTINGS, Offset(0), Write("salt", 1))
    return replace(made, end=source.end, pages=source.pages, entries=source.entries)


async def test_a_purge_deletes_what_lies_below_alone() -> None:
    """Whole objects below the start; one that reaches above it stays."""
    world = World(FaultPlan())
    manifest = await world.offload()
    start = manifest.entries[2].first + 1
    before, now = await purge(world, start)
    dropped = await cleaner(world).clean(before, now)
    assert dropped.objects == list(manifest.entries[:2])
    assert dropped.size == sum(it.size for it in manifest.entries[:2])
    kept = {it.key for it in manifest.entries[2:]}
    assert set(world.objects.objects) == {KEY, *kept}
    assert await cleaner(world).clean(now, now) == Dropped(), "a second time there is nothing"


async def test_a_purge_of_everything_leaves_an_empty_archive() -> None:
    """With pages: they go, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "ENTRIES_MAX", 2)
        patch.setattr(manifest_module, "PAGE_ENTRIES", 2)
        world = World(FaultPlan())
        manifest = await world.offload()
        assert manifest.pages
        before, now = await purge(world, manifest.pages[0].end - 1)
        await cleaner(world).clean(before, now)
        assert manifest.pages[0].key in world.objects.objects
        assert await sweep(world) == [], "an object that a page alone names is gone already"
        before, now = await purge(world, 60)
        await cleaner(world).clean(before, now)
    assert set(world.objects.objects) == {KEY}


async def test_what_a_fork_names_stays() -> None:
    """And what a fork of the fork names; a fork that can't be read may name anything."""
    world = World(FaultPlan())
    manifest = await world.offload()
    add_fork(world, 8, fork_of(manifest, 8))
    before, now = await purge(world, 60)
    assert (await cleaner(world).clean(before, now)).keys == []
    assert await sweep(world) == []
    # The fork forgets all but its last object, and its own fork needs two more.
    key = manifest_key(CLUSTER, LogId(8))
    last = manifest.entries[-1]
    small = replace(fork_of(manifest, 8), start=last.first, entries=(last,))
    world.objects.objects[key] = encode_manifest(key, small)
    grandchild = fork_of(manifest, 9)
    first = manifest.entries[-3].first
    add_fork(world, 9, replace(grandchild, start=first, entries=manifest.entries[-3:]), of=8)
    assert await sweep(world) == [it.key for it in manifest.entries[:-3]]
    add_fork(world, 10, None)
    world.objects.objects[manifest_key(CLUSTER, LogId(10))] = b"damaged"
    world.objects.objects[ORPHAN] = b"x"
    with pytest.raises(ManifestCorrupt):
        await sweep(world)
    assert ORPHAN in world.objects.objects


async def test_a_purge_under_a_fork_that_was_never_made_goes_on() -> None:
    """Who began to make it is told by an empty manifest, which each deletion writes anew."""
    world = World(FaultPlan())
    manifest = await world.offload()
    add_fork(world, 8, None)
    assert (await cleaner(world).would_drop(manifest, Offset(60))).objects == list(manifest.entries)
    key = manifest_key(CLUSTER, LogId(8))
    assert key not in world.objects.objects
    before, now = await purge(world, manifest.entries[0].end)
    dropped = await cleaner(world).clean(before, now)
    assert dropped.objects == [manifest.entries[0]]
    first = world.objects.objects[key]
    assert decode_manifest(key, first).is_held
    before, now = await purge(world, 60)
    assert (await cleaner(world).clean(before, now)).objects == list(manifest.entries[1:])
    assert decode_manifest(key, world.objects.objects[key]).is_held
    assert world.objects.objects[key] != first
    world.objects.objects[ORPHAN] = b"x"
    assert await sweep(world) == [ORPHAN]


async def test_what_a_purge_would_delete_is_not_what_a_fork_needs() -> None:
    """The answer of a dry run is that of the purge."""
    world = World(FaultPlan())
    manifest = await world.offload()
    needed = manifest.entries[1]
    made = replace(fork_of(manifest, 8), start=needed.first, end=needed.end, entries=(needed,))
    add_fork(world, 8, made)
    would = await cleaner(world).would_drop(world.manifest(), Offset(60))
    assert needed not in would.objects
    before, now = await purge(world, 60)
    assert (await cleaner(world).clean(before, now)) == would


async def test_a_fork_deletes_nothing_of_the_log_it_was_made_of() -> None:
    """Its manifest names objects in another directory, which is not its own."""
    world = World(FaultPlan())
    manifest = await world.offload()
    made = fork_of(manifest, 8)
    gone = replace(made, start=made.end, entries=())
    assert (await cleaner(world).clean(made, gone)).keys == []
    assert len(world.objects.objects) == 1 + len(manifest.entries)


async def test_a_sweep_deletes_what_nobody_names() -> None:
    """Objects and pages; nothing else that lies there, and nothing in a dry run."""
    world = World(FaultPlan())
    manifest = await world.offload()
    for key in (ORPHAN, ORPHAN_PAGE, KEY + ".old"):
        world.objects.objects[key] = b"x"
    assert await sweep(world, dry_run=True) == [ORPHAN, ORPHAN_PAGE]
    assert ORPHAN in world.objects.objects
    revision = world.manifest().revision
    assert revision == manifest.revision, "a dry run changes nothing"
    assert await sweep(world) == [ORPHAN, ORPHAN_PAGE]
    kept = {it.key for it in manifest.entries}
    assert set(world.objects.objects) == {KEY, KEY + ".old", *kept}


async def test_a_sweep_ends_a_purge_that_the_archive_did_not_hear_of() -> None:
    """The log's start is the chain's business: what lies below is not needed, named or not."""
    world = World(FaultPlan())
    manifest = await world.offload()
    start = manifest.entries[2].first
    world.chain.record = replace(world.chain.record, start=start, trimmed=start)
    below = [it.key for it in manifest.entries[:2]]
    assert await sweep(world, dry_run=True) == below
    assert world.manifest() == manifest
    assert await sweep(world) == below
    assert world.manifest().start == start
    assert {it.key for it in manifest.entries[2:]} == set(world.objects.objects) - {KEY}


async def test_a_sweep_keeps_what_is_young(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the store's time of the last write."""
    world = World(FaultPlan())
    await world.offload()
    world.objects.objects[ORPHAN] = b"x"
    now_ms = CLOCK.now_ms()

    async def listed(store: MemoryObjects, prefix: str) -> AsyncIterator[ObjectInfo]:
        for key in sorted(store.objects):
            if key.startswith(prefix):
                yield ObjectInfo(key, 1, now_ms - 60_000)

    monkeypatch.setattr(MemoryObjects, "list", listed)
    assert await sweep(world, grace_ms=3_600_000) == []
    assert await sweep(world, grace_ms=1_000) == [ORPHAN]


async def test_field_note_48_an_upload_under_way_is_not_swept_into_the_manifest() -> None:
    """A sweep between an upload and its swap: the swap fails, the manifest names what is there."""
    world = World(FaultPlan())
    await world.offload(30)
    stat = world.objects.read_tail
    swept: list[str] = []

    async def verify(key: str, size: int) -> tuple[bytes, int]:
        found = await stat(key, size)
        swept.extend(await sweep(world))
        return found

    world.objects.read_tail = verify  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        # Its reading back goes well all the same: it has seen the object already.
        patch.setattr(writer, "runs_of", lambda *_: [])
        with pytest.raises(ManifestConflict):
            await world.offloader().step(world.chain, world.known(60), world.read, bytes_max=600)
    world.objects.read_tail = stat  # type: ignore[method-assign]
    assert len(swept) == 1
    assert world.manifest().end == 30
    world.check_all_archived(await world.offload())


async def test_field_note_48_nothing_is_deleted_on_a_manifest_that_is_lost() -> None:
    """A missing manifest, or an older one than the chain tells of, is no reason."""
    world = World(FaultPlan())
    await world.offload(30)
    older = world.objects.objects[KEY]
    await world.offload()
    count = len(world.objects.objects)
    world.objects.objects[KEY] = older
    with pytest.raises(ManifestBehind):
        await sweep(world)
    assert len(world.objects.objects) == count
    del world.objects.objects[KEY]
    with pytest.raises(ManifestBehind):
        await sweep(world)
    assert len(world.objects.objects) == count - 1


@pytest.mark.parametrize("fault", FAULTS)
async def test_field_note_48_whatever_goes_wrong_what_is_named_stays(fault: Fault) -> None:
    """A fault at each call of a purge's cleaning and of a sweep; a sweep ends the work."""
    at = 0
    while True:
        world = World(FaultPlan())
        manifest = await world.offload()
        add_fork(world, 8, replace(fork_of(manifest, 8)))
        world.objects.objects[ORPHAN] = b"x"
        before, now = await purge(world, 31)
        plan = world.objects.plan = FaultPlan(at, fault)
        try:
            await cleaner(world).clean(before, now)
            await sweep(world)
        except (ArchiveUnavailable, Crash):
            pass
        world.objects.plan = FaultPlan()
        assert all(it.key in world.objects.objects for it in manifest.entries)
        await sweep(world)
        assert ORPHAN not in world.objects.objects
        assert all(it.key in world.objects.objects for it in manifest.entries)
        if not plan.spoiled:
            break
        at += 1
    assert at > 3
