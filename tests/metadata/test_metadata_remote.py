"""The remote store over a network that loses answers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.metadata_backends import Served, served

from metadata.remote import RemoteMetadataStore
from metadata.service import GET
from metadata.store import ABSENT, Version
from sharedlog.clock import SystemClock
from sharedlog.errors import InvalidArgument, MetadataUnavailable, Unreachable, VersionMismatch
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.transport import Method, Req, Resp
from sharedlog.v1 import metadata_pb2 as pb


class LosesAnswers(GrpcTransport):
    """Calls are made; the answers of the next `lose` of them are lost. `meanwhile` runs then."""

    def __init__(self) -> None:
        super().__init__()
        self.lose = 0
        self.calls = 0
        self.meanwhile: list[AsyncStep] = []

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        self.calls += 1
        response = await super().call(address, method, request, timeout_s=timeout_s)
        if self.lose:
            self.lose -= 1
            for step in self.meanwhile:
                await step()
            raise Unreachable("the answer was lost")
        return response


class AsyncStep:
    """Something that another client does."""

    def __init__(self, store: RemoteMetadataStore, key: str, *, expected: Version) -> None:
        self._store, self._key, self._expected = store, key, expected

    async def __call__(self) -> None:
        await self._store.put(self._key, b"other", expected=self._expected)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(tmp_path) as running:
        yield running


@pytest.fixture
async def lossy() -> AsyncIterator[LosesAnswers]:
    transport = LosesAnswers()
    yield transport
    await transport.close()


def connect(
    server: Served, transport: GrpcTransport, *, prefix: str = "n", timeout_s: float = 5.0
) -> RemoteMetadataStore:
    numbers = itertools.count()
    return RemoteMetadataStore(
        transport,
        server.address,
        SystemClock(),
        lambda: f"{prefix}{next(numbers)}",
        timeout_s=timeout_s,
    )


async def test_a_put_whose_answer_was_lost_succeeds_once(
    server: Served, lossy: LosesAnswers
) -> None:
    """Field note 50: it is repeated with its nonce, and gets the version that it made at first."""
    store = connect(server, lossy)
    lossy.lose = 2
    version = await store.put("k", b"v", expected=ABSENT)
    assert lossy.calls == 3
    entry = await store.get("k")
    assert entry is not None
    assert entry.version == version == 1
    assert await store.put("k", b"w", expected=version) == 2


async def test_a_put_whose_answer_was_lost_and_that_was_replaced_succeeded(
    server: Served, lossy: LosesAnswers
) -> None:
    """It is not told that it lost a race, for it was made: the value was read and built upon."""
    store = connect(server, lossy)
    other = connect(server, lossy, prefix="other")
    lossy.lose = 1
    lossy.meanwhile = [AsyncStep(other, "k", expected=Version(1))]
    assert await store.put("k", b"v", expected=ABSENT) == 1
    entry = await store.get("k")
    assert entry is not None
    assert (entry.value, entry.version) == (b"other", 2)


async def test_a_delete_whose_answer_was_lost_succeeds(server: Served, lossy: LosesAnswers) -> None:
    store = connect(server, lossy)
    version = await store.put("k", b"v", expected=ABSENT)
    lossy.lose = 1
    await store.delete("k", expected=version)
    assert await store.get("k") is None
    with pytest.raises(VersionMismatch):
        await store.delete("k", expected=version)


@pytest.mark.slow
async def test_when_the_time_is_up_the_outcome_is_unknown(
    server: Served, lossy: LosesAnswers
) -> None:
    """Every answer lost: `MetadataUnavailable`, and the change may have been made, as here. The
    last try may be cut short by the deadline, and its answer never be seen."""
    store = connect(server, lossy, timeout_s=1.0)
    lossy.lose = 1_000
    with pytest.raises(MetadataUnavailable, match=r"the answer was lost|no answer .* in time"):
        await store.put("k", b"v", expected=ABSENT)
    lossy.lose = 0
    assert await store.get("k") is not None


@pytest.mark.slow
async def test_a_store_that_is_away_is_told_in_time(server: Served, lossy: LosesAnswers) -> None:
    store = connect(server, lossy, timeout_s=0.3)
    await server.stop()
    for call in (
        store.get("k"),
        store.put("k", b"v", expected=ABSENT),
        store.delete("k", expected=Version(1)),
        store.list(""),
    ):
        with pytest.raises(MetadataUnavailable, match="does not answer"):
            async with asyncio.timeout(5):
                await call


async def test_bad_keys_are_refused_by_the_server_too(server: Served, lossy: LosesAnswers) -> None:
    """A client that does not check, e.g. a generated one, gets the typed error."""
    with pytest.raises(InvalidArgument, match="can't be empty"):
        await lossy.call(server.address, GET, pb.MetadataGetRequest(key=""), timeout_s=5)
