"""What a view keeps that the watch has not told yet, and why no deleted log stays in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

from metadata.encoding import encode_log, log_key
from metadata.records import LogRecord, Replica, Segment
from metadata.store import (
    Changed,
    Deleted,
    Entry,
    MetadataStore,
    SnapshotComplete,
    Version,
    WatchEvent,
)
from metadata.view import ClusterView
from sharedlog.clock import SystemClock
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId

KEY = log_key("orders")


class Told:
    """A store whose watch tells what the test hands it, and whose key has the value it is given."""

    def __init__(self) -> None:
        self.entry: Entry | None = None
        self.gets = 0
        self.events: asyncio.Queue[WatchEvent] = asyncio.Queue(maxsize=100)

    async def get(self, key: str) -> Entry | None:
        self.gets += key == KEY
        return self.entry if key == KEY else None

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        raise AssertionError

    async def delete(self, key: str, *, expected: Version) -> None:
        raise AssertionError

    async def list(self, prefix: str) -> Sequence[Entry]:
        return []

    async def watch(self, prefix: str) -> AsyncIterator[WatchEvent]:
        yield SnapshotComplete()
        while prefix == "logs/":
            yield await self.events.get()
            self.events.task_done()
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Nothing of its own."""

    async def tell(self, *events: WatchEvent) -> None:
        for event in events:
            self.events.put_nowait(event)
        await self.events.join()


def log(segments: int = 1, *, log_id: int = 1) -> LogRecord:
    chain = tuple(
        Segment(
            index=index,
            base=Offset(index * 10),
            end=None if index == segments - 1 else Offset(index * 10 + 10),
            sequencer=SequencerId(NodeId("n1"), Generation(1)),
            nodeset=(Replica(node_id=NodeId("n1"), storage_id=StorageId("s1")),),
            write_quorum=1,
        )
        for index in range(segments)
    )
    return LogRecord(
        log_id=LogId(log_id),
        name="orders",
        replicas=1,
        write_quorum=1,
        created_ms=1,
        create_nonce="n",
        chain=chain,
    )


def entry(record: LogRecord, version: int) -> Entry:
    return Entry(KEY, encode_log(record), Version(version))


def changed(record: LogRecord, version: int) -> Changed:
    return Changed(entry(record, version))


@asynccontextmanager
async def watching(told: Told) -> AsyncIterator[ClusterView]:
    store: MetadataStore = told
    view = ClusterView(store, SystemClock())
    task = asyncio.create_task(view.run())
    try:
        async with asyncio.timeout(20):
            await view.wait_ready()
            yield view
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_what_this_process_wrote_is_known_at_once() -> None:
    told = Told()
    async with watching(told) as view:
        await told.tell(changed(log(1), 5))
        waiting = asyncio.create_task(view.wait_log("orders", lambda it: len(it.chain) == 2))
        await asyncio.sleep(0)
        view.learn(log(2), Version(8))
        assert view.log("orders") == (log(2), 8)
        assert await waiting == (log(2), 8)
        await told.tell(changed(log(1), 7), changed(log(2), 8))  # the watch comes after
        assert view.log("orders") == (log(2), 8)
        view.learn(log(1), Version(6))  # older than what is known
        assert view.log("orders") == (log(2), 8)
        await told.tell(changed(log(3), 9))
        assert view.log("orders") == (log(3), 9)


async def test_a_log_that_the_watch_never_told_is_not_kept() -> None:
    """If it were, and the log was deleted before the watch got to it, it would stay for ever."""
    told = Told()
    told.entry = entry(log(1), 5)
    async with watching(told) as view:
        view.learn(log(1), Version(5))
        assert view.log("orders") is None
        assert await view.refresh_log("orders") == (log(1), 5)
        assert view.log("orders") is None


async def test_a_deletion_removes_what_was_learnt() -> None:
    """A watch that missed a deletion can only guess its version: below that of what was learnt."""
    told = Told()
    async with watching(told) as view:
        await told.tell(changed(log(1), 5))
        view.learn(log(2), Version(8))
        await told.tell(Deleted(KEY, Version(6)))
        assert view.log("orders") is None
        await told.tell(changed(log(1, log_id=2), 20))
        assert view.log("orders") == (log(1, log_id=2), 20)


async def test_an_answer_of_the_store_is_kept_over_an_older_one() -> None:
    told = Told()
    async with watching(told) as view:
        await told.tell(changed(log(1), 5))
        told.entry = entry(log(2), 8)
        assert await view.refresh_log("orders") == (log(2), 8)
        assert view.log("orders") == (log(2), 8)
        told.entry = entry(log(1), 5)  # an answer that was long on its way
        assert await view.refresh_log("orders") == (log(2), 8)


async def test_the_store_is_asked_only_for_what_is_newer_than_known() -> None:
    """Field note 34: who knows of a newer chain gets it, whatever the watch has told so far."""
    told = Told()
    async with watching(told) as view:
        await told.tell(changed(log(1), 5))
        assert await view.log_at_least("orders", 5) == (log(1), 5)
        assert await view.log_at_least("orders", 0) == (log(1), 5)
        assert told.gets == 0
        told.entry = entry(log(2), 8)
        assert await view.log_at_least("orders", 6) == (log(2), 8)
        assert told.gets == 1
        assert await view.log_at_least("orders", 8) == (log(2), 8)
        assert told.gets == 1
        assert await view.log_at_least("orders", 99) == (log(2), 8)  # there is no newer one


async def test_waiting_for_a_version() -> None:
    told = Told()
    async with watching(told) as view:
        await told.tell(changed(log(1), 5))
        waiting = asyncio.create_task(view.wait_log("orders", lambda _: True, min_version=7))
        await told.tell(changed(log(2), 6))
        assert not waiting.done()
        await told.tell(changed(log(3), 7))
        assert await waiting == (log(3), 7)


async def test_segments_that_did_not_change_are_the_same_objects() -> None:
    """A chain of hundreds of segments that grows by one costs a view one segment."""
    told = Told()
    long = log(300)
    was = long.open_segment
    longer = replace(
        long,
        chain=(
            *long.chain[:-1],
            replace(was, end=Offset(was.base + 7)),
            replace(was, index=300, base=Offset(was.base + 7)),
        ),
    )
    async with watching(told) as view:
        await told.tell(changed(long, 5))
        before = view.log("orders")
        await told.tell(changed(longer, 6))
        after = view.log("orders")
        assert before is not None
        assert after == (longer, 6)
        assert all(
            one is two for one, two in zip(before[0].chain[:-1], after[0].chain, strict=False)
        )
