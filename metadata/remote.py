"""The embedded store of another process, reached over a `Transport`.

Calls are tried again until their time is up, so that a restart of the metadata process is a pause
and no error. What makes that safe for changes: each put carries a nonce, the same in each try, so
that a put whose answer was lost gets that answer when it is repeated. A delete has none: when a
repeated delete finds no such key, the key is gone, as wanted, and it was either this call's doing
or nobody can tell.

A watch connects anew for ever, with back-off. It remembers the version of each key that it told,
and after a reconnect tells what differs: no gap, no repeat.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Final

from metadata.keys import check_key, check_prefix, check_value
from metadata.retrying import until_answered, watch_for_ever
from metadata.service import (
    DELETE,
    GET,
    LIST,
    PUT,
    WATCH,
    entries_from_proto,
)
from metadata.store import Changed, Deleted, Entry, SnapshotComplete, Version, WatchEvent
from metadata.watching import Told
from sharedlog.clock import Clock
from sharedlog.errors import Unreachable, VersionMismatch
from sharedlog.rpc.transport import Method, Req, Resp, Transport
from sharedlog.v1 import metadata_pb2 as pb

TIMEOUT_S: Final = 5.0
"""A call is tried for so long."""
TRY_TIMEOUT_S: Final = 2.0
"""One try of it."""


class RemoteMetadataStore:
    """A `MetadataStore`, see there and in the module's docstring."""

    def __init__(
        self,
        transport: Transport,
        address: str,
        clock: Clock,
        new_id: Callable[[], str],
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._transport = transport
        self._address = address
        self._clock = clock
        self._new_id = new_id
        self._timeout_s = timeout_s

    async def get(self, key: str) -> Entry | None:
        """See `MetadataStore.get`."""
        check_key(key)
        response = await self._call(GET, pb.MetadataGetRequest(key=key))
        return entries_from_proto([response.entry])[0] if response.HasField("entry") else None

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        """See `MetadataStore.put`. Raises besides `StoreReadOnly`: no room; nothing was changed."""
        check_key(key)
        check_value(key, value)
        request = pb.MetadataPutRequest(
            key=key, value=value, expected_version=expected, nonce=self._new_id()
        )
        response = await self._call(PUT, request)
        return Version(response.version)

    async def delete(self, key: str, *, expected: Version) -> None:
        """See `MetadataStore.delete`."""
        check_key(key)
        request = pb.MetadataDeleteRequest(key=key, expected_version=expected)
        repeated = False

        def on_retry() -> None:
            nonlocal repeated
            repeated = True

        try:
            await self._call(DELETE, request, on_retry=on_retry)
        except VersionMismatch as error:
            if not (repeated and error.actual is None):
                raise

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `MetadataStore.list`. Entries beyond the first page may be of a later moment."""
        check_prefix(prefix)
        entries: builtins.list[Entry] = []
        more = True
        while more:
            after = entries[-1].key if entries else ""
            page = await self._call(LIST, pb.MetadataListRequest(prefix=prefix, after=after))
            assert page.entries or not page.more
            entries += entries_from_proto(page.entries)
            more = page.more
        return entries

    async def _call(
        self,
        method: Method[Req, Resp],
        request: Req,
        *,
        on_retry: Callable[[], None] = lambda: None,
    ) -> Resp:
        """Try until there is an answer or the time is up."""

        async def attempt(left_s: float) -> Resp:
            return await self._transport.call(
                self._address, method, request, timeout_s=min(left_s, TRY_TIMEOUT_S)
            )

        return await until_answered(
            attempt,
            self._clock,
            store=self._address,
            timeout_s=self._timeout_s,
            on_retry=on_retry,
        )

    async def close(self) -> None:
        """See `MetadataStore.close`. There is nothing of its own: the transport is the caller's."""

    # ------------------------------------------------------------------ watch

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        """See `MetadataStore.watch`."""
        check_prefix(prefix)
        told = Told()
        events = watch_for_ever(
            lambda: self._connection(prefix, told), self._clock, store=self._address, prefix=prefix
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def _connection(self, prefix: str, told: Told) -> AsyncGenerator[WatchEvent, None]:
        """One stream of the watch: what it brings that was not told yet."""
        stream = self._transport.stream(self._address, WATCH)
        present: set[str] | None = set()  # keys of the snapshot; None once it is complete
        try:
            await stream.send(pb.MetadataWatchRequest(prefix=prefix))
            with suppress(Unreachable):  # the stream's end shows in `receive` as well
                await stream.end()
            while (message := await stream.receive()) is not None:
                changes = _changes(message)
                if present is not None:
                    present.update(entry.key for entry in message.changed)
                    if message.snapshot_complete:
                        for deleted in told.missing(present):
                            yield deleted
                for change in changes:
                    if told.accept(change):
                        yield change
                if message.snapshot_complete:
                    present = None
                    yield SnapshotComplete()
        finally:
            stream.cancel()


def _changes(message: pb.MetadataWatchResponse) -> list[Changed | Deleted]:
    changed = [Changed(entry) for entry in entries_from_proto(message.changed)]
    deleted = [Deleted(entry.key, Version(entry.version)) for entry in message.deleted]
    return [*changed, *deleted]
