"""Small helpers for structured concurrency."""

from __future__ import annotations

from sharedlog.errors import SharedLogError


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group that says most: a typed one if there is any, else the first.

    For groups whose tasks serve one purpose, e.g. the two directions of a stream: the first
    to end ends the other, and the caller wants the reason, not the group.
    """
    leaves = list(_leaves(group))
    return next((error for error in leaves if isinstance(error, SharedLogError)), leaves[0])


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
