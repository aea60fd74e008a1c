"""What a verification finds, one damage at a time; and that it finds nothing where nothing is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.archive_world import KEY, World
from helpers.log_servers import CLUSTER
from helpers.memory_objects import FaultPlan

from loglet.archive import manifest as manifest_module
from loglet.archive import object_format, writer
from loglet.archive.examine import examine
from loglet.archive.manifests import Manifests
from node.archive.verifier import Finding, Verifier
from sharedlog.clock import SystemClock
from sharedlog.errors import ArchiveUnavailable
from sharedlog.ids import Offset


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_format, "BLOCK_BYTES", 250)
    monkeypatch.setattr(writer, "READ_BACK_BYTES", 300)


async def verify(world: World, *, full: bool = False) -> list[Finding]:
    """All findings; the progress must end at all that there is."""
    store = world.objects
    manifests = Manifests(store, cluster_id=CLUSTER, clock=SystemClock(), new_id=world.new_id)
    findings: list[Finding] = []
    done = total = 0
    async for step in Verifier(store, manifests).verify(world.chain.record, full=full):
        assert done <= step.done <= step.total
        done, total = step.done, step.total
        findings += step.findings
    assert done == total
    return findings


def kinds(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(it.key, it.kind) for it in findings]


@pytest.mark.parametrize("full", [False, True])
async def test_a_sound_archive_has_no_findings(*, full: bool) -> None:
    """None at all, one with pages, one that is purged up to within an object."""
    world = World(FaultPlan())
    assert await verify(world, full=full) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "ENTRIES_MAX", 2)
        patch.setattr(manifest_module, "PAGE_ENTRIES", 2)
        assert (await world.offload()).pages
    assert await verify(world, full=full) == []
    world.chain.record = replace(world.chain.record, start=Offset(8), trimmed=Offset(8))
    await world.offloader().purge(world.chain)
    assert await verify(world, full=full) == []


async def test_each_damage_is_found_and_named() -> None:
    """With the object's key and range."""
    world = World(FaultPlan())
    manifest = await world.offload()
    sound = dict(world.objects.objects)
    one, two = manifest.entries[1:3]
    objects = world.objects.objects

    del objects[one.key]
    found = await verify(world)
    assert kinds(found) == [(one.key, "missing")]
    assert (found[0].first, found[0].end) == (one.first, one.end)

    objects[one.key] = sound[one.key] + b"x"
    assert kinds(await verify(world)) == [(one.key, "damaged")], "no footer is at its end"
    objects[one.key] = sound[one.key][:-1] + bytes([sound[one.key][-1] ^ 1])
    assert kinds(await verify(world)) == [(one.key, "damaged")]
    objects[one.key], objects[two.key] = sound[two.key], sound[one.key]
    assert kinds(await verify(world)) == [(one.key, "damaged"), (two.key, "damaged")]
    objects.update(sound)
    assert await verify(world) == []


async def test_damage_within_a_block_is_found_by_a_full_one() -> None:
    """Each byte of the blocks counts; footers and indexes alone do not tell."""
    world = World(FaultPlan())
    manifest = await world.offload()
    entry = manifest.entries[0]
    data = world.objects.objects[entry.key]
    for at in (8, 200, 500):
        world.objects.objects[entry.key] = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
        assert await verify(world) == []
        found = await verify(world, full=True)
        assert kinds(found) == [(entry.key, "damaged")]


async def test_a_manifest_that_is_not_what_the_chain_says() -> None:
    """Missing, damaged, or an older one."""
    world = World(FaultPlan())
    await world.offload(30)
    older = world.objects.objects[KEY]
    await world.offload()
    world.objects.objects[KEY] = older
    assert kinds(await verify(world)) == [(KEY, "misplaced")]
    world.objects.objects[KEY] = older[:-1]
    assert kinds(await verify(world)) == [(KEY, "damaged")]
    del world.objects.objects[KEY]
    assert kinds(await verify(world)) == [(KEY, "missing")]


async def test_a_page_is_looked_at() -> None:
    """Missing, and damaged; what it names can't be looked at then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest_module, "ENTRIES_MAX", 2)
        patch.setattr(manifest_module, "PAGE_ENTRIES", 2)
        world = World(FaultPlan())
        page = (await world.offload()).pages[0]
    data = world.objects.objects.pop(page.key)
    assert kinds(await verify(world)) == [(page.key, "missing")]
    world.objects.objects[page.key] = data[:-2]
    assert kinds(await verify(world)) == [(page.key, "damaged")]


async def test_no_answer_is_no_finding() -> None:
    """Nobody knows then: the verification ends with the error."""
    world = World(FaultPlan())
    await world.offload()
    world.objects.plan = FaultPlan(2, "before")
    with pytest.raises(ArchiveUnavailable):
        await verify(world)


async def test_a_fork_may_end_within_an_object_of_its_origin() -> None:
    """The object reaches beyond the fork; an own one must be what the manifest says."""
    world = World(FaultPlan())
    entry = (await world.offload()).entries[0]
    footer = (await examine(world.objects, entry.key)).footer
    assert footer.holds(entry.first, entry.end, entry.records, is_own=True)
    cut = Offset(entry.end - 3)
    assert footer.holds(entry.first, cut, entry.records - 3, is_own=False)
    assert not footer.holds(entry.first, cut, entry.records - 3, is_own=True)
    beyond = Offset(entry.end + 3)
    assert not footer.holds(entry.first, beyond, entry.records, is_own=False)
