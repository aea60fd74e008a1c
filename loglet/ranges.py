"""Sets of offsets, as few ranges [first, end) in order.

What a server holds of a loglet is one run, or a few with holes and damage between; all of it is
small, so the operations walk the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sharedlog.ids import Offset

Range = tuple[Offset, Offset]
"""[first, end), never empty."""


def in_words(ranges: Iterable[Range]) -> str:
    """Ranges as messages name them."""
    return ", ".join(f"[{first}, {end})" for first, end in ranges)


class OffsetRanges:
    """See the module's docstring.

    Invariant: `_ranges` is in order, no range is empty, and between any two lies an offset that is
    not in the set.
    """

    __slots__ = ("_ranges",)

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges: list[Range] = []
        for first, end in ranges:
            self.add(first, end)

    def __iter__(self) -> Iterator[Range]:
        return iter(self._ranges)

    def __bool__(self) -> bool:
        return bool(self._ranges)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OffsetRanges) and self._ranges == other._ranges

    __hash__ = None  # type: ignore[assignment]  # it changes

    def __repr__(self) -> str:
        return f"OffsetRanges({self._ranges})"

    @property
    def count(self) -> int:
        """Offsets in the set."""
        return sum(end - first for first, end in self._ranges)

    def add(self, first: Offset, end: Offset) -> None:
        """Add [first, end); nothing if that is empty."""
        if first >= end:
            return
        kept: list[Range] = []
        for its_first, its_end in self._ranges:
            if its_end < first or its_first > end:
                kept.append((its_first, its_end))
            else:
                first, end = min(first, its_first), max(end, its_end)
        kept.append((first, end))
        self._ranges = sorted(kept)

    def remove(self, first: Offset, end: Offset) -> None:
        """Remove [first, end); nothing if that is empty."""
        if first >= end:
            return
        kept: list[Range] = []
        for its_first, its_end in self._ranges:
            for left, right in ((its_first, min(its_end, first)), (max(its_first, end), its_end)):
                if left < right:
                    kept.append((left, right))
        self._ranges = kept

    def holds(self, first: Offset, end: Offset) -> bool:
        """All of [first, end) is in the set."""
        return not self.missing(first, end)

    def missing(self, first: Offset, end: Offset) -> list[Range]:
        """What of [first, end) is not in the set."""
        lacking: list[Range] = []
        for its_first, its_end in self._ranges:
            if its_first >= end:
                break
            if its_first > first:
                lacking.append((first, its_first))
            first = max(first, its_end)
        if first < end:
            lacking.append((first, end))
        return lacking

    def run_end(self, offset: Offset) -> Offset:
        """End of the run that `offset` is in; `offset` itself if it is not in the set."""
        for first, end in self._ranges:
            if first <= offset < end:
                return end
        return offset
