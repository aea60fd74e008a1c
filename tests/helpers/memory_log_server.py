"""A log server without tasks or disks: the real core, and a dictionary that survives crashes.

For tests of what several of them do together, one request at a time. What is in `disk` is fsynced;
`crash` forgets all else, `wipe` forgets that too and takes another storage_id, `damage` spoils a
batch in its place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from loglet.core import LogServerCore
from loglet.group import Answer, Request
from loglet.held import joined, restored, verified
from loglet.messages import (
    RepairRequest,
    SealRequest,
    SealResponse,
    StoreRequest,
    StoreResponse,
    TrimLoglets,
    TrimmedLoglets,
)
from loglet.ranges import Range
from loglet.store import LogletState, PutBatch, PutLoglet
from metadata.records import Replica
from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.ids import LogletId, NodeId, Offset, StorageId

ROOM_BYTES = 1 << 40
GapKind = Literal["hole", "damaged", "trimmed"]
Stored = dict[Offset, tuple[Offset, bytes]]
"""Batches by their first offset: end and bytes."""


class MemoryLogServer:
    """See the module's docstring."""

    def __init__(self, node_id: str, *, location: str = "") -> None:
        self.node_id = NodeId(node_id)
        self.location = location
        self.lives = 1
        self.up = True
        self.full = False
        self.disk: dict[LogletId, Stored] = {}
        self.records: dict[LogletId, PutLoglet] = {}
        self.core = LogServerCore(self.storage_id, [])

    @property
    def storage_id(self) -> StorageId:
        return StorageId(f"{self.node_id}-{self.lives}")

    @property
    def replica(self) -> Replica:
        """As a nodeset names it now."""
        return Replica(node_id=self.node_id, storage_id=self.storage_id, location=self.location)

    def ask(self, request: Request) -> Answer:
        """What the server answers, once it is durable.

        Raises:
            Unreachable: it is down.
        """
        if not self.up:
            raise Unreachable("connection refused")
        plan = self.core.plan([request])
        held = {
            it.loglet: [
                verified(it.loglet, first, end, placed)
                for first, end, placed in self._overlapping(it.loglet, it.start, it.end)
            ]
            for it in plan.look_ups
        }
        room = 0 if self.full else ROOM_BYTES
        decision = self.core.decide(plan, held, room_bytes=room)
        for write in decision.writes:
            if isinstance(write, PutBatch):
                self.disk.setdefault(write.loglet, {})[write.first] = write.end, write.placed
            elif isinstance(write, PutLoglet):
                self.records[write.loglet] = write
        self.core.check_invariants()
        return decision.answers[0]

    def seal(self, replica: Replica, loglet: LogletId, base: Offset) -> SealResponse:
        """Seal, as the service does it: with what is damaged above the known committed tail.

        Raises:
            SharedLogError: it is down, or has another store.
        """
        answer = self.ask(SealRequest(replica.storage_id, loglet, base))
        if isinstance(answer, SharedLogError):
            raise answer
        assert isinstance(answer, SealResponse)
        answer.damaged = self.damaged(loglet, answer.committed_tail, answer.local_tail)
        return answer

    def repair(
        self, replica: Replica, loglet: LogletId, committed: Offset, batches: list[bytes]
    ) -> None:
        """Raises what the server answers but "done"."""
        answer = self.ask(RepairRequest(replica.storage_id, loglet, committed, batches))
        if isinstance(answer, SharedLogError):
            raise answer

    def trim(self, replica: Replica, loglet: LogletId, local_start: Offset) -> Offset | None:
        """Where the local start is then; None: the loglet is not known. What lies below stays."""
        answer = self.ask(TrimLoglets(replica.storage_id, [(loglet, local_start)]))
        if isinstance(answer, SharedLogError):
            raise answer
        assert isinstance(answer, TrimmedLoglets)
        return answer.loglets[0].local_start if answer.loglets else None

    def sweep(self, loglet: LogletId, count: int) -> None:
        """Delete the first so many batches of what was trimmed."""
        for first, end, _ in list(self._overlapping(loglet, Offset(0), Offset(1 << 60)))[:count]:
            if end <= self.records[loglet].local_start:
                del self.disk[loglet][first]

    def store(self, request: StoreRequest) -> StoreResponse:
        """Raises what ends the stream."""
        answer = self.ask(request)
        if isinstance(answer, SharedLogError):
            raise answer
        assert isinstance(answer, StoreResponse)
        return answer

    def read(
        self, replica: Replica, loglet: LogletId, first: Offset, end: Offset, *, batches_max: int
    ) -> tuple[list[tuple[Range, bytes]], Range | None, GapKind]:
        """A read for repair: batches from `first` on, the gap that is there instead, its kind.

        Raises:
            SharedLogError: it is down, or has another store.
        """
        if not self.up:
            raise Unreachable("connection refused")
        self.core.check_storage(replica.storage_id)
        found: list[tuple[Range, bytes]] = []
        state = self.state(loglet)
        if state is not None and first < state.local_start:
            return [], (first, min(state.local_start, end)), "trimmed"
        for at, its_end, placed in self._overlapping(loglet, first, end):
            sound = verified(loglet, at, its_end, placed).placement_bytes is not None
            if at > first or not sound:
                gap = (first, min(at if at > first else its_end, end))
                return (found, None, "hole") if found else ([], gap, _kind(hole=at > first))
            found.append(((at, its_end), placed))
            first = its_end
            if len(found) == batches_max:
                return found, None, "hole"
        return (found, None, "hole") if found else ([], (first, end), "hole")

    def state(self, loglet: LogletId) -> LogletState | None:
        return self.core.loglet(loglet)

    def crash(self) -> None:
        """Start again with what is on disk: known committed tails are gone, but for hints there."""
        states = []
        for loglet, record in self.records.items():
            newest = sorted(self.disk.get(loglet, {}).items(), reverse=True)
            batches = ((first, end, placed) for first, (end, placed) in newest)
            states.append(restored(record, batches))
        self.core = LogServerCore(self.storage_id, states)
        self.up = True

    def wipe(self) -> None:
        """The disk is swapped for an empty one."""
        self.lives += 1
        self.disk.clear()
        self.records.clear()
        self.crash()

    def damage(self, loglet: LogletId, first: Offset) -> None:
        """Turn over one bit of the batch at `first`."""
        end, placed = self.disk[loglet][first]
        self.disk[loglet][first] = end, placed[:-1] + bytes([placed[-1] ^ 1])

    def damaged(self, loglet: LogletId, start: Offset, end: Offset) -> list[Range]:
        return joined(
            (first, its_end)
            for first, its_end, placed in self._overlapping(loglet, start, end)
            if verified(loglet, first, its_end, placed).placement_bytes is None
        )

    def holds(self, loglet: LogletId, offset: Offset) -> bytes | None:
        """The sound batch that has the offset, which was not trimmed."""
        state = self.state(loglet)
        if state is not None and offset < state.local_start:
            return None
        for first, end, placed in self._overlapping(loglet, offset, Offset(offset + 1)):
            if verified(loglet, first, end, placed).placement_bytes is not None:
                return placed
        return None

    def _overlapping(
        self, loglet: LogletId, start: Offset, stop: Offset
    ) -> Iterator[tuple[Offset, Offset, bytes]]:
        for first, (end, placed) in sorted(self.disk.get(loglet, {}).items()):
            if first < stop and end > start:
                yield first, end, placed


def _kind(*, hole: bool) -> GapKind:
    return "hole" if hole else "damaged"
