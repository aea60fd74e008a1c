"""How long appends stop when a zone goes away, with five nodes in three zones.

Each of some logs has an appender that never pauses, or one at a steady rate, and a follower; every
append is in two zones before it is acknowledged (`spread` zone:2). Round by round all nodes of a
zone are killed at the same moment: that of the first log's sequencer. They are started again once
appends go on, and the next round begins when the cluster is settled. The longest time between two
acknowledgements that any appender saw is the round's *gap*. At the end each log is read and
compared with what was acknowledged and with what its follower was given.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import sharedlog
from sharedlog.benchmark.report import describe_machine
from sharedlog.benchmark.rolling import (
    SETTLE_MAX_S,
    LogLoad,
    Say,
    compare,
    longest_gap_ms,
    warm_up,
)
from sharedlog.clock import SystemClock
from sharedlog.dev_cluster import DevCluster
from sharedlog.settled import wait_settled

ZONES: Final = {"n1": "eu.a", "n2": "eu.a", "n3": "eu.b", "n4": "eu.b", "n5": "eu.c"}

_LOOK_EVERY_S: Final = 0.2
_ON_ITS_WAY_S: Final = 0.1
_AWAY_S: Final = 2.0
"""The zone stays away for so long once appends go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ZonePlan:
    """What is killed how often, under what load."""

    rounds: int = 5
    logs: int = 3
    rate: float = 200.0  # records a second and log; 0: as many as go
    directory: Path | None = None
    metadata: str = ""


async def run_zone(plan: ZonePlan, say: Say) -> dict[str, Any]:
    """Run it all; the result is what `--json` prints.

    Raises:
        DeadlineExceeded: the cluster did not settle between two rounds.
        DevClusterError: a node did not start.
    """
    clock = SystemClock()
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(
            TemporaryDirectory(prefix="sharedlog-bench-", dir=plan.directory)
        )
        dev = await stack.enter_async_context(
            DevCluster(
                Path(directory), nodes=len(ZONES), locations=ZONES, metadata_url=plan.metadata
            )
        )
        cluster = await stack.enter_async_context(sharedlog.connect(dev.addresses))
        loads = [
            LogLoad(
                await cluster.create_log(f"zone-{number}", spread={"zone": 2}), clock, plan.rate
            )
            for number in range(plan.logs)
        ]
        rounds = []
        async with asyncio.TaskGroup() as tasks:
            for load in loads:
                tasks.create_task(load.run(), name="zone-load")
            try:
                await warm_up(cluster, loads)
                for _ in range(plan.rounds):
                    done = await _round(dev, cluster, loads)
                    say("zone {zone}: longest gap {gap_ms} ms".format(**done))
                    rounds.append(done)
            finally:
                for load in loads:
                    load.stopping = True
        compared = await compare(loads)
    gaps = [it["gap_ms"] for it in rounds]
    return {
        "nodes": len(ZONES),
        "zones": len(set(ZONES.values())),
        "logs": plan.logs,
        "rate_per_log": plan.rate,
        "rounds": rounds,
        "gap_ms": {"p50": round(median(gaps), 1), "max": max(gaps)},
        **compared,
        "machine": describe_machine(),
    }


async def _spread_again(load: LogLoad) -> None:
    """Wait until the log's copies lie in all zones, so that it can lose any of them."""
    async with asyncio.timeout(SETTLE_MAX_S):
        while True:
            open_segment = (await load.log.describe()).chain[-1]
            if {it.location for it in open_segment.nodeset} == set(ZONES.values()):
                return
            await load.clock.sleep(_LOOK_EVERY_S)


async def _round(
    dev: DevCluster, cluster: sharedlog.Cluster, loads: list[LogLoad]
) -> dict[str, Any]:
    """Kill the zone of the first log's sequencer, and bring it back once appends go on."""
    clock = loads[0].clock
    described = await loads[0].log.describe()
    zone = ZONES[described.chain[-1].sequencer.node_id]
    killed = [name for name, at in ZONES.items() if at == zone]
    start_s = clock.monotonic_s()
    for name in killed:
        dev.kill(name)
    # What was acknowledged just before may still be on its way here.
    await clock.sleep(_ON_ITS_WAY_S)
    for load in loads:
        await load.goes_on()
    await clock.sleep(_AWAY_S)
    end_s = clock.monotonic_s()
    for name in killed:
        await dev.restart(name)
    await wait_settled(cluster, timeout_s=SETTLE_MAX_S)
    for load in loads:
        await _spread_again(load)
    back_s = clock.monotonic_s()
    return {
        "zone": zone,
        "killed": killed,
        "gap_ms": max(longest_gap_ms(load.ack_times_s, start_s, end_s) for load in loads),
        "follow_gap_ms": max(longest_gap_ms(load.follow_times_s, start_s, end_s) for load in loads),
        "return_gap_ms": max(longest_gap_ms(load.ack_times_s, end_s, back_s) for load in loads),
        "settled_s": round(back_s - start_s, 3),
    }
