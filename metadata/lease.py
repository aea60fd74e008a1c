"""A lease in the metadata store: which process is the controller, as far as anybody can tell.

**Theory of operation.** One key holds a `LeaseRecord`: who holds it, a nonce of that process's
life, and a counter. The holder renews it by writing the next count. Anybody else reads it now and
then, and may take it once it has seen the very same version for the lease's whole time. Each
process measures by its own monotonic clock only; times are never compared between machines:

- the holder counts from the moment *before* it asked for its last successful write, and stops
  calling itself the holder at `HELD_SHARE` of the lease's time after it;
- another one counts from the moment *after* it first read that write. That is later, so while both
  clocks run at about the same speed (`HELD_SHARE` is the slack) there is one holder at most.

**Nothing rests on that.** A process that is paused between a look at `held` and what it does next
may act beside its successor. Whatever a controller does is safe if two of them do it; the lease
only saves them from doing everything twice. A write whose outcome is unknown does not count for its
writer, until a later read shows that it was made.

A record that can't be decoded is somebody's, for one lease time, and is then overwritten like any
other: a damaged lease must not leave the cluster without a controller.

`Lease` decides and does no I/O; `keep` and `release` are the shell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from metadata.encoding import decode_lease, encode_lease
from metadata.errors import MetadataCorrupt
from metadata.records import CONTROLLER_KEY, LeaseRecord
from metadata.store import ABSENT, Entry, MetadataStore, Version
from sharedlog.clock import Clock
from sharedlog.errors import VersionMismatch
from sharedlog.ids import NodeId

HELD_SHARE: Final = 0.8
"""Of the lease's time: after that much of it without a renewal its holder no longer acts on it."""

KEEP_SHARE: Final = 0.25
"""Of the lease's time: how often `keep` should be called."""

assert 3 * KEEP_SHARE < HELD_SHARE < 1, "two lost renewals in a row are no loss of the lease"


class Lease:
    """What one process knows of the lease; `nonce` is new for each life of the process."""

    def __init__(self, *, holder: NodeId, nonce: str, ttl_s: float) -> None:
        assert holder
        assert nonce
        assert ttl_s > 0
        self._own = holder
        self._nonce = nonce
        self._ttl_s = ttl_s
        self._record: LeaseRecord | None = None  # None: there is none, or it can't be decoded
        self._version = ABSENT
        self._seen_s = 0.0  # when `_version` was seen first
        self._held_until_s: float | None = None

    @property
    def keep_every_s(self) -> float:
        """How often `keep` should be called."""
        return self._ttl_s * KEEP_SHARE

    @property
    def version(self) -> Version:
        """Of the record as it was read last."""
        return self._version

    @property
    def holder(self) -> NodeId | None:
        """Who held it when it was read last; None: nobody. A hint."""
        return (self._record.holder or None) if self._record is not None else None

    def held(self, now_s: float) -> bool:
        """This process holds it now."""
        return self._held_until_s is not None and now_s < self._held_until_s

    def on_read(self, record: LeaseRecord | None, version: Version, now_s: float) -> None:
        """The store had this at `now_s` or before; `version` is `ABSENT` if it had nothing."""
        if version != self._version:
            self._version = version
            self._seen_s = now_s
        self._record = record
        if not self._is_own():
            self._held_until_s = None

    def next_record(self, now_s: float) -> LeaseRecord | None:
        """What to write over the present version; None: it is somebody else's, so nothing."""
        found = self._record
        if not (self._is_own() or self._is_free(now_s)):
            return None
        return LeaseRecord(
            holder=self._own,
            nonce=self._nonce,
            counter=1 if found is None else found.counter + 1,
            ttl_ms=round(self._ttl_s * 1000),
        )

    def on_written(
        self, record: LeaseRecord, version: Version, *, asked_s: float, now_s: float
    ) -> None:
        """A write that was asked for at `asked_s` was made."""
        assert asked_s <= now_s
        self._record = record
        self._version = version
        self._seen_s = now_s
        self._held_until_s = asked_s + self._ttl_s * HELD_SHARE if record.holder else None

    def give_up(self) -> LeaseRecord | None:
        """What to write to let it go at once; None: it is not this process's.

        It is not held from now on: should the write's answer get lost, another may have it already.
        """
        self._held_until_s = None
        if self._record is None or not self._is_own():
            return None
        return LeaseRecord(holder=NodeId(""), nonce="", counter=self._record.counter + 1, ttl_ms=0)

    def _is_own(self) -> bool:
        return self._record is not None and self._record.nonce == self._nonce

    def _is_free(self, now_s: float) -> bool:
        if self._version == ABSENT or (self._record is not None and not self._record.holder):
            return True
        # Its holder renews it within the time that it wrote down, whatever ours is set to.
        ttl_s = self._ttl_s if self._record is None else self._record.ttl_ms / 1000
        return now_s - self._seen_s >= ttl_s


@dataclass(frozen=True, slots=True)
class _Read:
    record: LeaseRecord | None
    version: Version


async def keep(store: MetadataStore, lease: Lease, clock: Clock) -> bool:
    """Take the lease if it is free, renew it if it is ours; returns whether this process holds it.

    Raises:
        MetadataUnavailable: it may or may not be written. `lease.held` goes on telling the truth.

    **Cancellation:** as with `MetadataUnavailable`.
    """
    found = _read(await store.get(CONTROLLER_KEY))
    now_s = clock.monotonic_s()
    lease.on_read(found.record, found.version, now_s)
    record = lease.next_record(now_s)
    if record is None:
        return False
    try:
        version = await store.put(CONTROLLER_KEY, encode_lease(record), expected=found.version)
    except VersionMismatch:
        return False  # somebody was faster; the next read says who
    lease.on_written(record, version, asked_s=now_s, now_s=clock.monotonic_s())
    return lease.held(clock.monotonic_s())


async def release(store: MetadataStore, lease: Lease, clock: Clock) -> None:
    """Let the lease go, if it is ours, so that the next one need not wait.

    Raises:
        MetadataUnavailable: it may or may not be written.
    """
    found = _read(await store.get(CONTROLLER_KEY))
    now_s = clock.monotonic_s()
    lease.on_read(found.record, found.version, now_s)
    record = lease.give_up()
    if record is None:
        return
    try:
        version = await store.put(CONTROLLER_KEY, encode_lease(record), expected=found.version)
    except VersionMismatch:
        return  # it was taken meanwhile
    lease.on_written(record, version, asked_s=now_s, now_s=clock.monotonic_s())


def _read(entry: Entry | None) -> _Read:
    if entry is None:
        return _Read(None, ABSENT)
    try:
        return _Read(decode_lease(entry), entry.version)
    except MetadataCorrupt:
        return _Read(None, entry.version)
