"""Requests to S3: the client that they go through, once or until they succeed.

The library's own repetitions are off (`client`): which request is safe to repeat its sender
knows, and the pauses are by the given `Clock` and `Random`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from random import Random
from typing import TYPE_CHECKING, Final, TypeVar

from metadata.s3.client import open_client
from metadata.s3.settings import Purpose, S3Settings
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client

log = logging.getLogger(__name__)

T = TypeVar("T")

_WARN_AFTER: Final = 3  # attempts


class S3Requests:
    """Sends requests of one store, and makes errors of theirs ours. `url` is for their messages."""

    def __init__(
        self, url: str, settings: S3Settings, purpose: Purpose, *, clock: Clock, rng: Random
    ) -> None:
        self._url = url
        self._settings = settings
        self._purpose = purpose
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
            `purpose.unavailable`: every attempt failed. And what `once` raises.
        """
        settings, unavailable = self._settings, self._purpose.unavailable
        pauses = Backoff(self._rng, min_s=settings.backoff_min_s, max_s=settings.backoff_max_s)
        number = 1
        while True:
            try:
                return await self.once(doing, key, attempt)
            except unavailable as error:
                if number >= settings.attempts_max:
                    raise unavailable(f"{error} (tried {number} times)") from error
                level = logging.WARNING if number >= _WARN_AFTER else logging.DEBUG
                extra = {"attempt": number, "reason": str(error)}
                log.log(level, "s3.retry", extra=extra)
            await self._clock.sleep(pauses.next_s())
            number += 1

    async def once(self, doing: str, key: str, attempt: Callable[[S3Client], Awaitable[T]]) -> T:
        """Try once. `doing` completes "can't ..."; `key` is that of an `ObjectNotFound`.

        Raises:
            `purpose.unavailable`, `purpose.unsuitable`, ObjectNotFound. BeyondEnd, UploadLost: for
            the sender alone.
        """
        client = self._client or await self.open()
        from metadata.s3.errors import FAILURES, translated  # late: it loads the library

        try:
            return await attempt(client)
        except FAILURES as error:
            raise translated(error, f"{self._url}: can't {doing}", key, self._purpose) from error

    async def open(self) -> S3Client:
        """The client, which is loaded at the first call. It connects when it is used."""
        async with self._opening:
            if self._closed:
                raise self._purpose.unavailable(f"{self._url}: it was closed")
            if self._client is None:
                async with AsyncExitStack() as stack:
                    client = await open_client(self._settings, stack)
                    self._stack = stack.pop_all()
                self._client = client
            return self._client

    async def close(self) -> None:
        """Requests under way fail, and no new ones are sent."""
        async with self._opening:
            self._closed = True
            self._client = None
            await self._stack.aclose()
