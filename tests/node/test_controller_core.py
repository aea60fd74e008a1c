"""The controller's decisions, as tables; and the bookkeeping below them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from metadata.core import Load
from metadata.reconfiguration import Change, plan_next
from metadata.records import LogRecord, NodeRecord, Replica, Segment, Spread
from metadata.store import Version
from node.controller.backfill import Mended
from node.controller.config import ControllerConfig
from node.controller.core import (
    Health,
    Move,
    Picture,
    condition_of,
    drain_obstacle,
    drain_state,
    is_gone,
    leaving,
    next_move,
    next_spread,
    to_copy,
    to_roll,
    without_sequencer,
)
from node.controller.index import SegmentIndex
from node.controller.ledger import Ledger
from node.controller.metrics import ControllerMetrics
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId

CONFIG = ControllerConfig()
NOW_S = 10_000.0


def node(
    name: str, *, generation: int = 1, store: str = "", state: str = "read-write"
) -> NodeRecord:
    return NodeRecord(
        node_id=NodeId(name),
        generation=Generation(generation),
        storage_id=StorageId(store or f"store of {name}"),
        address=f"{name}:1",
        http_address="",
        location="",
        roles=("log-server", "sequencer"),
        state=state,
    )


STORELESS = replace(
    node("n3", generation=2),
    storage_id=StorageId(""),
    past_storage_id=StorageId("store of n3"),
    roles=("sequencer",),
)
"""It was started without the role log-server; its disk is intact."""


def segment(index: int, base: int, end: int | None, nodes: str, sequencer: str = "") -> Segment:
    names = nodes.split()
    return Segment(
        index=index,
        base=Offset(base),
        end=None if end is None else Offset(end),
        sequencer=SequencerId(NodeId(sequencer or names[0]), Generation(1)),
        nodeset=tuple(
            Replica(node_id=NodeId(it), storage_id=StorageId(f"store of {it}")) for it in names
        ),
        write_quorum=len(names) // 2 + 1,
    )


def log(name: str, *chain: Segment) -> LogRecord:
    return LogRecord(
        log_id=LogId(sum(map(ord, name))),
        name=name,
        replicas=len(chain[-1].nodeset),
        write_quorum=chain[-1].write_quorum,
        created_ms=0,
        create_nonce="",
        chain=chain,
    )


def picture(
    logs: list[LogRecord], nodes: list[NodeRecord], *, away: dict[str, float] | None = None
) -> Picture:
    """Everybody up, but for those who have been away for so many seconds."""
    index = SegmentIndex()
    for record in logs:
        index.learn(record, Version(1))
    health = Health(missed_max=3)
    for it in nodes:
        since_s = (away or {}).get(it.node_id)
        if since_s is None:
            health.on_heard(it.node_id, it.generation, NOW_S)
            continue
        if not it.storage_id:
            health.on_heard(it.node_id, it.generation, NOW_S - since_s, storeless=True)
            health.on_heard(it.node_id, it.generation, NOW_S, storeless=True)
            continue
        health.on_heard(it.node_id, it.generation, NOW_S - since_s)
        for _ in range(3):
            health.on_missed(it.node_id, NOW_S)
    return Picture(index, {it.node_id: it for it in nodes}, health, NOW_S, CONFIG)


def nodes(*others: NodeRecord, count: int = 4) -> list[NodeRecord]:
    """n1, n2, …, but for those that are given."""
    given = {it.node_id: it for it in others}
    return [given.get(NodeId(f"n{n}"), node(f"n{n}")) for n in range(1, count + 1)]


ONE = log("a", segment(0, 0, 5, "n1 n2 n3"), segment(1, 5, None, "n1 n2 n3"))


@pytest.mark.parametrize(
    ("third", "away_s", "condition", "rolls", "copies"),
    [
        (node("n3"), None, "well", False, False),
        (node("n3"), 5.0, "away", False, False),
        (node("n3"), 60.0, "long-away", True, False),
        (node("n3"), 3_600.0, "given-up", True, True),
        (node("n3", state="draining"), None, "draining", True, True),
        (node("n3", state="data-loss"), None, "lost", True, True),
        (node("n3", state="gone"), 9.0, "lost", True, True),
        (node("n3", generation=2, store="another"), None, "lost", True, True),
        (STORELESS, None, "away", False, False),
        (STORELESS, 60.0, "long-away", True, False),
        (STORELESS, 3_600.0, "given-up", True, True),
        (replace(STORELESS, state="draining"), None, "draining", True, True),
        (replace(STORELESS, state="data-loss"), None, "lost", True, True),
    ],
)
def test_what_becomes_of_a_store(
    third: NodeRecord, away_s: float | None, condition: str, rolls: bool, copies: bool
) -> None:
    """The table of the module's docstring: when it is left, in open and in closed segments."""
    seen = picture([ONE], nodes(third), away={} if away_s is None else {"n3": away_s})
    assert condition_of((NodeId("n3"), StorageId("store of n3")), seen) == condition
    rolled = to_roll(seen)
    assert list(rolled) == (["a"] if rolls else [])
    if rolls:
        # A node with another store than the nodeset names may be used with that, or without it.
        named = third.storage_id == "store of n3"
        assert rolled["a"].avoid == ({"n3"} if named else set())
        assert rolled["a"].uses(ONE.open_segment) == 1
        assert rolled["a"].uses(segment(2, 5, None, "n1 n2 n4")) == 0
    assert to_copy(seen) == ({"a"} if copies else set())
    assert leaving(ONE.chain[0], seen) == ([2] if copies else [])


def test_nothing_is_rolled_without_a_spare() -> None:
    """A reconfiguration that could change nothing is not made: no other node, or none that can
    take the place, for it is full, stopping, draining or no log server."""
    lost = node("n3", store="another")
    declared = node("n3", state="data-loss")
    assert not to_roll(picture([ONE], nodes(declared, count=3)))
    # With a new store it can take the place of its old one.
    assert to_roll(picture([ONE], nodes(lost, count=3)))
    lost = declared
    sequencer_only = replace(node("n4"), roles=("sequencer",), storage_id=StorageId(""))
    for fourth in (node("n4", state="draining"), sequencer_only):
        assert not to_roll(picture([ONE], nodes(lost, fourth)))
    for said in ({"read_only": True}, {"stopping": True}):
        seen = picture([ONE], nodes(lost))
        seen.health.on_heard(NodeId("n4"), Generation(1), NOW_S, **said)
        assert not to_roll(seen)
    assert to_roll(picture([ONE], nodes(lost)))


def test_who_orders_nothing_any_more() -> None:
    """Silent, or followed by another life; a stopping process hands over by itself."""
    assert without_sequencer(picture([ONE], nodes())) == []
    assert without_sequencer(picture([ONE], nodes(), away={"n1": 2.0})) == ["a"]
    assert without_sequencer(picture([ONE], nodes(node("n1", generation=2)))) == ["a"]
    seen = picture([ONE], nodes())
    seen.health.on_heard(NodeId("n1"), Generation(1), NOW_S, stopping=True)
    assert without_sequencer(seen) == []
    assert not is_gone(ONE.open_segment.sequencer, seen)


def test_a_log_without_a_sequencer_is_failed_over_and_not_rolled() -> None:
    """Two procedures for one log at once would only get in each other's way."""
    seen = picture([ONE], nodes(node("n3", state="data-loss")), away={"n1": 100.0})
    assert without_sequencer(seen) == ["a"]
    assert not to_roll(seen)


def test_a_node_counts_as_silent_after_three_heartbeats() -> None:
    """Field note 35: not after one; and one answer makes it well again."""
    health = Health(missed_max=3)
    name = NodeId("n1")
    assert not health.on_missed(name, 1.0)
    assert not health.is_silent(name)
    assert health.on_heard(name, Generation(1), 1.5)
    assert [health.on_missed(name, at) for at in (2.0, 2.5, 3.0, 3.5)] == [
        False,
        False,
        True,
        False,
    ]
    assert health.is_silent(name)
    assert health.away_s(name, 11.5) == 10.0
    assert health.on_heard(name, Generation(1), 12.0), "it is back: news"
    assert not health.on_heard(name, Generation(1), 12.5)
    assert health.on_heard(name, Generation(2), 13.0), "another life: news"
    assert health.away_s(name, 20.0) == 0.0
    assert health.on_gone(name, 20.0), "nobody listens at its address: at once"
    assert health.is_silent(name)
    assert not health.on_gone(name, 20.5)


def balanced(counts: dict[str, int]) -> Picture:
    logs = [
        log(f"{name}-{number}", segment(0, 0, None, "n1 n2 n3", name))
        for name, count in counts.items()
        for number in range(count)
    ]
    return picture(logs, nodes(count=3))


@pytest.mark.parametrize(
    ("counts", "move"),
    [
        ({}, None),
        ({"n1": 2}, None),  # too few to matter
        ({"n1": 3}, ("n1", "n2")),
        ({"n1": 4, "n2": 2, "n3": 2}, None),
        ({"n1": 9, "n2": 5, "n3": 7}, ("n1", "n2")),
        ({"n1": 20, "n2": 17, "n3": 20}, None),  # less than a quarter
        ({"n1": 100, "n2": 74, "n3": 90}, ("n1", "n2")),
    ],
)
def test_when_a_sequencer_is_moved(counts: dict[str, int], move: tuple[str, str] | None) -> None:
    """More than two logs and more than a quarter apart: one log, from the most to the fewest."""
    found = next_move(balanced(counts), ())
    assert (None if found is None else (found.source, found.target)) == move


def test_balance_moves_what_has_a_copy_there_and_has_rested() -> None:
    """Of several logs one that keeps a copy at its new place; none that was moved a moment ago;
    none at all to or from a node that is drained or away."""
    far = [log(f"far{n}", segment(0, 0, None, "n1 n3 n4", "n1")) for n in range(5)]
    near = log("near", segment(0, 0, None, "n1 n2 n3", "n1"))
    there = [log(f"{it}", segment(0, 0, None, f"{it} n1 n3", it)) for it in ("n3", "n4")]
    seen = picture([*far, near, *there], nodes())
    found = next_move(seen, ())
    assert found is not None
    assert (found.name, found.target) == ("near", "n2")
    rested = next_move(seen, {"near"})
    assert rested is not None
    assert rested.name == "far0"
    drained = picture([*far, near, *there], nodes(node("n2", state="draining")))
    other = next_move(drained, ())
    assert other is not None
    assert other.target in {"n3", "n4"}


def test_a_log_comes_home_once_a_node_near_its_writers_is_there() -> None:
    """One at a time, before any balance, and balance takes none away from there."""
    there, away = (
        replace(node(name), location=at) for name, at in (("n2", "eu.a"), ("n3", "us.b"))
    )
    lone = [log(f"lone{n}", segment(0, 0, None, "n1 n2 n3", "n1")) for n in range(5)]
    homesick = replace(log("homesick", segment(0, 0, None, "n1 n3 n4", "n3")), near="eu")
    seen = picture([*lone, homesick], nodes(there, away))
    home = next_move(seen, ())
    assert home == Move("homesick", NodeId("n3"), NodeId("n2"), "n2 is near its writers")
    rested = next_move(seen, {"homesick"})
    assert rested is not None
    assert rested.source == "n1"
    nobody = picture([homesick], nodes(away))
    assert next_move(nobody, ()) is None
    at_home = [
        replace(log(f"near{n}", segment(0, 0, None, "n1 n2 n3", "n2")), near="eu") for n in range(9)
    ]
    assert next_move(picture(at_home, nodes(there, away)), ()) is None


def test_a_log_is_spread_again_once_there_are_more_places() -> None:
    """A zone was away, and two of three copies lie in one zone: another loss would stop the log. It
    keeps its sequencer. Nothing is done without a spread, or where it would not help."""
    zones = {"n1": "eu.a", "n2": "eu.b", "n3": "eu.b", "n4": "eu.c"}
    there = [replace(node(name), location=at) for name, at in zones.items()]

    def placed(names: str, spread: Spread = (("zone", 2),)) -> LogRecord:
        nodeset = tuple(
            Replica(node_id=it.node_id, storage_id=it.storage_id, location=it.location)
            for it in there
            if it.node_id in names.split()
        )
        made = segment(0, 0, None, names, "n2")
        return replace(log("a", replace(made, nodeset=nodeset, spread=spread)), spread=spread)

    tight = placed("n2 n3 n4")
    found = next_spread(picture([tight], nodes(*there)), ())
    assert found is not None
    assert (found.name, found.source, found.target) == ("a", "n2", "n2")
    plan = plan_next(tight, Change(sequencer=NodeId("n2")), there, Load(), known=there)
    assert {it.node_id for it in plan.nodeset} == {"n1", "n2", "n4"}
    assert next_spread(picture([tight], nodes(*there)), {"a"}) is None
    assert next_spread(picture([placed("n1 n2 n4")], nodes(*there)), ()) is None
    assert next_spread(picture([placed("n2 n3 n4", ())], nodes(*there)), ()) is None
    without = replace(there[0], state="draining")
    assert next_spread(picture([tight], nodes(without, *there[1:])), ()) is None


def test_how_far_a_drain_is() -> None:
    """All that names the store, open and closed, and the logs that it orders; nothing: done."""
    draining = node("n3", state="draining")
    two = log("b", segment(0, 0, None, "n1 n2 n4", "n3"))
    seen = picture([ONE, two], nodes(draining))
    state = drain_state(draining, seen.index)
    assert (state.segments, state.sequenced, state.done) == (2, 1, False)
    assert drain_obstacle(draining, seen) == ""
    stuck = picture([ONE], nodes(draining, count=3))
    assert "no other log server can take a copy of a" in drain_obstacle(draining, stuck)
    assert drain_state(draining, picture([], nodes(draining)).index).done
    without = replace(STORELESS, state="draining")
    left = drain_state(without, picture([ONE], nodes(without)).index)
    assert (left.segments, left.done) == (2, False), "the store that it had last counts"


def test_the_index_follows_chains() -> None:
    """Counts by store and by sequencer, after any change; and which logs have changed since."""
    index = SegmentIndex()
    index.mark(ONE, Version(1))
    names, serial = index.changed_since(0)
    assert names == ["a"]
    assert index.changed_since(serial) == ([], serial)
    third = (NodeId("n3"), StorageId("store of n3"))
    assert (index.store(third).segments, len(index)) == (2, 1)
    moved = log(
        "a",
        segment(0, 0, 5, "n1 n2 n4"),
        segment(1, 5, 9, "n1 n2 n3"),
        segment(2, 9, None, "n1 n2 n4", "n2"),
    )
    index.mark(moved, Version(2))
    index.mark(ONE, Version(1))  # told late
    assert index.changed_since(serial)[0] == ["a"]
    assert index.store(third).segments == 1
    assert index.store(third).open_logs == set()
    assert index.ordered_by(NodeId("n2")) == {"a"}
    assert index.ordered_by(NodeId("n1")) == set()
    assert index.closed_lacking("a", lambda store: store != third) == 1
    assert index.closed_lacking("a", lambda store: store[0] != "n1") == 2
    assert {node_id for node_id, _ in index.stores()} == {"n1", "n2", "n3", "n4"}


def mended(**values: Any) -> Mended:
    return Mended(upto=Offset(5), **values)


def test_the_ledger_remembers_what_is_complete() -> None:
    """Due once; again when the nodeset has changed, when one that was absent is back, when copying
    failed, and when everything is to be looked at anew."""
    ledger = Ledger()
    closed = ONE.chain[0]
    back: set[str] = set()

    def due(it: Segment = closed) -> bool:
        return ledger.is_due(ONE, it, lambda replica: replica.node_id in back)

    assert due()
    ledger.on_mended(ONE, closed, mended(complete=True))
    assert not due()
    assert due(replace(closed, nodeset=closed.nodeset[:2]))
    ledger.on_mended(ONE, closed, mended(away=(NodeId("n3"),)))
    assert not due()
    assert ledger.lacking == 1
    back = {"n2"}
    assert not due()
    back = {"n3"}
    assert due()
    ledger.on_mended(ONE, closed, mended(complete=True))
    assert ledger.lacking == 0
    ledger.forget_all()
    assert due()
    ledger.on_mended(ONE, closed, mended(errors=("full",)))
    assert due()


def test_the_ledger_sums_up_what_is_lacking() -> None:
    """Field note 31: of closed segments as last found, not of open ones."""
    ledger, closed = Ledger(), ONE.chain[0]
    ledger.on_mended(ONE, closed, mended(lacking=5, away=(NodeId("n3"),)))
    two = replace(ONE, log_id=LogId(ONE.log_id + 1))
    ledger.on_mended(two, closed, mended(lacking=2, errors=("full",)))
    assert (ledger.lacking, ledger.lacking_records) == (2, 7)
    ledger.on_mended(ONE, closed, mended(lacking=3, away=(NodeId("n3"),)))
    ledger.on_mended(ONE, ONE.open_segment, mended(lacking=9))
    assert (ledger.lacking, ledger.lacking_records) == (2, 5)
    ledger.on_mended(ONE, closed, mended(complete=True))
    assert (ledger.lacking, ledger.lacking_records) == (1, 2)
    ledger.forget_all()
    assert (ledger.lacking, ledger.lacking_records) == (0, 0)


def test_who_is_not_the_controller_any_more_tells_nothing() -> None:
    """Another node tells of the cluster's backlog then, and both together would count it twice."""
    registry = CollectorRegistry()
    metrics = ControllerMetrics(registry)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"sharedlog_controller_{name}", labels)

    metrics.leads.set(1)
    metrics.segments_lacking.set(4)
    metrics.records_lacking.set(40)
    metrics.waiting({"tend": 3, "failover": 0})
    assert (value("waiting_logs", work="tend"), value("waiting_logs", work="failover")) == (3, 0)
    metrics.resigned()
    assert [value(it) for it in ("leads", "segments_lacking", "records_lacking")] == [0, 0, 0]
    assert value("waiting_logs", work="tend") is None


def test_a_loss_is_told_once_all_were_asked() -> None:
    """While a replica is away it may have what the others lack."""
    ledger = Ledger()
    gap = ((Offset(1), Offset(2)),)
    ledger.on_mended(ONE, ONE.chain[0], mended(nobody=gap, away=(NodeId("n3"),)))
    assert ledger.losses(9) == []
    ledger.on_mended(ONE, ONE.chain[0], mended(nobody=gap, lost=(NodeId("n3"),)))
    assert ledger.losses(9) == [(ONE.log_id, {0: gap})]
    ledger.on_mended(ONE, ONE.chain[0], mended(complete=True))
    assert ledger.losses(9) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"lease_ttl_s": 2.0},
        {"heartbeat_s": 0.0},
        {"missed_max": 0},
        {"failovers_max": 0},
        {"backfill_bytes_per_s": 0},
        {"scrub_bytes_per_s": -1},
        {"rereplicate_after_s": 1.0},
        {"balance_pause_s": -1.0},
    ],
)
def test_settings_that_cannot_be_right(wrong: dict[str, Any]) -> None:
    """Refused with a reason; the defaults are right."""
    ControllerConfig().validate()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ControllerConfig(**wrong).validate()
