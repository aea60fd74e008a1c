"""What a log server makes of the bytes in its store: is a batch sound, and what does a start find?

A damaged batch **keeps its place**. Its key says which offsets it takes, so it counts in the local
tail and in the prefix rule, after a restart too, and as the last batch as well; forgetting it would
be amnesia. It is never a copy, and never sent to anybody.

Pure, and shared by every `LogStore`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice
from typing import Final

from loglet.store import HeldBatch, LogletState, PutLoglet
from sharedlog.batch import PLACEMENT_BYTES, Placement, check_placed, parse_placement
from sharedlog.errors import CorruptBatch, StoreFailed
from sharedlog.ids import LogletId, Offset

log = logging.getLogger(__name__)

STEPS_BACK_MAX: Final = 16
"""How far `restored` goes back over damaged batches for a committed tail and a timestamp, which are
only hints."""


def verified(loglet: LogletId, first: Offset, end: Offset, placed: bytes) -> HeldBatch:
    """The batch that its key says takes [first, end) of `loglet`, compared with its checksums."""
    try:
        placement = check_placed(placed)
    except CorruptBatch:
        return HeldBatch(first, end, None, len(placed))
    if (placement.loglet, placement.first, placement.end) != (loglet, first, end):
        return HeldBatch(first, end, None, len(placed))
    return HeldBatch(first, end, placed[:PLACEMENT_BYTES], len(placed))


def placement_at(loglet: LogletId, first: Offset, end: Offset, placed: bytes) -> Placement | None:
    """The placement of the batch that its key says takes [first, end) of `loglet`, if it is whole.

    Of the bytes the fixed part is enough; the batch itself may be damaged.
    """
    try:
        placement = parse_placement(placed)
    except CorruptBatch:
        return None
    own = (placement.loglet, placement.first, placement.end) == (loglet, first, end)
    return placement if own else None


def restored(record: PutLoglet, newest: Iterable[tuple[Offset, Offset, bytes]]) -> LogletState:
    """A loglet as a start finds it: its record, and (first, end, bytes) of its batches, last first.

    Of the bytes the fixed part is enough. The committed tail and the timestamp are those of the
    last batch whose placement is whole, whoever stored it: its sequencer wrote them, so they are
    true. What was trimmed is committed, so the committed tail is never below the local start; the
    local tail is not either, and the timestamp not below that of the record.

    Raises:
        StoreFailed: a whole placement under a key that is not its own.
    """
    loglet = record.loglet
    local_tail = committed_tail = record.local_start
    last_timestamp_ms = record.last_timestamp_ms
    for first, end, placed in islice(newest, STEPS_BACK_MAX):
        local_tail = max(local_tail, end)
        try:
            placement = parse_placement(placed)
        except CorruptBatch:
            log.error("batch.damaged", extra={"loglet": str(loglet), "first": first})  # noqa: TRY400
            continue
        if (placement.loglet, placement.first, placement.end) != (loglet, first, end):
            raise StoreFailed(f"loglet {loglet}: the key at {first} is not that of its batch")
        committed_tail = max(committed_tail, placement.committed_tail)
        if record.told_end is not None:
            committed_tail = min(committed_tail, record.told_end)
        last_timestamp_ms = max(last_timestamp_ms, placement.timestamp_ms)
        break
    return LogletState(
        loglet,
        record.base,
        record.opened_by,
        record.sealed,
        record.local_start,
        local_tail,
        committed_tail,
        record.told_end,
        last_timestamp_ms,
    )


def joined(ranges: Iterable[tuple[Offset, Offset]]) -> list[tuple[Offset, Offset]]:
    """Ranges [first, end) in order, adjoining ones as one."""
    found: list[tuple[Offset, Offset]] = []
    for first, end in ranges:
        if found and found[-1][1] == first:
            found[-1] = (found[-1][0], end)
        else:
            found.append((first, end))
    return found
