"""Answers of a replication stream on their way out: what became ready together leaves together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from loglet.messages import Stored, StoreResponse
from sharedlog.errors import SharedLogError
from sharedlog.ids import LogletId

ANSWERS_MAX: Final = 1_024
"""Responses that wait for a peer which does not read them; beyond it none of its requests are
read."""


class Answers:
    """Between the one writer, which never waits for a stream, and the stream's sending task."""

    __slots__ = ("_ended", "_error", "_ready", "_room", "_wake", "outstanding")

    def __init__(self) -> None:
        self.outstanding = 0  # requests that were taken and not answered yet
        self._ready: list[StoreResponse] = []
        self._error: SharedLogError | None = None
        self._ended = False
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None

    def put(self, answer: StoreResponse | SharedLogError) -> None:
        """Answer one request. An error ends the stream, after what came before it."""
        self.outstanding -= 1
        if isinstance(answer, SharedLogError):
            self.fail(answer)
        elif self._error is None:
            self._ready.append(answer)
            self._notify()

    def skip(self) -> None:
        """A request that needs no answer is done."""
        self.outstanding -= 1
        if self._ended:
            self._notify()

    def fail(self, error: SharedLogError) -> None:
        """End the stream with this error, after what is ready."""
        self._error = self._error or error
        self._notify()

    def end(self) -> None:
        """The peer sends no more; `take` returns None once everything was answered."""
        self._ended = True
        self._notify()

    async def take(self) -> StoreResponse | None:
        """Wait for answers and take all that there are, as one; None at the end.

        Raises:
            SharedLogError: what `fail` was given.
        """
        while not self._ready:
            if self._error is not None:
                raise self._error
            if self._ended and not self.outstanding:
                return None
            self._wake = asyncio.get_running_loop().create_future()
            await self._wake
        ready, self._ready = self._ready, []
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        return merge(ready)

    async def wait_for_room(self) -> None:
        """Wait while the peer does not read its answers; for between two requests."""
        while len(self._ready) >= ANSWERS_MAX:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def merge(responses: Sequence[StoreResponse]) -> StoreResponse:
    """One response for several, in order; ranges of a loglet that touch become one.

    The answer to an open (an empty range) stays by itself.
    """
    if len(responses) == 1:
        return responses[0]
    merged = StoreResponse()
    last: dict[LogletId, Stored] = {}
    for response in responses:
        for stored in response.stored:
            run = last.get(stored.loglet)
            if run is not None and run.end == stored.first and run.first < run.end < stored.end:
                run.end = stored.end
                run.watched = run.watched or stored.watched
                continue
            # A copy: what a response holds may have been passed on as it is.
            last[stored.loglet] = run = replace(stored)
            merged.stored.append(run)
        merged.refused += response.refused
        merged.confirmed += response.confirmed
    return merged
