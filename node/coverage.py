"""Who holds what of a segment, as arithmetic on ranges of offsets. Pure functions.

A range is [first, end), never empty; a list of ranges is in order, and its members neither overlap
nor touch. A replica's `Holding` is what it said of itself; `whole` is what it can give back: held
and not known to be damaged. A damaged batch keeps its place at its log server, but is no copy.

**What one replica has trimmed is wanted of nobody.** It was committed, and kept elsewhere or given
up, before anybody was told to trim it; that others still have it, or never had it, is no lack.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final

from metadata.records import LostRange, Segment
from sharedlog.ids import Offset

Range = tuple[Offset, Offset]
Ranges = Sequence[Range]
NOTHING: Final[tuple[Range, ...]] = ()
_FIRST: Final = itemgetter(0)


def merge(ranges: Iterable[Range]) -> list[Range]:
    """The same offsets as a list of ranges; empty ones are dropped."""
    merged: list[Range] = []
    for first, end in sorted(it for it in ranges if it[0] < it[1]):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((first, end))
    return merged


def subtract(ranges: Ranges, minus: Ranges) -> list[Range]:
    """Offsets of `ranges` that are not in `minus`. Both are in order."""
    rest: list[Range] = []
    at = 0
    for whole_first, end in ranges:
        first = whole_first
        while at < len(minus) and minus[at][1] <= first:
            at += 1
        index = at
        while index < len(minus) and minus[index][0] < end:
            if first < minus[index][0]:
                rest.append((first, minus[index][0]))
            first = max(first, minus[index][1])
            index += 1
        if first < end:
            rest.append((first, end))
    return rest


def intersect(ranges: Ranges, others: Ranges) -> list[Range]:
    """Offsets that are in both. Both are in order."""
    return subtract(ranges, subtract(ranges, others))


def clip(ranges: Ranges, first: Offset, end: Offset) -> list[Range]:
    """What of `ranges` lies in [first, end)."""
    return intersect(ranges, [(first, end)] if first < end else NOTHING)


def size(ranges: Ranges) -> int:
    """How many offsets."""
    return sum(end - first for first, end in ranges)


def covers(ranges: Ranges, offset: int) -> bool:
    """The offset is in one of them."""
    at = bisect_right(ranges, offset, key=_FIRST) - 1
    return at >= 0 and offset < ranges[at][1]


def wanted(segment: Segment, end: Offset, *, start: Offset | None = None) -> list[Range]:
    """What every replica of a segment should hold of [start or its base, `end`).

    What an operator has given up is wanted of nobody, nor is a segment that only the archive has.
    """
    if segment.is_archived:
        return []
    first = segment.base if start is None else max(start, segment.base)
    given_up = merge((it.first, it.end) for it in segment.lost)
    return subtract([(first, end)] if first < end else NOTHING, given_up)


def with_lost(lost: Sequence[LostRange], more: Iterable[LostRange]) -> tuple[LostRange, ...]:
    """The ranges that are given up, in order."""
    return tuple(sorted((*lost, *more), key=lambda it: (it.first, it.end)))


@dataclass(frozen=True, slots=True)
class Holding:
    """What one replica holds of a segment, or that it does not say."""

    answered: bool
    held: tuple[Range, ...] = ()
    damaged: tuple[Range, ...] = ()
    # Its node has another store now, or was declared to have lost it; of one that answers this is
    # only said where its vote is at stake.
    lost: bool = False
    error: str = ""  # why it did not answer
    told_end: bool = False  # it knows where the segment ends
    local_start: Offset = Offset(0)  # noqa: RUF009 - a number; all below was trimmed there

    @property
    def whole(self) -> list[Range]:
        """What it can give back."""
        return subtract(self.held, self.damaged) if self.damaged else list(self.held)


def trimmed_upto(holdings: Iterable[Holding]) -> Offset:
    """Below this offset all was trimmed, at one replica at least."""
    return max((it.local_start for it in holdings), default=Offset(0))


def untrimmed(want: Ranges, holdings: Iterable[Holding]) -> list[Range]:
    """What of `want` is wanted still."""
    return subtract(want, merge([(Offset(0), trimmed_upto(holdings))]))


@dataclass(frozen=True, slots=True)
class Copy:
    """A range that `target` lacks, and who has all or part of it; replicas by index."""

    target: int
    first: Offset
    end: Offset
    sources: tuple[int, ...]


def plan_copies(holdings: Sequence[Holding], want: Ranges) -> list[Copy]:
    """What must be copied so that every replica that answers holds all that is wanted.

    Cut so that the sources of a copy have all of it. What nobody has is nobody's copy: see
    `nobody_has`.
    """
    copies = []
    wholes = [it.whole if it.answered else [] for it in holdings]
    for target, holding in enumerate(holdings):
        if not holding.answered:
            continue
        for first, end in _cut(subtract(want, wholes[target]), wholes):
            sources = tuple(
                source
                for source, whole in enumerate(wholes)
                if source != target and covers(whole, first)
            )
            if sources:
                copies.append(Copy(target, first, end, sources))
    return copies


def nobody_has(holdings: Sequence[Holding], want: Ranges) -> list[Range]:
    """What is wanted, and no replica that answers can give back."""
    return subtract(want, merge(it for holding in holdings for it in holding.whole))


def elsewhere(holdings: Sequence[Holding], want: Ranges, archived_end: Offset) -> list[Range]:
    """What is wanted, no replica that answers can give back, and is in the archive: not lost."""
    archived = [(Offset(0), archived_end)] if archived_end > 0 else NOTHING
    return intersect(nobody_has(holdings, want), archived)


def missing_of(holding: Holding, want: Ranges) -> list[Range]:
    """What is wanted of a replica, and it does not hold, whole or damaged."""
    return subtract(want, holding.held)


def cut_where_it_changes(want: Ranges, holdings: Sequence[Holding]) -> list[Range]:
    """`want` in pieces, within each of which every replica holds all, none, or all damaged."""
    edges = [*(it.held for it in holdings), *(it.damaged for it in holdings)]
    return _cut(want, edges)


def _cut(ranges: Ranges, others: Iterable[Ranges]) -> list[Range]:
    """`ranges` cut at every edge of the others."""
    edges = sorted({edge for other in others for it in other for edge in it})
    pieces: list[Range] = []
    at = 0
    for whole_first, end in ranges:
        first = whole_first
        while at < len(edges) and edges[at] <= first:
            at += 1
        while at < len(edges) and edges[at] < end:
            pieces.append((first, edges[at]))
            first = edges[at]
            at += 1
        pieces.append((first, end))
    return pieces
