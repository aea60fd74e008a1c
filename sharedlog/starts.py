"""Where a read starts, other than at an offset: with the log, at a moment, before the tail."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sharedlog.errors import InvalidArgument

Timestamp = datetime | int
"""A moment: a `datetime` with a time zone, or Unix time in whole milliseconds."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_TIMESTAMP_MS_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class FromTime:
    """The first record that is not earlier."""

    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class FromTail:
    """So many offsets before the tail."""

    offsets: int


@dataclass(frozen=True, slots=True)
class Earliest:
    """The first record that the log still has."""


EARLIEST: Final = Earliest()
"""Start a read where the log starts: at 0, or behind what was purged."""

Start = int | Earliest | FromTime | FromTail
"""An offset, `EARLIEST`, or what `from_time` and `from_tail` make."""


def from_time(timestamp: Timestamp) -> FromTime:
    """Start a read at the first record whose timestamp is not earlier; at the tail if none is yet.

    Raises:
        InvalidArgument: no `datetime` with a time zone, and no whole number of milliseconds.
    """
    return FromTime(timestamp_to_ms(timestamp))


def from_tail(offsets: int) -> FromTail:
    """Start a read so many offsets before the tail as it is then, or where the log starts.

    Control records take offsets too, so there may be fewer records; `Log.read_last` counts records.

    Raises:
        InvalidArgument: below 0.
    """
    if isinstance(offsets, bool) or not isinstance(offsets, int) or offsets < 0:
        raise InvalidArgument(f"from_tail takes a whole number of offsets, not {offsets!r}")
    return FromTail(offsets)


def timestamp_to_ms(timestamp: Timestamp) -> int:
    """Unix time in milliseconds; within a millisecond the next one, for nothing lies between.

    Raises:
        InvalidArgument: as `from_time`.
    """
    if isinstance(timestamp, datetime):
        if timestamp.tzinfo is None:
            raise InvalidArgument(f"{timestamp} has no time zone; give one, e.g. datetime.UTC")
        return max(0, -((_EPOCH - timestamp) // _MILLISECOND))
    if isinstance(timestamp, bool) or not isinstance(timestamp, int):
        raise InvalidArgument(
            f"{timestamp!r} is no moment: a datetime with a time zone or whole milliseconds since "
            "1970 are"
        )
    if not 0 <= timestamp <= _TIMESTAMP_MS_MAX:
        raise InvalidArgument(f"{timestamp} is no Unix time in milliseconds")
    return timestamp
