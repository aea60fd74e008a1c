"""How long an open batch gathers records: only where they come fast, and no longer than they do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.append_queue import AppendQueue
from sharedlog.config import AppenderConfig
from sharedlog.gathering import REST_S, STALL_S, Gathering
from sharedlog.ids import Offset

FULL = 1_000
GATHER_S = 0.006


def busy(*, linger_s: float = 0.0, gather_s: float = GATHER_S, size: int = FULL // 3) -> Gathering:
    """A batch of `size` bytes was gathered in `GATHER_S`, and the next is opened at time 1."""
    gathering = Gathering(linger_s=linger_s, gather_s=gather_s)
    gathering.on_open(1 - GATHER_S, FULL)
    gathering.on_close(size)
    gathering.on_open(1, FULL)
    return gathering


def test_where_records_come_fast_a_batch_is_given_time() -> None:
    gathering = busy()
    at = 1.0
    for size in (100, 200, 300):
        assert not gathering.is_over(at, size)
        assert gathering.left_s(at) == pytest.approx(STALL_S)
        at += STALL_S / 2
    assert not gathering.is_over(1 + GATHER_S - 0.0001, 400)
    assert gathering.left_s(1 + GATHER_S - 0.0001) is not None
    assert gathering.is_over(1 + GATHER_S, 500)


def test_where_they_come_slowly_it_is_not() -> None:
    """The first batch of all, less than a quarter of a batch in that time, a pause."""
    first = Gathering(linger_s=0, gather_s=GATHER_S)
    first.on_open(1, FULL)
    assert first.is_over(1, 10)
    assert busy(size=FULL // 4 - 1).is_over(1, 10)
    rested = busy()
    rested.on_close(FULL)
    rested.on_open(2, FULL)
    assert rested.is_over(2, 10)


def test_it_can_be_turned_off_and_linger_is_kept() -> None:
    assert busy(gather_s=0).is_over(1, 10)
    lingering = busy(linger_s=0.01)
    assert lingering.left_s(1) == pytest.approx(0.01)
    assert not lingering.is_over(1.009, 10)
    assert lingering.is_over(1.01, 10)


def test_who_waits_for_each_batch_is_not_held_up_again_and_again() -> None:
    """Nothing comes while a batch is held: it leaves, and for a while all leave at once, however
    many there are."""
    gathering = busy()
    assert not gathering.is_over(1, FULL // 2)
    at = 1 + STALL_S
    assert gathering.is_over(at, FULL // 2)
    until_s = at + REST_S
    while at + GATHER_S / 10 < until_s:
        gathering.on_close(FULL)
        at += GATHER_S / 10
        gathering.on_open(at, FULL)
        assert gathering.is_over(at, FULL // 2)
    gathering.on_close(FULL)
    gathering.on_open(until_s, FULL)
    assert not gathering.is_over(until_s, FULL // 2), "it is tried again"


@given(
    st.lists(st.tuples(st.floats(1e-6, 0.02), st.integers(0, 2 * FULL)), min_size=1, max_size=40),
    st.sampled_from((0.0, 0.003, 0.01)),
    st.sampled_from((0.0, GATHER_S)),
)
def test_a_batch_always_leaves_in_time(
    steps: list[tuple[float, int]], linger_s: float, gather_s: float
) -> None:
    """Whoever asks again when it is said to, leaves within the longer of the two times."""
    gathering = Gathering(linger_s=linger_s, gather_s=gather_s)
    at = 5.0
    for pause_s, size in steps:
        at += pause_s
        gathering.on_open(at, FULL)
        opened_s, looks, now_size = at, 0, 1
        while not gathering.is_over(at, now_size):
            looks += 1
            left_s = gathering.left_s(at)
            assert left_s is not None, "nobody would ask again"
            at += left_s
            now_size = min(size, now_size + size // 4)
        assert looks < 10
        assert at <= opened_s + max(linger_s, gather_s) + 1e-9
        gathering.on_close(now_size)


def test_an_appender_gathers_what_comes_fast_into_few_batches() -> None:
    """Through the queue: with a free slot, a batch leaves when it is full or its time is over."""
    config = AppenderConfig(batch_bytes=4_000, gather_s=GATHER_S)
    queue = AppendQueue(config, producer_id=1)
    queue.opening()
    queue.on_opened(floor=Offset(0))
    at, end, sent = 10.0, 0, []
    for _ in range(100):  # a record of 100 bytes each 0.2 ms is 500 bytes per millisecond
        queue.put(bytes(100), None, None, timeout_s=30, now_s=at)
        while (batch := queue.next_to_send(at)) is not None:
            sent.append(batch.size)
            queue.on_result(Offset(end), None)
            end += batch.count
        left_s = queue.linger_s(at)
        assert left_s is None or left_s <= GATHER_S
        at += 0.0002
    assert len(sent) < 10, "and not one for each record"
    assert queue.open is not None
    queue.cut()
    assert queue.next_to_send(at) is not None, "who flushes waits for nothing"


@pytest.mark.parametrize(
    "config",
    [AppenderConfig(linger_s=0.01, batch_records=1), AppenderConfig(linger_s=0.01, batch_bytes=99)],
)
def test_what_is_full_is_never_held(config: AppenderConfig) -> None:
    """Nothing more can join it."""
    queue = AppendQueue(config, producer_id=1)
    queue.opening()
    queue.on_opened(floor=Offset(0))
    at = 10.0
    for first in range(50):
        queue.put(bytes(100), None, None, timeout_s=30, now_s=at)
        assert queue.next_to_send(at) is not None
        queue.on_result(Offset(first), None)
        at += 0.0001
