"""A log that rests gets back its copies as one that is appended to does: whole simulated clusters.

Field note 31: a node was away while a segment was made and written. Nobody appends any more when it
is back, so nothing but the cluster's own care can bring the log to it.
"""

from __future__ import annotations

import asyncio

import pytest
from helpers.history_disks import check_strength
from helpers.sim import SimClock, World, run_virtual
from helpers.sim.cluster import ClusterConfig, SimCluster, open_cluster
from helpers.sim.final_disks import segments_of
from helpers.sim.nemesis import Budget
from helpers.sim.workload import SimClient, open_client

from node.controller.config import ControllerConfig

LOG = "orders"
WITHIN_S = 60.0
CLOCK = SimClock()


def _lacking(cluster: SimCluster, tail: int) -> list[str]:
    budget = Budget(cluster, [LOG], 0.0)
    return [it.message for it in check_strength(segments_of(cluster, budget, LOG), tail)]


async def _rests(cluster: SimCluster, client: SimClient, away: str, *, rolls: bool) -> None:
    """The log is written while a node is away, and never again; then that node is back."""
    await client.cluster.create_log(LOG)
    await client.log.append(b"before")
    await cluster.nodes[away].crash()
    if rolls:
        await client.cluster.admin.reconfigure(LOG)
    tail = [await client.log.append(b"while one is away") for _ in range(5)][-1] + 1
    await CLOCK.sleep(5)
    assert _lacking(cluster, tail)
    await cluster.nodes[away].start()
    async with asyncio.timeout(WITHIN_S):
        while _lacking(cluster, tail):
            await CLOCK.sleep(1)


@pytest.mark.parametrize("away", ["n1", "n2", "n3"])
@pytest.mark.parametrize("rolls", [False, True], ids=["same segment", "new segment"])
def test_who_was_away_is_given_a_log_that_rests(away: str, *, rolls: bool) -> None:
    """Whether it knew the segment before or never heard of it, and whoever orders the log."""

    async def main() -> None:
        world = World(1)
        controller = ControllerConfig(backfill_every_s=2.0)
        config = ClusterConfig(node={"controller": controller})
        async with (
            open_cluster(world, config=config) as cluster,
            open_client(world, cluster, "c1", LOG) as client,
        ):
            await _rests(cluster, client, away, rolls=rolls)

    run_virtual(main)
