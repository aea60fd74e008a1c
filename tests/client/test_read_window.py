"""What a read hands out, and when it is over: the core, batch by batch."""

from __future__ import annotations

import pytest
from helpers.log_servers import LOGLET
from hypothesis import given
from hypothesis import strategies as st

from sharedlog.batch import KIND_CONTROL, KIND_RECORDS, Placement, Record
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Offset
from sharedlog.read_window import ReadWindow, check_limits, record_bytes


def batch(
    first: int, count: int, timestamp_ms: int = 0, *, kind: int = KIND_RECORDS
) -> tuple[Placement, list[Record]]:
    """Records of two bytes each."""
    placement = Placement(LOGLET, Offset(first), count, timestamp_ms, Offset(0), 0, kind)
    offsets = range(first, first + count)
    return placement, [Record(Offset(it), b"ab", None, {}, timestamp_ms) for it in offsets]


def run(window: ReadWindow, *batches: tuple[Placement, list[Record]]) -> list[int]:
    """Offsets that are handed out, of as many batches as it wants."""
    found: list[int] = []
    for placement, records in batches:
        if window.done:
            break
        if window.admits(placement):
            found += [record.offset for record in window.clip(placement, records)]
    return found


BATCHES = [batch(0, 4, 10), batch(4, 4, 20), batch(8, 4, 30)]


def test_a_range_is_clipped_and_ends_the_read() -> None:
    """The end may lie within a batch; the batch with the last offset is the last one."""
    window = ReadWindow(Offset(2), Offset(6))
    assert run(window, *BATCHES) == [2, 3, 4, 5]
    assert (window.done, window.enough, window.position) == (True, False, 6)
    window = ReadWindow(Offset(2), Offset(8))
    assert run(window, *BATCHES) == [2, 3, 4, 5, 6, 7]
    assert (window.done, window.position) == (True, 8)
    assert ReadWindow(Offset(2), Offset(2)).done
    assert not ReadWindow(Offset(2)).done


@pytest.mark.parametrize(("limit", "position"), [(1, 1), (4, 4), (5, 5), (12, 12)])
def test_a_limit_counts_records(limit: int, position: int) -> None:
    """It is over with the last one, wherever in a batch that is."""
    window = ReadWindow(Offset(0), limit=limit)
    assert window.leg_end == limit
    assert run(window, *BATCHES) == list(range(limit))
    assert (window.done, window.enough, window.position) == (True, True, position)


def test_no_records_are_wanted() -> None:
    """Then the read is over before it has begun."""
    window = ReadWindow(Offset(0), limit=0)
    assert window.done
    assert window.enough


def test_control_records_count_for_no_limit() -> None:
    """They take offsets: a stream that ended where the limit would be is gone on with."""
    batches = [
        *(batch(0, 1), batch(1, 2, kind=KIND_CONTROL), batch(3, 1, kind=KIND_CONTROL)),
        *(batch(4, 1), batch(5, 1, kind=KIND_CONTROL), batch(6, 3)),
    ]
    window = ReadWindow(Offset(0), limit=3)
    assert window.leg_end == 3
    assert run(window, *batches[:2]) == [0]
    assert not window.done
    assert (window.position, window.leg_end) == (3, 5)
    assert run(window, *batches[2:4]) == [4]
    assert (window.position, window.leg_end) == (5, 6)
    assert run(window, *batches[4:]) == [6]
    assert window.done
    asked = ReadWindow(Offset(0), limit=3, include_control=True)
    assert run(asked, *batches) == [0, 1, 2]


@pytest.mark.parametrize(
    ("limit_bytes", "wanted"), [(1, 1), (2, 1), (3, 1), (4, 2), (8, 4), (9, 4), (11, 5), (99, 12)]
)
def test_a_limit_in_bytes_is_never_passed_but_by_the_first(limit_bytes: int, wanted: int) -> None:
    """At least one record; and the read is over once the bytes are reached, not with the next."""
    window = ReadWindow(Offset(0), limit_bytes=limit_bytes)
    assert run(window, *BATCHES) == list(range(wanted))
    assert window.position == wanted
    assert window.done == (wanted < 12)


def test_what_counts_for_a_limit_in_bytes() -> None:
    """Value, key, and headers with their names in UTF-8."""
    assert record_bytes(Record(Offset(0), b"abc", None, {}, 0)) == 3
    assert record_bytes(Record(Offset(0), b"", b"k", {"\u00e9": b"12", "x": b""}, 0)) == 6


def test_moments_bound_a_read() -> None:
    """It begins with the first batch that is late enough, and ends before one that is too late."""
    window = ReadWindow(Offset(0), since_ms=15, until_ms=30)
    assert run(window, *BATCHES) == [4, 5, 6, 7]
    assert (window.done, window.enough, window.position) == (True, True, 8)
    window = ReadWindow(Offset(0), until_ms=31)
    assert run(window, *BATCHES) == list(range(12))
    assert not window.done
    window = ReadWindow(Offset(0), until_ms=10)
    assert run(window, *BATCHES) == []
    assert (window.done, window.position) == (True, 0)


def test_whole_batches_are_counted_as_such() -> None:
    """For who sends them as they are: over with the batch that reaches a limit."""
    window = ReadWindow(Offset(2), limit=5)
    assert window.admits(BATCHES[0][0])
    window.take_whole(BATCHES[0][0], 100)
    assert not window.done
    assert window.admits(BATCHES[1][0])
    window.take_whole(BATCHES[1][0], 100)
    assert (window.done, window.enough) == (True, True)
    window = ReadWindow(Offset(0), limit_bytes=101)
    window.take_whole(BATCHES[0][0], 100)
    assert not window.done
    window.take_whole(BATCHES[1][0], 100)
    assert window.done


def test_limits_below_what_they_can_be_are_refused() -> None:
    """No record at all may be wanted; no byte at all would still bring one."""
    check_limits(0, 1)
    for limit, limit_bytes in ((-1, None), (None, 0)):
        with pytest.raises(InvalidArgument):
            check_limits(limit, limit_bytes)


@given(
    st.lists(st.integers(1, 5), max_size=12),
    st.integers(0, 30),
    st.one_of(st.none(), st.integers(0, 40)),
    st.one_of(st.none(), st.integers(0, 40)),
    st.one_of(st.none(), st.integers(1, 60)),
)
def test_it_is_what_a_list_would_give(
    counts: list[int], start: int, end: int | None, limit: int | None, limit_bytes: int | None
) -> None:
    """Whatever the batches: the range, cut at the records and at the bytes."""
    batches, first = [], 0
    for count in counts:
        batches.append(batch(first, count))
        first += count
    wanted = list(range(first))[start:end][:limit]
    if limit_bytes is not None:
        wanted = wanted[: max(1, limit_bytes // 2)]
    window = ReadWindow(
        Offset(start),
        None if end is None else Offset(end),
        limit=limit,
        limit_bytes=limit_bytes,
    )
    reached = [it for it in batches if it[0].end > start]
    assert run(window, *reached) == wanted
