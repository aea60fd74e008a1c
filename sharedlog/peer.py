"""What all sessions and calls of one client know of a node together, and how many it is sent.

One session's silence says little when the client has a thousand: the node may be busy with the
others. That it has said something to *any* of them in the meantime shows that it lives and can be
reached, and that nobody needs to look into it. If it is silent to all of them, all of them would
suspect it in the same moment, and a thousand reports of a node that is merely busy would make it
busier. So one goes ahead, the *scout*, and has it looked into; the others wait for what it finds
out, though not for long. If the node turns out to be well, all have more patience with it for a
while; if not, all go on at once.

When a node comes back, or a client starts, all of its logs want a session at once. So they take
turns: as many are under way as a node answers quickly, the others wait here, where waiting costs
nothing and no time-out runs. A turn ends with the answer, or after `TURN_S` without one: what hangs
does not hold up the rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

OPENINGS_MAX: Final = 64
"""Sessions of one client that are being opened at one node, within their turns."""
CALLS_MAX: Final = 128
"""Calls of one client that are under way to one node, likewise."""
TURN_S: Final = 0.25
SCOUT_S: Final = 1.0
"""So long do the others wait for the scout's verdict."""
_SCOUT_AWAY_S: Final = 3.0  # then another one may set out
BUSY_MAX: Final = 10
"""Limits that a session gives a node which speaks to others meanwhile."""
_PATIENCE_MAX_S: Final = 5.0
_PATIENCE_KEPT_S: Final = 10.0
_DOUBLINGS_MAX: Final = 16
PEERS_MAX: Final = 256


class Turns:
    """So many at a time, each until it is done or its turn is over."""

    __slots__ = ("_places",)

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[None, None]:
        """Wait for a turn and have it for the length of the block, at most `TURN_S`."""
        await self._places.acquire()
        held = True

        def end() -> None:
            nonlocal held
            if held:
                held = False
                self._places.release()

        over = asyncio.get_running_loop().call_later(TURN_S, end)
        try:
            yield
        finally:
            over.cancel()
            end()


class Peer:
    """One node, by its address. Times are monotonic seconds."""

    __slots__ = (
        "_lost_s",
        "_patience",
        "_patient_until_s",
        "_scout_s",
        "calls",
        "heard_s",
        "openings",
    )

    def __init__(self) -> None:
        self.heard_s = float("-inf")  # when it last said anything
        self.openings = Turns(OPENINGS_MAX)
        self.calls = Turns(CALLS_MAX)
        self._scout_s = float("-inf")  # when a scout set out that is not back yet
        self._lost_s = float("-inf")  # when one came back and said that it does not live
        self._patience = 0
        self._patient_until_s = float("-inf")

    def limit_s(self, base_s: float, now_s: float) -> float:
        """How long to wait for an answer that should come within `base_s`."""
        if now_s >= self._patient_until_s:
            self._patience = 0
        return max(base_s, min(_PATIENCE_MAX_S, base_s * (1 << self._patience)))

    def is_busy(self, since_s: float, limit_s: float, now_s: float) -> bool:
        """It has spoken to somebody within the limit, and not been silent too long to this one."""
        return now_s < self.heard_s + limit_s and now_s < since_s + BUSY_MAX * limit_s

    def must_wait(self, now_s: float) -> bool:
        """Somebody else has its silence looked into, and may know soon what it means."""
        if self._lost_s > self.heard_s:
            return False
        if now_s >= self._scout_s + _SCOUT_AWAY_S:
            self._scout_s = now_s  # who asks is the scout
            return False
        return now_s < self._scout_s + SCOUT_S

    def on_verdict(self, now_s: float, *, innocent: bool) -> None:
        """The scout is back."""
        self._scout_s = float("-inf")
        if innocent:
            self._lost_s = float("-inf")
            self._patience = min(self._patience + 1, _DOUBLINGS_MAX)
            self._patient_until_s = now_s + _PATIENCE_KEPT_S
        else:
            self._lost_s = now_s
            self._patience = 0


class Peers:
    """The nodes that a client speaks to, at most `PEERS_MAX`."""

    def __init__(self) -> None:
        self._peers: dict[str, Peer] = {}

    def at(self, address: str) -> Peer:
        """The node at this address."""
        found = self._peers.get(address)
        if found is None:
            found = self._peers[address] = Peer()
            if len(self._peers) > PEERS_MAX:
                del self._peers[next(iter(self._peers))]  # who uses it goes on with it
        return found
