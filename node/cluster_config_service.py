"""What the cluster and its nodes are set to (ClusterConfigService); any node answers."""

from __future__ import annotations

from typing import Final

from metadata.cluster_registry import StoredCluster, fetch_cluster, rename_cluster
from metadata.core import check_node_id
from metadata.store import MetadataStore, Version
from metadata.view import ClusterView
from node.told_settings import ToldSettings
from sharedlog.errors import InvalidArgument, MetadataUnavailable, Unreachable
from sharedlog.ids import NodeId
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server, Transport
from sharedlog.v1 import cluster_config_pb2 as pb
from sharedlog.v1 import types_pb2

ASK_TIMEOUT_S: Final = 2.0


class ClusterConfigService:
    """Serves ClusterConfigService."""

    def __init__(
        self,
        *,
        own: NodeId,
        store: MetadataStore,
        view: ClusterView,
        transport: Transport,
        told: ToldSettings,
    ) -> None:
        self._own = own
        self._store = store
        self._view = view
        self._transport = transport
        self._told = told

    def register(self, server: Server) -> None:
        """Serve every method of ClusterConfigService on `server`."""
        server.add_call(methods.DESCRIBE_CLUSTER, self.describe_cluster)
        server.add_call(methods.RENAME_CLUSTER, self.rename_cluster)
        server.add_call(methods.DESCRIBE_NODE, self.describe_node)

    async def describe_cluster(self, _: pb.DescribeClusterRequest) -> pb.DescribeClusterResponse:
        """Who the cluster is.

        Raises:
            MetadataUnavailable, MetadataCorrupt.
        """
        found = await fetch_cluster(self._store)
        if found is None:
            raise MetadataUnavailable("the metadata store has lost the cluster's record")
        return _to_proto(found)

    async def rename_cluster(self, request: pb.RenameClusterRequest) -> pb.RenameClusterResponse:
        """Give it another name.

        Raises:
            InvalidArgument: no name. VersionMismatch: the record was changed in between.
            MetadataUnavailable: it may or may not be done; doing it again is safe.
        """
        expected = None
        if request.HasField("expected_version"):
            expected = Version(request.expected_version)
        found = await rename_cluster(self._store, request.name, expected=expected)
        return pb.RenameClusterResponse(cluster=_to_proto(found))

    async def describe_node(self, request: pb.DescribeNodeRequest) -> pb.DescribeNodeResponse:
        """What this node, or another one, was told.

        Raises:
            InvalidArgument: there is no such node. Unreachable, DeadlineExceeded: it is not there.
        """
        if request.node_id in ("", self._own):
            settings = [
                types_pb2.Setting(name=it.name, value=it.value, source=it.source)
                for it in self._told.told
            ]
            return pb.DescribeNodeResponse(
                settings=settings, known=self._told.known, node_id=self._own
            )
        check_node_id(request.node_id)
        node = await self._view.fetch_node(NodeId(request.node_id))
        if node is None:
            raise InvalidArgument(f"there is no node {request.node_id!r}")
        # Empty, so that whoever is at that address by now answers for itself and asks nobody else.
        answer = await self._transport.call(
            node.address, methods.DESCRIBE_NODE, pb.DescribeNodeRequest(), timeout_s=ASK_TIMEOUT_S
        )
        if answer.node_id != node.node_id:
            raise Unreachable(f"at {node.address} answers {answer.node_id or 'somebody else'}")
        return answer


def _to_proto(found: StoredCluster) -> pb.DescribeClusterResponse:
    return pb.DescribeClusterResponse(
        cluster_id=found.record.cluster_id,
        name=found.record.name,
        created_ms=found.record.created_ms,
        version=found.version,
    )
