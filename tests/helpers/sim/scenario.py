"""A scenario: three nodes, a client that appends and reads, faults meanwhile, and what must hold.

Runnable as `python -m helpers.sim.scenario SEED`, which prints the trace's digest: a run in another
process has other hashes of strings and other addresses of objects, and must not care.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from helpers.sim.cluster import SimCluster, SimNode, open_cluster
from helpers.sim.loop import run_virtual
from helpers.sim.world import SimClock, Trace, World

import sharedlog
from sharedlog.batch import decode_placed
from sharedlog.errors import AppendIndefinite, DeadlineExceeded, SharedLogError
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.log import Log

LOG = "orders"
CLIENT = "client"


@dataclass(slots=True)
class Outcome:
    """What a run did, for the test to judge."""

    trace: Trace
    acknowledged: dict[int, bytes] = field(default_factory=dict)  # offset → value
    indefinite: int = 0
    refused: list[bytes] = field(default_factory=list)  # definite failures
    read: list[tuple[int, bytes]] = field(default_factory=list)
    followed: list[tuple[int, bytes]] = field(default_factory=list)
    tail: int = 0
    copies: dict[int, int] = field(default_factory=dict)  # offset → disks that hold it


Nemesis = Callable[[World, SimCluster, Log], Coroutine[Any, Any, None]]


async def crash_one(world: World, cluster: SimCluster, log: Log) -> None:
    """Crash a log server that does not order the log, and start it again."""
    draw = world.random("nemesis")
    victim = draw.choice(_others(cluster, await _sequencer_of(log)))
    await asyncio.sleep(draw.uniform(0.02, 0.2))
    await victim.crash(silent=draw.random() < 0.3)
    await asyncio.sleep(draw.uniform(0.05, 0.4))
    await victim.start()


async def trouble(world: World, cluster: SimCluster, log: Log) -> None:
    """Faults in a row, some two at once: a write quorum may be out of reach for a while."""
    draw = world.random("nemesis")
    sequencer = await _sequencer_of(log)
    others = _others(cluster, sequencer)
    network = cluster.network

    async def crash(victim: SimNode) -> None:
        if not victim.up:
            return
        await victim.crash(silent=draw.random() < 0.3)
        await asyncio.sleep(draw.uniform(0.05, 1.0))
        await victim.start()

    async def cut(victim: SimNode) -> None:
        both = draw.random() < 0.5
        source, target = draw.choice([(sequencer, victim.node_id), (victim.node_id, sequencer)])
        network.cut(source, target, both_ways=both)
        await asyncio.sleep(draw.choice([0.1, 1.0, 20.0]))
        network.mend(source, target)

    async def break_connections(victim: SimNode) -> None:
        network.break_connections(sequencer, str(victim.node_id))

    async def break_client(victim: SimNode) -> None:
        network.break_connections(sequencer, CLIENT)

    async def metadata_outage(victim: SimNode) -> None:
        if victim.up:  # a node that starts meanwhile would fail, as it should
            cluster.metadata.up = False
            await asyncio.sleep(draw.uniform(0.1, 2.0))
            cluster.metadata.up = True

    faults = [crash, crash, cut, cut, break_connections, break_client]
    for _ in range(3):
        await asyncio.sleep(draw.uniform(0.0, 0.3))
        async with asyncio.TaskGroup() as tasks:
            for victim in draw.sample(others, k=draw.randint(1, len(others))):
                tasks.create_task(draw.choice(faults)(victim), name="fault")
    await metadata_outage(others[0])


async def append_and_read(
    world: World, *, nemesis: Nemesis = crash_one, appends: int = 60, writers: int = 3
) -> Outcome:
    """Writers append one record at a time while the nemesis does its worst; then read all back."""
    outcome = Outcome(world.trace)
    async with open_cluster(world) as cluster:
        transport = cluster.network.transport(CLIENT)
        connected = sharedlog.connect(
            [node.address for node in cluster.nodes.values()],
            transport=transport,
            clock=SimClock(),
            rng=world.random("client"),
        )
        async with connected as client:
            log = await client.create_log(LOG, replicas=3, write_quorum=2)
            async with asyncio.TaskGroup() as tasks:
                following = tasks.create_task(_follow(log, outcome), name="follower")
                async with asyncio.TaskGroup() as writing:
                    for writer in range(writers):
                        run = _write(world, log, outcome, writer, appends // writers)
                        writing.create_task(run, name=f"writer {writer}")
                    writing.create_task(nemesis(world, cluster, log), name="nemesis")
                outcome.tail = await _tail_at_last(log)
                async for record in log.read(start=0):
                    outcome.read.append((record.offset, record.value))
                await _until(lambda: len(outcome.followed) >= outcome.tail)
                following.cancel()
            outcome.copies = await _count_copies(cluster, log)
        await transport.close()
    return outcome


async def _write(world: World, log: Log, outcome: Outcome, writer: int, count: int) -> None:
    draw = world.random(f"writer {writer}")
    for number in range(count):
        value = f"{writer}/{number}".encode()
        try:
            offset = await log.append(value)
        except AppendIndefinite:
            outcome.indefinite += 1
        except SharedLogError as error:  # definite, says errors.py: the test holds it to that
            outcome.refused.append(value)
            world.trace.add(f"refused {value.decode()} {type(error).__name__} {error}")
        else:
            assert offset not in outcome.acknowledged, f"offset {offset} was given twice"
            outcome.acknowledged[offset] = value
            world.trace.add(f"acknowledged {offset} {value.decode()}")
        await asyncio.sleep(draw.uniform(0, 0.05))


async def _follow(log: Log, outcome: Outcome) -> None:
    async for record in log.read(start=0, follow=True):
        outcome.followed.append((record.offset, record.value))


async def _tail_at_last(log: Log) -> int:
    """The tail; a peer that lost its power is given up by keepalive only, after 15 s."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await log.tail()
            except DeadlineExceeded:
                continue


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  virtual time: polling costs nothing
            await asyncio.sleep(0.01)


async def _sequencer_of(log: Log) -> str:
    return (await log.describe()).chain[-1].sequencer.node_id


def _others(cluster: SimCluster, sequencer: str) -> list[SimNode]:
    return [node for name, node in cluster.nodes.items() if name != sequencer]


async def _count_copies(cluster: SimCluster, log: Log) -> dict[int, int]:
    """Of each offset, the disks that hold it and whose copy decodes."""
    description = await log.describe()
    loglet = LogletId(LogId(description.log_id), description.chain[-1].index)
    copies: dict[int, int] = {}
    for node in cluster.nodes.values():
        for batch in node.disk.read(loglet, Offset(0), Offset(1 << 62)):
            for record in decode_placed(batch.placed):
                copies[record.offset] = copies.get(record.offset, 0) + 1
    return copies


def run(seed: int, nemesis: Nemesis = trouble) -> Outcome:
    """One run under virtual time."""
    world = World(seed)
    return run_virtual(lambda: append_and_read(world, nemesis=nemesis), limit_s=600)


if __name__ == "__main__":
    print(run(int(sys.argv[1])).trace.digest())  # noqa: T201  what it is for
