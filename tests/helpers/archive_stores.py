"""Object stores to test with: a folder, the test server, and a server that the environment names.

`SHAREDLOG_TEST_S3_ENDPOINT=http://127.0.0.1:7480` adds a real one; credentials are taken from the
environment (`AWS_ACCESS_KEY_ID`, ...), the bucket is made, and deleted when the tests have ended.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Final

from helpers.s3_server import BUCKET, S3Server
from helpers.sim.object_store import SimObjects
from helpers.sim.world import World

from loglet.archive.config import ArchiveConfig
from loglet.archive.object_store import ObjectStore, open_object_store
from metadata.s3.client import open_client
from sharedlog.clock import Clock, SystemClock

ENDPOINT: Final = os.environ.get("SHAREDLOG_TEST_S3_ENDPOINT", "")
KINDS: Final = ("file", "simulated", "moto", *(("endpoint",) if ENDPOINT else ()))
REAL_BUCKET: Final = f"sharedlog-tests-{uuid.uuid4().hex}"


class QuickClock(SystemClock):
    """Its sleeps are over at once, and noted."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        await asyncio.sleep(0)


def new_id() -> str:
    return uuid.uuid4().hex


def opened(
    url: str, settings: ArchiveConfig | None = None, *, clock: Clock | None = None
) -> ObjectStore:
    """A handle on a store, with a clock that does not wait."""
    return open_object_store(
        url,
        settings or ArchiveConfig(),
        clock=clock or QuickClock(),
        rng=Random(1),
        new_id=new_id,
    )


class Place:
    """An empty root; every handle that was opened is closed in the end."""

    def __init__(self, url: str, settings: ArchiveConfig) -> None:
        self.url = url
        self.settings = settings
        self._opened: list[ObjectStore] = []

    def open(self) -> ObjectStore:
        self._opened.append(opened(self.url, self.settings))
        return self._opened[-1]

    async def close(self) -> None:
        for store in self._opened:
            await store.close()


class SimulatedPlace(Place):
    """A root in the simulator's object store, with nothing wrong."""

    def __init__(self) -> None:
        super().__init__("sim:///archive", ArchiveConfig())
        self._objects = SimObjects(World(1), now_ms=SystemClock().now_ms)

    def open(self) -> ObjectStore:
        self._opened.append(self._objects.store())
        return self._opened[-1]


def place_of(kind: str, folder: Path, moto: S3Server) -> Place:
    """A new one of this kind."""
    if kind == "simulated":
        return SimulatedPlace()
    if kind == "file":
        return Place(f"file://{folder}/archive", ArchiveConfig())
    endpoint = moto.url if kind == "moto" else ENDPOINT
    bucket = BUCKET if kind == "moto" else REAL_BUCKET
    return Place(f"s3://{bucket}/tests/{new_id()}", ArchiveConfig(endpoint=endpoint))


@contextmanager
def real_bucket() -> Iterator[None]:
    """The bucket on the server that the environment names."""
    _run_apart(_make_bucket())
    try:
        yield
    finally:
        _run_apart(_delete_bucket())


def _run_apart(work: Coroutine[None, None, None]) -> None:
    """In a thread: whoever asks for a bucket may be within a loop."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, work).result()


async def _make_bucket() -> None:
    async with AsyncExitStack() as stack:
        client = await open_client(ArchiveConfig(endpoint=ENDPOINT), stack)
        await client.create_bucket(Bucket=REAL_BUCKET)


async def _delete_bucket() -> None:
    async with AsyncExitStack() as stack:
        client = await open_client(ArchiveConfig(endpoint=ENDPOINT), stack)
        while found := (await client.list_objects_v2(Bucket=REAL_BUCKET)).get("Contents", ()):
            for it in found:
                await client.delete_object(Bucket=REAL_BUCKET, Key=it["Key"])
        uploads = (await client.list_multipart_uploads(Bucket=REAL_BUCKET)).get("Uploads", ())
        for upload in uploads:
            await client.abort_multipart_upload(
                Bucket=REAL_BUCKET, Key=upload["Key"], UploadId=upload["UploadId"]
            )
        await client.delete_bucket(Bucket=REAL_BUCKET)


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    """A stream of these."""
    for piece in data:
        yield piece
