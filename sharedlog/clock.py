"""The one door for time.

Everything that waits or stamps takes a `Clock`, so that the same code runs under real time and
under the simulator's virtual time. The linter bans the standard library's own functions elsewhere.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Tells and waits for time."""

    def now_ms(self) -> int:
        """Unix time in milliseconds; may run backwards, as clocks do."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed moment; never runs backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait. **Cancellation:** ends the wait."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        """See `Clock.now_ms`."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """See `Clock.monotonic_s`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See `Clock.sleep`."""
        await asyncio.sleep(seconds)
