"""A log's history outlives its cluster, and can be shared: nodes with an archive in a folder."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from helpers.full_strength import SOON, at_full_strength

import sharedlog
from sharedlog import Cluster, LogExists, Purged, Record, Retention
from sharedlog.dev_cluster import DevCluster
from sharedlog.v1 import history_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PRESENT = history_pb2.RestoreArchiveResponse.OUTCOME_PRESENT
RESTORED = history_pb2.RestoreArchiveResponse.OUTCOME_RESTORED
FAILED = history_pb2.RestoreArchiveResponse.OUTCOME_FAILED


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    return folder


@asynccontextmanager
async def cluster(folder: Path, archive: Path) -> AsyncIterator[Cluster]:
    settings = {
        "SHAREDLOG_ARCHIVE__URL": f"file://{archive}",
        "SHAREDLOG_OFFLOAD__OBJECT_BYTES": str(1 << 16),
        "SHAREDLOG_OFFLOAD__OFFLOAD_AFTER_S": "0.5",
        "SHAREDLOG_OFFLOAD__RETENTION_EVERY_S": "0.5",
        **SOON,
    }
    async with (
        DevCluster(folder, settings=settings) as nodes,
        sharedlog.connect(nodes.address) as connected,
    ):
        yield connected


async def archived(connected: Cluster, name: str) -> int:
    """Waits until all of the log is in the archive; its tail."""
    tail = await connected.log(name).tail()
    async for _ in ticks():
        if (await connected.describe_log(name)).archived_end >= tail:
            break
    return tail


async def ticks() -> AsyncIterator[None]:
    """Until there is nothing to wait for any more; an error if that takes too long."""
    async with asyncio.timeout(30):
        while True:
            yield
            await asyncio.sleep(0.1)


async def values(connected: Cluster, name: str, start: int = 0) -> list[bytes]:
    return [it.value async for it in connected.log(name).read(start)]


def made(first: int, end: int) -> list[bytes]:
    return [b"%d " % number + b"x" * 200 for number in range(first, end)]


async def test_a_lost_clusters_logs_are_restored_from_the_archive_alone(
    tmp_path: Path, archive: Path
) -> None:
    """Records, timestamps, the fencing token and a named producer's place; then the log goes on."""
    before: list[Record] = []
    async with cluster(tmp_path / "first", archive) as first:
        log = await first.create_log("orders")
        async with log.appender(producer="worker") as appender:
            for value in made(0, 2_000):
                await appender.append(value)
        await log.fence("token")
        await first.create_log("empty")
        await archived(first, "orders")
        before = [it async for it in log.read(0)]
        (lost,) = await first.admin.archived_clusters()
        assert lost.is_own
    shutil.rmtree(tmp_path / "first")

    async with cluster(tmp_path / "second", archive) as second:
        planned = [it async for it in second.admin.restore_archive(lost.cluster_id, dry_run=True)]
        assert [(it.new_log, it.outcome) for it in planned if it.log == "orders"] == [
            ("orders", RESTORED)
        ]
        assert await second.list_logs() == []
        done = [it async for it in second.admin.restore_archive(lost.cluster_id)]
        assert all(it.outcome == RESTORED for it in done), done
        again = [it async for it in second.admin.restore_archive(lost.cluster_id)]
        assert all(it.outcome == PRESENT for it in again), again

        await reads_and_appends_as_before(second, before)

        # Under a name that is taken nothing is restored, and the rest is.
        await second.create_log("copy/orders")
        copies = second.admin.restore_archive(lost.cluster_id, prefix="copy/")
        found = {it.new_log: it.outcome async for it in copies}
        assert found.pop("copy/orders") == FAILED
        assert set(found.values()) <= {RESTORED}


async def reads_and_appends_as_before(second: Cluster, before: list[Record]) -> None:
    """A restored log has its records, times, token and producer, and takes new records."""
    log = second.log("orders")
    assert [it async for it in log.read(0)] == before
    middle = before[1_000]
    since = next(it.offset for it in before if it.timestamp_ms >= middle.timestamp_ms)
    assert await log.find_offset(middle.timestamp_ms) == since
    # The first sequencer never wrote; its follower needs the archive, too.
    await second.admin.reconfigure("orders", reason="a move")
    with pytest.raises(sharedlog.FencingTokenMismatch):
        await log.append(b"no", fencing_token="other")
    async with log.appender(producer="worker", fencing_token="token") as appender:
        assert appender.next_sequence == 2_000
        for value in made(2_000, 2_500):
            await appender.append(value)
    assert await values(second, "orders") == made(0, 2_500)
    # The sequencer's death: the next one needs what log servers have.
    described = await second.describe_log("orders")
    assert [len(it.nodeset) for it in described.chain] == [0, 3]
    await second.admin.reconfigure("orders", reason="a move")
    async with log.appender(producer="worker", fencing_token="token") as appender:
        assert appender.next_sequence == 2_500
        await appender.append(made(2_500, 2_501)[0])
    tail = await archived(second, "orders")
    assert await values(second, "orders") == made(0, 2_501)
    await at_full_strength(second, "orders")
    assert [it async for it in second.admin.digest("orders")]
    assert not (await second.status()).problems
    assert tail > 2_500


async def test_a_fork_goes_on_by_itself_and_outlives_its_origins_purge(
    tmp_path: Path, archive: Path
) -> None:
    """Nothing is copied; a fork of a fork is one of the first, too."""
    async with cluster(tmp_path / "nodes", archive) as connected:
        log = await connected.create_log("orders")
        for first in range(0, 1_000, 100):
            await log.append_batch(made(first, first + 100))
        forked = await connected.admin.fork_log("orders", "fork", at=650)
        assert forked.at == 600, "within a batch: at its beginning"
        assert await values(connected, "fork") == made(0, 600)
        await connected.log("fork").append_batch(made(5_000, 5_100))
        await log.append_batch(made(1_000, 1_100))
        assert await values(connected, "fork") == made(0, 600) + made(5_000, 5_100)
        assert await values(connected, "orders") == made(0, 1_100)
        assert await archived(connected, "fork") == 700
        second = await connected.admin.fork_log("fork", "second")
        assert second.at == 700
        assert await values(connected, "second", 550) == made(550, 600) + made(5_000, 5_100)
        with pytest.raises(LogExists):
            await connected.admin.fork_log("orders", "second")
        with pytest.raises(sharedlog.InvalidArgument, match="1100"):
            await connected.admin.fork_log("orders", "third", at=1_101)

        await connected.set_retention("orders", Retention(local_age_s=1, total_age_s=1))
        async for _ in ticks():
            if (await connected.describe_log("orders")).start >= 1_000:
                break
        async for _ in ticks():  # the node that is asked may hear of it a moment later
            try:
                await values(connected, "orders")
            except Purged:
                break
        assert await values(connected, "fork") == made(0, 600) + made(5_000, 5_100)
        assert await values(connected, "second") == made(0, 600) + made(5_000, 5_100)


async def test_a_fork_keeps_its_token_though_all_of_it_is_purged(
    tmp_path: Path, archive: Path
) -> None:
    """Log servers had nothing of it yet: its state was in the archive alone, and goes from there.

    It is purged by its retention, and can be purged again.
    """
    async with cluster(tmp_path / "nodes", archive) as connected:
        log = await connected.create_log("orders")
        await log.append_batch(made(0, 100))
        await log.fence("token")
        await connected.admin.fork_log("orders", "fork")
        tail = await connected.log("fork").tail()
        await connected.set_retention("fork", Retention(total_age_s=1))
        async for _ in ticks():
            if (await connected.describe_log("fork")).start >= tail:
                break
        for _ in range(2):
            await connected.admin.purge("fork", before=tail)
        await connected.admin.reconfigure("fork", reason="a move")
        fork = connected.log("fork")
        with pytest.raises(sharedlog.FencingTokenMismatch):
            await fork.append(b"no", fencing_token="other")
        at = await fork.append(b"yes", fencing_token="token")
        assert [it.offset async for it in fork.read(sharedlog.EARLIEST)] == [at]
