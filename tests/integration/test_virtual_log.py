"""Real processes under kill -9, SIGSTOP and partitions, all while reconfigurations run.

The histories are judged by the checker of the simulator. Partitions need network namespaces: as
root, with Debian's iproute2 (`make test-deps`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
from helpers.history_check import check_history, report
from helpers.load import Load, read_final

import sharedlog
from sharedlog import SharedLogError
from sharedlog.dev_cluster import METADATA, DevCluster
from sharedlog.dev_network import DevNetwork, why_impossible

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LOG = "orders"
Disturb = Callable[["Stage", str], Awaitable[None]]


class Stage:
    """A cluster under load."""

    def __init__(self, cluster: DevCluster, network: DevNetwork | None, random: Random) -> None:
        self.cluster = cluster
        self.network = network
        self.random = random
        self.load = Load(cluster.addresses, LOG)

    async def some_acknowledged(self, count: int = 50, *, within_s: float = 30.0) -> None:
        """Wait until so many more records are acknowledged: the log goes on."""
        goal = self.load.acknowledged + count
        async with asyncio.timeout(within_s):
            while self.load.acknowledged < goal:  # noqa: ASYNC110  another process's progress
                await asyncio.sleep(0.02)

    async def sequencer(self) -> str:
        """The node that orders the log now."""
        async with sharedlog.connect(self.cluster.addresses) as client:
            return (await client.describe_log(LOG)).chain[-1].sequencer.node_id


@asynccontextmanager
async def stage(
    directory: Path, *, nodes: int = 3, network: DevNetwork | None = None, replicas: int = 3
) -> AsyncIterator[Stage]:
    """Start a cluster and its load; at the end stop the load and judge the history."""
    async with DevCluster(directory / "cluster", nodes=nodes, network=network) as cluster:
        found = Stage(cluster, network, Random(nodes))
        async with sharedlog.connect(cluster.addresses) as client:
            await client.create_log(LOG, replicas=replicas)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(found.load.run(), name="load")
            try:
                await found.some_acknowledged()
                yield found
                await found.some_acknowledged()
            finally:
                found.load.stopping.set()
        final = await read_final(cluster.addresses, LOG)
    history = found.load.history
    violations = check_history(history, final)
    assert not violations, report(violations)
    failed = [append.error for append in history.appends if append.error]
    assert not failed, f"{len(failed)} appends failed, e.g. {failed[0]}"


async def kill(on: Stage, node_id: str) -> None:
    """kill -9, and a new start once the log has gone on."""
    on.cluster.kill(node_id)
    await on.some_acknowledged()
    await on.cluster.restart(node_id)


async def pause(on: Stage, node_id: str) -> None:
    """SIGSTOP, and SIGCONT once the log has gone on without it."""
    on.cluster.send_signal(node_id, signal.SIGSTOP)
    try:
        await on.some_acknowledged()
    finally:
        on.cluster.send_signal(node_id, signal.SIGCONT)


async def shut_down(on: Stage, node_id: str) -> None:
    """SIGTERM: the node hands its logs over; then a new start."""
    await on.cluster.terminate(node_id)
    await on.some_acknowledged()
    await on.cluster.restart(node_id)


async def cut_off(on: Stage, node_id: str) -> None:
    """Nothing reaches the node and nothing leaves it, until the log has gone on without it."""
    assert on.network is not None
    on.network.isolate(node_id)
    try:
        await on.some_acknowledged()
    finally:
        on.network.mend()


async def cut_from_peers(on: Stage, node_id: str) -> None:
    """The node's own messages no longer reach the other nodes; theirs reach it."""
    assert on.network is not None
    others = [name for name in on.cluster.nodes if name != node_id]
    on.network.cut([node_id], others, both_ways=on.random.random() < 0.5)
    try:
        await on.some_acknowledged()
    finally:
        on.network.mend()


async def reconfigure_for_ever(on: Stage, nodes: int) -> None:
    """Change the sequencer, and with five nodes the copies too, again and again."""
    async with sharedlog.connect(on.cluster.addresses) as client:
        while True:
            await asyncio.sleep(on.random.uniform(0.1, 0.6))
            sequencer = on.random.choice(["", *on.cluster.nodes])
            replicas = on.random.choice([3, 5]) if nodes == 5 else 0
            with contextlib.suppress(SharedLogError):  # a node that is down can't be chosen
                await client.admin.reconfigure(
                    LOG, sequencer=sequencer, replicas=replicas, reason="test", timeout_s=5.0
                )


@pytest.mark.parametrize("disturb", [kill, pause, shut_down], ids=lambda it: it.__name__)
async def test_the_log_goes_on_without_its_sequencer(disturb: Disturb, tmp_path: Path) -> None:
    """Failover without a person: no append fails, and the history is linearizable.

    Field notes 9, 16: a paused sequencer that wakes acknowledges nothing that is not in the log.
    """
    async with stage(tmp_path) as on:
        for _ in range(3):
            await disturb(on, await on.sequencer())
            await on.some_acknowledged()


@pytest.mark.parametrize("nodes", [3, 5])
async def test_kills_and_pauses_while_reconfigurations_run(nodes: int, tmp_path: Path) -> None:
    """Whichever node is struck, and whoever reconfigures meanwhile, nothing is lost."""
    async with stage(tmp_path, nodes=nodes) as on, asyncio.TaskGroup() as tasks:
        changing = tasks.create_task(reconfigure_for_ever(on, nodes), name="reconfigure")
        for _ in range(6):
            disturb = on.random.choice([kill, pause, shut_down])
            await disturb(on, on.random.choice(list(on.cluster.nodes)))
            await on.some_acknowledged()
        changing.cancel()


@pytest.mark.parametrize("nodes", [3, 5])
async def test_partitions_while_reconfigurations_run(nodes: int, tmp_path: Path) -> None:
    """A node that is cut off, or heard but deaf, is gone round; when it is back it does no harm."""
    reason = why_impossible()
    if reason:
        pytest.skip(f"partitions need a network of their own: {reason}")
    names = [METADATA, *(f"n{number + 1}" for number in range(nodes))]
    with DevNetwork(names) as network:
        on_stage = stage(tmp_path, nodes=nodes, network=network)
        async with on_stage as on, asyncio.TaskGroup() as tasks:
            changing = tasks.create_task(reconfigure_for_ever(on, nodes), name="reconfigure")
            for _ in range(5):
                disturb = on.random.choice([cut_off, cut_from_peers, kill])
                await disturb(on, on.random.choice(list(on.cluster.nodes)))
                await on.some_acknowledged()
            changing.cancel()
