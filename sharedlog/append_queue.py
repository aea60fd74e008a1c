"""The core of an appender: which batch a record joins, what is sent when, and how each batch ends.

Rules of this file: no I/O, no clock, no `async`. The shell (`appender.py`) tells what happened and
at what time, and does what the answers say.

Theory of operation. A batch moves through at most four places, always in order:

    open ──cut──▶ waiting ──next_to_send──▶ sent ──on_result──▶ done
                     ▲                        │
                     └──────── refused ◀──────┘   the log did not take it, and may later

Batching is natural: while fewer than `slots` batches are in flight the open batch leaves on the
next turn of the loop; while more are, it gathers records. So a lone append is not held up, and a
busy appender makes large batches by itself.

A batch that a session was given and that was not answered ends as *indefinite* when the session is
lost, and is never sent again: without a way to tell a retry from a new batch, sending again could
put it into the log twice. A batch that was never given to a session ends *definitely*.

Order. Records get offsets in the order in which they were admitted. A refused batch is definitely
not in the log, but those sent behind it may be; it is sent again only if none of them got in, and
fails with the reason of its refusal otherwise.

Invariants (checked by `check_invariants`):
 1. `in_flight_bytes` and `waiting_bytes` are the sums over `sent` and `waiting`.
 2. A plain record shorter than `room` fits into the open batch. Nothing is shorter while there is
    no open batch, nor while callers queue at the door, so that nobody passes them.
 3. A batch in `waiting` or open is not done; one in `sent` is done only if it ran out of time.

Deliberately not here: sessions, back-off, routes, and waiting for room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from sharedlog.batch import BATCH_HEADER_BYTES, BatchBuilder, Headers, encode_headers
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    DeadlineExceeded,
    LogUnavailable,
    NotSequencer,
    Overloaded,
    ProtocolError,
    SharedLogError,
    StoreReadOnly,
)
from sharedlog.ids import Offset
from sharedlog.limits import BATCH_BYTES_MAX
from sharedlog.pending import AppendBatch, PendingAppend

_RECORD_BYTES = 4  # a record's entry in the table of sizes
_EXTRAS_BYTES = 8  # its entries in the tables of keys and headers
_UNSEEN_MAX = 1_000  # failures that nobody has looked at; beyond it the later ones are let go


class AppendQueue:
    """See the module's docstring."""

    def __init__(self, config: AppenderConfig) -> None:
        self.config = config
        self.batch_bytes = config.batch_bytes  # lowered to what the server takes
        self.in_flight_bytes_max = config.in_flight_bytes  # lowered likewise
        self.open: AppendBatch | None = None
        self._open_has_extras = False
        self.waiting: deque[AppendBatch] = deque()
        self.sent: deque[AppendBatch] = deque()
        self.refused: list[tuple[AppendBatch, SharedLogError]] = []
        self.room = 0
        self.callers_waiting = 0
        self.in_flight_bytes = 0
        self.waiting_bytes = 0
        self._unseen: list[AppendBatch] = []
        self._later_admitted = False  # what was sent behind a refused batch may be in the log

    # Records in.

    def is_full(self) -> bool:
        """No further batch may be opened now. Never so while none waits: a lone batch fits."""
        return self.waiting_bytes >= self.config.buffer_bytes

    def put_plain(self, value: bytes) -> PendingAppend:
        """Add a record without key and headers; `len(value) < room` must hold. The fast path."""
        batch = self.open
        assert batch is not None
        index = batch.builder.append(value)
        self.room -= len(value) + _RECORD_BYTES
        if index + 1 >= self.config.batch_records:
            self.room = 0
        return PendingAppend(batch, index)

    def fits(
        self, value: bytes, key: bytes | None, headers: Headers | None, *, timeout_s: float
    ) -> bool:
        """The record can join the open batch."""
        batch = self.open
        if batch is None or batch.timeout_s != timeout_s:
            return False
        count = len(batch.builder)
        size = len(value) + _RECORD_BYTES
        if key is not None or headers:
            # The first key of a batch adds a table with an entry for each record before it, too.
            size += len(key or b"") + _EXTRAS_BYTES * (count + 1)
            size += len(encode_headers(headers)) if headers else 0
        else:
            size += _EXTRAS_BYTES
        fits_bytes = batch.builder.encoded_bytes + size <= self.batch_bytes
        return fits_bytes and count < self.config.batch_records

    def put(
        self,
        value: bytes,
        key: bytes | None,
        headers: Headers | None,
        *,
        timeout_s: float,
        now_s: float,
    ) -> PendingAppend:
        """Add a record: to the open batch if it fits there, else to a new one.

        Raises:
            RecordTooLarge, InvalidArgument: the record can't be in any batch; nothing changed.
        """
        if self.fits(value, key, headers, timeout_s=timeout_s):
            batch = self.open
            assert batch is not None
            index = batch.builder.append(value, key, headers)
        else:
            builder = BatchBuilder()
            index = builder.append(value, key, headers)
            self.cut()
            batch = AppendBatch(builder, opened_s=now_s, timeout_s=timeout_s)
            self.open = batch
            self._open_has_extras = False
        if key is not None or headers:
            self._open_has_extras = True
        self._measure_room()
        return PendingAppend(batch, index)

    def put_batch(self, builder: BatchBuilder, *, timeout_s: float, now_s: float) -> AppendBatch:
        """Add a batch of its own, to be appended as a whole.

        It is encoded now and once: the builder is the caller's, who may go on with it.

        Raises:
            EmptyBatch, BatchTooLarge: nothing changed.
        """
        data = builder.encode()
        self.cut()
        batch = AppendBatch(BatchBuilder(), opened_s=now_s, timeout_s=timeout_s)
        batch.data = data
        batch.size = len(data)
        self.waiting.append(batch)
        self.waiting_bytes += batch.size
        return batch

    def cut(self) -> None:
        """Close the open batch: it waits to be sent as it is."""
        batch = self.open
        if batch is not None:
            batch.size = batch.builder.encoded_bytes
            self.waiting.append(batch)
            self.waiting_bytes += batch.size
            self.open = None
            self.room = 0

    def hold_door(self, change: int) -> None:
        """Callers began (+1) or ended (-1) to wait for room: until none is left, nobody passes."""
        self.callers_waiting += change
        assert self.callers_waiting >= 0
        self._measure_room()

    def _measure_room(self) -> None:
        batch = self.open
        if batch is None or self.callers_waiting or batch.timeout_s != self.config.timeout_s:
            self.room = 0
        elif self._open_has_extras or len(batch.builder) >= self.config.batch_records:
            self.room = 0  # with keys or headers, each record costs more than `put_plain` counts
        else:
            overhead = _RECORD_BYTES + _EXTRAS_BYTES
            self.room = max(0, self.batch_bytes - batch.builder.encoded_bytes - overhead)

    # Batches out.

    def next_to_send(self, now_s: float) -> AppendBatch | None:
        """The batch to send now, encoded and counted as in flight; None: not now."""
        if self.refused:
            return None
        if not self.waiting:
            if not self._open_may_leave(now_s):
                return None
            self.cut()
        batch = self.waiting[0]
        if self.sent and self.in_flight_bytes + batch.size > self.in_flight_bytes_max:
            return None
        self.waiting.popleft()
        self.waiting_bytes -= batch.size
        if not batch.data:
            batch.data = batch.builder.encode()
        batch.size = len(batch.data)
        self.sent.append(batch)
        self.in_flight_bytes += batch.size
        return batch

    def _open_may_leave(self, now_s: float) -> bool:
        batch = self.open
        return (
            batch is not None
            and len(self.sent) < self.config.slots
            and now_s >= batch.opened_s + self.config.linger_s
        )

    def linger_s(self, now_s: float) -> float | None:
        """Until the open batch may leave, if it is only its linger time that holds it."""
        if self.open is None or self.waiting or not self.config.linger_s:
            return None
        left_s = self.open.opened_s + self.config.linger_s - now_s
        return left_s if left_s > 0 else None

    # Outcomes.

    def on_result(self, first: Offset, error: SharedLogError | None) -> None:
        """The session answered its oldest batch.

        Raises:
            ProtocolError: there was none.
        """
        if not self.sent:
            raise ProtocolError("the session answered a batch that was not sent")
        batch = self.sent.popleft()
        self.in_flight_bytes -= batch.size
        if error is not None and is_refusal(error) and not batch.done:
            self.refused.append((batch, error))
            return
        if error is None or isinstance(error, AppendIndefinite):
            self._later_admitted = self._later_admitted or bool(self.refused)
        self._finish(batch, first, error)

    def on_session_lost(self, error: SharedLogError) -> int:
        """The session is gone, or was left. Returns how many batches ended as indefinite.

        Those that were refused are to be sent again, if that keeps their order.
        """
        lost = [batch for batch in self.sent if not batch.done]
        self._later_admitted = self._later_admitted or bool(self.refused and self.sent)
        self.sent.clear()
        self.in_flight_bytes = 0
        for batch in lost:
            unknown = AppendIndefinite(f"the session was lost before the answer came: {error}")
            unknown.__cause__ = error
            self._finish(batch, Offset(0), unknown)
        for batch, reason in reversed(self.refused):
            if self._later_admitted:
                self._finish(batch, Offset(0), reason)
            else:
                self.waiting.appendleft(batch)
                self.waiting_bytes += batch.size
        self.refused.clear()
        self._later_admitted = False
        return len(lost)

    def on_time(self, now_s: float, last_error: SharedLogError | None) -> bool:
        """Fail what ran out of time. Returns whether nothing that was sent is waited for now."""
        for batch in self.sent:
            if not batch.done and batch.deadline_s <= now_s:
                message = f"no answer within {batch.timeout_s:g} s"
                self._finish(batch, Offset(0), AppendIndefinite(message))
        self._fail_unsent_where(
            lambda batch: batch.deadline_s <= now_s,
            lambda batch: _never_sent(batch, last_error),
        )
        return bool(self.sent) and all(batch.done for batch in self.sent)

    def fail_unsent(self, error: SharedLogError) -> None:
        """Fail, definitely, all that no session has."""
        self._fail_unsent_where(lambda _: True, lambda _: error)

    def _fail_unsent_where(
        self,
        chosen: Callable[[AppendBatch], bool],
        error_of: Callable[[AppendBatch], SharedLogError],
    ) -> None:
        if self.open is not None and chosen(self.open):
            self.cut()
        failed = [batch for batch in self.waiting if chosen(batch)]
        if failed:
            self.waiting = deque(batch for batch in self.waiting if not chosen(batch))
            self.waiting_bytes = sum(batch.size for batch in self.waiting)
        refused = [batch for batch, _ in self.refused if chosen(batch)]
        if refused:
            self.refused = [(batch, why) for batch, why in self.refused if not chosen(batch)]
        for batch in (*refused, *failed):
            self._finish(batch, Offset(0), error_of(batch))

    def next_deadline_s(self) -> float | None:
        """When `on_time` has something to do, if all goes on as it is."""
        return min((batch.deadline_s for batch in self.pending()), default=None)

    def pending(self) -> Iterator[AppendBatch]:
        """Every batch without an outcome, in order."""
        for batch in self.sent:
            if not batch.done:
                yield batch
        for batch, _ in self.refused:
            yield batch
        yield from self.waiting
        if self.open is not None:
            yield self.open

    def has_unsent(self) -> bool:
        """Something waits for a session."""
        return bool(self.waiting) or self.open is not None

    def take_failure(self) -> SharedLogError | None:
        """The first failure that nobody has seen; all are then counted as seen."""
        unseen = [batch for batch in self._unseen if not batch.retrieved]
        self._unseen.clear()
        return unseen[0].error if unseen else None

    def _finish(self, batch: AppendBatch, first: Offset, error: SharedLogError | None) -> None:
        if batch.done:
            return  # it ran out of time before its answer came
        batch.finish(first, error)
        if error is not None:
            self._unseen = [seen for seen in self._unseen if not seen.retrieved]
            if len(self._unseen) < _UNSEEN_MAX:
                self._unseen.append(batch)

    def check_invariants(self) -> None:
        """Asserts, for tests."""
        assert self.in_flight_bytes == sum(batch.size for batch in self.sent)
        assert self.waiting_bytes == sum(batch.size for batch in self.waiting)
        assert not any(batch.done for batch in self.waiting)
        assert self.open is None or not self.open.done
        if self.open is None or self.callers_waiting:
            assert self.room <= 0
        if self.open is not None:
            assert len(self.open.builder) > 0
            encoded = self.open.builder.encoded_bytes
            assert encoded <= BATCH_BYTES_MAX
            alone = len(self.open.builder) == 1
            assert alone or encoded <= self.batch_bytes + BATCH_HEADER_BYTES


def is_refusal(error: SharedLogError) -> bool:
    """The batch was not taken, and the same batch may be taken later."""
    return isinstance(error, Overloaded | LogUnavailable | NotSequencer | StoreReadOnly)


def _never_sent(batch: AppendBatch, why: SharedLogError | None) -> SharedLogError:
    message = f"could not be sent within {batch.timeout_s:g} s, so it is not in the log"
    if why is None:
        return DeadlineExceeded(f"{message}: the log is slower than the appender")
    error: SharedLogError
    if isinstance(why, LogUnavailable | NotSequencer):
        error = LogUnavailable(f"{message}: {why}")
    else:
        error = DeadlineExceeded(f"{message}: {why}")
    error.__cause__ = why
    return error
