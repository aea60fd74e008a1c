"""What the comparison asks of a system."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

HOW_TO_INSTALL = "install the Debian packages with `make test-deps`"
_SEND_RECORDS_MAX = 256


class Peer(Protocol):
    """One system: started for one measurement, used by one client, stopped and thrown away."""

    name: str
    version: str
    """Known once it has started."""
    ack: str
    """What is true of a record when its append is acknowledged; exact once it has started."""

    def missing(self) -> str | None:
        """Why it can't be measured on this machine, in one line, or None."""
        ...

    async def start(self, directory: Path) -> None:
        """Start the servers with their data in `directory` and be ready for appends.

        Raises:
            PeerFailed: they did not start. `stop` must be called all the same.
        """
        ...

    async def stop(self) -> None:
        """Stop everything that `start` began. Idempotent."""
        ...

    async def append(self, value: bytes) -> None:
        """Append one record; returns once it is acknowledged."""
        ...

    async def append_pipelined(self, value: bytes, *, until_s: float, in_flight: int) -> int:
        """Append the same record over and over, at most `in_flight` of them not acknowledged.

        Begins no append after `until_s` (`time.monotonic`), waits for the acknowledgements that
        are due, returns how many came.
        """
        ...


class InFlight:
    """Counts one pipelined run of a protocol whose answers need not be told apart.

    Invariant: `acked <= sent`, and `sent - acked <= limit`.
    """

    __slots__ = ("acked", "limit", "sent")

    def __init__(self, limit: int) -> None:
        assert limit > 0
        self.limit = limit
        self.sent = 0
        self.acked = 0

    def room(self) -> int:
        """So many records may be sent now."""
        return self.limit - (self.sent - self.acked)

    @property
    def drained(self) -> bool:
        """Nothing is waited for."""
        return self.acked == self.sent


async def drive_pipeline(
    in_flight: int,
    until_s: float,
    send: Callable[[int], Awaitable[None]],
    read_acks: Callable[[], Awaitable[int]],
) -> int:
    """Keep the window between half full and full until `until_s`, then drain it; returns the acks.

    `send(n)` sends n records, `read_acks` waits for some answers and says how many came.
    """
    run = InFlight(in_flight)
    while time.monotonic() < until_s:
        count = min(run.room(), _SEND_RECORDS_MAX)
        await send(count)
        run.sent += count
        while run.room() < max(1, in_flight // 2):
            run.acked += await read_acks()
    while not run.drained:
        run.acked += await read_acks()
    return run.acked
