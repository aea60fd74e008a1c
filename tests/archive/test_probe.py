"""The probe: a store that lacks a property is refused, in a sentence that says which."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from helpers.archive_stores import new_id, opened
from helpers.log_servers import CLUSTER
from helpers.s3_proxy import Forward, S3Proxy, status
from helpers.s3_server import BUCKET, S3Server

from loglet.archive.config import ArchiveConfig
from loglet.archive.manifest import LogSettings, Manifest, new_manifest
from loglet.archive.manifests import ManifestConflict, Manifests
from loglet.archive.object_store import ObjectInfo, ObjectStore, Versioned
from loglet.archive.probe import probe
from loglet.archive.proof import Proof
from sharedlog.clock import SystemClock
from sharedlog.errors import ArchiveUnavailable, ArchiveUnsuitable, SwapConflict
from sharedlog.ids import LogId, Offset


class Lying:
    """A folder's store that lacks what a test takes away."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.url = inner.url

    async def adapt(self, key: str, salt: bytes) -> None:
        await self._inner.adapt(key, salt)  # type: ignore[attr-defined]  # a FileStore

    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return await self._inner.read(key, start, end)

    async def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        return await self._inner.read_tail(key, size)

    async def read_versioned(self, key: str) -> Versioned | None:
        return await self._inner.read_versioned(key)

    async def upload(self, key: str, parts: AsyncIterator[bytes]) -> int:
        return await self._inner.upload(key, parts)

    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        return await self._inner.swap(key, data, expected)

    async def stat(self, key: str) -> ObjectInfo | None:
        return await self._inner.stat(key)

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._inner.list(prefix)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._inner.delete(keys)

    async def close(self) -> None:
        await self._inner.close()


class MakesTwice(Lying):
    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        found = await self._inner.read_versioned(key)
        if expected is None and found is not None:
            expected = found.version
        return await self._inner.swap(key, data, expected)


class ReplacesAny(Lying):
    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        found = await self._inner.read_versioned(key)
        if expected is not None and found is not None:
            expected = found.version
        return await self._inner.swap(key, data, expected)


class ReplacesNothing(Lying):
    async def swap(self, key: str, data: bytes, expected: str | None) -> str:
        if await self._inner.read_versioned(key) is None:
            expected = None
        return await self._inner.swap(key, data, expected)


class ReadsOld(Lying):
    async def read_versioned(self, key: str) -> Versioned | None:
        found = await self._inner.read_versioned(key)
        return None if found is None else Versioned(b"old", found.version)


class IgnoresRanges(Lying):
    async def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        return await self._inner.read(key)


class WrongTail(Lying):
    async def read_tail(self, key: str, size: int) -> tuple[bytes, int]:
        return await self._inner.read(key, 0, size), size


class ListsLater(Lying):
    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        return self._inner.list("zzz")


class KeepsAll(Lying):
    async def delete(self, keys: Sequence[str]) -> None:
        """Does nothing."""


LACKS = (
    (MakesTwice, "it makes an object that is there already"),
    (ReplacesAny, "it replaces an object whose version is another one"),
    (ReplacesNothing, "it replaces an object that is not there"),
    (ReadsOld, "it does not read what was written last"),
    (IgnoresRanges, "a range of an object is not what was asked for"),
    (WrongTail, "the end of an object is not what was asked for"),
    (ListsLater, "an object that was written is not in the listing"),
    (KeepsAll, "an object is still there after it was deleted"),
)


@pytest.mark.parametrize(("cls", "words"), LACKS, ids=[cls.__name__ for cls, _ in LACKS])
async def test_what_a_store_lacks_is_said(tmp_path: Path, cls: type[Lying], words: str) -> None:
    inner = opened(f"file://{tmp_path}/a")
    with pytest.raises(ArchiveUnsuitable, match=f"^{inner.url} can't be an archive: {words}"):
        await probe(cls(inner), new_id)
    left = [info.key async for info in inner.list("")]
    assert cls is KeepsAll or left == [], "it cleans up whatever it finds"
    await inner.close()


@pytest.fixture
async def proxy(s3_server: S3Server) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(s3_server.url) as made:
        yield made


@pytest.fixture
async def store(proxy: S3Proxy) -> AsyncIterator[ObjectStore]:
    settings = ArchiveConfig(endpoint=proxy.url, attempts_max=2)
    made = opened(f"s3://{BUCKET}/probe/{new_id()}", settings)
    yield made
    await made.close()


class Counting(Lying):
    """Tells trials by their first swap."""

    trials = 0

    async def adapt(self, key: str, salt: bytes) -> None:
        self.trials += 1
        await super().adapt(key, salt)


def first_manifest(manifests: Manifests) -> Manifest:
    settings = LogSettings(name="orders", replicas=3, write_quorum=2, spread=())
    return new_manifest(CLUSTER, LogId(7), settings, Offset(0), manifests.write())


def manifests_of(store: ObjectStore) -> Manifests:
    return Manifests(
        store,
        cluster_id=CLUSTER,
        clock=SystemClock(),
        new_id=new_id,
        prove=Proof(store, new_id).made,
    )


async def test_no_manifest_is_written_to_a_store_that_ignores_conditions(tmp_path: Path) -> None:
    """By nobody: who archives by hand does not pass the archivist's own trial."""
    store = ReplacesAny(opened(f"file://{tmp_path}"))
    manifests = manifests_of(store)
    for _ in range(2):
        with pytest.raises(ArchiveUnsuitable, match="If-Match is ignored"):
            await manifests.replace(None, first_manifest(manifests))
    assert [info async for info in store.list("")] == []
    await store.close()


async def test_one_trial_is_enough_for_a_process(tmp_path: Path) -> None:
    """Those who come meanwhile share it."""
    store = Counting(opened(f"file://{tmp_path}"))
    manifests = manifests_of(store)
    first = first_manifest(manifests)
    made = await asyncio.gather(
        *(manifests.replace(None, replace(first, salt=new_id())) for _ in range(3)),
        return_exceptions=True,
    )
    assert sum(isinstance(it, ManifestConflict) for it in made) == 2, made
    assert store.trials == 1
    await store.close()


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("if-none-match", "it makes an object that is there already"),
        ("if-match", "it replaces an object whose version is another one"),
        ("range", "asked for bytes=.* it answers with the whole object"),
    ],
)
async def test_a_server_that_passes_over_a_header_is_refused(
    store: ObjectStore, proxy: S3Proxy, header: str, words: str
) -> None:
    """It takes the condition and does not know it, which is worse than to refuse it."""
    proxy.ignored.add(header)
    with pytest.raises(ArchiveUnsuitable, match=f"^{store.url} can't be an archive: {words}"):
        await probe(store, new_id)
    proxy.ignored.clear()
    assert [info.key async for info in store.list("")] == []


async def unquoted_alone(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """A server that compares If-Match with the bare ETag, as Ceph 16 does."""
    if '"' in request.headers.get("If-Match", ""):
        return await status(412, "PreconditionFailed")(request, forward)
    answer = await forward()
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def quoted_alone(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """A server that takes nothing but an ETag in quotes."""
    if '"' not in request.headers.get("If-Match", '"'):
        return await status(412, "PreconditionFailed")(request, forward)
    answer = await forward()
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def none_at_all(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """A server whose ETags never match."""
    if "If-Match" in request.headers:
        return await status(412, "PreconditionFailed")(request, forward)
    answer = await forward()
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


@pytest.mark.parametrize("server", [unquoted_alone, quoted_alone])
async def test_quotes_are_as_the_server_wants_them(
    store: ObjectStore, proxy: S3Proxy, server: object
) -> None:
    proxy.always(server)  # type: ignore[arg-type]  # a Fault
    await probe(store, new_id)
    version = await store.swap("m", b"salt 1", None)
    assert await store.swap("m", b"salt 2", version)
    with pytest.raises(SwapConflict):
        await store.swap("m", b"salt 3", version)


async def test_a_server_whose_versions_never_match_is_refused(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    proxy.always(none_at_all)
    with pytest.raises(ArchiveUnsuitable, match="it replaces no object under the version"):
        await probe(store, new_id)


async def no_checksums(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """A server that refuses headers that it does not know."""
    if any("checksum" in name.lower() for name in request.headers):
        return await status(501, "NotImplemented", "A header is unknown.")(request, forward)
    answer = await forward()
    return web.Response(status=answer.status, headers=answer.headers, body=answer.body)


async def test_a_server_that_knows_no_checksums_is_sent_none(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    proxy.always(no_checksums)
    await probe(store, new_id)
    proxy.seen.clear()
    await store.swap("m", b"salt", None)
    assert not any("checksum" in name for name in proxy.seen[0].headers)


async def test_a_denied_probe_says_what_was_denied(store: ObjectStore, proxy: S3Proxy) -> None:
    proxy.always(status(403, "AccessDenied", "Access Denied"))
    with pytest.raises(ArchiveUnsuitable, match=r"can't replace \.probe-.*: 403 AccessDenied"):
        await probe(store, new_id)
    assert proxy.count("PUT") == 1


async def test_a_probe_without_an_answer_decides_nothing(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    """A store that is away may be a good one."""
    proxy.always(status(503, "SlowDown"))
    with pytest.raises(ArchiveUnavailable):
        await probe(store, new_id)
