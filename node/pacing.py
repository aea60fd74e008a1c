"""How soon a log may be reconfigured again after it was: the damper of every fight (field note 35).

A failure detector is a hint, and hints can be wrong for long: two nodes that each hold the other
for dead would take a log from each other as fast as they can, and no append would ever get through.
So of each log a node remembers its own attempts: the first is made at once, each further one of a
row waits for twice as long as the one before it did.

A row ends when the log was left in peace for longer than its next wait is, and `QUIET_S` more. So
what fails now and then (a process killed every few seconds) is mended at once each time, while a
fight, whose attempts come as soon as they are let, never looks like peace.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

WAIT_MIN_S: Final = 0.1
WAIT_MAX_S: Final = 5.0
"""After an attempt that succeeded: somebody else undid it."""
FAILED_WAIT_MAX_S: Final = 1.0
"""After one that failed: it disturbed nobody, and the log stands still until one succeeds."""
QUIET_S: Final = 1.0

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Row:
    """Attempts that followed each other closely."""

    last_s: float
    wait_s: float  # before the next one
    attempts: int


class Pacing(Generic[Key]):
    """Pure: time comes in with each call, as monotonic seconds."""

    def __init__(self) -> None:
        self._rows: dict[Key, _Row] = {}

    def wait_s(self, key: Key, now_s: float) -> float:
        """How long to wait before the next attempt; 0 for the first of a row."""
        row = self._rows.get(key)
        if row is None or self._in_peace(row, now_s):
            self._rows.pop(key, None)
            return 0.0
        return max(0.0, row.last_s + row.wait_s - now_s)

    def attempted(self, key: Key, now_s: float, *, succeeded: bool) -> int:
        """An attempt ended; returns how many there were in this row."""
        row = self._rows.pop(key, None)  # the dictionary is in the order of the last attempts
        most = WAIT_MAX_S if succeeded else FAILED_WAIT_MAX_S
        if row is None or self._in_peace(row, now_s):
            row = _Row(now_s, WAIT_MIN_S, 1)
        else:
            row = _Row(now_s, min(most, 2 * row.wait_s), row.attempts + 1)
        self._rows[key] = row
        self._forget(now_s)
        return row.attempts

    def _in_peace(self, row: _Row, now_s: float) -> bool:
        return now_s > row.last_s + 2 * row.wait_s + QUIET_S

    def _forget(self, now_s: float) -> None:
        """Rows that are over; the oldest attempts come first."""
        while self._rows:
            key = next(iter(self._rows))
            if not self._in_peace(self._rows[key], now_s):
                return
            del self._rows[key]
