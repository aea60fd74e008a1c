"""The core of reading a log: where a read stands, which batches follow, and what is lost.

Rules of this file: no I/O, no clock, no `async`. See `reader.py` for how the parts play together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal, NamedTuple

from sharedlog.backoff import Backoff
from sharedlog.batch import Placement
from sharedlog.errors import CorruptBatch, DataLoss
from sharedlog.ids import ARCHIVE_PREFIX, LogletId, Offset
from sharedlog.v1 import log_server_pb2, types_pb2

START: Final = Offset(0)
Verify = Callable[[bytes], Placement]
BadKind = Literal["hole", "damaged", "trimmed", "corrupt"]


Range = tuple[Offset, Offset]
"""Offsets [first, end)."""


class ReadChunk(NamedTuple):
    """What one message brought. Neither batches nor `skipped`: a heartbeat."""

    batches: Sequence[bytes]  # placed batches, in order, not clipped; each continues the one before
    placements: Sequence[Placement]  # of the batches, one each
    committed_tail: Offset  # the highest known to the reader, exclusive
    # In a read for one key: ranges without it, in order. With them, the batches leave no gap.
    skipped: Sequence[Range] = ()


class Filter(NamedTuple):
    """What a read for one key asks for."""

    key_hash: int  # batches that can't have a key of this hash may be left out
    include_control: bool  # but not those that are no batches of records


class Bad(NamedTuple):
    """A range [first, end) that one replica can't serve."""

    storage_id: str
    first: int
    end: int
    kind: BadKind


@dataclass(slots=True)
class Aside:
    """A replica that is not to be asked before `until_s`."""

    until_s: float
    why: str
    backoff: Backoff


@dataclass(slots=True)
class Progress:
    """Where one read stands."""

    position: Offset
    end: Offset | None
    floor: Offset
    since_s: float  # of the last progress, or sign that there is nothing to be had yet
    missing_rounds: int = 0
    description: types_pb2.LogDescription | None = None
    refresh: bool = False  # the description failed us: fetch a new one
    told_end: bool = False  # the open segment of `description` has ended, a replica was told
    slow_starts: int = 0  # streams in a row that were given up before their first message
    bad: list[Bad] = field(default_factory=list)
    aside: dict[str, Aside] = field(default_factory=dict)
    preferred: str = ""  # storage_id of the replica that served last
    rounds: Backoff | None = None  # between rounds through all replicas


class Replica(NamedTuple):
    """A log server that can be asked, or the archive at some node."""

    node_id: str
    storage_id: str
    address: str

    @property
    def is_archive(self) -> bool:
        """It serves what is archived, of every segment."""
        return self.storage_id.startswith(ARCHIVE_PREFIX)


def live_replicas(
    description: types_pb2.LogDescription, segment: types_pb2.Segment
) -> list[Replica]:
    """Members of the nodeset whose node serves the very store that the chain names."""
    nodes = {node.node_id: node for node in description.nodes}
    found = []
    for member in segment.nodeset:
        node = nodes.get(member.node_id)
        if node is not None and node.address and node.storage_id == member.storage_id:
            found.append(Replica(member.node_id, member.storage_id, node.address))
    return found


def archive_replicas(description: types_pb2.LogDescription) -> list[Replica]:
    """The archive, at each node that is known: all of them read the same objects."""
    if not description.archived_end:
        return []
    return [
        Replica(node.node_id, f"{ARCHIVE_PREFIX}{node.node_id}", node.address)
        for node in description.nodes
        if node.address
    ]


def sources(
    description: types_pb2.LogDescription, segment: types_pb2.Segment, position: Offset
) -> tuple[list[Replica], list[Replica]]:
    """Who may have `position`, and who is to be asked when none of those can serve it.

    What was trimmed is in the archive alone. What is archived and not trimmed is there in case that
    the log servers have lost it.
    """
    if position < description.trimmed:
        return archive_replicas(description), []
    archive = archive_replicas(description) if position < description.archived_end else []
    return live_replicas(description, segment), archive


def every_source(
    description: types_pb2.LogDescription, segment: types_pb2.Segment, position: Offset
) -> list[str]:
    """The stores that would all have to be asked before `position` counts as lost."""
    archive = [it.storage_id for it in archive_replicas(description)]
    if position < description.trimmed:
        return archive
    stores = [member.storage_id for member in segment.nodeset]
    return stores + archive if position < description.archived_end else stores


class Checked(NamedTuple):
    """What one message brought that can be relied on: it covers all from a position to `end`."""

    batches: list[bytes]
    placements: list[Placement]  # of the batches
    skipped: list[Range]
    end: Offset  # of all that; the position, if nothing came
    wrong: CorruptBatch | None  # what is wrong with the first thing that is


def check_batches(
    verify: Verify,
    batches: Sequence[bytes],
    position: Offset,
    wanted: LogletId | None,
    segment_end: int | None = None,
    *,
    skipped: Iterable[Range] = (),
) -> Checked:
    """What a message has, up to the first batch or skipped range that is wrong.

    The batches must be whole, and of the `wanted` loglet if that is known. Batches and `skipped`
    together must go on at `position` without a gap, the first of them may begin below it, and end
    at or below `segment_end` if that is known.
    """
    good: list[bytes] = []
    placements: list[Placement] = []
    passed: list[Range] = []
    at = position
    ranges = deque(skipped)

    def go_on(loglet: LogletId | None, first: Offset, end: Offset) -> None:
        """Raises if what takes [first, end) can't come here."""
        nonlocal at
        if loglet != wanted is not None:
            raise CorruptBatch(f"a batch of {loglet} came for {wanted}")
        if not (first == at < end if placements or passed else first <= at < end):
            raise CorruptBatch(f"[{first}, {end}) does not go on at {at}")
        if segment_end is not None and end > segment_end:
            raise CorruptBatch(
                f"[{first}, {end}) is not in the log: a segment ends at {segment_end}"
            )
        at = end

    try:
        for placed in batches:
            placement = verify(placed)
            while ranges and ranges[0][0] < placement.first:
                go_on(wanted, *ranges[0])
                passed.append(ranges.popleft())
            go_on(placement.loglet, placement.first, placement.end)
            good.append(placed)
            placements.append(placement)
        for skip in ranges:
            go_on(wanted, *skip)
            passed.append(skip)
    except CorruptBatch as error:
        return Checked(good, placements, passed, at, error)
    return Checked(good, placements, passed, at, None)


def read_request(
    at: Progress,
    description: types_pb2.LogDescription,
    segment: types_pb2.Segment,
    replica: Replica,
    only: Filter | None = None,
) -> log_server_pb2.ReadLogletRequest:
    """What to ask a replica for: from `position` on, for ever if nothing ends it."""
    closed = segment.HasField("end")
    request = log_server_pb2.ReadLogletRequest(
        storage_id=replica.storage_id,
        loglet=types_pb2.LogletId(log_id=description.log_id, segment_index=segment.index),
        start=at.position,
        # Below the floor nothing is worth waiting for: who is behind says so, and another is asked.
        no_wait=at.end is not None and at.end <= at.floor,
    )
    until = stop(at, segment)
    if replica.is_archive:
        until = min(archive_stop(at, description), until or description.archived_end)
    if until is not None:
        request.end = until
    if closed:
        request.segment_end = segment.end
    if only is not None:
        request.key_digest = only.key_hash
        request.include_control = only.include_control
    return request


def stop(at: Progress, segment: types_pb2.Segment) -> int | None:
    """Where a stream that begins at `position` ends at the latest, if it ends by itself."""
    stops = [lost.first for lost in segment.lost if at.position <= lost.first < lost.end]
    if at.end is not None:
        stops.append(at.end)
    if segment.HasField("end"):
        stops.append(segment.end)
    return min(stops, default=None)


def archive_stop(at: Progress, description: types_pb2.LogDescription) -> int:
    """Where a stream from the archive is left: the log servers go on, if they can."""
    trimmed: int = description.trimmed
    archived_end: int = description.archived_end
    return trimmed if at.position < trimmed else archived_end


def reached(at: Progress, segment: types_pb2.Segment) -> bool:
    """The read, the segment, or what is left of it before a loss is done."""
    return lost_at(segment, at.position) is not None or (
        (at.end is not None and at.position >= at.end)
        or (segment.HasField("end") and at.position >= segment.end)
    )


def lost_at(segment: types_pb2.Segment, position: Offset) -> types_pb2.LostRange | None:
    """The accepted loss that `position` lies in. One of unknown size is no gap that can be told."""
    found = (lost for lost in segment.lost if lost.first <= position < lost.end)
    return next(found, None)


def accepted_loss(lost: types_pb2.LostRange, position: Offset) -> DataLoss:
    """The typed gap of a loss that was accepted: a fact of the log, no failure to read it."""
    when = datetime.fromtimestamp(lost.accepted_ms / 1_000, UTC).isoformat(timespec="seconds")
    message = f"offsets [{position}, {lost.end}) are lost, accepted on {when}: {lost.reason}"
    return DataLoss(message, first=position, end=lost.end)


def data_loss(at: Progress, missing: Sequence[Bad]) -> DataLoss:
    """What no replica can serve, as far as each of them has said so."""
    end = min(bad.end for bad in missing)
    if at.end is not None:
        end = min(end, at.end)
    kinds = ", ".join(sorted({bad.kind for bad in missing}))
    message = f"offsets [{at.position}, {end}) can't be read from any replica ({kinds})"
    return DataLoss(message, first=at.position, end=max(end, at.position + 1))
