"""One poll for all watches of a process, over a store that can only be asked.

**Theory of operation.** A poll lists the names that the watches span, and reads the objects whose
ETag is not the one that was seen last. Each watcher is offered what was found. Everything else that
this process reads or writes comes the same way (`learn`), so its own changes are told at once, and
are not read again by the next poll.

There is no task for it: of the watchers that wait, one polls, and the others wait for what it
finds. When nobody waits, nobody polls.

**No gap, no repeat.** ETags are compared for equality, not for order: whatever came in between, an
ETag that is listed and was not seen last is read. What is read late, a watcher does not take
(`watchers.py`).

**What rests on S3.** A listing names every object as it was when it was asked for, or newer. An
object that a listing lacks is read before anything is concluded (field note 22). It should never be
lacking, for a key that is deleted leaves a tombstone; a person must have removed it.
"""

from __future__ import annotations

import logging
from typing import Final

from metadata.s3.config import MetadataS3Config
from metadata.s3.names import key_of
from metadata.s3.objects import Found, Objects
from metadata.s3.records import Record
from metadata.s3.watchers import Watcher
from metadata.store import ABSENT
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import MetadataUnavailable, SharedLogError
from sharedlog.tasks import run_together

log = logging.getLogger(__name__)

SHARE_MAX: Final = 0.2
"""Of the time is spent polling: with many thousands of keys a poll takes its time."""
WARN_AFTER_TRIES: Final = 5
"""Polls in a row without an answer that are too many to be a hiccup; one warning is logged."""


class Polling:
    """See the module's docstring."""

    def __init__(
        self, objects: Objects, config: MetadataS3Config, *, clock: Clock, pauses: Backoff
    ) -> None:
        self._objects = objects
        self._interval_s = config.poll_interval_s
        self._clock = clock
        self._pauses = pauses
        self._watchers: set[Watcher] = set()
        # By name, of all that a watcher was offered, or is to find in its first listing.
        self._seen: dict[str, str] = {}
        self._polling = False
        self._due_s = 0.0
        self._tries = 0  # polls that failed, since the last that did not
        self._closed = False

    def add(self, watcher: Watcher) -> None:
        """Offer it what is found from now on."""
        self._watchers.add(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Offer it nothing any more."""
        self._watchers.discard(watcher)
        self._seen = {name: etag for name, etag in self._seen.items() if self._spans(name)}

    def learn(self, found: Found) -> None:
        """This was read or written; it may be old news.

        That there was nothing is no news: an answer that was long under way may be from before the
        key was made. A poll finds out what is there no more.
        """
        if found.etag is None or self._seen.get(found.name) == found.etag:
            return
        if self._offer(found):
            self._seen[found.name] = found.etag

    def _offer(self, found: Found) -> bool:
        """To all whom it concerns; whether it is somebody."""
        key = found.finding.key
        watchers = [watcher for watcher in self._watchers if key.startswith(watcher.prefix)]
        for watcher in watchers:
            watcher.offer(found.finding)
        return bool(watchers)

    async def wait(self, watcher: Watcher) -> None:
        """Return once the watcher has news.

        Raises:
            MetadataUnavailable: it was closed.

        **Cancellation:** ends the wait; another watcher goes on polling.
        """
        while not watcher.has_news:
            if self._closed:
                raise MetadataUnavailable("the metadata store was closed")
            watcher.stirred.clear()
            if self._polling:
                await watcher.stirred.wait()
                continue
            self._polling = True
            try:
                await self._rest(watcher)
                if not watcher.has_news and not self._closed:
                    await self._poll()
            finally:
                self._polling = False
                self._stir()  # one of the others may have to go on

    def close(self) -> None:
        """End the waits."""
        self._closed = True
        self._stir()

    def _stir(self) -> None:
        for watcher in self._watchers:
            watcher.stirred.set()

    async def _rest(self, watcher: Watcher) -> None:
        """Until the next poll is due, or the watcher is stirred."""
        left_s = self._due_s - self._clock.monotonic_s()
        if left_s > 0:

            async def be_stirred() -> None:
                await watcher.stirred.wait()

            await run_together(
                {"poll-due": self._clock.sleep(left_s), "poll-stirred": be_stirred()}
            )

    async def _poll(self) -> None:
        started_s = self._clock.monotonic_s()
        self._due_s = started_s + self._interval_s
        try:
            await self._look()
            took_s = self._clock.monotonic_s() - started_s
            self._due_s = started_s + max(self._interval_s, took_s / SHARE_MAX)
        except SharedLogError as error:
            self._tries += 1
            level = logging.WARNING if self._tries == WARN_AFTER_TRIES else logging.DEBUG
            log.log(
                level, "metadata.poll_failed", extra={"error": str(error), "tries": self._tries}
            )
            self._due_s = self._clock.monotonic_s() + self._pauses.next_s()
            return
        if self._tries >= WARN_AFTER_TRIES:
            log.info("metadata.poll_works_again", extra={"tries": self._tries})
        self._tries = 0
        self._pauses.reset()

    async def _look(self) -> None:
        before = dict(self._seen)
        listed = await self._objects.spanned({watcher.prefix for watcher in self._watchers})
        changed = [
            name
            for name, etag in listed.items()
            if self._seen.get(name) != etag and key_of(name) is not None
        ]
        lacking = [name for name in before.keys() & self._seen.keys() if name not in listed]
        # In the order in which they were written, as far as that is known.
        for found in sorted(await self._objects.read_all(changed + lacking), key=_version):
            if found.etag is not None:
                self.learn(found)
            elif found.name in before and self._seen.get(found.name) == before[found.name]:
                # What was seen before the poll began, and nothing since, is not there any more.
                del self._seen[found.name]
                log.error("metadata.object_removed", extra={"key": found.finding.key})
                self._offer(found)

    def _spans(self, name: str) -> bool:
        key = key_of(name)
        return key is not None and any(key.startswith(it.prefix) for it in self._watchers)


def _version(found: Found) -> int:
    match found.finding:
        case Record(version=version):
            return version
        case _:
            return ABSENT
