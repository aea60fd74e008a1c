"""Which log servers a log wants replaced, and when."""

from __future__ import annotations

from typing import cast

from metadata.quorum import QuorumRule
from metadata.records import Replica, Segment
from sequencer.config import SequencerConfig
from sequencer.core import LogletSequencer
from sequencer.find_tail import FindTailRounds
from sequencer.link import ReplicaLink
from sequencer.loglets import ActiveLoglet, FutureTicket, Timed
from sequencer.producers import IdleProducers, ProducerTable
from sequencer.watch import Watch
from sharedlog.batch import check_batch, encode_records
from sharedlog.errors import Sealed
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId

CONFIG = SequencerConfig(quorum_timeout_s=1.0, replace_after_s=30.0)
BATCH = encode_records([(b"v", None, None)])


class Link:
    """All that a watch needs of a link."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.heard_s = 0.0

    def silent_s(self, now_s: float) -> float:
        return now_s - self.heard_s


def make_active() -> ActiveLoglet:
    """A loglet on n1, n2 and n3, all in step."""
    rule = QuorumRule(3, 2)
    replicas = tuple(
        Replica(node_id=NodeId(name), storage_id=StorageId(name)) for name in ("n1", "n2", "n3")
    )
    segment = Segment(
        index=0,
        base=Offset(0),
        sequencer=SequencerId(NodeId("n1"), Generation(1)),
        nodeset=replicas,
        write_quorum=2,
    )
    core = LogletSequencer(LogletId(LogId(7), 0), base=Offset(0), rule=rule)
    links = [cast("ReplicaLink", Link(replica)) for replica in replicas]
    table = ProducerTable(Offset(0), IdleProducers(1))
    active = ActiveLoglet("orders", segment, core, FindTailRounds(rule), table, links)
    for replica in range(3):
        core.on_ready(replica)
    return active


def append(active: ActiveLoglet, now_s: float) -> None:
    ticket = Timed(cast("FutureTicket", None), now_s)
    active.core.on_append(check_batch(BATCH), BATCH, ticket, 1)
    active.traffic_s = now_s


def store(active: ActiveLoglet, now_s: float, *replicas: int) -> None:
    for replica in replicas:
        if active.core.on_stored(replica, Offset(0), active.core.next_offset):
            active.advanced_s = now_s


def away(watch: Watch, now_s: float) -> list[str]:
    return [node for _, nodes in watch.find_away(now_s) for node in nodes]


def test_those_are_named_that_keep_the_oldest_batch_back() -> None:
    active, watch = make_active(), Watch(CONFIG)
    append(active, 10.0)
    watch.add(active)
    store(active, 10.0, 0)
    assert away(watch, 10.9) == []
    assert away(watch, 11.1) == ["n2", "n3"]
    assert away(watch, 11.6) == [], "said already"
    assert away(watch, 12.2) == ["n2", "n3"], "and again, while it lasts"
    store(active, 12.3, 1)
    assert away(watch, 20.0) == []


def test_a_server_that_answers_others_is_busy_and_not_away() -> None:
    """It answers in order, so it will come to this log; unless it was sent nothing."""
    active, watch = make_active(), Watch(CONFIG)
    links = cast("list[Link]", active.links)
    append(active, 10.0)
    watch.add(active)
    links[0].heard_s = links[1].heard_s = 14.5
    assert away(watch, 15.0) == ["n3"]
    links[0].heard_s = links[1].heard_s = links[2].heard_s = 16.5
    assert away(watch, 17.0) == []
    active.core.on_out_of_step(2)
    assert away(watch, 17.4) == ["n3"]
    assert away(watch, 20.0) == ["n1", "n2", "n3"], "none of them speaks any more"


def test_a_log_that_gets_on_slowly_is_not_in_trouble() -> None:
    """Much in flight and each batch old, but the committed tail moves: others are no faster."""
    active, watch = make_active(), Watch(CONFIG)
    append(active, 10.0)
    append(active, 10.0)
    watch.add(active)
    active.core.on_stored(0, Offset(0), Offset(2))
    active.core.on_stored(1, Offset(0), Offset(1))
    active.advanced_s = 10.9
    assert away(watch, 11.5) == []
    assert away(watch, 12.0) == ["n2", "n3"]


def test_a_server_that_was_skipped_for_long_is_named_while_the_log_is_in_use() -> None:
    active, watch = make_active(), Watch(CONFIG)
    watch.add(active)
    active.core.on_out_of_step(2)
    found = []
    for second in range(100):
        append(active, float(second))
        store(active, float(second), 0, 1)
        found += away(watch, float(second))
    assert found == ["n3", "n3", "n3"], "after 30 s, and every 30 s again"
    active.core.on_ready(2)
    assert away(watch, 131.0) == []


def test_a_log_that_rests_or_has_ended_is_not_looked_at() -> None:
    """Nothing lags behind a log that is not written; and an ended one wants no servers."""
    active, watch = make_active(), Watch(CONFIG)
    active.core.on_out_of_step(2)
    append(active, 0.0)
    store(active, 0.0, 0, 1)
    watch.add(active)
    assert away(watch, 31.0) == []
    assert len(watch) == 0
    assert not active.watched, "the next append puts it back"
    append(active, 40.0)
    watch.add(active)
    active.core.on_ended(Sealed("sealed"))
    assert away(watch, 50.0) == []
    assert len(watch) == 0
