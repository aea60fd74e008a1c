"""Namespaces at the front door (NamespaceService): any node answers, from the metadata store."""

from __future__ import annotations

from collections.abc import Callable

from metadata.namespace_registry import (
    StoredNamespace,
    delete_namespace,
    fetch_namespaces,
    records_of,
    set_namespace,
)
from metadata.namespaces import NamespaceChange, check_prefix, settings_of
from metadata.quorum import make_spread
from metadata.records import NamespaceRecord
from metadata.store import ABSENT, MetadataStore, Version
from node.wire import settings_to_proto
from sharedlog.clock import Clock
from sharedlog.errors import InvalidArgument
from sharedlog.limits import NONCE_CHARS_MAX
from sharedlog.retention_proto import retention_from_proto, retention_to_proto
from sharedlog.rpc import methods
from sharedlog.rpc.transport import Server
from sharedlog.v1 import namespace_pb2 as pb


class NamespaceService:
    """Serves NamespaceService."""

    def __init__(
        self,
        *,
        store: MetadataStore,
        clock: Clock,
        new_id: Callable[[], str],
        default_replicas: int,
    ) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id
        self._default_replicas = default_replicas

    def register(self, server: Server) -> None:
        """Serve every method of NamespaceService on `server`."""
        server.add_call(methods.SET_NAMESPACE, self.set_namespace)
        server.add_call(methods.GET_NAMESPACE, self.get_namespace)
        server.add_call(methods.LIST_NAMESPACES, self.list_namespaces)
        server.add_call(methods.DELETE_NAMESPACE, self.delete_namespace)

    async def set_namespace(self, request: pb.SetNamespaceRequest) -> pb.SetNamespaceResponse:
        """Set some settings.

        Raises:
            InvalidArgument, VersionMismatch. MetadataUnavailable: it may or may not be done.
        """
        if len(request.nonce) > NONCE_CHARS_MAX:
            raise InvalidArgument(f"the nonce has more than {NONCE_CHARS_MAX} characters")
        spread = make_spread(request.spread.levels.items()) if request.HasField("spread") else None
        found = await set_namespace(
            self._store,
            request.prefix,
            NamespaceChange(
                replicas=request.replicas if request.HasField("replicas") else None,
                write_quorum=request.write_quorum if request.HasField("write_quorum") else None,
                spread=spread,
                near=request.near if request.HasField("near") else None,
                retention=retention_from_proto(request.retention),
                inherit=tuple(request.inherit),
            ),
            expected=_expected(request),
            nonce=request.nonce or self._new_id(),
            now_ms=self._clock.now_ms(),
            default_replicas=self._default_replicas,
        )
        return pb.SetNamespaceResponse(namespace=await self._told(request.prefix, found))

    async def get_namespace(self, request: pb.GetNamespaceRequest) -> pb.GetNamespaceResponse:
        """What a prefix sets, and what is in force there."""
        check_prefix(request.prefix)
        return pb.GetNamespaceResponse(namespace=await self._told(request.prefix))

    async def list_namespaces(self, request: pb.ListNamespacesRequest) -> pb.ListNamespacesResponse:
        """Every prefix that has something set."""
        namespaces = await fetch_namespaces(self._store)
        found = (it for prefix, it in namespaces.items() if prefix.startswith(request.prefix))
        return pb.ListNamespacesResponse(namespaces=[_to_proto(*it) for it in found])

    async def delete_namespace(
        self, request: pb.DeleteNamespaceRequest
    ) -> pb.DeleteNamespaceResponse:
        """End what a prefix sets."""
        deleted = await delete_namespace(
            self._store,
            request.prefix,
            expected=_expected(request),
            default_replicas=self._default_replicas,
        )
        return pb.DeleteNamespaceResponse(deleted=deleted)

    async def _told(self, prefix: str, known: StoredNamespace | None = None) -> pb.Namespace:
        """A namespace with what is in force there; `known`, if it was just written."""
        namespaces = await fetch_namespaces(self._store)
        found = known or namespaces.get(prefix)
        if found is None:
            nothing = NamespaceRecord(prefix=prefix, changed_ms=0, change_nonce="")
            found = StoredNamespace(nothing, ABSENT)
        records = records_of(namespaces) | {prefix: found.record}
        told = _to_proto(*found)
        settings = settings_of(prefix, records, default_replicas=self._default_replicas)
        told.effective.extend(settings_to_proto(settings.told()))
        return told


def _expected(request: pb.SetNamespaceRequest | pb.DeleteNamespaceRequest) -> Version | None:
    return Version(request.expected_version) if request.HasField("expected_version") else None


def _to_proto(record: NamespaceRecord, version: Version) -> pb.Namespace:
    told = pb.Namespace(
        prefix=record.prefix,
        replicas=record.replicas,
        write_quorum=record.write_quorum,
        version=version,
        changed_ms=record.changed_ms,
        retention=retention_to_proto(record.retention),
        near=record.near,
    )
    if record.spread is not None:
        told.spread.CopyFrom(pb.SpreadSetting(levels=dict(record.spread)))
    return told
