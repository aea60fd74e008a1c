"""The core of finding a moment in a log: where its first record can still lie.

Rules of this file: no I/O, no clock, no `async`. `offset_finder.py` asks, this weighs answers.

Theory of operation. Timestamps never run back within a log, so all of it is one sequence in which
earlier records lie before later ones. The search keeps two offsets: everything below `low` is
earlier than the moment, nothing at or above `high` is, and what is wanted is where they meet. Two
kinds of evidence move them:

    a segment     none of its batches is earlier than its timestamp; as a rule none before it is
                  later
    a placement   its batch is earlier than the moment, or it is not

What a replica holds at an offset every replica holds there, and a placement carries its checksum.
So no replica has to be complete. Each narrows the search by what it does hold, and what it lacks is
left for another one: a hole can leave the search unfinished, and never makes it wrong. A range
whose loss was accepted has no records, and is stepped over.

**As a rule.** After a rare kind of damage a segment's timestamp is low (ADR 7), and then there are
later batches before it. So that claim of the chain leads through long chains, and decides nothing:
`low` counts only once a batch below it was seen to be earlier, or nothing is below it. Where the
two meet at the start of a segment by its claim alone, or a batch contradicts it, the claim is
doubted from then on, and the search goes on below.
"""

from __future__ import annotations

from sharedlog.batch import Placement
from sharedlog.ids import Offset
from sharedlog.read_progress import lost_at
from sharedlog.route import find_segment
from sharedlog.v1 import types_pb2


class OffsetSearch:
    """Narrows [low, high] until they meet. See the module's docstring."""

    def __init__(self, timestamp_ms: int, tail: Offset) -> None:
        self.timestamp_ms = timestamp_ms
        self.low = Offset(0)  # everything below it is earlier, if claims are true
        self._proven = Offset(0)  # everything below it is earlier: <= low
        # What raised `low` beyond what is proven: the segment at `_claim`; and from where.
        self._claim = self._below_claim = 0
        self._doubted: set[int] = set()  # where segments begin whose claims are not believed
        self.high = tail  # nothing at or above it, and below the tail, is earlier
        self._tail = tail
        self._start = Offset(0)  # of the log, as far as is known
        # Where segments begin that have lost their first records, and where what they have begins.
        self._kept: dict[int, int] = {}
        self.description: types_pb2.LogDescription | None = None
        self._segment: types_pb2.Segment | None = None
        # Invariant: low <= high, and both only move towards each other.

    @property
    def done(self) -> bool:
        """They have met: `answer` is known."""
        return self.low == self.high == self._proven

    @property
    def answer(self) -> Offset:
        """The offset of the first record at or above `high`; the tail if there is none."""
        found: int = max(self.high, self._start)
        while found in self._kept:
            found = self._kept[found]
        return Offset(min(found, self._tail))

    @property
    def has_later(self) -> bool:
        """Something below the tail is not earlier: the answer is more than where the log ends."""
        return self.answer < self._tail

    @property
    def state(self) -> tuple[int, int, int, bool]:
        """Changes whenever the search gets further."""
        return self.low, self.high, self.look_at, self.segment is None

    @property
    def segment(self) -> types_pb2.Segment | None:
        """The segment to look at, from `low` on; None: see `look_at`.

        It holds all that is left, or what follows it does not tell, for its claim is doubted.
        """
        found = self._segment
        if found is None or self.low < found.base:
            return None
        if not found.HasField("end") or self.high <= found.end:
            return found
        return found if self.low < found.end and found.end in self._doubted else None

    @property
    def look_at(self) -> Offset:
        """The offset whose part of the chain is to be read: it narrows the search most."""
        found = self._segment
        if found is not None and found.base <= self.low < found.end < self.high:
            # The part that was read ends here: the next segment, or else one far beyond it.
            return Offset((found.end + self.high) // 2)
        return self.low

    def on_chain(self, description: types_pb2.LogDescription, asked: Offset) -> None:
        """A part of the chain: the segment that holds `asked`, and some that follow it."""
        before = self.low
        for segment in description.chain:
            kept = _behind_losses(segment, Offset(segment.base))
            if kept > segment.base:
                self._kept[segment.base] = kept
            if segment.timestamp_ms < self.timestamp_ms:
                self._on_claim(segment.base)
            else:
                self._lower_high(segment.base)
        self._begin(Offset(description.start))
        if description.chain and description.chain[0].base > asked:
            self._prove(description.chain[0].base)  # nothing is kept below the first
        found = find_segment(description, self.low)
        if found is not None:
            self.description, self._segment = description, found
        elif self.low != before:
            self._segment = None
        self._settle()

    def on_start(self, start: Offset) -> None:
        """The log begins there by now: nothing is kept below."""
        self._begin(start)
        self._settle()

    def on_placement(self, placement: Placement) -> None:
        """A batch of the log."""
        if placement.timestamp_ms < self.timestamp_ms:
            self._prove(placement.end)
        else:
            self._lower_high(placement.first)
        self._settle()

    def _on_claim(self, base: int) -> None:
        """A segment that begins there has it that nothing before it is later than the moment."""
        if base in self._doubted or base <= self.low:
            return
        if base > self.high:  # something there is not earlier
            self._doubted.add(base)
            return
        self._claim, self._below_claim = base, self.low
        self.low = Offset(base)

    def _begin(self, start: Offset) -> None:
        self._start = max(self._start, start)
        self._prove(start)

    def _prove(self, offset: int) -> None:
        """Everything below is earlier than the moment, or not kept."""
        self._proven = Offset(max(self._proven, min(offset, self.high)))
        self.low = max(self.low, self._proven)

    def _lower_high(self, offset: int) -> None:
        if offset < self.low and self._proven < self.low:
            self._doubted.add(self._claim)
            self.low = self._proven
        self.high = Offset(min(self.high, max(offset, self.low)))

    def _settle(self) -> None:
        """Step over losses, and doubt the claim by which alone the two would meet."""
        self._pass_lost()
        while self.low == self.high and self._proven < self.low:
            self._doubted.add(self._claim)
            self.low = Offset(max(self._proven, self._below_claim))
            self._claim, self._below_claim = self.low, self._proven
            if self.description is not None:
                self._segment = find_segment(self.description, self.low)
            self._pass_lost()

    def _pass_lost(self) -> None:
        """Nothing is left to be found in a range whose loss was accepted."""
        if self._segment is None:
            return
        behind = Offset(min(_behind_losses(self._segment, self.low), self.high))
        if self._proven == self.low:
            self._proven = max(self._proven, behind)
        self.low = max(self.low, behind)


def _behind_losses(segment: types_pb2.Segment, offset: Offset) -> int:
    """The offset, or where the loss ends that it lies in, and those that follow at once."""
    while (lost := lost_at(segment, offset)) is not None:
        offset = Offset(lost.end)
    return offset
