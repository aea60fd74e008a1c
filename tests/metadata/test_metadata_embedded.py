"""The embedded store's own promises: one opener, group commit, nonces, damage, limits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest
from prometheus_client import CollectorRegistry

from metadata import embedded_db
from metadata.config import EmbeddedConfig
from metadata.embedded import EmbeddedMetadataStore
from metadata.embedded_db import NONCES_KEPT, Change, Commit, MetadataDb
from metadata.errors import MetadataCorrupt
from metadata.metrics import MetadataMetrics
from metadata.store import ABSENT, Changed, Deleted, Entry, SnapshotComplete, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    InvalidArgument,
    MetadataUnavailable,
    Overloaded,
    StoreReadOnly,
    VersionMismatch,
)
from sharedlog.limits import METADATA_VALUE_BYTES_MAX, MIB


def open_store(
    directory: Path, config: EmbeddedConfig | None = None, metrics: MetadataMetrics | None = None
) -> EmbeddedMetadataStore:
    return EmbeddedMetadataStore(directory, SystemClock(), config=config, metrics=metrics)


def hold_writer(store: EmbeddedMetadataStore) -> Callable[[], None]:
    """Keep the writer thread busy until the function returned is called."""
    gate = threading.Event()
    store._writer.submit(gate.wait, 30)
    return gate.set


async def test_a_store_is_opened_once(tmp_path: Path) -> None:
    """A second opener is told in one line; the first is not disturbed."""
    store = open_store(tmp_path)
    with pytest.raises(OSError, match=r"^the metadata store in \S+ is in use by another process$"):
        open_store(tmp_path)
    await store.put("k", b"v", expected=ABSENT)
    await store.close()
    await store.close()
    again = open_store(tmp_path)
    assert await again.get("k") is not None
    await again.close()


async def test_what_is_no_metadata_store_is_refused(tmp_path: Path) -> None:
    other = lmdb.open(str(tmp_path / "other"), max_dbs=2, lib_version=0)
    other.open_db(b"batches")
    other.close()
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "data.mdb").write_bytes(b"junk" * 4096)
    with pytest.raises(OSError, match="another kind of store"):
        open_store(tmp_path / "other")
    with pytest.raises(OSError, match="can't open the metadata store"):
        open_store(tmp_path / "junk")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        open_store(tmp_path / "file")


async def test_changes_that_wait_share_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one commit runs, what comes forms the next: 101 puts, two commits, off the loop."""
    sizes: list[int] = []
    threads: set[str] = set()
    commit = MetadataDb.commit

    def counted(db: MetadataDb, changes: list[Change]) -> Commit:
        sizes.append(len(changes))
        threads.add(threading.current_thread().name)
        return commit(db, changes)

    monkeypatch.setattr(MetadataDb, "commit", counted)
    store = open_store(tmp_path)
    release = hold_writer(store)
    async with asyncio.TaskGroup() as group:
        first = group.create_task(store.put("first", b"", expected=ABSENT))
        rest = [group.create_task(store.put(f"k{i:03}", b"", expected=ABSENT)) for i in range(100)]
        await asyncio.wait([first], timeout=0)
        release()
    assert sizes == [1, 100]
    assert [task.result() for task in rest] == list(range(2, 102))
    assert threading.current_thread().name not in threads
    await store.close()


async def test_within_one_commit_changes_see_each_other(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    release = hold_writer(store)
    puts = [asyncio.ensure_future(store.put("k", b"%d" % i, expected=ABSENT)) for i in range(3)]
    await asyncio.wait(puts, timeout=0)
    release()
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert results[0] == 1
    assert all(isinstance(result, VersionMismatch) for result in results[1:])
    await store.close()


async def test_a_put_repeated_with_its_nonce_gets_the_first_answer(tmp_path: Path) -> None:
    """Field note 50: also when the value was replaced or deleted since, and after a restart."""
    store = open_store(tmp_path)
    first = await store.put("k", b"1", expected=ABSENT, nonce="a")
    assert await store.put("k", b"1", expected=ABSENT, nonce="a") == first
    second = await store.put("k", b"2", expected=first, nonce="b")
    await store.delete("k", expected=second)
    await store.close()
    store = open_store(tmp_path)
    assert await store.put("k", b"1", expected=ABSENT, nonce="a") == first
    assert await store.put("k", b"2", expected=first, nonce="b") == second
    assert await store.get("k") is None
    with pytest.raises(VersionMismatch):
        await store.put("k", b"2", expected=first, nonce="c")
    with pytest.raises(VersionMismatch):  # a put that lost is decided anew
        await store.put("k", b"2", expected=first, nonce="c")
    await store.close()


def test_old_nonces_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is bounded, on disk and in memory, over restarts too."""
    assert NONCES_KEPT >= 1000
    monkeypatch.setattr(embedded_db, "NONCES_KEPT", 10)
    for _ in range(3):
        db = MetadataDb(tmp_path, map_bytes=MIB)
        start = db.snapshot("")[1]
        for batch in range(5):
            changes = [
                Change(f"{start}/{batch}/{i}", b"", ABSENT, f"{start}-{batch}-{i}")
                for i in range(7)
            ]
            db.commit(changes)
        assert len(db._version_by_nonce) == 10
        with db._env.begin() as txn:
            assert txn.stat(db._nonces)["entries"] == 10
        repeated = db.commit([Change("again", b"", ABSENT, f"{start}-4-0")])
        assert repeated.outcomes == [start + 29]
        assert repeated.events == []
        db.close()


async def test_a_damaged_store_is_not_opened(tmp_path: Path) -> None:
    """Field note 24: one flipped bit in a row is found at the opening, and the key is named."""
    store = open_store(tmp_path)
    await store.put("nodes/n1", b"the value of n1", expected=ABSENT)
    await store.put("nodes/n2", b"the value of n2", expected=ABSENT)
    await store.close()
    data = bytearray((tmp_path / "data.mdb").read_bytes())
    place = data.rindex(b"the value of n1")
    while place >= 0:
        data[place + 4] ^= 1
        place = data.rfind(b"the value of n1")
    (tmp_path / "data.mdb").write_bytes(data)
    with pytest.raises(MetadataCorrupt, match="nodes/n1") as error:
        open_store(tmp_path)
    assert error.value.key == "nodes/n1"
    with pytest.raises(MetadataCorrupt):  # it was not left locked
        open_store(tmp_path)


async def test_damage_met_while_running_ends_the_store(tmp_path: Path) -> None:
    """Field note 24: it tells the damage, then answers nothing more, so that the process stops."""
    store = open_store(tmp_path)
    await store.put("k", b"v", expected=ABSENT)
    events = store.watch("other")
    assert await anext(events) == SnapshotComplete()
    with store._db._env.begin(write=True) as txn:
        row = bytearray(txn.get(b"k", db=store._db._values))
        row[-1] ^= 1
        txn.put(b"k", bytes(row), db=store._db._values)
    with pytest.raises(MetadataCorrupt):
        await store.get("k")
    async with asyncio.timeout(5):
        assert "k: " in await store.wait_failed()
    with pytest.raises(MetadataUnavailable, match="failed"):
        await store.get("other")
    with pytest.raises(MetadataUnavailable, match="failed"):
        await store.put("other", b"", expected=ABSENT)
    with pytest.raises(MetadataUnavailable, match="failed"):
        await anext(events)
    await store.close()


async def test_a_failed_disk_ends_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field note 23: a failed commit is not tried again; the outcome is told as unknown."""
    store = open_store(tmp_path)
    await store.put("k", b"v", expected=ABSENT)

    def broken(*_: object) -> Commit:
        raise lmdb.Error("mdb_txn_commit: Input/output error")

    monkeypatch.setattr(MetadataDb, "_apply", broken)
    with pytest.raises(MetadataUnavailable, match="Input/output error"):
        await store.put("k2", b"v", expected=ABSENT)
    monkeypatch.undo()
    with pytest.raises(MetadataUnavailable, match="failed"):
        await store.put("k2", b"v", expected=ABSENT)
    await store.close()


async def test_a_full_store_refuses_and_goes_on(tmp_path: Path) -> None:
    """At the limit a put fails definitely and clearly; reads go on, and deletes make room again."""
    store = open_store(tmp_path, EmbeddedConfig(map_bytes=4 * MIB))
    versions: list[Version] = []

    async def fill() -> None:
        for index in range(100):
            value = b"v" * METADATA_VALUE_BYTES_MAX
            versions.append(await store.put(f"k{index}", value, expected=ABSENT))

    with pytest.raises(StoreReadOnly, match="is full: its limit is reached"):
        await fill()
    assert 3 <= len(versions) <= 8
    assert len(await store.list("")) == len(versions)
    for index, version in enumerate(versions):
        await store.delete(f"k{index}", expected=version)
    assert await store.put("again", b"v", expected=ABSENT) > versions[-1]
    await store.close()


async def test_too_many_waiting_changes_are_refused(tmp_path: Path) -> None:
    """Memory is bounded by count and by bytes, while a lone change of any size always fits."""
    config = EmbeddedConfig(pending_changes_max=5, pending_bytes_max=METADATA_VALUE_BYTES_MAX)
    store = open_store(tmp_path, config)
    for value, fit in ((b"", 5), (b"v" * METADATA_VALUE_BYTES_MAX, 1)):
        release = hold_writer(store)
        running = asyncio.ensure_future(store.put(f"running{fit}", b"", expected=ABSENT))
        await asyncio.wait([running], timeout=0)
        waiting = [
            asyncio.ensure_future(store.put(f"{fit}-{i}", value, expected=ABSENT))
            for i in range(fit)
        ]
        await asyncio.wait(waiting, timeout=0)
        with pytest.raises(Overloaded):
            await store.put("k", value, expected=ABSENT)
        release()
        await asyncio.gather(running, *waiting)
    await store.close()


async def test_close_finishes_the_running_commit_and_refuses_the_rest(tmp_path: Path) -> None:
    """What close refuses was not made; what was running is answered and on disk; watches end."""
    store = open_store(tmp_path)
    events = store.watch("")
    assert await anext(events) == SnapshotComplete()
    release = hold_writer(store)
    running = asyncio.ensure_future(store.put("running", b"", expected=ABSENT))
    await asyncio.wait([running], timeout=0)
    waiting = asyncio.ensure_future(store.put("waiting", b"", expected=ABSENT))
    await asyncio.wait([waiting], timeout=0)
    closing = asyncio.ensure_future(store.close())
    await asyncio.wait([closing], timeout=0)
    release()
    await closing
    assert await running == 1
    with pytest.raises(MetadataUnavailable, match="closing"):
        await waiting
    with pytest.raises(MetadataUnavailable, match="closing"):
        await anext(events)
    store = open_store(tmp_path)
    assert [entry.key for entry in await store.list("")] == ["running"]
    await store.close()


async def test_a_cancelled_put_does_not_disturb_the_others(tmp_path: Path) -> None:
    """Cancelling stops the wait, not the write."""
    store = open_store(tmp_path)
    release = hold_writer(store)
    puts = [asyncio.ensure_future(store.put(k, b"", expected=ABSENT)) for k in ("a", "b", "c")]
    await asyncio.wait(puts, timeout=0)
    puts[1].cancel()
    release()
    assert await asyncio.gather(*puts[::2]) == [1, 3]
    assert await store.get("b") == Entry("b", b"", Version(2))
    await store.close()


async def test_a_watcher_that_lags_is_told_the_difference(tmp_path: Path) -> None:
    """Its queue is dropped at the limit; it then gets each key's last state, once, and goes on."""
    metrics = MetadataMetrics(CollectorRegistry())
    store = open_store(tmp_path, EmbeddedConfig(watch_events_max=5), metrics)
    gone = await store.put("gone", b"", expected=ABSENT)
    events = store.watch("")
    assert await anext(events) == Changed(Entry("gone", b"", gone))
    assert await anext(events) == SnapshotComplete()
    version = ABSENT
    for _ in range(50):
        version = await store.put("k", b"v", expected=version)
    await store.delete("gone", expected=gone)
    (watcher,) = store._watchers
    assert len(watcher._events) <= 5
    assert await anext(events) == Deleted("gone", Version(gone + 1))
    assert await anext(events) == Changed(Entry("k", b"v", version))
    again = await store.put("gone", b"", expected=ABSENT)
    assert await anext(events) == Changed(Entry("gone", b"", again))
    assert metrics.watch_resyncs._value.get() == 1
    assert metrics.watchers._value.get() == 1
    assert metrics.changes_made._value.get() == 53
    await events.aclose()
    assert metrics.watchers._value.get() == 0
    await store.close()


async def test_a_watch_begun_between_commit_and_fan_out_tells_nothing_twice(tmp_path: Path) -> None:
    """What the snapshot includes is dropped when it is offered, though its key is gone by then."""
    store = open_store(tmp_path)
    release = hold_writer(store)
    first = asyncio.ensure_future(store.put("first", b"", expected=ABSENT))
    await asyncio.wait([first], timeout=0)
    put = asyncio.ensure_future(store.put("k", b"", expected=ABSENT))
    delete = asyncio.ensure_future(store.delete("k", expected=Version(2)))
    await asyncio.wait([put, delete], timeout=0)
    release()
    await first
    store._writer.submit(lambda: None).result()  # the second commit is done, the loop not told yet
    assert not put.done()
    events = store.watch("k")
    assert await anext(events) == SnapshotComplete()
    await asyncio.gather(put, delete)
    version = await store.put("k", b"", expected=ABSENT)
    assert await anext(events) == Changed(Entry("k", b"", version))
    await events.aclose()
    await store.close()


async def test_pages_meet_without_gap_or_repeat(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    keys = ["a", "logs/", "logs/a", "logs/a/", "logs/ab", "logs/b", "m"]
    for key in keys:
        await store.put(key, b"", expected=ABSENT)
    seen: list[str] = []
    more = True
    while more:
        entries, more = await store.list_page("logs/", after=seen[-1] if seen else "", limit=2)
        assert len(entries) <= 2
        seen += [entry.key for entry in entries]
    assert seen == keys[1:-1]
    assert await store.list_page("logs/", after="logs/b", limit=0) == ([], False)
    await store.close()


@pytest.mark.parametrize("nonce", ["n" * 256, "ä"])
async def test_a_bad_nonce_is_refused(tmp_path: Path, nonce: str) -> None:
    store = open_store(tmp_path)
    with pytest.raises(InvalidArgument, match="nonce"):
        await store.put("k", b"", expected=ABSENT, nonce=nonce)
    await store.close()


@pytest.mark.parametrize(
    "config",
    [
        EmbeddedConfig(map_bytes=1),
        EmbeddedConfig(map_bytes=MIB + 1),
        EmbeddedConfig(pending_bytes_max=1),
        EmbeddedConfig(watch_events_max=0),
        EmbeddedConfig(pending_changes_max=0),
    ],
)
def test_limits_that_do_not_fit_are_refused(tmp_path: Path, config: EmbeddedConfig) -> None:
    with pytest.raises(InvalidArgument):
        open_store(tmp_path, config)
    EmbeddedConfig().validate()
