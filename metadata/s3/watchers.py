"""What a watch of the metadata store in S3 was told, and what it has still to be told.

A watcher knows the version of each key that it was told last, of deleted keys too, and takes
nothing that is not newer: in whatever order findings come, versions of a key only grow, and a key
that is gone does not come back by a finding that is late. What waits is bounded, and of a key only
the last finding waits; a watcher that lags more is told the difference to a fresh listing.

Damage is told, as a value that can't be decoded: whoever keeps a picture then keeps the last good
value and names the key. What comes back after it may be just what was there before, so after
damage the same version is told once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

from metadata.s3.objects import Damaged, Finding, Removed
from metadata.s3.records import Record
from metadata.store import ABSENT, Changed, Deleted, Entry, Version


class _State(Enum):
    THERE = auto()
    GONE = auto()
    UNSURE = auto()  # damaged, or removed: what comes back may be just what was there


@dataclass(slots=True)
class _Told:
    version: Version
    state: _State
    there: bool  # the consumer believes that the key exists


@dataclass(slots=True, eq=False)
class Watcher:
    """What one watch was told, and what it has still to be told."""

    prefix: str
    events_max: int
    bytes_max: int
    stirred: asyncio.Event = field(default_factory=asyncio.Event)  # look again
    _told: dict[str, _Told] = field(default_factory=dict)
    _waiting: dict[str, Finding] = field(default_factory=dict)  # in the order of their coming
    _bytes: int = 0
    _overflowed: bool = False

    @property
    def has_news(self) -> bool:
        """`take` will return something, though it may turn out to be known."""
        return self._overflowed or bool(self._waiting)

    def offer(self, finding: Finding) -> None:
        """This was found; of a key the last finding counts."""
        if self._overflowed or not self._may_be_news(finding):
            return
        self._drop(finding.key)
        self._waiting[finding.key] = finding
        self._bytes += _size(finding)
        if len(self._waiting) > self.events_max or (
            self._bytes > self.bytes_max and len(self._waiting) > 1
        ):
            self.restart()
            self._overflowed = True
        self.stirred.set()

    def restart(self) -> None:
        """Forget what waits: a listing that is asked for now will tell."""
        self._waiting.clear()
        self._bytes = 0
        self._overflowed = False

    def take(self) -> list[Changed | Deleted] | None:
        """The news. None: too many, `restart` and list."""
        if self._overflowed:
            return None
        found = list(self._waiting.values())
        self.restart()
        return self.accept(found)

    def accept(self, findings: Iterable[Finding]) -> list[Changed | Deleted]:
        """Note these as told; what of them is news."""
        told = (self._accept(finding) for finding in findings)
        return [event for event in told if event is not None]

    def lacking(self, present: Collection[str]) -> list[str]:
        """Keys that were told, as there or as gone, and are not among these; in order."""
        return sorted(self._told.keys() - present)

    def _may_be_news(self, finding: Finding) -> bool:
        if not isinstance(finding, Record):
            return True
        waiting = self._waiting.get(finding.key)
        if isinstance(waiting, Record) and waiting.version >= finding.version:
            return False
        told = self._told.get(finding.key)
        return told is None or finding.version > told.version or told.state is _State.UNSURE

    def _accept(self, finding: Finding) -> Changed | Deleted | None:
        key = finding.key
        told = self._told.get(key)
        if told is None:
            told = self._told[key] = _Told(ABSENT, _State.GONE, there=False)
        match finding:
            case Damaged(_, data):
                told.state, told.there = _State.UNSURE, True
                return Changed(Entry(key, data, Version(told.version + 1)))
            case Removed():
                told.state = _State.UNSURE
                return _gone(told, key, Version(told.version + 1))
            case Record():
                stale = finding.version < told.version
                if stale or (finding.version == told.version and told.state is not _State.UNSURE):
                    return None
        told.version = finding.version
        entry = finding.entry()
        if entry is None:
            told.state = _State.GONE
            return _gone(told, key, finding.version)
        told.state, told.there = _State.THERE, True
        return Changed(entry)

    def _drop(self, key: str) -> None:
        found = self._waiting.pop(key, None)
        if found is not None:
            self._bytes -= _size(found)


def _gone(told: _Told, key: str, version: Version) -> Deleted | None:
    """A deletion is told of what was there."""
    was, told.there = told.there, False
    return Deleted(key, version) if was else None


def _size(finding: Finding) -> int:
    match finding:
        case Damaged(key, data):
            return len(key) + len(data)
        case Record(key=key, value=value):
            return len(key) + len(value or b"")
        case Removed(key):
            return len(key)
