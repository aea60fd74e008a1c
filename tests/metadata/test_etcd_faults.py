"""The etcd store while members of etcd die, hang, lose each other and forget."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from helpers.etcd_server import EtcdCluster
from helpers.tcp_proxy import TcpProxy, proxies

from metadata.config import EtcdConfig
from metadata.errors import MetadataCorrupt
from metadata.etcd import EtcdMetadataStore, open_etcd
from metadata.etcd_wire import encode_value
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
from metadata.url import parse_metadata_url
from sharedlog.clock import SystemClock
from sharedlog.errors import MetadataUnavailable, VersionMismatch

PATIENT = EtcdConfig(timeout_s=30.0)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """A cluster for the faults of this module."""
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def etcd(running: EtcdCluster) -> Iterator[EtcdCluster]:
    """All three members run before the test, and whatever it did to them is mended after it."""
    running.start()
    yield running
    for member in running.members:
        running.resume(member)


@pytest.fixture
def prefix() -> str:
    return f"test/{uuid.uuid4().hex}"


@asynccontextmanager
async def opened(
    addresses: Sequence[str], prefix: str, config: EtcdConfig = PATIENT
) -> AsyncIterator[EtcdMetadataStore]:
    url = parse_metadata_url(f"etcd://{','.join(addresses)}/{prefix}")
    # With this name it begins with the first of three members, see `EtcdMembers`.
    names = iter(["7"])
    store = open_etcd(
        url, config, clock=SystemClock(), new_id=lambda: next(names, uuid.uuid4().hex)
    )
    try:
        yield store
    finally:
        await store.close()


@dataclass
class Follower:
    """What a watch told: every event, and the state that follows from them."""

    events: list[WatchEvent] = field(default_factory=list)
    state: dict[str, Entry] = field(default_factory=dict)

    async def run(self, store: MetadataStore) -> None:
        async for event in store.watch(""):
            self.take(event)

    def take(self, event: WatchEvent) -> None:
        """No repeat: versions of a key only grow."""
        self.events.append(event)
        match event:
            case Changed(entry):
                known = self.state.get(entry.key)
                assert known is None or known.version < entry.version
                self.state[entry.key] = entry
            case Deleted(key, version):
                assert self.state.pop(key).version < version
            case SnapshotComplete():
                assert self.events.count(event) == 1

    async def until(self, accept: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not accept():  # noqa: ASYNC110  another process's progress
                await asyncio.sleep(0.01)


@asynccontextmanager
async def following(store: MetadataStore) -> AsyncIterator[Follower]:
    follower = Follower()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(follower.run(store))
        await follower.until(lambda: SnapshotComplete() in follower.events)
        yield follower
        task.cancel()


async def count_up(store: MetadataStore, until_s: float) -> tuple[int, int]:
    """Add one to a counter again and again; returns how often that was done, and unknown."""
    made = unknown = 0
    while time.monotonic() < until_s:
        entry = await store.get("counter")
        assert entry is not None
        try:
            value = b"%d" % (int(entry.value) + 1)
            await store.put("counter", value, expected=entry.version)
            made += 1
        except VersionMismatch:
            pass
        except MetadataUnavailable:
            unknown += 1
    return made, unknown


@pytest.mark.slow
async def test_each_change_is_made_once_while_the_leader_is_killed(
    etcd: EtcdCluster, prefix: str
) -> None:
    """Several writers count with compare-and-swap: what was acknowledged is what is counted.

    A put that was made although its answer was lost, and was built upon by another writer, does not
    tell its writer that it lost; that one would count twice. The watch tells each value at most
    once, and the last one.
    """
    writers = 6
    async with opened(etcd.addresses, prefix) as store, following(store) as follower:
        await store.put("counter", b"0", expected=ABSENT)
        until_s = time.monotonic() + 3.0
        async with asyncio.TaskGroup() as group:
            counting = [group.create_task(count_up(store, until_s)) for _ in range(writers)]
            for _ in range(2):
                await asyncio.sleep(0.7)
                leader = await asyncio.to_thread(etcd.leader)
                etcd.kill(leader)
                await asyncio.sleep(0.3)
                etcd.start()
        made = sum(task.result()[0] for task in counting)
        unknown = sum(task.result()[1] for task in counting)
        entry = await store.get("counter")
        assert entry is not None
        assert made <= int(entry.value) <= made + unknown
        assert made > 20
        assert unknown == 0
        await follower.until(lambda: follower.state["counter"] == entry)


@pytest.mark.slow
async def test_without_a_majority_it_is_unavailable_and_then_goes_on(
    etcd: EtcdCluster, prefix: str
) -> None:
    """One line says why; nothing else is raised. Watches go on when the majority is back."""
    hasty = EtcdConfig(timeout_s=1.5)
    async with (
        opened(etcd.addresses, prefix, hasty) as store,
        opened(etcd.addresses, prefix) as patient,
        following(store) as follower,
    ):
        version = await store.put("k", b"1", expected=ABSENT)
        alone, *others = etcd.members
        for member in others:
            etcd.kill(member)
        errors = await asyncio.gather(
            store.get("k"),
            store.put("k", b"2", expected=version),
            store.list(""),
            store.delete("k", expected=version),
            return_exceptions=True,
        )
        for error in errors:
            assert isinstance(error, MetadataUnavailable)
            assert "does not answer" in str(error)
            assert alone.address in str(error)
            assert "\n" not in str(error)
        async with asyncio.TaskGroup() as group:
            getting = group.create_task(patient.get("k"))
            await asyncio.sleep(0)
            etcd.start()
        # What was asked for without a majority may have been made afterwards.
        found = getting.result()
        assert found is None or found.value in (b"1", b"2")
        await patient.put("other", b"1", expected=ABSENT)
        await follower.until(lambda: "other" in follower.state)


@pytest.mark.slow
async def test_a_member_that_hangs_is_left(etcd: EtcdCluster, prefix: str) -> None:
    """A paused member keeps its connections and says nothing: calls go to another one after a
    try's time-out, once; the watch follows when no sign of life comes."""
    async with opened(etcd.addresses, prefix) as store, following(store) as follower:
        version = await store.put("k", b"1", expected=ABSENT)
        await follower.until(lambda: "k" in follower.state)
        etcd.pause(etcd.members[0])
        async with asyncio.timeout(60):
            version = await store.put("k", b"2", expected=version)
            version = await store.put("k", b"3", expected=version)
        await follower.until(lambda: follower.state["k"].version == version)
        etcd.resume(etcd.members[0])


@pytest.mark.slow
async def test_slow_answers_are_answers(etcd: EtcdCluster, prefix: str) -> None:
    """A try that times out is tried again with more time: a slow etcd is no broken one."""
    async with proxies(etcd.addresses) as slow:
        for proxy in slow:
            proxy.delay_s = 0.05
        config = EtcdConfig(timeout_s=20.0, try_timeout_s=0.02)
        async with opened([proxy.address for proxy in slow], prefix, config) as store:
            version = await store.put("k", b"1", expected=ABSENT)
            version = await store.put("k", b"2", expected=version)
            assert await store.get("k") == Entry("k", b"2", version)
            assert await store.list("") == [Entry("k", b"2", version)]


async def break_off(ways: Sequence[TcpProxy]) -> None:
    for way in ways:
        await way.cut()


@pytest.mark.slow
async def test_a_watch_goes_on_where_it_was(etcd: EtcdCluster, prefix: str) -> None:
    """Connections break again and again among changes: each change is told, none twice."""
    async with (
        opened(etcd.addresses, prefix) as writer,
        proxies(etcd.addresses) as ways,
        opened([way.address for way in ways], prefix) as store,
        following(store) as follower,
    ):
        version = ABSENT
        versions: list[Version] = []
        for index in range(60):
            version = await writer.put("k", b"%d" % index, expected=version)
            versions.append(version)
            if index % 12 == 5:
                await break_off(ways)
        await writer.delete("k", expected=version)
        last = await writer.put("last", b"", expected=ABSENT)
        await follower.until(lambda: "last" in follower.state)
        told = [event.entry.version for event in follower.events if isinstance(event, Changed)]
        assert told == [*versions, last]
        assert sum(isinstance(event, Deleted) for event in follower.events) == 1


@pytest.mark.slow
async def test_a_watch_that_fell_behind_what_etcd_keeps_is_told_the_difference(
    etcd: EtcdCluster, prefix: str
) -> None:
    """Compacted while it was cut off: deletions are told, what stayed the same is not."""
    async with (
        opened(etcd.addresses, prefix) as writer,
        proxies(etcd.addresses) as ways,
        opened([way.address for way in ways], prefix) as store,
    ):
        same = await writer.put("same", b"1", expected=ABSENT)
        gone = await writer.put("gone", b"1", expected=ABSENT)
        changed = await writer.put("changed", b"1", expected=ABSENT)
        watch = store.watch("")
        begun = [await anext(watch) for _ in range(4)]
        assert begun[3] == SnapshotComplete()
        await break_off(ways)
        await writer.delete("gone", expected=gone)
        for index in range(20):
            changed = await writer.put("changed", b"%d" % index, expected=changed)
        made = await writer.put("made", b"1", expected=ABSENT)
        etcd.compact()
        async with asyncio.timeout(30):
            told = [await anext(watch) for _ in range(3)]
        assert [event.key for event in told if isinstance(event, Deleted)] == ["gone"]
        assert [event.entry for event in told if isinstance(event, Changed)] == [
            Entry("changed", b"19", changed),
            Entry("made", b"1", made),
        ]
        later = await writer.put("same", b"2", expected=same)
        async with asyncio.timeout(30):
            assert await anext(watch) == Changed(Entry("same", b"2", later))
        await watch.aclose()


async def unsure_put(
    store: MetadataStore, ways: Sequence[TcpProxy], writer: MetadataStore, expected: Version
) -> asyncio.Task[Version]:
    """A put of "k" that was made and whose answer is lost; it is being tried again unheard."""
    await store.get("k")  # it is connected
    for way in ways:
        way.deafen()
    putting = asyncio.create_task(store.put("k", b"unsure", expected=expected))
    async with asyncio.timeout(60):
        while True:
            entry = await writer.get("k")
            if entry is not None and entry.value == b"unsure":
                return putting
            await asyncio.sleep(0.01)


async def test_the_history_tells_whether_a_put_was_made(etcd: EtcdCluster, prefix: str) -> None:
    """However often it was replaced since, and though the key was deleted and made anew."""
    async with (
        opened(etcd.addresses, prefix) as writer,
        proxies(etcd.addresses) as ways,
        opened([way.address for way in ways], prefix) as store,
    ):
        first = await writer.put("k", b"1", expected=ABSENT)
        putting = await unsure_put(store, ways, writer, first)
        made = await writer.get("k")
        assert made is not None
        version = made.version
        for _ in range(50):
            version = await writer.put("k", b"more", expected=version)
        await writer.delete("k", expected=version)
        await writer.put("k", b"anew", expected=ABSENT)
        await break_off(ways)
        assert await putting == made.version


async def test_what_etcd_has_forgotten_stays_unknown(etcd: EtcdCluster, prefix: str) -> None:
    """A put whose answer was lost, and of which nobody can say any more whether it was made: it is
    neither a success nor a lost race."""
    async with (
        opened(etcd.addresses, prefix) as writer,
        proxies(etcd.addresses) as ways,
        opened([way.address for way in ways], prefix) as store,
    ):
        first = await writer.put("k", b"1", expected=ABSENT)
        putting = await unsure_put(store, ways, writer, first)
        made = await writer.get("k")
        assert made is not None
        again = await writer.put("k", b"2", expected=made.version)
        etcd.compact()
        await break_off(ways)
        with pytest.raises(MetadataUnavailable, match=r"was made is unknown: .*compacted"):
            await putting
        assert await store.get("k") == Entry("k", b"2", again)
        with pytest.raises(VersionMismatch):
            await store.put("k", b"3", expected=first)


async def test_damage_is_never_absence(etcd: EtcdCluster, prefix: str) -> None:
    """Field note 24: what was not written by a put, or under another key, is told as damage; a
    watch hands it on as it is and goes on."""
    member = etcd.members[0]

    def write(key: str, stored: bytes) -> None:
        member.ask("kv/put", key=f"{prefix}/{key}".encode(), value=stored)

    sound = encode_value("sound", b"value", "n")
    flipped = bytearray(encode_value("flipped", b"value", "n"))
    flipped[-1] ^= 1
    write("sound", sound)
    write("flipped", bytes(flipped))
    write("moved", sound)
    write("short", b"\x01")
    write("empty", b"")
    async with opened(etcd.addresses, prefix) as store, following(store) as follower:
        entry = await store.get("sound")
        assert entry is not None
        assert entry.value == b"value"
        for key in ("flipped", "moved", "short", "empty"):
            with pytest.raises(MetadataCorrupt, match=f"^{key}: "):
                await store.get(key)
            with pytest.raises(MetadataCorrupt, match=f"^{key}: "):
                await store.list(key)
            with pytest.raises(VersionMismatch):
                await store.put(key, b"v", expected=ABSENT)
        assert follower.state["sound"] == entry
        assert follower.state["moved"].value == sound
        mended = await store.put("moved", b"v", expected=follower.state["moved"].version)
        await follower.until(lambda: follower.state["moved"] == Entry("moved", b"v", mended))
