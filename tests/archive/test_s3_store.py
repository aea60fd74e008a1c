"""S3: answers that are lost, cut or wrong; servers that differ; memory; what is sent."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from aiohttp import web
from helpers.archive_stores import QuickClock, new_id, opened, pieces
from helpers.s3_proxy import (
    Forward,
    S3Proxy,
    cut_in_the_middle,
    done_but,
    lose_answer,
    lose_request,
    never_answer,
    passed_on,
    status,
)
from helpers.s3_server import BUCKET, S3Server

from loglet.archive.config import ArchiveConfig
from loglet.archive.object_store import ObjectStore
from loglet.archive.probe import probe
from metadata.s3.client import open_client
from metadata.s3.settings import Addressing
from sharedlog.errors import (
    ArchiveUnavailable,
    ArchiveUnsuitable,
    ObjectNotFound,
    SwapConflict,
)
from sharedlog.limits import MIB

PART = 5 * MIB

Open = Callable[..., ObjectStore]


@pytest.fixture
async def proxy(s3_server: S3Server) -> AsyncIterator[S3Proxy]:
    async with S3Proxy(s3_server.url) as made:
        yield made


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock()


@pytest.fixture
async def open_store(proxy: S3Proxy, clock: QuickClock) -> AsyncIterator[Open]:
    """Opens stores behind the proxy, with these settings."""
    made: list[ObjectStore] = []
    base = ArchiveConfig(endpoint=proxy.url, part_bytes=PART, multipart_bytes=PART, attempts_max=4)
    url = f"s3://{BUCKET}/faults/{new_id()}"

    def open_one(**settings: object) -> ObjectStore:
        made.append(opened(url, replace(base, **settings), clock=clock))  # type: ignore[arg-type]  # fields of the class
        return made[-1]

    yield open_one
    for store in made:
        await store.close()


@pytest.fixture
async def store(open_store: Open, proxy: S3Proxy) -> ObjectStore:
    """An adapted one, with nothing of that in `proxy.seen`."""
    made = open_store()
    await probe(made, new_id)
    proxy.seen.clear()
    return made


async def listed(store: ObjectStore) -> list[str]:
    return [info.key async for info in store.list("")]


BUSY = (
    status(503, "SlowDown"),
    status(500, "InternalError"),
    status(429, "TooManyRequests"),
    status(400, "RequestTimeout"),
    status(502, ""),
    lose_request,
    lose_answer,
)


async def test_what_passes_is_tried_again(
    store: ObjectStore, proxy: S3Proxy, clock: QuickClock
) -> None:
    """Reading, looking, listing, deleting, uploading: each is safe to repeat, and ends well."""
    for fault in BUSY:
        proxy.next("PUT", fault)
        await store.upload("o", pieces(b"data"))
        proxy.next("GET", fault)
        assert await store.read("o", 1, 3) == b"at"
        proxy.next("GET", fault)
        assert (await store.read_versioned("o") or (b"",))[0] == b"data"
        proxy.next("HEAD", fault)
        assert await store.stat("o")
        proxy.next("GET", fault)
        assert await listed(store) == ["o"]
        proxy.next("DELETE", fault)
        await store.delete(["o"])
        assert await listed(store) == []
    assert proxy.left() == 0
    assert clock.slept_s


async def test_pauses_grow_and_end(open_store: Open, proxy: S3Proxy, clock: QuickClock) -> None:
    """Doubling means with jitter up to the longest, by the given clock; then the error says all."""
    store = open_store(attempts_max=8, backoff_min_s=0.5, backoff_max_s=4.0)
    proxy.always(status(503, "SlowDown", "Please reduce your request rate."))
    with pytest.raises(ArchiveUnavailable) as caught:
        await store.read("log/object")
    assert proxy.count("GET") == 8
    means = (0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0)
    assert len(clock.slept_s) == len(means)
    for slept_s, mean_s in zip(clock.slept_s, means, strict=True):
        assert mean_s / 2 <= slept_s <= mean_s * 3 / 2
    assert str(caught.value) == (
        f"{store.url}: can't read log/object: 503 SlowDown: Please reduce your request rate. "
        "(tried 8 times)"
    )
    assert caught.value.retryable


async def test_an_answer_that_is_cut_is_not_taken(store: ObjectStore, proxy: S3Proxy) -> None:
    """Half of a body is no body."""
    data = os.urandom(100_000)
    await store.upload("o", pieces(data))
    proxy.next("GET", cut_in_the_middle, cut_in_the_middle)
    assert await store.read("o") == data
    proxy.next("GET", cut_in_the_middle)
    assert await store.read("o", 10, 50_000) == data[10:50_000]
    proxy.next("GET", cut_in_the_middle)
    assert await store.read_tail("o", 50_000) == (data[-50_000:], len(data))
    proxy.next("GET", cut_in_the_middle)
    assert await listed(store) == ["o"]
    assert proxy.left() == 0


@pytest.mark.slow
async def test_silence_is_bounded(open_store: Open, proxy: S3Proxy) -> None:
    """A server that never answers costs the read time-out for each attempt."""
    store = open_store(read_timeout_s=0.2, attempts_max=2)
    proxy.next("GET", never_answer, never_answer)
    with pytest.raises(ArchiveUnavailable, match=r"can't read o: .*tried 2 times"):
        await store.read("o")


async def test_a_swap_whose_answer_never_comes_has_succeeded_if_its_data_is_there(
    store: ObjectStore, proxy: S3Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time-out after success: it strikes once the server has carried it out."""
    limits: list[asyncio.Timeout] = []
    timeout = asyncio.timeout

    def noted(delay_s: float | None) -> asyncio.Timeout:
        limits.append(timeout(delay_s))
        return limits[-1]

    async def silent(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        await forward()
        limits[-1].reschedule(0)
        return await never_answer(request, forward)

    monkeypatch.setattr(asyncio, "timeout", noted)
    version: str | None = None
    for number in range(2):
        proxy.next("PUT", silent)
        version = await store.swap("m", f"salt {number}".encode(), version)
        assert await store.read_versioned("m") == (f"salt {number}".encode(), version)
    assert proxy.left() == 0
    assert proxy.count("PUT") == 2


async def test_a_swap_that_is_refused_after_its_own_success_has_succeeded(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    """The answer is lost, the request is sent again below us, and answered with 412."""
    proxy.next("PUT", lose_answer)
    version = await store.swap("m", b"salt 1", None)
    assert proxy.count("PUT") == 2, "what is to be survived did not happen"
    proxy.next("PUT", lose_answer)
    second = await store.swap("m", b"salt 2", version)
    assert proxy.count("PUT") == 4
    assert await store.read_versioned("m") == (b"salt 2", second)
    for answered in (done_but(412, "PreconditionFailed"), done_but(500, "InternalError")):
        proxy.next("PUT", answered)
        second = await store.swap("m", f"salt {new_id()}".encode(), second)
    assert proxy.left() == 0


async def test_a_swap_is_not_sent_again(store: ObjectStore, proxy: S3Proxy) -> None:
    """What was not carried out, for all that is known, may still arrive: the outcome is unknown."""
    version = await store.swap("m", b"salt 1", None)
    for fault in (status(503, "SlowDown"), status(409, "ConditionalRequestConflict")):
        proxy.seen.clear()
        proxy.next("PUT", fault)
        with pytest.raises(ArchiveUnavailable, match=r"can't replace m: .*is unknown"):
            await store.swap("m", b"salt 2", version)
        assert proxy.count("PUT") == 1
    proxy.next("PUT", lose_request, lose_request)  # the second is of the library below
    with pytest.raises(ArchiveUnavailable, match=r"can't replace m: .*is unknown"):
        await store.swap("m", b"salt 2", version)
    proxy.next("PUT", status(503, "SlowDown"))
    with pytest.raises(ArchiveUnavailable, match=r"can't replace n: .*is unknown"):
        await store.swap("n", b"salt 2", None)
    assert await store.read("m") == b"salt 1"
    assert await store.swap("m", b"salt 3", version)


async def test_a_swap_that_can_not_win_any_more_is_a_conflict(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    """No answer, and another value is there by now: a version never comes back."""
    first = await store.swap("m", b"salt 1", None)
    second = await store.swap("m", b"salt 2", first)
    proxy.next("PUT", status(503, "SlowDown"))
    with pytest.raises(SwapConflict) as lost:
        await store.swap("m", b"salt 3", first)
    assert lost.value.actual == second
    assert lost.value.outcome == "indefinite", "it may have been there for a moment"


async def test_a_swap_that_is_refused_before_the_winner_is_there_to_read_is_a_conflict(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    """Ceph refuses the loser while the winner's object is not yet what a read gives."""
    first = await store.swap("m", b"salt 1", None)
    won = []

    async def once_it_is_there(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        won.append(await store.swap("m", b"salt 2", first))
        return await passed_on(request, forward)

    proxy.next("PUT", status(412, "PreconditionFailed"))
    proxy.next("GET", passed_on, passed_on, once_it_is_there)
    with pytest.raises(SwapConflict) as lost:
        await store.swap("m", b"salt 3", first)
    assert [lost.value.actual] == won
    assert proxy.left() == 0


async def test_a_swap_whose_outcome_can_not_be_read_is_unknown(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    proxy.next("PUT", lose_answer, lose_answer)
    proxy.next("GET", *[status(503, "SlowDown")] * 4)
    with pytest.raises(ArchiveUnavailable, match="can't read m"):
        await store.swap("m", b"salt 1", None)
    assert await store.read("m") == b"salt 1"


async def test_a_swap_that_arrives_late_replaces_nothing(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    """It was given up as unknown, and another won meanwhile; then the request is carried out."""
    late: list[Forward] = []

    async def hold(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        late.append(forward)
        return await lose_request(request, forward)

    for expected in (None, await store.swap("m", b"salt 1", None)):
        key = "first" if expected is None else "m"
        # Whoever sends it again, when the connection broke, has it held again.
        proxy.next("PUT", hold, hold)
        with pytest.raises(ArchiveUnavailable, match="unknown"):
            await store.swap(key, b"salt 2", expected)
        proxy.drop("PUT")
        await store.swap(key, b"salt 3", expected)
        assert late
        for forward in late:
            assert (await forward()).status == 412
        late.clear()
        assert await store.read(key) == b"salt 3"


DENIALS = (
    (status(403, "AccessDenied", "Access Denied"), "403 AccessDenied: Access Denied"),
    (status(403, "InvalidAccessKeyId", "no such key"), "403 InvalidAccessKeyId: no such key"),
    (status(401, "Unauthorized", "who?"), "401 Unauthorized: who\\?"),
    (status(404, "NoSuchBucket", "no bucket"), "404 NoSuchBucket: no bucket"),
    (status(400, "InvalidStorageClass", "no"), "400 InvalidStorageClass: no"),
    (status(501, "NotImplemented", "no"), "501 NotImplemented: no"),
)


@pytest.mark.parametrize(("fault", "words"), DENIALS, ids=[words for _, words in DENIALS])
async def test_what_is_denied_is_said_at_once(
    store: ObjectStore, proxy: S3Proxy, clock: QuickClock, fault: object, words: str
) -> None:
    """No second attempt, no pause, and a line that says which archive, what for, and why."""
    proxy.always(fault)  # type: ignore[arg-type]  # a Fault
    for doing, call in (
        ("read o", store.read("o")),
        ("read o", store.read_versioned("o")),
        ("write o", store.upload("o", pieces(b"x"))),
        ("replace o", store.swap("o", b"x", None)),
        ("delete o", store.delete(["o"])),
        ("list all", listed(store)),
    ):
        proxy.seen.clear()
        with pytest.raises(ArchiveUnsuitable, match=f"^{store.url}: can't {doing}: {words}$"):
            await call
        assert len(proxy.seen) == 1
    with pytest.raises(ArchiveUnsuitable):
        await store.stat("o")
    assert clock.slept_s == []


async def test_without_credentials_it_says_so(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ArchiveUnsuitable, match=r"can't read o: Unable to locate credentials"):
        await open_store().read("o")


async def test_a_server_that_is_away_is_unavailable(s3_server: S3Server) -> None:
    """Nobody listens."""
    settings = ArchiveConfig(endpoint="http://127.0.0.1:9", attempts_max=2)
    store = opened(f"s3://{BUCKET}/p", settings)
    with pytest.raises(ArchiveUnavailable, match=r"can't read o: Could not connect.*tried 2"):
        await store.read("o")
    await store.close()


async def test_nothing_is_absent_because_the_bucket_is(s3_server: S3Server) -> None:
    """HEAD can't tell; what it leaves open is asked again."""
    store = opened("s3://there-is-none/p", ArchiveConfig(endpoint=s3_server.url))
    for call in (store.stat("o"), store.read("o"), store.read_versioned("o"), listed(store)):
        with pytest.raises(ArchiveUnsuitable, match="NoSuchBucket"):
            await call
    await store.close()


async def test_a_large_object_goes_in_parts(store: ObjectStore, proxy: S3Proxy) -> None:
    """All of one size but the last, which is never empty; each with its checksum."""
    for size, wanted in ((PART, []), (PART + 1, [PART, 1]), (3 * PART, [PART] * 3)):
        proxy.seen.clear()
        data = os.urandom(size)
        assert await store.upload("o", pieces(data[:100], data[100 : 2 * PART], data[2 * PART :]))
        assert [it.size for it in proxy.seen if "partNumber" in it.path] == wanted
        puts = [seen for seen in proxy.seen if seen.method == "PUT"]
        assert len(puts) == max(1, len(wanted))
        assert all("x-amz-checksum-crc32c" in seen.headers for seen in puts)
        assert not any("expect" in seen.headers for seen in puts)
        assert await store.read("o") == data


async def test_a_part_that_fails_is_sent_again(store: ObjectStore, proxy: S3Proxy) -> None:
    data = os.urandom(2 * PART + 7)
    proxy.next("PUT", passed_on, status(503, "SlowDown"), lose_answer, passed_on, lose_request)
    proxy.next("POST", status(500, "InternalError"), passed_on, status(503, "SlowDown"))
    assert await store.upload("o", pieces(data)) == len(data)
    assert proxy.left() == 0
    assert await store.read("o") == data


async def test_an_upload_that_was_completed_without_an_answer_is_complete(
    store: ObjectStore, proxy: S3Proxy
) -> None:
    """The repetition is answered with success, with `NoSuchUpload`, or not at all."""
    data = os.urandom(PART + 1)
    gone = status(404, "NoSuchUpload")
    for faults in ([lose_answer], [lose_answer, gone], [done_but(200, "InternalError"), gone]):
        proxy.next("POST", passed_on, *faults)
        assert await store.upload("o", pieces(data)) == len(data)
        assert proxy.left() == 0
        assert await store.read("o") == data
        await store.delete(["o"])


@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_an_upload_that_fails_is_aborted(
    store: ObjectStore, proxy: S3Proxy, method: str
) -> None:
    """In a part, or when it was to be completed: no object, and no parts that are paid for."""
    proxy.next(method, passed_on, *[status(503, "SlowDown")] * 4)
    with pytest.raises(ArchiveUnavailable, match=r"can't (write part 2 of|complete) o: 503"):
        await store.upload("o", pieces(os.urandom(PART + 1)))
    assert proxy.count("DELETE", "uploadId=") == 1
    assert await listed(store) == []


async def test_an_upload_that_is_cancelled_is_aborted(store: ObjectStore, proxy: S3Proxy) -> None:
    waits = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield b"x" * (PART + 1)
        waits.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        upload = group.create_task(store.upload("o", stuck()))
        await waits.wait()
        upload.cancel()
    assert upload.cancelled()
    assert proxy.count("DELETE", "uploadId=") == 1
    assert await listed(store) == []


async def test_memory_is_bounded_whatever_is_uploaded(s3_server: S3Server) -> None:
    """Two parts, the piece that came last, and what is being sent; not the object."""
    settings = ArchiveConfig(endpoint=s3_server.url, part_bytes=PART, multipart_bytes=PART)
    store = opened(f"s3://{BUCKET}/{new_id()}", settings)
    await probe(store, new_id)

    async def stream(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // MIB):
            yield bytes(MIB)

    async def peak(size: int) -> int:
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        assert await store.upload("o", stream(size)) == size
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        await peak(2 * PART)  # what is loaded and kept
        small, large = await peak(3 * PART), await peak(10 * PART)
    finally:
        tracemalloc.stop()
    assert large < 4 * PART
    assert large < small + PART
    await store.delete(["o"])
    await store.close()


async def test_settings_are_sent(open_store: Open, proxy: S3Proxy) -> None:
    """Encryption with all that is written, the storage class with what does not change."""
    store = open_store(storage_class="STANDARD_IA", sse="aws:kms", sse_kms_key_id="key-1")
    await store.upload("o", pieces(b"x"))
    await store.upload("p", pieces(b"x" * (PART + 1)))
    await store.swap("m", b"x", None)
    small, begin, manifest = (
        seen.headers
        for seen in proxy.seen
        if seen.method in ("PUT", "POST") and "uploadId" not in seen.path
    )
    for headers in (small, begin, manifest):
        assert headers["x-amz-server-side-encryption"] == "aws:kms"
        assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "key-1"
    assert small["x-amz-storage-class"] == begin["x-amz-storage-class"] == "STANDARD_IA"
    assert "x-amz-storage-class" not in manifest


@pytest.mark.parametrize(
    ("addressing", "endpoint", "style"),
    [
        ("auto", "", "virtual"),
        ("auto", "http://minio:9000", "path"),
        ("path", "", "path"),
        ("virtual", "http://minio:9000", "virtual"),
    ],
)
async def test_ways_of_naming_the_bucket(
    s3_server: S3Server, addressing: Addressing, endpoint: str, style: str
) -> None:
    """In the path, where an endpoint is set; else in the host's name."""
    settings = ArchiveConfig(addressing=addressing, endpoint=endpoint)
    async with AsyncExitStack() as stack:
        client = await open_client(settings, stack)
        told: dict[str, object] = client.meta.config.s3
    assert told["addressing_style"] == style


async def test_a_long_listing_comes_in_pages(store: ObjectStore, proxy: S3Proxy) -> None:
    """A page whose answer is lost is asked for again; nothing is told twice or left out."""
    proxy.page_max = 3
    wanted = [f"o/{number}" for number in range(10)]
    for key in wanted:
        await store.swap(key, b"", None)
    proxy.seen.clear()
    proxy.next("GET", passed_on, lose_answer, passed_on, status(503, "SlowDown"))
    assert await listed(store) == wanted
    assert proxy.left() == 0
    assert proxy.count("GET", "continuation-token=") >= 3
    assert [info.key async for info in store.list("o/4")] == ["o/4"]


async def test_an_object_that_is_gone_for_get_alone(store: ObjectStore, proxy: S3Proxy) -> None:
    """A HEAD that says 404 is not believed by itself."""
    await store.upload("o", pieces(b"12345"))
    proxy.next("HEAD", status(404, ""))
    info = await store.stat("o")
    assert info is not None
    assert info.size == 5
    with pytest.raises(ObjectNotFound):
        await store.read("p")
