"""A log in memory, with its chain: what `memory_server.py` serves.

It keeps the promises of the protocol, strictly: dense offsets, one order, and each batch of a
producer at most once. A sequencer that takes over knows no producer but by a scan from where the
client says, so that a client that says too little is found out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from sharedlog.batch import (
    KIND_RECORDS,
    Placement,
    check_batch,
    parse_placement,
    parse_producer,
    place_batch,
)
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.v1 import types_pb2

START = Offset(0)


@dataclass(slots=True)
class MemorySegment:
    """A part [base, end) of the log."""

    index: int
    base: Offset
    sequencer: str
    generation: int
    nodeset: list[str]
    end: Offset | None = None
    timestamp_ms: int = 0
    lost: list[types_pb2.LostRange] = field(default_factory=list)


class MemoryLog:
    """One log: its chain and its placed batches, in order."""

    def __init__(
        self, name: str, log_id: LogId, sequencer: str, nodeset: list[str], nonce: str
    ) -> None:
        self.name = name
        self.log_id = log_id
        self.write_quorum = 2
        self.nonce = nonce
        self.chain = [MemorySegment(0, START, sequencer, 1, nodeset)]
        self.chain_version = 1
        self.batches: list[bytes] = []
        self.tail = START
        self.last_timestamp_ms = 0
        self._firsts: list[Offset] = []
        self._producers: dict[int, dict[int, Offset]] = {}  # what the present sequencer knows

    @property
    def open_segment(self) -> MemorySegment:
        """The last, the only one without an end."""
        return self.chain[-1]

    @property
    def sequencer(self) -> str:
        """The node that orders the log."""
        return self.open_segment.sequencer

    def roll(self, sequencer: str | None = None, nodeset: list[str] | None = None) -> None:
        """End the open segment here; an empty one is replaced. The new sequencer knows nothing."""
        old = self.open_segment
        new = MemorySegment(
            old.index + 1,
            self.tail,
            sequencer or old.sequencer,
            old.generation + 1,
            nodeset or old.nodeset,
            timestamp_ms=self.last_timestamp_ms,
        )
        if old.base == self.tail:
            self.chain.pop()
        else:
            old.end = self.tail
        self.chain.append(new)
        self.chain_version += 1
        self._producers.clear()

    def lose(self, count: int, *, accepted_ms: int, reason: str) -> None:
        """Give up `count` records at the tail and end the segment: an operator accepted it."""
        end = Offset(self.tail + count)
        lost = types_pb2.LostRange(first=self.tail, end=end, accepted_ms=accepted_ms, reason=reason)
        self.open_segment.lost.append(lost)
        self.tail = end
        self.roll()

    def append(
        self, batch: bytes, *, timestamp_ms: int | None = None, kind: int = KIND_RECORDS
    ) -> Offset:
        """Take a batch; returns its first offset, the one it has if it is in the log already.

        Its time is a millisecond after the one before unless said otherwise; it never runs back.
        """
        header = check_batch(batch)
        producer = header.producer
        known = self._producers.setdefault(producer.producer_id, {})
        if producer.producer_id and producer.sequence in known:
            return known[producer.sequence]
        first = self.tail
        now_ms = 1_000 + len(self.batches) if timestamp_ms is None else timestamp_ms
        self.last_timestamp_ms = max(self.last_timestamp_ms, now_ms)
        placement = Placement(
            LogletId(self.log_id, self.open_segment.index),
            first,
            header.record_count,
            timestamp_ms=self.last_timestamp_ms,
            committed_tail=first,
            batch_crc32c=header.crc32c,
            kind=kind,
        )
        self.batches.append(place_batch(placement, batch))
        self._firsts.append(first)
        self.tail = placement.end
        known[producer.sequence] = first
        return first

    def scan(self, producer_id: int, resolve_from: int) -> None:
        """Learn the producer's batches from the log itself, as far down as was asked for."""
        known = self._producers.setdefault(producer_id, {})
        for placement, placed in self.from_offset(resolve_from):
            producer = parse_producer(placed)
            if producer.producer_id == producer_id and placement.first >= resolve_from:
                known[producer.sequence] = placement.first

    def from_offset(self, start: int) -> Iterator[tuple[Placement, bytes]]:
        """Placed batches from the one that holds `start` on."""
        at = max(0, bisect_right(self._firsts, start) - 1)
        for placed in self.batches[at:]:
            placement = parse_placement(placed)
            if placement.end > start:
                yield placement, placed

    def find_offset(self, timestamp_ms: int) -> Offset:
        """The first offset that is not earlier, by looking at all of them."""
        placements = map(parse_placement, self.batches)
        later = (it.first for it in placements if it.timestamp_ms >= timestamp_ms)
        return next(later, self.tail)

    def segment(self, index: int) -> MemorySegment | None:
        """The segment of this index, if the chain has it."""
        return next((found for found in self.chain if found.index == index), None)

    def describe(
        self, *, start: int = 0, limit: int = 0, open_only: bool = False
    ) -> types_pb2.LogDescription:
        """The log's description without addresses, and as much of the chain as is wanted."""
        chain = [s for s in self.chain if s.end is None or (s.end > start and not open_only)]
        return types_pb2.LogDescription(
            log_id=self.log_id,
            name=self.name,
            replicas=len(self.open_segment.nodeset),
            write_quorum=self.write_quorum,
            chain=[self._segment(segment) for segment in chain[: limit or None]],
            chain_version=self.chain_version,
            segment_count=len(self.chain),
        )

    def _segment(self, segment: MemorySegment) -> types_pb2.Segment:
        nodeset = [
            types_pb2.Replica(node_id=node_id, storage_id=f"{node_id}-store")
            for node_id in segment.nodeset
        ]
        return types_pb2.Segment(
            index=segment.index,
            base=segment.base,
            end=segment.end,
            sequencer=types_pb2.SequencerId(
                node_id=segment.sequencer, generation=segment.generation
            ),
            nodeset=nodeset,
            write_quorum=self.write_quorum,
            timestamp_ms=segment.timestamp_ms,
            lost=segment.lost,
        )
