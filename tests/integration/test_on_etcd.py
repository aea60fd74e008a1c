"""Three nodes whose metadata lies in three members of etcd, all of them real processes."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from helpers.etcd_server import shared_etcd

import sharedlog
from sharedlog import Cluster, SharedLogError
from sharedlog.dev_cluster import DevCluster
from sharedlog.v1 import cluster_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


async def metadata_problem(client: Cluster) -> str:
    """What `status` says of the metadata store; "" if all is well."""
    found = await client.status()
    return next((it.message for it in found.problems if it.subject == "metadata store"), "")


async def until_problem(client: Cluster, *, there: bool) -> cluster_pb2.GetStatusResponse:
    async with asyncio.timeout(30):
        while bool(await metadata_problem(client)) != there:  # noqa: ASYNC110  another process's view
            await asyncio.sleep(0.1)
        return await client.status()


async def test_without_etcd_appends_and_reads_go_on_and_reconfigurations_wait(
    tmp_path: Path,
) -> None:
    """Field note 52, promise 6: etcd is on neither path. Every member is killed: what is appended
    is read, `status` says what waits; when they are back, logs are moved and made again, by nodes
    that nobody has restarted."""
    etcd = shared_etcd()
    url = etcd.url(f"test/{uuid.uuid4().hex}")
    async with (
        DevCluster(tmp_path / "cluster", metadata_url=url) as cluster,
        sharedlog.connect(cluster.addresses) as client,
    ):
        log = await client.create_log("orders", replicas=3)
        assert await log.append(b"0") == 0
        status = await client.status()
        assert status.metadata == url
        assert not await metadata_problem(client)

        etcd.kill_all()
        for number in range(1, 101):
            assert await log.append(b"%d" % number) == number
        values = [record.value async for record in log.read(start=0, end=await log.tail())]
        assert values == [b"%d" % number for number in range(101)]
        status = await until_problem(client, there=True)
        problem = await metadata_problem(client)
        assert "appends and reads go on" in problem
        assert "reconfigurations wait" in problem
        with pytest.raises(SharedLogError):
            await client.admin.reconfigure("orders", reason="test", timeout_s=1.0)
        assert await log.append(b"101") == 101

        etcd.start()
        await until_problem(client, there=False)
        ordered_by = (await client.describe_log("orders")).chain[-1].sequencer.node_id
        other = next(name for name in cluster.nodes if name != ordered_by)
        await client.admin.reconfigure("orders", sequencer=other, reason="test")
        assert await log.append(b"102") == 102
        chain = (await client.describe_log("orders")).chain
        assert chain[-1].sequencer.node_id == other
        await client.create_log("made-afterwards")


async def test_a_cluster_starts_again_from_what_etcd_has(tmp_path: Path) -> None:
    """Nodes and etcd end; both come back, and the logs are as they were."""
    etcd = shared_etcd()
    url = etcd.url(f"test/{uuid.uuid4().hex}")
    directory = tmp_path / "cluster"
    async with (
        DevCluster(directory, nodes=1, metadata_url=url) as cluster,
        sharedlog.connect(cluster.addresses) as client,
    ):
        log = await client.create_log("orders", replicas=1)
        assert await log.append(b"0") == 0
    etcd.kill_all()
    etcd.start()
    async with (
        DevCluster(directory, nodes=1, metadata_url=url) as cluster,
        sharedlog.connect(cluster.addresses) as client,
    ):
        assert cluster.processes == [cluster.nodes["n1"]]
        log = client.log("orders")
        assert await log.append(b"1") == 1
        assert [record.value async for record in log.read(start=0, end=2)] == [b"0", b"1"]
