"""The controller's lease: one holder at most, by monotonic clocks alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from metadata.embedded import EmbeddedMetadataStore
from metadata.encoding import decode_lease, encode_lease
from metadata.lease import HELD_SHARE, KEEP_SHARE, Lease, keep, release
from metadata.records import CONTROLLER_KEY, LeaseRecord
from metadata.store import ABSENT, Entry, MetadataStore, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import MetadataUnavailable, VersionMismatch
from sharedlog.ids import NodeId

TTL_S = 10.0


@dataclass
class World:
    """True time, which nobody but the test sees."""

    now_s: float = 0.0


@dataclass
class OneClock:
    """A node's clock: it runs `rate` times as fast as true time, from a beginning of its own."""

    world: World
    begin_s: float = 0.0
    rate: float = 1.0

    def now_ms(self) -> int:
        raise AssertionError("a lease does not look at the time of day")

    def monotonic_s(self) -> float:
        return self.begin_s + self.world.now_s * self.rate

    async def sleep(self, seconds: float) -> None:
        raise AssertionError(f"nothing here waits, but {seconds}")


@dataclass
class OneKey:
    """A store with as much as a lease needs of it; `fail` and `lose` spoil the next put."""

    entry: Entry | None = None
    version: int = 0
    fail: bool = False  # it is not made
    lose: bool = False  # it is made, its answer gets lost
    puts: list[LeaseRecord] = field(default_factory=list)
    elapse: Callable[[], None] = lambda: None  # before an operation takes effect, and after it

    async def get(self, key: str) -> Entry | None:
        assert key == CONTROLLER_KEY
        self.elapse()
        found = self.entry
        self.elapse()
        return found

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        actual = ABSENT if self.entry is None else self.entry.version
        self.elapse()
        if self.fail:
            self.fail = False
            raise MetadataUnavailable("not made")
        if actual != expected:
            raise VersionMismatch(key=key, expected=expected, actual=actual)
        self.version += 1
        self.entry = Entry(key, value, Version(self.version))
        if value != b"damaged":
            self.puts.append(decode_lease(self.entry))
        self.elapse()
        if self.lose:
            self.lose = False
            raise MetadataUnavailable("made, perhaps")
        return self.entry.version

    async def delete(self, key: str, *, expected: Version) -> None:
        raise AssertionError

    async def list(self, prefix: str) -> Sequence[Entry]:
        raise AssertionError

    def watch(self, prefix: str) -> None:
        raise AssertionError


@dataclass
class Candidate:
    store: OneKey
    clock: OneClock
    lease: Lease

    @classmethod
    def make(cls, store: OneKey, clock: OneClock, name: str) -> Candidate:
        return cls(store, clock, Lease(holder=NodeId(name), nonce=f"life-{name}", ttl_s=TTL_S))

    async def keep(self) -> bool:
        return await keep(self._store(), self.lease, self.clock)

    async def release(self) -> None:
        await release(self._store(), self.lease, self.clock)

    def held(self) -> bool:
        return self.lease.held(self.clock.monotonic_s())

    def _store(self) -> MetadataStore:
        return self.store  # type: ignore[return-value]  # nobody watches


@pytest.fixture
def world() -> World:
    return World()


def pair(world: World) -> tuple[OneKey, Candidate, Candidate]:
    store = OneKey()
    first = Candidate.make(store, OneClock(world, begin_s=1e6), "n1")
    return store, first, Candidate.make(store, OneClock(world), "n2")


async def test_the_first_takes_it_and_keeps_it(world: World) -> None:
    store, first, second = pair(world)
    for _ in range(20):
        assert await first.keep()
        assert not await second.keep()
        assert second.lease.holder == "n1"
        world.now_s += first.lease.keep_every_s
        assert first.held()
        assert not second.held()
    assert [it.counter for it in store.puts] == list(range(1, 21))


async def test_a_dead_holder_is_followed_after_the_lease_time_and_not_before(world: World) -> None:
    _, first, second = pair(world)
    assert await first.keep()
    assert not await second.keep()  # sees it now
    world.now_s += TTL_S - 0.01
    assert not first.held()  # it stopped a while ago
    assert not await second.keep()
    world.now_s += 0.01
    assert await second.keep()
    assert not await first.keep()
    assert first.lease.holder == "n2"


async def test_whoever_comes_late_waits_the_whole_time_again(world: World) -> None:
    """How old a record is can't be seen in it: a newcomer counts from when it sees it first."""
    _, first, second = pair(world)
    assert await first.keep()
    world.now_s += 100
    assert not await second.keep()
    world.now_s += TTL_S - 0.01
    assert not await second.keep()
    world.now_s += 0.01
    assert await second.keep()


async def test_each_renewal_starts_the_wait_again(world: World) -> None:
    _, first, second = pair(world)
    for _ in range(5):
        await first.keep()
        assert not await second.keep()
        world.now_s += 0.9 * TTL_S
    assert not first.held()
    assert not await second.keep()
    assert await first.keep()  # nobody took it meanwhile: it goes on


async def test_a_restarted_holder_is_another_one(world: World) -> None:
    """Its former life may still be doing something; its own record is somebody else's to it."""
    store, first, _ = pair(world)
    assert await first.keep()
    again = Candidate(
        store, first.clock, Lease(holder=NodeId("n1"), nonce="next life", ttl_s=TTL_S)
    )
    assert not await again.keep()
    world.now_s += TTL_S
    assert await again.keep()
    assert not await first.keep()


async def test_a_released_lease_is_taken_at_once(world: World) -> None:
    _, first, second = pair(world)
    assert await first.keep()
    assert not await second.keep()
    await second.release()  # not its own: nothing happens
    assert first.held()
    await first.release()
    assert not first.held()
    assert first.lease.holder is None
    assert await second.keep()
    await first.release()
    assert second.held()


async def test_the_holders_own_time_counts_for_all(world: World) -> None:
    """A process set to a shorter time waits as long as the holder said that it might take."""
    store, first, _ = pair(world)
    hasty = Candidate(
        store, OneClock(world), Lease(holder=NodeId("n3"), nonce="hasty", ttl_s=TTL_S / 10)
    )
    assert await first.keep()
    assert not await hasty.keep()
    world.now_s += TTL_S - 0.01
    assert not await hasty.keep()


async def test_a_renewal_that_failed_does_not_count(world: World) -> None:
    store, first, _ = pair(world)
    assert await first.keep()
    world.now_s += TTL_S * HELD_SHARE - 0.1
    store.fail = True
    with pytest.raises(MetadataUnavailable):
        await first.keep()
    assert first.held()
    world.now_s += 0.1
    assert not first.held()


async def test_a_lease_whose_answer_got_lost_is_known_by_its_nonce(world: World) -> None:
    """Field note 50, for the lease: what this life wrote is its own, answer or not."""
    store, first, second = pair(world)
    store.lose = True
    with pytest.raises(MetadataUnavailable):
        await first.keep()
    assert not first.held()
    assert not await second.keep()
    assert await first.keep()


async def test_a_lost_race_is_no_lease(world: World) -> None:
    store, first, second = pair(world)
    get = store.get

    async def and_then_the_other_is_faster(key: str) -> Entry | None:
        found = await get(key)
        store.get = get  # type: ignore[method-assign]  # once
        assert await second.keep()
        return found

    store.get = and_then_the_other_is_faster  # type: ignore[method-assign]  # once
    assert not await first.keep()
    assert second.held()
    assert not await first.keep()


async def test_a_slow_answer_makes_no_lease_longer(world: World) -> None:
    """The holder counts from before it asked: another may have seen the write long before it."""
    store, first, second = pair(world)
    put = store.put

    async def answered_late(key: str, value: bytes, *, expected: Version) -> Version:
        version = await put(key, value, expected=expected)
        store.put = put  # type: ignore[method-assign]  # once
        assert not await second.keep()
        world.now_s += 0.9 * TTL_S
        return version

    store.put = answered_late  # type: ignore[method-assign]  # once
    assert not await first.keep()
    assert not first.held()
    world.now_s += 0.1 * TTL_S
    assert await second.keep()


async def test_a_release_whose_answer_got_lost_is_one_all_the_same(world: World) -> None:
    store, first, second = pair(world)
    assert await first.keep()
    store.lose = True
    with pytest.raises(MetadataUnavailable):
        await first.release()
    assert not first.held()
    assert await second.keep()


async def test_a_damaged_lease_is_taken_after_the_time(world: World) -> None:
    """Field note 24: it is somebody's, until it was seen unchanged for the time of a lease."""
    store, first, second = pair(world)
    assert await first.keep()
    assert store.entry is not None
    await store.put(CONTROLLER_KEY, b"damaged", expected=store.entry.version)
    assert not await second.keep()
    assert not await first.keep()
    assert not first.held()
    world.now_s += TTL_S
    assert await second.keep()
    assert store.puts[-1].holder == "n2"


@pytest.mark.parametrize("seed", range(40))
async def test_there_is_never_more_than_one_holder(seed: int) -> None:
    """Whatever is slow, paused, lost or unknown, while clocks run alike to within a tenth."""
    rng = random.Random(seed)
    world = World()

    def elapse() -> None:
        world.now_s += rng.choice([0, 0.1, rng.uniform(0, TTL_S)]) if rng.random() < 0.2 else 0

    store = OneKey(elapse=elapse)
    candidates = [
        Candidate.make(
            store, OneClock(world, rng.uniform(0, 1e6), rng.uniform(0.95, 1.05)), f"n{i}"
        )
        for i in range(3)
    ]
    changes = 0
    holder = None
    for step in range(600):
        world.now_s += rng.uniform(0, TTL_S * KEEP_SHARE / 2)
        running = [it for i, it in enumerate(candidates) if i != step // 40 % 3]
        one = rng.choice(running)  # the third is paused, and wakes as if nothing had been
        store.fail = rng.random() < 0.2
        store.lose = rng.random() < 0.2
        with suppress(MetadataUnavailable):
            await (one.release() if rng.random() < 0.01 else one.keep())
        held = [it.lease for it in candidates if it.held()]
        assert len(held) <= 1
        if held and held[0] is not holder:
            changes += 1
            holder = held[0]
    assert changes > 3


def test_a_lease_comes_back_from_its_bytes() -> None:
    record = LeaseRecord(holder=NodeId("n1"), nonce="x", counter=7, ttl_ms=10_000)
    assert decode_lease(Entry(CONTROLLER_KEY, encode_lease(record), Version(1))) == record


@pytest.fixture
async def embedded(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    yield opened
    await opened.close()


async def test_over_a_real_store(embedded: EmbeddedMetadataStore, world: World) -> None:
    lease = Lease(holder=NodeId("n1"), nonce="life", ttl_s=TTL_S)
    other = Lease(holder=NodeId("n2"), nonce="other life", ttl_s=TTL_S)
    clock = OneClock(world)
    won = await asyncio.gather(keep(embedded, lease, clock), keep(embedded, other, clock))
    assert sorted(won) == [False, True]
