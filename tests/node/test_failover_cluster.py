"""Nodes die, stop, sleep and start again under real load; the client sees no error.

Three real processes and the public client. Each writer appends one record after the other and notes
what was acknowledged; at the end everything is read back.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import sharedlog
from sharedlog.clock import SystemClock
from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLOCK = SystemClock()


class Writer:
    """Appends numbers to one log until told to stop."""

    def __init__(self, log: sharedlog.Log) -> None:
        self.log = log
        self.acked: list[tuple[int, int]] = []  # offset, number
        self.stop = False

    async def run(self) -> None:
        """Whatever goes wrong fails the test: a client's session rides over all of it."""
        number = 0
        while not self.stop:
            offset = await self.log.append(str(number).encode())
            self.acked.append((offset, number))
            number += 1
            await CLOCK.sleep(0.002)  # several writers share two cores with three nodes

    async def until_acked(self, count: int) -> None:
        """Wait for so many further acknowledgements."""
        wanted = len(self.acked) + count
        async with asyncio.timeout(60):
            while len(self.acked) < wanted:
                await CLOCK.sleep(0.01)

    async def check(self) -> None:
        """Every acknowledged record is there once, in order, at its offset, and nothing else is."""
        found = [(record.offset, int(record.value)) async for record in self.log.read()]
        assert found == self.acked


@asynccontextmanager
async def writing(cluster: sharedlog.Cluster, *names: str) -> AsyncIterator[list[Writer]]:
    """A writer for each log, and at the end a look at what they wrote."""
    writers = [Writer(await cluster.create_log(name)) for name in names]
    async with asyncio.TaskGroup() as tasks:
        for writer in writers:
            tasks.create_task(writer.run())
        await asyncio.gather(*(writer.until_acked(20) for writer in writers))
        yield writers
        for writer in writers:
            writer.stop = True
    for writer in writers:
        await writer.check()


async def sequencer_of(log: sharedlog.Log) -> str:
    return (await log.describe()).chain[-1].sequencer.node_id


def events(nodes: DevCluster, name: str, event: str) -> list[dict[str, object]]:
    """What a process has logged under that name, in all its lives."""
    lines = nodes.nodes[name].log_file.read_text().splitlines()
    entries = [json.loads(line) for line in lines if line.startswith("{")]
    return [entry for entry in entries if entry.get("event") == event]


@asynccontextmanager
async def cluster_of_three(folder: Path) -> AsyncIterator[tuple[DevCluster, sharedlog.Cluster]]:
    async with (
        DevCluster(folder) as nodes,
        sharedlog.connect(",".join(nodes.addresses)) as cluster,
    ):
        yield nodes, cluster


async def test_a_killed_sequencer_is_replaced(tmp_path: Path) -> None:
    """`kill -9` under load: the log goes on elsewhere, its tail can be asked for at any moment, and
    the node that starts again later takes part as if nothing had been."""
    async with cluster_of_three(tmp_path) as (nodes, cluster):
        async with writing(cluster, "orders") as (writer,):
            killed = await sequencer_of(writer.log)
            acked = len(writer.acked)
            nodes.kill(killed)
            assert await writer.log.tail() >= acked
            await writer.until_acked(50)
            assert await sequencer_of(writer.log) != killed
            await nodes.restart(killed)
            await writer.until_acked(50)
        # Each other node serves the log too, the one that was killed included.
        for address in nodes.addresses:
            async with sharedlog.connect(address) as other:
                log = other.log("orders")
                assert await log.tail() == len(writer.acked)


async def test_a_node_that_stops_hands_over(tmp_path: Path) -> None:
    """SIGTERM under load: every log is moved before the process ends, and sessions are told where
    to; a log of which nobody has appended for long is moved as well."""
    async with cluster_of_three(tmp_path) as (nodes, cluster):
        idle = [await cluster.create_log(f"idle{number}") for number in range(12)]
        async with writing(cluster, "a", "b", "c") as writers:
            stopped = await sequencer_of(writers[0].log)
            await nodes.terminate(stopped)
            for writer in writers:
                await writer.until_acked(30)
        for log in (*idle, *(writer.log for writer in writers)):
            assert await sequencer_of(log) != stopped
        (done,) = events(nodes, stopped, "handover.done")
        assert done["left"] == 0
        assert done["moved"] == len(events(nodes, stopped, "handover.moved"))
        for name in set(nodes.nodes) - {stopped}:
            assert not events(nodes, name, "failover.done"), "nobody had to replace a sequencer"
            for reported in events(nodes, name, "suspect.reported"):
                # A session that waits for its core may find its node silent; none lost its own.
                assert "silent: " in str(reported["reason"]), "nobody had to look for a sequencer"


async def test_a_rolling_restart_shows_no_error(tmp_path: Path) -> None:
    """One node after the other is stopped and started again, twice around, under load."""
    async with (
        cluster_of_three(tmp_path) as (nodes, cluster),
        writing(cluster, "a", "b") as writers,
    ):
        for _ in range(2):
            for name in list(nodes.nodes):
                await nodes.restart(name)
                for writer in writers:
                    await writer.until_acked(10)


async def test_a_paused_sequencer_is_replaced_and_wakes_harmless(tmp_path: Path) -> None:
    """Field note 16: SIGSTOP, and the log goes on elsewhere; SIGCONT, and the sleeper's session is
    told where to go, its stores meet SEALED, and nothing that it says is believed."""
    async with cluster_of_three(tmp_path) as (nodes, cluster):
        async with writing(cluster, "orders") as (writer,):
            paused = await sequencer_of(writer.log)
            nodes.send_signal(paused, signal.SIGSTOP)
            await writer.until_acked(50)
            assert await sequencer_of(writer.log) != paused
            nodes.send_signal(paused, signal.SIGCONT)
            await writer.until_acked(200)
        async with sharedlog.connect(nodes.nodes[paused].address) as sleeper:
            log = sleeper.log("orders")
            assert await log.tail() == len(writer.acked)
            assert await log.append(b"0") == len(writer.acked)


async def test_a_cluster_that_starts_again_takes_up_its_logs(tmp_path: Path) -> None:
    """All processes are killed at once and started again: every log is appended to behind what was
    acknowledged, and those that nobody asks for get a living sequencer by themselves."""
    acked: list[int] = []
    async with cluster_of_three(tmp_path) as (nodes, cluster):
        for number in range(6):
            log = await cluster.create_log(f"log{number}")
            acked.append(await log.append(b"before"))
        for name in nodes.nodes:
            nodes.kill(name)
        await asyncio.gather(*(nodes.restart(name) for name in nodes.nodes))
        for number in range(3):
            log = cluster.log(f"log{number}")
            assert await log.append(b"after") == acked[number] + 1
            assert [record.value async for record in log.read()] == [b"before", b"after"]
        async with asyncio.timeout(60):
            for number in range(3, 6):
                log = cluster.log(f"log{number}")
                while (await log.describe()).chain[-1].sequencer.generation != 2:
                    await CLOCK.sleep(0.1)
