"""What is archived, trimmed, purged and kept of a log, over a store that loses answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.unsure_store import Unsure, unsure

from metadata.archive_registry import set_archived_end, set_purged, set_retention, set_trimmed
from metadata.archive_rules import Committed
from metadata.core import Load
from metadata.embedded import EmbeddedMetadataStore
from metadata.encoding import log_key
from metadata.records import LogRecord, NodeRecord
from metadata.registry import commit_change, create_log, fetch_log
from metadata.store import MetadataStore, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, LogNotFound, MetadataUnavailable
from sharedlog.ids import Generation, LogId, NodeId, Offset, StorageId
from sharedlog.retention import Retention

ID = LogId(1)
NODE = NodeRecord(
    node_id=NodeId("n1"),
    generation=Generation(1),
    storage_id=StorageId("s1"),
    address="n1:4100",
    http_address="",
    location="",
    roles=("log-server", "sequencer"),
)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    await make(opened)
    yield opened
    await opened.close()


async def make(store: MetadataStore, log_id: LogId = ID) -> tuple[LogRecord, Version]:
    return await create_log(
        store,
        name="orders",
        replicas=1,
        write_quorum=0,
        nonce=f"create {log_id}",
        alive=[NODE],
        load=Load(),
        log_id=log_id,
        now_ms=2,
    )


async def make_anew(store: EmbeddedMetadataStore) -> None:
    _, version = await fetch_log(store, "orders")
    await store.delete(log_key("orders"), expected=version)
    await make(store, LogId(2))


def knows(tail: int) -> Committed:
    return Committed(0, Offset(tail))


async def archive(
    store: MetadataStore,
    end: int,
    nonce: str = "a",
    *,
    start: tuple[LogRecord, Version] | None = None,
) -> tuple[LogRecord, Version]:
    return await set_archived_end(
        store, "orders", ID, Offset(end), nonce=nonce, committed=knows(100), start=start
    )


async def trim(store: MetadataStore, end: int, nonce: str = "t") -> tuple[LogRecord, Version]:
    return await set_trimmed(store, "orders", ID, Offset(end), nonce=nonce)


async def purge(store: MetadataStore, end: int, nonce: str = "p") -> tuple[LogRecord, Version]:
    return await set_purged(store, "orders", ID, Offset(end), nonce=nonce, committed=knows(100))


async def test_each_is_written_once_and_told_as_it_is_then(store: EmbeddedMetadataStore) -> None:
    """What there is already costs no write, whoever asks."""
    first = await archive(store, 80)
    assert first[0].archived_end == 80
    assert await fetch_log(store, "orders") == first
    assert await archive(store, 80, "b") == first
    assert await archive(store, 70, "c") == first
    trimmed = await trim(store, 60)
    assert (trimmed[0].trimmed, trimmed[0].archived_end) == (60, 80)
    assert await trim(store, 60, "u") == trimmed
    purged = await purge(store, 70)
    assert (purged[0].start, purged[0].trimmed, purged[0].archived_end) == (70, 70, 80)
    assert await purge(store, 70, "q") == purged
    assert await fetch_log(store, "orders") == purged


async def test_what_cannot_be_is_refused_and_not_written(store: EmbeddedMetadataStore) -> None:
    """Above what is committed, or archived."""
    before = await fetch_log(store, "orders")
    with pytest.raises(InvalidArgument, match="committed up to 100"):
        await archive(store, 101)
    with pytest.raises(InvalidArgument, match="committed up to 0"):
        await set_archived_end(store, "orders", ID, Offset(1), nonce="a")
    with pytest.raises(InvalidArgument, match="archived up to 0"):
        await trim(store, 1)
    with pytest.raises(InvalidArgument, match="committed up to 100"):
        await purge(store, 101)
    assert await fetch_log(store, "orders") == before


async def set_days(store: MetadataStore, _: int) -> tuple[LogRecord, Version]:
    return await set_retention(store, "orders", Retention(local_age_s=86_400), nonce="r", log_id=ID)


@pytest.mark.parametrize("change", [archive, trim, purge, set_days])
async def test_another_log_of_the_name_is_never_written_to(
    store: EmbeddedMetadataStore,
    change: Callable[[MetadataStore, int], Awaitable[object]],
) -> None:
    """Nor is one made of nothing: what was done to the deleted one says nothing of the new one."""
    await make_anew(store)
    before = await fetch_log(store, "orders")
    with pytest.raises(LogNotFound):
        await change(store, 50)
    assert await fetch_log(store, "orders") == before
    await store.delete(log_key("orders"), expected=before[1])
    with pytest.raises(LogNotFound):
        await change(store, 50)
    assert await store.get(log_key("orders")) is None


async def test_an_old_record_saves_a_read_and_decides_nothing(
    store: EmbeddedMetadataStore,
) -> None:
    """What it allows is written with its version; what it would refuse is looked up first."""
    known = await fetch_log(store, "orders")
    counting = Unsure(store)
    fresh = await archive(unsure(counting), 50, start=known)
    assert counting.gets == 0
    # By `known` nothing is archived, and the change would be refused.
    record, _ = await set_trimmed(store, "orders", ID, Offset(40), nonce="t", start=known)
    assert record.trimmed == 40
    # The version of `fresh` is old by now: the race is lost, and run again.
    record, _ = await archive(store, 60, "b", start=fresh)
    assert (record.trimmed, record.archived_end) == (40, 60)


async def test_two_who_raise_it_at_once_end_with_the_higher(store: EmbeddedMetadataStore) -> None:
    """Whoever comes last, and beside a segment that ends meanwhile."""
    ends = [10, 90, 50, 30, 70]

    async def end_segment() -> None:
        def build(record: LogRecord) -> LogRecord:
            was = record.open_segment
            opened = replace(was, index=1, base=Offset(100))
            return replace(record, chain=(replace(was, end=Offset(100)), opened))

        await commit_change(store, "orders", build, "move")

    answers, _ = await asyncio.gather(
        asyncio.gather(*(archive(store, end, f"a{end}") for end in ends)), end_segment()
    )
    assert all(record.archived_end >= end for (record, _), end in zip(answers, ends, strict=True))
    record, _ = await fetch_log(store, "orders")
    assert (record.archived_end, record.open_segment.base) == (90, 100)


@pytest.mark.parametrize("fate", ["made", "not made", "late"])
async def test_a_lost_answer_is_cleared_up(store: EmbeddedMetadataStore, fate: str) -> None:
    """The change is made once, and its own answer says so."""
    record, version = await archive(unsure(Unsure(store, fate)), 50)
    assert record.archived_end == 50
    found = await fetch_log(store, "orders")
    assert found == (record, version)


async def test_a_store_that_is_away_leaves_it_open(store: EmbeddedMetadataStore) -> None:
    """It may be run again with the same nonce."""
    doors = unsure(Unsure(store, *["not made"] * 10))
    with pytest.raises(MetadataUnavailable):
        await archive(doors, 50)
    assert (await archive(store, 50))[0].archived_end == 50


async def test_retention_is_set_field_by_field(store: EmbeddedMetadataStore) -> None:
    """0 ends a limit; what is not given stays; equal ones cost no write."""

    async def change(**fields: int) -> tuple[LogRecord, Version]:
        return await set_retention(store, "orders", Retention(**fields), nonce=str(fields))

    await change(local_bytes=10, local_age_s=20)
    record, version = await change(local_age_s=0, total_age_s=30)
    assert record.retention == Retention(local_bytes=10, total_age_s=30)
    assert await set_retention(store, "orders", record.retention, nonce="again") == (
        record,
        version,
    )
    with pytest.raises(InvalidArgument, match="less than the local age"):
        await change(local_age_s=31)
    assert await fetch_log(store, "orders") == (record, version)
