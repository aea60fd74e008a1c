"""What of a log is archived, kept on log servers, or gone: three offsets that only grow.

    0 ......... start ......... trimmed ......... archived_end ......... tail
      purged          archive           both              log servers

- **`archived_end`**: all of [start, archived_end) is in objects that the log's manifest names. It
  is raised after the manifest was.
- **`trimmed`**: log servers may drop what lies below. So `trimmed <= archived_end`, but for what
  was purged: `start <= trimmed <= max(archived_end, start)`. It is raised before they are told.
- **`start`**: below it nothing can be read any more, for ever. It is raised before anything is
  deleted, and takes `trimmed` with it; `archived_end` may stay behind, where purging overtook it.

**None of them lies above what is committed.** The chain proves that all below the open segment's
base is. What the open segment has committed only its sequencer knows: a caller says so, with the
segment that it speaks of (`Committed`). Once that has ended its word counts for nothing, for the
chain says more by then; and if a loss was accepted, less: then it would be wrong.

**A segment never ends below them** (`check_offsets_change`): what lies there is in the archive, or
promised to be gone; if offsets were given a second time, the log would say two things of them.

**Never clamped.** A request for more than may be is refused with the reason (field note 44: a trim
that "succeeded" against a tail that was not known). One for less than there is does nothing.

Pure functions of records; `archive_registry.py` has the procedures over a store.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from metadata.records import LogRecord
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset
from sharedlog.retention import Retention, check_retention


class Committed(NamedTuple):
    """What a caller knows of the segment that it takes for the open one."""

    segment_index: int
    tail: Offset  # everything below it is committed


def committed_end(record: LogRecord, known: Committed | None = None) -> Offset:
    """Everything below is committed, by the chain or by what the caller knows besides.

    What was purged was known to be.
    """
    segment = record.open_segment
    proven = max(segment.base, record.start)
    if known is None or known.segment_index != segment.index:
        return proven
    return max(proven, known.tail)


def raise_archived_end(
    record: LogRecord, end: Offset, *, known: Committed | None = None
) -> LogRecord:
    """The log with at least [start, `end`) in the archive; the very same if it has that.

    Raises:
        InvalidArgument: not all of that is known to be committed.
    """
    if end <= record.archived_end:
        return record
    _check_committed(record, end, known, "archived")
    return replace(record, archived_end=end)


def raise_trimmed(record: LogRecord, trimmed: Offset) -> LogRecord:
    """The log of which log servers may drop what lies below `trimmed`; the very same if they may.

    Raises:
        InvalidArgument: not all of that is in the archive.
    """
    if trimmed <= record.trimmed:
        return record
    most = max(record.archived_end, record.start)
    if trimmed > most:
        raise InvalidArgument(
            f"log {record.name!r} can't be trimmed up to {trimmed}: it is archived up to {most}"
        )
    return replace(record, trimmed=trimmed)


def purge_below(record: LogRecord, start: Offset, *, known: Committed | None = None) -> LogRecord:
    """The log without what lies below `start`, for ever; the very same if that is gone.

    Raises:
        InvalidArgument: not all of that is known to be committed.
    """
    if start <= record.start:
        return record
    _check_committed(record, start, known, "purged")
    return replace(record, start=start, trimmed=max(record.trimmed, start))


def change_retention(record: LogRecord, change: Retention) -> LogRecord:
    """The log with what `change` says, and the rest as it is; the very same if it has that.

    Raises:
        InvalidArgument: an amount, or the ages together, can't be.
    """
    check_retention(change)
    retention = change.over(record.retention).limits()
    check_retention(retention)
    return record if retention == record.retention else replace(record, retention=retention)


def check_offsets(record: LogRecord) -> None:
    """Raises `InvalidArgument` if the offsets break a rule of the module's docstring."""
    start, trimmed, archived_end = record.start, record.trimmed, record.archived_end
    if not (0 <= start <= trimmed <= max(archived_end, start)):
        raise _bad(
            record,
            f"starts at {start}, is trimmed up to {trimmed} and archived up to {archived_end}",
        )


def check_offsets_change(old: LogRecord, new: LogRecord) -> None:
    """Raises `InvalidArgument` unless `new` may replace `old`, as far as this file goes."""
    check_offsets(new)
    for name in ("start", "trimmed", "archived_end"):
        was, now = getattr(old, name), getattr(new, name)
        if now < was:
            raise _bad(new, f"takes {name} back from {was} to {now}")
    reached = max(new.start, new.archived_end)
    if new.open_segment != old.open_segment and new.open_segment.base < reached:
        raise _bad(
            new,
            f"ends a segment at {new.open_segment.base}, and what lies below {reached} was "
            "archived or purged",
        )
    check_retention(new.retention)
    if new.retention != new.retention.limits():
        raise _bad(new, "has a retention of nothing")


def _check_committed(record: LogRecord, end: Offset, known: Committed | None, what: str) -> None:
    proven = committed_end(record, known)
    if end > proven:
        raise InvalidArgument(
            f"log {record.name!r} can't be {what} up to {end}: it is known to be committed up to "
            f"{proven}"
        )


def _bad(record: LogRecord, what: str) -> InvalidArgument:
    return InvalidArgument(f"log {record.name!r} {what}: that can't be")
