"""How fast an object is made: no faster than it must be, so that appends have their turns.

Whoever archives shares a processor, an event loop and disks with whoever appends, and a log is
archived an object at a time. At full speed each would be a burst that holds up the appends beside
it. So the work is spread: as much of it per second as brings the archive up to the log within
`CATCH_UP_S`, and never less than `BYTES_PER_S_MIN`. Where a log grows steadily that ends in a
steady distance between the two; where much is left to archive it is as fast as it goes.
"""

from __future__ import annotations

from typing import Final

from sharedlog.clock import Clock
from sharedlog.limits import MIB

CATCH_UP_S: Final = 1.5
BYTES_PER_S_MIN: Final = 64 * MIB
"""Of what goes to the store and of what is read back, together."""
_PAUSE_S_MIN: Final = 0.005
"""Shorter ones are saved up: a pause takes a turn of the event loop at least."""
_LATE_S_MAX: Final = 0.01
"""So much of the time that was lost is made up for."""


class Pace:
    """Of one object."""

    def __init__(self, clock: Clock) -> None:
        self._bytes_per_s: float = BYTES_PER_S_MIN
        self._clock = clock
        self._due_s = clock.monotonic_s()  # when as much as was moved may have been moved

    def aim(self, backlog: int) -> None:
        """About so many bytes wait to be archived, the object's own included."""
        # Each byte is moved twice.
        self._bytes_per_s = max(BYTES_PER_S_MIN, 2 * backlog / CATCH_UP_S)

    async def moved(self, size: int) -> None:
        """So many bytes were: wait until more may be. **Cancellation:** ends the wait."""
        now_s = self._clock.monotonic_s()
        # Little of the time that was lost is made up for: all of it would be a burst.
        self._due_s = max(self._due_s, now_s - _LATE_S_MAX) + size / self._bytes_per_s
        if self._due_s - now_s >= _PAUSE_S_MIN:
            await self._clock.sleep(self._due_s - now_s)
