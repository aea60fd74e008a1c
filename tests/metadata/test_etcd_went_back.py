"""A watch of etcd, of which an older snapshot was restored: nothing waits for what has been."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from helpers.log_servers import until

from metadata.config import EtcdConfig
from metadata.etcd import EtcdMetadataStore
from metadata.etcd_wire import encode_value
from metadata.store import Changed, Deleted, Entry, SnapshotComplete, Version, WatchEvent
from sharedlog.clock import SystemClock
from sharedlog.errors import Unreachable
from sharedlog.v1 import etcd_pb2 as pb


class Stream:
    """Of a watch: what it was asked for, and a member that says no more than that it began."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.start: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()

    async def send(self, request: pb.EtcdWatchRequest) -> None:
        if request.HasField("create_request"):
            self.start.set_result(request.create_request.start_revision)

    async def receive(self) -> pb.EtcdWatchResponse:
        await self.start
        if self.at:
            at, self.at = self.at, 0
            return pb.EtcdWatchResponse(header=pb.EtcdHeader(revision=at), created=True)
        await self.lost.wait()
        raise Unreachable("lost")

    def cancel(self) -> None:
        self.lost.set()


class Members:
    """An etcd of a few keys, at a revision; its members may lag behind that."""

    def __init__(self) -> None:
        self.revision = 50
        self.lag = 0
        self.keys: dict[str, tuple[bytes, int]] = {}
        self.streams: list[Stream] = []

    async def call(self, _: Any, request: pb.EtcdRangeRequest, **__: float) -> Any:
        stored = [
            pb.EtcdKeyValue(
                key=b"p/" + key.encode(), value=encode_value(key, value, "n"), mod_revision=revision
            )
            for key, (value, revision) in sorted(self.keys.items())
        ]
        kvs = stored if request.range_end else []
        return pb.EtcdRangeResponse(header=pb.EtcdHeader(revision=self.revision), kvs=kvs)

    async def stream(self, _: Any, **__: float) -> tuple[str, Stream]:
        self.streams.append(Stream(self.revision - self.lag))
        return "h:1", self.streams[-1]

    def leave(self, _: str) -> None:
        """There is no other."""


def is_at(key: str, value: bytes, version: int) -> Changed:
    return Changed(Entry(key, value, Version(version)))


async def take(events: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    async with asyncio.timeout(60):
        return [await anext(events) for _ in range(count)]


async def test_a_watch_tells_what_is_there_after_a_restore(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A member that lags behind the others is none, and the watch waits there for its news."""
    members = Members()
    members.keys = {"a": (b"2", 40), "b": (b"1", 50)}
    store = EtcdMetadataStore(members, "p", SystemClock(), lambda: "n", EtcdConfig())  # type: ignore[arg-type]  # of a few keys
    events = store.watch("")
    assert await take(events, 3) == [is_at("a", b"2", 40), is_at("b", b"1", 50), SnapshotComplete()]

    members.lag = 20
    taking = asyncio.create_task(take(events, 3))
    members.streams[-1].lost.set()
    await until(lambda: len(members.streams) == 2)
    assert await members.streams[-1].start == 51
    assert "metadata.went_back" not in caplog.text

    with caplog.at_level(logging.ERROR):
        members.lag, members.revision = 0, 30
        members.keys = {"a": (b"1", 20)}
        members.streams[-1].lost.set()
        gone = [Deleted("a", Version(41)), Deleted("b", Version(51))]
        assert await taking == [*gone, is_at("a", b"1", 20)]
    assert "metadata.went_back" in caplog.text
    following = asyncio.create_task(take(events, 1))
    await until(lambda: len(members.streams) == 4)
    assert await members.streams[-1].start == 31
    following.cancel()
