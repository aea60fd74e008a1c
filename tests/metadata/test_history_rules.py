"""Chains that begin with archived history: what they are, what may follow, and as bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metadata.archive_rules import purge_below, raise_archived_end
from metadata.core import Load, check_chain, check_chain_change
from metadata.encoding import decode_log, encode_log, log_key
from metadata.history_rules import NOBODY, ArchivedHistory, archived_until, with_history
from metadata.reconfiguration import Change, Plan, end_segment, plan_next
from metadata.records import LogRecord, LostRange, NodeRecord, Replica, Segment
from metadata.store import Entry, Version
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId

NODESET = (Replica(node_id=NodeId("a"), storage_id=StorageId("s")),)
SEQUENCER = SequencerId(NodeId("a"), Generation(1))
PLAN = Plan(sequencer=SEQUENCER, nodeset=NODESET, replicas=1, write_quorum=1, spread=())


def lost(first: int, end: int) -> LostRange:
    return LostRange(first=Offset(first), end=Offset(end), accepted_ms=1, reason="disk")


def new() -> LogRecord:
    opened = Segment(index=0, base=Offset(0), sequencer=SEQUENCER, nodeset=NODESET, write_quorum=1)
    return LogRecord(
        log_id=LogId(7),
        name="orders",
        replicas=1,
        write_quorum=1,
        created_ms=1,
        create_nonce="nonce",
        chain=(opened,),
    )


def begun(start: int = 10, end: int = 100, losses: tuple[LostRange, ...] = ()) -> LogRecord:
    history = ArchivedHistory(start=Offset(start), end=Offset(end), last_ms=77, lost=losses)
    record = with_history(new(), history)
    check_chain(record)
    return record


def but_first(record: LogRecord, **fields: Any) -> LogRecord:
    return replace(record, chain=(replace(record.chain[0], **fields), *record.chain[1:]))


def test_the_chain_begins_with_a_segment_that_nobody_has() -> None:
    """The open one goes on at its end, no earlier than its last batch."""
    record = begun()
    archived, opened = record.chain
    assert (archived.index, archived.base, archived.end) == (0, 0, 100)
    assert archived.is_archived
    assert not opened.is_archived
    assert (opened.index, opened.base, opened.timestamp_ms) == (1, 100, 77)
    assert (record.start, record.trimmed, record.archived_end) == (10, 100, 100)
    assert archived_until(record.chain) == 100
    assert archived_until(new().chain) == 0


def test_nothing_in_the_history_is_an_ordinary_log() -> None:
    """And all of it purged is one that begins behind that."""
    empty = ArchivedHistory(start=Offset(0), end=Offset(0), last_ms=0)
    plain = new()
    assert with_history(plain, empty) is plain
    assert (begun(100).start, begun(100).open_segment.base) == (100, 100)


def test_losses_go_with_it() -> None:
    """As far as they lie in it."""
    record = begun(losses=(lost(0, 5), lost(8, 12), lost(50, 60), lost(90, 120)))
    assert record.chain[0].lost == (lost(10, 12), lost(50, 60), lost(90, 100))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sequencer": SEQUENCER},
        {"write_quorum": 1},
        {"spread": (("zone", 1),)},
        {"base": Offset(1)},
        {"index": 1},
    ],
)
def test_a_segment_without_nodeset_is_nothing_else(wrong: dict[str, Any]) -> None:
    """Nor is it open, or anywhere but first, or ends above what is trimmed."""
    with pytest.raises(InvalidArgument):
        check_chain(but_first(begun(), **wrong))


def test_where_a_segment_without_nodeset_can_not_be() -> None:
    """Open, second, or not wholly archived."""
    record = begun()
    with pytest.raises(InvalidArgument, match="not all of it is in the archive"):
        check_chain(replace(record, trimmed=Offset(99)))
    archived, opened = record.chain
    bare = {"nodeset": (), "write_quorum": 0, "sequencer": NOBODY}
    with pytest.raises(InvalidArgument):
        check_chain(replace(record, chain=(replace(archived, end=None),)))
    with pytest.raises(InvalidArgument):
        check_chain(replace(record, chain=(archived, replace(opened, **bare))))  # type: ignore[arg-type]  # fields


def test_the_log_goes_on_like_any_other() -> None:
    """Its segments end, at its base too; archive and purge go on; the first segment stays."""
    record = begun()
    emptied = end_segment(record, end=Offset(100), timestamp_ms=80, plan=PLAN, nonce="x")
    check_chain_change(record, emptied)
    assert [it.index for it in emptied.chain] == [0, 2]
    ended = end_segment(emptied, end=Offset(120), timestamp_ms=80, plan=PLAN, nonce="x")
    check_chain_change(emptied, ended)
    further = purge_below(raise_archived_end(ended, Offset(120)), Offset(110))
    check_chain_change(ended, further)
    assert further.chain[0] is record.chain[0]
    for wrong in ({"nodeset": NODESET}, {"nodeset": NODESET, "write_quorum": 1}):
        with pytest.raises(InvalidArgument):
            check_chain_change(record, but_first(record, **wrong))
    first, second, opened = ended.chain
    bare = replace(ended, chain=(first, replace(second, nodeset=()), opened))
    with pytest.raises(InvalidArgument, match="takes all of them"):
        check_chain_change(ended, bare)


def test_the_chain_as_bytes() -> None:
    """An empty nodeset and nobody's sequencer come back as they were."""
    record = begun(losses=(lost(50, 60),))
    key = log_key("orders")
    assert decode_log(Entry(key, encode_log(record), Version(1))) == record


def test_the_next_segment_is_planned_from_the_open_one() -> None:
    """The archived one names nobody."""
    nodes = [
        NodeRecord(
            node_id=NodeId(name),
            generation=Generation(1),
            storage_id=StorageId(f"s{name}"),
            address=f"{name}:1",
            http_address="",
            location="",
            roles=("log-server", "sequencer"),
        )
        for name in "bc"
    ]
    plan = plan_next(begun(), Change(), nodes, Load(), known=nodes)
    assert {it.node_id for it in plan.nodeset} <= {"b", "c"}
