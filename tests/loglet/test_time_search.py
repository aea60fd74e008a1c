"""The search for a moment: true whatever is missing or damaged, and short whatever is held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from helpers.log_servers import LOGLET, flipped, placed
from hypothesis import given, settings
from hypothesis import strategies as st

from loglet.time_search import DAMAGED_PASSED_MAX, find_neighbours
from sharedlog.batch import HEADERS_BYTES, parse_placement
from sharedlog.ids import Offset

WHOLE, HOLE, DAMAGED = "whole", "hole", "damaged"


@dataclass(frozen=True)
class Held:
    """A batch of the loglet, and what this replica has of it."""

    first: int
    end: int
    timestamp_ms: int
    state: str

    @property
    def fixed(self) -> bytes:
        batch = placed(self.first, self.end - self.first, timestamp_ms=self.timestamp_ms)
        return (flipped(batch, 30) if self.state == DAMAGED else batch)[:HEADERS_BYTES]


def loglet(entries: list[tuple[int, int, str]]) -> list[Held]:
    """Batches of so many records, so much later than the one before."""
    found: list[Held] = []
    end = time_ms = 0
    for count, later_ms, state in entries:
        time_ms += later_ms
        found.append(Held(end, end + count, time_ms, state))
        end += count
    return found


class Counted:
    """What a store shows of the batches, counting its steps."""

    def __init__(self, batches: list[Held]) -> None:
        self.held = [it for it in batches if it.state != HOLE]
        self.seeks = 0
        self.looked_at = 0

    def walk(self, start: Offset, end: Offset) -> Iterator[tuple[Offset, Offset, bytes]]:
        self.seeks += 1
        for it in self.held:
            if it.end > start and it.first < end:
                self.looked_at += 1
                yield Offset(it.first), Offset(it.end), it.fixed


ENTRIES = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.integers(0, 3),
        st.sampled_from([WHOLE, WHOLE, WHOLE, HOLE, DAMAGED]),
    ),
    max_size=30,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(ENTRIES, st.integers(0, 60), st.integers(0, 300), st.integers(0, 600))
def test_the_neighbours_are_the_nearest_whole_ones(
    entries: list[tuple[int, int, str]], moment_ms: int, start: int, size: int
) -> None:
    """Against a look at all of them; as far as no run of damaged ones ends the search early."""
    batches = loglet(entries)
    end = start + size
    stored = Counted(batches)
    found = find_neighbours(stored.walk, LOGLET, Offset(start), Offset(end), moment_ms)
    whole = [it for it in batches if it.state == WHOLE and it.end > start and it.end <= end]
    earlier = [it.fixed for it in whole if it.timestamp_ms < moment_ms]
    later = [it.fixed for it in whole if it.timestamp_ms >= moment_ms]
    if sum(it.state == DAMAGED for it in batches) <= DAMAGED_PASSED_MAX:
        assert found.before == (earlier[-1] if earlier else b"")
        assert found.after == (later[0] if later else b"")
    assert found.before in (b"", *earlier)
    assert found.after in (b"", *later)
    assert stored.seeks <= max(1, size).bit_length()


def test_a_long_loglet_takes_few_looks() -> None:
    """The logarithm of its offsets, not of nothing: a hundred thousand records, seventeen looks."""
    stored = Counted(loglet([(100, 1, WHOLE)] * 1_000))
    found = find_neighbours(stored.walk, LOGLET, Offset(0), Offset(100_000), 500)
    assert parse_placement(found.after).first == 49_900
    assert parse_placement(found.before).end == 49_900
    assert stored.looked_at <= stored.seeks <= 17


def test_a_run_of_damage_ends_the_search_with_what_was_seen() -> None:
    """It looks at some damaged ones in a row, no more; what it says of the rest is true."""
    entries = [(1, 1, WHOLE)] * 10 + [(1, 1, DAMAGED)] * 60 + [(1, 1, WHOLE)] * 10
    stored = Counted(loglet(entries))
    found = find_neighbours(stored.walk, LOGLET, Offset(0), Offset(80), 75)
    assert found == (b"", b"")
    assert stored.looked_at == DAMAGED_PASSED_MAX + 1
    found = find_neighbours(Counted(loglet(entries)).walk, LOGLET, Offset(60), Offset(80), 75)
    assert parse_placement(found.before).end == parse_placement(found.after).first == 74
