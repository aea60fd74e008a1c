"""A metadata store in a bucket: one object for each key, changed by conditional PUT.

For clusters that are to have no other system to run. `records.py` says what an object is,
`names.py` where it lies, `polling.py` how watches work, `values.py` what is believed of an answer.

**Linearizable.** A get is a GET, and a list asks for a listing and reads what that names: S3 and
what is taken for it answer with what was written last, from the moment when a PUT was answered. A
change is a PUT that names the ETag of the object on which it builds, or that there must be none.

**Unknown outcomes.** An answer that is no success settles nothing by itself: the object is read,
and it names whose change it is and whose came before. Until that is known, the same change is asked
for again; it can't be made twice, for each asks for the ETag that it builds upon, which no later
object ever has.

**Trial.** Before its first change a process tries out whether the store honours conditions
(`trial.py`), and refuses to change anything in one that does not, or that denies it. Once it has
passed, a denial is an outage like others: credentials run out and come back, and a cluster that
appends and reads must not stop for that (field note 52).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import Final

from metadata.errors import MetadataUnsuitable
from metadata.keys import check_key, check_prefix, check_value
from metadata.s3.bucket import BucketUrl
from metadata.s3.config import MetadataS3Config
from metadata.s3.names import check_name, name_of
from metadata.s3.objects import METADATA, Found, Objects
from metadata.s3.polling import WARN_AFTER_TRIES, Polling
from metadata.s3.records import Record, comes_after, encode, made_as, next_record
from metadata.s3.trial import SwapTrial
from metadata.s3.values import S3Values
from metadata.s3.watchers import Watcher
from metadata.store import ABSENT, Changed, Deleted, Entry, SnapshotComplete, Version, WatchEvent
from sharedlog.backoff import Backoff
from sharedlog.clock import Clock
from sharedlog.errors import MetadataUnavailable, SharedLogError, SwapConflict, VersionMismatch

log = logging.getLogger(__name__)

_PROBE: Final = ".probe-"


@dataclass(slots=True)
class _Change:
    """A put, or with `value` None a delete, while it is being made."""

    key: str
    value: bytes | None
    expected: Version
    nonce: str
    sent: bool = False
    base: Record | None = None  # on which it was built when it was sent first
    trouble: str = "no answer"

    def verdict(self, found: Record | None) -> Version | None:
        """The version that it has made, seeing what is there now; None: it is still to be made.

        Raises:
            VersionMismatch: it never was made, and can't be any more.
            MetadataUnavailable: it can't be told any more whether it was made.
        """
        if self.sent and found is not None:
            made = made_as(found, self.nonce)
            if made is not None:
                return made
            if not comes_after(found, self.base):
                raise MetadataUnavailable(
                    f"{self.key}: it was changed so often meanwhile that nobody can tell whether "
                    "this change was among them"
                )
        visible = ABSENT if found is None else found.visible
        if visible != self.expected or (self.value is None and self.expected == ABSENT):
            raise VersionMismatch(
                key=self.key, expected=self.expected or None, actual=visible or None
            )
        return None


class S3MetadataStore:
    """A `MetadataStore`, see there and in the module's docstring.

    Raises besides what is said there `MetadataUnsuitable`, until the trial has passed: the store
    denies what is asked, or lacks what is relied on; and `MetadataCorrupt`: an object is damaged.
    """

    def __init__(
        self,
        url: BucketUrl,
        config: MetadataS3Config | None = None,
        *,
        clock: Clock,
        new_id: Callable[[], str],
        page_keys: int = 0,
    ) -> None:
        """It connects, and looks for credentials, when it is used.

        Args:
            url: Where the objects lie.
            config: How; checked here.
            clock: Of versions, pauses and polls.
            new_id: Random hex digits: nonces, and names of what a trial writes.
            page_keys: Keys in a page of a listing; 0: as many as the server gives.

        Raises:
            InvalidArgument: the settings can't be right.
        """
        self._config = config or MetadataS3Config()
        self._config.validate()
        self._root = f"{url.prefix}/" if url.prefix else ""
        self._clock = clock
        self._new_id = new_id
        self._rng = Random(new_id())  # for the jitter of pauses
        self._values = S3Values(url, self._config, METADATA, clock=clock, rng=self._rng)
        self._objects = Objects(self._values, self._config, page_keys=page_keys)
        self._polling = Polling(self._objects, self._config, clock=clock, pauses=self._pauses())
        self._proving = asyncio.Lock()
        self._proven = False
        self._closed = False
        self._last = ABSENT  # no version that was met or made is larger

    @property
    def url(self) -> str:
        """Where it is, for people; holds no secret."""
        return self._values.url

    async def get(self, key: str) -> Entry | None:
        """See `MetadataStore.get`."""
        check_key(key)
        with self._tried_out():
            return (await self._read(key)).entry

    async def put(self, key: str, value: bytes, *, expected: Version) -> Version:
        """See `MetadataStore.put`."""
        check_key(key)
        check_value(key, value)
        return await self._make(_Change(key, value, expected, self._new_id()))

    async def delete(self, key: str, *, expected: Version) -> None:
        """See `MetadataStore.delete`."""
        check_key(key)
        await self._make(_Change(key, None, expected, self._new_id()))

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `MetadataStore.list`. Entries may be of different moments after the call."""
        check_prefix(prefix)
        with self._tried_out():
            entries = [found.entry for found in await self._list(prefix)]
        return [entry for entry in entries if entry is not None]

    async def watch(self, prefix: str) -> AsyncGenerator[WatchEvent, None]:
        """See `MetadataStore.watch`. Of several changes within a poll's interval the last is told.

        Raises `MetadataUnavailable` once the store is closed. A damaged object is told as a value
        that can't be decoded: the object's own bytes.
        """
        check_prefix(prefix)
        config = self._config
        watcher = Watcher(prefix, config.watch_events_max, config.watch_bytes_max)
        self._polling.add(watcher)
        try:
            for event in await self._catch_up(watcher):
                yield event
            yield SnapshotComplete()
            while True:
                await self._polling.wait(watcher)
                news = watcher.take()
                for event in await self._catch_up(watcher) if news is None else news:
                    yield event
        finally:
            self._polling.remove(watcher)

    async def close(self) -> None:
        """End the watches, refuse what is asked for from now on. Idempotent."""
        self._closed = True
        self._polling.close()
        await self._values.close()

    async def prove(self) -> None:
        """Try the store out, once for a process; the first change does it otherwise.

        Raises:
            MetadataUnsuitable: it must not be used. MetadataUnavailable: nothing is known.

        **Cancellation:** may leave objects behind whose names begin with `.probe-`.
        """
        if self._proven:
            return
        async with self._proving:
            if not self._proven:
                await self._try_out()
                self._proven = True

    # Reading.

    async def _read(self, key: str) -> Found:
        check_name(self._root, key)
        found = await self._objects.read(key)
        self._learn(found)
        return found

    async def _list(self, prefix: str) -> Sequence[Found]:
        found = await self._objects.listing(prefix)
        for it in found:
            self._meet(it)
        return found

    async def _catch_up(self, watcher: Watcher) -> Sequence[Changed | Deleted]:
        """What is to be told so that the watcher is at the store's present state."""
        found = await self._list_at_last(watcher)
        news = watcher.accept(it.finding for it in found)
        for it in found:
            self._polling.learn(it)  # others may not have been told yet; and no poll reads it again
        return news

    async def _list_at_last(self, watcher: Watcher) -> Sequence[Found]:
        """Try for ever; what waited for the watcher before is in the listing."""
        pauses, tries = self._pauses(), 0
        while True:
            watcher.restart()
            try:
                found = await self._list(watcher.prefix)
                # What a listing lacks is read before it counts as gone (field note 22).
                lacking = watcher.lacking({it.finding.key for it in found})
                return [*await self._objects.read_all(map(name_of, lacking)), *found]
            except SharedLogError as error:
                if self._closed:
                    raise
                tries += 1
                level = logging.WARNING if tries == WARN_AFTER_TRIES else logging.DEBUG
                extra = {"prefix": watcher.prefix, "error": str(error), "tries": tries}
                log.log(level, "metadata.watch_lost", extra=extra)
            await self._clock.sleep(pauses.next_s())

    def _learn(self, found: Found) -> None:
        """This was read or written by this process."""
        self._objects.keep(found)
        self._meet(found)
        self._polling.learn(found)

    def _meet(self, found: Found) -> None:
        if isinstance(found.finding, Record):
            self._last = max(self._last, found.finding.version)

    # Changing.

    async def _make(self, change: _Change) -> Version:
        check_name(self._root, change.key)
        await self.prove()
        timeout_s = self._config.timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                with self._tried_out():
                    return await self._carry_out(change)
        except TimeoutError as error:
            raise MetadataUnavailable(
                f"{change.key} may or may not have been changed: gave up after {timeout_s:g} s: "
                f"{change.trouble}"
            ) from error

    async def _carry_out(self, change: _Change) -> Version:
        """Try until it is made, or can't be any more."""
        pauses = self._pauses()
        base = self._objects.kept(change.key)
        if base is None or not _is_base(base, change.expected):
            base = None  # not known, or of another version: perhaps an older one
        while True:
            try:
                found = base or await self._read(change.key)
            except MetadataUnavailable as error:
                change.trouble = str(error)
            else:
                made = change.verdict(found.record)
                if made is not None:
                    return made
                try:
                    return await self._swap(change, found)
                except SwapConflict:
                    if base is not None:  # it was an old one, as may be
                        base = None
                        continue
                except MetadataUnavailable as error:
                    change.trouble = str(error)
            base = None
            await self._clock.sleep(pauses.next_s())

    async def _swap(self, change: _Change, found: Found) -> Version:
        present = found.record
        record = next_record(
            present,
            change.key,
            change.value,
            nonce=change.nonce,
            now_ms=self._clock.now_ms(),
            above=self._last,
        )
        if not change.sent:
            change.sent, change.base = True, present
        etag = await self._values.swap(found.name, encode(record), found.etag)
        self._learn(Found(found.name, etag, record))
        return record.version

    @contextmanager
    def _tried_out(self) -> Iterator[None]:
        """A store that was found to be good is not refused later on."""
        try:
            yield
        except MetadataUnsuitable as error:
            if not self._proven:
                raise
            raise MetadataUnavailable(str(error)) from error

    async def _try_out(self) -> None:
        await self._values.open()
        name = self._new_id()
        keys = [f"{_PROBE}{name}-{suffix}" for suffix in ("0", "1", "2")]
        try:
            await self._values.adapt(keys[0], self._new_id().encode())
            trial = _Trial(self._values, keys[1], keys[2], self._new_id)
            await trial.run()
        finally:
            with suppress(SharedLogError):
                await self._values.delete(keys)

    def _pauses(self) -> Backoff:
        config = self._config
        return Backoff(self._rng, min_s=config.backoff_min_s, max_s=config.backoff_max_s)


class _Trial(SwapTrial):
    """Of what the metadata store relies on besides compare-and-swap."""

    def __init__(self, values: S3Values, key: str, absent: str, new_id: Callable[[], str]) -> None:
        super().__init__(values, METADATA, key, absent, new_id)
        self._values = values

    async def run(self) -> None:
        """All of it. Raises what `SwapTrial.swaps` raises."""
        if await self._values.read_versioned(self._key) is not None:
            raise self._lacks("it has an object under a key that was never used")
        version = await self.swaps()
        found = await self._values.read_versioned(self._key)
        if found is None or found.data != self._second:
            raise self._lacks("it does not read what was written last, but something older")
        page = await self._values.list_page(self._key)
        listed = [(it.key, it.version) for it in page.listed]
        if found.version != version or listed != [(self._key, version)]:
            raise self._lacks(
                "its listing does not name what was written last, so that changes would be missed"
            )


def _is_base(found: Found, expected: Version) -> bool:
    """What is kept may be what a change builds upon."""
    return isinstance(found.finding, Record) and found.finding.visible == expected
