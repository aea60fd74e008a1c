"""What a log server's store is: loglets and batches, written in groups, read by offset.

The interface and its values; `loglet/lmdb_store.py` is the real one, `tests/helpers/sim/` has a
simulated one that loses what was not synced. What both make of stored bytes is in `loglet/held.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sharedlog.ids import LogletId, Offset, SequencerId, StorageId


@dataclass(slots=True)
class LogletState:
    """What a log server knows of one loglet.

    `committed_tail` is a hint that is kept with the batches and never synced by itself.
    """

    loglet: LogletId
    base: Offset  # first offset of the segment, inclusive
    opened_by: SequencerId | None  # None: created by a seal
    sealed: bool
    local_start: Offset  # first offset kept here, inclusive
    local_tail: Offset  # highest held offset + 1; `local_start` if nothing is held
    committed_tail: Offset  # exclusive
    told_end: Offset | None = None  # the segment's end, as the chain's winner told it
    last_timestamp_ms: int = 0  # the latest of the batches held or trimmed, as far as known
    # Invariant: base <= local_start <= local_tail, and local_start <= committed_tail: only what is
    # committed is trimmed. The committed tail may be ahead of the local one: a replica that was
    # skipped knows what it lacks.
    # Invariant: committed_tail <= told_end, which never changes. The local tail may be beyond the
    # told end: what lies there is not in the log, and nobody is shown it.


@dataclass(frozen=True, slots=True)
class PutBatch:
    """Store a placed batch. `first` and `end` are its offsets [first, end)."""

    loglet: LogletId
    first: Offset
    end: Offset
    placed: bytes


@dataclass(frozen=True, slots=True)
class PutRepaired(PutBatch):
    """Store a batch for a repair, which may use half of the reserve."""

    overwrites: bool = False  # a batch with these offsets is held, and is damaged


@dataclass(frozen=True, slots=True)
class PutLoglet:
    """Store a loglet's own record: opened, sealed, trimmed, ended."""

    loglet: LogletId
    base: Offset
    opened_by: SequencerId | None
    sealed: bool
    local_start: Offset
    told_end: Offset | None = None
    # Of a trimmed loglet: the latest timestamp so far, for its batches may not be there to tell.
    last_timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class DropBatches:
    """Delete the batches that end at or below `end`, which is no higher than the local start.

    Made by `LogStore.find_trimmed`, which has counted them; none is ever added to them.
    """

    loglet: LogletId
    end: Offset
    batches: int
    size: int  # bytes of them


Write = PutBatch | PutLoglet | DropBatches


@dataclass(frozen=True, slots=True)
class StoreSpace:
    """How much room there is."""

    # What is not free. Room that was freed within the store counts as free, but for what may not be
    # reusable yet.
    used_bytes: int
    # The lesser of the disk's free space and the store's own limit, less the reserve; >= 0.
    free_bytes: int
    repair_bytes: int  # the same, less half of the reserve only
    file_bytes: int = 0  # what the store takes of its disk, free room within it included


class HeldBatch(NamedTuple):
    """A batch on disk, and whether it is sound; a tuple, since each batch stored makes one."""

    first: Offset
    end: Offset
    # The placement as stored. None: what is stored does not match its checksums or its key.
    placement_bytes: bytes | None
    size: int = 0  # bytes that were read to verify it


class Neighbours(NamedTuple):
    """The batches on either side of a moment, by their fixed parts; empty where there is none.

    What lies between the end of `before` and the first offset of `after` is not held, or damaged.
    """

    before: bytes = b""  # the last one that is earlier
    after: bytes = b""  # the first one that is not


class LogStore(Protocol):
    """One store, one owner, one writer."""

    @property
    def storage_id(self) -> StorageId:
        """Identity, written when the store was created."""
        ...

    def loglets(self) -> Sequence[LogletState]:
        """Every loglet, as on disk. For the start and after a failed commit; reads no batch."""
        ...

    async def commit(self, writes: Sequence[Write]) -> None:
        """Write all or nothing; on return it is fsynced. One commit at a time.

        Raises:
            StoreReadOnly: no room; nothing was written. Loglet records and deletions may use the
            reserve, repaired batches half of it, other batches none. StoreFailed: the disk failed;
            what is
            on it is unknown. The process must stop.

        **Cancellation:** not allowed while it runs: shield it.
        """
        ...

    async def read(
        self, loglet: LogletId, start: Offset, end: Offset, *, max_bytes: int
    ) -> list[tuple[Offset, bytes]]:
        """Placed batches that overlap [start, end), as (key offset, bytes), in order of offset.

        As stored: not verified. At least one batch if there is any, further ones while the sum of
        their sizes stays within `max_bytes`. There may be holes between them.
        """
        ...

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
        """Which batches that overlap [start, end) are held, in order of offset.

        Up to `max_batches`, at least one if there is any. With `verify` each is read and compared
        with its checksums, further ones than the first while the sum of their sizes stays within
        `max_bytes`; without, no bytes are looked at and `placement_bytes` is empty. There may be
        holes between them. Does not stop the event loop.
        """
        ...

    async def find_time(
        self, loglet: LogletId, start: Offset, end: Offset, timestamp_ms: int
    ) -> Neighbours:
        """A moment's neighbours among the batches held in [start, end).

        Looks at some placements alone: their number grows with the logarithm of the range. Those
        that are damaged are passed over. Does not stop the event loop. See `time_search.py`.
        """
        ...

    async def find_trimmed(
        self, loglet: LogletId, below: Offset, *, max_batches: int, max_bytes: int
    ) -> DropBatches | None:
        """The first batches that end at or below `below`, to be deleted by a commit; None: no more.

        At least one if there is any, further ones up to `max_batches` while the sum of their sizes
        stays within `max_bytes`. Does not stop the event loop, and brings into memory what their
        deletion will look at.
        """
        ...

    def space(self) -> StoreSpace:
        """Room as of now; cheap enough to ask once per commit."""
        ...

    async def close(self) -> None:
        """Finish the running commit and close."""
        ...
