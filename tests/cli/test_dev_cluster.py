"""`DevCluster`: processes that start, die, come back and never stay."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest
from helpers.command import is_running

from sharedlog.dev_cluster import METADATA, DevCluster, DevClusterError

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


async def test_a_killed_node_comes_back_at_its_address(tmp_path: Path) -> None:
    """kill waits for the end, restart for readiness; the address stays, the pid does not."""
    async with DevCluster(tmp_path, nodes=2) as cluster:
        node = cluster.nodes["n2"]
        address, pid = node.address, node.pid
        assert pid is not None
        cluster.kill("n2")
        assert node.pid is None
        assert not is_running(pid)
        cluster.kill("n2")  # once more is no harm
        await cluster.restart("n2")
        assert node.pid not in (None, pid)
        assert cluster.nodes["n2"].address == address
        assert cluster.take_died() == {}  # it did not die by itself
        _, writer = await asyncio.open_connection(*address.split(":"))
        writer.close()
        await writer.wait_closed()


async def test_the_metadata_process_is_killed_and_restarted_as_a_node_is(tmp_path: Path) -> None:
    """It has a name, an address and a life of its own."""
    async with DevCluster(tmp_path, nodes=1) as cluster:
        pid = cluster.metadata.pid
        cluster.kill(METADATA)
        assert cluster.metadata.pid is None
        await cluster.restart(METADATA)
        assert cluster.metadata.pid not in (None, pid)


async def test_a_process_that_dies_by_itself_is_told_once(tmp_path: Path) -> None:
    """take_died names it with its code; stop does not stumble over it."""
    async with DevCluster(tmp_path, nodes=1) as cluster:
        pid = cluster.nodes["n1"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        died: dict[str, int] = {}
        async with asyncio.timeout(60):
            while not died:
                died = cluster.take_died()
                await asyncio.sleep(0.01)
        assert died == {"n1": -9}
        assert cluster.take_died() == {}
        assert cluster.nodes["n1"].pid is None


async def test_restart_of_a_running_node_stops_it_in_good_order(tmp_path: Path) -> None:
    """SIGTERM first: its log says that it stopped."""
    async with DevCluster(tmp_path, nodes=1) as cluster:
        await cluster.restart("n1")
        log = cluster.nodes["n1"].log_file.read_text()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events.count("node.ready") == 2
    assert "node.stopped" in events[: events.index("node.ready", events.index("node.ready") + 1)]


async def test_a_setting_that_can_not_be_ends_the_start_with_the_nodes_own_reason(
    tmp_path: Path,
) -> None:
    """One line with the reason; whatever had started is gone, and the folder is free again."""
    settings = {"SHAREDLOG_REPLICAS": "99"}
    cluster = DevCluster(tmp_path, nodes=2, settings=settings)
    with pytest.raises(DevClusterError, match=r"n\d ended at its start: .*replicas is 99"):
        await cluster.start()
    assert cluster.metadata.pid is None
    assert all(node.pid is None for node in cluster.nodes.values())
    async with DevCluster(tmp_path, nodes=1):
        pass


async def test_two_clusters_live_side_by_side(tmp_path: Path) -> None:
    """Free ports are free; a folder in use is refused."""
    async with DevCluster(tmp_path / "a", nodes=1) as one:
        async with DevCluster(tmp_path / "b", nodes=1) as two:
            assert one.address != two.address
        with pytest.raises(DevClusterError, match="in use by another development cluster"):
            await DevCluster(tmp_path / "a", nodes=1).start()
        pid = one.nodes["n1"].pid
        assert pid is not None
        assert is_running(pid)


async def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    """Cancelled at any moment of its start, it ends every process that it began."""
    for delay_s in (0.05, 0.4, 0.7):
        cluster = DevCluster(tmp_path, nodes=1)
        starting = asyncio.create_task(cluster.start())
        await asyncio.wait({starting}, timeout=delay_s)
        starting.cancel()
        await asyncio.wait({starting})
        processes = [cluster.metadata, *cluster.nodes.values()]
        if not starting.cancelled():
            await cluster.stop()
        assert all(process.pid is None for process in processes)


def test_a_number_of_nodes_that_can_not_be_is_refused(tmp_path: Path) -> None:
    """Before anything is touched."""
    for nodes in (0, 51):
        with pytest.raises(DevClusterError, match="from 1 to 50"):
            DevCluster(tmp_path / "x", nodes=nodes)
    assert list(tmp_path.iterdir()) == []
