"""Requests to S3: the client that they go through, once or until they succeed.

The library's own repetitions are off (`s3_client`): which request is safe to repeat its sender
knows, and the pauses are by the given `Clock` and `Random`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from loglet.archive.config import ArchiveConfig
from loglet.archive.s3_client import open_client
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import ArchiveUnavailable

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

_WARN_AFTER: Final = 3  # attempts


class S3Requests:
    """Sends requests of one store, and makes errors of theirs ours. `url` is for their messages."""

    def __init__(self, url: str, settings: ArchiveConfig, *, clock: Clock, rng: Random) -> None:
        self._url = url
        self._settings = settings
        self._clock = clock
        self._rng = rng
        self._opening = asyncio.Lock()
        self._client: S3Client | None = None
        self._stack = AsyncExitStack()
        self._closed = False

    async def repeated(
        self, doing: str, key: str, attempt: Callable[[S3Client], Awaitable[T]]
    ) -> T:
        """Try what is safe to repeat until it succeeds, or fails for a reason that stays.

        Raises:
            ArchiveUnavailable: every attempt failed. And what `once` raises.
        """
        settings = self._settings
        pauses = Backoff(self._rng, min_s=settings.backoff_min_s, max_s=settings.backoff_max_s)
        number = 1
        while True:
            try:
                return await self.once(doing, key, attempt)
            except ArchiveUnavailable as error:
                if number >= settings.attempts_max:
                    raise ArchiveUnavailable(f"{error} (tried {number} times)") from error
                level = logging.WARNING if number >= _WARN_AFTER else logging.DEBUG
                log.log(level, "archive.retry", extra={"attempt": number, "reason": str(error)})
            await self._clock.sleep(pauses.next_s())
            number += 1

    async def once(self, doing: str, key: str, attempt: Callable[[S3Client], Awaitable[T]]) -> T:
        """Try once. `doing` completes "can't ..."; `key` is that of an `ObjectNotFound`.

        Raises:
            ArchiveUnavailable, ArchiveUnsuitable, ObjectNotFound. BeyondEnd, UploadLost: for the
            sender alone.
        """
        client = self._client or await self._open()
        from loglet.archive.s3_errors import FAILURES, translated  # late: it loads the library

        try:
            return await attempt(client)
        except FAILURES as error:
            raise translated(error, f"{self._url}: can't {doing}", key) from error

    async def close(self) -> None:
        """Requests under way fail, and no new ones are sent."""
        async with self._opening:
            self._closed = True
            self._client = None
            await self._stack.aclose()

    async def _open(self) -> S3Client:
        async with self._opening:
            if self._closed:
                raise ArchiveUnavailable(f"{self._url}: it was closed")
            if self._client is None:
                async with AsyncExitStack() as stack:
                    client = await open_client(self._settings, stack)
                    self._stack = stack.pop_all()
                self._client = client
            return self._client
