"""The pure rules: names, quorums, placement, chains."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from metadata.core import (
    Load,
    check_chain,
    check_chain_change,
    check_log_name,
    check_node_id,
    check_quorum,
    choose_nodeset,
    choose_sequencer,
    count_load,
    effective_write_quorum,
    majority,
    new_log_record,
    next_generation,
)
from metadata.records import LogRecord, NodeRecord, Replica, Segment
from sharedlog.errors import InvalidArgument, InvalidLogName, LogUnavailable
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId
from sharedlog.limits import REPLICAS_MAX


def node(
    name: str,
    *,
    roles: tuple[str, ...] = ("log-server", "sequencer"),
    location: str = "",
    generation: int = 1,
) -> NodeRecord:
    return NodeRecord(
        node_id=NodeId(name),
        generation=Generation(generation),
        storage_id=StorageId(f"store-{name}") if "log-server" in roles else StorageId(""),
        address=f"{name}:1",
        http_address="",
        location=location,
        roles=roles,
    )


def segment(index: int, base: int, end: int | None = None, nodes: str = "abc") -> Segment:
    return Segment(
        index=index,
        base=Offset(base),
        end=None if end is None else Offset(end),
        sequencer=SequencerId(NodeId("a"), Generation(index + 1)),
        nodeset=tuple(Replica(node_id=NodeId(n), storage_id=StorageId(n)) for n in nodes),
        write_quorum=len(nodes) // 2 + 1,
    )


def log(*chain: Segment) -> LogRecord:
    return LogRecord(
        log_id=LogId(7),
        name="orders",
        replicas=3,
        write_quorum=2,
        created_ms=1,
        create_nonce="nonce",
        chain=chain,
    )


@pytest.mark.parametrize("name", ["a", "0", "orders", "a/b.c_d-e", "A" * 255])
def test_log_names_that_are_taken(name: str) -> None:
    check_log_name(name)


@pytest.mark.parametrize("name", ["", ".a", "/a", "-a", "_a", "a b", "ä", "a\n", "a\0", "A" * 256])
def test_log_names_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidLogName):
        check_log_name(name)


@pytest.mark.parametrize("node_id", ["", "a/b", "a b", "n1\n", "x" * 65])
def test_node_ids_that_are_refused(node_id: str) -> None:
    check_node_id("n1")
    with pytest.raises(InvalidArgument):
        check_node_id(node_id)


def sets(replicas: int, size: int) -> list[frozenset[int]]:
    return [frozenset(found) for found in combinations(range(replicas), size)]


@pytest.mark.parametrize("replicas", range(1, REPLICAS_MAX + 1))
def test_a_quorum_is_taken_exactly_if_who_can_append_can_reconfigure(replicas: int) -> None:
    """Field note 4, over all sets: taken iff write quorums meet and each contains a seal quorum.

    A seal quorum is found here by its meaning, a set that every write quorum meets, not by a
    formula.
    """
    for write_quorum in range(-1, replicas + 2):
        possible = 1 <= write_quorum <= replicas
        writes = sets(replicas, write_quorum) if possible else []
        meet = all(one & other for one in writes for other in writes)
        contains_seal = all(all(quorum & other for other in writes) for quorum in writes)
        wanted = possible and meet and contains_seal
        if wanted:
            check_quorum(replicas=replicas, write_quorum=write_quorum)
        else:
            with pytest.raises(InvalidArgument):
                check_quorum(replicas=replicas, write_quorum=write_quorum)


@pytest.mark.parametrize("replicas", range(1, REPLICAS_MAX + 1))
def test_the_majority_is_the_least_quorum_taken(replicas: int) -> None:
    least = majority(replicas)
    assert effective_write_quorum(replicas=replicas, write_quorum=0) == least
    check_quorum(replicas=replicas, write_quorum=least)
    with pytest.raises(InvalidArgument):
        check_quorum(replicas=replicas, write_quorum=least - 1)


@pytest.mark.parametrize("replicas", [-1, 0, REPLICAS_MAX + 1])
def test_replica_counts_that_are_refused(replicas: int) -> None:
    with pytest.raises(InvalidArgument, match="a log has 1 to 7"):
        effective_write_quorum(replicas=replicas, write_quorum=0)


def test_a_refused_quorum_says_why() -> None:
    with pytest.raises(InvalidArgument, match=r"no majority.*the least is 3"):
        check_quorum(replicas=4, write_quorum=2)
    with pytest.raises(InvalidArgument, match="can't be had from 2 replicas"):
        check_quorum(replicas=2, write_quorum=3)


def names(nodeset: tuple[Replica, ...]) -> list[str]:
    return [replica.node_id for replica in nodeset]


def test_the_asked_for_node_comes_first_then_the_least_loaded() -> None:
    alive = [node(name) for name in "abcd"]
    load = Load()
    load.replicas.update({NodeId("a"): 5, NodeId("b"): 1, NodeId("d"): 9})
    assert names(choose_nodeset(alive, replicas=2, load=load)) == ["c", "b"]
    chosen = choose_nodeset(alive, replicas=3, load=load, prefer=NodeId("d"))
    assert names(chosen) == ["d", "c", "b"]
    assert chosen[0].storage_id == "store-d"


def test_replicas_are_spread_over_locations_before_load() -> None:
    alive = [node("a", location="x"), node("b", location="x"), node("c", location="y")]
    load = Load()
    load.replicas[NodeId("c")] = 100
    chosen = choose_nodeset(alive, replicas=2, load=load)
    assert names(chosen) == ["a", "c"]
    assert [replica.location for replica in chosen] == ["x", "y"]


def test_only_log_servers_hold_and_only_sequencers_order() -> None:
    alive = [node("a", roles=("sequencer",)), node("b", roles=("log-server",)), node("c")]
    nodeset = choose_nodeset(alive, replicas=2, load=Load(), prefer=NodeId("a"))
    assert names(nodeset) == ["b", "c"]
    found = choose_sequencer(alive, nodeset=nodeset, load=Load(), prefer=NodeId("b"))
    assert found.node_id == "c"  # a member of the nodeset goes before node a
    with pytest.raises(LogUnavailable, match="3 log servers; 2 of this cluster are alive"):
        choose_nodeset(alive, replicas=3, load=Load())
    with pytest.raises(LogUnavailable, match="role sequencer"):
        choose_sequencer(alive[1:2], nodeset=nodeset, load=Load())


def test_logs_made_one_after_the_other_share_the_load_evenly() -> None:
    """Twelve logs on four nodes with three replicas: nine copies and three sequencers each."""
    alive = [node(name, generation=4) for name in "abcd"]
    logs: list[LogRecord] = []
    for index in range(12):
        record = new_log_record(
            name=f"log{index}",
            log_id=LogId(index),
            replicas=3,
            write_quorum=0,
            alive=alive,
            load=count_load(logs),
            created_ms=5,
            create_nonce="",
        )
        assert record.write_quorum == 2
        assert record.open_segment.sequencer.generation == 4
        assert record.open_segment.sequencer.node_id in names(record.open_segment.nodeset)
        logs.append(record)
    load = count_load(logs)
    assert set(load.replicas.values()) == {9}
    assert set(load.sequencers.values()) == {3}


def test_generations_grow_by_one_from_one() -> None:
    assert next_generation(None) == 1
    assert next_generation(node("a", generation=41)) == 42


def test_chains_that_hold() -> None:
    check_chain(log(segment(0, 0)))
    check_chain(log(segment(0, 0, 10), segment(3, 10, 11), segment(4, 11)))


@pytest.mark.parametrize(
    "chain",
    [
        (),
        (segment(0, 0, 10),),
        (segment(0, 0), segment(1, 0)),
        (segment(0, 0, 10), segment(1, 11)),
        (segment(0, 0, 10), segment(1, 9)),
        (segment(1, 0, 10), segment(1, 10)),
        (segment(0, 5, 5), segment(1, 5)),
        (segment(0, 5, 4), segment(1, 4)),
        (segment(0, 0, nodes="aab"),),
        (segment(0, 0, nodes="abcdefgh"),),
        (segment(0, 0, nodes=""),),
        (replace(segment(0, 0), write_quorum=1),),
    ],
    ids=str,
)
def test_chains_that_do_not_hold(chain: tuple[Segment, ...]) -> None:
    with pytest.raises(InvalidArgument):
        check_chain(log(*chain))


OLD = log(segment(0, 0, 10), segment(1, 10))


@pytest.mark.parametrize(
    "chain",
    [
        OLD.chain,
        (segment(0, 0, 10), segment(1, 10, 20), segment(2, 20)),
        (segment(0, 0, 10), segment(2, 10)),  # the open one ended empty
        (segment(0, 0, 10, nodes="xyz"), segment(1, 10)),
        (segment(0, 0, 10), segment(1, 10, 20, nodes="abd"), segment(2, 20)),
    ],
    ids=["same", "extended", "replaced", "re-replicated", "extended, one server replaced"],
)
def test_changes_that_may_be(chain: tuple[Segment, ...]) -> None:
    check_chain_change(OLD, log(*chain))


@pytest.mark.parametrize(
    "chain",
    [
        (segment(1, 10),),
        (segment(0, 0, 9), segment(1, 9)),
        (segment(0, 0, 10), segment(3, 10)),
        (segment(0, 0, 10), segment(1, 10, 20), segment(3, 20)),
        (segment(0, 0, 10), segment(1, 10, nodes="abd")),
        (segment(0, 0, 10), segment(1, 10, 20, nodes="def"), segment(2, 20)),
        (segment(0, 0, 10), segment(1, 10, 20), segment(2, 20, 30), segment(3, 30)),
        (segment(0, 0),),
    ],
    ids=[
        "drops a closed one",
        "moves a closed end",
        "skips an index when replacing",
        "skips an index when extending",
        "changes the open nodeset",
        "replaces the whole nodeset while ending",
        "two at once",
        "goes back",
    ],
)
def test_changes_that_may_not_be(chain: tuple[Segment, ...]) -> None:
    """Field note 30: a segment's configuration is immutable while it is open; ends never move."""
    with pytest.raises(InvalidArgument):
        check_chain_change(OLD, log(*chain))


@pytest.mark.parametrize("field", ["log_id", "name", "created_ms", "create_nonce"])
def test_what_names_a_log_never_changes(field: str) -> None:
    value = "other" if field in {"name", "create_nonce"} else 99
    with pytest.raises(InvalidArgument, match="names the log"):
        check_chain_change(OLD, replace(OLD, **{field: value}))  # type: ignore[arg-type]  # by name
