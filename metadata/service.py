"""The metadata store as a gRPC service: one embedded store, served to the cluster's nodes.

A plain adapter. What it adds is paging of listings and packing of a watch's first part, so that a
message stays far below gRPC's limit and a thousand keys are not a thousand messages.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Final, Protocol

from metadata.store import (
    Changed,
    Deleted,
    Entry,
    MetadataStore,
    SnapshotComplete,
    Version,
    WatchEvent,
)
from sharedlog.limits import KIB
from sharedlog.rpc.methods import proto_method
from sharedlog.rpc.transport import Server, ServerStream
from sharedlog.v1 import metadata_pb2 as pb

WATCH_MESSAGE_BYTES: Final = 256 * KIB
"""A message of a watch's first part is sent when it has reached so many bytes."""

GET = proto_method("MetadataService/Get", pb.MetadataGetRequest, pb.MetadataGetResponse)
PUT = proto_method("MetadataService/Put", pb.MetadataPutRequest, pb.MetadataPutResponse)
DELETE = proto_method("MetadataService/Delete", pb.MetadataDeleteRequest, pb.MetadataDeleteResponse)
LIST = proto_method("MetadataService/List", pb.MetadataListRequest, pb.MetadataListResponse)
WATCH = proto_method(
    "MetadataService/Watch", pb.MetadataWatchRequest, pb.MetadataWatchResponse, streaming=True
)


class ServableStore(MetadataStore, Protocol):
    """What a store needs besides to be served: nonces, pages, watches that can be closed."""

    async def put(self, key: str, value: bytes, *, expected: Version, nonce: str = "") -> Version:
        """A put repeated with its nonce gets the first one's answer."""
        ...

    async def list_page(
        self, prefix: str, *, after: str, limit: int
    ) -> tuple[Sequence[Entry], bool]:
        """Entries with keys greater than `after`, at most `limit`, and whether there are more."""
        ...

    def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        """See `MetadataStore.watch`."""
        ...


class MetadataService:
    """Serves `store`."""

    def __init__(self, store: ServableStore) -> None:
        self._store = store

    def register(self, server: Server) -> None:
        """Add the service's methods to a server that has not started yet."""
        server.add_call(GET, self._get)
        server.add_call(PUT, self._put)
        server.add_call(DELETE, self._delete)
        server.add_call(LIST, self._list)
        server.add_stream(WATCH, self._watch)

    async def _get(self, request: pb.MetadataGetRequest) -> pb.MetadataGetResponse:
        entry = await self._store.get(request.key)
        return pb.MetadataGetResponse(entry=None if entry is None else entry_to_proto(entry))

    async def _put(self, request: pb.MetadataPutRequest) -> pb.MetadataPutResponse:
        version = await self._store.put(
            request.key,
            request.value,
            expected=Version(request.expected_version),
            nonce=request.nonce,
        )
        return pb.MetadataPutResponse(version=version)

    async def _delete(self, request: pb.MetadataDeleteRequest) -> pb.MetadataDeleteResponse:
        await self._store.delete(request.key, expected=Version(request.expected_version))
        return pb.MetadataDeleteResponse()

    async def _list(self, request: pb.MetadataListRequest) -> pb.MetadataListResponse:
        entries, more = await self._store.list_page(
            request.prefix, after=request.after, limit=request.limit
        )
        return pb.MetadataListResponse(entries=map(entry_to_proto, entries), more=more)

    async def _watch(
        self, stream: ServerStream[pb.MetadataWatchResponse, pb.MetadataWatchRequest]
    ) -> None:
        request = await stream.receive()
        if request is None:
            return
        async with aclosing(self._store.watch(request.prefix)) as events:
            async for message in _messages(events):
                await stream.send(message)


async def _messages(
    events: AsyncGenerator[WatchEvent, None],
) -> AsyncGenerator[pb.MetadataWatchResponse, None]:
    """The first part packed into messages, then a message for each change."""
    message = pb.MetadataWatchResponse()
    size = 0
    in_snapshot = True
    async for event in events:
        match event:
            case Changed(entry):
                message.changed.append(entry_to_proto(entry))
                size += len(entry.key) + len(entry.value)
            case Deleted(key, version):
                message.deleted.append(pb.MetadataEntry(key=key, version=version))
            case SnapshotComplete():
                message.snapshot_complete = True
                in_snapshot = False
        if not in_snapshot or size >= WATCH_MESSAGE_BYTES:
            yield message
            message = pb.MetadataWatchResponse()
            size = 0


def entry_to_proto(entry: Entry) -> pb.MetadataEntry:
    """The wire form of an entry."""
    return pb.MetadataEntry(key=entry.key, value=entry.value, version=entry.version)


def entries_from_proto(entries: Iterable[pb.MetadataEntry]) -> list[Entry]:
    """The entries of a message."""
    return [Entry(entry.key, entry.value, Version(entry.version)) for entry in entries]
