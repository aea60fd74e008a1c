"""Open loop: records are sent at the times that were meant, whatever the system does.

A closed loop waits for answers, so a system that stalls is asked less and its stall is counted
once: *coordinated omission*. Here record k is meant for `start + k / rate`; what could not be sent
then is sent as soon as it can be, and its latency counts from the moment it was meant for. So a
stall shows in every record that a user would have felt it with.
"""

from __future__ import annotations

from typing import Final

from sharedlog.benchmark.histogram import Histogram

_GROUP_S: Final = 0.001
"""Records that are meant for so long a time are sent together: a load that woke for each of fifty
thousand a second would measure itself."""


class OpenLoop:
    """The intended send times of a constant rate, handed out in groups that are due.

    Pure: the caller says what time it is.
    """

    __slots__ = ("_group", "_next", "_per_record_s", "_start_s", "_total")

    def __init__(self, *, rate: float, start_s: float, seconds: float) -> None:
        assert rate > 0
        self._per_record_s = 1.0 / rate
        self._group = max(1, int(rate * _GROUP_S))
        self._start_s = start_s
        self._total = max(1, round(rate * seconds))
        self._next = 0  # Invariant: 0 <= _next <= _total

    def intended_s(self, index: int) -> float:
        """When record `index`, from 0, was meant to be sent."""
        return self._start_s + index * self._per_record_s

    def take_due(self, now_s: float, most: int) -> range:
        """Records whose time has come and that were not taken yet, at most `most`; maybe none."""
        passed = (
            int((now_s - self._start_s) / self._per_record_s) + 1 if now_s >= self._start_s else 0
        )
        end = min(passed, self._total, self._next + most)
        due = range(self._next, max(end, self._next))
        self._next = due.stop
        return due

    @property
    def done(self) -> bool:
        """Every record was taken."""
        return self._next == self._total

    def wait_s(self, now_s: float) -> float:
        """So long until the next record, or group of them, is due; 0.0: it is, or all are taken."""
        if self.done:
            return 0.0
        last = min(self._next + self._group, self._total) - 1
        return max(0.0, self.intended_s(last) - now_s)

    def record_latencies(self, due: range, acked_s: float, into: Histogram) -> None:
        """Count each record's latency from the time that it was meant for."""
        if due:
            into.record_falling(acked_s - self.intended_s(due.start), self._per_record_s, len(due))
