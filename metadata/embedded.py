"""The embedded backend: an LMDB file in this process, for development, tests and small clusters.

Theory of operation. Changes queue up; while one commit runs in the writer thread, those that come
meanwhile form the next one, so that many share one fsync. The outcome of a commit is handled on
the event loop in one step: watchers' queues get its changes, then each waiting caller its answer.
Reads are small and come from mapped memory, on the event loop. What a read sees was fsynced
(`embedded_db.py`), so reads are linearizable without waiting for the writer.

A commit that fails for lack of room changes nothing, and the store goes on. One that fails in
another way, or a row that does not match its checksum, ends the store: every call raises
`MetadataUnavailable`, `wait_failed` returns, and the process is to stop (field notes 23, 24).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from metadata.config import EmbeddedConfig
from metadata.embedded_db import NONCE_CHARS_MAX, Change, Commit, MetadataDb
from metadata.errors import MetadataCorrupt
from metadata.keys import check_key, check_prefix, check_value
from metadata.store import Changed, Deleted, Entry, SnapshotComplete, Version, WatchEvent
from metadata.watching import Told, WatchQueue
from sharedlog.clock import Clock
from sharedlog.errors import (
    InvalidArgument,
    MetadataUnavailable,
    Overloaded,
    StoreReadOnly,
    VersionMismatch,
)
from sharedlog.limits import LIST_PAGE_MAX, MIB

if TYPE_CHECKING:  # prometheus_client takes 70 ms to import
    from metadata.metrics import MetadataMetrics

log = logging.getLogger(__name__)

PAGE_BYTES_MAX: Final = 4 * MIB
"""Keys and values of one page of a listing."""

T = TypeVar("T")

_Waiting = tuple[Change, "asyncio.Future[Version]"]


class EmbeddedMetadataStore:
    """A `MetadataStore`, see there and in the module's docstring. One process, one store."""

    def __init__(
        self,
        directory: Path,
        clock: Clock,
        *,
        config: EmbeddedConfig | None = None,
        metrics: MetadataMetrics | None = None,
    ) -> None:
        """Open the store in `directory`, or make one. Blocks for a moment: call it at start-up.

        Raises:
            OSError: in use by another process, or the system refuses; one line for a person.
            MetadataCorrupt: it is damaged. InvalidArgument: the configuration.
        """
        self._config = config or EmbeddedConfig()
        self._config.validate()
        self._clock = clock
        self._metrics = metrics
        self._db = MetadataDb(directory, map_bytes=self._config.map_bytes)
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metadata-writer")
        self._pending: list[_Waiting] = []
        self._pending_bytes = 0
        self._running: asyncio.Future[Commit] | None = None
        self._watchers: set[WatchQueue] = set()
        self._closed: str | None = None  # why
        self._failed = asyncio.Event()
        self._released = False

    # ------------------------------------------------------------------ reads

    async def get(self, key: str) -> Entry | None:
        """See `MetadataStore.get`."""
        check_key(key)
        return self._read(lambda: self._db.get(key))

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `MetadataStore.list`."""
        check_prefix(prefix)
        entries, _ = self._read(lambda: self._db.snapshot(prefix))
        return entries

    async def list_page(
        self, prefix: str, *, after: str, limit: int
    ) -> tuple[Sequence[Entry], bool]:
        """Entries with keys greater than `after`, at most `limit`, and whether there are more."""
        check_prefix(prefix)
        check_prefix(after)
        count = min(limit or LIST_PAGE_MAX, LIST_PAGE_MAX)
        return self._read(
            lambda: self._db.page(prefix, after=after, entries_max=count, bytes_max=PAGE_BYTES_MAX)
        )

    # ------------------------------------------------------------------ changes

    async def put(self, key: str, value: bytes, *, expected: Version, nonce: str = "") -> Version:
        """See `MetadataStore.put`. A put repeated with its nonce gets the first one's answer.

        Raises besides:
            Overloaded: too many wait; nothing was changed. StoreReadOnly: no room; likewise.
        """
        check_key(key)
        check_value(key, value)
        if len(nonce) > NONCE_CHARS_MAX or not nonce.isascii():
            raise InvalidArgument(f"a nonce has at most {NONCE_CHARS_MAX} characters of ASCII")
        return await self._submit(Change(key, value, expected, nonce))

    async def delete(self, key: str, *, expected: Version) -> None:
        """See `MetadataStore.delete`. Raises what `put` raises."""
        check_key(key)
        await self._submit(Change(key, None, expected))

    async def _submit(self, change: Change) -> Version:
        self._check_open()
        size = _size(change)
        config = self._config
        if len(self._pending) >= config.pending_changes_max or (
            self._pending and self._pending_bytes + size > config.pending_bytes_max
        ):
            raise Overloaded("too many changes wait for the metadata store", retry_after_s=0.1)
        answer: asyncio.Future[Version] = asyncio.get_running_loop().create_future()
        self._pending.append((change, answer))
        self._pending_bytes += size
        if self._running is None:
            self._start_commit()
        return await answer

    def _start_commit(self) -> None:
        waiting, self._pending, self._pending_bytes = self._pending, [], 0
        changes = [change for change, _ in waiting]
        started_s = self._clock.monotonic_s()
        loop = asyncio.get_running_loop()
        self._running = loop.run_in_executor(self._writer, self._db.commit, changes)
        self._running.add_done_callback(partial(self._on_committed, waiting, started_s))

    def _on_committed(
        self, waiting: Sequence[_Waiting], started_s: float, done: asyncio.Future[Commit]
    ) -> None:
        self._running = None
        error = done.exception()
        if error is None:
            self._tell(done.result(), waiting, self._clock.monotonic_s() - started_s)
        else:
            refused = error if isinstance(error, StoreReadOnly) else self._fail(error)
            for _, answer in waiting:
                if not answer.done():
                    answer.set_exception(refused)
        if self._pending and self._closed is None:
            self._start_commit()

    def _tell(self, commit: Commit, waiting: Sequence[_Waiting], seconds: float) -> None:
        for watcher in self._watchers:
            for event in commit.events:
                watcher.offer(event)
        lost = 0
        for (_, answer), outcome in zip(waiting, commit.outcomes, strict=True):
            lost += isinstance(outcome, VersionMismatch)
            if answer.done():
                continue  # its caller was cancelled
            if isinstance(outcome, VersionMismatch):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)
        if self._metrics is not None:
            self._metrics.commit_seconds.observe(seconds)
            self._metrics.changes_made.inc(len(commit.events))
            self._metrics.changes_lost.inc(lost)

    # ------------------------------------------------------------------ watch

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        """See `MetadataStore.watch`. Raises `MetadataUnavailable` once the store is closed."""
        async with aclosing(self.watch_batches(prefix)) as batches:
            async for events in batches:
                for event in events:
                    yield event

    async def watch_batches(self, prefix: str) -> AsyncGenerator[Sequence[WatchEvent], None]:
        """The same events, those together that came together: many changes make few messages."""
        check_prefix(prefix)
        config = self._config
        queue = WatchQueue(
            prefix, events_max=config.watch_events_max, bytes_max=config.watch_bytes_max
        )
        told = Told()
        self._add_watcher(queue)
        try:
            yield [*self._catch_up(prefix, queue, told), SnapshotComplete()]
            while True:
                changes = await queue.take()
                if changes is None:
                    news = self._catch_up(prefix, queue, told)
                    if self._metrics is not None:
                        self._metrics.watch_resyncs.inc()
                else:
                    news = [event for event in changes if told.accept(event)]
                if news:
                    yield news
        finally:
            self._remove_watcher(queue)

    def _catch_up(self, prefix: str, queue: WatchQueue, told: Told) -> Sequence[Changed | Deleted]:
        """What is to be told so that the watcher is at the store's present state."""
        # A commit may be on disk whose changes have not been offered yet: they are in the snapshot,
        # and the queue drops them by their versions when they come.
        entries, revision = self._read(lambda: self._db.snapshot(prefix))
        queue.restart(revision)
        return told.difference(entries)

    def _add_watcher(self, queue: WatchQueue) -> None:
        self._watchers.add(queue)
        if self._metrics is not None:
            self._metrics.watchers.inc()

    def _remove_watcher(self, queue: WatchQueue) -> None:
        self._watchers.discard(queue)
        if self._metrics is not None:
            self._metrics.watchers.dec()

    # ------------------------------------------------------------------ end

    async def wait_failed(self) -> str:
        """Wait until the store has failed for good; returns why. The process is to stop then."""
        await self._failed.wait()
        assert self._closed is not None
        return self._closed

    async def close(self) -> None:
        """End all watches, refuse what waits, finish the running commit, close. Idempotent."""
        self._end("the metadata store is closing")
        if self._running is not None:
            await asyncio.wait([self._running])
        if not self._released:
            self._released = True
            self._writer.shutdown(wait=True)
            self._db.close()

    def _fail(self, error: BaseException) -> MetadataUnavailable:
        why = f"the metadata store failed: {error}"
        if not self._failed.is_set():
            log.critical("metadata.failed", extra={"error": str(error)})
            self._end(why)
            self._failed.set()
        return MetadataUnavailable(why)

    def _end(self, why: str) -> None:
        if self._closed is not None:
            return
        self._closed = why
        waiting, self._pending, self._pending_bytes = self._pending, [], 0
        for _, answer in waiting:
            if not answer.done():
                answer.set_exception(MetadataUnavailable(why))
        for watcher in self._watchers:
            watcher.end(MetadataUnavailable(why))

    def _check_open(self) -> None:
        if self._closed is not None:
            raise MetadataUnavailable(self._closed)

    def _read(self, read: Callable[[], T]) -> T:
        self._check_open()
        try:
            return read()
        except MetadataCorrupt as error:
            self._fail(error)
            raise


def _size(change: Change) -> int:
    return len(change.key) + len(change.value or b"")
