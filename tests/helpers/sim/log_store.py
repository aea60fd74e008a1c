"""A simulated log server's disk: `LogStore` that loses what was not synced.

`SimDisk` is what lies on the platter and survives crashes. `SimLogStore` is a process's handle on
it for one life: after `SimDisk.crash` it is dead, its running commit is on the disk wholly or not
at all (the seed decides), and nothing it does reaches the disk any more.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from helpers.sim.world import World

from loglet.store import LogletState, PutBatch, PutLoglet, StoreSpace, Write
from sharedlog.batch import parse_placement
from sharedlog.errors import StoreFailed, StoreReadOnly
from sharedlog.ids import LogletId, Offset, StorageId

RESERVE_BYTES = 64 * 1024
"""Of the capacity, for loglet records only: a seal must find room on a full disk."""

LOGLET_BYTES = 256
"""What a loglet record is counted as."""


@dataclass(slots=True)
class _Loglet:
    record: PutLoglet
    firsts: list[Offset] = field(default_factory=list)  # sorted; keys of `batches`
    batches: dict[Offset, PutBatch] = field(default_factory=dict)


class SimDisk:
    """The durable state of one store, and its faults."""

    def __init__(
        self, world: World, name: str, *, capacity_bytes: int = 1 << 30, commit_max_s: float = 0.002
    ) -> None:
        self.name = name
        self.storage_id = StorageId(world.ids(f"storage {name}")())
        self.capacity_bytes = capacity_bytes
        self.commit_max_s = commit_max_s
        self.used_bytes = 0
        self.fail_next_commit = False
        self._trace = world.trace
        self._random = world.random(f"disk {name}")
        self._loglets: dict[LogletId, _Loglet] = {}
        self._owner: SimLogStore | None = None

    def open(self) -> SimLogStore:
        """A new life's handle on what is durable."""
        assert self._owner is None, f"disk {self.name} is open already"
        self._owner = SimLogStore(self)
        return self._owner

    def crash(self) -> None:
        """The process is gone; a commit that ran is on the disk wholly or not at all."""
        owner, self._owner = self._owner, None
        if owner is None:
            return
        owner.dead = True
        if owner.committing is not None and self._random.random() < 0.5:
            self.apply(owner.committing)

    def release(self, store: SimLogStore) -> None:
        if self._owner is store:
            self._owner = None

    def commit_seconds(self) -> float:
        return self._random.uniform(self.commit_max_s / 10, self.commit_max_s)

    def check_room(self, writes: Sequence[Write]) -> None:
        batches = sum(len(write.placed) for write in writes if isinstance(write, PutBatch))
        records = LOGLET_BYTES * sum(isinstance(write, PutLoglet) for write in writes)
        limit = self.capacity_bytes - (RESERVE_BYTES if batches else 0)
        if self.used_bytes + batches + records > limit:
            raise StoreReadOnly(f"disk {self.name} is full")

    def apply(self, writes: Sequence[Write]) -> None:
        for write in writes:
            if isinstance(write, PutLoglet):
                found = self._loglets.get(write.loglet)
                if found is None:
                    self._loglets[write.loglet] = _Loglet(write)
                    self.used_bytes += LOGLET_BYTES
                else:
                    found.record = write
            else:
                self._put_batch(self._loglets[write.loglet], write)
        self._trace.add(f"disk {self.name} committed {len(writes)} used {self.used_bytes}")

    def _put_batch(self, loglet: _Loglet, write: PutBatch) -> None:
        old = loglet.batches.get(write.first)
        if old is None:
            loglet.firsts.insert(bisect_left(loglet.firsts, write.first), write.first)
        else:
            self.used_bytes -= len(old.placed)
        loglet.batches[write.first] = write
        self.used_bytes += len(write.placed)

    def damage(self, loglet: LogletId, offset: Offset) -> None:
        """Flip one bit in the last byte of the batch that holds `offset`."""
        held = self._loglets[loglet]
        for first, batch in held.batches.items():
            if batch.first <= offset < batch.end:
                flipped = batch.placed[:-1] + bytes([batch.placed[-1] ^ 1])
                held.batches[first] = PutBatch(loglet, batch.first, batch.end, flipped)
                return
        raise AssertionError(f"{loglet}: offset {offset} is not held on {self.name}")

    def states(self) -> list[LogletState]:
        return [self._state(loglet) for _, loglet in sorted(self._loglets.items())]

    def read(self, loglet: LogletId, start: Offset, end: Offset) -> list[PutBatch]:
        """Every batch that overlaps [start, end), in order; for tests too."""
        held = self._loglets.get(loglet)
        if held is None:
            return []
        found = (held.batches[first] for first in held.firsts if first < end)
        return [batch for batch in found if batch.end > start]

    def _state(self, loglet: _Loglet) -> LogletState:
        record = loglet.record
        last = loglet.batches[loglet.firsts[-1]] if loglet.firsts else None
        told = parse_placement(last.placed).committed_tail if last else record.base
        return LogletState(
            loglet=record.loglet,
            base=record.base,
            opened_by=record.opened_by,
            sealed=record.sealed,
            local_start=record.local_start,
            local_tail=last.end if last else record.base,
            committed_tail=max(record.base, told),
        )


class SimLogStore:
    """`LogStore` on a `SimDisk`, for one life of a process."""

    def __init__(self, disk: SimDisk) -> None:
        self._disk = disk
        self.dead = False
        self.committing: list[Write] | None = None

    @property
    def storage_id(self) -> StorageId:
        return self._disk.storage_id

    def loglets(self) -> Sequence[LogletState]:
        return self._disk.states()

    async def commit(self, writes: Sequence[Write]) -> None:
        assert self.committing is None, "one commit at a time"
        if self.dead:  # whatever the dying process makes of it, nobody hears
            raise StoreFailed(f"disk {self._disk.name} is gone with its process")
        disk = self._disk
        disk.check_room(writes)
        self.committing = list(writes)
        try:
            await asyncio.sleep(disk.commit_seconds())
            if disk.fail_next_commit:
                disk.fail_next_commit = False
                raise StoreFailed(f"disk {disk.name} failed")
            if not self.dead:
                disk.apply(self.committing)
        finally:
            self.committing = None

    async def read(
        self, loglet: LogletId, start: Offset, end: Offset, *, max_bytes: int
    ) -> list[tuple[Offset, bytes]]:
        found: list[tuple[Offset, bytes]] = []
        size = 0
        for batch in self._disk.read(loglet, start, end):
            size += len(batch.placed)
            if found and size > max_bytes:
                break
            found.append((batch.first, batch.placed))
        return found

    def space(self) -> StoreSpace:
        disk = self._disk
        free = disk.capacity_bytes - RESERVE_BYTES - disk.used_bytes
        return StoreSpace(disk.used_bytes, max(free, 0))

    async def close(self) -> None:
        self._disk.release(self)
