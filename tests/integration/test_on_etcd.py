"""Three nodes whose metadata lies in three members of etcd, all of them real processes."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from helpers.etcd_server import shared_etcd
from helpers.processes import PATIENT

import sharedlog
from sharedlog import Cluster, Log, LogUnavailable, SharedLogError
from sharedlog.dev_cluster import DevCluster
from sharedlog.v1 import cluster_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


SETTINGS = PATIENT | {
    "SHAREDLOG_METADATA_ETCD__TIMEOUT_S": "1.5",
    # No failover is under way when etcd is killed: a log that is sealed then waits for it.
    "SHAREDLOG_CONTROLLER__MISSED_MAX": "20",
    "SHAREDLOG_SEQUENCER__QUORUM_TIMEOUT_S": "20",
}


async def metadata_problem(client: Cluster) -> str:
    """What `status` says of the metadata store; "" if all is well."""
    found = await client.status()
    return next((it.message for it in found.problems if it.subject == "metadata store"), "")


async def until_problem(client: Cluster, *, there: bool) -> cluster_pb2.GetStatusResponse:
    async with asyncio.timeout(30):
        while bool(await metadata_problem(client)) != there:  # noqa: ASYNC110  another process's view
            await asyncio.sleep(0.1)
        return await client.status()


async def create_log(client: Cluster) -> Log:
    """Once each node has seen that the others have opened their ports."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await client.create_log("orders", replicas=3)
            except LogUnavailable:
                await asyncio.sleep(0.1)


async def until_known(address: str) -> None:
    """Wait until this node has heard of the log: one that has not must ask the store for it."""
    async with sharedlog.connect(address) as client, asyncio.timeout(30):
        while not await client.list_logs():  # noqa: ASYNC110  another process's view
            await asyncio.sleep(0.05)


async def until_ordered_by(client: Cluster, node_id: str) -> None:
    """Wait until whichever node is asked has heard of it."""
    async with asyncio.timeout(30):
        found = ""
        while found != node_id:
            await asyncio.sleep(0.05)
            found = (await client.describe_log("orders")).chain[-1].sequencer.node_id


async def test_without_etcd_appends_and_reads_go_on_and_reconfigurations_wait(
    tmp_path: Path,
) -> None:
    """Field note 52, promise 6: etcd is on neither path. Every member is killed: what is appended
    is read, `status` says what waits; when they are back, logs are moved and made again, by nodes
    that nobody has restarted."""
    etcd = shared_etcd()
    url = etcd.url(f"test/{uuid.uuid4().hex}")
    async with (
        DevCluster(tmp_path / "cluster", metadata_url=url, settings=SETTINGS) as cluster,
        sharedlog.connect(cluster.addresses) as client,
    ):
        log = await create_log(client)
        assert await log.append(b"0") == 0
        status = await client.status()
        assert status.metadata == url
        assert not await metadata_problem(client)

        for address in cluster.addresses:
            await until_known(address)

        etcd.kill_all()
        for number in range(1, 101):
            assert await log.append(b"%d" % number) == number
        values = [record.value async for record in log.read(start=0, end=await log.tail())]
        assert values == [b"%d" % number for number in range(101)]
        async with sharedlog.connect(cluster.addresses) as newcomer:
            assert await newcomer.log("orders").append(b"101") == 101
            assert await newcomer.log("orders").tail() == 102
        status = await until_problem(client, there=True)
        problem = await metadata_problem(client)
        assert "appends and reads go on" in problem
        assert "reconfigurations wait" in problem
        ordered_by = (await client.describe_log("orders")).chain[-1].sequencer.node_id
        other = next(name for name in cluster.nodes if name != ordered_by)
        with pytest.raises(SharedLogError):
            await client.admin.reconfigure("orders", sequencer=other, reason="test", timeout_s=1.0)
        assert await log.append(b"102") == 102

        etcd.start()
        await until_problem(client, there=False)
        await client.admin.reconfigure("orders", sequencer=other, reason="test")
        assert await log.append(b"103") == 103
        await until_ordered_by(client, other)
        await client.create_log("made-afterwards")
        assert [process.node_id for process in cluster.processes] == ["n1", "n2", "n3"]
        await cluster.restart(ordered_by)
        assert await log.append(b"104") == 104
