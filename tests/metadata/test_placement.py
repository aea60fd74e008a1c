"""Where logs go: near their writers, and where there is room."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from metadata.core import Load, check_near, choose_nodeset, is_near, nearest, new_log_record
from metadata.encoding import decode_log, encode_log, log_key
from metadata.reconfiguration import Change, plan_next
from metadata.records import LogRecord, NodeRecord
from metadata.store import Entry, Version
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Generation, LogId, NodeId, StorageId
from sharedlog.limits import MIB

ZONES = {"a1": "eu.a", "a2": "eu.a", "b1": "eu.b", "b2": "eu.b", "c1": "us.c"}


def node(name: str, **fields: Any) -> NodeRecord:
    made = NodeRecord(
        node_id=NodeId(name),
        generation=Generation(1),
        storage_id=StorageId(f"store-{name}"),
        address=f"{name}:1",
        http_address="",
        location=ZONES[name],
        roles=("log-server", "sequencer"),
    )
    return replace(made, **fields)


ALL = [node(name) for name in ZONES]


def made(near: str, load: Load | None = None, alive: list[NodeRecord] | None = None) -> LogRecord:
    return new_log_record(
        name="orders",
        log_id=LogId(1),
        replicas=3,
        write_quorum=0,
        alive=ALL if alive is None else alive,
        load=load or Load(),
        created_ms=1,
        create_nonce="nonce",
        spread=(("zone", 2),),
        near=near,
    )


def but(*names: str) -> list[NodeRecord]:
    return [it for it in ALL if it.node_id not in names]


def room(free: dict[str, int]) -> Load:
    """What is known to be left on the disks."""
    known = {NodeId(it): size for it, size in free.items()}
    return Load(free_bytes=known.get)


def order(record: LogRecord) -> str:
    return record.open_segment.sequencer.node_id


@pytest.mark.parametrize(
    ("location", "near", "expected"),
    [
        ("eu.a", "eu.a", True),
        ("eu.a.rack-7", "eu.a", True),
        ("eu.a", "eu", True),
        ("eu.ab", "eu.a", False),
        ("eu", "eu.a", False),
        ("", "eu", False),
        ("", "", True),
    ],
)
def test_what_is_near(location: str, near: str, *, expected: bool) -> None:
    assert is_near(location, near) is expected


@pytest.mark.parametrize("near", [".", "eu.", "eu..a", "eu a", "é", "x" * 129, "eu/a"])
def test_what_is_no_location_is_refused(near: str) -> None:
    with pytest.raises(InvalidArgument, match="no location"):
        check_near(near)


def test_a_log_is_ordered_near_its_writers_and_has_a_copy_there() -> None:
    """Whatever the others have to do; a wish for where nobody is changes nothing."""
    load = Load()
    load.sequencers[NodeId("b1")] = load.replicas[NodeId("b1")] = 100
    load.sequencers[NodeId("b2")] = load.replicas[NodeId("b2")] = 101
    record = made("eu.b", load)
    assert order(record) == "b1"
    assert "b1" in {it.node_id for it in record.open_segment.nodeset}
    assert order(made("us")) == "c1"
    assert order(made("mars")) == order(made(""))
    assert order(made("eu.b", alive=but("b1", "b2"))) in {"a1", "a2", "c1"}
    assert nearest(ALL, load, "") is None


def test_any_reconfiguration_brings_a_log_home_and_none_takes_it_away() -> None:
    """As long as somebody there is alive; and a log that is told where its writers are moves."""
    record = made("eu.b")
    away = plan_next(record, Change(), but("b1", "b2"), Load(), known=ALL)
    assert away.sequencer.node_id in {"a1", "a2", "c1"}
    elsewhere = replace(
        record, chain=(replace(record.chain[-1], sequencer=away.sequencer, nodeset=away.nodeset),)
    )
    home = plan_next(elsewhere, Change(), ALL, Load(), known=ALL)
    assert ZONES[home.sequencer.node_id] == "eu.b"
    assert home.sequencer.node_id in {it.node_id for it in home.nodeset}
    still = plan_next(elsewhere, Change(), but("b1", "b2"), Load(), known=ALL)
    assert still.sequencer == away.sequencer, "nobody is there: it stays where it is"
    moved = plan_next(made(""), Change(near="us"), ALL, Load(), known=ALL)
    assert (moved.sequencer.node_id, moved.near) == ("c1", "us")
    stays = plan_next(record, Change(near=""), ALL, Load(), known=ALL)
    assert (stays.sequencer, stays.near) == (record.open_segment.sequencer, "")
    named = plan_next(record, Change(sequencer=NodeId("c1")), ALL, Load(), known=ALL)
    assert named.sequencer.node_id == "c1", "a person knows better"


def test_where_its_writers_are_is_kept_with_the_log() -> None:
    record = made("eu.b")
    entry = Entry(log_key("orders"), encode_log(record), Version(1))
    assert decode_log(entry) == record
    assert b"near" not in encode_log(made(""))


def test_nodesets_go_where_there_is_room() -> None:
    """Of two nodes with as many segments, the one with more left on its disk; with twice as much it
    gets twice as many. Who has not told counts as the mean; bytes that make no difference make
    none."""
    free = {"a1": 100 * MIB, "a2": 800 * MIB, "b1": 401 * MIB, "b2": 400 * MIB}
    load = room(free)
    alike = [node(name, location="") for name in ZONES]
    chosen = choose_nodeset(alike, replicas=4, load=load)
    assert [it.node_id for it in chosen] == ["a2", "c1", "b1", "b2"]
    counts = dict.fromkeys(ZONES, 0)
    for _ in range(1_000):
        (one,) = choose_nodeset([node("a1"), node("a2"), node("b2")], replicas=1, load=load)
        load.replicas[one.node_id] += 1
        counts[one.node_id] += 1
    assert counts["a2"] == pytest.approx(8 * counts["a1"], rel=0.05)
    assert counts["b2"] == pytest.approx(4 * counts["a1"], rel=0.05)


def test_a_full_disk_gets_nothing_while_another_has_room() -> None:
    free = {"a1": 0, "a2": 1 * MIB}
    load = room(free)
    load.replicas[NodeId("a2")] = 100_000
    (one,) = choose_nodeset([node("a1"), node("a2")], replicas=1, load=load)
    assert one.node_id == "a2"


def test_a_spread_goes_before_room_and_nearness() -> None:
    """However full a zone is, an append that must be on two of them is."""
    free = {"c1": 1}
    load = room({it: free.get(it, 1_000 * MIB) for it in ZONES})
    found = choose_nodeset(but("b1", "b2"), replicas=3, load=load, spread=(("zone", 2),))
    assert {it.location for it in found} == {"eu.a", "us.c"}
