"""Which bytes of an object are asked for, and whether the answer has them. Pure."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)", re.ASCII)


class Range(NamedTuple):
    """The bytes [start, end). `start` below 0: so many of the last; `end` None: to the end."""

    start: int
    end: int | None

    @property
    def header(self) -> str | None:
        """Of the request; None if all is asked for."""
        if self == WHOLE:
            return None
        if self.start < 0:
            return f"bytes={self.start}"
        return f"bytes={self.start}-" if self.end is None else f"bytes={self.start}-{self.end - 1}"

    def of(self, total: int) -> tuple[int, int]:
        """The bytes of an object that has `total`."""
        start = max(0, total + self.start) if self.start < 0 else min(self.start, total)
        return start, total if self.end is None else max(start, min(self.end, total))


WHOLE: Final = Range(0, None)


def total_of(wanted: Range, content_range: str | None, content_length: int) -> int | None:
    """The object's size, from the headers of an answer; None if it does not have what is wanted.

    An answer without a range is the whole object, which is right if the range covers it.
    """
    if content_range is None:
        return content_length if wanted.of(content_length) == (0, content_length) else None
    found = _CONTENT_RANGE.fullmatch(content_range)
    if found is None:
        return None
    first, last, total = map(int, found.groups())
    fits = wanted.of(total) == (first, last + 1) and content_length == last + 1 - first
    return total if fits else None
