"""A simulated log server's disk: `LogStore` that loses what was not synced.

`SimDisk` is what lies on the platter and survives crashes. `SimLogStore` is a process's handle on
it for one life: after `SimDisk.crash` it is dead, its running commit is on the disk wholly or not
at all (the seed decides), and nothing it does reaches the disk any more.

That a commit is never there in part is what LMDB guarantees, and what the real store rests on: the
new pages are synced before the root that names them is written, so a torn write leaves a root that
fails its check, and the one before it counts. Nothing weaker is simulated. What is: bits that flip
in batches that were written well (`damage`), a disk without room, one whose sync is slow or fails,
and one that is lost altogether, for which a node gets another `SimDisk`.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from helpers.sim.world import World

from loglet.held import restored, verified
from loglet.store import (
    DropBatches,
    HeldBatch,
    LogletState,
    Neighbours,
    PutBatch,
    PutLoglet,
    PutRepaired,
    StoreSpace,
    Write,
)
from loglet.time_search import find_neighbours
from sharedlog.batch import HEADERS_BYTES
from sharedlog.errors import StoreFailed, StoreReadOnly
from sharedlog.ids import LogletId, Offset, StorageId

RESERVE_BYTES: Final = 64 * 1024
"""Of the capacity, for loglet records, and half of it for repairs: seals must find room on a full
disk."""

LOGLET_BYTES: Final = 256
"""What a loglet record is counted as."""

OnStored = Callable[["SimDisk", LogletId, Offset, Offset], None]
OnTrimmed = Callable[["SimDisk", LogletId, Offset], None]
"""Is told of each local start, when it is durable."""


@dataclass(slots=True)
class _Loglet:
    record: PutLoglet
    firsts: list[Offset] = field(default_factory=list)  # sorted; keys of `batches`
    batches: dict[Offset, PutBatch] = field(default_factory=dict)

    def newest(self) -> Iterator[tuple[Offset, Offset, bytes]]:
        for first in reversed(self.firsts):
            yield first, self.batches[first].end, self.batches[first].placed

    def put(self, write: PutBatch) -> int:
        """Store a batch; returns by how many bytes the disk grew."""
        old = self.batches.get(write.first)
        if old is None:
            at = bisect_left(self.firsts, write.first)
            before = self.batches[self.firsts[at - 1]] if at else None
            after = self.batches[self.firsts[at]] if at < len(self.firsts) else None
            assert before is None or before.end <= write.first, f"{write} overlaps {before}"
            assert after is None or write.end <= after.first, f"{write} overlaps {after}"
            self.firsts.insert(at, write.first)
        else:
            assert old.end == write.end, f"{write} takes the place of {old}"
        self.batches[write.first] = write
        return len(write.placed) - (0 if old is None else len(old.placed))

    def drop(self, end: Offset) -> list[PutBatch]:
        """Delete the batches that end at or below `end`; returns them."""
        assert end <= self.record.local_start, "only what is trimmed durably is deleted"
        gone = [batch for batch in self.batches.values() if batch.end <= end]
        for batch in gone:
            del self.batches[batch.first]
        self.firsts = sorted(self.batches)
        return gone


class SimDisk:
    """The durable state of one store, and its faults."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        capacity_bytes: int = 1 << 30,
        commit_max_s: float = 0.002,
        on_stored: OnStored | None = None,
        on_trimmed: OnTrimmed | None = None,
    ) -> None:
        self.name = name
        self.storage_id = StorageId(world.ids(f"storage {name}")())
        self.capacity_bytes = capacity_bytes
        self.commit_max_s = commit_max_s
        self.used_bytes = 0
        self.full = False  # somebody else has taken all room but the reserve
        self.fail_next_commit = False
        self.failed = False  # a commit has failed, so that the process must have stopped
        self.damaged: set[tuple[LogletId, Offset]] = set()  # first offsets of damaged batches
        self._trace = world.trace
        self._random = world.random(f"disk {name}")
        self._loglets: dict[LogletId, _Loglet] = {}
        self._owner: SimLogStore | None = None
        self._on_stored = on_stored
        self._on_trimmed = on_trimmed
        # What was trimmed and deleted, for the judges; of damaged batches nothing is kept.
        self.is_gone = False  # the node has another one
        self._dropped: dict[LogletId, list[PutBatch]] = defaultdict(list)

    def open(self) -> SimLogStore:
        """A new life's handle on what is durable."""
        assert self._owner is None, f"disk {self.name} is open already"
        self._owner = SimLogStore(self)
        self.failed = False
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

    def free_bytes(self, reserved_bytes: int) -> int:
        """Room, less what is kept back of it."""
        free = 0 if self.full else self.capacity_bytes - RESERVE_BYTES - self.used_bytes
        return max(free + RESERVE_BYTES - reserved_bytes, 0)

    def check_room(self, writes: Sequence[Write]) -> None:
        """Raise `StoreReadOnly` if this can't be written."""
        need = records = 0
        reserved = 0
        for write in writes:
            if isinstance(write, PutBatch):
                need += len(write.placed)
                kept = RESERVE_BYTES // 2 if isinstance(write, PutRepaired) else RESERVE_BYTES
                reserved = max(reserved, kept)
            elif isinstance(write, PutLoglet):
                records += LOGLET_BYTES
        if need + records > self.free_bytes(reserved):
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
                if write.local_start > write.base and self._on_trimmed is not None:
                    self._on_trimmed(self, write.loglet, write.local_start)
            elif isinstance(write, DropBatches):
                for batch in self._loglets[write.loglet].drop(write.end):
                    self.used_bytes -= len(batch.placed)
                    if (write.loglet, batch.first) not in self.damaged:
                        self._dropped[write.loglet].append(batch)
                    self.damaged.discard((write.loglet, batch.first))
            else:
                self.used_bytes += self._loglets[write.loglet].put(write)
                self.damaged.discard((write.loglet, write.first))
                if self._on_stored is not None:
                    self._on_stored(self, write.loglet, write.first, write.end)
        self._trace.add(f"disk {self.name} committed {len(writes)} used {self.used_bytes}")

    def damage(self, loglet: LogletId, offset: Offset, *, bit: int = -8) -> None:
        """Flip one bit in the batch that holds `offset`, of its last byte unless said otherwise."""
        held = self._loglets[loglet]
        for first, batch in held.batches.items():
            if batch.first <= offset < batch.end:
                bits = 8 * len(batch.placed)
                at = bit % bits
                placed = bytearray(batch.placed)
                placed[at // 8] ^= 1 << at % 8
                held.batches[first] = PutBatch(loglet, batch.first, batch.end, bytes(placed))
                self.damaged.add((loglet, first))
                self._trace.add(f"disk {self.name} damaged {loglet} {first} bit {at}")
                return
        raise AssertionError(f"{loglet}: offset {offset} is not held on {self.name}")

    def states(self) -> list[LogletState]:
        return [restored(it.record, it.newest()) for _, it in sorted(self._loglets.items())]

    def read(self, loglet: LogletId, start: Offset, end: Offset) -> list[PutBatch]:
        """Every batch that overlaps [start, end), in order; for tests too."""
        held = self._loglets.get(loglet)
        if held is None:
            return []
        found = (held.batches[first] for first in held.firsts if first < end)
        return [batch for batch in found if batch.end > start]

    def ever(self, loglet: LogletId) -> list[PutBatch]:
        """Every batch that it has, or had until it was trimmed; in no order, for judges.

        Not what was damaged when the disk was taken away: nobody could mend that any more.
        """
        held = self.read(loglet, Offset(0), Offset(1 << 62))
        if self.is_gone:
            held = [batch for batch in held if (loglet, batch.first) not in self.damaged]
        return self._dropped[loglet] + held


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
                disk.failed = True
                disk.crash()  # nobody can tell what of it arrived
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

    async def scan(
        self,
        loglet: LogletId,
        start: Offset,
        end: Offset,
        *,
        verify: bool,
        max_batches: int,
        max_bytes: int,
    ) -> list[HeldBatch]:
        found: list[HeldBatch] = []
        size = 0
        for batch in self._disk.read(loglet, start, end)[:max_batches]:
            if not verify:
                found.append(HeldBatch(batch.first, batch.end, b""))
                continue
            size += len(batch.placed)
            if found and size > max_bytes:
                break
            found.append(verified(loglet, batch.first, batch.end, batch.placed))
        return found

    async def find_time(
        self, loglet: LogletId, start: Offset, end: Offset, timestamp_ms: int
    ) -> Neighbours:
        def walk(first: Offset, last: Offset) -> Iterator[tuple[Offset, Offset, bytes]]:
            for batch in self._disk.read(loglet, first, last):
                yield batch.first, batch.end, batch.placed[:HEADERS_BYTES]

        return find_neighbours(walk, loglet, start, end, timestamp_ms)

    async def find_trimmed(
        self, loglet: LogletId, below: Offset, *, max_batches: int, max_bytes: int
    ) -> DropBatches | None:
        batches = size = 0
        end = below
        for batch in self._disk.read(loglet, Offset(0), below):
            if batch.end > below or batches >= max_batches:
                break
            if batches and size + len(batch.placed) > max_bytes:
                break
            batches, size, end = batches + 1, size + len(batch.placed), batch.end
        return DropBatches(loglet, end, batches, size) if batches else None

    def space(self) -> StoreSpace:
        disk = self._disk
        return StoreSpace(
            disk.used_bytes,
            disk.free_bytes(RESERVE_BYTES),
            disk.free_bytes(RESERVE_BYTES // 2),
            disk.used_bytes,
        )

    async def close(self) -> None:
        self._disk.release(self)
