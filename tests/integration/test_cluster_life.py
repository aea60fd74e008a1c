"""Four real nodes under load: restarted one after the other, then one is drained and removed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.command import Cli
from helpers.history_check import check_history, report
from helpers.load import Load, read_final

import sharedlog
from sharedlog.benchmark.rolling import RollingPlan, roll
from sharedlog.dev_cluster import DevCluster, module_environment
from sharedlog.settled import wait_settled
from sharedlog.v1 import cluster_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

LOG = "orders"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevCluster]:
    """For all tests of this module, which leave it whole."""
    found = DevCluster(tmp_path_factory.mktemp("life"), nodes=4)
    asyncio.run(found.start())
    try:
        yield found
    finally:
        asyncio.run(found.stop())


@pytest.fixture
def cli(cluster: DevCluster, tmp_path: Path) -> Iterator[Cli]:
    environment = module_environment() | {"SHAREDLOG_CONFIG": str(tmp_path / "config.toml")}
    found = Cli(environment, ",".join(cluster.addresses))
    yield found
    found.close()


async def test_a_rolling_restart_is_seen_by_nobody(cluster: DevCluster) -> None:
    """Node by node: SIGTERM, a new start, the wait until `status` is clean, the next node. Neither
    appenders nor followers see an error, and nothing is lost, twice or out of order."""
    async with sharedlog.connect(cluster.addresses) as client:
        before = {it.node_id: it.generation for it in (await client.status()).nodes}
        found = await roll(cluster, client, RollingPlan(logs=2, rate=100.0), restarted=3)
        after = {it.node_id: it.generation for it in (await client.status()).nodes}
    assert not found["client_errors"], found["client_errors_seen"]
    faults = ("lost", "duplicated", "reordered", "logs_followed_otherwise")
    assert {name: found[name] for name in faults} == dict.fromkeys(faults, 0)
    assert found["records"] > 100
    restarted = ["n1", "n2", "n3"]
    assert [it["node_id"] for it in found["restarts"]] == restarted
    assert {name for name in after if after[name] == before[name] + 1} == set(restarted)


async def test_a_node_is_drained_under_load_and_removed(cluster: DevCluster, cli: Cli) -> None:
    """`node remove` says what stands in the way, drains the node and waits for its end; appends and
    reads go on all the while. Afterwards `status` does not miss it, and a new start under its name
    is a further life: with the old disk without anything to do, with a new one as a new node."""
    async with sharedlog.connect(cluster.addresses) as client:
        await client.create_log(LOG, replicas=3)
        victim = (await client.describe_log(LOG)).chain[-1].nodeset[0].node_id
        load = Load(cluster.addresses, LOG)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run(), name="load")
            try:
                await _acknowledged(load)
                lives = await _remove(cluster, cli, client, victim)
                await _acknowledged(load)
            finally:
                load.stopping.set()
        final = await read_final(cluster.addresses, LOG)
        violations = check_history(load.history, final)
        assert not violations, report(violations)
        failed = [append.error for append in load.history.appends if append.error]
        assert not failed, f"{len(failed)} appends failed, e.g. {failed[0]}"
        await _comes_back(cluster, client, victim, lives)


async def _acknowledged(load: Load, count: int = 50) -> None:
    goal = load.acknowledged + count
    async with asyncio.timeout(30):
        while load.acknowledged < goal:  # noqa: ASYNC110  another process's progress
            await asyncio.sleep(0.02)


async def _remove(cluster: DevCluster, cli: Cli, client: sharedlog.Cluster, victim: str) -> int:
    refused = await asyncio.to_thread(cli, "node", "remove", victim, "--dry-run", "--json")
    assert refused.code == 3
    reasons = refused.json["reasons"]
    assert any(it.startswith(f"log {LOG}: 1 segment names its store") for it in reasons)
    assert "its process runs" in reasons[-1]
    waiting = cli.start("node", "remove", victim, "--wait", "--json")
    async with asyncio.timeout(60):
        while (node := await _node(client, victim)).state != "gone":  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    await cluster.terminate(victim)
    out, err = await asyncio.to_thread(waiting.communicate, timeout=30)
    assert waiting.returncode == 0, err
    assert b'"removed": true' in out
    assert b"to move" in err
    status = await wait_settled(client, timeout_s=30)
    assert not status.problems
    return node.generation


async def _comes_back(
    cluster: DevCluster, client: sharedlog.Cluster, victim: str, lives: int
) -> None:
    await cluster.restart(victim)
    node = await _node(client, victim)
    assert (node.generation, node.state) == (lives + 1, "gone")
    await cluster.terminate(victim)
    shutil.rmtree(cluster.nodes[victim].directory / "store")
    await cluster.restart(victim)
    node = await _node(client, victim)
    assert (node.generation, node.state) == (lives + 2, "read-write")
    await wait_settled(client, timeout_s=30)


async def _node(client: sharedlog.Cluster, name: str) -> cluster_pb2.NodeStatus:
    return next(it for it in (await client.status()).nodes if it.node_id == name)
