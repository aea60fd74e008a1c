"""Append sessions that are open and have nothing to do: kept in hope, up to a bound.

A session costs a stream and some tasks, here and at the node; opening one costs a round trip. So
one that is idle is kept for the next batch, but a client that writes to thousands of logs now and
then keeps only those that it used last.
"""

from __future__ import annotations

from typing import Protocol


class IdleSession(Protocol):
    """What a session is here."""

    def let_go(self) -> None:
        """End, in good order, if there is still nothing to do."""
        ...


class IdleSessions:
    """At most `most` of them; one more, and the one that has been idle for longest is let go."""

    def __init__(self, most: int) -> None:
        self._most = most
        # In the order in which they became idle. Invariant: at most `_most`, between calls.
        self._sessions: dict[IdleSession, None] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def add(self, session: IdleSession) -> None:
        """It has nothing to do from now on."""
        self._sessions.setdefault(session)
        if len(self._sessions) > self._most:
            oldest = next(iter(self._sessions))
            del self._sessions[oldest]
            oldest.let_go()

    def discard(self, session: IdleSession) -> None:
        """It has something to do, or has ended."""
        self._sessions.pop(session, None)
