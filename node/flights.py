"""One run at a time of each kind of work, shared by all who want its result.

Twenty sessions that lose the same sequencer want the same failover; ten of those who wonder whether
a node is alive want the same ping. The first to ask starts the work, the others wait for it. The
work belongs to nobody's call: who is cancelled stops waiting, and the work goes on for the rest.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from sharedlog.errors import LogUnavailable, SharedLogError
from sharedlog.rpc.errors import copy_error

log = logging.getLogger("node")

Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")


class Flights(Generic[Key, Result]):
    """Work by key. `run` must be running for anything to be done; until then it waits."""

    def __init__(self, what: str) -> None:
        self._what = what
        # Never an exception in a future: nobody may be waiting for it.
        self._running: dict[Key, asyncio.Future[Result | SharedLogError]] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._started = asyncio.Event()

    async def run(self) -> None:
        """Own the work, until cancelled: what is under way then ends as `LogUnavailable`."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            self._started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._tasks = None

    def under_way(self, key: Key) -> bool:
        """Work for the key is being done."""
        return key in self._running

    async def join(self, key: Key, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """The result of the work for `key`, which is started unless it is under way.

        Raises:
            SharedLogError: the work failed so.

        **Cancellation:** stops the wait, not the work.
        """
        await self._started.wait()
        outcome = await asyncio.shield(self._running.get(key) or self.start(key, make))
        if isinstance(outcome, SharedLogError):
            raise copy_error(outcome)
        return outcome

    def start(
        self, key: Key, make: Callable[[], Coroutine[Any, Any, Result]]
    ) -> asyncio.Future[Result | SharedLogError]:
        """Start the work for `key` unless it is under way. Ends at once if `run` does not run."""
        found = self._running.get(key)
        if found is not None:
            return found
        outcome: asyncio.Future[Result | SharedLogError]
        outcome = asyncio.get_running_loop().create_future()
        if self._tasks is None:
            outcome.set_result(self._stopped())
            return outcome
        self._running[key] = outcome
        task = self._tasks.create_task(self._do(make), name=f"{self._what} {key}")

        def finished(task: asyncio.Task[Result | SharedLogError]) -> None:
            del self._running[key]
            if outcome.cancelled():
                return
            if task.cancelled():
                outcome.set_result(self._stopped())
            else:
                outcome.set_result(task.result())

        # A callback, since a task that is cancelled before its first step runs no `finally`.
        task.add_done_callback(finished)
        return outcome

    def _stopped(self) -> LogUnavailable:
        return LogUnavailable(f"the node does no {self._what} now: it starts or stops")

    async def _do(self, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result | SharedLogError:
        try:
            # Made here: if this task is cancelled before its first step, there is nothing to await.
            return await make()
        except SharedLogError as error:
            return error
        except Exception as error:
            # A bug. It must not end the process, which has other work to do.
            log.exception("flight.failed", extra={"what": self._what})
            return LogUnavailable(f"the {self._what} failed: {type(error).__name__}: {error}")
