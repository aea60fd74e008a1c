"""The etcd backend: what is kept lies in etcd, under a prefix, and etcd does the agreeing.

Theory of operation. A key `k` of the store is etcd's key `PREFIX/k`. Its version is the revision of
its last change (`mod_revision`): positive, and growing over all of etcd. A put is one transaction:
if the key's `mod_revision` is the expected one (0 for a key that is absent), put, else read. Reads
are linearizable, which is etcd's default.

**Unknown outcomes.** A call is tried until its time is up (`retrying.py`), at one member after the
other. A change that is tried again may have been made by an earlier try; then its condition fails.
Each value has the nonce of its put (`etcd_wire.py`), and etcd still has what was there before. So
the put looks for what followed the expected version, wherever in the key's history that is: it was
made if, and only if, that has its nonce. If etcd has forgotten that part of its history (it was
compacted), the outcome is unknown, and the put raises `MetadataUnavailable`.

A delete that finds nothing after a lost answer has had its wish, and it was either its own doing or
nobody can tell. One case is beyond all this: a *creation* that reads as lost may have been made and
been deleted again by somebody who saw it.

**Watches.** A snapshot of all that the prefix holds, at one revision, page by page; then etcd's
watch from the next revision on. A lost connection goes on after the last revision that was told, at
another member. If etcd has forgotten what lies between (it was compacted), a new snapshot is
taken, and what differs from what was told is told (`watching.py`): no gap, no repeat. An idle
watch asks for a sign of life once in a while, so that a member that hangs is found out. If etcd's
revision has fallen (an older snapshot of it was restored) the watch would wait for a revision that
is still to come: all that was told is told as gone, and what is there, with the lesser versions.

A damaged value is never taken for absence (field note 24): `get` and `list` raise
`MetadataCorrupt`; a watch hands on what is there as it is, which no decoder of records accepts, and
goes on with the other keys.
"""

from __future__ import annotations

import builtins
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, NoReturn, TypeVar

from metadata.config import EtcdConfig
from metadata.errors import MetadataCorrupt
from metadata.etcd_members import COMPACTED, SAFE_PAGE, EtcdMembers
from metadata.etcd_watch import Place, watched_over
from metadata.etcd_wire import (
    RANGE,
    TXN,
    WATCH,
    decode_value,
    delete_if,
    encode_value,
    end_of_prefix,
    found_instead,
    put_if,
    watch_from,
)
from metadata.keys import check_key, check_prefix, check_value
from metadata.retrying import until_answered, watch_for_ever
from metadata.store import (
    ABSENT,
    Changed,
    Deleted,
    Entry,
    SnapshotComplete,
    Version,
    WatchEvent,
)
from metadata.url import MetadataUrl
from metadata.watching import Told
from sharedlog.clock import Clock
from sharedlog.errors import MetadataUnavailable, ProtocolError, SharedLogError, VersionMismatch
from sharedlog.limits import LIST_PAGE_MAX, MIB
from sharedlog.rpc.grpc_client import TOO_LARGE
from sharedlog.rpc.transport import Method, Req, Resp
from sharedlog.v1 import etcd_pb2 as pb

log = logging.getLogger(__name__)

PAGE_BYTES: Final = 4 * MIB
"""A page of a listing has so many entries as would be so large if they are like those before."""

T = TypeVar("T")


class EtcdMetadataStore:
    """A `MetadataStore`, see there and in the module's docstring."""

    def __init__(
        self,
        members: EtcdMembers,
        prefix: str,
        clock: Clock,
        new_id: Callable[[], str],
        config: EtcdConfig,
    ) -> None:
        """`prefix` is a path without slashes at its ends; `members` is closed by `close`."""
        assert prefix == prefix.strip("/")
        self._members = members
        self._root = f"{prefix}/".encode("ascii")
        self._clock = clock
        self._new_id = new_id
        self._config = config

    async def get(self, key: str) -> Entry | None:
        """See `MetadataStore.get`. Raises besides `MetadataCorrupt`."""
        check_key(key)
        answer = await self._call(RANGE, pb.EtcdRangeRequest(key=self._name(key)))
        return _decoded(self._stored(answer.kvs[0])) if answer.kvs else None

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        """See `MetadataStore.put`."""
        check_key(key)
        check_value(key, value)
        nonce = self._new_id()
        request = put_if(self._name(key), encode_value(key, value, nonce), expected)
        answer, repeated = await self._swap(request)
        if answer.succeeded:
            return Version(answer.header.revision)
        if repeated:
            made = await self._was_made(key, nonce, expected, answer)
            if made is not None:
                return made
        raise _mismatch(key, expected, found_instead(answer))

    async def delete(self, key: str, *, expected: Version) -> None:
        """See `MetadataStore.delete`."""
        check_key(key)
        answer, repeated = await self._swap(delete_if(self._name(key), expected))
        if answer.succeeded:
            if not answer.responses[0].response_delete_range.deleted:
                raise _mismatch(key, expected, None)  # `expected` is `ABSENT`, and so it was
            return
        found = found_instead(answer)
        if repeated and found is None:
            return
        if repeated and found is not None and found.create_revision > expected:
            raise MetadataUnavailable(
                f"{key} was deleted and made anew while etcd did not answer: by whom is unknown"
            )
        raise _mismatch(key, expected, found)

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `MetadataStore.list`. All of one moment. Raises besides `MetadataCorrupt`."""
        check_prefix(prefix)
        stored, _ = await self._snapshot(prefix)
        return [_decoded(entry) for entry in stored]

    async def close(self) -> None:
        """See `MetadataStore.close`."""
        await self._members.close()

    # ------------------------------------------------------------------ changes

    async def _swap(self, request: pb.EtcdTxnRequest) -> tuple[pb.EtcdTxnResponse, bool]:
        """The answer, and whether an earlier try may have made the change."""
        repeated = False

        def on_retry() -> None:
            nonlocal repeated
            repeated = True

        return await self._call(TXN, request, on_retry=on_retry), repeated

    async def _was_made(
        self, key: str, nonce: str, expected: Version, answer: pb.EtcdTxnResponse
    ) -> Version | None:
        """The version that an earlier try of a put made; None: none did.

        Raises:
            MetadataUnavailable: it can't be told.
        """
        try:
            found = await self._follower(key, expected, answer)
            if found is None or decode_value(key, found.value)[1] != nonce:
                return None
        except (MetadataUnavailable, MetadataCorrupt) as error:
            raise MetadataUnavailable(
                f"whether a put of {key} was made is unknown: {error}"
            ) from error
        return Version(found.mod_revision)

    async def _follower(
        self, key: str, expected: Version, answer: pb.EtcdTxnResponse
    ) -> pb.EtcdKeyValue | None:
        """What followed the expected version: the one place where the put can be if it was made.

        None: the key was deleted then, or never had that version.
        """
        present = found_instead(answer)
        if expected == ABSENT:
            return None if present is None else await self._as_of(key, present.create_revision)
        was = await self._as_of(key, expected)
        if was is None or was.mod_revision != expected:
            return None
        found, low, high = present, int(expected), answer.header.revision
        while high - low > 1:
            middle = (low + high) // 2
            was = await self._as_of(key, middle)
            if was is not None and was.mod_revision == expected:
                low = middle
            else:
                found, high = was, middle
        return found

    async def _as_of(self, key: str, revision: int) -> pb.EtcdKeyValue | None:
        request = pb.EtcdRangeRequest(key=self._name(key), revision=revision)
        answer = await self._call(RANGE, request)
        return answer.kvs[0] if answer.kvs else None

    # ------------------------------------------------------------------ asking

    async def _call(
        self,
        method: Method[Req, Resp],
        request: Req,
        *,
        on_retry: Callable[[], None] = lambda: None,
    ) -> Resp:
        """Try until there is an answer or the time is up."""
        timeout_s = self._config.try_timeout_s

        async def attempt(left_s: float) -> Resp:
            nonlocal timeout_s
            this_s, timeout_s = min(timeout_s, left_s), timeout_s * 2
            return await self._members.call(method, request, timeout_s=this_s)

        return await self._until_answered(attempt, on_retry)

    async def _until_answered(
        self,
        attempt: Callable[[float], Awaitable[T]],
        on_retry: Callable[[], None] = lambda: None,
    ) -> T:
        try:
            return await until_answered(
                attempt,
                self._clock,
                store=f"etcd {self._members}",
                timeout_s=self._config.timeout_s,
                on_retry=on_retry,
            )
        except ProtocolError as error:
            raise MetadataUnavailable(f"etcd {error}") from error

    async def _snapshot(self, prefix: str) -> tuple[builtins.list[Entry], int]:
        """All that the prefix holds at one moment, as it is stored, and that moment's revision."""
        timeout_s = self._config.try_timeout_s

        async def attempt(left_s: float) -> tuple[builtins.list[Entry], int]:
            nonlocal timeout_s
            page_s, timeout_s = timeout_s, timeout_s * 2
            return await self._pages(prefix, self._clock.monotonic_s() + left_s, page_s)

        return await self._until_answered(attempt)

    async def _pages(
        self, prefix: str, deadline_s: float, page_s: float
    ) -> tuple[builtins.list[Entry], int]:
        start, end = self._range(prefix)
        found: builtins.list[Entry] = []
        revision, limit = 0, SAFE_PAGE
        while True:
            left_s = max(deadline_s - self._clock.monotonic_s(), 0.001)
            request = pb.EtcdRangeRequest(key=start, range_end=end, limit=limit, revision=revision)
            try:
                page = await self._members.call(RANGE, request, timeout_s=min(page_s, left_s))
            except ProtocolError as error:
                if COMPACTED in str(error):  # between two pages: begin again
                    raise MetadataUnavailable(str(error)) from error
                if limit == 1 or TOO_LARGE not in str(error):
                    raise
                limit = max(1, limit // 4)
                continue
            revision = revision or page.header.revision
            found += [self._stored(kv) for kv in page.kvs]
            if not page.more:
                return found, revision
            start = page.kvs[-1].key + b"\0"
            entry_bytes = 1 + page.ByteSize() // len(page.kvs)
            limit = min(max(1, PAGE_BYTES // entry_bytes), LIST_PAGE_MAX)

    # ------------------------------------------------------------------ watch

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        """See `MetadataStore.watch`."""
        check_prefix(prefix)
        told, place = Told(), Place()
        events = watch_for_ever(
            lambda: self._connection(prefix, told, place),
            self._clock,
            store=f"etcd {self._members}",
            prefix=prefix,
        )
        async with aclosing(events):
            async for event in events:
                yield event

    async def _connection(
        self, prefix: str, told: Told, place: Place
    ) -> AsyncGenerator[WatchEvent, None]:
        """One stream of the watch: what it brings that was not told yet."""
        if not place.next_revision:
            stored, revision = await self._snapshot(prefix)
            for event in told.difference([_as_it_is(entry) for entry in stored]):
                yield event
            place.next_revision = revision + 1
        timeout_s = self._config.timeout_s
        address, stream = await self._members.stream(WATCH, timeout_s=timeout_s)
        start, end = self._range(prefix)
        async with watched_over(stream, self._clock, address) as watch:
            try:
                await watch.begin(watch_from(start, end, place.next_revision))
                while (response := await watch.receive()) is not None:
                    if response.canceled:
                        self._raise_canceled(address, response, place)
                    for change in place.take(response):
                        event = self._change(change)
                        if told.accept(event):
                            yield event
                    if response.created:
                        if await self._went_back(response, place):
                            for event in told.difference(()):
                                yield event
                            place.next_revision = 0
                            raise MetadataUnavailable("etcd went back: all is read anew")
                        yield SnapshotComplete()
            except SharedLogError:
                self._members.leave(address)
                raise

    async def _went_back(self, response: pb.EtcdWatchResponse, place: Place) -> bool:
        """Whether etcd's history has become shorter; a member alone may lag behind the others.

        Raises:
            MetadataUnavailable.
        """
        if response.header.revision + 1 >= place.next_revision:
            return False
        answer = await self._call(RANGE, pb.EtcdRangeRequest(key=self._root))
        was, now = place.next_revision - 1, answer.header.revision
        if now >= was:
            return False
        advice = "older data was put in place: restart all nodes and clients"
        log.error("metadata.went_back", extra={"was": was, "now": now, "advice": advice})
        return True

    def _raise_canceled(
        self, address: str, response: pb.EtcdWatchResponse, place: Place
    ) -> NoReturn:
        if response.compact_revision:
            place.next_revision = 0
            raise MetadataUnavailable(
                f"{address} has forgotten what was before revision {response.compact_revision}"
            )
        self._members.distrust_token()  # in some versions an expired one is told like this
        raise MetadataUnavailable(f"{address} ended the watch: {response.cancel_reason}")

    def _change(self, event: pb.EtcdEvent) -> Changed | Deleted:
        if event.type == pb.EtcdEvent.DELETE:
            return Deleted(self._key(event.kv.key), Version(event.kv.mod_revision))
        return Changed(_as_it_is(self._stored(event.kv)))

    # ------------------------------------------------------------------ names

    def _name(self, key: str) -> bytes:
        return self._root + key.encode("ascii")

    def _key(self, name: bytes) -> str:
        # What others put under our prefix may be named by any bytes.
        return name[len(self._root) :].decode("ascii", "backslashreplace")

    def _range(self, prefix: str) -> tuple[bytes, bytes]:
        start = self._name(prefix)
        return start, end_of_prefix(start)

    def _stored(self, kv: pb.EtcdKeyValue) -> Entry:
        """A key with what lies under it, as it is stored."""
        return Entry(self._key(kv.key), kv.value, Version(kv.mod_revision))


def _decoded(stored: Entry) -> Entry:
    """Raises `MetadataCorrupt`."""
    value, _ = decode_value(stored.key, stored.value)
    return replace(stored, value=value)


def _as_it_is(stored: Entry) -> Entry:
    """Decoded, if that can be done: a watch goes on."""
    try:
        return _decoded(stored)
    except MetadataCorrupt as error:
        extra = {"key": stored.key, "error": str(error)}
        log.error("metadata.value_damaged", extra=extra)  # noqa: TRY400 - no traceback needed
        return stored


def _mismatch(key: str, expected: Version, found: pb.EtcdKeyValue | None) -> VersionMismatch:
    actual = None if found is None else found.mod_revision
    return VersionMismatch(key=key, expected=expected or None, actual=actual)


def open_etcd(
    url: MetadataUrl, config: EtcdConfig, *, clock: Clock, new_id: Callable[[], str]
) -> EtcdMetadataStore:
    """The store that `url` names; connects when it is used.

    Raises:
        InvalidArgument: a file that `config` names can't be read.
    """
    members = EtcdMembers(url.addresses, config, name=new_id())
    return EtcdMetadataStore(members, url.prefix, clock, new_id, config)
