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
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from typing import Final

from metadata.keys import check_key, check_prefix, check_value
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
from sharedlog.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MetadataUnavailable,
    Overloaded,
    SharedLogError,
    Unreachable,
    VersionMismatch,
)
from sharedlog.rpc.transport import Method, Req, Resp, Transport
from sharedlog.v1 import metadata_pb2 as pb

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 5.0
"""A call is tried for so long."""
TRY_TIMEOUT_S: Final = 2.0
"""One try of it."""
BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
WARN_AFTER_TRIES: Final = 5
"""Reconnects of a watch in a row that are too many to be a restart; one warning is logged."""

_TRY_AGAIN: Final = (Unreachable, DeadlineExceeded, MetadataUnavailable, Overloaded)


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
        deadline_s = self._clock.monotonic_s() + self._timeout_s
        backoff_s = BACKOFF_MIN_S
        while True:
            left_s = deadline_s - self._clock.monotonic_s()
            try:
                return await self._transport.call(
                    self._address, method, request, timeout_s=max(min(left_s, TRY_TIMEOUT_S), 0.001)
                )
            except _TRY_AGAIN as error:
                left_s = deadline_s - self._clock.monotonic_s()
                if left_s <= backoff_s:
                    raise MetadataUnavailable(
                        f"the metadata store at {self._address} does not answer: {error}"
                    ) from error
            on_retry()
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    # ------------------------------------------------------------------ watch

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        """See `MetadataStore.watch`."""
        check_prefix(prefix)
        told = Told()
        completed = False  # SnapshotComplete was told
        tries = 0
        while True:
            connection = self._connection(prefix, told)
            try:
                async for event in connection:
                    if isinstance(event, SnapshotComplete):
                        tries = 0
                        if completed:
                            continue
                        completed = True
                    yield event
                reason = "the stream ended"
            except InvalidArgument:
                raise
            except SharedLogError as error:
                reason = str(error)
            finally:
                await connection.aclose()
            tries += 1
            extra = {"prefix": prefix, "address": self._address, "error": reason, "tries": tries}
            level = logging.WARNING if tries == WARN_AFTER_TRIES else logging.DEBUG
            log.log(level, "metadata.watch_lost", extra=extra)
            await self._clock.sleep(min(BACKOFF_MIN_S * 2 ** (tries - 1), BACKOFF_MAX_S))

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
