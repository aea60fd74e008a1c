"""A few workers over many keys: each key once at a time, again after a while if it failed.

What has to be done to a log is found out again and again, so the same key is offered again and
again: while it waits or its pause after a failure lasts, that changes nothing; while it is being
worked on, it is looked at once more afterwards, for what is offered may be news. A key whose work
failed comes back by itself, each time after twice the pause, until its work ends well.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from random import Random
from typing import Final, Generic, TypeVar

from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError

log = logging.getLogger("node")

RETRY_MIN_S: Final = 1.0
RETRY_MAX_S: Final = 60.0
WARN_AFTER: Final = 5
"""Failures of one key in a row after which a warning is logged."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(slots=True)
class _Failed:
    due_s: float
    pause_s: float
    times: int


class Pool(Generic[Key]):
    """See the module's docstring. `run` must be running for anything to be done."""

    def __init__(
        self,
        what: str,
        handle: Callable[[Key], Awaitable[None]],
        *,
        workers: int,
        clock: Clock,
        random: Random,
        retry_max_s: float = RETRY_MAX_S,
    ) -> None:
        assert workers >= 1
        self._what = what
        self._handle = handle
        self._workers = workers
        self._clock = clock
        self._random = random
        self._retry_max_s = retry_max_s
        self._waiting: deque[Key] = deque()
        self._known: set[Key] = set()  # those that wait
        self._running: set[Key] = set()
        self._again: set[Key] = set()  # offered while they were worked on
        self._failed: dict[Key, _Failed] = {}  # in a pause, or being tried again
        self._wake = asyncio.Event()

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is being done; pauses after failures may run."""
        return not self._known and not self._running

    @property
    def waiting(self) -> int:
        """Keys that wait for a worker, are with one, or sit out a pause after a failure."""
        return len(self._known | self._running | self._failed.keys())

    def offer(self, key: Key) -> None:
        """Have the key worked on, unless it is about to be."""
        if key in self._running:
            self._again.add(key)
        elif key not in self._known and not self._pauses(key):
            self._put(key)

    def retry_due(self) -> None:
        """Bring back what has waited out its pause; to be called now and then."""
        now_s = self._clock.monotonic_s()
        for key, failed in self._failed.items():
            if failed.due_s <= now_s and key not in self._known and key not in self._running:
                self._put(key)

    async def run(self) -> None:
        """Work, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(self._workers):
                tasks.create_task(self._work(), name=f"{self._what} {number}")

    def _pauses(self, key: Key) -> bool:
        failed = self._failed.get(key)
        return failed is not None and failed.due_s > self._clock.monotonic_s()

    def _put(self, key: Key) -> None:
        self._waiting.append(key)
        self._known.add(key)
        self._wake.set()

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            key = self._waiting.popleft()
            self._known.discard(key)
            self._running.add(key)
            try:
                await self._handle(key)
            except SharedLogError as error:
                self._on_failed(key, error)
            except Exception as error:
                # A bug. The other keys have a right to be worked on all the same.
                log.exception("controller.bug", extra={"what": self._what, "key": str(key)})
                self._on_failed(key, error)
            else:
                self._failed.pop(key, None)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.offer(key)

    def _on_failed(self, key: Key, error: Exception) -> None:
        before = self._failed.get(key)
        pause_s = RETRY_MIN_S if before is None else min(2 * before.pause_s, self._retry_max_s)
        times = 1 if before is None else before.times + 1
        due_s = self._clock.monotonic_s() + pause_s * self._random.uniform(0.8, 1.2)
        self._failed[key] = _Failed(due_s, pause_s, times)
        level = logging.WARNING if times == WARN_AFTER else logging.DEBUG
        fields = {"what": self._what, "key": str(key), "times": times, "error": str(error)}
        log.log(level, "controller.failed", extra=fields)
