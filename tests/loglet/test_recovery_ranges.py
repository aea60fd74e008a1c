"""Sets of offsets as ranges, against plain sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from loglet.ranges import OffsetRanges
from sharedlog.ids import Offset

EDGES = st.integers(0, 12)
CHANGES = st.lists(st.tuples(st.booleans(), EDGES, EDGES), max_size=12)


@given(CHANGES, EDGES, EDGES)
def test_ranges_are_the_set_that_was_built(
    changes: list[tuple[bool, int, int]], first: int, end: int
) -> None:
    """Whatever is added and removed; the ranges are in order, and no two of them touch."""
    ranges, model = OffsetRanges(), set[int]()
    for adds, low, high in changes:
        if adds:
            ranges.add(Offset(low), Offset(high))
            model.update(range(low, high))
        else:
            ranges.remove(Offset(low), Offset(high))
            model.difference_update(range(low, high))
    edges = [edge for run in ranges for edge in run]
    assert edges == sorted(set(edges)), "in order, none empty, none touching"
    assert {it for low, high in ranges for it in range(low, high)} == model
    assert ranges.count == len(model)
    assert bool(ranges) == bool(model)
    assert ranges == OffsetRanges(ranges)
    lacking = [
        it for low, high in ranges.missing(Offset(first), Offset(end)) for it in range(low, high)
    ]
    assert lacking == [it for it in range(first, end) if it not in model]
    assert ranges.holds(Offset(first), Offset(end)) == (not lacking)
    run = first
    while run in model:
        run += 1
    assert ranges.run_end(Offset(first)) == run
