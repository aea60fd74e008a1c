"""Conditions, fences and named producers over real processes that die: the public client's view."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import sharedlog
from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


async def sequencer_of(log: sharedlog.Log) -> str:
    return (await log.describe()).chain[-1].sequencer.node_id


async def test_tokens_and_producers_survive_their_sequencer(tmp_path: Path) -> None:
    """kill -9 of whoever ordered the log: the next one knows the token, and who wrote what."""
    async with (
        DevCluster(tmp_path) as nodes,
        sharedlog.connect(",".join(nodes.addresses)) as cluster,
    ):
        log = await cluster.create_log("orders")
        assert await log.fence("leader 1") == 0
        async with log.appender(producer="importer-7", fencing_token="leader 1") as appender:
            assert appender.next_sequence == 0
            await appender.append_many([b"%d" % number for number in range(100)])
            await appender.flush()
            nodes.kill(await sequencer_of(log))
            await appender.append_many([b"%d" % number for number in range(100, 200)])
            await appender.flush()
            # Another life: the first one is shut out, and its late append is not in the log.
            async with log.appender(producer="importer-7", fencing_token="leader 1") as second:
                assert second.next_sequence == 200
                with pytest.raises(sharedlog.ProducerFenced):
                    await (await appender.append(b"late"))
                assert await log.fence("leader 2", "leader 1") > 200
                with pytest.raises(sharedlog.FencingTokenMismatch) as fenced:
                    await (await second.append(b"of the old leader"))
                assert fenced.value.current == "leader 2"
        values = [record.value async for record in log.read() if record.value.isdigit()]
        assert values == [b"%d" % number for number in range(200)]


async def test_of_writers_that_race_for_an_offset_one_wins(tmp_path: Path) -> None:
    """Optimistic concurrency: who lost is told the tail, and may look and try again."""
    async with (
        DevCluster(tmp_path) as nodes,
        sharedlog.connect(",".join(nodes.addresses)) as cluster,
    ):
        log = await cluster.create_log("account")
        won: list[int] = []
        behind: list[int] = []

        async def write(name: int) -> None:
            async with sharedlog.connect(nodes.addresses[name]) as own:
                mine = own.log("account")
                at = int(await mine.tail())
                while len(won) < 60:
                    try:
                        won.append(await mine.append(b"%d" % name, match_offset=at))
                        at += 1
                    except sharedlog.OffsetMismatch as lost:
                        behind.append(lost.tail - at)
                        at = lost.tail

        async with asyncio.TaskGroup() as tasks:
            for name in range(3):
                tasks.create_task(write(name))
        assert sorted(won) == list(range(len(won)))
        assert min(behind, default=1) > 0, "who loses is told of a tail that is beyond its own"
        assert await log.tail() == len(won)
