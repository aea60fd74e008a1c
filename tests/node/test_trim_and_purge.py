"""Logs are trimmed and purged through any node of a real cluster, with an archive and without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from itertools import repeat
from pathlib import Path

import pytest

import sharedlog
from sharedlog.archive_errors import ManifestBehind
from sharedlog.dev_cluster import DevCluster
from sharedlog.v1 import archive_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

VALUE = b"x" * 10_000
RECORDS = 300


@asynccontextmanager
async def running(folder: Path, **settings: str) -> AsyncIterator[DevCluster]:
    """Three nodes; with an archive, they archive by themselves only what they are asked to."""
    async with DevCluster(folder / "cluster", settings=settings) as nodes:
        yield nodes


def archived(folder: Path) -> dict[str, str]:
    (folder / "archive").mkdir()
    return {
        "SHAREDLOG_ARCHIVE__URL": f"file://{folder}/archive",
        "SHAREDLOG_OFFLOAD__OBJECT_BYTES": str(64 << 20),
        "SHAREDLOG_OFFLOAD__OFFLOAD_AFTER_S": "3600",
    }


async def fill(log: sharedlog.Log, end: int = RECORDS, *, first: int = 0) -> None:
    async with log.appender() as appender:
        for number in range(first, end):
            await appender.append(b"%d " % number + VALUE)


async def trim(
    cluster: sharedlog.Cluster, *, before: int, dry_run: bool = False
) -> list[archive_pb2.TrimLogResponse]:
    async with aclosing(cluster.admin.trim("orders", before=before, dry_run=dry_run)) as answers:
        return [answer async for answer in answers]


async def read(log: sharedlog.Log, start: int) -> list[bytes]:
    return [record.value.partition(b" ")[0] async for record in log.read(start)]


async def local_starts(nodes: DevCluster, cluster: sharedlog.Cluster) -> set[int]:
    """From where on the log servers hold the log's first segment."""
    async with aclosing(cluster.admin.digest("orders", 0)) as answers:
        found = [answer async for answer in answers]
    assert len(nodes.nodes) == 3
    return {it.ranges[0].first for it in found if it.ranges}


async def until_start(log: sharedlog.Log, start: int) -> None:
    """Until the client's node says that the log begins there."""
    async with asyncio.timeout(60):
        for pause_s in repeat(0.01):
            if (await log.describe()).start == start:
                return
            await asyncio.sleep(pause_s)


async def test_field_note_44_the_answer_states_how_far_the_trim_went(tmp_path: Path) -> None:
    """A token that was set at the beginning holds nothing back, whichever node is asked.

    A fresh client asks: nothing is judged by a tail that somebody remembers.
    """
    async with running(tmp_path, **archived(tmp_path)) as nodes:
        async with sharedlog.connect(nodes.address) as cluster:
            log = await cluster.create_log("orders")
            assert await log.fence("token") == 0
            await fill(log)
            description = await log.describe()
        for number, address in enumerate(nodes.addresses):
            async with sharedlog.connect(address) as cluster:
                log = cluster.log("orders")
                want = 60 * (number + 1)
                planned = await trim(cluster, before=want, dry_run=True)
                assert [(it.done, it.trimmed) for it in planned] == [(True, want)]
                answers = await trim(cluster, before=want)
                last = answers[-1]
                assert (last.done, last.wanted, last.trimmed) == (True, want, want)
                assert (list(last.waiting), last.start) == ([], 0)
                assert last.offload.archived_end >= want
                description = await log.describe()
                assert description.trimmed == want
        assert description.archived_end >= 180
        async with sharedlog.connect(nodes.address) as cluster:
            log = cluster.log("orders")
            tail = await log.tail()
            assert tail == RECORDS + 2, "the state was written once more, and once alone"
            assert await local_starts(nodes, cluster) == {180}
            assert await read(log, 0) == [b"%d" % number for number in range(RECORDS)]
            beyond = (await trim(cluster, before=tail + 1_000))[-1]
            assert (beyond.wanted, beyond.trimmed) == (tail + 1_000, tail - 1)
            # Whoever takes over needs nothing of the archive.
            sequencer = description.chain[-1].sequencer.node_id
            for path in (tmp_path / "archive").iterdir():
                path.rename(tmp_path / path.name)
            nodes.kill(sequencer)
            live = [it for name, it in nodes.nodes.items() if name != sequencer]
        async with sharedlog.connect(",".join(it.address for it in live)) as cluster:
            log = cluster.log("orders")
            with pytest.raises(sharedlog.errors.FencingTokenMismatch):
                await log.append(b"no", fencing_token="other")
            assert await log.append(b"yes", fencing_token="token") >= tail


async def test_a_purge_is_for_ever_and_in_the_archive_too(tmp_path: Path) -> None:
    """Reads below fail with the start; objects below are gone; also all of it, up to the tail."""
    async with (
        running(tmp_path, **archived(tmp_path)) as nodes,
        sharedlog.connect(nodes.address) as cluster,
    ):
        log = await cluster.create_log("orders")
        await log.fence("token")
        for first, end in ((0, 100), (100, RECORDS)):
            await fill(log, end, first=first)
            async with aclosing(cluster.admin.offload("orders")) as answers:
                made = [answer async for answer in answers][-1]
            assert (made.objects, made.archived_end, made.target) == (1, end + 1, end + 1)
        objects = sorted((tmp_path / "archive").rglob("*.slog"))
        assert len(objects) == 2
        start = int(objects[1].name[:20]) + 1
        planned = await cluster.admin.purge("orders", before=start, dry_run=True)
        assert (planned.start, planned.objects) == (start, 1)
        assert await read(log, 0) == [b"%d" % number for number in range(RECORDS)]
        done = await cluster.admin.purge("orders", before=start)
        assert (done.start, done.start_before, done.objects) == (start, 0, 1)
        assert (list(done.waiting), done.left) == ([], "")
        assert sorted((tmp_path / "archive").rglob("*.slog")) == objects[1:]
        again = await cluster.admin.purge("orders", before=start)
        assert (again.start, again.start_before, again.objects) == (start, start, 0)
        with pytest.raises(sharedlog.errors.Purged) as purged:
            await read(log, start - 1)
        assert purged.value.start == start
        assert len(await read(log, start)) == RECORDS - start + 1
        with pytest.raises(sharedlog.errors.InvalidArgument, match="its tail is"):
            await cluster.admin.purge("orders", before=10_000)
        tail = await log.tail()
        done = await cluster.admin.purge("orders", before=tail)
        assert (done.start, list(done.waiting), done.left) == (tail, [], "")
        assert not sorted((tmp_path / "archive").rglob("*.slog"))
        last = (await trim(cluster, before=tail))[-1]
        assert (last.start, last.trimmed) == (tail, tail - 1)
        assert await log.append(b"more", fencing_token="token") >= tail
        assert await read(log, tail) == [b"more"]


async def test_without_an_archive_a_trim_is_refused_and_a_purge_works(tmp_path: Path) -> None:
    """One sentence, which names what would drop the records; and the age of records counts."""
    async with running(tmp_path) as nodes, sharedlog.connect(nodes.address) as cluster:
        log = await cluster.create_log("orders")
        await fill(log, 20)
        for dry_run in (True, False):
            with pytest.raises(sharedlog.errors.InvalidArgument, match="log purge"):
                await trim(cluster, before=10, dry_run=dry_run)
        assert not (await cluster.admin.describe_archive("orders")).url
        with pytest.raises(sharedlog.errors.InvalidArgument, match="no archive"):
            async for _ in cluster.admin.offload("orders"):
                pass
        first = (await log.read_last(20))[0]
        nothing = await cluster.admin.purge("orders", older_than_ms=first.timestamp_ms)
        assert (nothing.start, nothing.start_before) == (0, 0)
        done = await cluster.admin.purge("orders", before=10)
        assert (done.start, list(done.waiting)) == (10, [])
        assert await read(log, 10) == [b"%d" % number for number in range(10, 20)]
        assert (await trim(cluster, before=10))[-1].trimmed == 0, "the last batch stays"
        assert await log.trim(5) == 0
        assert await log.purge(11) == 11
        later = (await log.read_last(1))[0].timestamp_ms + 1
        everything = await cluster.admin.purge("orders", older_than_ms=later)
        assert everything.start == 20
        assert await read(log, 20) == []


async def test_nothing_is_trimmed_upon_a_manifest_that_was_lost(tmp_path: Path) -> None:
    """All is archived, as the chain says; the archive is gone: log servers have the last copies."""
    async with (
        running(tmp_path, **archived(tmp_path)) as nodes,
        sharedlog.connect(nodes.address) as cluster,
    ):
        log = await cluster.create_log("orders")
        await fill(log)
        async with aclosing(cluster.admin.offload("orders")) as answers:
            assert [answer async for answer in answers][-1].archived_end == RECORDS
        (manifest,) = (tmp_path / "archive").rglob("manifest")
        manifest.rename(tmp_path / "manifest")
        with pytest.raises(ManifestBehind):
            await trim(cluster, before=200)
        assert (await log.describe()).trimmed == 0
        assert await local_starts(nodes, cluster) == {0}
        (tmp_path / "manifest").rename(manifest)
        assert (await trim(cluster, before=200))[-1].trimmed == 200
        assert await read(log, 0) == [b"%d" % number for number in range(RECORDS)]


async def test_a_follower_under_whom_the_log_is_purged_is_told(tmp_path: Path) -> None:
    """It skips nothing by itself, wherever it began; who begins afterwards begins at the start."""
    tail = 20 * RECORDS  # far more than what can be on its way to the follower
    async with (
        running(tmp_path, **archived(tmp_path)) as nodes,
        sharedlog.connect(nodes.address) as cluster,
    ):
        log = await cluster.create_log("orders")
        await fill(log, tail)
        seen: list[int] = []

        async def follow() -> None:
            async with aclosing(log.read(sharedlog.EARLIEST, follow=True)) as follower:
                async for record in follower:
                    seen.append(record.offset)
                    if record.offset == 5:
                        await cluster.admin.purge("orders", before=tail)
                        assert await log.append(b"later") == tail

        with pytest.raises(sharedlog.errors.Purged) as purged:
            await asyncio.wait_for(follow(), 60)
        assert seen == list(range(len(seen)))
        assert purged.value.start == tail
        assert [it.offset async for it in log.read()] == [tail]
        newest = await anext(log.read(sharedlog.from_tail(100)))
        assert newest.offset == tail


async def test_what_is_purged_is_read_by_nobody_who_knew_the_log_before(tmp_path: Path) -> None:
    """Neither clients nor nodes go on with what they remember of it, once the purge has ended."""
    async with (
        running(tmp_path, **archived(tmp_path)) as nodes,
        sharedlog.connect(nodes.addresses[0]) as reading,
        sharedlog.connect(nodes.addresses[1]) as purging,
    ):
        log = await reading.create_log("orders")
        await fill(log)
        await trim(reading, before=250)
        for _ in range(6):  # through every node's archive
            assert await read(log, 0) == [b"%d" % number for number in range(RECORDS)]
        await purging.admin.purge("orders", before=10)
        for address in nodes.addresses:  # each hears of it in a moment
            async with sharedlog.connect(address) as other:
                await until_start(other.log("orders"), 10)
        for _ in range(6):
            with pytest.raises(sharedlog.errors.Purged):
                await read(log, 0)
