"""What a node tells of its archive, in the status and in /metrics; and how it does without one."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

import sharedlog
from node.archive.troubles import Troubles
from node.controller.work import WorkBoard
from sharedlog.dev_cluster import DevCluster
from sharedlog.ids import LogId, NodeId
from sharedlog.retention import Retention

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

VALUE = b"x" * 1_000


async def until(true: Callable[[], Awaitable[bool]], deadline_s: float = 100) -> None:
    async with asyncio.timeout(deadline_s):
        async for _ in ticks():
            if await true():
                return


async def ticks() -> AsyncIterator[None]:
    """One after the other."""
    while True:
        yield
        await asyncio.sleep(0.1)


def scraped(nodes: DevCluster, name: str) -> float:
    """Sum of a metric over the nodes."""
    total = 0.0
    for node in nodes.nodes.values():
        with urllib.request.urlopen(f"http://{node.http_address}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines()
        total += sum(float(it.split()[-1]) for it in lines if it.startswith(name + " "))
    return total


async def test_trouble_with_the_archive_is_in_the_status_until_it_is_over(tmp_path: Path) -> None:
    """And is counted; appends go on meanwhile, and all is archived then."""
    archive = tmp_path / "archive"
    archive.mkdir()
    settings = {
        "SHAREDLOG_ARCHIVE__URL": f"file://{archive}",
        "SHAREDLOG_OFFLOAD__OFFLOAD_AFTER_S": "0.5",
    }
    async with (
        DevCluster(tmp_path / "cluster", settings=settings) as nodes,
        sharedlog.connect(nodes.address) as cluster,
    ):
        log = await cluster.create_log("orders")
        await log.append(VALUE)

        async def all_archived() -> bool:
            description = await log.describe()
            return description.archived_end == await log.tail()

        async def told() -> bool:
            problems = (await cluster.status()).problems
            return any(
                it.subject == "log orders" and it.message.startswith("archive waits: ")
                for it in problems
            )

        async def well() -> bool:
            return not (await cluster.status()).problems

        async def nothing_waits() -> bool:
            return scraped(nodes, "sharedlog_archive_waiting_bytes") == 0

        await until(all_archived)
        assert scraped(nodes, "sharedlog_archive_objects_total") == 1
        assert scraped(nodes, "sharedlog_archive_written_records_total") == 1
        archive.rename(tmp_path / "away")
        archive.write_text("no folder")
        await log.append(VALUE)
        await until(told)
        assert scraped(nodes, "sharedlog_archive_failures_total") >= 1
        assert scraped(nodes, "sharedlog_archive_troubled_logs") == 1
        assert scraped(nodes, "sharedlog_archive_waiting_bytes") > 0
        archive.unlink()
        (tmp_path / "away").rename(archive)
        await until(all_archived)
        await until(well)
        assert scraped(nodes, "sharedlog_archive_troubled_logs") == 0
        await until(nothing_waits)


async def test_total_age_holds_without_an_archive(tmp_path: Path) -> None:
    """And nothing else is dropped: local limits have nowhere to put it."""
    settings = {"SHAREDLOG_OFFLOAD__RETENTION_EVERY_S": "0.1"}
    async with (
        DevCluster(tmp_path / "cluster", settings=settings) as nodes,
        sharedlog.connect(nodes.address) as cluster,
    ):
        kept = await cluster.create_log("kept", retention=Retention(local_age_s=1, local_bytes=1))
        aged = await cluster.create_log("aged", retention=Retention(total_age_s=2))
        for log in (kept, aged):
            await log.append_batch([VALUE] * 10)

        async def purged() -> bool:
            return (await aged.describe()).start == 10

        await until(purged)
        with pytest.raises(sharedlog.errors.Purged):
            [it async for it in aged.read(0)]
        assert await aged.append(b"next") == 10
        assert len([it async for it in kept.read(0)]) == 10
        assert (await kept.describe()).trimmed == 0


def test_one_line_for_all_logs_of_a_node() -> None:
    """The oldest trouble is told, with the number of the others; nothing once all are well."""
    board = WorkBoard(NodeId("n1"))
    troubles = Troubles(board)

    def shown() -> list[tuple[str, str]]:
        return [(it.subject, it.message) for it in board.shown()]

    troubles.remove(LogId(1))
    assert shown() == []
    troubles.add(LogId(1), "a", "no answer")
    assert shown() == [("log a", "waits: no answer")]
    troubles.add(LogId(2), "b", "denied")
    troubles.add(LogId(1), "a", "still none")
    assert shown() == [("log a and 1 other", "waits: still none")]
    troubles.add(LogId(3), "c", "denied")
    assert shown() == [("log a and 2 others", "waits: still none")]
    troubles.remove(LogId(1))
    assert shown() == [("log b and 1 other", "waits: denied")]
    troubles.remove(LogId(2))
    troubles.remove(LogId(3))
    assert (shown(), len(troubles)) == ([], 0)
