"""Waits between attempts: doubling, with jitter so that many clients do not come back together."""

from __future__ import annotations

from random import Random


class Backoff:
    """Hands out the next wait; `reset` after a success."""

    __slots__ = ("_max_s", "_min_s", "_next_s", "_rng")

    def __init__(self, rng: Random, *, min_s: float, max_s: float) -> None:
        self._rng = rng
        self._min_s = min_s
        self._max_s = max_s
        self._next_s = min_s

    def next_s(self) -> float:
        """A wait between half and one and a half of the present mean, which then doubles."""
        mean = self._next_s
        self._next_s = min(self._max_s, 2 * mean)
        return mean * (0.5 + self._rng.random())

    def reset(self) -> None:
        """Begin again with the shortest."""
        self._next_s = self._min_s
