"""Small helpers for structured concurrency."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from sharedlog.errors import SharedLogError


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group that says most: a typed one if there is any, else the first.

    For groups whose tasks serve one purpose, e.g. the two directions of a stream: the first
    to end ends the other, and the caller wants the reason, not the group.

    A loop that handles the error and goes on needs `run_together` instead.
    """
    leaves = list(_leaves(group))
    return next((error for error in leaves if isinstance(error, SharedLogError)), leaves[0])


async def run_together(runs: Mapping[str, Coroutine[Any, Any, None]]) -> None:
    """Run these, by name, until the first ends; end the others; raise the first one's error if any.

    Unlike a `TaskGroup` it never takes a cancellation for a failure: before Python 3.13 a group
    whose task fails while the group is being cancelled raises the failure alone, the cancellation
    is lost, and a loop that handles the failure and goes on never ends.

    **Cancellation:** ends all of them, waits for them, and is raised, whatever else went wrong.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(run, name=name) for name, run in runs.items()]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = [task for task in tasks if task.done()]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    errors = [task.exception() for task in tasks if not task.cancelled()]
    first = [task.exception() for task in ended if not task.cancelled()]
    for error in (*first, *errors):
        if error is not None:
            raise error


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
