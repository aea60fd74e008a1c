"""The metadata store's backends, as the contract suite takes them.

A further backend is one more `BackendFactory` in `BACKENDS`: `make(directory)` is an async context
manager that gives a `Backend`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import pytest
from aiohttp import web
from helpers.archive_stores import ENDPOINT, REAL_BUCKET, real_bucket
from helpers.etcd_server import EtcdCluster, shared_etcd
from helpers.s3_proxy import Forward, S3Proxy, lose_request
from helpers.s3_server import BUCKET, shared_s3
from helpers.tcp_proxy import TcpProxy, proxies

from metadata.config import EtcdConfig
from metadata.embedded import EmbeddedMetadataStore
from metadata.etcd import open_etcd
from metadata.remote import RemoteMetadataStore
from metadata.s3.bucket import BucketUrl
from metadata.s3.config import MetadataS3Config
from metadata.s3.store import S3MetadataStore
from metadata.service import MetadataService
from metadata.store import MetadataStore
from metadata.url import parse_metadata_url
from sharedlog.clock import SystemClock
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.grpc_server import GrpcServer

LOSSY_TIMEOUT_S = 20.0


class Backend(Protocol):
    """A store that runs."""

    async def open(self) -> MetadataStore:
        """A handle on the store; a backend may return the same one each time."""
        ...

    async def stop(self) -> None:
        """The store goes away, its data stays."""
        ...

    async def start(self) -> None:
        """And comes back."""
        ...


class Lossy(Protocol):
    """The way of one handle to its store, on which answers can get lost."""

    def lose_answers(self) -> None:
        """From now on changes are made, and their answers get lost."""
        ...

    async def mend(self) -> None:
        """What was lost stays lost: connections break, and those that follow are well."""
        ...


class LossyBackend(Backend, Protocol):
    """A store that is reached over a network."""

    async def open_lossy(self) -> tuple[MetadataStore, Lossy]:
        """A handle whose calls are tried for at least ten seconds, and its way."""
        ...


@dataclass(frozen=True)
class BackendFactory:
    name: str
    make: Callable[[Path], AbstractAsyncContextManager[Backend]]
    handles_survive: bool
    """A handle made before a restart works after it, and its watches go on."""
    make_lossy: Callable[[Path], AbstractAsyncContextManager[LossyBackend]] | None = None
    """None: no answer of it can get lost."""
    entries: int = 2_100
    """More than a page of a listing holds."""
    rounds: int = 150
    """Changes of twenty keys that are more than a watcher may lag behind."""
    races: int = 10
    """Of twelve puts each; fewer where each takes its time."""
    large: int = 40
    """Of the largest values, which together are more than a message, and than a watcher's lag."""


class Proxied:
    """A way through TCP proxies."""

    def __init__(self, proxies: Sequence[TcpProxy]) -> None:
        self._proxies = proxies

    def lose_answers(self) -> None:
        for proxy in self._proxies:
            proxy.deafen()

    async def mend(self) -> None:
        for proxy in self._proxies:
            await proxy.cut()


class InProcess:
    """The embedded store, used directly."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._store: EmbeddedMetadataStore | None = None

    async def open(self) -> MetadataStore:
        assert self._store is not None
        return self._store

    async def stop(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None

    async def start(self) -> None:
        assert self._store is None
        self._store = EmbeddedMetadataStore(self._directory, SystemClock())


class Served:
    """The embedded store behind real gRPC; each handle has a connection of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._store: EmbeddedMetadataStore | None = None
        self._server = GrpcServer()
        self._transports: list[GrpcTransport] = []
        self._ways = AsyncExitStack()
        self._port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    async def open(self) -> MetadataStore:
        transport = GrpcTransport()
        self._transports.append(transport)
        return RemoteMetadataStore(transport, self.address, SystemClock(), lambda: uuid.uuid4().hex)

    async def open_lossy(self) -> tuple[MetadataStore, Lossy]:
        found = await self._ways.enter_async_context(proxies([self.address]))
        transport = GrpcTransport()
        self._transports.append(transport)
        store = RemoteMetadataStore(
            transport,
            found[0].address,
            SystemClock(),
            lambda: uuid.uuid4().hex,
            timeout_s=LOSSY_TIMEOUT_S,
        )
        return store, Proxied(found)

    async def stop(self) -> None:
        if self._store is not None:
            await self._store.close()
            await self._server.stop(grace_s=1.0)
            self._store = None

    async def start(self) -> None:
        assert self._store is None
        self._store = EmbeddedMetadataStore(self._directory, SystemClock())
        self._server = GrpcServer()
        MetadataService(self._store).register(self._server)
        self._port = await self._server.start(self.address)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
        await self._ways.aclose()
        await self.stop()


@asynccontextmanager
async def in_process(directory: Path) -> AsyncIterator[InProcess]:
    backend = InProcess(directory)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[Served]:
    backend = Served(directory)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


class Etcd:
    """Three members of etcd, shared by the tests of a process; each has a prefix of its own."""

    def __init__(self, cluster: EtcdCluster) -> None:
        self._cluster = cluster
        self._prefix = f"test/{uuid.uuid4().hex}"
        self._stores: list[MetadataStore] = []
        self._ways = AsyncExitStack()

    async def open(self) -> MetadataStore:
        return self._open(self._cluster.addresses, EtcdConfig())

    async def open_lossy(self) -> tuple[MetadataStore, Lossy]:
        found = await self._ways.enter_async_context(proxies(self._cluster.addresses))
        config = EtcdConfig(timeout_s=LOSSY_TIMEOUT_S)
        return self._open([proxy.address for proxy in found], config), Proxied(found)

    def _open(self, addresses: Sequence[str], config: EtcdConfig) -> MetadataStore:
        url = parse_metadata_url(f"etcd://{','.join(addresses)}/{self._prefix}")
        store = open_etcd(url, config, clock=SystemClock(), new_id=lambda: uuid.uuid4().hex)
        self._stores.append(store)
        return store

    async def stop(self) -> None:
        self._cluster.kill_all()

    async def start(self) -> None:
        self._cluster.start()

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        await self._ways.aclose()


@asynccontextmanager
async def etcd(_: Path) -> AsyncIterator[Etcd]:
    backend = Etcd(shared_etcd())
    try:
        yield backend
    finally:
        await backend.close()


class Muted:
    """A way whose answers are held back, and lost when it is mended."""

    def __init__(self, proxy: S3Proxy) -> None:
        self._proxy = proxy
        self._mended = asyncio.Event()

    def lose_answers(self) -> None:
        self._proxy.always(self._hold)

    async def mend(self) -> None:
        self._proxy.always(None)
        self._mended.set()

    async def _hold(self, request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        await forward()
        await self._mended.wait()
        return await lose_request(request, forward)


class S3:
    """A prefix in a bucket. All handles go through a proxy, which can take the store away."""

    def __init__(self, endpoint: str, bucket: str) -> None:
        self._endpoint = endpoint
        self._proxy = S3Proxy(endpoint)
        self._url = BucketUrl(bucket, f"metadata/{uuid.uuid4().hex}")
        self._stack = AsyncExitStack()

    async def open(self) -> MetadataStore:
        return self._open(self._proxy)

    async def open_lossy(self) -> tuple[MetadataStore, Lossy]:
        proxy = await self._stack.enter_async_context(S3Proxy(self._endpoint))
        return self._open(proxy, timeout_s=20.0, read_timeout_s=20.0), Muted(proxy)

    def _open(
        self, proxy: S3Proxy, *, timeout_s: float = 5.0, read_timeout_s: float = 2.0
    ) -> S3MetadataStore:
        config = MetadataS3Config(
            endpoint=proxy.url,
            poll_interval_s=0.02,
            watch_events_max=15,
            timeout_s=timeout_s,
            read_timeout_s=read_timeout_s,
        )
        store = S3MetadataStore(
            self._url, config, clock=SystemClock(), new_id=lambda: uuid.uuid4().hex, page_keys=20
        )
        self._stack.push_async_callback(store.close)
        return store

    async def stop(self) -> None:
        self._proxy.always(lose_request)

    async def start(self) -> None:
        self._proxy.always(None)

    async def __aenter__(self) -> Self:
        await self._proxy.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        await self._proxy.__aexit__()


@asynccontextmanager
async def s3(_: Path) -> AsyncIterator[S3]:
    server = shared_s3()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        async with S3(server.url, BUCKET) as backend:
            yield backend


@asynccontextmanager
async def s3_endpoint(_: Path) -> AsyncIterator[S3]:
    """The server that the environment names, see `archive_stores.py`."""
    with real_bucket():
        async with S3(ENDPOINT, REAL_BUCKET) as backend:
            yield backend


def _in_s3(name: str, make: Callable[[Path], AbstractAsyncContextManager[S3]]) -> BackendFactory:
    """Its pages are short and its watches lag little, as each change takes its time."""
    return BackendFactory(
        name, make, handles_survive=True, make_lossy=make, entries=50, rounds=3, races=3, large=12
    )


BACKENDS = (
    BackendFactory("embedded", in_process, handles_survive=False),
    BackendFactory("embedded-grpc", served, handles_survive=True, make_lossy=served),
    BackendFactory("etcd", etcd, handles_survive=True, make_lossy=etcd),
    _in_s3("s3", s3),
    *([_in_s3("s3-endpoint", s3_endpoint)] if ENDPOINT else []),
)
