"""How fast background work may go: a bucket, of bytes or of looks, that fills at a fixed rate."""

from __future__ import annotations

from sharedlog.clock import Clock


class Pace:
    """Whoever spent something waits here until it is paid for; several users share it fairly.

    At most one second's worth is saved up while nobody works, and one `spend` may overdraw: a
    single large message always passes.
    """

    def __init__(self, per_s: int, clock: Clock) -> None:
        assert per_s > 0
        self._rate = per_s
        self._clock = clock
        self._free_at_s = clock.monotonic_s() - 1.0  # when all that was spent will be paid for

    async def spend(self, size: int) -> None:
        """Account for `size`; waits while more than one second's worth was spent ahead."""
        now_s = self._clock.monotonic_s()
        self._free_at_s = max(self._free_at_s, now_s - 1.0) + size / self._rate
        if self._free_at_s > now_s:
            await self._clock.sleep(self._free_at_s - now_s)
