"""Watches of the metadata store in S3, where answers come late and listings lack something."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence

import pytest
from helpers.log_servers import until

from metadata.s3.bucket import BucketUrl
from metadata.s3.config import MetadataS3Config
from metadata.s3.names import name_of
from metadata.s3.store import S3MetadataStore
from metadata.s3.values import Listed, Page, S3Values, Versioned
from metadata.store import ABSENT, Changed, Deleted, Entry, SnapshotComplete, WatchEvent
from sharedlog.clock import SystemClock
from sharedlog.errors import SwapConflict


class MemoryValues(S3Values):
    """A bucket in memory."""

    objects: dict[str, Versioned]
    answers: asyncio.Event  # reads have seen what is there, and are answered when it is set
    reads: int
    listings: int
    unlisted: Sequence[str]

    async def open(self) -> None:
        if not hasattr(self, "objects"):
            self.objects, self.answers, self.unlisted = {}, asyncio.Event(), ()
            self.reads = self.listings = 0
            self.answers.set()

    async def read_versioned(self, key: str) -> Versioned | None:
        self.reads += 1
        found = self.objects.get(key)
        await self.answers.wait()
        return found

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        found = self.objects.get(key)
        if (None if found is None else found.version) != expected:
            raise SwapConflict("another one", key=key, actual=found and found.version)
        self.objects[key] = Versioned(data, uuid.uuid4().hex)
        return self.objects[key].version

    async def list_page(
        self, prefix: str, *, token: str = "", after: str = "", keys: int = 0
    ) -> Page:
        self.listings += 1
        listed = [
            Listed(key, 1, 1, self.objects[key].version)
            for key in sorted(self.objects)
            if key.startswith(prefix) and key > max(token, after) and key not in self.unlisted
        ]
        page = listed[: keys or None]
        return Page(page, page[-1].key if len(page) < len(listed) else "")


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> S3MetadataStore:
    monkeypatch.setattr("metadata.s3.store.S3Values", MemoryValues)
    config = MetadataS3Config(poll_interval_s=0.01, watch_events_max=2)
    made = S3MetadataStore(
        BucketUrl("bucket", ""),
        config,
        clock=SystemClock(),
        new_id=lambda: uuid.uuid4().hex,
        page_keys=2,
    )
    await made._values.open()
    made._proven = True
    return made


def values_of(store: S3MetadataStore) -> MemoryValues:
    assert isinstance(store._values, MemoryValues)
    return store._values


async def take(events: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    async with asyncio.timeout(60):
        return [await anext(events) for _ in range(count)]


async def test_a_late_answer_that_there_is_nothing_is_no_deletion(store: S3MetadataStore) -> None:
    """It was given before the key was made, and comes after."""
    values = values_of(store)
    events = store.watch("")
    assert await take(events, 1) == [SnapshotComplete()]
    values.answers.clear()
    async with asyncio.TaskGroup() as group:
        late = group.create_task(store.get("k"))
        await until(lambda: values.reads == 1)
        gates = values.answers
        values.answers = asyncio.Event()
        values.answers.set()
        version = await store.put("k", b"1", expected=ABSENT)
        assert await take(events, 1) == [Changed(Entry("k", b"1", version))]
        gates.set()
    assert late.result() is None
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(take(events, 1))
        polls = values.listings
        await until(lambda: taking.done() or values.listings > polls + 1)
        version = await store.put("k", b"2", expected=version)
    assert taking.result() == [Changed(Entry("k", b"2", version))]
    await events.aclose()


async def test_a_listing_that_lacks_something_makes_no_deletion(store: S3MetadataStore) -> None:
    """Field note 22: a watcher that lags too far is told the difference to a listing; what that
    lacks is read before it counts as gone."""
    values = values_of(store)
    keys = ("a", "b", "c", "d")
    versions = {key: await store.put(key, b"1", expected=ABSENT) for key in keys}
    events = store.watch("")
    assert len(await take(events, 5)) == 5
    del values.objects[name_of("a")]
    values.unlisted = (name_of("b"),)
    for key in ("c", "d", "e"):
        await store.put(key, b"2", expected=versions.get(key, ABSENT))
    told = await take(events, 4)
    assert [event.key for event in told if isinstance(event, Deleted)] == ["a"]
    assert [event.entry.key for event in told if isinstance(event, Changed)] == ["c", "d", "e"]
    await events.aclose()


@pytest.mark.parametrize("inner", ["logs/", "logs/a"])
async def test_a_watch_of_more_and_a_watch_of_less_miss_nothing(
    store: S3MetadataStore, inner: str
) -> None:
    """One walk spans both, to the last name of either."""
    other = S3MetadataStore(
        BucketUrl("bucket", ""), None, clock=SystemClock(), new_id=lambda: uuid.uuid4().hex
    )
    await other._values.open()
    other._proven = True
    values_of(other).objects = values_of(store).objects
    keys = [f"logs/{letter}" for letter in "abcdefgh"] + ["nodes/a"]
    for key in keys:
        await other.put(key, b"1", expected=ABSENT)
    outer, less = store.watch(""), store.watch(inner)
    assert len(await take(outer, len(keys) + 1)) == len(keys) + 1
    while not isinstance((await take(less, 1))[0], SnapshotComplete):
        pass
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(take(outer, 1))
        waiting = group.create_task(anext(less))
        version = await other.put("nodes/z", b"1", expected=ABSENT)
        assert await taking == [Changed(Entry("nodes/z", b"1", version))]
        waiting.cancel()
    await outer.aclose()
    await less.aclose()
