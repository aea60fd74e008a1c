"""What this process knows of the chains of logs that it has ordered, and what a chain proves.

A loglet that the chain has left behind must never be taken up again: offsets of it were given out
here, and giving one of them to another batch is the one mistake that no log server forgives. A
caller may come with an old chain long after, so of each log that was ever ordered here the newest
chain that was seen is kept; of one that is ordered elsewhere now, only its open segment.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from metadata.records import LogRecord, Segment
from sharedlog.errors import LogUnavailable, NotSequencer
from sharedlog.ids import LogId, Offset, SequencerId


class KnownChain(NamedTuple):
    """A log's chain and the version that it has in the metadata store; 0 if not known."""

    record: LogRecord
    version: int


class KnownChains:
    """The newest chains, of the logs that this process has ordered."""

    def __init__(self, me: SequencerId) -> None:
        self._me = me
        self._known: dict[LogId, KnownChain] = {}

    def newest(self, record: LogRecord, version: int) -> KnownChain:
        """The given chain, or a newer one that is known of the log."""
        known = self._known.get(record.log_id)
        if known is None or _index(known.record) < _index(record):
            return KnownChain(record, version)
        if _index(known.record) > _index(record):
            return known
        return KnownChain(record, max(version, known.version))

    def latest(self, record: LogRecord) -> LogRecord:
        """The same chain as it was learned last: copies move, and losses are accepted meanwhile."""
        known = self._known.get(record.log_id)
        if known is None or _index(known.record) != _index(record):
            return record
        return known.record

    def learn(self, record: LogRecord, version: int, *, ordered: bool = False) -> bool:
        """Keep the chain if it is newer, and of a log that is or was `ordered` here.

        Returns whether it names another open segment than was known.
        """
        known = self._known.get(record.log_id)
        if known is None and not ordered:
            return False
        if known is not None and _index(known.record) >= _index(record):
            if _index(known.record) == _index(record) and version > known.version:
                self._known[record.log_id] = self._kept(record, version)
            return False
        self._known[record.log_id] = self._kept(record, version)
        return known is not None

    def owned(self, record: LogRecord) -> Segment:
        """The open segment, if this process, in this life, orders it.

        Raises:
            NotSequencer: another node does.
            LogUnavailable: another life of this node did.
        """
        segment = record.open_segment
        owner = segment.sequencer
        if owner.node_id != self._me.node_id:
            raise NotSequencer(
                f"log {record.name} is ordered by {owner.node_id}, not {self._me.node_id}",
                sequencer_node_id=owner.node_id,
            )
        if owner != self._me:
            raise LogUnavailable(
                f"log {record.name} takes no appends: its sequencer, {owner.node_id} in life "
                f"{owner.generation}, is gone (the node is in life {self._me.generation}); "
                "reads go on"
            )
        return segment

    def _kept(self, record: LogRecord, version: int) -> KnownChain:
        if record.open_segment.sequencer != self._me:
            record = replace(record, chain=record.chain[-1:])
        return KnownChain(record, version)


def end_of(record: LogRecord, segment: Segment) -> Offset | None:
    """The end that the chain gives a segment which it has left behind; None if it proves nothing.

    It proves that offsets below it are in the log, unless a part of the segment was given up for
    lost. A segment that was empty is replaced in place: the chain goes on from its base without it.
    """
    for index in range(len(record.chain) - 1, -1, -1):
        found = record.chain[index]
        if found.index == segment.index:
            return None if found.lost else found.end
        if found.index < segment.index:
            # The one after it took the segment's place.
            return record.chain[index + 1].base if index + 1 < len(record.chain) else None
    return segment.base if record.chain[0].base == segment.base else None


def search_from(record: LogRecord, start: Offset, segment_index: int) -> Offset:
    """From where on a batch may lie that, as it was said in a segment, does not lie below `start`.

    That was true for as long as no segment ended below what had been committed, which happens when
    a loss is accepted: the log then goes on from there, with what is new and what is sent again.
    Losses from before that segment began change nothing, so a log pays for one only once.
    """
    for segment in record.chain:
        for lost in segment.lost:
            if lost.end == segment.base:  # of a segment that ended empty, whose place this one took
                cut = segment.index > segment_index
            else:
                cut = segment.index >= segment_index and lost.end == segment.end
            if cut:
                start = min(start, lost.end)
    return start


def _index(record: LogRecord) -> int:
    return record.open_segment.index
