"""For tests of object stores: one S3 server for all of a process's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from helpers.archive_stores import KINDS, Place, new_id, place_of, real_bucket
from helpers.s3_server import S3Server, shared_s3

from loglet.archive.object_store import ObjectStore
from loglet.archive.probe import probe


@pytest.fixture(scope="session")
def s3_process() -> S3Server:
    return shared_s3()


@pytest.fixture
def s3_server(s3_process: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """The server, with this test's environment set for it."""
    for name, value in s3_process.environ.items():
        monkeypatch.setenv(name, value)
    return s3_process


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[None]:
    with real_bucket():
        yield


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """An empty root of each kind."""
    kind: str = request.param
    if kind == "endpoint":
        request.getfixturevalue("s3_endpoint")
    server = request.getfixturevalue("s3_server") if kind == "moto" else S3Server()
    made = place_of(kind, tmp_path, server)
    yield made
    await made.close()


@pytest.fixture
async def store(place: Place) -> ObjectStore:
    """A store in it, as a node has it."""
    made = place.open()
    await probe(made, new_id)
    return made
