"""What a node tells of itself and of the cluster, asked at any node."""

from __future__ import annotations

import pytest
from helpers.care_parts import Cluster, cluster_of, virtually

from metadata.registry import join_cluster
from node.cluster_config_service import ClusterConfigService
from node.told_settings import ToldSetting, ToldSettings
from sharedlog.errors import InvalidArgument, Unreachable, VersionMismatch
from sharedlog.ids import NodeId
from sharedlog.rpc.loopback import Loopback
from sharedlog.v1 import cluster_config_pb2 as pb


def service(cluster: Cluster, name: str) -> ClusterConfigService:
    told = ToldSettings((ToldSetting("location", f"zone of {name}", "file"),), known=9)
    return ClusterConfigService(
        own=NodeId(name),
        store=cluster.store,
        view=cluster.view,
        transport=cluster.doors,
        told=told,
    )


async def _a_node_tells_of_itself_at_any_node() -> None:
    """Who is asked passes the question on; if another one answers at that address by now, its
    settings are not taken for those of the node."""
    async with cluster_of("n1", "n2") as cluster:
        first, second = service(cluster, "n1"), service(cluster, "n2")
        door = Loopback()
        second.register(door)
        cluster.doors.open["n2:1"] = door
        for asked in (first, second):
            found = await asked.describe_node(pb.DescribeNodeRequest(node_id="n2"))
            assert [(it.name, it.value, it.source) for it in found.settings] == [
                ("location", "zone of n2", "file")
            ]
            assert (found.node_id, found.known) == ("n2", 9)
        cluster.doors.open["n1:1"] = door
        with pytest.raises(Unreachable, match="at n1:1 answers n2"):
            await second.describe_node(pb.DescribeNodeRequest(node_id="n1"))
        with pytest.raises(InvalidArgument, match="no node 'n9'"):
            await first.describe_node(pb.DescribeNodeRequest(node_id="n9"))
        await door.close()


async def _the_cluster_is_told_and_renamed() -> None:
    """A rename is made at the version that was seen, or not at all."""
    async with cluster_of("n1") as cluster:
        made = await join_cluster(cluster.store, known_cluster_id="", new_id=str, now_ms=0)
        asked = service(cluster, "n1")
        found = await asked.describe_cluster(pb.DescribeClusterRequest())
        assert (found.cluster_id, found.name) == (made.cluster_id, "")
        request = pb.RenameClusterRequest(name="prod", expected_version=found.version)
        renamed = (await asked.rename_cluster(request)).cluster
        assert (renamed.cluster_id, renamed.name) == (made.cluster_id, "prod")
        request.name = "other"
        with pytest.raises(VersionMismatch):
            await asked.rename_cluster(request)


test_a_node_tells_of_itself = virtually(_a_node_tells_of_itself_at_any_node)
test_the_cluster_is_told = virtually(_the_cluster_is_told_and_renamed)
