"""Judges what lies on the disks in the end against the chain and the log (DESIGN.md §6, §7).

`check_disks` returns every violation:

| kind | what must hold |
|---|---|
| `chain` | segments adjoin, from 0 on; their indexes grow; only the last is open |
| `disagree` | below a segment's end, all sound copies of an offset are the same bytes |
| `content` | they hold what a reader gets there |
| `copies` | offsets below the tail are on a write quorum, sound; after losses on `copies_min`; |
|   | what is trimmed need not be on any |

What lies at or above a segment's end is nobody's business: a repair that lost its race may have
left it there.

`check_durable` takes the disks' journals (simulator only): an acknowledged record was on a write
quorum of disks by the time its client was told.

`check_strength` is for a cluster that is well again and has had time: then every replica has all
below the tail, and not a write quorum only (field note 31).

The checks count by themselves and use nothing of what they check.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from helpers.history import Final, History, Outcome
from helpers.history_log import Violation

from sharedlog.batch import Record, decode_placed, parse_placement
from sharedlog.errors import CorruptBatch


@dataclass(slots=True)
class ReplicaCopies:
    """What one member of a segment's nodeset has of it."""

    node_id: str
    location: str
    batches: Sequence[bytes] = ()  # placed, in the order of their offsets, as they lie there
    lost: bool = False  # the disk that the chain names is gone


@dataclass(slots=True)
class SegmentCopies:
    """A segment as the chain has it, and its copies."""

    index: int
    base: int
    end: int | None
    write_quorum: int
    replicas: Sequence[ReplicaCopies]
    spread: Sequence[tuple[str, int]] = ()
    # Disks of its nodeset, present or former, were lost or damaged: fewer copies are excused.
    harmed: bool = False
    trimmed: int = 0  # what lies below is in the archive, or purged
    # Every disk that the chain ever named for it; for `check_durable`.
    disks: Collection[str] = ()


def check_disks(
    segments: Sequence[SegmentCopies], final: Final, *, copies_min: int = 1
) -> list[Violation]:
    """Every violation of the module's docstring's table."""
    found = list(_check_chain(segments))
    contents = {it.offset: (it.value, it.timestamp_ms) for it in final.records}
    for segment in segments:
        found.extend(_check_segment(segment, final, contents, copies_min))
    return found


def _check_chain(segments: Sequence[SegmentCopies]) -> Iterator[Violation]:
    if segments[0].base != 0:
        yield Violation("chain", f"the first segment begins at {segments[0].base}")
    for before, after in pairwise(segments):
        if before.end is None or before.end != after.base:
            yield Violation("chain", f"{after.index} begins at {after.base}, not {before.end}")
        if after.index <= before.index:
            yield Violation("chain", f"index {after.index} follows {before.index}")
        if before.end is not None and before.end < before.base:
            yield Violation("chain", f"{before.index} ends before it begins")
    if segments[-1].end is not None:
        yield Violation("chain", "the last segment is not open")


@dataclass(slots=True)
class _Offset:
    """The sound copies of one offset."""

    placed: bytes = b""
    members: list[int] = field(default_factory=list)


def _check_segment(
    segment: SegmentCopies,
    final: Final,
    contents: Mapping[int, tuple[bytes, int]],
    copies_min: int,
) -> Iterator[Violation]:
    end = final.tail if segment.end is None else segment.end
    copies: dict[int, _Offset] = {offset: _Offset() for offset in range(segment.base, end)}
    for member, replica in enumerate(segment.replicas):
        for placed in () if replica.lost else replica.batches:
            try:
                records = _decoded(placed)
            except CorruptBatch:
                continue
            for record in records:
                copy = copies.get(record.offset)
                if copy is None:
                    continue
                if copy.members and copy.placed != placed:
                    first = segment.replicas[copy.members[0]].node_id
                    where = f"segment {segment.index}, offset {record.offset}"
                    message = f"{where}: {first} and {replica.node_id} have different batches"
                    yield Violation("disagree", message)
                elif not copy.members:
                    there = contents.get(record.offset)
                    if there is not None and there != (record.value, record.timestamp_ms):
                        message = f"{record.offset} on {replica.node_id} is {record.value!r}"
                        yield Violation("content", f"{message}, readers get {there[0]!r}")
                copy.placed = placed
                copy.members.append(member)
    short = [offset for offset, copy in copies.items() if not _enough(segment, copy, copies_min)]
    short = [it for it in short if it >= segment.trimmed and not _is_lost(final, it)]
    if short:
        holders = [segment.replicas[member].node_id for member in copies[short[0]].members]
        where = f"segment {segment.index} [{segment.base}, {segment.end})"
        message = f"{where}: {len(short)} offsets from {short[0]} to {short[-1]} lack copies"
        yield Violation("copies", f"{message}; {short[0]} is on {holders}")


@lru_cache(maxsize=4096)
def _decoded(placed: bytes) -> list[Record]:
    return decode_placed(placed)


def _enough(segment: SegmentCopies, copy: _Offset, copies_min: int) -> bool:
    if segment.harmed:
        return len(copy.members) >= copies_min
    if len(copy.members) < segment.write_quorum:
        return False
    return all(
        len({_place(segment.replicas[member], level) for member in copy.members}) >= count
        for level, count in segment.spread
    )


def _place(replica: ReplicaCopies, level: str) -> str:
    places = {
        "node": replica.node_id,
        "zone": replica.location,
        "region": replica.location.rpartition(".")[0],
    }
    return places[level]


def _is_lost(final: Final, offset: int) -> bool:
    return any(
        first <= offset < end or (first == end and offset >= first) for first, end in final.lost
    )


@dataclass(slots=True)
class Journal:
    """When each disk first had each offset of the log, in ticks of the history, damage aside."""

    # (segment index, offset) → tick of arrival, by disk.
    arrivals: dict[str, dict[tuple[int, int], int]] = field(default_factory=dict)

    def note(self, disk: str, segment: int, first: int, end: int, tick: int) -> None:
        """The disk has [first, end) for good."""
        arrived = self.arrivals.setdefault(disk, {})
        for offset in range(first, end):
            arrived.setdefault((segment, offset), tick)


def check_durable(
    history: History, segments: Sequence[SegmentCopies], journal: Journal
) -> list[Violation]:
    """Violations `early`: acknowledged before a write quorum of the segment's disks had it."""
    found = []
    for append in history.appends:
        if append.outcome is not Outcome.ACKED:
            continue
        assert append.offset is not None
        assert append.responded is not None
        segment = _segment_of(segments, append.offset)
        key = (segment.index, append.offset)
        ticks = [
            arrived[key]
            for disk, arrived in journal.arrivals.items()
            if key in arrived and disk in segment.disks
        ]
        durable = sum(tick <= append.responded for tick in ticks)
        if durable < segment.write_quorum:
            message = f"{append.value!r} at {append.offset} (segment {segment.index})"
            many = f"on {durable} of {segment.write_quorum} disks when it was acknowledged"
            found.append(Violation("early", f"{message} was {many}"))
    return found


def check_strength(segments: Sequence[SegmentCopies], tail: int) -> list[Violation]:
    """Violations `strength`: a replica, with its disk, that lacks something below the tail.

    Nothing is wanted of segments that were harmed: what they lack may be nowhere.
    """
    found = []
    for segment in segments:
        end = tail if segment.end is None else segment.end
        wanted = set(range(max(segment.base, segment.trimmed), end))
        for replica in () if segment.harmed else segment.replicas:
            lacks = wanted.difference(*map(_offsets, replica.batches))
            if lacks and not replica.lost:
                where = f"segment {segment.index} [{segment.base}, {segment.end})"
                what = f"{len(lacks)} offsets from {min(lacks)} to {max(lacks)}"
                found.append(Violation("strength", f"{where}: {replica.node_id} lacks {what}"))
    return found


def _offsets(placed: bytes) -> range:
    try:
        placement = parse_placement(placed)
    except CorruptBatch:
        return range(0)
    return range(placement.first, placement.end)


def _segment_of(segments: Sequence[SegmentCopies], offset: int) -> SegmentCopies:
    return next(
        segment
        for segment in reversed(segments)
        if segment.base <= offset and (segment.end is None or offset < segment.end)
    )
