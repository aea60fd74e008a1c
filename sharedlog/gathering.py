"""The core of how long an open batch gathers records although it could leave.

Rules of this file: no I/O, no clock, no `async`; nothing per record.

A batch costs the client and each node some time of a processor whatever its size, so records that
come fast should go in few batches. Left to itself a batch leaves when the one before is answered:
that is soon while the cluster is idle, and makes as many batches as its processors can bear. So
while a quarter of a batch or more comes within `gather_s`, each is given that time to grow. Where
less comes it is not: such a batch would stay small, and be late for little (ADR 17).

Whoever waits for a batch before it hands over the next would wait for nothing. So a batch that has
stopped growing for `STALL_S` leaves, and for `REST_S` no other is held up.
"""

from __future__ import annotations

from typing import Final

STALL_S: Final = 0.002
REST_S: Final = 0.25


class Gathering:
    """Of one appender. Times are of one monotonic clock."""

    __slots__ = (
        *("_bytes", "_gather_s", "_gathers", "_linger_s", "_opened_s"),
        *("_rest_s", "_seen_bytes", "_stall_s", "_until_s"),
    )

    def __init__(self, *, linger_s: float, gather_s: float) -> None:
        self._linger_s = linger_s
        self._gather_s = gather_s
        self._gathers = False  # the open batch is given time for the rate's sake
        self._opened_s = 0.0
        self._until_s = 0.0  # the open batch may leave then, whatever happens
        self._bytes = 0  # of batches that were closed since the open one's predecessor was opened
        self._seen_bytes = 0  # of the open batch when it was last asked for
        self._stall_s = 0.0  # if it has not grown by then, it grows no more
        self._rest_s = 0.0  # none is held up before

    def on_open(self, now_s: float, batch_bytes: int) -> None:
        """A batch is opened; `batch_bytes` is what a full one has."""
        is_fast = 4 * self._bytes * self._gather_s >= batch_bytes * (now_s - self._opened_s) > 0
        is_allowed = now_s >= self._rest_s and self._gather_s > self._linger_s
        self._gathers = is_fast and is_allowed
        self._until_s = now_s + (self._gather_s if self._gathers else self._linger_s)
        self._opened_s, self._stall_s = now_s, now_s + STALL_S
        self._bytes = self._seen_bytes = 0

    def on_close(self, size: int) -> None:
        """The open batch gathers no more; it has `size` bytes."""
        self._bytes += size

    def is_over(self, now_s: float, size: int) -> bool:
        """The open batch, which has `size` bytes by now, may leave."""
        if now_s >= self._until_s:
            return True
        if not self._gathers:
            return False
        if size > self._seen_bytes:
            self._seen_bytes, self._stall_s = size, now_s + STALL_S
            return False
        if now_s < self._stall_s:
            return False
        self._gathers, self._rest_s = False, now_s + REST_S
        self._until_s = self._opened_s + self._linger_s
        return now_s >= self._until_s

    def left_s(self, now_s: float) -> float | None:
        """When to ask `is_over` again, from now on; None: now."""
        until_s = min(self._until_s, self._stall_s) if self._gathers else self._until_s
        return until_s - now_s if until_s > now_s else None
