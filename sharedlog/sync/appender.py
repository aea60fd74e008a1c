"""Appends from threads, handed over many at a time: a crossing costs as much as fifty records.

`append` puts a record into a list under a lock. The first one in an empty list wakes the loop,
which takes the whole list, hands it to the asyncio appender, and comes back until it finds the list
empty: while the loop is busy, or the log slow, records gather, and one wake-up serves them all.

Bounds. Beside what the asyncio appender holds, one `batch_bytes` of records wait in the list and
as many are being handed over, at most; `append` waits while the list is full.

Outcomes. A record that was handed over has the asyncio `PendingAppend`, which knows what became of
it. One that never was fails definitely. Only `_hand_over`, one run at a time, decides which it is,
and it takes every record that ever was in the list: nobody else can say of a record that it is not
in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterable
from concurrent import futures
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Final, Self

from sharedlog import appender as aio
from sharedlog import pending as aio_pending
from sharedlog.batch import BatchBuilder, Headers
from sharedlog.errors import AppendIndefinite, InvalidArgument, SharedLogError
from sharedlog.limits import KIB
from sharedlog.record_checks import check_record
from sharedlog.sync.bridge import Bridge
from sharedlog.sync.facade import Facade, blocking
from sharedlog.sync.pending import AppendBatch, PendingAppend

log = logging.getLogger(__name__)

_PLAIN_BYTES_MAX: Final = 64 * KIB  # a value of so much, alone, needs no closer look
_RECORD_BYTES: Final = 64  # what a record in the list costs beside its bytes, about
_GATHERED_MAX: Final = 1_000  # records that `append_many` puts into the list at a time


class Appender(Facade[aio.Appender]):
    """Appends records to one log, in the order in which `append` returns.

    Use it as `with log.appender() as appender`: leaving the block waits until everything is
    acknowledged. Safe for any number of threads.
    """

    def __init__(self, bridge: Bridge, inner: aio.Appender) -> None:
        super().__init__(bridge, inner)
        self._thread = bridge.thread
        self._lock = threading.RLock()  # taken again by a signal's handler that appends
        self._room = threading.Condition(self._lock)
        self._records: list[PendingAppend] = []  # Invariant: of less than `_size_max`, but the last
        self._size = 0
        self._size_max = inner.config.batch_bytes
        self._idle = True  # the loop has found the list empty
        self._closed = False
        self._turn = asyncio.Lock()
        self._failure: SharedLogError | None = None  # unseen, of an appender that was dropped

    def append(
        self, value: bytes, key: bytes | None = None, headers: Headers | None = None
    ) -> PendingAppend:
        """Hand over a record. Returns once there is room for it, long before it is in the log.

        Raises:
            RecordTooLarge, InvalidArgument: the record can't be appended, or the appender is
            closed.

        **An interrupt:** while it waits for room, the record is not appended. Once it has returned,
        nothing stops the write.
        """
        plain = value.__class__ is bytes and len(value) <= _PLAIN_BYTES_MAX
        if not plain or key is not None or headers:
            return self._append(value, key, headers, None)
        pending = PendingAppend(self, value)
        if self._thread.is_forked:
            self._bridge.check_open()
        with self._lock:
            if self._idle or self._closed or self._size >= self._size_max:
                self._prepare()
            self._records.append(pending)
            self._size += len(value) + _RECORD_BYTES
        return pending

    def append_many(self, values: Iterable[bytes]) -> list[PendingAppend]:
        """Hand over many records; the same as `append` for each, at less cost.

        **An interrupt:** some of them are appended.
        """
        pending: list[PendingAppend] = []
        gathered: list[PendingAppend] = []
        size = 0
        for value in values:
            if value.__class__ is not bytes or len(value) > _PLAIN_BYTES_MAX:
                check_new_record(value, None, None)
            gathered.append(PendingAppend(self, value))
            size += len(value) + _RECORD_BYTES
            if size >= self._size_max or len(gathered) >= _GATHERED_MAX:
                self._put(gathered, size)
                pending += gathered
                gathered, size = [], 0
        if gathered:
            self._put(gathered, size)
        return pending + gathered

    def append_within(
        self, value: bytes, key: bytes | None, headers: Headers | None, *, timeout_s: float
    ) -> PendingAppend:
        """`append` with a time limit of its own."""
        return self._append(value, key, headers, timeout_s)

    @property
    def next_sequence(self) -> int:
        """So many records the appender has sent; of a named producer, in all its lives."""
        return self._inner.next_sequence

    def append_batch(
        self,
        builder: BatchBuilder,
        *,
        match_offset: int | None = None,
        fencing_token: str | None = None,
        set_fencing_token: str | None = None,
        timeout_s: float | None = None,
    ) -> AppendBatch:
        """Hand over a batch, to be appended as a whole: all its records, side by side, or none.

        `match_offset`, `fencing_token` and `set_fencing_token` as in the asyncio client.

        Raises:
            EmptyBatch, BatchTooLarge, InvalidArgument: as for `append`.
        """
        self._catch_up()
        batch = self._bridge.run(
            self._inner.append_batch,
            builder,
            match_offset=match_offset,
            fencing_token=fencing_token,
            set_fencing_token=set_fencing_token,
            timeout_s=timeout_s,
        )
        return AppendBatch(self._bridge, batch)

    open = blocking(aio.Appender.open)

    def flush(self) -> None:
        """Wait until all that was handed over before this call is in the log, or failed.

        Raises:
            SharedLogError: the first failure that nobody has seen yet, from `PendingAppend.result`
            or otherwise.

        **An interrupt:** stops the wait, not the writes.
        """
        self._catch_up()
        self._bridge.run(self._inner.flush)

    def close(self) -> None:
        """Take no more records, `flush`, end the session. Idempotent; raises what `flush` raises.

        **An interrupt:** the session is dropped; what is not cleared up ends as indefinite.
        """
        self._refuse_more()
        try:
            if not self._bridge.closed:
                self._catch_up()
                self._bridge.run(self._inner.close)
        except SharedLogError:
            raise
        except BaseException:
            with contextlib.suppress(SharedLogError):
                self._bridge.start(self._drop)
            raise
        self._bridge.droppable.pop(self, None)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def abort(self) -> None:
        """Drop the session at once: what none ever had fails definitely, the rest as indefinite."""
        self._refuse_more()
        if not self._bridge.closed:
            self._bridge.run(self._drop)
            self._bridge.droppable.pop(self, None)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif isinstance(error, Exception):
            # What was handed over is still written, but the caller's own error matters more.
            try:
                self.close()
            except SharedLogError as failure:
                log.warning("appender.failed", extra={"error": str(failure)})
        else:
            self.abort()

    def wait_for(self, pending: PendingAppend, timeout_s: float | None) -> None:
        """See `Waits.wait_for`."""
        try:
            settling = self._bridge.start_to_settle(partial(self._settle, pending))
            self._bridge.wait(settling, timeout_s)
        except SharedLogError as error:
            if not pending.done():
                raise AppendIndefinite(f"nobody can tell what becomes of it: {error}") from error

    # The list of records.

    def _append(
        self, value: bytes, key: bytes | None, headers: Headers | None, timeout_s: float | None
    ) -> PendingAppend:
        size = check_new_record(value, key, headers)
        record = (value, key, dict(headers) if headers else None, timeout_s)
        pending = PendingAppend(self, record)
        self._put([pending], size + _RECORD_BYTES)
        return pending

    def _put(self, pending: list[PendingAppend], size: int) -> None:
        if self._thread.is_forked:
            self._bridge.check_open()
        with self._lock:
            self._prepare()
            self._records += pending
            self._size += size

    def _prepare(self) -> None:
        """Wait for room in the list, and see to it that the loop will take what is put there."""
        while self._size >= self._size_max and not self._closed:
            self._room.wait()
        if self._closed:
            raise InvalidArgument("the appender is closed")
        if self._idle:
            self._bridge.droppable[self] = self._drop
            self._bridge.start(self._hand_over)
            self._idle = False

    def _refuse_more(self) -> None:
        if self._thread.is_forked:
            self._bridge.check_open()
        with self._lock:
            self._closed = True
            self._room.notify_all()

    def _catch_up(self) -> None:
        """Wait until the asyncio appender has all that is in the list now.

        An interrupt stops the wait alone: the records that are on their way stay so.
        """
        futures.wait([self._bridge.start(self._hand_over)])

    # On the loop.

    async def _hand_over(self) -> None:
        """Give the asyncio appender what is in the list, until nothing is."""
        async with self._turn:
            while taken := self._take():
                await self._give_all(taken)

    async def _give_all(self, taken: list[PendingAppend]) -> None:
        records = [pending.state for pending in taken]
        at = 0
        try:
            while at < len(taken):
                batch, places = self._inner.append_at_once(records, at)
                for pending, index in zip(islice(taken, at, None), places, strict=False):
                    pending.index = index
                    pending.state = batch
                at += len(places)
                if at < len(taken):
                    await self._give(taken[at])
                    at += 1
        finally:
            # Only the end of the loop cancels this, and then these will not be appended.
            for pending in taken[at:]:
                pending.state = InvalidArgument("the appender was closed before this was taken")

    async def _give(self, pending: PendingAppend) -> None:
        record, inner = pending.state, self._inner
        try:
            if isinstance(record, tuple):
                value, key, headers, timeout_s = record
                if timeout_s is None:
                    given = await inner.append(value, key, headers)
                else:
                    given = await inner.append_within(value, key, headers, timeout_s=timeout_s)
            else:
                assert isinstance(record, bytes)
                given = await inner.append(record)
        except SharedLogError as error:
            pending.state = error
        else:
            batch, pending.index = given.place
            pending.state = batch

    def _take(self) -> list[PendingAppend]:
        with self._lock:
            taken, self._records = self._records, []
            self._size = 0
            self._idle = not taken
            self._room.notify_all()
        return taken

    async def _settle(self, pending: PendingAppend) -> None:
        await self._hand_over()
        if isinstance(pending.state, aio_pending.AppendBatch):
            await pending.state.wait()

    async def _drop(self) -> None:
        """Abort, and settle what is still in the list: it is not in the log."""
        self._refuse_more()
        await self._inner.abort()
        await self._hand_over()
        try:
            await self._inner.close()
        except SharedLogError as error:
            self._failure = error


def check_new_record(value: bytes, key: bytes | None, headers: Headers | None) -> int:
    """The bytes of a record that can be appended.

    Raises:
        InvalidArgument, RecordTooLarge: it can't.
    """
    check_record(value, key, headers)
    builder = BatchBuilder()
    empty = builder.encoded_bytes
    builder.append(value, key, headers)
    return builder.encoded_bytes - empty
