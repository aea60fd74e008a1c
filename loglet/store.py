"""What a log server's store is: loglets and batches, written in groups, read by offset.

The interface and its values; `loglet/lmdb_store.py` is the real one, `tests/sim/` has a simulated
one that loses what was not synced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
    local_tail: Offset  # highest held offset + 1; `base` if nothing is held
    committed_tail: Offset  # exclusive
    # Invariant: base <= local_start <= local_tail, and base <= committed_tail. The committed tail
    # may be ahead of the local one: a replica that was skipped knows what it lacks.


@dataclass(frozen=True, slots=True)
class PutBatch:
    """Store a placed batch. `first` and `end` are its offsets [first, end)."""

    loglet: LogletId
    first: Offset
    end: Offset
    placed: bytes


@dataclass(frozen=True, slots=True)
class PutLoglet:
    """Store a loglet's own record: opened, sealed, started."""

    loglet: LogletId
    base: Offset
    opened_by: SequencerId | None
    sealed: bool
    local_start: Offset


Write = PutBatch | PutLoglet


@dataclass(frozen=True, slots=True)
class StoreSpace:
    """How much room there is."""

    used_bytes: int
    free_bytes: (
        int  # the lesser of the disk's free space and the store's own limit, less the reserve; >= 0
    )


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
            StoreReadOnly: no room; nothing was written. Loglet records may use the reserve,
            batches not. StoreFailed: the disk failed; what is on it is unknown. The process must
            stop.

        **Cancellation:** not allowed while it runs: shield it.
        """
        ...

    async def read(
        self, loglet: LogletId, start: Offset, end: Offset, *, max_bytes: int
    ) -> list[tuple[Offset, bytes]]:
        """Placed batches that overlap [start, end), as (key offset, bytes), in order of offset.

        As stored: not verified. At least one batch if there is any, further ones while the sum of
        their sizes stays within
        `max_bytes`. There may be holes between them.
        """
        ...

    def space(self) -> StoreSpace:
        """Room as of now; cheap enough to ask once per commit."""
        ...

    async def close(self) -> None:
        """Finish the running commit and close."""
        ...
