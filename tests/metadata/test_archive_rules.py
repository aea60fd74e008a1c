"""What is archived, trimmed and purged of a log: it grows, in order, below what is committed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.archive_rules import (
    Committed,
    change_retention,
    check_offsets,
    committed_end,
    purge_below,
    raise_archived_end,
    raise_trimmed,
)
from metadata.core import check_chain, check_chain_change
from metadata.reconfiguration import Plan, end_segment
from metadata.records import LogRecord, Replica, Segment
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId
from sharedlog.retention import Retention

NODESET = (Replica(node_id=NodeId("a"), storage_id=StorageId("s")),)
SEQUENCER = SequencerId(NodeId("a"), Generation(1))
PLAN = Plan(sequencer=SEQUENCER, nodeset=NODESET, replicas=1, write_quorum=1, spread=())


def segment(index: int, base: int, end: int | None = None) -> Segment:
    return Segment(
        index=index,
        base=Offset(base),
        end=None if end is None else Offset(end),
        sequencer=SEQUENCER,
        nodeset=NODESET,
        write_quorum=1,
    )


def log(**fields: Any) -> LogRecord:
    """Segment 0 is [0, 100), segment 1 is open."""
    made = LogRecord(
        log_id=LogId(7),
        name="orders",
        replicas=1,
        write_quorum=1,
        created_ms=1,
        create_nonce="nonce",
        chain=(segment(0, 0, 100), segment(1, 100)),
    )
    return replace(made, **fields)


def but(record: LogRecord, **fields: Any) -> LogRecord:
    return replace(record, **fields)


def ended(record: LogRecord, end: int) -> LogRecord:
    return end_segment(record, end=Offset(end), timestamp_ms=0, plan=PLAN, nonce="x")


def test_the_chain_proves_what_closed_segments_have_and_a_caller_what_the_open_one_has() -> None:
    """As long as it speaks of that one: nothing that it says of another counts."""
    assert committed_end(log()) == 100
    assert committed_end(log(), Committed(1, Offset(150))) == 150
    assert committed_end(log(), Committed(1, Offset(50))) == 100
    assert committed_end(log(), Committed(0, Offset(150))) == 100
    assert committed_end(log(), Committed(2, Offset(150))) == 100


def test_no_more_is_archived_than_is_committed() -> None:
    """Refused rather than clamped, and what is there already is the very same record."""
    record = raise_archived_end(log(), Offset(100))
    assert record.archived_end == 100
    with pytest.raises(InvalidArgument, match=r"archived up to 101.* committed up to 100"):
        raise_archived_end(record, Offset(101))
    with pytest.raises(InvalidArgument, match="committed up to 120"):
        raise_archived_end(record, Offset(121), known=Committed(1, Offset(120)))
    assert raise_archived_end(record, Offset(120), known=Committed(1, Offset(120))) == but(
        record, archived_end=120
    )
    assert raise_archived_end(record, Offset(100)) is record
    assert raise_archived_end(record, Offset(99)) is record


def test_no_more_is_trimmed_than_is_archived_or_purged() -> None:
    """Field note 44: a trim that can't be is told, with what could be."""
    record = log(archived_end=50)
    assert raise_trimmed(record, Offset(50)).trimmed == 50
    with pytest.raises(InvalidArgument, match="trimmed up to 51: it is archived up to 50"):
        raise_trimmed(record, Offset(51))
    purged = purge_below(record, Offset(70))
    assert raise_trimmed(purged, Offset(70)) is purged
    with pytest.raises(InvalidArgument, match="archived up to 70"):
        raise_trimmed(purged, Offset(71))


def test_purging_takes_the_trim_point_along_and_leaves_the_archive_behind() -> None:
    """Without an archive too; never above what is committed."""
    assert purge_below(log(), Offset(30)) == log(start=30, trimmed=30)
    record = log(archived_end=50, trimmed=40)
    assert purge_below(record, Offset(30)) == but(record, start=30)
    assert purge_below(record, Offset(60)) == but(record, start=60, trimmed=60)
    with pytest.raises(InvalidArgument, match="purged up to 101"):
        purge_below(record, Offset(101))
    assert purge_below(record, Offset(101), known=Committed(1, Offset(101))).start == 101
    purged = purge_below(record, Offset(60))
    assert purge_below(purged, Offset(60)) is purged
    assert purge_below(purged, Offset(10)) is purged


@pytest.mark.parametrize(
    ("start", "trimmed", "archived_end"), [(5, 0, 0), (0, 5, 0), (0, 5, 4), (5, 6, 4), (-1, 0, 0)]
)
def test_offsets_out_of_order_are_refused(start: int, trimmed: int, archived_end: int) -> None:
    """`0 <= start <= trimmed <= max(archived_end, start)`, whoever writes the record."""
    wrong = log(start=start, trimmed=trimmed, archived_end=archived_end)
    with pytest.raises(InvalidArgument, match="archived up to"):
        check_offsets(wrong)
    with pytest.raises(InvalidArgument):
        check_chain(wrong)
    with pytest.raises(InvalidArgument):
        check_chain_change(log(), wrong)


@pytest.mark.parametrize("field", ["start", "trimmed", "archived_end"])
def test_no_change_takes_one_back(field: str) -> None:
    """A change that was made of an old record, or that forgets a field, is refused."""
    old = log(start=10, trimmed=20, archived_end=30)
    check_chain_change(old, but(old, change_nonce="x"))
    with pytest.raises(InvalidArgument):
        check_chain_change(old, but(old, **{field: getattr(old, field) - 1}))
    check_chain_change(old, but(old, start=20, trimmed=30, archived_end=31))


def test_a_log_that_goes_on_keeps_them() -> None:
    """In a new segment at its end, and in one that takes an empty one's place."""
    old = log(start=10, trimmed=20, archived_end=110, retention=Retention(local_age_s=7))
    for end in (110, 150):
        new = ended(old, end)
        check_chain_change(old, new)
        assert (new.start, new.trimmed, new.archived_end) == (10, 20, 110)
        assert new.retention == old.retention
    empty = log(archived_end=100)
    check_chain_change(empty, ended(empty, 100))


@pytest.mark.parametrize("field", ["start", "archived_end"])
def test_no_segment_ends_below_what_is_archived_or_purged(field: str) -> None:
    """Or its offsets would be given again, and log and archive would say two things of them."""
    old = log(**{field: 110, "trimmed": 110})
    for end in (100, 109):
        with pytest.raises(InvalidArgument, match=f"ends a segment at {end}.* below 110"):
            check_chain_change(old, ended(old, end))
    check_chain_change(old, ended(old, 110))


def test_what_a_sequencer_knew_counts_for_nothing_once_its_segment_has_ended() -> None:
    """An accepted loss may have ended it lower: its offsets are another record's then."""
    known = Committed(1, Offset(150))
    record = ended(log(), 120)
    assert raise_archived_end(record, Offset(120), known=known).archived_end == 120
    with pytest.raises(InvalidArgument, match="committed up to 120"):
        raise_archived_end(record, Offset(150), known=known)


def test_retention_is_changed_setting_by_setting() -> None:
    """None keeps, 0 ends; the ages must go together, whichever was set first."""
    record = change_retention(log(), Retention(local_bytes=10, total_age_s=60))
    assert record.retention == Retention(local_bytes=10, total_age_s=60)
    assert change_retention(record, Retention(local_bytes=10)) is record
    assert change_retention(record, Retention()) is record
    with pytest.raises(InvalidArgument, match="total age of 1m is less than the local age of 61s"):
        change_retention(record, Retention(local_age_s=61))
    assert change_retention(record, Retention(local_age_s=60)).retention.local_age_s == 60
    without = change_retention(record, Retention(local_bytes=0, total_age_s=0))
    assert without == log()
    check_chain_change(log(), record)
    check_chain_change(record, without)
    for wrong in (
        Retention(local_bytes=-1),
        Retention(local_age_s=2**63),
        Retention(local_age_s=0),
    ):
        with pytest.raises(InvalidArgument):
            check_chain_change(log(), but(log(), retention=wrong))


_OFFSETS = st.integers(0, 40).map(Offset)
_STEPS = st.lists(
    st.tuples(st.sampled_from(["archive", "trim", "purge", "append", "end", "stale"]), _OFFSETS),
    max_size=25,
)


@given(_STEPS)
def test_any_sequence_of_changes_keeps_every_rule(steps: list[tuple[str, Offset]]) -> None:
    """Of a log that is appended to and reconfigured meanwhile, by callers that may know old things:
    each change that the rules let through may follow by the chain's rules too."""
    record = log(chain=(segment(0, 0),))
    tail = Offset(0)  # of the log: what is committed
    stale = Committed(0, tail)
    for step, offset in steps:
        known = Committed(record.open_segment.index, tail)
        old = record
        try:
            match step:
                case "archive":
                    record = raise_archived_end(record, offset, known=known)
                case "stale":
                    record = raise_archived_end(record, offset, known=stale)
                case "trim":
                    record = raise_trimmed(record, offset)
                case "purge":
                    record = purge_below(record, offset, known=known)
                case "append":
                    tail, stale = Offset(tail + offset), known
                case "end":
                    record = ended(record, tail)
        except InvalidArgument:
            assert record is old
        check_chain_change(old, record)
        check_chain(record)
        assert 0 <= old.start <= record.start <= record.trimmed <= tail
        assert old.trimmed <= record.trimmed <= max(record.archived_end, record.start)
        assert old.archived_end <= record.archived_end <= tail
