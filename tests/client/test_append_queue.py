"""The appender's core: batching, bounds, order, and how each batch ends."""

from __future__ import annotations

import pytest

from sharedlog.append_queue import AppendQueue, Opening
from sharedlog.batch import BatchBuilder, BatchProducer, check_batch, parse_batch_header
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    BatchTooLarge,
    EmptyBatch,
    InvalidArgument,
    LogUnavailable,
    NotAppended,
    Overloaded,
    ProtocolError,
    Purged,
    RecordTooLarge,
    SharedLogError,
)
from sharedlog.ids import Offset
from sharedlog.limits import RECORD_BYTES_MAX
from sharedlog.pending import PendingAppend

PRODUCER = 0xFEED


def make(**settings_: float) -> AppendQueue:
    config = AppenderConfig(**{"slots": 4, **settings_})  # type: ignore[arg-type]  # numbers by name
    queue = AppendQueue(config, producer_id=PRODUCER)
    reopen(queue)
    return queue


def reopen(
    queue: AppendQueue, *, floor: int = 0, segment_index: int = 0, batches_max: int = 0
) -> Opening:
    """The next session is open; what it was told."""
    opening = queue.opening()
    queue.on_opened(floor=Offset(floor), segment_index=segment_index, batches_max=batches_max)
    return opening


def send(queue: AppendQueue, *, now_s: float = 0.0) -> BatchProducer:
    """Send a batch; under which name it went."""
    batch = queue.next_to_send(now_s)
    assert batch is not None
    return parse_batch_header(batch.data).producer


def put(queue: AppendQueue, value: bytes, *, now_s: float = 0.0) -> PendingAppend:
    return queue.put(value, None, None, timeout_s=queue.config.timeout_s, now_s=now_s)


def outcome(pending: PendingAppend) -> int | type[SharedLogError] | None:
    if not pending.done():
        return None
    error = pending.exception()
    return type(error) if error is not None else pending.result()


def test_a_lone_record_leaves_at_once_and_others_gather_behind_it() -> None:
    """Natural batching: with every slot taken, records become one batch."""
    queue = make(slots=1)
    put(queue, b"a")
    first = queue.next_to_send(0.0)
    assert first is not None
    assert parse_batch_header(first.data).record_count == 1
    for value in (b"b", b"c", b"d"):
        put(queue, value)
        assert queue.next_to_send(0.0) is None
    queue.on_result(Offset(0), None)
    second = queue.next_to_send(0.0)
    assert second is not None
    assert parse_batch_header(second.data).record_count == 3
    queue.check_invariants()


def test_full_batches_take_no_slot() -> None:
    """The end of a burst does not wait until all before it is answered; the next small one does."""
    queue = make(slots=1, batch_records=2)
    for value in (b"a", b"b", b"c", b"d", b"e"):
        put(queue, value)
    sent = [queue.next_to_send(0.0) for _ in range(4)]
    assert [len(it.builder) if it else None for it in sent] == [2, 2, 1, None]
    put(queue, b"f")
    for first in (0, 2):
        queue.on_result(Offset(first), None)
        assert queue.next_to_send(0.0) is None
    queue.on_result(Offset(4), None)
    assert queue.next_to_send(0.0) is not None
    queue.check_invariants()


def test_a_slot_ends_with_its_session() -> None:
    queue = make(slots=1)
    put(queue, b"a")
    assert queue.next_to_send(0.0) is not None
    queue.on_session_lost()
    reopen(queue)
    assert queue.next_to_send(0.0) is not None, "again"
    put(queue, b"b")
    assert queue.next_to_send(0.0) is not None, "what is sent again takes none"
    queue.check_invariants()


def test_linger_holds_a_batch_that_is_not_full() -> None:
    """`linger_s` delays, and a full batch does not wait for it."""
    queue = make(linger_s=1.0, batch_records=2)
    put(queue, b"a", now_s=10.0)
    assert queue.next_to_send(10.5) is None
    assert queue.linger_s(10.5) == pytest.approx(0.5)
    assert queue.next_to_send(11.0) is not None
    for value in (b"b", b"c", b"d"):
        put(queue, value, now_s=20.0)
    assert queue.next_to_send(20.0) is not None
    assert queue.next_to_send(20.0) is None


def test_what_is_in_flight_is_bounded_but_a_lone_batch_passes() -> None:
    """Field note 42: a window smaller than one batch does not deadlock."""
    queue = make(batch_bytes=100, in_flight_bytes=50, buffer_bytes=50)
    big = put(queue, b"x" * 1_000)
    after = put(queue, b"y" * 1_000)
    assert queue.is_full()
    assert queue.next_to_send(0.0) is not None
    assert queue.next_to_send(0.0) is None, "the window is full"
    queue.on_result(Offset(0), None)
    assert queue.next_to_send(0.0) is not None
    queue.on_result(Offset(1), None)
    assert (outcome(big), outcome(after)) == (0, 1)
    assert not queue.is_full()


def test_a_record_that_can_be_in_no_batch_changes_nothing() -> None:
    """Field note 37: a definite, typed error at admission, and the queue goes on."""
    queue = make()
    put(queue, b"before")
    with pytest.raises(RecordTooLarge) as raised:
        put(queue, bytes(RECORD_BYTES_MAX + 1))
    assert raised.value.max_bytes == RECORD_BYTES_MAX
    with pytest.raises(InvalidArgument):
        queue.put(b"v", None, {"n" * 70_000: b""}, timeout_s=30, now_s=0)
    put(queue, b"after")
    batch = queue.next_to_send(0.0)
    assert batch is not None
    assert parse_batch_header(batch.data).record_count == 2
    queue.check_invariants()


def test_the_largest_record_goes_alone() -> None:
    """A record of the largest size is taken, as a batch within the limit."""
    queue = make()
    put(queue, b"small")
    put(queue, bytes(RECORD_BYTES_MAX - 4))
    put(queue, b"small")
    counts = []
    for _ in range(3):
        batch = queue.next_to_send(0.0)
        assert batch is not None
        counts.append(parse_batch_header(batch.data).record_count)
        queue.on_result(Offset(len(counts)), None)
    assert counts == [1, 1, 1]


def test_whole_batches_are_checked_when_they_come() -> None:
    """An empty or oversized batch is a definite error before anything is sent."""
    queue = make()
    with pytest.raises(EmptyBatch):
        queue.put_batch(BatchBuilder(), timeout_s=30, now_s=0)
    builder = BatchBuilder()
    for _ in range(65_537):
        builder.append(b"")
    with pytest.raises(BatchTooLarge) as raised:
        queue.put_batch(builder, timeout_s=30, now_s=0)
    assert raised.value.unit == "records"
    assert not queue.has_unsent()


def test_what_a_lost_session_had_is_sent_again_first_and_under_the_same_name() -> None:
    """Field notes 36 and 41: in flight is unresolved, and goes ahead of what was not sent yet."""
    queue = make(batch_records=1)
    pending = [put(queue, value) for value in (b"a", b"b", b"c")]
    names = [send(queue), send(queue)]
    assert names == [(PRODUCER, 0, 0), (PRODUCER, 0, 1)]
    assert queue.on_session_lost() == 2
    assert [outcome(p) for p in pending] == [None, None, None], "nothing is reported yet"
    assert reopen(queue) == (0, True, 0, 0)
    assert [send(queue), send(queue), send(queue)] == [*names, (PRODUCER, 0, 2)]
    for offset in (7, 8, 9):
        queue.on_result(Offset(offset), None)
    assert [outcome(p) for p in pending] == [7, 8, 9]
    queue.check_invariants()


def test_an_unresolved_batch_is_looked_for_where_it_can_be() -> None:
    """Not below the floor of the session that first had it, nor below what was acknowledged before
    it; a later session's floor says nothing."""
    queue = make(batch_records=1)
    queue.on_session_lost()
    reopen(queue, floor=100)
    for value in (b"a", b"b", b"c"):
        put(queue, value)
        send(queue)
    queue.on_session_lost()
    assert reopen(queue, floor=500) == (0, True, 100, 0)
    for _ in range(3):
        send(queue)
    queue.on_result(Offset(120), None)
    queue.on_session_lost()
    assert reopen(queue, floor=900) == (1, True, 121, 0)


def test_what_a_session_that_moved_has_not_answered_is_new_again() -> None:
    """It was never admitted: nothing is looked for, the names stay, and failing it is definite."""
    queue = make(batch_records=1, timeout_s=5)
    first, second = put(queue, b"a"), put(queue, b"b")
    names = [send(queue), send(queue)]
    queue.on_result(Offset(3), None)
    queue.on_session_moved()
    assert reopen(queue, floor=50) == (1, False, 0, 0)
    assert send(queue) == names[1]
    queue.on_session_moved()
    queue.on_time(5, None)
    assert outcome(first) == 3
    assert outcome(second) is NotAppended


def test_a_move_does_not_clear_up_what_was_unresolved_before() -> None:
    """Only an answer settles a batch that an earlier session may have got into the log."""
    queue = make(batch_records=1, timeout_s=5)
    pending = put(queue, b"a")
    send(queue)
    queue.on_session_lost()
    reopen(queue)
    send(queue)
    queue.on_session_moved()
    assert reopen(queue).unresolved
    queue.on_session_moved()
    queue.on_time(5, None)
    assert outcome(pending) is AppendIndefinite


def test_the_server_bounds_the_batches_in_flight() -> None:
    """As many as it remembers of a producer, so that it knows each repetition."""
    queue = make(batch_records=1)
    queue.on_session_lost()
    reopen(queue, batches_max=2)
    for value in (b"a", b"b", b"c"):
        put(queue, value)
    send(queue)
    send(queue)
    assert queue.next_to_send(0) is None
    queue.on_result(Offset(0), None)
    assert send(queue).sequence == 2


def test_a_gap_in_the_sequences_needs_another_session() -> None:
    """A batch between two unresolved ones ran out of time: a session can't carry both sides."""
    queue = make(batch_records=1)
    pending = [
        queue.put(b"x", None, None, timeout_s=timeout_s, now_s=0) for timeout_s in (30, 1, 30)
    ]
    for _ in range(3):
        send(queue)
    queue.on_session_lost()
    queue.on_time(1, None)
    assert outcome(pending[1]) is AppendIndefinite
    assert reopen(queue) == (0, True, 0, 0)
    assert send(queue).sequence == 0
    assert queue.next_to_send(0) is None
    assert not queue.must_reopen(0), "an answer is due yet"
    queue.on_result(Offset(10), None)
    assert queue.next_to_send(0) is None
    assert queue.must_reopen(0)
    queue.on_session_moved()
    assert reopen(queue) == (2, True, 11, 0)
    assert not queue.must_reopen(0)
    assert send(queue).sequence == 2
    queue.check_invariants()


def test_a_batch_that_is_never_sent_takes_no_sequence() -> None:
    """Only what a session had leaves a gap."""
    queue = make(batch_records=1, timeout_s=1)
    put(queue, b"a", now_s=0)
    late = put(queue, b"b", now_s=0.5)
    opening = queue.opening()
    queue.on_time(1, None)
    queue.on_opened(floor=Offset(0))
    assert opening.next_sequence == 0
    assert send(queue, now_s=1).sequence == 0
    queue.on_result(Offset(0), None)
    assert outcome(late) == 0


def test_an_answer_against_the_order_is_the_peers_fault() -> None:
    """An offset below one that was acknowledged can't be that of a later batch."""
    queue = make(batch_records=1)
    pending = [put(queue, value) for value in (b"a", b"b")]
    send(queue)
    send(queue)
    queue.on_result(Offset(5), None)
    with pytest.raises(ProtocolError):
        queue.on_result(Offset(5), None)
    queue.on_session_lost()
    assert outcome(pending[1]) is None
    assert reopen(queue).unresolved


def test_time_runs_out_indefinite_when_sent_and_definite_when_not() -> None:
    """Only a batch that no session ever had is known not to be in the log."""
    queue = make(slots=1, timeout_s=5)
    sent = put(queue, b"a", now_s=0)
    queue.next_to_send(0)
    unsent = put(queue, b"b", now_s=1)
    late = put(queue, b"c", now_s=1)
    assert queue.next_deadline_s() == 5
    assert queue.on_time(5, None), "nothing is left to be answered"
    assert outcome(sent) is AppendIndefinite
    assert outcome(unsent) is None
    queue.on_time(6, None)
    assert outcome(unsent) is outcome(late) is NotAppended
    queue.check_invariants()
    queue.on_result(Offset(0), None)  # the answer comes after all: too late to matter
    assert outcome(sent) is AppendIndefinite


def test_never_sent_because_the_log_is_unavailable_says_so() -> None:
    """The definite error names what kept the batch from being sent."""
    queue = make(timeout_s=5)
    pending = put(queue, b"a")
    queue.on_time(5, LogUnavailable("no sequencer"))
    error = pending.exception()
    assert isinstance(error, LogUnavailable)
    assert "no sequencer" in str(error)


def test_a_refused_batch_is_sent_again_ahead_of_the_others() -> None:
    """Overloaded means not admitted: it is tried again, and the order stays."""
    queue = make(batch_records=1)
    pending = [put(queue, value) for value in (b"a", b"b", b"c")]
    assert queue.next_to_send(0) is not None
    assert queue.next_to_send(0) is not None
    queue.on_result(Offset(0), Overloaded("busy", retry_after_s=0.1))
    assert queue.next_to_send(0) is None, "what follows must not pass it"
    queue.on_session_lost()
    assert reopen(queue) == (0, False, 0, 0), "a session takes nothing behind a refusal"
    for offset in range(3):
        assert queue.next_to_send(0) is not None
        queue.on_result(Offset(offset), None)
    assert [outcome(p) for p in pending] == [0, 1, 2]


def test_a_batch_that_fails_for_good_does_not_take_the_others_along() -> None:
    """It fails by itself, definitely; what was sent behind it goes out on another session."""
    queue = make(batch_records=1)
    first, second = put(queue, b"a"), put(queue, b"b")
    send(queue)
    send(queue)
    queue.on_result(Offset(0), RecordTooLarge(size_bytes=9, max_bytes=8))
    queue.on_session_lost()
    assert outcome(first) is RecordTooLarge
    assert reopen(queue) == (1, False, 0, 0)
    assert send(queue).sequence == 1
    queue.on_result(Offset(4), None)
    assert outcome(second) == 4


def test_no_failure_of_an_unresolved_batch_is_called_definite() -> None:
    """Promise 5: an earlier session may have got it in, whatever a later one says."""
    queue = make(batch_records=1)
    pending = put(queue, b"a")
    send(queue)
    queue.on_session_lost()
    reopen(queue)
    send(queue)
    queue.on_result(Offset(0), RecordTooLarge(size_bytes=9, max_bytes=8))
    assert outcome(pending) is AppendIndefinite


def test_what_a_purge_leaves_unresolved_is_indefinite_and_the_rest_goes_on() -> None:
    """Whether it was in what was purged nobody can tell; what no session had is not touched."""
    queue = make(batch_records=1)
    lost, behind = put(queue, b"a"), put(queue, b"b")
    send(queue)
    queue.on_session_lost()
    reopen(queue)
    queue.on_session_lost()
    assert queue.fail_unresolved(Purged(offset=3, start=9))
    assert (outcome(lost), outcome(behind)) == (AppendIndefinite, None)
    assert "begins at 9" in str(lost.exception())
    assert not queue.fail_unresolved(Purged(offset=3, start=9)), "there is no more of it"
    assert reopen(queue, floor=9) == (1, False, 0, 0)
    send(queue)
    queue.on_result(Offset(12), None)
    assert outcome(behind) == 12
    queue.check_invariants()


def test_closing_tells_what_was_sent_from_what_was_not() -> None:
    """No more sessions: definite for what none ever had."""
    queue = make(slots=1)
    sent = put(queue, b"a")
    send(queue)
    unsent = put(queue, b"b")
    queue.end(InvalidArgument("closed"))
    assert outcome(sent) is AppendIndefinite
    assert outcome(unsent) is InvalidArgument
    queue.check_invariants()


def test_the_log_may_go_on_below_what_was_acknowledged() -> None:
    """An operator accepts a loss: the segment ends at 300, although 499 was acknowledged. That is
    no fault of the new sequencer, and what it says is what counts from then on."""
    queue = make(batch_records=1)
    first = put(queue, b"a")
    send(queue)
    queue.on_result(Offset(499), None)
    second, third = put(queue, b"b"), put(queue, b"c")
    queue.on_session_lost()
    reopen(queue, floor=500)
    send(queue)
    send(queue)
    queue.on_session_lost()
    told = reopen(queue, floor=300, segment_index=2)
    assert told == (1, True, 500, 0), "told in segment 0, so the sequencer looks lower"
    send(queue)
    send(queue)
    queue.on_result(Offset(300), None)
    queue.on_session_lost()
    assert reopen(queue, floor=301, segment_index=3) == (2, True, 301, 2)
    send(queue)
    queue.on_result(Offset(301), None)
    assert [outcome(pending) for pending in (first, second, third)] == [499, 300, 301]


def test_within_a_session_offsets_rise() -> None:
    """It has one loglet, in which nothing is ever given out again."""
    queue = make(batch_records=1)
    first, second = put(queue, b"a"), put(queue, b"b")
    send(queue)
    send(queue)
    queue.on_result(Offset(7), None)
    with pytest.raises(ProtocolError):
        queue.on_result(Offset(6), None)
    assert (outcome(first), outcome(second)) == (7, None)


def test_an_answer_without_a_batch_is_the_peers_fault() -> None:
    """The server must answer each batch exactly once."""
    with pytest.raises(ProtocolError):
        make().on_result(Offset(0), None)


def test_the_first_unseen_failure_is_kept() -> None:
    """A failure that its caller looked at is not reported twice; another one is reported."""
    queue = make(batch_records=1)
    seen, unseen = put(queue, b"a"), put(queue, b"b")
    queue.fail_unsent(LogUnavailable("closed"))
    assert isinstance(seen.exception(), LogUnavailable)
    assert queue.take_failure() is not None
    assert queue.take_failure() is None
    assert isinstance(unseen.exception(), LogUnavailable)


def test_a_refused_batch_is_sent_again_as_it_was() -> None:
    """The caller may go on with its builder; what is sent again must be what was handed over."""
    queue = make()
    builder = BatchBuilder()
    builder.append(b"a")
    batch = queue.put_batch(builder, timeout_s=30, now_s=0)
    assert queue.next_to_send(0.0) is batch
    sent = batch.data
    assert check_batch(sent).producer == (PRODUCER, 0, 0)
    builder.append(b"b")
    assert len(batch.builder) == 0, "the sender keeps the bytes, for there is nothing else"
    queue.on_result(Offset(0), Overloaded("later", retry_after_s=0.1))
    reopen(queue)
    assert queue.next_to_send(0.0) is batch
    assert batch.data == sent
