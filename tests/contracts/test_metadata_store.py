"""What every metadata store promises (`metadata/store.py`), run against each backend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from helpers.metadata_backends import BACKENDS, Backend, BackendFactory, LossyBackend

from metadata.lease import Lease, keep, release
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
from sharedlog.errors import InvalidArgument, VersionMismatch
from sharedlog.ids import NodeId
from sharedlog.limits import METADATA_KEY_BYTES_MAX, METADATA_VALUE_BYTES_MAX


@pytest.fixture(params=BACKENDS, ids=lambda factory: factory.name)
def factory(request: pytest.FixtureRequest) -> BackendFactory:
    found: BackendFactory = request.param
    return found


@pytest.fixture
async def backend(factory: BackendFactory, tmp_path: Path) -> AsyncIterator[Backend]:
    async with factory.make(tmp_path / "store") as made:
        yield made


@pytest.fixture(
    params=[factory for factory in BACKENDS if factory.handles_survive],
    ids=lambda factory: factory.name,
)
async def surviving(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    """A backend whose handles outlive a restart."""
    factory: BackendFactory = request.param
    async with factory.make(tmp_path / "store") as made:
        yield made


@pytest.fixture(
    params=[factory for factory in BACKENDS if factory.make_lossy is not None],
    ids=lambda factory: factory.name,
)
async def lossy(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LossyBackend]:
    """A backend whose answers can get lost."""
    factory: BackendFactory = request.param
    assert factory.make_lossy is not None
    async with factory.make_lossy(tmp_path / "store") as made:
        yield made


@pytest.fixture
async def store(backend: Backend) -> MetadataStore:
    return await backend.open()


async def take(events: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    async with asyncio.timeout(60):
        return [await anext(events) for _ in range(count)]


async def close(events: AsyncIterator[WatchEvent]) -> None:
    """Every backend's watch is a generator."""
    await events.aclose()  # type: ignore[attr-defined]  # not in AsyncIterator


async def test_a_put_is_read_back_with_its_version(store: MetadataStore) -> None:
    """A key that was never set reads as None; one that was set reads as it was set."""
    assert await store.get("nodes/n1") is None
    version = await store.put("nodes/n1", b"\x00one\xff", expected=ABSENT)
    assert version > ABSENT
    assert await store.get("nodes/n1") == Entry("nodes/n1", b"\x00one\xff", version)


async def test_an_empty_value_is_not_absence(store: MetadataStore) -> None:
    version = await store.put("k", b"", expected=ABSENT)
    assert await store.get("k") == Entry("k", b"", version)
    with pytest.raises(VersionMismatch):
        await store.put("k", b"x", expected=ABSENT)


async def test_a_put_with_another_version_changes_nothing(store: MetadataStore) -> None:
    """A compare-and-swap that loses tells what is there, and leaves it."""
    first = await store.put("k", b"1", expected=ABSENT)
    second = await store.put("k", b"2", expected=first)
    assert second > first
    for expected in (ABSENT, first, Version(second + 1)):
        with pytest.raises(VersionMismatch) as lost:
            await store.put("k", b"3", expected=expected)
        assert (lost.value.key, lost.value.actual) == ("k", second)
        assert lost.value.expected == (expected or None)
    with pytest.raises(VersionMismatch) as lost:
        await store.put("other", b"3", expected=second)
    assert lost.value.actual is None
    assert await store.get("k") == Entry("k", b"2", second)
    assert await store.get("other") is None


async def test_a_delete_with_another_version_changes_nothing(store: MetadataStore) -> None:
    first = await store.put("k", b"1", expected=ABSENT)
    second = await store.put("k", b"2", expected=first)
    with pytest.raises(VersionMismatch) as lost:
        await store.delete("k", expected=first)
    assert lost.value.actual == second
    with pytest.raises(VersionMismatch):
        await store.delete("other", expected=first)
    await store.delete("k", expected=second)
    assert await store.get("k") is None


@pytest.mark.parametrize("expected", [ABSENT, Version(1)])
async def test_what_is_not_there_can_not_be_deleted(
    store: MetadataStore, expected: Version
) -> None:
    with pytest.raises(VersionMismatch) as lost:
        await store.delete("k", expected=expected)
    assert lost.value.actual is None


async def test_a_key_made_anew_shows_no_old_version(store: MetadataStore) -> None:
    """Versions grow over the whole store, so an old version never names a new value."""
    first = await store.put("k", b"1", expected=ABSENT)
    other = await store.put("other", b"1", expected=ABSENT)
    await store.delete("k", expected=first)
    again = await store.put("k", b"1", expected=ABSENT)
    assert first < other < again
    with pytest.raises(VersionMismatch):
        await store.put("k", b"2", expected=first)


async def test_list_gives_a_prefix_in_order_of_the_keys(store: MetadataStore) -> None:
    keys = ["logs/b", "logs/a", "logs/a/b", "logs/a.b", "logs", "nodes/a", "logz"]
    for key in keys:
        await store.put(key, key.encode(), expected=ABSENT)
    listed = await store.list("logs/")
    assert [entry.key for entry in listed] == sorted(key for key in keys if key[:5] == "logs/")
    assert [entry.value for entry in listed] == [entry.key.encode() for entry in listed]
    assert [entry.key for entry in await store.list("")] == sorted(keys)
    assert not await store.list("none/")


@pytest.mark.slow
async def test_list_is_complete_beyond_one_page(
    store: MetadataStore, factory: BackendFactory
) -> None:
    """More entries than a page holds, none lost or told twice at the seams."""
    wanted = [f"logs/{index:05}" for index in range(factory.entries)]
    for start in range(0, factory.entries, 300):
        async with asyncio.TaskGroup() as group:
            for key in wanted[start : start + 300]:
                group.create_task(store.put(key, b"v", expected=ABSENT))
    assert [entry.key for entry in await store.list("logs/")] == wanted


@pytest.mark.slow
async def test_large_values_can_be_listed_and_watched(
    store: MetadataStore, factory: BackendFactory
) -> None:
    """Field note 51: values that together exceed a gRPC message break no listing and no watch."""
    value = b"v" * METADATA_VALUE_BYTES_MAX
    for index in range(factory.large):
        await store.put(f"logs/{index:02}", value, expected=ABSENT)
    listed = await store.list("logs/")
    assert len(listed) == factory.large
    assert all(entry.value == value for entry in listed)
    events = store.watch("logs/")
    told = await take(events, factory.large + 1)
    assert [event.entry for event in told[:-1] if isinstance(event, Changed)] == listed
    assert told[-1] == SnapshotComplete()
    await close(events)


async def test_of_concurrent_puts_one_wins(backend: Backend, factory: BackendFactory) -> None:
    """Of the puts of several clients that expect the same version exactly one wins."""
    stores = [await backend.open() for _ in range(3)]
    won: list[Version] = []
    lost = 0

    async def put(store: MetadataStore, expected: Version) -> None:
        nonlocal lost
        try:
            won.append(await store.put("k", b"v", expected=expected))
        except VersionMismatch:
            lost += 1

    for round_index in range(factory.races):
        expected = won[-1] if won else ABSENT
        async with asyncio.TaskGroup() as group:
            for index in range(12):
                group.create_task(put(stores[index % 3], expected))
        assert len(won) == round_index + 1
    assert lost == 11 * factory.races
    assert won == sorted(set(won))


async def test_reads_are_linearizable_over_clients(backend: Backend) -> None:
    """What one client has been told is done, another sees."""
    writer, reader = await backend.open(), await backend.open()
    version = ABSENT
    for index in range(20):
        version = await writer.put("k", b"%d" % index, expected=version)
        assert await reader.get("k") == Entry("k", b"%d" % index, version)
        assert await reader.list("k") == [Entry("k", b"%d" % index, version)]


@pytest.mark.parametrize("key", ["", "é", "a\nb", "a\x00", "x" * (METADATA_KEY_BYTES_MAX + 1)])
async def test_a_bad_key_is_refused(store: MetadataStore, key: str) -> None:
    with pytest.raises(InvalidArgument):
        await store.put(key, b"v", expected=ABSENT)
    with pytest.raises(InvalidArgument):
        await store.get(key)
    with pytest.raises(InvalidArgument):
        await store.delete(key, expected=Version(1))


async def test_limits_are_inclusive(store: MetadataStore) -> None:
    """Field note 51: the largest key and value fit; a larger value is refused before it is sent."""
    key = "x" * METADATA_KEY_BYTES_MAX
    value = b"v" * METADATA_VALUE_BYTES_MAX
    version = await store.put(key, value, expected=ABSENT)
    assert await store.get(key) == Entry(key, value, version)
    with pytest.raises(InvalidArgument):
        await store.put(key, value + b"v", expected=version)


async def test_a_watch_tells_what_is_there_then_what_changes(store: MetadataStore) -> None:
    """First each entry, then `SnapshotComplete`, then each change; only of the prefix."""
    a = await store.put("logs/a", b"1", expected=ABSENT)
    await store.put("nodes/a", b"1", expected=ABSENT)
    b = await store.put("logs/b", b"1", expected=ABSENT)
    events = store.watch("logs/")
    assert await take(events, 3) == [
        Changed(Entry("logs/a", b"1", a)),
        Changed(Entry("logs/b", b"1", b)),
        SnapshotComplete(),
    ]
    a2 = await store.put("logs/a", b"2", expected=a)
    await store.put("nodes/b", b"1", expected=ABSENT)
    await store.delete("logs/b", expected=b)
    c = await store.put("logs/c", b"1", expected=ABSENT)
    changed, deleted, made = await take(events, 3)
    assert changed == Changed(Entry("logs/a", b"2", a2))
    assert isinstance(deleted, Deleted)
    assert deleted.key == "logs/b"
    assert a2 < deleted.version < c
    assert made == Changed(Entry("logs/c", b"1", c))
    await close(events)


async def test_a_watch_of_nothing_is_complete_at_once(store: MetadataStore) -> None:
    events = store.watch("logs/")
    assert await take(events, 1) == [SnapshotComplete()]
    version = await store.put("logs/a", b"1", expected=ABSENT)
    assert await take(events, 1) == [Changed(Entry("logs/a", b"1", version))]
    await close(events)


async def test_each_of_several_watches_is_told(backend: Backend) -> None:
    stores = [await backend.open() for _ in range(3)]
    watches = [store.watch("k") for store in stores]
    for events in watches:
        assert await take(events, 1) == [SnapshotComplete()]
    version = await stores[0].put("k", b"v", expected=ABSENT)
    for events in watches:
        assert await take(events, 1) == [Changed(Entry("k", b"v", version))]
        await close(events)


async def test_a_watch_begun_among_changes_misses_none(backend: Backend) -> None:
    """Wherever in a stream of changes a watch begins: versions only grow, the last comes."""
    writer, reader = await backend.open(), await backend.open()
    count = 60

    async def write() -> Version:
        version = ABSENT
        for index in range(count):
            version = await writer.put("k", b"%d" % index, expected=version)
        return version

    async def follow() -> list[Version]:
        seen: list[Version] = []
        events = reader.watch("k")
        async for event in events:
            if isinstance(event, Changed):
                seen.append(event.entry.version)
                if event.entry.value == b"%d" % (count - 1):
                    break
        await close(events)
        return seen

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        following = [group.create_task(follow()) for _ in range(5)]
    for task in following:
        seen = task.result()
        assert seen == sorted(set(seen))
        assert seen[-1] == writing.result()


@pytest.mark.slow
async def test_a_slow_watcher_still_learns_the_last_of_everything(
    backend: Backend, factory: BackendFactory
) -> None:
    """A watcher that reads nothing while thousands of changes are made ends at their result."""
    writer, reader = await backend.open(), await backend.open()
    gone = await writer.put("logs/gone", b"0", expected=ABSENT)
    events = reader.watch("logs/")
    state: dict[str, Entry] = {}
    first = await take(events, 2)
    assert isinstance(first[0], Changed)
    state["logs/gone"] = first[0].entry
    versions = [ABSENT] * 20
    for _ in range(factory.rounds):
        async with asyncio.TaskGroup() as group:
            puts = [
                group.create_task(writer.put(f"logs/{i}", b"v" * 4_000, expected=versions[i]))
                for i in range(20)
            ]
        versions = [put.result() for put in puts]
    await writer.delete("logs/gone", expected=gone)
    last = await writer.put("logs/last", b"", expected=ABSENT)
    wanted = {f"logs/{i}": version for i, version in enumerate(versions)} | {"logs/last": last}
    async with asyncio.timeout(20):
        while {key: entry.version for key, entry in state.items()} != wanted:
            match await anext(events):
                case Changed(entry):
                    assert entry.key not in state or state[entry.key].version < entry.version
                    state[entry.key] = entry
                case Deleted(key, version):
                    assert state.pop(key).version < version
                case SnapshotComplete():
                    raise AssertionError("told twice")
    await close(events)


@pytest.mark.slow
async def test_what_was_answered_survives_a_restart(backend: Backend) -> None:
    """Values and versions are on disk; the versions that follow are larger than all before."""
    store = await backend.open()
    kept = await store.put("kept", b"1", expected=ABSENT)
    gone = await store.put("gone", b"1", expected=ABSENT)
    await store.delete("gone", expected=gone)
    await backend.stop()
    await backend.start()
    store = await backend.open()
    assert await store.list("") == [Entry("kept", b"1", kept)]
    assert await store.put("gone", b"2", expected=ABSENT) > gone + 1


@pytest.mark.slow
async def test_a_watch_goes_on_over_a_restart(surviving: Backend) -> None:
    """What changed while the watcher was cut off is told once, deletions too: no gap, no repeat."""
    store = await surviving.open()
    same = await store.put("logs/same", b"1", expected=ABSENT)
    changed = await store.put("logs/changed", b"1", expected=ABSENT)
    gone = await store.put("logs/gone", b"1", expected=ABSENT)
    events = store.watch("logs/")
    assert len(await take(events, 4)) == 4
    await surviving.stop()
    # The watch's task is told nothing of these: it is not reading.
    await surviving.start()
    other = await surviving.open()
    changed = await other.put("logs/changed", b"2", expected=changed)
    await other.delete("logs/gone", expected=gone)
    made = await other.put("logs/made", b"1", expected=ABSENT)
    told = await take(events, 3)
    assert [event.key for event in told if isinstance(event, Deleted)] == ["logs/gone"]
    assert [event.entry for event in told if isinstance(event, Changed)] == [
        Entry("logs/changed", b"2", changed),
        Entry("logs/made", b"1", made),
    ]
    await other.put("logs/same", b"2", expected=same)
    assert [event.entry.value for event in await take(events, 1) if isinstance(event, Changed)] == [
        b"2"
    ]
    await close(events)


@pytest.mark.slow
async def test_calls_wait_for_a_restart(surviving: Backend) -> None:
    """A call made while the store is away is answered when it is back, within its time."""
    store = await surviving.open()
    version = await store.put("k", b"1", expected=ABSENT)
    await surviving.stop()
    async with asyncio.TaskGroup() as group:
        putting = group.create_task(store.put("k", b"2", expected=version))
        getting = group.create_task(store.get("k"))
        group.create_task(surviving.start())
    assert putting.result() > version
    assert getting.result() is not None


async def until(store: MetadataStore, key: str, accept: Callable[[Entry | None], bool]) -> None:
    """Wait until a key is as it should be."""
    async with asyncio.timeout(20):
        while not accept(await store.get(key)):  # noqa: ASYNC110  another client's progress
            await asyncio.sleep(0.01)


async def test_a_put_whose_answer_was_lost_is_made_once(lossy: LossyBackend) -> None:
    """Field note 50: the client tries again, and gets the version that it made at first."""
    other = await lossy.open()
    store, way = await lossy.open_lossy()
    first = await store.put("k", b"1", expected=ABSENT)
    way.lose_answers()
    async with asyncio.TaskGroup() as group:
        putting = group.create_task(store.put("k", b"2", expected=first))
        await until(other, "k", lambda entry: entry is not None and entry.value == b"2")
        await way.mend()
    assert await other.get("k") == Entry("k", b"2", putting.result())
    assert await store.put("k", b"3", expected=putting.result()) > putting.result()


async def test_a_put_that_was_made_and_replaced_was_made(lossy: LossyBackend) -> None:
    """It has not lost a race: another client read what it wrote, and built upon it."""
    other = await lossy.open()
    store, way = await lossy.open_lossy()
    first = await store.put("k", b"1", expected=ABSENT)
    way.lose_answers()
    async with asyncio.TaskGroup() as group:
        putting = group.create_task(store.put("k", b"2", expected=first))
        await until(other, "k", lambda entry: entry is not None and entry.value == b"2")
        made = await other.get("k")
        assert made is not None
        replaced = await other.put("k", b"3", expected=made.version)
        await way.mend()
    assert putting.result() == made.version
    assert await store.get("k") == Entry("k", b"3", replaced)


async def test_a_put_that_lost_its_race_says_so_however_often_it_is_tried(
    lossy: LossyBackend,
) -> None:
    """Lost answers make no winner of a loser."""
    other = await lossy.open()
    store, way = await lossy.open_lossy()
    first = await store.put("k", b"1", expected=ABSENT)
    way.lose_answers()
    second = await other.put("k", b"other", expected=first)
    async with asyncio.TaskGroup() as group:
        putting = group.create_task(refused(store.put("k", b"2", expected=first)))
        await asyncio.sleep(0.1)  # in most runs it has been refused by now, unheard
        await way.mend()
    assert putting.result().actual == second
    assert await other.get("k") == Entry("k", b"other", second)


async def test_a_delete_whose_answer_was_lost_succeeds(lossy: LossyBackend) -> None:
    """The key is gone, as was wanted."""
    other = await lossy.open()
    store, way = await lossy.open_lossy()
    version = await store.put("k", b"1", expected=ABSENT)
    way.lose_answers()
    async with asyncio.TaskGroup() as group:
        group.create_task(store.delete("k", expected=version))
        await until(other, "k", lambda entry: entry is None)
        await way.mend()
    with pytest.raises(VersionMismatch):
        await store.delete("k", expected=version)


async def refused(put: Awaitable[Version]) -> VersionMismatch:
    with pytest.raises(VersionMismatch) as lost:
        await put
    return lost.value


@dataclass
class ManualClock:
    """Time that passes when the test says so."""

    now_s: float = 0.0

    def now_ms(self) -> int:
        raise AssertionError("a lease does not look at the time of day")

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nothing here waits, but {seconds}")


async def test_a_lease_has_one_holder_and_goes_over_when_it_is_not_renewed(
    backend: Backend,
) -> None:
    """`metadata/lease.py` over the store: taken once, kept by renewals, followed, let go."""
    clock = ManualClock()
    stores = [await backend.open() for _ in range(3)]
    leases = [Lease(holder=NodeId(f"n{i}"), nonce=f"life-{i}", ttl_s=3.0) for i in range(3)]

    async def keep_all() -> list[bool]:
        asked = zip(stores, leases, strict=True)
        return await asyncio.gather(*(keep(store, lease, clock) for store, lease in asked))

    first = await keep_all()
    assert sum(first) == 1
    for _ in range(5):
        clock.now_s += 0.75
        assert await keep_all() == first
    holder = first.index(True)
    stores.pop(holder)
    leases.pop(holder)  # it died
    assert not any(await keep_all())
    clock.now_s += 3.0
    second = await keep_all()
    assert sum(second) == 1
    holder = second.index(True)
    await release(stores[holder], leases[holder], clock)
    assert await keep(stores[1 - holder], leases[1 - holder], clock)
    assert not await keep(stores[holder], leases[holder], clock)
