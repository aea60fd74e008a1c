"""The core of what a read hands out: which batches, which of their records, and when it is over.

Rules of this file: no I/O, no clock, no `async`. Work per batch; per record only where a limit in
bytes, or a key, asks for it.

Offsets are dense, records are not: a control record takes an offset and is handed out to nobody who
does not ask for it. So a limit counts records as they are handed out. How far a stream must go to
bring so many is not known before; `leg_end` is the least, and what was asked for in nearly every
case. If it brought fewer, the read goes on from there with another leg.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sharedlog.batch import KIND_CONTROL, KIND_RECORDS, Placement, Record
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset


class ReadProgress(NamedTuple):
    """Where a read stands, and where the log."""

    position: Offset  # everything below it was handed out, or passed over
    tail: Offset  # the log is committed up to here, as far as the reader was told; exclusive


class ReadWindow:
    """See the module's docstring."""

    __slots__ = (
        *("_bytes_left", "_picks", "_records_left", "_since_ms", "_start", "_until_ms"),
        "_floats",
        *("done", "end", "enough", "handed_out", "include_control", "key", "position"),
    )

    def __init__(
        self,
        start: Offset,
        end: Offset | None = None,
        *,
        key: bytes | None = None,
        limit: int | None = None,
        limit_bytes: int | None = None,
        since_ms: int | None = None,
        until_ms: int | None = None,
        include_control: bool = False,
        floats: bool = False,
    ) -> None:
        self._start = start
        self._floats = floats  # it starts no lower than the log, wherever that starts by now
        self.end = end  # exclusive; None: never ends by itself
        self._records_left = limit
        self._bytes_left = limit_bytes
        self._since_ms = since_ms
        self._until_ms = until_ms
        self.include_control = include_control
        self.key = key  # only records that have it
        self.position = start  # everything below it was handed out, or passed over
        self.handed_out = 0  # records, counted where there is a limit or a key
        self.enough = limit == 0  # a limit has ended the read, or a moment: not the log
        self.done = limit == 0 or (end is not None and end <= start)
        # More than a range decides which records of a batch are handed out.
        self._picks = (key, limit, limit_bytes) != (None, None, None)

    def start_later(self, start: Offset) -> bool:
        """Start where the log starts; False if what was asked for is an offset below that."""
        if not self._floats or self.position != self._start:
            return False
        self._start = self.position = start
        self.done = self.done or (self.end is not None and self.end <= start)
        return True

    @property
    def leg_end(self) -> Offset | None:
        """Where the next stream of batches may end; None: nowhere."""
        if self._records_left is None or self.key is not None:
            return self.end
        least = Offset(self.position + self._records_left)
        return least if self.end is None else min(self.end, least)

    def admits(self, placement: Placement) -> bool:
        """Whether to look into the batch. It may also end the read: `done`."""
        if self._until_ms is not None and placement.timestamp_ms >= self._until_ms:
            self.enough = self.done = True
            return False
        end = self.position = placement.end
        if self.end is not None and end >= self.end:
            self.position = self.end
            self.done = True  # after this one
        if self._since_ms is not None and self.is_early(placement):
            return False
        kind = placement.kind
        return kind == KIND_RECORDS or (self.include_control and kind == KIND_CONTROL)

    def is_early(self, placement: Placement) -> bool:
        """The batch lies before the moment at which the read starts."""
        return self._since_ms is not None and placement.timestamp_ms < self._since_ms

    def clip(self, placement: Placement, records: list[Record]) -> list[Record]:
        """Of an admitted batch's records those to hand out; perhaps none."""
        if self.done or placement.first < self._start:
            low = max(0, self._start - placement.first)
            high = None if self.end is None else max(0, self.end - placement.first)
            records = records[low:high]
        if not self._picks:
            return records
        if self.key is not None:
            records = [record for record in records if record.key == self.key]
        if self._records_left is not None:
            records = self._within_records(records, self._records_left)
        if self._bytes_left is not None:
            records = self._within_bytes(records, self._bytes_left)
        self.handed_out += len(records)
        return records

    def pass_over(self, skipped: Sequence[tuple[Offset, Offset]]) -> None:
        """Ranges of the chunk that is done were left out, for they can't have the key."""
        if skipped and not self.done:
            self.position = max(self.position, skipped[-1][1])
            if self.end is not None and self.position >= self.end:
                self.position = self.end
                self.done = True

    def take_whole(self, placement: Placement, size_bytes: int) -> None:
        """An admitted batch is handed out as it is; limits then end the read after it."""
        end = placement.end if self.end is None else min(placement.end, self.end)
        count = end - max(placement.first, self._start)
        self.handed_out += count
        if self._records_left is not None and self.key is None:
            self._records_left = max(0, self._records_left - count)
            self.enough = not self._records_left
        if self._bytes_left is not None:
            self._bytes_left = max(0, self._bytes_left - size_bytes)
            self.enough = self.enough or not self._bytes_left
        self.done = self.done or self.enough

    def _within_records(self, records: list[Record], left: int) -> list[Record]:
        if len(records) >= left:
            records = records[:left]
            self._stop_after(records)
        self._records_left = left - len(records)
        return records

    def _within_bytes(self, records: list[Record], left: int) -> list[Record]:
        for index, record in enumerate(records):
            size = record_bytes(record)
            if size > left and (index or self.handed_out):
                self.position = record.offset
                self.enough = self.done = True
                return records[:index]
            left = max(0, left - size)
            if not left:
                records = records[: index + 1]
                self._stop_after(records)
                break
        self._bytes_left = left
        return records

    def _stop_after(self, records: list[Record]) -> None:
        self.enough = self.done = True
        if records:
            self.position = Offset(records[-1].offset + 1)


def check_limits(limit: int | None, limit_bytes: int | None) -> None:
    """Raise `InvalidArgument` unless they can be limits of a read."""
    if limit is not None and limit < 0:
        raise InvalidArgument("limit is below 0")
    if limit_bytes is not None and limit_bytes < 1:
        raise InvalidArgument("limit_bytes is below 1")


def record_bytes(record: Record) -> int:
    """What a record counts for in a limit: value, key, and its headers' names and values."""
    size = len(record.value) + (0 if record.key is None else len(record.key))
    for name, value in record.headers.items():
        size += len(name.encode()) + len(value)
    return size
