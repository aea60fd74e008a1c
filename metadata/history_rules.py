"""A log that begins with the history of another: forked from it, or restored from the archive.

The chain of such a log begins with an **archived segment**: index 0, from offset 0 to where the
history ends, and wholly in the archive. No log server has any of it, so it has no nodeset, no write
quorum and no sequencer. All that lies in it is archived, and trimmed. The open segment that follows
is a segment like any other.

Rules, checked by `check_archived_segment` besides those of `core.py`: only the first segment of a
chain is one, it is closed, and nothing of it counts as being on log servers. It stays as it is for
ever, but for losses.

Pure functions of records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from metadata.records import LogRecord, LostRange, Segment
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Generation, NodeId, Offset, SequencerId

NOBODY: Final = SequencerId(NodeId(""), Generation(0))
"""The sequencer of a segment that nobody has ordered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedHistory:
    """What a new log begins with: [start, end) is in the objects that its manifest names."""

    start: Offset  # what lies below was purged before
    end: Offset  # where the new log goes on
    last_ms: int  # of its last batch
    lost: tuple[LostRange, ...] = ()  # accepted losses below `end`, in order


def with_history(record: LogRecord, history: ArchivedHistory) -> LogRecord:
    """The log `record`, which has just its first segment, going on where `history` ends.

    Without anything in the history, the very same.
    """
    (first,) = record.chain
    assert first.base == 0
    assert first.end is None
    assert 0 <= history.start <= history.end
    if history.end == 0:
        return record
    archived = Segment(
        index=0,
        base=Offset(0),
        end=history.end,
        sequencer=NOBODY,
        nodeset=(),
        write_quorum=0,
        lost=_lost_between(history.lost, history.start, history.end),
    )
    opened = replace(first, index=1, base=history.end, timestamp_ms=history.last_ms)
    return replace(
        record,
        chain=(archived, opened),
        start=history.start,
        trimmed=history.end,
        archived_end=history.end,
    )


def archived_until(chain: Sequence[Segment]) -> Offset:
    """Below it no log server ever had anything of the log."""
    first = chain[0]
    if first.is_archived and first.end is not None:
        return first.end
    return Offset(0)


def check_archived_segment(log: LogRecord, segment: Segment) -> None:
    """Raises `InvalidArgument` unless a segment without nodeset is one as it should be."""
    if segment.write_quorum or segment.spread or segment.sequencer != NOBODY:
        raise InvalidArgument("it has no nodeset, but a sequencer or a quorum")
    if segment.index != 0 or segment.base != 0 or segment.end is None:
        raise InvalidArgument("it has no nodeset, and is not a closed one from offset 0 on")
    if segment.end > log.trimmed:
        raise InvalidArgument("it has no nodeset, and not all of it is in the archive")


def _lost_between(lost: Sequence[LostRange], start: Offset, end: Offset) -> tuple[LostRange, ...]:
    """What of accepted losses lies in [start, end)."""
    return tuple(
        replace(it, first=max(it.first, start), end=min(it.end, end))
        for it in lost
        if it.first < end and it.end > start
    )
