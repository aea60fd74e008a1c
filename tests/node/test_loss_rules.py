"""What of an open segment may be given up: what no reconfiguration can end, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from metadata.records import Replica, Segment
from node.coverage import Holding
from node.loss_rules import Member, Verdict, judge_closed, judge_open
from sharedlog.errors import InvalidArgument
from sharedlog.ids import Generation, NodeId, Offset, SequencerId, StorageId

GONE = Member("gone", Holding(answered=False, lost=True))


def segment(replicas: int, write_quorum: int) -> Segment:
    return Segment(
        index=3,
        base=Offset(0),
        sequencer=SequencerId(NodeId("n1"), Generation(1)),
        nodeset=tuple(
            Replica(node_id=NodeId(f"n{it}"), storage_id=StorageId(f"s{it}"))
            for it in range(1, replicas + 1)
        ),
        write_quorum=write_quorum,
    )


def ranges(*pairs: tuple[int, int]) -> tuple[tuple[Offset, Offset], ...]:
    return tuple((Offset(first), Offset(end)) for first, end in pairs)


def member(
    local: int,
    committed: int,
    *,
    held: tuple[tuple[int, int], ...] = (),
    damaged: tuple[tuple[int, int], ...] = (),
    lost: bool = False,
    local_start: int = 0,
) -> Member:
    """Holds all below its tail, or `held`."""
    holding = Holding(
        answered=True,
        held=ranges(*(held or ((0, local),))),
        damaged=ranges(*damaged),
        lost=lost,
        local_start=Offset(local_start),
    )
    return Member("n", holding, Offset(local), Offset(committed))


def judge(replicas: int, write_quorum: int, *members: Member) -> Verdict:
    return judge_open("orders", segment(replicas, write_quorum), members)


def test_damage_below_the_committed_tail_of_the_only_survivor() -> None:
    """Of two, one is lost: the survivor must prove all from the base on to a new server, and has a
    damaged batch below what is committed. Nothing but a person can end that."""
    verdict = judge(2, 2, GONE, member(100, 90, damaged=((40, 42),)))
    assert verdict == Verdict(Offset(100), ranges((40, 42)))


def test_a_hole_of_the_only_survivor() -> None:
    """The same for a legal hole, whose copies were on the lost disk."""
    verdict = judge(2, 2, GONE, member(9, 6, held=((0, 2), (5, 9))))
    assert verdict == Verdict(Offset(9), ranges((2, 5)))


def test_what_the_others_have_needs_no_person() -> None:
    """Damage that a peer can mend, below or above the committed tail, is no loss; nor is damage
    below it while the able members are a write quorum: it is a closed segment's matter then."""
    with pytest.raises(InvalidArgument, match="without a loss"):
        judge(3, 2, GONE, member(9, 4, damaged=((6, 7),)), member(9, 4))
    with pytest.raises(InvalidArgument, match="without a loss"):
        judge(3, 2, GONE, member(9, 6, damaged=((3, 4),)), member(9, 6, damaged=((3, 4),)))
    with pytest.raises(InvalidArgument, match="without a loss"):
        judge(2, 2, GONE, member(9, 4))


def test_a_tail_that_can_be_left_out_needs_no_person() -> None:
    """Only one has it, damaged; the other two are a seal quorum without it, so it was never
    committed, and the log ends below."""
    with pytest.raises(InvalidArgument, match="without a loss"):
        judge(3, 2, member(9, 4, damaged=((6, 7),)), member(6, 4), member(6, 4))
    lost = judge(3, 2, member(9, 4, damaged=((6, 7),)), member(6, 4), GONE)
    assert lost == Verdict(Offset(9), ranges((6, 7))), "one alone is no seal quorum"


def test_a_store_that_was_declared_lost_has_no_vote_but_its_data_count() -> None:
    """Recovery never asks it, so the third alone can't tell what was committed. What it holds is
    taken all the same, and it may have forgotten what lay above."""
    declared = member(12, 3, lost=True)
    assert judge(3, 2, declared, GONE, member(10, 0)) == Verdict(Offset(12), ranges((12, 12)))
    with pytest.raises(InvalidArgument, match="without a loss"):
        judge(3, 2, member(12, 3), GONE, member(10, 0))
    gap = member(10, 5, damaged=((7, 8),))
    assert judge(3, 2, declared, GONE, gap) == Verdict(Offset(12), ranges((12, 12)))


def test_what_is_committed_and_nowhere() -> None:
    """Somebody knows of a committed tail above all local ones. Recovery never goes on from there;
    a person may."""
    verdict = judge(3, 2, member(6, 4), member(6, 9), member(5, 4))
    assert verdict == Verdict(Offset(9), ranges((6, 9)))
    with pytest.raises(InvalidArgument, match="may hold"):
        judge(3, 2, member(6, 4), Member("n2", Holding(answered=False)), GONE)


def test_what_was_trimmed_is_not_lost() -> None:
    """Of two, one is lost and the survivor has trimmed: the log goes on without a person, and if
    one is needed all the same, the prefix is no part of what is given up."""
    kept = member(60, 50, held=((40, 60),), local_start=40)
    with pytest.raises(InvalidArgument, match="without a loss"):
        judge(2, 2, GONE, kept)
    hole = member(60, 50, held=((40, 42), (45, 60)), local_start=40)
    assert judge(2, 2, GONE, hole) == Verdict(Offset(60), ranges((42, 45)))
    closed = replace(segment(2, 2), end=Offset(60))
    with pytest.raises(InvalidArgument, match="nothing is lost"):
        judge_closed("orders", closed, [GONE.holding, kept.holding])
    verdict = judge_closed("orders", closed, [GONE.holding, hole.holding])
    assert verdict == Verdict(Offset(60), ranges((42, 45)))


def test_what_is_archived_is_not_lost_and_the_segment_ends_above() -> None:
    """Whatever log servers lack of it; what lies above is judged as ever."""
    end = Offset(8)
    members = [GONE, GONE, member(4, 4)]
    verdict = judge_open("orders", segment(3, 2), members, archived_end=end)
    assert verdict == Verdict(Offset(8), ranges((8, 8)), ranges((4, 8)))
    hole = [GONE, member(12, 10, held=((0, 5), (7, 9), (11, 12)))]
    verdict = judge_open("orders", segment(2, 2), hole, archived_end=end)
    assert verdict == Verdict(Offset(12), ranges((9, 11)), ranges((5, 7)))
    closed = replace(segment(2, 2), end=Offset(12))
    holdings = [it.holding for it in hole]
    verdict = judge_closed("orders", closed, holdings, archived_end=end)
    assert verdict == Verdict(Offset(12), ranges((9, 11)), ranges((5, 7)))
    with pytest.raises(InvalidArgument, match="and the archive have all"):
        judge_closed("orders", closed, holdings, archived_end=Offset(12))


def test_an_end_below_what_is_archived_is_none() -> None:
    """Two that answer could end it, but no chain would take that: a person may."""
    members = [GONE, member(4, 4), member(4, 4)]
    with pytest.raises(InvalidArgument, match="without a loss"):
        judge_open("orders", segment(3, 2), members, archived_end=Offset(4))
    verdict = judge_open("orders", segment(3, 2), members, archived_end=Offset(6))
    assert verdict == Verdict(Offset(6), (), ranges((4, 6)))
