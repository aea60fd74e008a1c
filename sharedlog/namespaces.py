"""What logs inherit by the beginning of their names: `Cluster.namespaces`.

A namespace is a prefix that ends with "/", or the empty one, of every log. A log that is created
takes each setting from the longest of its prefixes that sets it. Existing logs stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sharedlog.connection import Connection
from sharedlog.retention import Retention
from sharedlog.retention_proto import asked_to_proto
from sharedlog.rpc.methods import (
    DELETE_NAMESPACE,
    GET_NAMESPACE,
    LIST_NAMESPACES,
    SET_NAMESPACE,
)
from sharedlog.v1 import namespace_pb2


class Namespaces:
    """The namespaces of a cluster. Made by `Cluster.namespaces`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def set(
        self,
        prefix: str,
        *,
        replicas: int | None = None,
        write_quorum: int | None = None,
        spread: Mapping[str, int] | None = None,
        near: str | None = None,
        retention: Retention | None = None,
        inherit: Iterable[str] = (),
        expected_version: int | None = None,
    ) -> namespace_pb2.Namespace:
        """Set some settings of a prefix, and keep the others; returns the namespace as it is now.

        `spread` maps "zone", "region" or "node" to how many of them a write quorum must span; an
        empty one ends an inherited spread. `near` is where the logs' writers are, a location or its
        beginning; "" takes an inherited one back. Of `retention` fields that are None are kept as
        they are, 0 ends an inherited limit. `inherit` names settings that are not to be set here
        any more: "replicas", "write_quorum", "spread", "near", "local_bytes", "local_age",
        "total_age".
        `expected_version`: only if the namespace has it, 0: only if nothing is set yet.

        Raises:
            InvalidArgument: what would be in force here, or in a namespace below, can't be.
            VersionMismatch: it has another version than was expected.
            MetadataUnavailable, Unreachable: it may or may not be done.

        **Cancellation:** it may or may not be done.
        """
        setting = None if spread is None else namespace_pb2.SpreadSetting(levels=spread)
        request = namespace_pb2.SetNamespaceRequest(
            prefix=prefix,
            replicas=replicas,
            write_quorum=write_quorum,
            spread=setting,
            near=near,
            retention=asked_to_proto(retention),
            inherit=inherit,
            expected_version=expected_version,
            nonce=f"{self._connection.rng.getrandbits(128):032x}",
        )
        return (await self._connection.call(SET_NAMESPACE, request)).namespace

    async def get(self, prefix: str) -> namespace_pb2.Namespace:
        """What a prefix sets, version 0 if nothing, and what a log right under it would get.

        Raises:
            InvalidArgument: the prefix can't be one. MetadataUnavailable, Unreachable.
        """
        request = namespace_pb2.GetNamespaceRequest(prefix=prefix)
        return (await self._connection.call(GET_NAMESPACE, request)).namespace

    async def list(self, prefix: str = "") -> list[namespace_pb2.Namespace]:
        """Every namespace that starts with `prefix`, in order; without what is inherited.

        Raises:
            MetadataUnavailable, Unreachable.
        """
        request = namespace_pb2.ListNamespacesRequest(prefix=prefix)
        return [*(await self._connection.call(LIST_NAMESPACES, request)).namespaces]

    async def delete(self, prefix: str, *, expected_version: int | None = None) -> bool:
        """End what a prefix sets; returns whether it set anything.

        Raises:
            InvalidArgument: a namespace below could not be without it.
            VersionMismatch: it has another version than was expected; or the answer was lost, and
            it is gone.
            MetadataUnavailable, Unreachable: it may or may not be done.
        """
        request = namespace_pb2.DeleteNamespaceRequest(
            prefix=prefix, expected_version=expected_version
        )
        return (await self._connection.call(DELETE_NAMESPACE, request)).deleted
