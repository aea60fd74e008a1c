"""The metadata store as a gRPC service: one embedded store, served to the cluster's nodes.

A plain adapter. What it adds is paging of listings and packing of what a watch tells, so that a
message stays far below gRPC's limit and a thousand keys are not a thousand messages: neither in a
watch's first part nor when many are changed by one commit.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
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
"""A message of a watch is sent when it has reached so many bytes, or nothing more is known."""

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

    def watch_batches(self, prefix: str) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """What `MetadataStore.watch` tells; what is known at one time, at one time."""
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
        async with aclosing(self._store.watch_batches(request.prefix)) as batches:
            async for events in batches:
                for message in _messages(events):
                    await stream.send(message)


def _messages(events: Sequence[WatchEvent]) -> Iterator[pb.MetadataWatchResponse]:
    """The events, packed, in their order: a message tells its changes before its deletions.

    A key comes once in a message.
    """
    message = pb.MetadataWatchResponse()
    keys: set[str] = set()
    size = 0
    for event in events:
        if isinstance(event, SnapshotComplete):
            message.snapshot_complete = True
            continue
        key = event.entry.key if isinstance(event, Changed) else event.key
        overtakes = isinstance(event, Changed) and message.deleted
        if keys and (size >= WATCH_MESSAGE_BYTES or key in keys or overtakes):
            yield message
            message, size = pb.MetadataWatchResponse(), 0
            keys.clear()
        keys.add(key)
        match event:
            case Changed(entry):
                message.changed.append(entry_to_proto(entry))
                size += len(entry.key) + len(entry.value)
            case Deleted(_, version):
                message.deleted.append(pb.MetadataEntry(key=key, version=version))
                size += len(key)
    yield message


def entry_to_proto(entry: Entry) -> pb.MetadataEntry:
    """The wire form of an entry."""
    return pb.MetadataEntry(key=entry.key, value=entry.value, version=entry.version)


def entries_from_proto(entries: Iterable[pb.MetadataEntry]) -> list[Entry]:
    """The entries of a message."""
    return [Entry(entry.key, entry.value, Version(entry.version)) for entry in entries]
