"""A named producer's records have no gap: it stops at its first failure."""

from __future__ import annotations

import pytest

from sharedlog.append_queue import AppendQueue
from sharedlog.batch import BatchBuilder, parse_batch_header
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    FencingTokenMismatch,
    InvalidArgument,
    NotAppended,
    OffsetMismatch,
    Purged,
)
from sharedlog.ids import Offset
from sharedlog.pending import AppendBatch, Conditions, PendingAppend


def make() -> AppendQueue:
    queue = AppendQueue(AppenderConfig(slots=9, batch_records=1), producer_id=7, named=True)
    queue.opening()
    queue.on_life(3, 10)
    queue.on_opened(floor=Offset(0))
    return queue


def put(queue: AppendQueue, value: bytes, *, timeout_s: float = 10) -> PendingAppend:
    return queue.put(value, None, None, timeout_s=timeout_s, now_s=0)


def put_batch(queue: AppendQueue, match_offset: int) -> AppendBatch:
    builder = BatchBuilder()
    builder.append(b"x")
    conditions = Conditions(match_offset=match_offset)
    return queue.put_batch(builder, timeout_s=10, now_s=0, conditions=conditions)


def send(queue: AppendQueue) -> int:
    """The sequence of the batch that is sent."""
    batch = queue.next_to_send(0.0)
    assert batch is not None
    return parse_batch_header(batch.data).producer.sequence


def reopen(queue: AppendQueue) -> int:
    opening = queue.opening()
    queue.on_opened(floor=Offset(0))
    return opening.next_sequence


def test_nothing_is_sent_behind_a_batch_that_ran_out_of_time() -> None:
    """Else the next life would be told to go on behind records that may not be in the log."""
    queue = make()
    lost, behind = put(queue, b"a", timeout_s=1), put(queue, b"b")
    assert [send(queue), send(queue)] == [10, 11]
    queue.on_session_lost()
    never_sent = put(queue, b"c")
    queue.on_time(2.0, None)
    queue.check_invariants()
    assert isinstance(lost.exception(), AppendIndefinite)
    assert isinstance(behind.exception(), AppendIndefinite)
    assert isinstance(never_sent.exception(), InvalidArgument), "definite: no session had it"
    assert not queue.has_unsent()
    with pytest.raises(InvalidArgument):
        queue.refuse_if_stopped()


def test_nothing_is_sent_behind_a_batch_that_a_purge_left_unresolved() -> None:
    queue = make()
    lost = put(queue, b"a")
    assert send(queue) == 10
    queue.on_session_lost()
    never_sent = put(queue, b"b")
    assert queue.fail_unresolved(Purged(offset=3, start=9))
    queue.check_invariants()
    assert isinstance(lost.exception(), AppendIndefinite)
    assert isinstance(never_sent.exception(), InvalidArgument), "definite: no session had it"
    with pytest.raises(InvalidArgument):
        queue.refuse_if_stopped()


def test_nothing_takes_the_number_of_a_record_that_was_never_sent() -> None:
    """The record that follows would have it, and the next life would miss one of its input."""
    queue = make()
    queue.on_session_lost()
    late, behind = put(queue, b"a", timeout_s=1), put(queue, b"b")
    queue.on_time(2.0, None)
    assert isinstance(late.exception(), NotAppended)
    assert isinstance(behind.exception(), InvalidArgument)
    assert queue.next_sequence == 10


def test_a_session_that_has_what_follows_answers_it() -> None:
    """Within a session nothing is passed over: what is acknowledged behind has what is before."""
    queue = make()
    late, behind = put(queue, b"a", timeout_s=1), put(queue, b"b")
    assert [send(queue), send(queue)] == [10, 11]
    queue.on_time(2.0, None)
    assert isinstance(late.exception(), AppendIndefinite)
    assert not behind.done()
    queue.on_result(Offset(4), None)
    queue.on_result(Offset(5), None)
    assert behind.result() == 5


def test_a_batch_that_is_moved_behind_a_failure_is_not_in_the_log() -> None:
    queue = make()
    put(queue, b"a", timeout_s=1)
    behind = put(queue, b"b")
    assert [send(queue), send(queue)] == [10, 11]
    queue.on_time(2.0, None)
    queue.on_session_moved()
    assert isinstance(behind.exception(), InvalidArgument)
    assert not queue.has_unsent()


def test_what_follows_a_failed_condition_fails_with_it() -> None:
    """The caller handed it over in the belief that the one before would be in the log."""
    queue = make()
    fenced, behind = put(queue, b"a"), put(queue, b"b")
    send(queue)
    send(queue)
    queue.on_result(Offset(0), FencingTokenMismatch(given="a", current="b"))
    assert isinstance(fenced.exception(), FencingTokenMismatch)
    assert isinstance(behind.exception(), InvalidArgument)


def test_a_condition_that_failed_may_be_tried_again() -> None:
    """With nothing behind it, its number is free: the records in the log have no gap."""
    queue = make()
    first = put_batch(queue, 5)
    assert send(queue) == 10
    queue.on_session_lost()
    assert reopen(queue) == 10
    send(queue)
    queue.on_result(Offset(0), OffsetMismatch(match_offset=5, tail=7))
    assert isinstance(first.error, OffsetMismatch)
    queue.refuse_if_stopped()
    again = put_batch(queue, 7)
    assert reopen(queue) == 10
    assert send(queue) == 10
    queue.on_result(Offset(7), None)
    assert again.first_offset() == 7
    assert queue.next_sequence == 11
    queue.check_invariants()
