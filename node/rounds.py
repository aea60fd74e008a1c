"""One look at a time, shared by all who came before it began.

A hundred calls that each need what the store has *by now* do not need a hundred looks. Who asks
while a look is under way can't have its result, which may be older than the question; it waits for
the next one, and so does everybody else who comes meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from sharedlog.errors import SharedLogError
from sharedlog.rpc.errors import copy_error

Result = TypeVar("Result")


class Rounds(Generic[Result]):
    """See the module's docstring. `look` is what a round does."""

    def __init__(self, look: Callable[[], Awaitable[Result]]) -> None:
        self._look = look
        self._place = asyncio.Lock()
        self._begun = 0
        # The number of the last round that ended, and how.
        self._last: tuple[int, Result | SharedLogError] | None = None

    async def join(self) -> Result:
        """What a look finds that began after this call.

        Raises:
            SharedLogError: what the look raised.

        **Cancellation:** safe: if it was this call's look, the next in line makes it.
        """
        asked = self._begun
        async with self._place:
            if self._last is None or self._last[0] <= asked:
                await self._do()
            assert self._last is not None
            outcome = self._last[1]
        if isinstance(outcome, SharedLogError):
            raise copy_error(outcome)
        return outcome

    async def _do(self) -> None:
        self._begun += 1
        number = self._begun
        try:
            self._last = number, await self._look()
        except SharedLogError as error:
            self._last = number, error
