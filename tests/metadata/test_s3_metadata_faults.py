"""The metadata store in S3: answers lost after the write, outages, damage, servers that lie."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from random import Random

import pytest
from aiohttp import web
from helpers.log_servers import until
from helpers.s3_proxy import (
    Fault,
    Forward,
    S3Proxy,
    cut_in_the_middle,
    done_but,
    lose_answer,
    lose_request,
    never_answer,
    status,
)
from helpers.s3_server import BUCKET, shared_s3

from metadata.encoding import decode_node, encode_node
from metadata.errors import MetadataCorrupt, MetadataUnsuitable
from metadata.records import NodeRecord
from metadata.s3.bucket import BucketUrl
from metadata.s3.config import MetadataS3Config
from metadata.s3.names import name_of
from metadata.s3.objects import METADATA
from metadata.s3.records import PAST_KEPT
from metadata.s3.store import S3MetadataStore
from metadata.s3.values import S3Values
from metadata.store import (
    ABSENT,
    Changed,
    Deleted,
    Entry,
    SnapshotComplete,
    Version,
    WatchEvent,
)
from metadata.view import ClusterView
from sharedlog.clock import SystemClock
from sharedlog.errors import MetadataUnavailable, VersionMismatch
from sharedlog.ids import Generation, NodeId, StorageId

Open = Callable[..., S3MetadataStore]
CONFIG = MetadataS3Config(
    timeout_s=20.0,
    read_timeout_s=10.0,
    poll_interval_s=0.02,
    backoff_min_s=0.005,
    backoff_max_s=0.02,
)


def new_id() -> str:
    return uuid.uuid4().hex


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Proxy]:
    server = shared_s3()
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    async with S3Proxy(server.url) as made:
        yield made


@pytest.fixture
def url() -> BucketUrl:
    return BucketUrl(BUCKET, f"faults/{new_id()}")


@pytest.fixture
async def open_store(proxy: S3Proxy, url: BucketUrl) -> AsyncIterator[Open]:
    """Opens handles on one store behind the proxy, with these settings."""
    made: list[S3MetadataStore] = []

    def open_one(**settings: object) -> S3MetadataStore:
        config = replace(CONFIG, endpoint=proxy.url, **settings)  # type: ignore[arg-type]  # fields of the class
        made.append(S3MetadataStore(url, config, clock=SystemClock(), new_id=new_id))
        return made[-1]

    yield open_one
    for store in made:
        await store.close()


@pytest.fixture
async def store(open_store: Open, proxy: S3Proxy) -> S3MetadataStore:
    """One that was tried out, with nothing of that in `proxy.seen`."""
    made = open_store()
    await made.prove()
    proxy.seen.clear()
    return made


@pytest.fixture
async def values(url: BucketUrl, proxy: S3Proxy) -> AsyncIterator[S3Values]:
    """The objects themselves."""
    config = MetadataS3Config(endpoint=shared_s3().url)
    made = S3Values(url, config, METADATA, clock=SystemClock(), rng=Random(1))
    yield made
    await made.close()


async def overwrite(values: S3Values, key: str, data: bytes) -> bytes:
    """Put these bytes where the key's value lies; returns what was there."""
    found = await values.read_versioned(name_of(key))
    await values.swap(name_of(key), data, None if found is None else found.version)
    return b"" if found is None else found.data


async def take(events: AsyncIterator[WatchEvent], count: int) -> list[WatchEvent]:
    async with asyncio.timeout(60):
        return [await anext(events) for _ in range(count)]


async def close(events: AsyncIterator[WatchEvent]) -> None:
    await events.aclose()  # type: ignore[attr-defined]  # a generator


LOST = (
    lose_answer,
    lose_request,
    done_but(500, "InternalError"),
    done_but(503, "SlowDown"),
    done_but(412, "PreconditionFailed"),
    done_but(409, "ConditionalRequestConflict"),
    status(503, "SlowDown"),
    status(409, "ConditionalRequestConflict"),
)


async def test_a_change_is_made_once_whatever_is_answered(
    store: S3MetadataStore, proxy: S3Proxy
) -> None:
    """An answer that is no success settles nothing: what is there does, by its nonce."""
    version = ABSENT
    for number, fault in enumerate(LOST):
        before = version
        proxy.next("PUT", fault)
        version = await store.put("k", b"%d" % number, expected=before)
        assert version > before
        assert await store.get("k") == Entry("k", b"%d" % number, version)
    for fault in LOST:
        proxy.next("PUT", fault)
        await store.delete("k", expected=version)
        assert await store.get("k") is None
        proxy.next("PUT", fault)
        again = await store.put("k", b"again", expected=ABSENT)
        assert again > version + 1
        version = again
    assert proxy.left() == 0


def done_and_then(work: Callable[[], object], count: int = 1) -> Fault:
    """It is carried out; other things happen; and it is answered with an error."""

    async def fault(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
        answered = await done_but(500, "InternalError")(request, forward)
        for _ in range(count):
            await work()  # type: ignore[misc]  # a coroutine function
        return answered

    return fault


async def test_a_change_that_was_built_upon_is_known_to_be_made(
    open_store: Open, store: S3MetadataStore, proxy: S3Proxy
) -> None:
    """Its answer is lost, and others change the value before it is read back."""
    other = open_store()
    await other.prove()

    async def change() -> None:
        found = await other.get("k")
        assert found is not None
        await other.put("k", found.value + b"+", expected=found.version)

    proxy.next("PUT", done_and_then(change, PAST_KEPT))
    first = await store.put("k", b"1", expected=ABSENT)
    found = await store.get("k")
    assert found is not None
    assert found.value == b"1" + b"+" * PAST_KEPT
    assert first < found.version

    async def delete() -> None:
        found = await other.get("j")
        assert found is not None
        await other.delete("j", expected=found.version)

    proxy.next("PUT", done_and_then(delete))
    assert await store.put("j", b"1", expected=ABSENT) > first


async def test_what_can_not_be_told_is_not_claimed(
    open_store: Open, store: S3MetadataStore, proxy: S3Proxy
) -> None:
    """More changes came after it than an object remembers: it may or may not have been made."""
    other = open_store()
    await other.prove()

    async def change() -> None:
        found = await other.get("k")
        assert found is not None
        await other.put("k", b"", expected=found.version)

    proxy.next("PUT", done_and_then(change, PAST_KEPT + 1))
    with pytest.raises(MetadataUnavailable, match="nobody can tell"):
        await store.put("k", b"1", expected=ABSENT)


async def test_of_two_writers_one_wins_whatever_is_answered(
    open_store: Open, proxy: S3Proxy
) -> None:
    """Field note 49: exactly one, and the other one is told that it lost."""
    stores = [open_store(), open_store()]
    for store in stores:
        await store.prove()
    expected = ABSENT
    for number in range(8):
        for fault in (LOST[number], LOST[-1 - number]):
            proxy.next("PUT", fault)
        outcomes = await asyncio.gather(
            *(store.put("k", b"same", expected=expected) for store in stores),
            return_exceptions=True,
        )
        proxy.drop("PUT")
        won = [outcome for outcome in outcomes if isinstance(outcome, int)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, VersionMismatch)]
        assert (len(won), len(lost)) == (1, 1), outcomes
        found = await stores[0].get("k")
        assert found == Entry("k", b"same", Version(won[0]))
        assert lost[0].actual == won[0]
        expected = Version(won[0])


async def test_calls_wait_for_an_outage_to_end(store: S3MetadataStore, proxy: S3Proxy) -> None:
    """Throttled, silent for a while, cut: tried again, and answered in the end."""
    version = await store.put("k", b"1", expected=ABSENT)
    troubles = (status(503, "SlowDown"), lose_request, status(500, "InternalError"))
    proxy.next("GET", *troubles, cut_in_the_middle)
    assert await store.get("k") == Entry("k", b"1", version)
    proxy.next("GET", *troubles)
    assert await store.list("") == [Entry("k", b"1", version)]
    proxy.next("PUT", *troubles)
    await store.put("k", b"2", expected=version)
    assert proxy.left() == 0


async def test_calls_end_when_their_time_is_up(open_store: Open, proxy: S3Proxy) -> None:
    """With every call failing, or silence alone, an error says so; and afterwards all is well."""
    version = await open_store().put("k", b"1", expected=ABSENT)
    store = open_store(timeout_s=0.2)
    await store.prove()
    for fault in (status(503, "SlowDown", "Slow down."), never_answer):
        proxy.always(fault)
        with pytest.raises(MetadataUnavailable):
            await store.get("k")
        with pytest.raises(MetadataUnavailable):
            await store.list("")
        with pytest.raises(MetadataUnavailable, match="may or may not have been changed"):
            await store.put("k", b"2", expected=version)
    proxy.always(None)
    found = await open_store().get("k")
    assert found is not None
    assert found.value in (b"1", b"2")


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("if-none-match", "it makes an object that is there already"),
        ("if-match", "it replaces an object whose version is another one"),
    ],
)
async def test_a_store_that_ignores_conditions_is_refused(
    open_store: Open, proxy: S3Proxy, values: S3Values, header: str, words: str
) -> None:
    """In one line that says why, before anything is written; what is there can be read."""
    proxy.ignored.add(header)
    store = open_store()
    with pytest.raises(MetadataUnsuitable, match=f"can't be a metadata store: {words}") as refused:
        await store.put("k", b"1", expected=ABSENT)
    assert "\n" not in str(refused.value)
    assert await store.get("k") is None
    with pytest.raises(MetadataUnsuitable):
        await store.delete("k", expected=ABSENT)
    assert not (await values.list_page("")).listed


async def old_listing(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
    """A server whose listings lag behind: they are empty."""
    answer = await forward()
    body = answer.body
    if b"<Contents>" in body:
        end = body.rindex(b"</Contents>") + len(b"</Contents>")
        body = body[: body.index(b"<Contents>")] + body[end:]
    return web.Response(status=answer.status, headers=answer.headers, body=body)


async def test_a_store_whose_listings_lag_is_refused(open_store: Open, proxy: S3Proxy) -> None:
    """Watches would miss changes."""
    proxy.always(old_listing)
    with pytest.raises(MetadataUnsuitable, match="its listing does not name what was written last"):
        await open_store().put("k", b"1", expected=ABSENT)


DENIALS = (
    (
        status(403, "AccessDenied", "Access Denied"),
        "can't read k=: 403 AccessDenied: Access Denied",
    ),
    (status(404, "NoSuchBucket"), "can't read k=: 404 NoSuchBucket"),
)


@pytest.mark.parametrize(("denial", "words"), DENIALS, ids=["denied", "no-bucket"])
async def test_denial_is_no_absence(
    open_store: Open, proxy: S3Proxy, denial: Fault, words: str
) -> None:
    """At the start it is said, and nothing is tried again; later on it is an outage like others."""
    store = open_store()
    proxy.next("GET", denial)
    with pytest.raises(MetadataUnsuitable, match=words):
        await store.get("k")
    proxy.next("PUT", status(403, "AccessDenied"))
    with pytest.raises(MetadataUnsuitable, match="403 AccessDenied"):
        await store.put("k", b"v", expected=ABSENT)
    assert (proxy.count("GET"), proxy.count("PUT")) == (1, 1)
    version = await store.put("k", b"v", expected=ABSENT)
    for _ in range(2):
        proxy.next("GET", denial)
        with pytest.raises(MetadataUnavailable, match=words):
            await store.get("k")
    assert await store.get("k") == Entry("k", b"v", version)


async def test_a_damaged_object_is_no_absence(store: S3MetadataStore, values: S3Values) -> None:
    """Field note 24: reading and changing it fails, until a person has brought it back."""
    version = await store.put("logs/a", b"value", expected=ABSENT)
    b = await store.put("logs/b", b"other", expected=ABSENT)
    good = await overwrite(values, "logs/a", b"garbage")
    with pytest.raises(MetadataCorrupt, match=r"^logs/a: "):
        await store.get("logs/a")
    with pytest.raises(MetadataCorrupt, match=r"^logs/a: "):
        await store.list("logs/")
    for expected in (ABSENT, version):
        with pytest.raises(MetadataCorrupt):
            await store.put("logs/a", b"2", expected=expected)
    assert await store.get("logs/b") == Entry("logs/b", b"other", b)
    await overwrite(values, "logs/a", good)
    assert await store.get("logs/a") == Entry("logs/a", b"value", version)
    assert await store.put("logs/a", b"2", expected=version) > version


def node(name: str, generation: int = 1) -> NodeRecord:
    return NodeRecord(
        node_id=NodeId(name),
        generation=Generation(generation),
        storage_id=StorageId("s"),
        address="h:1",
        http_address="",
        location="",
        roles=("sequencer",),
    )


async def test_a_view_keeps_the_last_good_value(store: S3MetadataStore, values: S3Values) -> None:
    """Field note 24: damage is told to whoever watches, and the rest goes on."""
    await store.put("nodes/n1", encode_node(node("n1")), expected=ABSENT)
    view = ClusterView(store, SystemClock())

    async with asyncio.TaskGroup() as group:
        running = group.create_task(view.run())
        await view.wait_ready()
        good = await overwrite(values, "nodes/n1", b"garbage")
        await until(lambda: "nodes/n1" in view.damaged)
        assert view.node(NodeId("n1")) == node("n1")
        n2 = await store.put("nodes/n2", encode_node(node("n2")), expected=ABSENT)
        await until(lambda: view.node(NodeId("n2")) is not None)
        await overwrite(values, "nodes/n1", good)
        await until(lambda: not view.damaged)
        await store.put("nodes/n2", encode_node(node("n2", 2)), expected=n2)
        await until(lambda: view.node(NodeId("n2")) == node("n2", 2))
        running.cancel()
    found = await store.get("nodes/n1")
    assert found is not None
    assert decode_node(found) == node("n1")


async def test_a_watch_goes_on_over_an_outage(
    open_store: Open, proxy: S3Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """No gap, no repeat, deletions too; the log says it once, and that it is over."""
    store = open_store(attempts_max=1)
    await store.prove()
    same = await store.put("logs/same", b"1", expected=ABSENT)
    one = await store.put("logs/one", b"1", expected=ABSENT)
    gone = await store.put("logs/gone", b"1", expected=ABSENT)
    other = S3MetadataStore(
        BucketUrl(BUCKET, store.url.removeprefix(f"s3://{BUCKET}/")),
        replace(CONFIG, endpoint=shared_s3().url),
        clock=SystemClock(),
        new_id=new_id,
    )
    events = store.watch("logs/")
    assert len(await take(events, 4)) == 4
    caplog.set_level(logging.INFO, logger="metadata.s3.polling")
    proxy.always(status(503, "SlowDown"))
    proxy.seen.clear()
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(take(events, 3))
        one = await other.put("logs/one", b"2", expected=one)
        await other.delete("logs/gone", expected=gone)
        made = await other.put("logs/made", b"1", expected=ABSENT)
        await until(lambda: proxy.count("GET", "list-type=2") >= 7)
        assert not taking.done()
        proxy.always(None)
    changed, deleted, last = taking.result()
    assert changed == Changed(Entry("logs/one", b"2", one))
    assert isinstance(deleted, Deleted)
    assert (deleted.key, gone < deleted.version < made) == ("logs/gone", True)
    assert last == Changed(Entry("logs/made", b"1", made))
    same = await other.put("logs/same", b"2", expected=same)
    assert await take(events, 1) == [Changed(Entry("logs/same", b"2", same))]
    said = [record.message for record in caplog.records if record.levelno >= logging.INFO]
    assert said == ["metadata.poll_failed", "metadata.poll_works_again"]
    await close(events)
    await other.close()


async def test_a_watch_begins_when_the_store_is_back(
    store: S3MetadataStore, proxy: S3Proxy
) -> None:
    version = await store.put("k", b"1", expected=ABSENT)
    proxy.next("GET", *[status(503, "SlowDown")] * 8)
    events = store.watch("")
    assert await take(events, 2) == [Changed(Entry("k", b"1", version)), SnapshotComplete()]
    assert proxy.left() == 0
    await close(events)


async def test_all_watches_share_a_poll_and_know_their_own_changes(
    open_store: Open, proxy: S3Proxy
) -> None:
    """What this process changes is told without asking; a listing spans what is watched alone."""
    store = open_store(poll_interval_s=1_000.0)
    for index in range(3):
        await store.put(f"cursors/{index}", b"", expected=ABSENT)
        await store.put(f"logs/{index}", b"", expected=ABSENT)
    nodes, logs = store.watch("nodes/"), store.watch("logs/")
    assert await take(nodes, 1) == [SnapshotComplete()]
    assert len(await take(logs, 4)) == 4
    proxy.seen.clear()
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(take(events, 2)) for events in (nodes, logs)]
        await until(lambda: bool(proxy.seen))
        for key in ("logs/x", "nodes/x", "cursors/x", "nodes/y", "logs/y"):
            await store.put(key, b"", expected=ABSENT)
    for events, task in zip((nodes, logs), waiting, strict=True):
        prefix = "nodes/" if events is nodes else "logs/"
        told = [event.entry.key for event in task.result() if isinstance(event, Changed)]
        assert told == [f"{prefix}x", f"{prefix}y"]
        await close(events)
    [listing] = [seen.path for seen in proxy.seen if "list-type=2" in seen.path]
    assert "start-after" in listing
    assert listing.split("start-after=")[1].split("&")[0].endswith("logs%2F")


async def test_what_a_listing_lacks_is_read(store: S3MetadataStore, proxy: S3Proxy) -> None:
    """Field note 22: nothing is gone because a listing lacks it."""
    version = await store.put("k", b"1", expected=ABSENT)
    events = store.watch("k")
    assert len(await take(events, 2)) == 2
    proxy.seen.clear()
    proxy.always(old_listing)
    async with asyncio.TaskGroup() as group:
        taking = group.create_task(take(events, 1))
        await until(lambda: proxy.count("GET", "/k") >= 3)
        assert not taking.done()
        proxy.always(None)
        version = await store.put("k", b"2", expected=version)
    assert taking.result() == [Changed(Entry("k", b"2", version))]
    await close(events)


async def test_what_a_person_removed_is_told(store: S3MetadataStore, values: S3Values) -> None:
    """What is not there any more is gone; made anew it has a later version."""
    version = await store.put("k", b"1", expected=ABSENT)
    events = store.watch("")
    assert len(await take(events, 2)) == 2
    await values.delete([name_of("k")])
    assert await take(events, 1) == [Deleted("k", Version(version + 1))]
    assert await store.get("k") is None
    again = await store.put("k", b"2", expected=ABSENT)
    assert again > version
    assert await take(events, 1) == [Changed(Entry("k", b"2", again))]
    await close(events)


class StoppedClock(SystemClock):
    """Wall time stands still, or runs back."""

    ms = 1_000

    def now_ms(self) -> int:
        return self.ms


async def test_a_clock_that_runs_back_makes_no_old_version(proxy: S3Proxy, url: BucketUrl) -> None:
    """By its tombstone a key's versions grow, in a process that knows of none before, too."""
    clock = StoppedClock()
    versions: list[int] = []
    for _ in range(3):
        config = replace(CONFIG, endpoint=proxy.url)
        store = S3MetadataStore(url, config, clock=clock, new_id=new_id)
        version = await store.put("k", b"1", expected=ABSENT)
        versions.append(version)
        await store.delete("k", expected=version)
        await store.close()
        clock.ms -= 500
    assert versions == [1_000, 1_002, 1_004]


async def test_values_are_not_read_twice(store: S3MetadataStore, proxy: S3Proxy) -> None:
    """A listing names the version of each; what was read or written under it is known."""
    for index in range(5):
        await store.put(f"k{index}", b"v", expected=ABSENT)
    proxy.seen.clear()
    assert len(await store.list("")) == 5
    assert [seen.method for seen in proxy.seen] == ["GET"]


async def test_a_closed_store_ends_its_watches(store: S3MetadataStore) -> None:
    events = store.watch("")
    assert await take(events, 1) == [SnapshotComplete()]
    async with asyncio.TaskGroup() as group:

        async def expect_end() -> None:
            with pytest.raises(MetadataUnavailable, match="closed"):
                await take(events, 1)

        group.create_task(expect_end())
        await asyncio.sleep(0)
        await store.close()
    with pytest.raises(MetadataUnavailable, match="closed"):
        await store.get("k")
