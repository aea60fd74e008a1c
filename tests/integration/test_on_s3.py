"""Three nodes whose metadata lies in a bucket, all of them real processes."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest
from helpers.processes import PATIENT
from helpers.s3_proxy import S3Proxy, status
from helpers.s3_server import BUCKET, shared_s3

import sharedlog
from sharedlog import Cluster, SharedLogError
from sharedlog.dev_cluster import DevCluster, DevClusterError

UNHURRIED = PATIENT | {
    "SHAREDLOG_METADATA_S3__TIMEOUT_S": "30",
    "SHAREDLOG_METADATA_S3__CONNECT_TIMEOUT_S": "20",
    "SHAREDLOG_METADATA_S3__READ_TIMEOUT_S": "20",
}
"""The server is in Python, and shares two cores with the nodes."""

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


async def metadata_problem(client: Cluster) -> str:
    """What `status` says of the metadata store; "" if all is well."""
    found = await client.status()
    return next((it.message for it in found.problems if it.subject == "metadata store"), "")


async def until_problem(client: Cluster, *, there: bool) -> None:
    async with asyncio.timeout(60):
        while bool(await metadata_problem(client)) != there:  # noqa: ASYNC110  another process's view
            await asyncio.sleep(0.1)


async def test_without_s3_appends_and_reads_go_on_and_reconfigurations_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field note 52, promise 6: S3 is on neither path. It denies everything, as when credentials
    have run out; when it is back, logs are moved and made again, by nodes that nobody restarted."""
    server = shared_s3()
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/cluster/{uuid.uuid4().hex}"
    async with S3Proxy(server.url) as proxy:
        settings = UNHURRIED | {"SHAREDLOG_METADATA_S3__ENDPOINT": proxy.url}
        async with (
            DevCluster(
                tmp_path / "cluster", nodes=2, metadata_url=url, settings=settings
            ) as cluster,
            sharedlog.connect(cluster.addresses) as client,
        ):
            log = await client.create_log("orders", replicas=2)
            assert await log.append(b"0") == 0
            assert (await client.status()).metadata == url
            assert not await metadata_problem(client)

            proxy.always(status(403, "ExpiredToken"))
            for number in range(1, 51):
                assert await log.append(b"%d" % number) == number
            values = [record.value async for record in log.read(start=0, end=await log.tail())]
            assert values == [b"%d" % number for number in range(51)]
            await until_problem(client, there=True)
            problem = await metadata_problem(client)
            assert "appends and reads go on" in problem
            with pytest.raises(SharedLogError):
                await client.admin.reconfigure("orders", reason="test", timeout_s=1.0)
            assert await log.append(b"51") == 51

            proxy.always(None)
            await until_problem(client, there=False)
            ordered_by = (await client.describe_log("orders")).chain[-1].sequencer.node_id
            other = next(name for name in cluster.nodes if name != ordered_by)
            await client.admin.reconfigure("orders", sequencer=other, reason="test")
            assert await log.append(b"52") == 52
            chain = (await client.describe_log("orders")).chain
            assert chain[-1].sequencer.node_id == other
            await client.create_log("made-afterwards")


async def test_a_node_refuses_a_store_that_ignores_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends at once, and says why in one line."""
    server = shared_s3()
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{BUCKET}/cluster/{uuid.uuid4().hex}"
    async with S3Proxy(server.url) as proxy:
        proxy.ignored.add("if-match")
        settings = UNHURRIED | {"SHAREDLOG_METADATA_S3__ENDPOINT": proxy.url}
        cluster = DevCluster(tmp_path / "cluster", nodes=1, metadata_url=url, settings=settings)
        with pytest.raises(DevClusterError, match="can't be a metadata store: it replaces an"):
            await cluster.start()
