"""The core of an appender: which batch a record joins, what is sent when, and how each batch ends.

Rules of this file: no I/O, no clock, no `async`. The shells (`appender.py`, `append_session.py`)
tell what happened and at what time, and do what the answers say.

Theory of operation. A batch moves through at most four places, always in order:

    open ──cut──▶ waiting ──next_to_send──▶ sent ──on_result──▶ done
                     ▲                        │
                     └──── the session ends ◀─┘

Batching is natural: the open batch leaves on the next turn of the loop, and takes a slot until it
is answered; while all `slots` are taken it gathers records. So a lone append is not held up, and a
busy appender makes large batches; more so where records come fast (`gathering.py`). A batch that is
full, or an appender's `flush` cuts, leaves without a slot.

Repetition. An appender is a *producer*: it has an id, and counts its records; each batch, when it
is sent for the first time, gets the sequence of its first record and keeps it for ever. When a
session ends with batches unanswered they go back to the front of `waiting`, in their order, and are
sent again first on the next session. By its producer and sequence the sequencer knows a batch that
is in the log already, and answers with the offset that it has. What ends a session:

    it broke, fell silent, or   what it had is *unresolved*: in the log, or not, or not yet
    said what proves nothing
    it refused a batch          that batch is not in the log; nor is any behind it, for a session
                                takes nothing more after a refusal
    it moved                    nothing without an answer was admitted there

Unresolved is for ever: a later refusal proves nothing about the first attempt, only an offset
settles it. Except one: a condition that failed is looked at only once the sequencer knows that the
batch is not in the log, and no older session can bring it there any more. The opening of the next
session says from which offset on an unresolved batch can lie (`resolve_from`): not below the floor
of the session that it was first sent in, nor below the end of the last batch that was acknowledged
before it. It also says in which segment that was told: should an operator accept a loss, a segment
may end below what was acknowledged, and the sequencer looks from that end on. What was purged since
can't be looked through any more: then no session resolves the batch (`fail_unresolved`).

A session's sequences follow each other without a gap. Where one is missing, because a batch ran out
of time, the session is ended in good order and the next begins behind the gap (`must_reopen`).

Without a producer (id 0; `exactly_once` is off) nothing is sent again: what a lost session has not
answered is `AppendIndefinite` at once.

A *named* producer's sequences are where it goes on after a restart: they may have no gap. It stops
at its first failure (`stopped`), and what no session has then fails behind it. Only a condition
that failed for the last batch of all stops nothing: its sequence is free again.

Time. Nothing but an answer, a purge or its deadline ends a batch: at the deadline it is
`AppendIndefinite` if it is unresolved or sent, and definitely not in the log otherwise.

Invariants (checked by `check_invariants`; the first three by a model in the tests):
 1. The offsets of acknowledged batches are in the order of their admission, but for an accepted
    loss: then the log goes on from below what was acknowledged. Within one session they always are.
 2. A batch is in the log at most once, however often it is sent.
 3. A batch that failed with another error than `AppendIndefinite` is not in the log.
 4. `in_flight_bytes` and `waiting_bytes` are the sums over `sent` and `waiting`.
 5. A plain record shorter than `room` fits into the open batch. Nothing is shorter while there is
    no open batch, nor while callers queue at the door, so that nobody passes them.
 6. A batch in `waiting` or open is not done; one in `sent` is done only if it ran out of time.
 7. Unresolved batches come before all others, and sequences rise from `sent` through `waiting`.

Deliberately not here: sessions, back-off, routes, and waiting for room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from sharedlog.append_outcomes import (
    behind,
    honest,
    is_refusal,
    never_sent,
    unanswered,
    unrepeated,
)
from sharedlog.batch import (
    BATCH_HEADER_BYTES,
    NO_PRODUCER,
    BatchBuilder,
    BatchProducer,
    Headers,
    encode_headers,
    stamp_batch,
)
from sharedlog.codec import make_compressor
from sharedlog.config import AppenderConfig
from sharedlog.errors import ConditionFailed, ProtocolError, SharedLogError
from sharedlog.gathering import Gathering
from sharedlog.ids import Offset
from sharedlog.key_digest import DIGEST_KEY_BYTES
from sharedlog.limits import BATCH_BYTES_MAX
from sharedlog.pending import (
    NO_BOUND,
    UNCONDITIONAL,
    AppendBatch,
    Bound,
    Conditions,
    PendingAppend,
)

_RECORD_BYTES = 4  # a record's entry in the table of sizes
_EXTRAS_BYTES = 8  # its entries in the tables of keys and headers
_DIGEST_BYTES = 2 * DIGEST_KEY_BYTES  # what its key adds to the digest of keys
_UNSEEN_MAX = 1_000  # failures that nobody has looked at; beyond it the later ones are let go


class Opening(NamedTuple):
    """What a session's first message says of the batches that it will carry."""

    next_sequence: int
    unresolved: bool
    resolve_from: Offset
    resolve_segment: int = 0  # in which that was told


class AppendQueue:
    """See the module's docstring.

    Raises `CodecUnavailable` when it is made with a compression whose library is not installed.
    """

    def __init__(
        self,
        config: AppenderConfig,
        *,
        producer_id: int,
        named: bool = False,
        fencing_token: str | None = None,
    ) -> None:
        self.config = config
        self.producer_id = producer_id  # 0: none
        self.epoch = 0  # of a named producer, once its first session is open
        self.stopped: SharedLogError | None = None  # a named producer's first failure
        self._named = named
        self._usual = (
            UNCONDITIONAL if fencing_token is None else Conditions(fencing_token=fencing_token)
        )
        self._compressor = make_compressor(config.compression)
        self.batch_bytes = config.batch_bytes  # lowered to what the server takes
        self.in_flight_bytes_max = config.in_flight_bytes  # lowered likewise
        self.in_flight_batches_max = 0  # as the server says; 0 is no bound
        self.open: AppendBatch | None = None
        self._open_has_extras = False
        self.waiting: deque[AppendBatch] = deque()
        self.sent: deque[AppendBatch] = deque()
        self._slots_taken = 0
        self._gathering = Gathering(linger_s=config.linger_s, gather_s=config.gather_s)
        self.room = 0
        self.callers_waiting = 0
        self.in_flight_bytes = 0
        self.waiting_bytes = 0
        self._unseen: list[AppendBatch] = []
        self._next_sequence = 0  # of the next batch that is sent for the first time
        self._acked = NO_BOUND  # the end of the last batch that was acknowledged
        self._in_session = False  # one is open, and has refused nothing
        self._session_sequence = 0  # that the present session expects next
        self._session_floor = NO_BOUND  # no new batch of it lies below
        self._session_end = Offset(0)  # of the last batch that it acknowledged

    # Records in.

    def refuse_if_stopped(self) -> None:
        """Raise `InvalidArgument` if a named producer has had a failure."""
        if self.stopped is not None:
            raise behind(self.stopped)

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

    def put_run(self, values: Sequence[object], start: int) -> range:
        """`put_plain` for `values[start:]` up to the first that it is not for; their places."""
        batch = self.open
        assert batch is not None
        append, room = batch.builder.append, self.room
        first = index = len(batch.builder)
        for value in islice(values, start, None):
            if value.__class__ is not bytes or len(value) >= room:
                break
            index = append(value) + 1
            room -= len(value) + _RECORD_BYTES
            if index >= self.config.batch_records:
                room = 0
        self.room = room
        return range(first, index)

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
            size += 0 if key is None else _DIGEST_BYTES
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
            batch = AppendBatch(
                builder, opened_s=now_s, timeout_s=timeout_s, conditions=self._usual
            )
            self.open = batch
            self._gathering.on_open(now_s, self.batch_bytes)
            self._open_has_extras = False
        if key is not None or headers:
            self._open_has_extras = True
        self._measure_room()
        return PendingAppend(batch, index)

    def put_batch(
        self,
        builder: BatchBuilder,
        *,
        timeout_s: float,
        now_s: float,
        conditions: Conditions = UNCONDITIONAL,
    ) -> AppendBatch:
        """Add a batch of its own, to be appended as a whole.

        It is encoded now and once: the builder is the caller's, who may go on with it. A fencing
        token that `conditions` does not name is the appender's.

        Raises:
            EmptyBatch, BatchTooLarge: nothing changed.
        """
        data = builder.encode(compressor=self._compressor)
        self.cut()
        if self._usual is not UNCONDITIONAL and conditions.fencing_token is None:
            conditions = conditions._replace(fencing_token=self._usual.fencing_token)
        batch = AppendBatch(
            BatchBuilder(), opened_s=now_s, timeout_s=timeout_s, conditions=conditions
        )
        batch.data = data  # without its place in the order, which it gets when it is sent
        batch.count = len(builder)
        batch.size = len(data)
        self.waiting.append(batch)
        self.waiting_bytes += batch.size
        return batch

    def cut(self) -> None:
        """Close the open batch: it waits to be sent as it is."""
        batch = self.open
        if batch is not None:
            batch.size = batch.builder.encoded_bytes
            self._gathering.on_close(batch.size)
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

    # Sessions.

    def opening(self) -> Opening:
        """What the next session is to be told; the session then expects that sequence first."""
        assert not self.sent
        oldest = self.waiting[0] if self.waiting else None
        self._session_sequence = self._sequence_of(oldest)
        if oldest is None or not oldest.unresolved:
            return Opening(self._session_sequence, unresolved=False, resolve_from=Offset(0))
        segment_index, offset = max(oldest.floor, self._acked)
        return Opening(self._session_sequence, True, offset, segment_index)

    def on_life(self, epoch: int, next_sequence: int) -> None:
        """A named producer's life has begun: what epoch it has, and where its records go on."""
        assert self._next_sequence == 0, "before anything is sent"
        self.epoch = epoch
        self._next_sequence = self._session_sequence = next_sequence

    def on_opened(self, *, floor: Offset, segment_index: int = 0, batches_max: int = 0) -> None:
        """The session takes batches; no new one of it will lie below `floor`."""
        assert not self.sent
        self._in_session = True
        self._session_floor = Bound(segment_index, floor)
        self._session_end = Offset(0)
        self.in_flight_batches_max = batches_max

    def must_reopen(self, now_s: float) -> bool:
        """The session has answered all, and what is to be sent does not follow what it had."""
        if not self._in_session or self.sent:
            return False
        if not self.waiting and not self._open_may_leave(now_s):
            return False
        oldest = self.waiting[0] if self.waiting else None
        return self._sequence_of(oldest) != self._session_sequence

    def _sequence_of(self, batch: AppendBatch | None) -> int:
        """Of `batch` (None: the open one), given or to be given."""
        if batch is None or batch.sequence < 0:
            return self._next_sequence
        return batch.sequence

    # Batches out.

    def next_to_send(self, now_s: float) -> AppendBatch | None:
        """The batch to send now, encoded and counted as in flight; None: not now."""
        if not self._in_session:
            return None
        is_early = not self.waiting
        if is_early:
            if not self._open_may_leave(now_s):
                return None
            self.cut()
        batch = self.waiting[0]
        if self.sent and not self._fits_in_flight(batch):
            return None
        if self._sequence_of(batch) != self._session_sequence:
            return None
        self.waiting.popleft()
        self.waiting_bytes -= batch.size
        self._encode(batch)
        self._session_sequence += batch.count
        batch.takes_slot = is_early
        self._slots_taken += is_early
        self.sent.append(batch)
        self.in_flight_bytes += batch.size
        return batch

    def _fits_in_flight(self, batch: AppendBatch) -> bool:
        most = self.in_flight_batches_max
        in_flight_bytes = self.in_flight_bytes + batch.size
        return in_flight_bytes <= self.in_flight_bytes_max and not 0 < most <= len(self.sent)

    def _encode(self, batch: AppendBatch) -> None:
        """Make the batch ready to be sent; at the first time it gets its sequence."""
        if not batch.unresolved:
            batch.floor = self._session_floor
        first_time = batch.sequence < 0
        if first_time:
            batch.sequence = self._next_sequence
            batch.count = batch.count or len(batch.builder)
            self._next_sequence += batch.count
        if batch.data:
            if first_time and self.producer_id:
                batch.data = stamp_batch(batch.data, self._producer_of(batch))
        else:
            compressor = self._compressor
            batch.data = batch.builder.encode(self._producer_of(batch), compressor=compressor)
            batch.size = len(batch.data)
            if compressor is not None:
                # To compress again costs more than to keep what is small: the records are let go,
                # and a repetition sends these very bytes.
                batch.builder = BatchBuilder()

    def _producer_of(self, batch: AppendBatch) -> BatchProducer:
        if not self.producer_id:
            return NO_PRODUCER
        return BatchProducer(self.producer_id, self.epoch, batch.sequence)

    def _open_may_leave(self, now_s: float) -> bool:
        if self.open is None or self._slots_taken >= self.config.slots:
            return False
        count, size = len(self.open.builder), self.open.builder.encoded_bytes
        is_full = count >= self.config.batch_records or size >= self.batch_bytes
        return is_full or self._gathering.is_over(now_s, size)

    def linger_s(self, now_s: float) -> float | None:
        """Until the open batch may leave, if it is only held so that it gathers records."""
        if self.open is None or self.waiting:
            return None
        return self._gathering.left_s(now_s)

    # Outcomes.

    def on_result(self, first: Offset, error: SharedLogError | None) -> None:
        """The session answered its oldest batch. After an error it takes nothing more: leave it.

        Raises:
            ProtocolError: there was none, or the answer breaks the order. Leave it as lost.
        """
        if not self.sent:
            raise ProtocolError("the session answered a batch that was not sent")
        batch = self.sent[0]
        if error is None:
            if first < self._session_end:
                message = f"a batch was put at {first}, before one that ends at {self._session_end}"
                raise ProtocolError(message)
            self._forget_oldest()
            self._session_end = Offset(first + batch.count)
            # Lower than what an earlier session acknowledged, if a loss was accepted since.
            self._acked = Bound(self._session_floor.segment_index, self._session_end)
            self._finish(batch, first, None)
        elif error.outcome == "indefinite":
            self._take_back(unresolved=True)
        else:
            if not is_refusal(error):
                self._forget_oldest()
                self._refuse(batch, honest(batch, error))
            self._take_back(unresolved=False)

    def _refuse(self, batch: AppendBatch, error: SharedLogError) -> None:
        before = self.stopped
        self._finish(batch, Offset(0), error)
        last = not self.sent and not self.has_unsent()
        if self._named and last and isinstance(error, ConditionFailed):
            # It is not in the log, and nothing has its place in the order yet: its caller may try
            # again.
            self.stopped = before
            self._next_sequence = batch.sequence

    def on_session_lost(self) -> int:
        """The session is gone, or was left. Returns how many batches are unresolved now."""
        self._take_back(unresolved=True)
        return sum(batch.unresolved for batch in self.waiting)

    def on_session_moved(self) -> None:
        """The session ended in good order: what it has not answered it has never admitted."""
        self._take_back(unresolved=False)

    def _take_back(self, *, unresolved: bool) -> None:
        """What the session has not answered is to be sent again, ahead of all others."""
        for batch in reversed(self.sent):
            if unresolved and not self.producer_id and not batch.done:
                self._finish(batch, Offset(0), unrepeated())
            if not batch.done:
                batch.unresolved = batch.unresolved or unresolved
                batch.takes_slot = False
                self.waiting.appendleft(batch)
                self.waiting_bytes += batch.size
        self.sent.clear()
        self.in_flight_bytes = self._slots_taken = 0
        self._in_session = False
        self._fail_behind()

    def _forget_oldest(self) -> None:
        batch = self.sent.popleft()
        self.in_flight_bytes -= batch.size
        self._slots_taken -= batch.takes_slot

    def on_time(self, now_s: float, last_error: SharedLogError | None) -> bool:
        """Fail what ran out of time. Returns whether nothing that was sent is waited for now."""
        for batch in self.sent:
            if not batch.done and batch.deadline_s <= now_s:
                self._finish(batch, Offset(0), unanswered(batch, last_error))
        self._fail_unsent_where(
            lambda batch: batch.deadline_s <= now_s,
            lambda batch: (
                unanswered(batch, last_error) if batch.unresolved else never_sent(batch, last_error)
            ),
        )
        self._fail_behind()
        return bool(self.sent) and all(batch.done for batch in self.sent)

    def end(self, error: SharedLogError) -> None:
        """No session will be opened any more: fail all, definitely what was never in one."""
        self.on_session_lost()
        self.fail_unsent(error)

    def fail_unsent(self, error: SharedLogError) -> None:
        """Fail all that no session has: definitely, but for what an earlier one may have left."""
        self._fail_unsent_where(lambda _: True, lambda batch: honest(batch, error))

    def fail_unresolved(self, error: SharedLogError) -> bool:
        """No session can tell what became of unresolved batches. Returns whether there were any."""
        found = bool(self.waiting) and self.waiting[0].unresolved
        self._fail_unsent_where(lambda batch: batch.unresolved, lambda batch: honest(batch, error))
        self._fail_behind()
        return found

    def _fail_behind(self) -> None:
        """Nothing of a named producer goes into the log behind a failure, if no session has it."""
        failed = self.stopped
        if failed is not None:
            self._fail_unsent_where(lambda _: True, lambda batch: honest(batch, behind(failed)))

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
        for batch in failed:
            self._finish(batch, Offset(0), error_of(batch))

    def next_deadline_s(self) -> float | None:
        """When `on_time` has something to do, if all goes on as it is."""
        return min((batch.deadline_s for batch in self.pending()), default=None)

    def pending(self) -> Iterator[AppendBatch]:
        """Every batch without an outcome, in order."""
        for batch in self.sent:
            if not batch.done:
                yield batch
        yield from self.waiting
        if self.open is not None:
            yield self.open

    @property
    def next_sequence(self) -> int:
        """Of the next record that is sent for the first time: so many were."""
        return self._next_sequence

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
            if self._named and self.stopped is None:
                self.stopped = error
            self._unseen = [seen for seen in self._unseen if not seen.retrieved]
            if len(self._unseen) < _UNSEEN_MAX:
                self._unseen.append(batch)

    def check_invariants(self) -> None:
        """Asserts, for tests."""
        assert self.in_flight_bytes == sum(batch.size for batch in self.sent)
        assert self._slots_taken == sum(batch.takes_slot for batch in self.sent)
        assert not any(batch.takes_slot for batch in self.waiting)
        assert self.waiting_bytes == sum(batch.size for batch in self.waiting)
        assert not any(batch.done for batch in self.waiting)
        unresolved = [batch.unresolved for batch in self.waiting]
        assert unresolved == sorted(unresolved, reverse=True)
        given = [b.sequence for b in (*self.sent, *self.waiting) if b.sequence >= 0]
        assert given == sorted(set(given))
        assert all(sequence < self._next_sequence for sequence in given)
        assert all(b.sequence >= 0 for b in self.sent)
        assert self.open is None or not self.open.done
        if self.open is None or self.callers_waiting:
            assert self.room <= 0
        if self.open is not None:
            assert len(self.open.builder) > 0
            encoded = self.open.builder.encoded_bytes
            assert encoded <= BATCH_BYTES_MAX
            alone = len(self.open.builder) == 1
            assert alone or encoded <= self.batch_bytes + BATCH_HEADER_BYTES
