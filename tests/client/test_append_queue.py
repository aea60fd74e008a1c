"""The appender's core: batching, bounds, order, and how each batch ends."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedlog.append_queue import AppendQueue
from sharedlog.batch import BatchBuilder, parse_batch_header
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    BatchTooLarge,
    DeadlineExceeded,
    EmptyBatch,
    InvalidArgument,
    LogUnavailable,
    Overloaded,
    ProtocolError,
    RecordTooLarge,
    SharedLogError,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.limits import RECORD_BYTES_MAX
from sharedlog.pending import AppendBatch, PendingAppend

LOST = Unreachable("gone")


def make(**settings_: float) -> AppendQueue:
    return AppendQueue(AppenderConfig(**settings_))  # type: ignore[arg-type]  # numbers by name


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


def test_a_lost_session_leaves_what_was_sent_unknown_and_what_was_not_waiting() -> None:
    """Field note 41: in flight is indefinite; not sent is sent later."""
    queue = make(slots=1)
    sent = put(queue, b"a")
    queue.next_to_send(0.0)
    unsent = put(queue, b"b")
    assert queue.on_session_lost(LOST) == 1
    assert outcome(sent) is AppendIndefinite
    assert outcome(unsent) is None
    assert queue.next_to_send(0.0) is not None
    queue.on_result(Offset(7), None)
    assert outcome(unsent) == 7


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
    assert outcome(unsent) is outcome(late) is DeadlineExceeded
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
    queue.on_result(Offset(0), Overloaded("busy", retry_after_s=0.1))
    queue.on_session_lost(Overloaded("busy", retry_after_s=0.1))
    for offset in range(3):
        assert queue.next_to_send(0) is not None
        queue.on_result(Offset(offset), None)
    assert [outcome(p) for p in pending] == [0, 1, 2]


def test_a_refused_batch_fails_if_a_later_one_got_in() -> None:
    """Sending it again would put it behind a record that was appended after it."""
    queue = make(batch_records=1)
    first, second = put(queue, b"a"), put(queue, b"b")
    queue.next_to_send(0)
    queue.next_to_send(0)
    queue.on_result(Offset(0), Overloaded("busy", retry_after_s=0.1))
    queue.on_result(Offset(0), None)
    queue.on_session_lost(LOST)
    assert outcome(second) == 0
    assert outcome(first) is Overloaded


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


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    batch_bytes=st.sampled_from([1, 80, 300, 4_000]),
    records=st.sampled_from([1, 3, 50]),
)
def test_any_course_keeps_the_order_and_gives_each_record_one_outcome(
    seed: int, batch_bytes: int, records: int
) -> None:
    """Through any mix of sizes, answers, refusals, losses and time-outs the invariants hold, no
    batch is admitted twice, and acknowledged records lie in the order in which they were put."""
    rng = random.Random(seed)
    queue = make(batch_bytes=batch_bytes, batch_records=records, in_flight_bytes=500, timeout_s=9)
    pending: list[PendingAppend] = []
    admitted: set[AppendBatch] = set()
    tail, now_s = 0, 0.0
    for _ in range(150):
        now_s += rng.choice([0.0, 0.1, 1.0])
        step = rng.random()
        if step < 0.5:
            value = bytes(rng.choice([0, 1, 40, 500]))
            if len(value) < queue.room and rng.random() < 0.5:
                pending.append(queue.put_plain(value))
            else:
                key = b"k" if rng.random() < 0.2 else None
                headers = {"h": b"1"} if rng.random() < 0.1 else None
                pending.append(queue.put(value, key, headers, timeout_s=9, now_s=now_s))
        elif step < 0.7:
            queue.next_to_send(now_s)
        elif step < 0.9 and queue.sent:
            batch = queue.sent[0]
            if rng.random() < 0.8:
                assert batch not in admitted
                admitted.add(batch)
                count = parse_batch_header(batch.data).record_count if batch.data else 1
                queue.on_result(Offset(tail), None)
                tail += count
            else:
                queue.on_result(Offset(0), Overloaded("busy", retry_after_s=0))
        elif step < 0.93:
            queue.on_session_lost(LOST)
        elif step < 0.97:
            queue.on_time(now_s, None)
        queue.check_invariants()
    queue.on_session_lost(LOST)
    queue.fail_unsent(LogUnavailable("over"))
    outcomes = [outcome(p) for p in pending]
    assert None not in outcomes
    offsets = [found for found in outcomes if isinstance(found, int)]
    assert offsets == sorted(offsets)
    queue.check_invariants()


def test_a_refused_batch_is_sent_again_as_it_was() -> None:
    """The caller may go on with its builder; what is sent again must be what was handed over."""
    queue = make()
    builder = BatchBuilder()
    builder.append(b"a")
    batch = queue.put_batch(builder, timeout_s=30, now_s=0)
    assert queue.next_to_send(0.0) is batch
    sent = batch.data
    builder.append(b"b")
    assert len(batch.builder) == 0, "the sender keeps the bytes, for there is nothing else"
    queue.on_result(Offset(0), Overloaded("later", retry_after_s=0.1))
    queue.on_session_lost(LOST)
    assert queue.next_to_send(0.0) is batch
    assert batch.data == sent
