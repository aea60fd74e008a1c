"""Offload: every call spoiled in every way, crashes at every boundary, and two at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from random import Random

import pytest
from helpers.archive_world import KEY, LOG_ID, World
from helpers.log_servers import CLUSTER
from helpers.memory_objects import FAULTS, Crash, Fault, FaultPlan

from loglet.archive import object_format, writer
from loglet.archive.errors import CorruptObject, ManifestBehind, ManifestCorrupt
from loglet.archive.layout import is_page_key
from loglet.archive.manifest import purged
from loglet.archive.manifests import ManifestConflict, Manifests
from metadata.records import LostRange
from sharedlog.clock import SystemClock
from sharedlog.errors import SharedLogError
from sharedlog.ids import Offset
from sharedlog.read_progress import ReadChunk


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_format, "BLOCK_BYTES", 250)
    monkeypatch.setattr(writer, "READ_BACK_BYTES", 300)


async def test_a_log_is_archived_object_by_object() -> None:
    """Of open segments too, up to what is committed; a repeat does nothing."""
    world = World(FaultPlan())
    world.check_all_archived(await world.offload(27), 27)
    manifest = await world.offload()
    world.check_all_archived(manifest)
    assert len(manifest.entries) > 3
    assert await world.offload() == manifest


async def _with_fault(at: int, fault: Fault) -> str:
    """One call is spoiled; all is archived all the same, and nothing was deleted."""
    world = World(FaultPlan(at, fault))
    try:
        manifest = await world.offload()
    except Crash:
        manifest = await world.offload()
    world.check_all_archived(manifest)
    return world.plan.spoiled


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_call_is_spoiled(fault: Fault) -> None:
    """Fails, times out after success, answers twice; the process ends on either side of it."""
    spoiled = set()
    for at in range(1_000):
        name = await _with_fault(at, fault)
        if not name:
            break
        spoiled.add(name)
    assert spoiled >= {"fetch", "read_versioned", "upload", "read_tail", "read", "swap"}
    assert "set_archived_end" in spoiled


@pytest.mark.parametrize("seed", range(20))
async def test_two_at_once_are_harmless(seed: int) -> None:
    """One swap wins each time; faults besides."""
    random = Random(seed)
    world = World(FaultPlan(random.randrange(60), random.choice(FAULTS[:3])))
    plain = world.plan.run

    async def slow(name: str, *rest: object) -> object:
        for _ in range(random.randrange(4)):
            await asyncio.sleep(0)
        return await plain(name, *rest)  # type: ignore[arg-type]

    world.plan.run = slow  # type: ignore[method-assign, assignment]
    manifests = await asyncio.gather(*(world.offload() for _ in range(3)))
    world.check_all_archived(max(manifests, key=lambda it: it.revision))


async def test_accepted_losses_are_kept_as_such() -> None:
    """They are passed over, and the manifest says so."""
    lost = [
        LostRange(first=Offset(6), end=Offset(12), accepted_ms=1, reason="disk"),
        LostRange(first=Offset(57), end=Offset(60), accepted_ms=2, reason="disk"),
    ]
    world = World(FaultPlan(), lost=lost)
    manifest = await world.offload()
    world.check_all_archived(manifest)
    assert manifest.lost == tuple(lost)


async def test_a_purged_log_begins_within_a_batch() -> None:
    """A purge ends anywhere; the first object begins where the batch does."""
    world = World(FaultPlan(), start=10)
    manifest = await world.offload()
    world.check_all_archived(manifest)
    assert (manifest.start, manifest.entries[0].first) == (10, 9)


async def test_a_lost_manifest_is_not_built_upon() -> None:
    """Nor one that an older one was put in the place of."""
    world = World(FaultPlan())
    await world.offload(27)
    older = world.objects.objects[KEY]
    await world.offload()
    world.objects.on_change = lambda _key: None
    world.objects.objects[KEY] = older
    with pytest.raises(ManifestBehind):
        await world.offload()
    del world.objects.objects[KEY]
    with pytest.raises(ManifestBehind):
        await world.offload()


@pytest.mark.parametrize("place", [9, -60, -10])
async def test_what_the_store_damaged_is_not_named(place: int) -> None:
    """A block, the index, the footer."""
    world = World(FaultPlan())
    put = world.objects._put

    def damage(key: str, data: bytes) -> None:
        if key != KEY:
            spoiled = bytearray(data)
            spoiled[place] ^= 1
            data = bytes(spoiled)
        put(key, data)

    world.objects._put = damage  # type: ignore[method-assign]
    with pytest.raises(CorruptObject):
        await world.offload()
    assert world.manifest().entries == ()


async def test_old_entries_go_to_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """And are read from there, whatever fails on the way."""
    monkeypatch.setattr("loglet.archive.manifest.ENTRIES_MAX", 4)
    monkeypatch.setattr("loglet.archive.manifest.PAGE_ENTRIES", 2)
    for at in range(0, 400, 3):
        world = World(FaultPlan(at, FAULTS[at % 5]))
        try:
            manifest = await world.offload()
        except Crash:
            manifest = await world.offload()
        world.check_all_archived(manifest)
        assert manifest.pages
        if not world.plan.spoiled:
            break


async def test_a_page_is_named_once_the_store_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, it would take all that it names along: nothing else says where that is."""
    monkeypatch.setattr("loglet.archive.manifest.ENTRIES_MAX", 4)
    monkeypatch.setattr("loglet.archive.manifest.PAGE_ENTRIES", 2)
    world = World(FaultPlan())
    put = world.objects._put
    damaged: list[str] = []

    def _put(key: str, data: bytes) -> None:
        if is_page_key(key) and not damaged:
            damaged.append(key)
            data = data[:-1] + b"?"
        put(key, data)

    monkeypatch.setattr(world.objects, "_put", _put)
    with pytest.raises(CorruptObject, match="another page"):
        await world.offload()
    manifest = await world.offload()
    world.check_all_archived(manifest)
    assert [it.key for it in manifest.pages if it.key in damaged] == []


async def test_errors_of_the_reader_end_the_step() -> None:
    """What can't be read is not archived, and not passed over."""
    world = World(FaultPlan())

    async def fail(start: Offset, end: Offset) -> AsyncGenerator[ReadChunk, None]:
        async for chunk in world.read(start, end):
            yield chunk
            raise SharedLogError("no replica")

    with pytest.raises(SharedLogError, match="no replica"):
        await world.offloader().step(world.chain, world.known(60), fail, bytes_max=600)
    assert world.manifest().entries == ()


async def test_what_an_accepted_loss_took_out_of_the_log_is_never_archived() -> None:
    """The manifest got ahead of the chain, and then an operator ended the segment below that.

    The offsets are given a second time. The records that were archived under them must not become
    the log's: who reads it from the archive would get others than who read the log servers.
    """
    world = World(FaultPlan())
    await world.offload(36)
    step = world.offloader()
    known = world.known(60)
    world.chain.plan = FaultPlan(1, "crash before")  # the swap is made, and the chain not told
    with pytest.raises(Crash):
        await step.step(world.chain, known, world.read, bytes_max=600)
    world.chain.plan = FaultPlan()
    assert world.manifest().end > world.chain.record.archived_end == 36
    first, opened = world.chain.record.chain
    ended = replace(opened, end=Offset(36))
    again = replace(opened, index=2, base=Offset(36))
    world.chain.record = replace(world.chain.record, chain=(first, ended, again))
    with pytest.raises(ManifestCorrupt, match="not all of them are in the log"):
        await world.offloader().step(world.chain, world.known(60), world.read, bytes_max=600)
    with pytest.raises(ManifestCorrupt):
        await world.offloader().catch_up(world.chain)
    assert world.chain.record.archived_end == 36


async def test_a_deposed_sequencer_archives_no_more_than_the_chain_proves() -> None:
    """Its segment has ended below what it takes for committed."""
    world = World(FaultPlan())
    known = world.known(60)
    first, opened = world.chain.record.chain
    ended = replace(opened, end=Offset(36))
    again = replace(opened, index=2, base=Offset(36))
    world.chain.record = replace(world.chain.record, chain=(first, ended, again))
    for _ in range(5):
        await world.offloader().step(world.chain, known, world.read, bytes_max=600)
    assert world.manifest().end == world.chain.record.archived_end == 36


async def test_field_note_49_of_two_who_make_the_same_change_one_wins() -> None:
    """The store tells versions apart by a hash of the value: but for the salt both would win."""
    world = World(FaultPlan())
    await world.offload(36)
    first, second = (
        Manifests(world.objects, cluster_id=CLUSTER, clock=SystemClock(), new_id=world.new_id)
        for _ in range(2)
    )
    before = await first.load(LOG_ID)
    assert before is not None
    made = purged(before.manifest, Offset(3), first.write())
    again = purged(before.manifest, Offset(3), second.write())
    assert replace(again, salt=made.salt, changed_ms=made.changed_ms) == made
    assert (await first.replace(before, made)).manifest == made
    with pytest.raises(ManifestConflict):
        await second.replace(before, again)
    assert world.manifest() == made
