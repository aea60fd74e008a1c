"""Finds a moment among the batches that a log server holds, by their placements alone.

Timestamps never run back within a loglet, so the batches that are earlier than the moment lie
before those that are not, and a bisection finds where they meet. It halves ranges of offsets, for a
store finds the batch that holds an offset with one seek, whatever the number of records in each.

**Holes.** A replica may lack batches, or have damaged ones. What is bisected then is what it does
hold, which is in order all the same, and the answer is two placements that were seen: the last
earlier batch and the first later one. If one ends where the other begins, nothing lies between
them, and the first later record of the *log* is found, whatever else is missing here. Otherwise the
place lies in a gap of this replica, somebody else must tell, and the gap's edges say about what.

A batch whose placement is damaged is passed over like a hole; a run of them that is too long ends
the search early, with what it has seen so far. That is true too, only less.

Pure, and shared by every `LogStore`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from loglet.held import placement_at
from loglet.store import Neighbours
from sharedlog.ids import LogletId, Offset

DAMAGED_PASSED_MAX: Final = 16
"""Damaged placements in a row that one step of the search looks at."""

Walk = Callable[[Offset, Offset], Iterator[tuple[Offset, Offset, bytes]]]
"""First, end and fixed part of the held batches that overlap [start, end), in order."""


def find_neighbours(
    walk: Walk, loglet: LogletId, start: Offset, end: Offset, timestamp_ms: int
) -> Neighbours:
    """The neighbours of `timestamp_ms` among the batches of [start, end)."""
    before = after = b""
    low, high = start, end
    # Invariant: every whole batch in [start, low) is earlier, and none of [high, end) is, or there
    # is none; `before` and `after` are the nearest to the two edges that were seen.
    while low < high:
        middle = Offset((low + high) // 2)
        for passed, (first, its_end, fixed) in enumerate(walk(middle, high)):
            placement = placement_at(loglet, first, its_end, fixed)
            if placement is not None:
                break
            if passed == DAMAGED_PASSED_MAX:
                return Neighbours(before, after)
        else:
            high = middle  # nothing whole ends above it
            continue
        if its_end > end:  # not shown to anybody as a whole, so it is not looked at either
            high = min(middle, first)
        elif placement.timestamp_ms < timestamp_ms:
            before, low = fixed, its_end
        else:
            after, high = fixed, min(middle, first)
    return Neighbours(before, after)
