"""The bookkeeping of watches, without a store."""

from __future__ import annotations

import asyncio

import pytest

from metadata.store import Changed, Deleted, Entry, Version
from metadata.watching import Told, WatchQueue
from sharedlog.errors import MetadataUnavailable


def changed(key: str, version: int, value: bytes = b"v") -> Changed:
    return Changed(Entry(key, value, Version(version)))


def deleted(key: str, version: int) -> Deleted:
    return Deleted(key, Version(version))


def test_what_was_told_is_told_once() -> None:
    told = Told()
    assert told.accept(changed("a", 5))
    assert not told.accept(changed("a", 5))
    assert not told.accept(changed("a", 4))
    assert told.accept(changed("a", 6))
    assert not told.accept(deleted("a", 6))
    assert told.accept(deleted("a", 7))
    assert not told.accept(deleted("a", 8))
    assert told.accept(changed("a", 9))


def test_a_difference_is_what_changed_unseen() -> None:
    """Deletions get a version above what was told of the key; what was told already is left out."""
    told = Told()
    for event in (changed("same", 1), changed("new", 2), changed("gone", 3)):
        told.accept(event)
    entries = [Entry("new", b"", Version(8)), Entry("more", b"", Version(7))]
    entries.append(Entry("same", b"v", Version(1)))
    assert told.difference(entries) == [
        deleted("gone", 4),
        changed("new", 8, b""),
        changed("more", 7, b""),
    ]
    assert told.difference(entries) == []


async def test_a_queue_gives_what_was_offered_in_order() -> None:
    queue = WatchQueue("a/", events_max=10, bytes_max=1000)
    events: list[Changed | Deleted] = [changed("a/1", 1), deleted("a/1", 3), changed("a/2", 4)]
    for event in (events[0], changed("b/1", 2), *events[1:]):
        queue.offer(event)
    assert await queue.take() == events


async def test_a_queue_drops_what_the_snapshot_told() -> None:
    queue = WatchQueue("", events_max=10, bytes_max=1000)
    queue.offer(changed("a", 1))
    queue.restart(Version(2))
    queue.offer(changed("a", 2))
    queue.offer(changed("a", 3))
    assert await queue.take() == [changed("a", 3)]


@pytest.mark.parametrize(("size", "fit"), [(1, 10), (60, 4)])
async def test_a_full_queue_is_emptied_and_says_so(size: int, fit: int) -> None:
    """Neither events nor bytes grow beyond the limit; after the snapshot it goes on."""
    queue = WatchQueue("", events_max=10, bytes_max=256)
    for version in range(1, fit + 1):
        queue.offer(changed("a", version, b"v" * size))
    events = await queue.take()
    assert events is not None
    assert len(events) == fit
    for version in range(1, fit + 100):
        queue.offer(changed("a", version, b"v" * size))
    assert await queue.take() is None
    queue.restart(Version(500))
    queue.offer(changed("a", 501))
    assert await queue.take() == [changed("a", 501)]


async def test_take_waits_for_an_event_or_the_end() -> None:
    queue = WatchQueue("", events_max=10, bytes_max=256)
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(queue.take())
        await asyncio.wait([taking], timeout=0)
        assert not taking.done()
        queue.offer(changed("a", 1))
    assert taking.result() == [changed("a", 1)]
    queue.end(MetadataUnavailable("closing"))
    with pytest.raises(MetadataUnavailable):
        await queue.take()
