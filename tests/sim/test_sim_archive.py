"""The simulated object store does what its faults say, and whole runs with an archive hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from helpers.history_check import report
from helpers.sim import SimNetwork, World, run_virtual
from helpers.sim.nemesis import Profile
from helpers.sim.object_store import ARCHIVE_HOST, SimObjects, SimObjectStore
from helpers.sim.scenario import Plan, run

from sharedlog.errors import ArchiveUnavailable, ObjectNotFound, SwapConflict


async def _pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


def _in(check: Callable[[SimObjects, SimObjectStore], Awaitable[None]], seed: int = 1) -> None:
    """Run it against an empty store, as a node."""

    async def main() -> None:
        world = World(seed)
        objects = SimObjects(world, SimNetwork(world))
        await check(objects, objects.store("n1"))

    run_virtual(main)


def test_a_node_that_is_cut_off_changes_nothing_or_hears_nothing() -> None:
    async def check(objects: SimObjects, store: SimObjectStore) -> None:
        assert objects.network is not None
        objects.network.cut("n1", ARCHIVE_HOST)
        with pytest.raises(ArchiveUnavailable):
            await store.swap("m", b"one", None)
        assert objects.objects == {}
        objects.network.mend("n1", ARCHIVE_HOST)
        objects.network.cut(ARCHIVE_HOST, "n1", both_ways=False)
        with pytest.raises(ArchiveUnavailable):
            await store.swap("m", b"one", None)
        assert objects.objects["m"].data == b"one"
        assert await objects.store("n2").read("m") == b"one"

    _in(check)


@pytest.mark.parametrize("seed", range(5))
def test_of_a_call_in_trouble_nobody_knows(seed: int) -> None:
    """It was made, or not, or is made later; whoever is told that it succeeded, it has."""

    async def check(objects: SimObjects, store: SimObjectStore) -> None:
        objects.trouble = 1.0
        outcomes = set()
        for number in range(60):
            key, data = f"o{number}", f"{number}".encode()
            try:
                assert await store.upload(key, _pieces(data)) == len(data)
            except ArchiveUnavailable:
                before = key in objects.objects
                await asyncio.sleep(10)
                outcomes.add((before, key in objects.objects))
            else:
                assert objects.objects[key].data == data
        assert outcomes == {(False, False), (False, True), (True, True)}

    _in(check, seed)


def test_a_swap_that_comes_late_or_twice_never_undoes_another() -> None:
    """It compares when it arrives."""

    async def check(objects: SimObjects, store: SimObjectStore) -> None:
        objects.trouble = 0.7
        seen: list[str] = []
        objects.on_change = lambda _, data: seen.append(str(data))
        for number in range(100):
            try:
                found = await store.read_versioned("m")
                await store.swap("m", f"{number}".encode(), found.version if found else None)
            except (ArchiveUnavailable, SwapConflict):
                continue
        await asyncio.sleep(10)
        assert len(seen) == len(set(seen)) > 30

    _in(check)


def test_bits_flip_in_what_is_uploaded_and_in_what_is_read() -> None:
    """One bit; an object that is there is not damaged by a repeat."""

    async def check(objects: SimObjects, store: SimObjectStore) -> None:
        objects.damage_uploads = 1.0
        await store.upload("o", _pieces(b"abc"))
        objects.damage_uploads = 0.0
        there = objects.objects["o"].data
        assert sum((a ^ b).bit_count() for a, b in zip(there, b"abc", strict=True)) == 1
        assert await store.read("o") == there
        objects.damage_reads = 1.0
        assert await store.read("o") != there
        assert objects.objects["o"].data == there

    _in(check)


def test_listings_lag_behind() -> None:
    async def check(objects: SimObjects, store: SimObjectStore) -> None:
        await store.upload("old", _pieces(b"x"))
        objects.lag_s = 100.0
        await store.upload("new", _pieces(b"x"))
        await store.delete(["old"])
        assert [it.key async for it in store.list("")] == ["old"]
        with pytest.raises(ObjectNotFound):
            await store.read("old")
        await asyncio.sleep(200)
        assert [it.key async for it in store.list("")] == ["new"]

    _in(check)


def test_a_dead_process_is_not_heard() -> None:
    async def check(objects: SimObjects, store: SimObjectStore) -> None:
        store.dead = True
        with pytest.raises(ArchiveUnavailable):
            await store.upload("o", _pieces(b"x"))
        assert objects.objects == {}

    _in(check)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_the_promises_hold_with_an_archive(seed: int) -> None:
    """What is trimmed is read from there, what is purged is told, whatever goes wrong."""
    result = run(seed, Plan(archive=True))
    assert not result.violations, f"{result.line()}\n{report(result.violations)}"


@pytest.mark.slow
def test_a_calm_run_with_an_archive_uses_all_of_it() -> None:
    """Among a few seeds each thing is done, and readers are told of purges."""
    calm = Plan(profile=Profile(weights={"jump_clock": 1.0}), archive=True, duration_s=40.0)
    results = [run(seed, calm) for seed in range(1, 5)]
    done: set[str] = set()
    for result in results:
        assert not result.violations, f"{result.line()}\n{report(result.violations)}"
        done |= result.faults.keys()
    assert done >= {"offload", "trim", "purge", "sweep"}
    assert any(read.purged for result in results for read in result.history.reads)
