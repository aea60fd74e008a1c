"""Bookkeeping of a watch: what it was told, and what it has still to be told.

A watcher's queue is bounded. One that overflows is emptied, and the watcher is told the difference
between a fresh snapshot and what it was told before: that is bounded by the number of keys,
however long it slept. The same difference carries a watch over a lost connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from metadata.store import ABSENT, Changed, Deleted, Entry, Version


class Told:
    """The version of each key that a watch's consumer was told last; absent: gone, or not told."""

    def __init__(self) -> None:
        self._versions: dict[str, Version] = {}

    def accept(self, event: Changed | Deleted) -> bool:
        """Note that `event` is told now; False if it is no news."""
        match event:
            case Changed(entry):
                if entry.version <= self._versions.get(entry.key, ABSENT):
                    return False
                self._versions[entry.key] = entry.version
            case Deleted(key, version):
                if version <= self._versions.get(key, version):
                    return False
                del self._versions[key]
        return True

    def difference(self, entries: Sequence[Entry]) -> list[Changed | Deleted]:
        """What remains to be told if `entries` are all there is; it is noted as told."""
        gone = self.missing({entry.key for entry in entries})
        changed = [Changed(entry) for entry in entries]
        return [*gone, *(event for event in changed if self.accept(event))]

    def missing(self, present: set[str]) -> list[Changed | Deleted]:
        """Deletions of what was told and is not in `present`; noted as told.

        When a key was deleted unseen, its deletion's version is not known. The least that it can be
        is told: it is above all that was told of the key, and below all that may follow.
        """
        gone = sorted(self._versions.keys() - present)
        return [Deleted(key, Version(self._versions.pop(key) + 1)) for key in gone]


class WatchQueue:
    """Changes under `prefix` that one watcher has still to be told."""

    def __init__(self, prefix: str, *, events_max: int, bytes_max: int) -> None:
        self._prefix = prefix
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._events: list[Changed | Deleted] = []
        self._bytes = 0
        self._floor = ABSENT  # the snapshot that was told last includes all up to it
        self._overflowed = False
        self._ended: Exception | None = None
        self._wake = asyncio.Event()

    def restart(self, floor: Version) -> None:
        """A snapshot as of version `floor` is told now; only later changes count."""
        self._clear()
        self._floor = floor
        self._overflowed = False

    def offer(self, event: Changed | Deleted) -> None:
        """A change was made."""
        key, version, size = _describe(event)
        if self._overflowed or version <= self._floor or not key.startswith(self._prefix):
            return
        if len(self._events) >= self._events_max or self._bytes + size > self._bytes_max:
            self._clear()
            self._overflowed = True
        else:
            self._events.append(event)
            self._bytes += size
        self._wake.set()

    def end(self, error: Exception) -> None:
        """There will be no more; `take` raises `error`."""
        self._ended = error
        self._wake.set()

    async def take(self) -> list[Changed | Deleted] | None:
        """The changes since the last `take`, one or more. None: too many, tell a snapshot."""
        while self._ended is None and not self._overflowed and not self._events:
            self._wake.clear()
            await self._wake.wait()
        if self._ended is not None:
            raise self._ended
        if self._overflowed:
            return None
        events = self._events
        self._clear()
        return events

    def _clear(self) -> None:
        self._events = []
        self._bytes = 0


def _describe(event: Changed | Deleted) -> tuple[str, Version, int]:
    """Key, version, and bytes that it takes in a queue."""
    match event:
        case Changed(entry):
            return entry.key, entry.version, len(entry.key) + len(entry.value)
        case Deleted(key, version):
            return key, version, len(key)
