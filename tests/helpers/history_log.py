"""The log as it is in the end, as the checks of a history look at it.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from helpers.history import Append, Final, FinalRecord


class Violation(NamedTuple):
    """A promise that was not kept."""

    kind: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Bound(NamedTuple):
    """The log's length at a moment: at least, or at most, so much."""

    tick: float
    length: int
    what: str
    kind: str = "real-time"  # of the violation that it may show


class Reign(NamedTuple):
    """A fencing token is the log's while its length is of [shortest, longest]."""

    token: str
    shortest: int
    longest: int


class LogView:
    """The final log, by offset, by value and by fencing token."""

    def __init__(self, final: Final) -> None:
        self.final = final
        self.by_offset: dict[int, FinalRecord] = {it.offset: it for it in final.records}
        self.controls = [it for it in final.records if it.control is not None]
        self.offsets: dict[bytes, int] = {}  # of records and fences, by what they are known as
        for it in final.records:
            if it.known_as is not None:
                self.offsets.setdefault(it.known_as, it.offset)
        self.reigns = list(_reigns(final))
        self._fences = [it.longest for it in self.reigns]

    def is_lost(self, offset: int) -> bool:
        """Its loss was accepted. An empty range stands for everything from there on."""
        return any(
            first <= offset < end or (first == end and offset >= first)
            for first, end in self.final.lost
        )

    def next_record(self, position: int, key: bytes | None = None) -> int:
        """Where the next record is, or the next with a key, from this offset on.

        If there is none, the offset of the next loss, or the tail.
        """
        while (there := self.by_offset.get(position)) is not None:
            if there.control is None and key in (None, there.key):
                break
            position += 1
        return position

    def token_at(self, offset: int) -> str:
        """The fencing token on which the record at an offset, or a fence, could depend."""
        at = bisect_left(self._fences, offset)
        return self.reigns[min(at, len(self.reigns) - 1)].token


def _reigns(final: Final) -> Iterator[Reign]:
    token, since = "", 0
    for it in final.records:
        if it.control is not None and it.control.cause == "fence":
            yield Reign(token, since, it.offset)
            token, since = it.control.token, it.offset + 1
    yield Reign(token, since, max(since, final.tail))


def named(append: Append) -> str:
    """An append, for a person."""
    return f"{append.value!r} of {append.appender}"
