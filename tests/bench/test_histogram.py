"""`Histogram` against a naive computation over the sorted list."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.benchmark.histogram import Histogram

DURATIONS = st.floats(min_value=1e-6, max_value=5_000.0, allow_nan=False)
PERCENTS = (1.0, 50.0, 90.0, 99.0, 99.9, 100.0)


def naive_percentile(durations: list[float], percent: float) -> float:
    ordered = sorted(durations)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100.0 - 1e-9) - 1)]


@given(st.lists(DURATIONS, min_size=1, max_size=200), st.sampled_from(PERCENTS))
def test_a_percentile_is_never_below_the_true_one_and_under_a_percent_above(
    durations: list[float], percent: float
) -> None:
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    true = naive_percentile(durations, percent)
    assert true * (1 - 1e-9) <= histogram.percentile_s(percent) <= true * (1 + 1 / 128 + 1e-9)


def test_many_samples_of_a_long_tailed_kind() -> None:
    source = random.Random(7)
    durations = [source.lognormvariate(-7.0, 1.0) for _ in range(20_000)]
    histogram = Histogram()
    for duration in durations:
        histogram.record(duration)
    for percent in PERCENTS:
        true = naive_percentile(durations, percent)
        assert true <= histogram.percentile_s(percent) <= true * 1.008
    assert histogram.max_s == max(durations)
    assert histogram.min_s == min(durations)
    assert histogram.mean_s == pytest.approx(sum(durations) / len(durations))


@given(st.lists(st.tuples(DURATIONS, st.integers(1, 50)), min_size=1, max_size=30))
def test_a_weight_counts_as_so_many_single_durations(weighted: list[tuple[float, int]]) -> None:
    together, one_by_one = Histogram(), Histogram()
    for duration, weight in weighted:
        together.record(duration, weight)
        for _ in range(weight):
            one_by_one.record(duration)
    assert together.count == one_by_one.count
    assert together.percentiles_s(PERCENTS) == one_by_one.percentiles_s(PERCENTS)


@given(st.lists(DURATIONS, max_size=50), st.lists(DURATIONS, max_size=50))
def test_two_histograms_added_are_one_of_all_durations(
    left: list[float], right: list[float]
) -> None:
    halves = Histogram(), Histogram()
    whole = Histogram()
    for half, durations in zip(halves, (left, right), strict=True):
        for duration in durations:
            half.record(duration)
            whole.record(duration)
    halves[0].add(halves[1])
    assert halves[0].count == whole.count
    assert halves[0].summary_ms() == whole.summary_ms()


@given(
    st.floats(min_value=-1.0, max_value=50.0),
    st.floats(min_value=1e-7, max_value=0.5),
    st.integers(1, 300),
)
def test_falling_durations_count_as_each_of_them(first: float, step: float, count: int) -> None:
    together, each = Histogram(), Histogram()
    together.record_falling(first, step, count)
    for index in range(count):
        each.record(first - index * step)
    assert together.percentiles_s(PERCENTS) == pytest.approx(each.percentiles_s(PERCENTS))
    assert together._buckets == each._buckets
    assert (together.count, together.max_s) == (each.count, each.max_s)
    assert together.min_s == each.min_s
    assert together.total_s == pytest.approx(each.total_s, abs=1e-9)


def test_buckets_of_a_duration_are_few_and_the_edges_hold() -> None:
    """A whole run takes a few hundred counters, and 0, 1 µs and clock steps backwards are taken."""
    histogram = Histogram()
    for duration in (-1.0, 0.0, 1e-9, 1e-6, 2e-6, 3600.0):
        histogram.record(duration)
    assert histogram.count == 6
    assert histogram.min_s == 0.0
    assert histogram.percentile_s(50) == pytest.approx(1e-6)
    assert histogram.percentile_s(100) == 3600.0
    for step in range(100_000):
        histogram.record(1e-5 + step * 1e-6)  # 10 µs to 0.1 s
    assert len(histogram._buckets) < 128 * 15


def test_an_empty_histogram_has_zeros() -> None:
    assert Histogram().summary_ms() == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "p999": 0.0, "max": 0.0}
    assert Histogram().mean_s == 0.0
