"""The order of one loglet: offsets, acknowledgements, steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metadata.quorum import QuorumRule
from metadata.records import Replica
from sequencer.core import (
    Acknowledge,
    DropAppends,
    Effect,
    FailAppends,
    LogletSequencer,
    PublishTail,
    ResumeReplica,
    StoreBatch,
)
from sharedlog.batch import check_batch, check_placed, encode_records
from sharedlog.errors import AppendIndefinite, ProtocolError, Sealed
from sharedlog.ids import LogId, LogletId, NodeId, Offset, StorageId

LOGLET = LogletId(LogId(7), 0)


def make_core(*, replicas: int = 3, write_quorum: int = 2, base: int = 0) -> LogletSequencer:
    return LogletSequencer(LOGLET, base=Offset(base), rule=QuorumRule(replicas, write_quorum))


def append(
    core: LogletSequencer, records: int = 1, *, ticket: object = None, now_ms: int = 1
) -> list[Effect]:
    batch = encode_records([(b"v", None, None)] * records)
    effects = core.on_append(check_batch(batch), batch, ticket, now_ms)
    core.check_invariants()
    return effects


def stored(core: LogletSequencer, replica: int, first: int, end: int) -> list[Effect]:
    effects = core.on_stored(replica, Offset(first), Offset(end))
    core.check_invariants()
    return effects


def all_ready(core: LogletSequencer) -> LogletSequencer:
    for replica in range(3):
        core.on_ready(replica)
    return core


def test_offsets_are_dense_and_the_same_bytes_go_to_every_replica() -> None:
    """Promise 2: offsets 0, 1, 2, … without gaps; a batch is placed once."""
    core = all_ready(make_core(base=5))
    (one,) = append(core, 3)
    (two,) = append(core, 2)
    assert isinstance(one, StoreBatch)
    assert isinstance(two, StoreBatch)
    assert list(one.replicas) == [0, 1, 2]
    assert (one.batch.first, one.batch.end, two.batch.first, two.batch.end) == (5, 8, 8, 10)
    placement = check_placed(two.batch.placed)
    assert (placement.first, placement.end, placement.loglet) == (8, 10, LOGLET)


def test_a_batch_is_acknowledged_when_a_write_quorum_holds_it() -> None:
    core = all_ready(make_core())
    append(core, 2, ticket="a")
    assert stored(core, 0, 0, 2) == []
    ack, publish = stored(core, 2, 0, 2)
    assert isinstance(ack, Acknowledge)
    assert [batch.ticket for batch in ack.batches] == ["a"]
    assert publish == PublishTail([0, 1, 2], Offset(2))
    assert stored(core, 1, 0, 2) == [], "the third copy changes nothing"


def test_acks_leave_in_order_though_replicas_answer_in_ranges() -> None:
    """DESIGN §4 point 5: the committed tail is contiguous, acks leave in order."""
    core = all_ready(make_core())
    for ticket in "abc":
        append(core, ticket=ticket)
    stored(core, 0, 0, 3)
    (ack, _) = stored(core, 1, 0, 2)
    assert isinstance(ack, Acknowledge)
    assert [batch.ticket for batch in ack.batches] == ["a", "b"]
    (ack, _) = stored(core, 1, 2, 3)
    assert isinstance(ack, Acknowledge)
    assert [batch.ticket for batch in ack.batches] == ["c"]


def test_a_range_that_does_not_touch_what_is_known_proves_nothing() -> None:
    """A replica that acknowledges [2, 3) has not thereby acknowledged [0, 2)."""
    core = all_ready(make_core())
    for _ in range(3):
        append(core)
    stored(core, 0, 0, 3)
    assert stored(core, 1, 2, 3) == []
    assert core.committed_tail == 0


def test_a_replica_out_of_step_is_sent_nothing_and_resumes_at_the_committed_tail() -> None:
    """DESIGN §4 point 6: skipped, then resumed at the committed tail; below it is a legal hole."""
    core = all_ready(make_core())
    core.on_out_of_step(1)
    (first,) = append(core, ticket="a")
    assert isinstance(first, StoreBatch)
    assert list(first.replicas) == [0, 2]
    stored(core, 0, 0, 1)
    stored(core, 2, 0, 1)
    append(core, ticket="b")
    assert core.lagging() == [1]
    (resume,) = core.on_ready(1)
    assert isinstance(resume, ResumeReplica)
    assert resume.committed == 1
    assert [batch.ticket for batch in resume.batches] == ["b"]
    (ack, _) = [*stored(core, 0, 1, 2), *stored(core, 1, 1, 2)]
    assert isinstance(ack, Acknowledge)
    assert core.lagging() == [], "the one not waited for is on its way"
    core.on_out_of_step(2)
    assert core.lagging() == [2]


def test_sealed_ends_everything_in_flight_as_indefinite() -> None:
    """Field notes 1, 9: after SEALED nothing is acknowledged; what was in flight is indefinite."""
    core = all_ready(make_core())
    append(core, ticket="a")
    stored(core, 0, 0, 1)
    (fail,) = core.on_ended(Sealed("sealed"))
    assert isinstance(fail, FailAppends)
    assert isinstance(fail.error, AppendIndefinite)
    assert [batch.ticket for batch in fail.batches] == ["a"]
    assert stored(core, 1, 0, 1) == [], "a late ack is not passed on"
    assert core.on_ended(Sealed("again")) == []
    assert core.on_ready(1) == []


def test_the_chains_end_tells_what_became_of_everything_in_flight() -> None:
    """DESIGN §4 point 7: definite failure if the chain says that the segment ends below; and below
    the end a batch is in the log, for its offsets were given to no other.
    """
    core = all_ready(make_core())
    for ticket in "abcd":
        append(core, ticket=ticket)
    stored(core, 0, 0, 1)
    stored(core, 1, 0, 1)
    done, dropped = core.on_closed(Offset(3), Sealed("moved"))
    assert isinstance(done, Acknowledge)
    assert [batch.ticket for batch in done.batches] == ["b", "c"]
    assert isinstance(dropped, DropAppends)
    assert [batch.ticket for batch in dropped.batches] == ["d"]
    assert stored(core, 2, 0, 4) == []
    assert core.on_closed(Offset(3), Sealed("again")) == []


def test_an_end_within_a_batch_proves_nothing_of_it() -> None:
    core = all_ready(make_core())
    append(core, 3, ticket="a")
    (fail,) = core.on_closed(Offset(2), Sealed("moved"))
    assert isinstance(fail, FailAppends)


def test_after_sealed_the_chain_changes_nothing() -> None:
    """What was called indefinite stays so, though the chain proves it later."""
    core = all_ready(make_core())
    append(core)
    core.on_ended(Sealed("sealed"))
    assert core.on_closed(Offset(1), Sealed("moved")) == []


def test_a_spread_is_part_of_the_write_quorum() -> None:
    """Two copies in one zone are one place: the batch waits for another zone."""
    replicas = [
        Replica(node_id=NodeId(f"n{index}"), storage_id=StorageId(f"s{index}"), location=zone)
        for index, zone in enumerate("aab")
    ]
    rule = QuorumRule.make(replicas, 2, (("zone", 2),))
    core = all_ready(LogletSequencer(LOGLET, base=Offset(0), rule=rule))
    append(core, ticket="x")
    assert stored(core, 0, 0, 1) == []
    assert stored(core, 1, 0, 1) == []
    (ack, _) = stored(core, 2, 0, 1)
    assert isinstance(ack, Acknowledge)


def test_time_begins_where_the_segment_says() -> None:
    """Field note 43: monotone across sequencers, whatever their clocks say."""
    core = LogletSequencer(LOGLET, base=Offset(0), rule=QuorumRule(3, 2), last_timestamp_ms=1_000)
    append(core, now_ms=5)
    assert core.last_timestamp_ms == 1_000


def test_timestamps_never_run_backwards() -> None:
    """Field note 43: a clock that goes back does not take the log's time back."""
    core = all_ready(make_core())
    times = []
    for now_ms in (10, 7, 12, 3):
        (effect,) = append(core, now_ms=now_ms)
        assert isinstance(effect, StoreBatch)
        times.append(effect.batch.timestamp_ms)
    assert times == [10, 10, 12, 12]


def test_a_range_that_was_never_given_out_is_the_peers_fault() -> None:
    core = all_ready(make_core())
    with pytest.raises(ProtocolError):
        core.on_stored(0, Offset(0), Offset(1))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_sequence_of_events_acknowledges_what_a_write_quorum_does_not_hold(
    data: st.DataObject,
) -> None:
    """Promise 1 against a model: per replica the set of offsets that it holds, by the prefix rule.

    Replicas lose their streams at any moment; what was sent may or may not have arrived. At
    every acknowledgement each offset is held by at least a write quorum, in order, exactly once.
    """
    replicas = data.draw(st.sampled_from([1, 2, 3, 5]))
    write_quorum = replicas // 2 + 1
    core = make_core(replicas=replicas, write_quorum=write_quorum)
    held: list[set[int]] = [set() for _ in range(replicas)]
    wires: list[list[tuple[int, int]]] = [[] for _ in range(replicas)]
    acked: list[object] = []
    sent = 0

    def carry_out(effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case StoreBatch(to, batch):
                    for replica in to:
                        wires[replica].append((batch.first, batch.end))
                case ResumeReplica(replica, _, batches):
                    wires[replica].extend((batch.first, batch.end) for batch in batches)
                case Acknowledge(batches):
                    for batch in batches:
                        for offset in range(batch.first, batch.end):
                            holders = sum(offset in have for have in held)
                            assert holders >= write_quorum
                        acked.append(batch.ticket)
                case _:
                    pass

    for _ in range(data.draw(st.integers(1, 40))):
        event = data.draw(st.sampled_from(["append", "store", "store", "lose", "ready"]))
        replica = data.draw(st.integers(0, replicas - 1))
        if event == "append":
            carry_out(append(core, data.draw(st.integers(1, 3)), ticket=sent))
            sent += 1
        elif event == "ready":
            carry_out(core.on_ready(replica))
        elif event == "store" and wires[replica]:
            first, end = wires[replica].pop(0)
            held[replica].update(range(first, end))
            carry_out(core.on_stored(replica, Offset(first), Offset(end)))
        elif event == "lose":
            arrived: bool = data.draw(st.booleans())
            if wires[replica] and arrived:
                held[replica].update(range(*wires[replica][0]))  # stored, its answer lost
            wires[replica].clear()
            core.on_out_of_step(replica)
        core.check_invariants()
    assert acked == list(range(len(acked))), "acknowledged in order, each once"
