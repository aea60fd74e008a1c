"""Five nodes in three zones: one zone goes away at once, under load, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import sharedlog
from sharedlog import Cluster, Log
from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(120)]

ZONES = {"n1": "eu.a", "n2": "eu.a", "n3": "eu.b", "n4": "eu.b", "n5": "eu.c"}
SETTINGS = {
    "SHAREDLOG_CONTROLLER__BALANCE_AFTER_S": "1",
    "SHAREDLOG_CONTROLLER__BALANCE_PAUSE_S": "1",
}


async def ticks(every_s: float) -> AsyncIterator[None]:
    """One after the other."""
    while True:
        yield
        await asyncio.sleep(every_s)


async def zones_of(log: Log) -> tuple[str, set[str]]:
    """Of who orders the log, and of its log servers."""
    segment = (await log.describe()).chain[-1]
    return ZONES[segment.sequencer.node_id], {it.location for it in segment.nodeset}


async def until_ordered_in(log: Log, zone: str) -> None:
    async with asyncio.timeout(60):
        async for _ in ticks(0.1):
            if (await zones_of(log))[0] == zone:
                return


@contextlib.asynccontextmanager
async def written(log: Log, acknowledged: dict[int, int]) -> AsyncIterator[None]:
    """Numbered records are appended meanwhile; their offsets by number. No append fails."""
    stopping = asyncio.Event()

    async def write() -> None:
        async with log.appender() as appender:
            while not stopping.is_set():
                number = len(acknowledged)
                acknowledged[number] = await (await appender.append(b"%d" % number))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(write(), name="write")
        yield
        stopping.set()


async def more(acknowledged: dict[int, int], count: int = 50) -> None:
    wanted = len(acknowledged) + count
    async with asyncio.timeout(60):
        async for _ in ticks(0.02):
            if len(acknowledged) >= wanted:
                return


async def test_a_zone_is_lost_under_load_and_nothing_else(tmp_path: Path) -> None:
    """Each append is in two zones, so every one that was acknowledged survives; the log goes on, in
    two zones, and comes home when the zone is back. No append fails."""
    acknowledged: dict[int, int] = {}
    async with (
        DevCluster(tmp_path, nodes=5, locations=ZONES, settings=SETTINGS) as nodes,
        sharedlog.connect(nodes.addresses) as cluster,
    ):
        log = await cluster.create_log("orders", spread={"zone": 2}, near="eu.a")
        assert await zones_of(log) == ("eu.a", {"eu.a", "eu.b", "eu.c"})
        async with written(log, acknowledged):
            await more(acknowledged)
            for name in ("n1", "n2"):
                nodes.kill(name)
            await more(acknowledged)
            ordered_in, held_in = await zones_of(log)
            assert ordered_in in {"eu.b", "eu.c"}
            assert {"eu.b", "eu.c"} <= held_in
            for name in ("n1", "n2"):
                await nodes.restart(name)
            await until_ordered_in(log, "eu.a")
            await more(acknowledged)
        await nothing_is_missing(cluster, acknowledged)


async def nothing_is_missing(cluster: Cluster, acknowledged: dict[int, int]) -> None:
    """Each record once, where it was acknowledged."""
    log = cluster.log("orders")
    found = [(it.offset, it.value) async for it in log.read(0, await log.tail())]
    assert found == [(offset, b"%d" % number) for number, offset in acknowledged.items()]
    assert [offset for offset, _ in found] == list(range(len(found)))


async def test_a_log_moves_to_where_its_writers_are(tmp_path: Path) -> None:
    """By a change of the log; what is set for its namespace holds for new logs."""
    zones = {"n1": "eu.a", "n2": "eu.b", "n3": "us.c"}
    async with (
        DevCluster(tmp_path, locations=zones, settings=SETTINGS) as nodes,
        sharedlog.connect(nodes.addresses) as cluster,
    ):
        await cluster.namespaces.set("us/", near="us")
        made = await (await cluster.create_log("us/orders")).describe()
        assert made.near == "us"
        assert made.chain[-1].sequencer.node_id == "n3"
        assert ("near", "us", "namespace:us/") in [
            (it.name, it.value, it.source) for it in made.created_with
        ]
        await cluster.admin.reconfigure("us/orders", near="eu.b")
        moved = await cluster.log("us/orders").describe()
        assert (moved.near, moved.chain[-1].sequencer.node_id) == ("eu.b", "n2")
        with pytest.raises(sharedlog.errors.InvalidArgument, match="no location"):
            await cluster.create_log("x", near="eu..b")
