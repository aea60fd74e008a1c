"""`sharedlog cursor` on a real cluster."""

from __future__ import annotations

import asyncio

import pytest
from helpers.command import Cli

import sharedlog
from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_cursors_are_listed_moved_and_deleted(cli: Cli, log: str, cluster: DevCluster) -> None:
    """What an owner has left; its position is set, and exit code 3 says that there is none."""

    async def work() -> None:
        async with sharedlog.connect(cluster.address) as connected:
            found = connected.log(log)
            await found.append_batch([b"x"] * 10)
            async with found.cursor("billing", owner_name="worker-1") as cursor:
                await cursor.commit(4)
            async with found.cursor("audit", start=9):
                pass

    asyncio.run(work())
    audit, billing = cli.ok("cursor", "ls", log, "--json").json["cursors"]
    assert (audit["name"], audit["position"], audit["lag"]) == ("audit", 9, 1)
    assert billing.pop("changed_ms") > 0
    assert billing == {
        "name": "billing",
        "position": 4,
        "lag": 6,
        "epoch": 1,
        "owner_name": "worker-1",
    }
    assert "worker-1" in cli.ok("cursor", "ls", log).text
    assert "position:     4\n" in cli.ok("cursor", "show", log, "billing").text
    moved = cli.ok("cursor", "seek", log, "billing", "2", "--json").json
    assert (moved["position"], moved["epoch"]) == (2, 2)
    assert cli.ok("cursor", "show", log, "billing", "--json").json["lag"] == 8
    assert cli.ok("cursor", "rm", log, "billing").text.endswith("deleted\n")
    for arguments in (["rm", log, "billing"], ["show", log, "billing"], ["ls", "no-log"]):
        assert cli("cursor", *arguments).code == 3
    assert cli("cursor", "seek", log, "billing", "1").code == 3
    cli.ok("cursor", "rm", log, "audit")
    assert "has no cursors" in cli.ok("cursor", "ls", log).err
