"""What a log's next segment is, and what becomes of segments whose log servers go away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest

from metadata.core import Load, check_chain_change
from metadata.quorum import QuorumRule
from metadata.reconfiguration import (
    Change,
    NodeUse,
    Plan,
    check_drain,
    choose_replacements,
    end_segment,
    plan_next,
    replica_state,
)
from metadata.records import LogRecord, LostRange, NodeRecord, Replica, Segment, Spread
from sharedlog.errors import InvalidArgument, LogUnavailable
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId

ZONE_2: Spread = (("zone", 2),)


def node(name: str, location: str = "", **fields: Any) -> NodeRecord:
    made = NodeRecord(
        node_id=NodeId(name),
        generation=Generation(1),
        storage_id=StorageId(f"store-{name}"),
        address=f"{name}:1",
        http_address="",
        location=location,
        roles=("log-server", "sequencer"),
    )
    return replace(made, **fields)


def nodes(names: str) -> list[NodeRecord]:
    return [node(name) for name in names]


def replicas(names: str, location: str = "") -> tuple[Replica, ...]:
    return tuple(
        Replica(node_id=NodeId(n), storage_id=StorageId(f"store-{n}"), location=location)
        for n in names
    )


def log(names: str = "abc", write_quorum: int = 2, spread: Spread = ()) -> LogRecord:
    """A log with a closed segment [0, 10) and an open one, both on the nodes `names`."""
    closed = Segment(
        index=0,
        base=Offset(0),
        end=Offset(10),
        sequencer=SequencerId(NodeId(names[0]), Generation(1)),
        nodeset=replicas(names),
        write_quorum=write_quorum,
        spread=spread,
        timestamp_ms=50,
    )
    return LogRecord(
        log_id=LogId(7),
        name="orders",
        replicas=len(names),
        write_quorum=write_quorum,
        created_ms=1,
        create_nonce="nonce",
        chain=(closed, replace(closed, index=1, base=Offset(10), end=None, timestamp_ms=60)),
        spread=spread,
    )


def avoiding(*names: str) -> Change:
    return Change(avoid=frozenset(NodeId(name) for name in names))


def names_of(nodeset: Sequence[Replica]) -> str:
    return "".join(replica.node_id for replica in nodeset)


# ---------------------------------------------------------------------- the next segment


def test_nothing_moves_without_need() -> None:
    """Every member that can go on does, however loaded it is, and so does the sequencer."""
    load = Load()
    load.replicas[NodeId("b")] = load.sequencers[NodeId("a")] = 1_000
    plan = plan_next(log(), Change(), nodes("abcdef"), load)
    assert plan == Plan(
        replicas=3,
        write_quorum=2,
        spread=(),
        nodeset=log().open_segment.nodeset,
        sequencer=SequencerId(NodeId("a"), Generation(1)),
    )


def test_a_dead_member_is_replaced_by_the_least_loaded_node_in_its_place() -> None:
    load = Load()
    load.replicas.update({NodeId("d"): 5, NodeId("e"): 4, NodeId("f"): 9})
    plan = plan_next(log(), avoiding("b"), nodes("abcdef"), load)
    assert names_of(plan.nodeset) == "aec"
    assert plan.stopgaps == frozenset()


@pytest.mark.parametrize("dead", list("abc"))
def test_a_three_node_cluster_fails_over_with_one_node_dead(dead: str) -> None:
    """With nobody better, a dead member stays: its store may come back. The log goes on."""
    alive = [it for it in nodes("abc") if it.node_id != dead]
    plan = plan_next(log(), avoiding(dead), alive, Load(), known=nodes("abc"))
    assert names_of(plan.nodeset) == "abc"
    assert plan.stopgaps == {dead}
    assert plan.sequencer.node_id != dead
    again = plan_next(log(), avoiding(dead), nodes("abc"), Load())  # its death is not known yet
    assert again == plan


@pytest.mark.parametrize(
    "third",
    [node("c", storage_id=StorageId("new"), state="draining"), node("c", state="data-loss")],
)
def test_a_lost_store_stays_a_member_rather_than_stop_the_log(third: NodeRecord) -> None:
    """Promise 6: a write quorum is up, so the log goes on, though one store is gone for good."""
    restarted = node("a", generation=Generation(2))
    plan = plan_next(log(), Change(), [restarted, *nodes("b"), third], Load())
    assert plan.nodeset == log().open_segment.nodeset  # by the old store's id
    assert plan.stopgaps == {"c"}
    assert plan.sequencer.generation == 2


def test_a_wiped_node_is_a_new_member() -> None:
    """Field note 20: the same node with another store is another log server, at once usable."""
    wiped = node("c", storage_id=StorageId("fresh"))
    plan = plan_next(log(), Change(), [*nodes("ab"), wiped], Load())
    assert plan.nodeset[2] == Replica(node_id=NodeId("c"), storage_id=StorageId("fresh"))
    assert plan.stopgaps == frozenset()


def test_stopgaps_in_their_order() -> None:
    """A draining node that answers before one that does not, that one before a lost store."""
    record = log("abcde", write_quorum=3)
    known = [
        *nodes("ab"),
        node("c", state="data-loss"),
        node("d"),
        node("e", state="draining"),
    ]
    alive = [it for it in known if it.node_id != "d"]
    three = plan_next(record, Change(replicas=3), alive, Load(), known=known)
    assert (names_of(three.nodeset), sorted(three.stopgaps)) == ("abe", ["e"])
    four = plan_next(record, Change(replicas=4), alive, Load(), known=known)
    assert (names_of(four.nodeset), sorted(four.stopgaps)) == ("abde", ["d", "e"])
    five = plan_next(record, Change(), alive, Load(), known=known)
    assert (names_of(five.nodeset), sorted(five.stopgaps)) == ("abcde", ["c", "d", "e"])


def test_without_a_write_quorum_that_answers_there_is_no_plan() -> None:
    """A segment that could commit nothing is not begun; the error says what is missing."""
    with pytest.raises(LogUnavailable, match=r"a write quorum of 2 needs.*1 that could be used is"):
        plan_next(log(), Change(), nodes("a"), Load(), known=nodes("abc"))
    with pytest.raises(LogUnavailable, match="5 replicas need 5 log servers; 4 of this cluster"):
        plan_next(log(), Change(replicas=5), nodes("abcd"), Load())
    members = [replace(it, roles=("log-server",)) for it in nodes("abc")]
    with pytest.raises(LogUnavailable, match="no node with the role sequencer"):
        plan_next(log(), Change(), members, Load())


def test_every_choice_of_the_living_that_can_go_on_does() -> None:
    """Over all sets of living nodes of a five-node cluster: there is a plan exactly if two of
    three members, or spares for them, answer; its nodeset has three, and a write quorum answers."""
    cluster = nodes("abcde")
    for count in range(6):
        for alive in combinations(cluster, count):
            if count < 2:
                with pytest.raises(LogUnavailable):
                    plan_next(log(), Change(), alive, Load(), known=cluster)
                continue
            plan = plan_next(log(), Change(), alive, Load(), known=cluster)
            there = {it.node_id for it in alive}
            answering = [i for i, it in enumerate(plan.nodeset) if it.node_id in there]
            assert len({it.node_id for it in plan.nodeset}) == 3
            assert len(answering) == min(count, 3)
            assert QuorumRule.make(plan.nodeset, 2).is_write_quorum(answering)
            assert plan.sequencer.node_id in there
            kept = there & {it.node_id for it in log().open_segment.nodeset}
            assert kept <= {it.node_id for it in plan.nodeset}


def test_the_sequencer_stays_or_goes_to_the_least_loaded_member() -> None:
    load = Load()
    load.sequencers.update({NodeId("b"): 3, NodeId("c"): 2, NodeId("d"): 9})
    away = Change(not_sequencer=frozenset({NodeId("a")}))
    plan = plan_next(log(), away, nodes("abcd"), load)
    assert names_of(plan.nodeset) == "abc"  # it stays a member: it is back in a moment
    assert plan.sequencer == SequencerId(NodeId("c"), Generation(1))
    restarted = [node("a", generation=Generation(2)), *nodes("bc")]
    plan = plan_next(log(), Change(), restarted, load)
    assert plan.sequencer == SequencerId(NodeId("a"), Generation(2))
    draining = [node("a", state="draining"), *nodes("bcd")]
    assert plan_next(log(), Change(), draining, load).sequencer.node_id == "c"


def test_named_sequencer() -> None:
    alive = [*nodes("abcd"), node("e", roles=("log-server",)), node("f", state="draining")]

    def named(name: str) -> Change:
        return Change(sequencer=NodeId(name), avoid=frozenset({NodeId(name)}))

    plan = plan_next(log(), named("d"), alive, Load())
    assert (plan.sequencer.node_id, names_of(plan.nodeset)) == ("d", "abc")
    for name, reason in (("x", "no node 'x'"), ("e", "no sequencer"), ("f", "is draining")):
        with pytest.raises(InvalidArgument, match=reason):
            plan_next(log(), named(name), alive, Load())
    with pytest.raises(LogUnavailable, match="node g does not answer"):
        plan_next(log(), named("g"), alive, Load(), known=nodes("g"))


def test_named_nodeset() -> None:
    alive = [*nodes("abcd"), node("e", roles=("sequencer",)), node("f", state="draining")]

    def named(names: str, **more: Any) -> Change:
        return Change(nodeset=tuple(NodeId(name) for name in names), **more)

    assert names_of(plan_next(log(), named("dba"), alive, Load()).nodeset) == "dba"
    plan = plan_next(log(), named("ad", replicas=2), alive, Load())
    assert (plan.replicas, plan.write_quorum, names_of(plan.nodeset)) == (2, 2, "ad")
    for names, reason in (
        ("ab", "names 2 nodes for 3 replicas"),
        ("aab", "names a node twice"),
        ("abx", "no node 'x'"),
        ("abe", "e is no log server"),
        ("abf", "f is draining"),
    ):
        with pytest.raises(InvalidArgument, match=reason):
            plan_next(log(), named(names), alive, Load())
    with pytest.raises(LogUnavailable, match="node g does not answer"):
        plan_next(log(), named("abg"), alive, Load(), known=nodes("g"))
    with pytest.raises(InvalidArgument, match="zone:2: the log servers are in 1"):
        plan_next(log(), named("abc", spread=ZONE_2), alive, Load())


def test_replicas_and_quorum() -> None:
    """Another number of replicas means its majority unless a quorum is named; the same keeps it."""
    all_of_them = log("abc", write_quorum=3)
    alive = nodes("abcde")
    plan = plan_next(all_of_them, Change(replicas=3), alive, Load())
    assert plan.write_quorum == 3
    plan = plan_next(all_of_them, Change(replicas=5), alive, Load())
    assert (plan.write_quorum, names_of(plan.nodeset)) == (3, "abcde")
    plan = plan_next(log(), Change(replicas=5, write_quorum=4), alive, Load())
    assert (plan.replicas, plan.write_quorum) == (5, 4)
    for wrong in (Change(write_quorum=1), Change(replicas=4, write_quorum=2), Change(replicas=8)):
        with pytest.raises(InvalidArgument):
            plan_next(log(), wrong, alive, Load())


def test_who_orders_stays_when_a_log_shrinks() -> None:
    record = log("abcde", write_quorum=3)
    load = Load()
    load.replicas[NodeId("a")] = 1_000
    plan = plan_next(record, Change(replicas=3), nodes("abcde"), load)
    assert (names_of(plan.nodeset), plan.sequencer.node_id) == ("abc", "a")


def test_the_next_segment_is_spread_as_widely_as_can_be() -> None:
    """Over more zones than the spread asks for, so that any of them can go; members stay where that
    makes no difference."""
    zones = [node("a", "x"), node("b", "x"), node("c", "x"), node("d", "y"), node("e", "z")]
    plan = plan_next(log(), Change(spread=ZONE_2), zones, Load())
    assert (names_of(plan.nodeset), plan.spread) == ("ade", ZONE_2)
    assert [it.location for it in plan.nodeset] == ["x", "y", "z"]  # as they are labelled now
    plan = plan_next(log(), Change(spread=(("zone", 3),)), zones, Load())
    assert names_of(plan.nodeset) == "ade"
    assert names_of(plan_next(log(), Change(), zones[:4], Load()).nodeset) == "abd"
    with pytest.raises(LogUnavailable, match="zone:3: the log servers are in 2: x, y"):
        plan_next(log(), Change(spread=(("zone", 3),)), zones[:4], Load())
    with pytest.raises(InvalidArgument, match="zone:4 can't be had"):
        plan_next(log(), Change(spread=(("zone", 4),)), zones, Load())


def test_a_spread_must_be_had_by_those_that_answer() -> None:
    """A zone that is away is no zone to commit in, though its old member could fill the place."""
    record = log("abc", spread=ZONE_2)
    open_segment = replace(record.open_segment, nodeset=(*replicas("ab", "x"), *replicas("c", "y")))
    record = replace(record, chain=(record.chain[0], open_segment))
    known = [node("a", "x"), node("b", "x"), node("c", "y"), node("d", "x")]
    alive = [it for it in known if it.node_id != "c"]
    with pytest.raises(LogUnavailable, match="zone:2: the log servers are in 1: x"):
        plan_next(record, Change(), alive, Load(), known=known)
    plan = plan_next(record, Change(spread=()), alive, Load(), known=known)
    assert names_of(plan.nodeset) == "abd"


# ---------------------------------------------------------------------- the new record


def test_a_segment_ends_and_the_planned_one_begins() -> None:
    record = log()
    plan = plan_next(record, Change(replicas=5, spread=(("node", 4),)), nodes("abcde"), Load())
    new = end_segment(record, end=Offset(25), timestamp_ms=70, plan=plan, nonce="n")
    check_chain_change(record, new)
    ended, opened = new.chain[1:]
    assert ended == replace(record.open_segment, end=Offset(25))
    assert (opened.index, opened.base, opened.end, opened.timestamp_ms) == (2, 25, None, 70)
    assert (opened.nodeset, opened.write_quorum) == (plan.nodeset, 3)
    assert (new.replicas, new.write_quorum, new.spread) == (5, 3, (("node", 4),))
    assert new.change_nonce == "n"
    assert new.chain[0] is record.chain[0]


def test_an_empty_segment_is_replaced() -> None:
    """Field note 15: the index grows, the chain does not; its timestamp and losses go on."""
    record = log()
    lost = LostRange(first=Offset(10), end=Offset(10), accepted_ms=5, reason="fire")
    plan = plan_next(record, Change(), nodes("abc"), Load())
    new = end_segment(record, end=Offset(10), timestamp_ms=0, plan=plan, nonce="n", lost=[lost])
    check_chain_change(record, new)
    assert len(new.chain) == 2
    assert (new.open_segment.index, new.open_segment.base) == (2, 10)
    assert (new.open_segment.timestamp_ms, new.open_segment.lost) == (60, (lost,))
    again = end_segment(new, end=Offset(10), timestamp_ms=0, plan=plan, nonce="m")
    check_chain_change(new, again)
    assert again.open_segment.lost == (lost,)
    ended = end_segment(again, end=Offset(12), timestamp_ms=0, plan=plan, nonce="o")
    check_chain_change(again, ended)
    assert [it.lost for it in ended.chain] == [(), (lost,), ()]


def test_replacement_servers_join_with_the_end() -> None:
    record = log()
    plan = plan_next(record, Change(), nodes("abd"), Load())
    joined = choose_replacements(record.open_segment, {2}, nodes("abd"), Load())
    lost = LostRange(first=Offset(12), end=Offset(14), accepted_ms=5, reason="fire")
    new = end_segment(
        record,
        end=Offset(20),
        timestamp_ms=0,
        plan=plan,
        nonce="n",
        nodeset_of_ended=joined,
        lost=[lost],
    )
    check_chain_change(record, new)
    assert (names_of(new.chain[1].nodeset), new.chain[1].lost) == ("abd", (lost,))


# ---------------------------------------------------------------------- replicas and replacements


@pytest.mark.parametrize(
    ("registered", "state"),
    [
        (None, "away"),
        (node("a"), "present"),
        (node("a", state="draining"), "draining"),
        (node("a", state="gone"), "lost"),
        (node("a", state="data-loss"), "lost"),
        (node("a", storage_id=StorageId("other")), "lost"),
        (node("a", storage_id=StorageId("other"), state="draining"), "lost"),
        (node("a", storage_id=StorageId(""), roles=("sequencer",)), "away"),
        (node("a", storage_id=StorageId(""), past_storage_id=StorageId("store-a")), "away"),
        (node("a", storage_id=StorageId(""), past_storage_id=StorageId("other")), "lost"),
        (node("a", storage_id=StorageId(""), state="data-loss"), "lost"),
    ],
    ids=str,
)
def test_states_of_a_replica(registered: NodeRecord | None, state: str) -> None:
    """Field note 20: another store at the same node is another log server; field note 5: silence
    is never loss."""
    assert replica_state(replicas("a")[0], registered) == state


def test_replacements_stand_in_the_places_of_those_that_are_lost() -> None:
    segment = replace(
        log("abc", spread=ZONE_2).chain[0],
        nodeset=(*replicas("a", "x"), *replicas("b", "y"), *replicas("c", "x")),
    )
    alive = [node("a", "x"), node("d", "y"), node("e", "x"), node("f", "x"), node("g", "z")]
    load = Load()
    load.replicas.update({NodeId("d"): 9, NodeId("e"): 9})
    assert names_of(choose_replacements(segment, {1}, alive, load)) == "adc"  # the same zone
    assert names_of(choose_replacements(segment, {2}, alive, load)) == "abf"  # and least loaded
    assert names_of(choose_replacements(segment, {1, 2}, alive, load)) == "adf"
    without_y = [it for it in alive if it.location != "y"]
    assert names_of(choose_replacements(segment, {1}, without_y, load)) == "agc"  # for the spread


def test_replacements_that_can_not_be_had() -> None:
    segment = log("abc", spread=ZONE_2).chain[0]
    segment = replace(segment, nodeset=(*replicas("ab", "x"), *replicas("c", "y")))
    with pytest.raises(LogUnavailable, match="needs 1 other log servers"):
        choose_replacements(segment, {2}, [node("a", "x"), node("b", "x")], Load())
    with pytest.raises(LogUnavailable, match="lack its spread zone:2"):
        choose_replacements(segment, {2}, [node("d", "x")], Load())
    with pytest.raises(LogUnavailable):
        choose_replacements(segment, {2}, [node("c", "y"), node("d", "y", state="gone")], Load())


def test_a_wiped_node_may_replace_itself() -> None:
    fresh = node("c", storage_id=StorageId("fresh"))
    found = choose_replacements(log().chain[0], {2}, [*nodes("ab"), fresh], Load())
    assert [it.storage_id for it in found] == ["store-a", "store-b", "fresh"]


# ---------------------------------------------------------------------- drains


def drain(
    record: LogRecord, name: str, cluster: Sequence[NodeRecord], **more: Any
) -> list[NodeUse]:
    found = next(it for it in cluster if it.node_id == name)
    return check_drain([record], found, cluster, **more)


def test_a_drain_that_is_safe_names_what_there_is_to_move() -> None:
    assert drain(log(), "a", nodes("abcd")) == [
        NodeUse(log="orders", segments=2, open_segments=1, is_sequencer=True, obstacle="")
    ]
    assert drain(log(), "b", nodes("abcd"))[0].is_sequencer is False
    assert drain(log(), "d", nodes("abcd")) == []


def test_a_drain_looks_at_every_segment() -> None:
    """Field note 33: a node that the open segment does without may still hold history."""
    record = log()
    moved = replace(record.open_segment, nodeset=replicas("abd"))
    record = replace(record, chain=(record.chain[0], moved))
    cluster = nodes("abcd")
    assert drain(record, "c", cluster) == [
        NodeUse(log="orders", segments=1, open_segments=0, is_sequencer=False, obstacle="")
    ]
    use = drain(record, "c", cluster, alive={"a", "b", "c"})[0]
    assert "segment 0 needs 1 other log servers" in use.obstacle
    alone = drain(log(), "c", nodes("abc"))[0]
    assert "the next segment: 3 replicas need 3 log servers" in alone.obstacle


def test_a_drain_needs_enough_copies_to_copy_from() -> None:
    """Every batch is on some write quorum; only a seal quorum that answers surely has them all."""
    record = replace(log(), chain=(log().chain[0], replace(log().open_segment, base=Offset(10))))
    cluster = nodes("abcde")
    assert drain(record, "c", cluster, alive={"b", "c", "d", "e"})[0].obstacle == ""
    use = drain(record, "c", cluster, alive={"c", "d", "e"})[0]
    assert "could be copied from 1 of its 3 log servers only" in use.obstacle
    use = drain(record, "c", cluster, alive={"b", "d", "e", "c"}, store_lost=True)[0]
    assert "could be copied from 1 of its 3 log servers only" in use.obstacle
    assert drain(record, "c", cluster, store_lost=True)[0].obstacle == ""


def test_a_log_that_wants_fewer_replicas_gives_one_up_without_a_successor() -> None:
    record = log("abcd", write_quorum=3)
    open_segment = replace(record.open_segment, nodeset=replicas("abc"), write_quorum=2)
    record = replace(record, replicas=3, write_quorum=2, chain=(record.chain[0], open_segment))
    assert drain(record, "d", nodes("abcd"))[0].obstacle == ""


def test_only_the_present_store_counts() -> None:
    """Segments that name a store that the node once had are not moved from it: that one is lost."""
    wiped = node("c", storage_id=StorageId("fresh"))
    assert drain(log(), "c", [*nodes("ab"), wiped]) == []


def test_a_node_that_only_orders_can_be_drained_if_another_can() -> None:
    orders = node("s", roles=("sequencer",), storage_id=StorageId(""))
    record = log()
    open_segment = replace(record.open_segment, sequencer=SequencerId(NodeId("s"), Generation(1)))
    record = replace(record, chain=(record.chain[0], open_segment))
    assert drain(record, "s", [*nodes("abc"), orders]) == [
        NodeUse(log="orders", segments=0, open_segments=0, is_sequencer=True, obstacle="")
    ]
    servers = [replace(it, roles=("log-server",)) for it in nodes("abc")]
    assert "role sequencer" in drain(record, "s", [*servers, orders])[0].obstacle
