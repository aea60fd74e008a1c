"""What the backends behind a network have in common: they try again.

A call is tried until its time is up, so that a restart of the store, or an election among its
members, is a pause and no error. A watch is made anew for ever.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, TypeVar

from metadata.store import SnapshotComplete, WatchEvent
from sharedlog.clock import Clock
from sharedlog.errors import (
    DeadlineExceeded,
    InvalidArgument,
    MetadataUnavailable,
    Overloaded,
    SharedLogError,
    Unreachable,
)

log = logging.getLogger(__name__)

BACKOFF_MIN_S: Final = 0.05
BACKOFF_MAX_S: Final = 1.0
WARN_AFTER_TRIES: Final = 5
"""Reconnects of a watch in a row that are too many to be a restart; one warning is logged."""

TRY_AGAIN: Final = (Unreachable, DeadlineExceeded, MetadataUnavailable, Overloaded)
"""What may pass."""

T = TypeVar("T")


async def until_answered(
    attempt: Callable[[float], Awaitable[T]],
    clock: Clock,
    *,
    store: str,
    timeout_s: float,
    on_retry: Callable[[], None] = lambda: None,
) -> T:
    """Try until there is an answer or the time is up; `attempt` is told how much of it is left.

    `on_retry` is called before each further try: what the one before it did is not known then.

    Raises:
        MetadataUnavailable: the time is up. What `attempt` raises besides `TRY_AGAIN`.
    """
    deadline_s = clock.monotonic_s() + timeout_s
    backoff_s = BACKOFF_MIN_S
    while True:
        try:
            return await attempt(max(deadline_s - clock.monotonic_s(), 0.001))
        except TRY_AGAIN as error:
            if deadline_s - clock.monotonic_s() <= backoff_s:
                raise MetadataUnavailable(
                    f"the metadata store at {store} does not answer: {error}"
                ) from error
        on_retry()
        await clock.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)


async def watch_for_ever(
    connect: Callable[[], AsyncGenerator[WatchEvent, None]],
    clock: Clock,
    *,
    store: str,
    prefix: str,
) -> AsyncGenerator[WatchEvent, None]:
    """Connect again and again, with back-off, and tell `SnapshotComplete` once.

    A connection tells what was not told yet, and `SnapshotComplete` each time that it has caught
    up: the next pause is a short one then.

    Raises:
        InvalidArgument: as `connect` raises it.
    """
    completed = False  # SnapshotComplete was told
    tries = 0
    while True:
        connection = connect()
        try:
            async for event in connection:
                if isinstance(event, SnapshotComplete):
                    tries = 0
                    if completed:
                        continue
                    completed = True
                yield event
            reason = "the stream ended"
        except InvalidArgument:
            raise
        except SharedLogError as error:
            reason = str(error)
        finally:
            await connection.aclose()
        tries += 1
        extra = {"prefix": prefix, "address": store, "error": reason, "tries": tries}
        level = logging.WARNING if tries == WARN_AFTER_TRIES else logging.DEBUG
        log.log(level, "metadata.watch_lost", extra=extra)
        await clock.sleep(min(BACKOFF_MIN_S * 2 ** (tries - 1), BACKOFF_MAX_S))
