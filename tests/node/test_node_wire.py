"""Records of the metadata store as messages: every field, and the part of a chain asked for."""

from __future__ import annotations

import pytest

from metadata.records import LogRecord, LostRange, NodeRecord, Replica, Segment
from metadata.store import Version
from node.wire import chain_part, describe_log, describe_segment
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId
from sharedlog.v1 import types_pb2


def segment(index: int, base: int, end: int | None, member: str = "n1") -> Segment:
    return Segment(
        index=index,
        base=Offset(base),
        end=None if end is None else Offset(end),
        sequencer=SequencerId(NodeId("n1"), Generation(2)),
        nodeset=(
            Replica(node_id=NodeId(member), storage_id=StorageId(f"s-{member}"), location="eu.a"),
        ),
        write_quorum=1,
    )


CHAIN = (
    segment(0, 0, 10, "n2"),
    segment(1, 10, 20, "n3"),
    segment(4, 20, 50, "n4"),
    segment(5, 50, None),
)
LOG = LogRecord(
    log_id=LogId(2**64 - 1),
    name="orders",
    replicas=1,
    write_quorum=1,
    created_ms=5,
    create_nonce="n",
    chain=CHAIN,
    spread=(("node", 1), ("zone", 1)),
)


def find(node_id: NodeId) -> NodeRecord | None:
    if node_id == "n3":
        return None
    return NodeRecord(
        node_id=node_id,
        generation=Generation(2),
        storage_id=StorageId(f"s-{node_id}"),
        address=f"{node_id}:1",
        http_address="",
        location="eu.a",
        roles=("log-server",),
    )


def test_every_field_of_a_segment_is_told() -> None:
    made = Segment(
        index=3,
        base=Offset(7),
        end=Offset(9),
        sequencer=SequencerId(NodeId("n1"), Generation(2)),
        nodeset=(Replica(node_id=NodeId("n2"), storage_id=StorageId("s"), location="eu.a"),),
        write_quorum=1,
        spread=(("node", 1), ("zone", 1)),
        timestamp_ms=11,
        lost=(LostRange(first=Offset(8), end=Offset(9), accepted_ms=12, reason="fire"),),
    )
    assert describe_segment(made) == types_pb2.Segment(
        index=3,
        base=7,
        end=9,
        sequencer=types_pb2.SequencerId(node_id="n1", generation=2),
        nodeset=[types_pb2.Replica(node_id="n2", storage_id="s", location="eu.a")],
        write_quorum=1,
        spread={"node": 1, "zone": 1},
        timestamp_ms=11,
        lost=[types_pb2.LostRange(first=8, end=9, accepted_ms=12, reason="fire")],
    )
    assert not describe_segment(CHAIN[-1]).HasField("end")


def test_a_whole_log_is_told_with_the_nodes_that_are_known() -> None:
    found = describe_log(LOG, Version(9), find)
    assert [it.index for it in found.chain] == [0, 1, 4, 5]
    assert (found.segment_count, found.chain_version) == (4, 9)
    assert dict(found.spread) == {"node": 1, "zone": 1}
    assert [it.node_id for it in found.nodes] == ["n1", "n2", "n4"]


@pytest.mark.parametrize(
    ("chain_from", "indexes"),
    [
        (0, [0, 1, 4, 5]),
        (9, [0, 1, 4, 5]),
        (10, [1, 4, 5]),
        (19, [1, 4, 5]),
        (20, [4, 5]),
        (49, [4, 5]),
        (50, [5]),
        (2**63, [5]),
    ],
)
def test_a_part_reaches_above_an_offset(chain_from: int, indexes: list[int]) -> None:
    """Exactly the segments that end above the offset, and the open one."""
    found = chain_part(CHAIN, chain_from=chain_from)
    assert [it.index for it in found] == indexes
    assert indexes == [it.index for it in CHAIN if it.end is None or it.end > chain_from]
    limited = chain_part(CHAIN, chain_from=chain_from, chain_limit=2)
    assert [it.index for it in limited] == indexes[:2]


def test_a_part_has_only_its_own_nodes_and_the_count_of_all() -> None:
    found = describe_log(LOG, Version(9), find, open_only=True)
    assert [it.index for it in found.chain] == [5]
    assert [it.node_id for it in found.nodes] == ["n1"]
    assert found.segment_count == 4
    found = describe_log(LOG, Version(9), find, chain_from=12, chain_limit=2)
    assert [it.index for it in found.chain] == [1, 4]
    assert [it.node_id for it in found.nodes] == ["n1", "n4"]
