"""A group of requests on its way through a log server's core: planned, looked up, decided.

Plain values, and the bookkeeping of what a group has taken so far, which no store can tell yet. The
rules are in `loglet/core.py` and, for repairs, in `loglet/repair_rules.py`.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final

from loglet.messages import (
    RepairRequest,
    RepairResponse,
    SealRequest,
    SealResponse,
    StoreRequest,
    StoreResponse,
    TellEndsRequest,
    TellEndsResponse,
    TrimLoglets,
    TrimmedLoglets,
)
from loglet.store import HeldBatch, LogletState, PutBatch, Write
from sharedlog.batch import PLACEMENT_BYTES, Placement
from sharedlog.errors import CorruptBatch, SharedLogError, StoreFailed
from sharedlog.ids import LogletId, Offset

Request = StoreRequest | SealRequest | RepairRequest | TellEndsRequest | TrimLoglets
CallAnswer = SealResponse | RepairResponse | TellEndsResponse | TrimmedLoglets
Answer = StoreResponse | CallAnswer | SharedLogError
"""An error ends the stream, or fails the call, that the request came by."""

BATCH_OVERHEAD_BYTES: Final = 8192
"""Room that a batch takes beyond its own bytes: a key, and what is lost to whole pages."""

_FIRST = attrgetter("first")
_END = attrgetter("end")


@dataclass(frozen=True, slots=True)
class LookUp:
    """Held batches that overlap [start, end) must be read before the group is decided."""

    loglet: LogletId
    start: Offset
    end: Offset


Held = Mapping[LogletId, Sequence[HeldBatch]]
Checked = Sequence[tuple[Placement, CorruptBatch | None]]
"""Placements of a request's batches, and what is wrong with the batch where it is damaged."""


@dataclass(slots=True)
class Plan:
    """A group whose batches were verified, and what must be read to decide it."""

    requests: Sequence[Request]
    # For each request: its placements, or the error that refuses all of it.
    checked: list[Checked | SharedLogError]
    look_ups: list[LookUp]


@dataclass(slots=True)
class Decision:
    """What to do about a group: commit `writes`, then release `answers`, one for each request.

    Readers of `advanced` may go on at once: what is below a committed tail or a told end is
    committed on a write quorum, whatever this server's disk does next.
    """

    writes: list[Write]
    answers: list[Answer]
    advanced: set[LogletId]  # loglets whose committed tail rose, that ended, or that are new
    # Loglets whose local start rose, and where it is. Once that is committed, what lies below is to
    # be deleted, on disk and in memory.
    trimmed: dict[LogletId, Offset] = field(default_factory=dict)


@dataclass(slots=True)
class Group:
    """Running state of one `decide`."""

    held: Held
    room_bytes: int
    repair_room_bytes: int
    decision: Decision
    # What was looked up and what this group took; sorted by offset, for a stream that was made anew
    # may repeat thousands of batches. See `known`.
    taken: dict[LogletId, list[HeldBatch]] = field(default_factory=dict)
    # Of loglets in which this group left a hole at their tail: the tail that was there. Nothing
    # below it was looked up, since no batch seemed to lie below it.
    old_tails: dict[LogletId, Offset] = field(default_factory=dict)

    def known(self, loglet: LogletId) -> list[HeldBatch]:
        """What is known to be held of a loglet, on disk or taken in this group."""
        known = self.taken.get(loglet)
        if known is None:
            known = self.taken[loglet] = sorted(self.held.get(loglet, ()), key=_FIRST)
        return known

    def overlapping(self, loglet: LogletId, first: Offset, end: Offset) -> list[HeldBatch]:
        """Those of them that have an offset of [first, end)."""
        known = self.known(loglet)
        found = []
        for index in range(bisect_right(known, first, key=_END), len(known)):
            if known[index].first >= end:
                break
            found.append(known[index])
        return found

    def holds_before(self, loglet: LogletId, first: Offset) -> bool:
        """Whether the offset before `first`, which is below the local tail, is held."""
        if first == self.old_tails.get(loglet):
            return True
        return bool(self.overlapping(loglet, Offset(first - 1), first))

    def take(self, state: LogletState, placement: Placement, write: PutBatch) -> None:
        """Write a batch, for which there is room. What is held under its offsets is replaced."""
        first, end = write.first, write.end
        size = len(write.placed) + BATCH_OVERHEAD_BYTES
        self.room_bytes -= size
        self.repair_room_bytes -= size
        if end > state.local_tail:
            if first > state.local_tail:
                self.old_tails.setdefault(write.loglet, state.local_tail)
            state.local_tail = end
        state.last_timestamp_ms = max(state.last_timestamp_ms, placement.timestamp_ms)
        self.decision.writes.append(write)
        known = self.known(write.loglet)
        batch = HeldBatch(first, end, write.placed[:PLACEMENT_BYTES])
        if not known or known[-1].end <= first:
            known.append(batch)
            return
        at = bisect_right(known, first, key=_END)
        if at < len(known) and known[at].first == first:
            known[at] = batch
        else:
            insort(known, batch, key=_FIRST)  # it fills a hole


def is_held(placement: Placement, placed: bytes, held: Sequence[HeldBatch]) -> bool:
    """Whether the one batch held at a batch's offsets is that batch; False: it is, and is damaged.

    Raises:
        StoreFailed: another batch, a whole one, has one of its offsets. CorruptBatch: a damaged one
        takes other offsets with it, so nobody can say.
    """
    assert held
    for batch in held:
        if batch.placement_bytes is not None and batch.placement_bytes != placed[:PLACEMENT_BYTES]:
            raise StoreFailed(
                f"loglet {placement.loglet}: two different batches for the offsets from "
                f"{placement.first} to {placement.end}"
            )
    found = held[0]
    if len(held) > 1 or (found.first, found.end) != (placement.first, placement.end):
        raise CorruptBatch(
            f"loglet {placement.loglet}: what is held at {found.first} to {held[-1].end} is damaged"
        )
    return found.placement_bytes is not None
