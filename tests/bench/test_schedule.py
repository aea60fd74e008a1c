"""The open loop measures from the intended time, under a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.benchmark.histogram import Histogram
from sharedlog.benchmark.schedule import OpenLoop


def test_records_become_due_at_the_rate() -> None:
    schedule = OpenLoop(rate=10.0, start_s=100.0, seconds=1.0)
    assert schedule.take_due(99.99, 100) == range(0)
    assert schedule.wait_s(99.5) == pytest.approx(0.5)
    assert schedule.take_due(100.0, 100) == range(1)
    assert schedule.take_due(100.05, 100) == range(1, 1)
    assert schedule.wait_s(100.05) == pytest.approx(0.05)
    assert schedule.take_due(100.35, 100) == range(1, 4)
    assert schedule.take_due(200.0, 100) == range(4, 10)
    assert schedule.done
    assert schedule.wait_s(200.0) == 0.0
    assert schedule.take_due(300.0, 100) == range(10, 10)


def test_at_a_high_rate_the_records_of_a_millisecond_go_together() -> None:
    """And the last ones do not wait for more."""
    schedule = OpenLoop(rate=50_000.0, start_s=0.0, seconds=0.0012)
    assert schedule.wait_s(0.0) == pytest.approx(49 / 50_000)
    assert schedule.take_due(0.00099, 1_000) == range(50)
    assert schedule.wait_s(0.00099) == pytest.approx(59 / 50_000 - 0.00099)
    latencies = Histogram()
    schedule.record_latencies(range(50), acked_s=0.01, into=latencies)
    assert (latencies.count, latencies.max_s) == (50, 0.01)  # from when each was meant to go


def test_a_stall_shows_in_every_record_that_was_meant_for_it() -> None:
    """No coordinated omission: a system that stalls for a second at 100 records/s spoils 100
    latencies, where a closed loop would report one slow answer."""
    schedule = OpenLoop(rate=100.0, start_s=0.0, seconds=2.0)
    latencies = Histogram()
    schedule.record_latencies(schedule.take_due(0.0, 1), acked_s=1.0, into=latencies)
    # The sender was held up by the stalled record; what was meant meanwhile goes out at once.
    due = schedule.take_due(1.0, 1_000)
    assert due == range(1, 101)
    schedule.record_latencies(due, acked_s=1.001, into=latencies)
    assert latencies.count == 101
    # The records were meant for 0, 0.01, ... 1.0: their latencies are spread evenly over a second.
    assert latencies.percentile_s(50) == pytest.approx(0.5, abs=0.02)
    assert latencies.percentile_s(99) == pytest.approx(0.99, abs=0.02)
    assert latencies.max_s == pytest.approx(1.0)


@given(
    rate=st.floats(0.5, 50_000.0),
    seconds=st.floats(0.1, 3.0),
    steps=st.lists(st.floats(0.0, 0.5), max_size=20),
    most=st.integers(1, 500),
)
def test_every_record_is_handed_out_once_in_order_and_never_early(
    rate: float, seconds: float, steps: list[float], most: int
) -> None:
    schedule = OpenLoop(rate=rate, start_s=5.0, seconds=seconds)
    now_s, expected = 5.0, 0
    for step in steps:
        now_s += step
        due = schedule.take_due(now_s, most)
        assert due.start == expected
        assert len(due) <= most
        expected = due.stop
        assert not due or schedule.intended_s(due[-1]) <= now_s + 1e-9
    while not schedule.done:
        due = schedule.take_due(1e9, most)
        assert due.start == expected
        expected = due.stop
    assert expected == max(1, round(rate * seconds))
