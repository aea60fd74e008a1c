"""What may change in a chain, field by field: spreads, timestamps, losses, replacements, length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metadata import core
from metadata.core import (
    Load,
    check_chain,
    check_chain_change,
    check_nodeset,
    choose_nodeset,
    choose_sequencer,
    new_log_record,
)
from metadata.records import LogRecord, LostRange, NodeRecord, Replica, Segment, Spread
from sharedlog.errors import InvalidArgument, LogUnavailable
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId


def replicas(names: str, location: str = "") -> tuple[Replica, ...]:
    return tuple(
        Replica(node_id=NodeId(n), storage_id=StorageId(n), location=location) for n in names
    )


def segment(index: int, base: int, end: int | None = None, **fields: Any) -> Segment:
    made = Segment(
        index=index,
        base=Offset(base),
        end=None if end is None else Offset(end),
        sequencer=SequencerId(NodeId("a"), Generation(1)),
        nodeset=replicas("abc"),
        write_quorum=2,
    )
    return replace(made, **fields)


def log(*chain: Segment, **fields: Any) -> LogRecord:
    made = LogRecord(
        log_id=LogId(7),
        name="orders",
        replicas=3,
        write_quorum=2,
        created_ms=1,
        create_nonce="nonce",
        chain=chain,
    )
    return replace(made, **fields)


def lost(first: int, end: int, reason: str = "") -> LostRange:
    return LostRange(first=Offset(first), end=Offset(end), accepted_ms=5, reason=reason)


OLD = log(segment(0, 0, 10, timestamp_ms=100), segment(1, 10, timestamp_ms=200))
CLOSED, OPEN = OLD.chain


def ended(end: int, **fields: Any) -> Segment:
    return replace(OPEN, end=Offset(end), **fields)


def follower(index: int, base: int, **fields: Any) -> Segment:
    return segment(index, base, timestamp_ms=300, **fields)


def test_what_is_wanted_and_whose_change_it_was_may_change_alone() -> None:
    check_chain_change(
        OLD, replace(OLD, replicas=5, write_quorum=3, spread=(("zone", 2),), change_nonce="x")
    )
    with pytest.raises(InvalidArgument, match="no majority"):
        check_chain_change(OLD, replace(OLD, replicas=5))
    with pytest.raises(InvalidArgument, match="out of order"):
        check_chain_change(OLD, replace(OLD, spread=(("zone", 2), ("node", 2))))


@pytest.mark.parametrize(
    "changed",
    [
        {"base": Offset(11)},
        {"index": 2},
        {"sequencer": SequencerId(NodeId("a"), Generation(2))},
        {"write_quorum": 3},
        {"spread": (("node", 2),)},
        {"timestamp_ms": 201},
        {"nodeset": replicas("ab")},
        {"nodeset": replicas("xyz")},
    ],
    ids="-".join,
)
def test_a_segment_that_ends_keeps_all_but_some_servers(changed: dict[str, Any]) -> None:
    """Field note 30. Replacement servers may join a segment by the change that ends it."""
    check_chain_change(OLD, log(CLOSED, ended(20, nodeset=replicas("abx")), follower(2, 20)))
    with pytest.raises(InvalidArgument):
        check_chain_change(OLD, log(CLOSED, ended(20, **changed), follower(2, 20)))


def test_an_open_segment_keeps_its_servers() -> None:
    """Field note 30: a segment's configuration is immutable while it is open."""
    with pytest.raises(InvalidArgument, match="does not follow"):
        check_chain_change(OLD, log(CLOSED, replace(OPEN, nodeset=replicas("abx"))))


@pytest.mark.parametrize(
    "fields",
    [
        {"nodeset": replicas("xyz")},
        {"nodeset": replicas("abcd"), "write_quorum": 3},
        {"write_quorum": 3},
        {"lost": (lost(3, 5),)},
    ],
    ids=["other servers", "more servers", "a higher write quorum", "a loss"],
)
def test_what_may_change_of_a_closed_segment(fields: dict[str, Any]) -> None:
    check_chain_change(OLD, log(replace(CLOSED, **fields), OPEN))


@pytest.mark.parametrize(
    "fields",
    [
        {"base": Offset(1)},
        {"end": Offset(11)},
        {"sequencer": SequencerId(NodeId("b"), Generation(1))},
        {"timestamp_ms": 99},
        {"spread": (("node", 2),)},
        {"nodeset": replicas("ab")},
        {"nodeset": replicas("abca")},
        {"nodeset": replicas("abcd")},  # 2 of 4 is no majority
        {"write_quorum": 1, "nodeset": replicas("a")},
    ],
    ids=str,
)
def test_what_may_not_change_of_a_closed_segment(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        check_chain_change(OLD, log(replace(CLOSED, **fields), OPEN))


def test_a_closed_segment_shrinks_only_to_what_the_log_wants() -> None:
    """The copies that were promised stay promised: the write quorum is never lowered."""
    wide = segment(0, 0, 10, nodeset=replicas("abcde"), write_quorum=3)
    old = log(wide, OPEN)
    check_chain_change(old, log(replace(wide, nodeset=replicas("abc")), OPEN))
    with pytest.raises(InvalidArgument, match="takes replicas"):
        check_chain_change(
            replace(old, replicas=4, write_quorum=3),
            log(replace(wide, nodeset=replicas("abc")), OPEN, replicas=4, write_quorum=3),
        )
    with pytest.raises(InvalidArgument, match="lowers the write quorum"):
        check_chain_change(old, log(replace(wide, nodeset=replicas("abc"), write_quorum=2), OPEN))


def test_losses_only_grow() -> None:
    """Field note 18: what was accepted as lost is told for ever; readers rest on it."""
    was = log(replace(CLOSED, lost=(lost(3, 5),)), OPEN)
    check_chain_change(was, log(replace(CLOSED, lost=(lost(1, 2), lost(3, 5))), OPEN))
    for now in ((), (lost(3, 4),), (lost(3, 5, "another reason"),)):
        with pytest.raises(InvalidArgument, match="forgets"):
            check_chain_change(was, log(replace(CLOSED, lost=now), OPEN))
    # A segment that ends with a loss, and an empty one whose loss its successor takes over.
    check_chain_change(OLD, log(CLOSED, ended(20, lost=(lost(20, 20),)), follower(2, 20)))
    empty = log(CLOSED, replace(OPEN, lost=(lost(10, 10),)))
    check_chain_change(empty, log(CLOSED, follower(2, 10, lost=(lost(10, 10),))))
    with pytest.raises(InvalidArgument, match="forgets"):
        check_chain_change(empty, log(CLOSED, follower(2, 10)))


@pytest.mark.parametrize(
    "losses",
    [(lost(9, 11),), (lost(-1, 2),), (lost(4, 3),), (lost(5, 7), lost(6, 8)), (lost(5, 6),) * 2],
    ids=str,
)
def test_losses_lie_in_their_segment_in_order(losses: tuple[LostRange, ...]) -> None:
    check_chain(log(replace(CLOSED, lost=(lost(0, 3), lost(3, 3), lost(9, 10))), OPEN))
    with pytest.raises(InvalidArgument, match=r"lost|losses"):
        check_chain(log(replace(CLOSED, lost=losses), OPEN))


def test_timestamps_never_fall_along_a_chain() -> None:
    """Field note 43: timestamps are monotone per log, across sequencers."""
    check_chain_change(OLD, log(CLOSED, ended(20), follower(2, 20)))
    with pytest.raises(InvalidArgument, match="earlier"):
        check_chain_change(OLD, log(CLOSED, ended(20), segment(2, 20, timestamp_ms=199)))
    with pytest.raises(InvalidArgument, match="earlier"):  # an empty one's counts as well
        check_chain_change(OLD, log(CLOSED, segment(2, 10, timestamp_ms=199)))
    with pytest.raises(InvalidArgument, match="earlier"):
        check_chain(log(CLOSED, replace(OPEN, timestamp_ms=99)))


def test_a_segment_must_have_its_spread() -> None:
    spread: Spread = (("zone", 2),)
    same = replicas("abc", "z1")
    apart = (*replicas("ab", "z1"), *replicas("c", "z2"))
    check_chain(log(segment(0, 0, nodeset=apart, spread=spread)))
    with pytest.raises(InvalidArgument, match="zone:2: the log servers are in 1: z1"):
        check_chain(log(segment(0, 0, nodeset=same, spread=spread)))
    with pytest.raises(InvalidArgument, match=r"in 1: \(no location\)"):
        check_nodeset(replicas("abc"), 2, spread)


def test_a_chain_has_an_end_to_its_growth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Field note 51: refused with what to do, while changes that don't lengthen it go on."""
    monkeypatch.setattr(core, "CHAIN_SEGMENTS_MAX", 2)
    with pytest.raises(LogUnavailable, match=r"'orders' takes no further.*Go on in a new log"):
        check_chain_change(OLD, log(CLOSED, ended(20), follower(2, 20)))
    check_chain_change(OLD, log(CLOSED, follower(2, 10)))
    check_chain_change(OLD, log(replace(CLOSED, nodeset=replicas("xyz")), OPEN))


def node(name: str, location: str = "", state: str = "read-write") -> NodeRecord:
    return NodeRecord(
        node_id=NodeId(name),
        generation=Generation(1),
        storage_id=StorageId(name),
        address=f"{name}:1",
        http_address="",
        location=location,
        roles=("log-server", "sequencer"),
        state=state,
    )


@pytest.mark.parametrize("state", ["draining", "gone", "data-loss"])
def test_nodes_that_are_not_read_write_get_no_work(state: str) -> None:
    alive = [node("a", state=state), node("b")]
    assert [it.node_id for it in choose_nodeset(alive, replicas=1, load=Load())] == ["b"]
    found = choose_sequencer(alive, nodeset=(), load=Load(), prefer=NodeId("a"))
    assert found.node_id == "b"
    with pytest.raises(LogUnavailable, match="1 of this cluster is alive and may take new"):
        choose_nodeset(alive, replicas=2, load=Load())
    with pytest.raises(LogUnavailable, match="may order more"):
        choose_sequencer(alive[:1], nodeset=(), load=Load())


def test_a_spread_goes_before_the_asked_for_node_and_the_load() -> None:
    """Whatever spread can be had is had: regions are filled first, then zones."""
    alive = [node("a", "r1.x"), node("b", "r1.y"), node("c", "r1.z"), node("d", "r2.x")]
    load = Load()
    load.replicas[NodeId("d")] = 100
    chosen = choose_nodeset(
        alive, replicas=3, load=load, prefer=NodeId("b"), spread=(("region", 2), ("zone", 3))
    )
    assert [it.node_id for it in chosen] == ["b", "d", "a"]
    with pytest.raises(LogUnavailable, match="region:3: the log servers are in 2: r1, r2"):
        choose_nodeset(alive, replicas=3, load=load, spread=(("region", 3),))


def test_a_new_log_has_the_spread_that_it_asks_for() -> None:
    alive = [node("a", "x"), node("b", "x"), node("c", "x"), node("d", "y")]
    made = new_log_record(
        name="orders",
        log_id=LogId(1),
        replicas=3,
        write_quorum=0,
        alive=alive,
        load=Load(),
        created_ms=1,
        create_nonce="",
        spread=(("zone", 2),),
    )
    assert made.spread == made.open_segment.spread == (("zone", 2),)
    assert {it.location for it in made.open_segment.nodeset} == {"x", "y"}
