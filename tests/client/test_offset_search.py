"""The search for a moment against a plain model: chains, holes, damage, losses, old views."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from helpers.log_servers import flipped, placed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loglet.time_search import find_neighbours
from sharedlog.batch import HEADERS_BYTES, Placement, parse_placement
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.offset_search import OffsetSearch
from sharedlog.v1 import types_pb2

REPLICAS = 3
STEPS_MAX = 400


@dataclass
class ModelLog:
    """A log as it is, and what of each batch every replica has."""

    segments: list[types_pb2.Segment] = field(default_factory=list)
    batches: list[bytes] = field(default_factory=list)
    states: list[str] = field(default_factory=list)  # of each batch: a letter for each replica
    tail: int = 0

    def placement(self, index: int) -> Placement:
        return parse_placement(self.batches[index])

    def first_at(self, moment_ms: int) -> int:
        """The answer, by looking at everything."""
        placements = map(parse_placement, self.batches)
        return next((it.first for it in placements if it.timestamp_ms >= moment_ms), self.tail)

    def describe(self, position: int, limit: int) -> types_pb2.LogDescription:
        at = bisect_right(self.segments, position, key=lambda it: it.base) - 1
        return types_pb2.LogDescription(chain=self.segments[max(at, 0) : max(at, 0) + limit])

    def ask(self, replica: int, segment: int, search: OffsetSearch) -> list[Placement]:
        """What a replica says of the search, with its holes (h) and its damage (d)."""

        def walk(start: Offset, end: Offset) -> Iterator[tuple[Offset, Offset, bytes]]:
            for placed_batch, states in zip(self.batches, self.states, strict=True):
                it = parse_placement(placed_batch)
                wanted = it.loglet.segment_index == segment and it.end > start and it.first < end
                if wanted and states[replica] != "h":
                    damaged = flipped(placed_batch, 30) if states[replica] == "d" else placed_batch
                    yield it.first, it.end, damaged[:HEADERS_BYTES]

        found = find_neighbours(
            walk, LogletId(LogId(7), segment), search.low, search.high, search.timestamp_ms
        )
        return [parse_placement(it) for it in found if it]


BATCHES = st.tuples(
    st.integers(1, 9),  # records
    st.integers(0, 2),  # so much later than the one before
    st.lists(st.sampled_from("whd"), min_size=REPLICAS, max_size=REPLICAS).map("".join),
)
Segments = list[tuple[list[tuple[int, int, str]], int, bool, int]]
SEGMENTS = st.lists(
    st.tuples(
        st.lists(BATCHES, max_size=8), st.integers(0, 3), st.booleans(), st.sampled_from((0, 0, 3))
    ),
    max_size=8,
)


def build(segments: Segments) -> ModelLog:
    """A log of such segments: batches, how much later the next one begins, a loss at the end, by
    how much the segment's timestamp is low."""
    log = ModelLog()
    time_ms = 0
    for index, (batches, pause_ms, loses, low_ms) in enumerate(segments):
        told_ms = max(time_ms - low_ms, 0)
        segment = types_pb2.Segment(index=index, base=log.tail, timestamp_ms=told_ms)
        for count, later_ms, states in batches:
            time_ms += later_ms
            loglet = LogletId(LogId(7), index)
            batch = placed(log.tail, count, loglet=loglet, timestamp_ms=time_ms)
            log.batches.append(batch)
            log.states.append(states)
            log.tail += count
        if loses and (batches or index % 4 == 0):  # else a whole part of the chain could be lost
            segment.lost.add(first=log.tail, end=log.tail + 4)
            log.tail += 4
        time_ms += pause_ms
        if log.tail > segment.base:
            segment.end = log.tail
            log.segments.append(segment)
    log.segments.append(types_pb2.Segment(index=99, base=log.tail, timestamp_ms=time_ms))
    return log


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(SEGMENTS, st.integers(0, 40), st.integers(3, 5), st.permutations(range(REPLICAS)))
@example(
    [*[([], 0, False, 0)] * 3, ([(1, 0, "www")] * 8, 0, False, 0), ([], 0, True, 0)],
    1,
    3,
    [0, 1, 2],
)
def test_holes_and_damage_never_make_it_wrong(
    segments: Segments,
    moment_ms: int,
    slice_segments: int,
    order: list[int],
) -> None:
    """Whatever each replica lacks, the offset is the model's; what nobody has, a reader reads."""
    log = build(segments)
    search = OffsetSearch(moment_ms, Offset(log.tail))
    read_by_a_reader = 0
    for _ in range(STEPS_MAX):
        if search.done:
            break
        before = search.state
        if search.segment is None:
            asked = search.look_at
            search.on_chain(log.describe(asked, slice_segments), asked)
        elif not _ask(log, search, order):
            # Everything that is left is read in order, as far as one batch.
            found = next(it for it in map(parse_placement, log.batches) if it.end > search.low)
            assert found.first == search.low, "a loss is stepped over"
            search.on_placement(found)
            read_by_a_reader += 1
        assert search.state != before, "each step gets further"
        assert search._proven <= log.first_at(moment_ms) <= search.answer
    assert search.done
    assert search.answer == log.first_at(moment_ms)
    assert search.has_later == (search.answer < log.tail)
    nowhere = sum("w" not in states for states in log.states)
    assert read_by_a_reader <= nowhere, "what a replica has is found without a reader"


def _ask(log: ModelLog, search: OffsetSearch, order: list[int]) -> bool:
    """One replica after the other; whether any of them narrowed the search."""
    before = search.state
    for replica in order:
        segment = search.segment
        if search.done or segment is None:
            break
        for placement in log.ask(replica, segment.index, search):
            search.on_placement(placement)
    return search.state != before


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(SEGMENTS, st.integers(0, 40))
def test_a_view_that_is_behind_never_makes_it_wrong(segments: Segments, moment_ms: int) -> None:
    """A chain whose last segment is shown as open, and has long been followed by others."""
    log = build(segments)
    old = types_pb2.LogDescription(chain=log.segments[: 1 + len(log.segments) // 2])
    old.chain[-1].ClearField("end")
    search = OffsetSearch(moment_ms, Offset(log.tail))
    search.on_chain(old, Offset(0))
    assert search._proven <= log.first_at(moment_ms) <= search.answer


def test_a_long_chain_takes_few_looks() -> None:
    """A thousand segments, of which a node tells sixteen at a time."""
    log = build([([(10, 1, "www")], 1, False, 0) for _ in range(1_000)])
    search = OffsetSearch(1_401, Offset(log.tail))
    looks = 0
    while search.segment is None and not search.done:
        asked = search.look_at
        search.on_chain(log.describe(asked, 16), asked)
        looks += 1
    assert looks <= 10
    assert search.segment is not None
    assert (search.segment.base, search.segment.end) == (7_000, 7_010)


def test_below_what_is_kept_there_is_nothing_to_find() -> None:
    """The chain begins above 0 once a prefix was purged."""
    search = OffsetSearch(5, Offset(100))
    chain = [types_pb2.Segment(index=3, base=40, end=60), types_pb2.Segment(index=4, base=60)]
    search.on_chain(types_pb2.LogDescription(chain=chain), Offset(0))
    assert (search.low, search.high) == (60, 100)
    assert not search.has_later


def test_a_segment_whose_timestamp_is_low_hides_nothing() -> None:
    """The last batch before it was damaged when the segment began (ADR 7): the claim is doubted."""
    log = build([([(2, 1, "www"), (2, 3, "www")], 5, False, 0), ([(1, 0, "www")], 0, False, 7)])
    assert log.segments[1].timestamp_ms == 2
    search = OffsetSearch(4, Offset(log.tail))
    search.on_chain(log.describe(0, 16), Offset(0))
    while not search.done:
        assert search.segment is not None
        for placement in log.ask(0, search.segment.index, search):
            search.on_placement(placement)
    assert search.answer == log.first_at(4) == 2
