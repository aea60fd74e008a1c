"""The measured metadata store: it changes nothing, and misses no call."""

from __future__ import annotations

import pytest
from helpers.memory_metadata import MemoryMetadata
from prometheus_client import CollectorRegistry

from metadata.metered import MeteredMetadataStore
from metadata.metrics import MetadataCallMetrics
from metadata.store import ABSENT
from sharedlog.clock import SystemClock
from sharedlog.errors import VersionMismatch


async def test_calls_are_measured_and_pass_through() -> None:
    """Each under its operation; one that fails under its error too, and the error reaches the
    caller as it was."""
    registry, inner = CollectorRegistry(), MemoryMetadata()
    store = MeteredMetadataStore(inner, SystemClock(), MetadataCallMetrics(registry))
    version = await store.put("a", b"1", expected=ABSENT)
    with pytest.raises(VersionMismatch):
        await store.put("a", b"2", expected=ABSENT)
    found = await store.get("a")
    assert found is not None
    assert (found.value, found.version) == (b"1", version)
    assert [it.key for it in await store.list("")] == ["a"]
    await store.delete("a", expected=version)

    def calls(operation: str) -> float | None:
        name = "sharedlog_metadata_call_seconds_count"
        return registry.get_sample_value(name, {"operation": operation})

    assert [calls(it) for it in ("put", "get", "list", "delete")] == [2, 1, 1, 1]
    labels = {"operation": "put", "error": "VersionMismatch"}
    assert registry.get_sample_value("sharedlog_metadata_call_failures_total", labels) == 1
