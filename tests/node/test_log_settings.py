"""How long a log keeps its records, as a node sets and tells it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest

from metadata.archive_registry import set_archived_end, set_purged, set_trimmed
from metadata.archive_rules import Committed
from metadata.core import Load
from metadata.embedded import EmbeddedMetadataStore
from metadata.records import NodeRecord
from metadata.registry import create_log, fetch_log
from metadata.view import ClusterView
from node.log_settings import LogSettings
from node.wire import describe_log
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, LogNotFound
from sharedlog.ids import Generation, LogId, NodeId, Offset, StorageId
from sharedlog.limits import NONCE_CHARS_MAX
from sharedlog.retention import NO_RETENTION, Retention
from sharedlog.retention_proto import asked_to_proto, retention_from_proto, retention_to_proto
from sharedlog.v1 import log_pb2, types_pb2

NODE = NodeRecord(
    node_id=NodeId("n1"),
    generation=Generation(1),
    storage_id=StorageId("s1"),
    address="n1:4100",
    http_address="",
    location="",
    roles=("log-server", "sequencer"),
)
ID = LogId(1)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", SystemClock())
    await create_log(
        opened,
        name="orders",
        replicas=1,
        write_quorum=0,
        nonce="create",
        alive=[NODE],
        load=Load(),
        log_id=ID,
        now_ms=2,
        retention=Retention(local_bytes=5, total_age_s=0),
    )
    yield opened
    await opened.close()


def settings(store: EmbeddedMetadataStore, view: ClusterView) -> LogSettings:
    numbers = count()
    return LogSettings(store=store, view=view, new_id=lambda: f"made-here-{next(numbers)}")


def asked(name: str = "orders", nonce: str = "", **fields: int) -> log_pb2.SetRetentionRequest:
    return log_pb2.SetRetentionRequest(
        name=name, retention=types_pb2.Retention(**fields), nonce=nonce
    )


async def test_a_limit_is_set_and_told(store: EmbeddedMetadataStore) -> None:
    """The others stay; a repeat changes nothing and gets the same answer."""
    service = settings(store, ClusterView(store, SystemClock()))
    answer = await service.set_retention(asked(local_age_s=60))
    assert retention_from_proto(answer.log.retention) == Retention(local_bytes=5, local_age_s=60)
    assert await service.set_retention(asked(local_age_s=60, nonce="again")) == answer
    record, version = await fetch_log(store, "orders")
    assert (version, record.change_nonce) == (answer.log.chain_version, "made-here-0")
    answer = await service.set_retention(asked(local_age_s=0, local_bytes=0))
    assert not answer.log.HasField("retention")
    assert (await fetch_log(store, "orders"))[0].retention == NO_RETENTION


async def test_what_cannot_be_is_refused(store: EmbeddedMetadataStore) -> None:
    """Against what is set already; a log that is not there is none."""
    service = settings(store, ClusterView(store, SystemClock()))
    await service.set_retention(asked(local_age_s=60))
    with pytest.raises(InvalidArgument, match="less than the local age of 1m"):
        await service.set_retention(asked(total_age_s=59))
    with pytest.raises(InvalidArgument, match="local_bytes is 9223372036854775808"):
        await service.set_retention(asked(local_bytes=2**63))
    with pytest.raises(InvalidArgument, match="nonce"):
        await service.set_retention(asked(nonce="x" * (NONCE_CHARS_MAX + 1)))
    with pytest.raises(LogNotFound):
        await service.set_retention(asked("other", local_age_s=1))


async def test_a_view_has_what_is_archived_trimmed_and_purged(
    store: EmbeddedMetadataStore,
) -> None:
    """As the watch tells it, and so does a description of the log, whichever part it is of."""
    knows = Committed(0, Offset(100))
    await set_archived_end(store, "orders", ID, Offset(90), nonce="a", committed=knows)
    await set_trimmed(store, "orders", ID, Offset(80), nonce="t")
    await set_purged(store, "orders", ID, Offset(70), nonce="p", committed=knows)
    view = ClusterView(store, SystemClock())
    running = asyncio.create_task(view.run())
    await view.wait_ready()
    found = view.log("orders")
    running.cancel()
    await asyncio.wait([running])
    assert found is not None
    record, version = found
    for open_only in (False, True):
        told = describe_log(record, version, view.node, open_only=open_only)
        assert (told.start, told.trimmed, told.archived_end) == (70, 80, 90)
        assert retention_from_proto(told.retention) == Retention(local_bytes=5)


def test_a_retention_survives_the_wire_and_nothing_is_no_message() -> None:
    """None and 0 stay two things."""
    for retention in (Retention(local_bytes=0), Retention(local_age_s=2**40, total_age_s=0)):
        message = retention_to_proto(retention)
        assert message is not None
        assert retention_from_proto(message) == retention
    assert retention_to_proto(None) is retention_to_proto(NO_RETENTION) is None
    assert asked_to_proto(Retention()) is None
    with pytest.raises(InvalidArgument):
        asked_to_proto(Retention(local_age_s=2, total_age_s=1))
