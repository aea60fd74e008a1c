"""Latencies, counted in buckets whose width is a fixed part of their value.

Each power of two of microseconds is cut into `_STEPS` equal buckets, so a percentile is at most
1/128 (0.8 %) above the true one and never below it, from a microsecond to hours, in a few hundred
counters however long the run. Minimum and maximum are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

_STEPS = 128
_UNIT_S = 1e-6
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}


class Histogram:
    """Counts durations in seconds."""

    __slots__ = ("_buckets", "count", "max_s", "min_s", "total_s")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total_s = 0.0
        self.min_s = math.inf
        self.max_s = 0.0

    def record(self, seconds: float, count: int = 1) -> None:
        """Count a duration `count` times: so many records shared it. Negative is taken as 0."""
        assert count > 0
        seconds = max(0.0, seconds)
        self._buckets[_bucket(seconds)] += count
        self.count += count
        self.total_s += seconds * count
        self.min_s = min(self.min_s, seconds)
        self.max_s = max(self.max_s, seconds)

    def record_falling(self, first_s: float, step_s: float, count: int) -> None:
        """Count the `count` durations `first_s - k * step_s`, k from 0; `step_s` is positive.

        The same as `record` for each, in a step per bucket instead of one per duration: those of
        fifty thousand records a second would otherwise cost as much as appending them.
        """
        assert count > 0
        assert step_s > 0
        at = 0
        while at < count:
            longest_s = first_s - at * step_s
            if longest_s <= 0:
                self.record(0.0, count - at)
                return
            bucket = _bucket(longest_s)
            end = min(count, at + 1 + int((longest_s - _lower_end_s(bucket)) / step_s))
            # Rounding may be off by one on either side of the bucket's lower end.
            while not _is_within(first_s - (end - 1) * step_s, bucket):
                end -= 1
            while end < count and _is_within(first_s - end * step_s, bucket):
                end += 1
            self._count_falling(bucket, longest_s, first_s - (end - 1) * step_s, end - at)
            at = end

    def _count_falling(self, bucket: int, longest_s: float, shortest_s: float, count: int) -> None:
        self._buckets[bucket] += count
        self.count += count
        self.total_s += (longest_s + shortest_s) / 2 * count
        self.min_s = min(self.min_s, shortest_s)
        self.max_s = max(self.max_s, longest_s)

    def add(self, other: Histogram) -> None:
        """Take in all that another histogram counted."""
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total_s += other.total_s
        self.min_s = min(self.min_s, other.min_s)
        self.max_s = max(self.max_s, other.max_s)

    def percentile_s(self, percent: float) -> float:
        """The smallest bucket's upper end below which `percent` of all durations lie; 0.0 if none.

        Nearest rank: `percentile_s(50)` of ten durations is the fifth, `percentile_s(100)` the
        largest.
        """
        return self.percentiles_s([percent])[0]

    def percentiles_s(self, percents: Iterable[float]) -> list[float]:
        """`percentile_s` for several, which must ascend, in one pass."""
        found: list[float] = []
        buckets = iter(sorted(self._buckets.items()))
        bucket, seen = 0, 0
        for percent in percents:
            assert 0.0 < percent <= 100.0
            rank = max(1, math.ceil(round(self.count * percent / 100.0, 6)))
            while seen < rank and self.count:
                bucket, count = next(buckets)
                seen += count
            found.append(min(_upper_end_s(bucket), self.max_s) if self.count else 0.0)
        return found

    @property
    def mean_s(self) -> float:
        """Mean duration; 0.0 if there is none."""
        return self.total_s / self.count if self.count else 0.0

    def summary_ms(self) -> dict[str, float]:
        """`p50`, `p90`, `p99`, `p999` and `max` in milliseconds."""
        found = self.percentiles_s(PERCENTILES.values())
        summary = dict(zip(PERCENTILES, found, strict=True)) | {"max": self.max_s}
        return {name: round(seconds * 1e3, 4) for name, seconds in summary.items()}


def _bucket(seconds: float) -> int:
    """Number of the bucket; grows with the duration."""
    fraction, exponent = math.frexp(seconds / _UNIT_S)
    if exponent <= 0:
        return 0  # below a microsecond
    # fraction is in [0.5, 1): its place among the steps of this power of two
    return exponent * _STEPS + int((fraction - 0.5) * 2 * _STEPS)


def _is_within(seconds: float, bucket: int) -> bool:
    return seconds > 0 and _bucket(seconds) == bucket


def _upper_end_s(bucket: int) -> float:
    return _UNIT_S if bucket == 0 else _end_s(bucket, 1)


def _lower_end_s(bucket: int) -> float:
    return 0.0 if bucket == 0 else _end_s(bucket, 0)


def _end_s(bucket: int, steps: int) -> float:
    exponent, step = divmod(bucket, _STEPS)
    return math.ldexp(0.5 + (step + steps) / (2 * _STEPS), exponent) * _UNIT_S
