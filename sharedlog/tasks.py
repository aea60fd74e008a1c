"""Small helpers for structured concurrency."""

from __future__ import annotations

import asyncio

from sharedlog.errors import SharedLogError


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group that says most: a typed one if there is any, else the first.

    For groups whose tasks serve one purpose, e.g. the two directions of a stream: the first
    to end ends the other, and the caller wants the reason, not the group.

    If the calling task is being cancelled, that is the reason: before Python 3.13 a group whose
    task fails at the same moment raises the failure alone, and a caller that handles it and goes on
    would never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        return asyncio.CancelledError()
    leaves = list(_leaves(group))
    return next((error for error in leaves if isinstance(error, SharedLogError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
