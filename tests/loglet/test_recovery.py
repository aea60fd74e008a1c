"""The core that ends a segment, sentence by sentence of DESIGN.md §6 step 2."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from loglet.messages import SealResponse
from loglet.recovery import SegmentRecovery
from loglet.recovery_steps import (
    AwaitAnswers,
    CopyRange,
    EndSegment,
    SealReplacements,
    Step,
    StopAttempt,
)
from metadata.records import Replica, Segment, Spread
from sharedlog.errors import (
    LogUnavailable,
    StoreReadOnly,
    Unreachable,
    Unrepairable,
    WrongStorage,
)
from sharedlog.ids import Generation, NodeId, Offset, SequencerId, StorageId

GONE = WrongStorage("another store is here")
SILENT = Unreachable("connection refused")
ZONES = ("a", "a", "b", "b", "c")


def replica(number: int, *, location: str = "", store: str = "") -> Replica:
    return Replica(
        node_id=NodeId(f"n{number}"),
        storage_id=StorageId(store or f"s{number}"),
        location=location,
    )


def segment(
    replicas: int, write_quorum: int, *, base: int = 0, spread: Spread = (), timestamp_ms: int = 0
) -> Segment:
    return Segment(
        index=3,
        base=Offset(base),
        sequencer=SequencerId(NodeId("n1"), Generation(1)),
        nodeset=tuple(replica(it + 1, location=ZONES[it]) for it in range(replicas)),
        write_quorum=write_quorum,
        spread=spread,
        timestamp_ms=timestamp_ms,
    )


def answer(
    local: int, committed: int = 0, *damaged: tuple[int, int], timestamp_ms: int = 0
) -> SealResponse:
    ranges = [(Offset(first), Offset(end)) for first, end in damaged]
    return SealResponse(Offset(local), Offset(committed), timestamp_ms, ranges)


Told = tuple[int, int] | SealResponse | Exception | None


class Attempt:
    """A recovery whose steps are carried out by the test, with the invariants checked on the way.

    Answers are (local tail, committed tail, damaged ranges…), an error, or None for silence.
    """

    def __init__(
        self,
        of: Segment,
        answers: Sequence[Told],
        *,
        lost: Sequence[int] = (),
        left_out: Sequence[int] = (),
        candidates: Sequence[Replica] = (),
    ) -> None:
        self.core = SegmentRecovery(
            "orders", of, lost=lost, left_out=left_out, candidates=candidates
        )
        self.copies: list[tuple[int, int, int, tuple[int, ...]]] = []
        for server, told in enumerate(answers):
            self.tell(server, told)

    def tell(self, server: int, told: Told) -> None:
        match told:
            case None:
                return
            case WrongStorage() | Unreachable():
                self.core.on_seal_failed(server, told)
            case SealResponse():
                self.core.on_sealed(server, told)
            case (int(local), int(committed)):
                self.core.on_sealed(server, answer(local, committed))
            case _:
                raise AssertionError(told)

    def step(self) -> Step:
        self.core.check_invariants()
        found = self.core.advance()
        self.core.check_invariants()
        return found

    def finish(self, *, impatient: bool = True) -> Step:
        """Carry out every copy; returns the last step."""
        if impatient:
            self.core.on_patience_over()
        while isinstance(step := self.step(), CopyRange | SealReplacements):
            if isinstance(step, SealReplacements):
                for server in step.servers:
                    base = self.core.segment.base
                    self.core.on_sealed(server, answer(base, base))
                continue
            self.copies.append((step.first, step.end, step.sources[0], tuple(step.targets)))
            for target in step.targets:
                self.core.on_copied(target, step.first, step.end)
        return step


def ended(step: Step) -> EndSegment:
    assert isinstance(step, EndSegment), step
    return step


def stopped(step: Step) -> StopAttempt:
    assert isinstance(step, StopAttempt), step
    return step


def copying(step: Step) -> CopyRange:
    assert isinstance(step, CopyRange), step
    return step


# The seal quorum, M and C.


@pytest.mark.parametrize(
    ("replicas", "write_quorum", "needed"),
    [(1, 1, 1), (2, 2, 1), (3, 2, 2), (3, 3, 1), (4, 3, 2), (5, 3, 3), (5, 4, 2)],
)
def test_nothing_is_decided_before_a_seal_quorum(
    replicas: int, write_quorum: int, needed: int
) -> None:
    """Only the answers of a seal quorum say where the tail is; until then the attempt waits."""
    attempt = Attempt(segment(replicas, write_quorum), [])
    for server in range(needed):
        assert attempt.step() == AwaitAnswers(spare=False)
        attempt.tell(server, (7, 7))
    assert ended(attempt.step()).end == 7


def test_the_end_is_the_highest_local_tail_of_those_who_answered() -> None:
    """M is the highest local tail among a sealed seal quorum, C the highest known committed one.

    Field note 17: records that nobody acknowledged become part of the log.
    """
    found = ended(Attempt(segment(3, 2), [(5, 3), (9, 4), (9, 2)]).step())
    assert (found.end, found.committed_tail, found.repaired_records) == (9, 4, 0)


def test_where_a_write_quorums_tails_agree_nothing_is_copied() -> None:
    """A sealed answer with local tail t counts as a copy of [C, t)."""
    attempt = Attempt(segment(3, 2), [(9, 4), (9, 4), None])
    assert ended(attempt.step()).end == 9
    assert attempt.copies == []


def test_more_answers_are_awaited_for_a_moment_if_they_might_spare_the_copying() -> None:
    """Two of three suffice to repair; the third may make that needless."""
    attempt = Attempt(segment(3, 2), [(9, 4), (5, 4), None])
    assert attempt.step() == AwaitAnswers(spare=True)
    attempt.tell(2, (9, 4))
    assert ended(attempt.step()).repaired_records == 0


def test_nobody_is_awaited_who_has_failed_already() -> None:
    """A refused connection ends the moment at once: a killed node costs no time."""
    attempt = Attempt(segment(3, 2), [(9, 4), (5, 4), SILENT])
    assert copying(attempt.step()).targets == [1]


def test_the_tail_is_copied_in_order_to_a_write_quorum() -> None:
    """Copy [C, M) forward; the copies carry C, below which offsets count as committed."""
    attempt = Attempt(segment(3, 2), [(9, 4), (5, 3), SILENT])
    step = copying(attempt.step())
    assert (step.first, step.end, step.sources, step.targets) == (5, 9, [0], [1])
    assert step.committed_tail == 4
    found = ended(attempt.finish())
    assert (found.end, found.repaired_records) == (9, 4)


def test_a_member_that_is_far_behind_begins_at_the_committed_tail() -> None:
    """What lies below C is on a write quorum already: a hole there is legal."""
    attempt = Attempt(segment(3, 2), [(9, 6), (2, 0), SILENT])
    ended(attempt.finish())
    assert attempt.copies == [(6, 9, 0, (1,))]


def test_only_as_many_are_copied_to_as_make_a_write_quorum() -> None:
    """The one with least to catch up is chosen; one that is further behind would hold it up."""
    attempt = Attempt(segment(3, 2), [(9, 0), (8, 0), (1, 0)])
    ended(attempt.finish())
    assert attempt.copies == [(8, 9, 0, (1,))]


def test_who_lacks_no_more_than_those_rides_along() -> None:
    """What is read for one is stored at all who lack just that."""
    attempt = Attempt(segment(3, 2), [(9, 0), (8, 0), (8, 0)])
    ended(attempt.finish())
    assert attempt.copies == [(8, 9, 0, (1, 2))]


def test_nobody_is_repaired_before_its_seal_is_durable() -> None:
    """Field note 12: a target is a server that has answered its seal, so it knows the loglet."""
    attempt = Attempt(segment(3, 2), [(9, 4), (5, 4), None])
    attempt.core.on_grace_over()
    assert copying(attempt.step()).targets == [1]
    attempt.core.on_target_failed(1, StoreReadOnly("full"))
    assert attempt.step() == AwaitAnswers(spare=False)
    attempt.tell(2, (5, 4))
    assert copying(attempt.step()).targets == [2]


def test_an_empty_segment_ends_where_it_began() -> None:
    """Field note 15: sealing a never-written log needs no copy and no replacement."""
    found = ended(Attempt(segment(2, 2, base=40), [(40, 40), GONE]).step())
    assert (found.end, found.committed_tail) == (40, 40)
    assert found.nodeset == segment(2, 2).nodeset


def test_the_last_timestamp_is_the_latest_that_anyone_knows() -> None:
    """The next segment's timestamps go on from here, so that they never run backwards."""
    answers = [answer(9, 9, timestamp_ms=70), answer(9, 9, timestamp_ms=90)]
    assert ended(Attempt(segment(3, 2, timestamp_ms=80), answers).step()).last_timestamp_ms == 90
    assert ended(Attempt(segment(3, 2, timestamp_ms=95), answers).step()).last_timestamp_ms == 95


def test_an_answer_that_comes_late_moves_nothing() -> None:
    """M and C stand once copying has begun; the late one is a copy, a source and a target."""
    attempt = Attempt(segment(3, 2), [(9, 4), (5, 4), SILENT])
    copying(attempt.step())
    attempt.tell(2, (12, 4))
    found = ended(attempt.step())
    assert (found.end, found.repaired_records) == (9, 0)


# What is unknown.


def test_damage_is_no_copy() -> None:
    """Field note 5: damage counts in the tail, never as a copy; its place is overwritten."""
    attempt = Attempt(segment(3, 2), [answer(9, 2, (4, 6)), answer(9, 2), SILENT])
    assert ended(attempt.finish()).end == 9
    assert attempt.copies == [(4, 6, 1, (0,))]


def test_damage_that_is_found_while_reading_counts_like_any_other() -> None:
    """What a source can't give because it is damaged is not a copy there either."""
    attempt = Attempt(segment(5, 3), [(9, 2), (9, 2), (5, 2), SILENT, SILENT])
    assert copying(attempt.step()).sources == [0, 1]
    attempt.core.on_source_lacks(0, Offset(6), Offset(7), damaged=True)
    ended(attempt.finish())
    assert attempt.copies == [(5, 6, 1, (2,)), (6, 7, 1, (0, 2)), (7, 9, 0, (2,))]


def test_a_hole_is_read_elsewhere_and_still_counts() -> None:
    """A server that left a hole knew that it was committed: it is on a write quorum in any case."""
    attempt = Attempt(segment(3, 2), [(9, 0), (3, 0), SILENT])
    copying(attempt.step())
    attempt.core.on_source_lacks(0, Offset(0), Offset(3), damaged=False)
    ended(attempt.finish())
    assert attempt.copies == [(3, 9, 0, (1,))]


def test_a_tail_that_can_not_be_copied_is_left_out_if_the_others_are_a_seal_quorum() -> None:
    """What a whole undamaged seal quorum lacks was never committed: no truncation.

    Field note 5. The next attempt asks everyone anew.
    """
    answers: list[Told] = [answer(9, 5, (7, 8)), (6, 5), (6, 5)]
    step = stopped(Attempt(segment(3, 2), answers).finish())
    assert step.leave_out == {0}
    again = Attempt(segment(3, 2), answers, left_out=[0])
    assert ended(again.finish()).end == 6


def test_what_the_others_can_not_answer_for_is_not_left_out() -> None:
    """Field note 5: damage is unknown, never no. The attempt stops and names who is missing."""
    step = stopped(Attempt(segment(3, 2), [answer(9, 5, (7, 8)), (6, 5), SILENT]).finish())
    assert not step.leave_out
    assert not isinstance(step.error, Unrepairable)
    assert "n3 does not answer" in str(step.error)
    assert step.gone == ((7, 8),)


def test_damage_that_nobody_can_mend_is_unrepairable() -> None:
    """Field note 18: everyone who is left has answered, and nobody can give the range."""
    step = stopped(Attempt(segment(3, 2), [answer(9, 5, (7, 8)), (6, 5), GONE]).finish())
    assert isinstance(step.error, Unrepairable)
    assert "[7, 8)" in str(step.error)
    assert "accept-loss orders" in str(step.error)
    assert step.error.segment_index == 3


def test_a_source_that_went_silent_is_left_out_too() -> None:
    """The only holder of the tail dies after its seal: the others go on without its tail."""
    attempt = Attempt(segment(3, 2), [(9, 5), (6, 5), (6, 5)])
    copying(attempt.step())
    attempt.core.on_source_silent(0, SILENT)
    assert stopped(attempt.step()).leave_out == {0}


def test_a_target_that_fails_is_replaced_by_another() -> None:
    """A full disk among the targets is no obstacle while another server has room."""
    attempt = Attempt(segment(3, 2), [(9, 5), (8, 5), (6, 5)])
    assert copying(attempt.step()).targets == [1]
    attempt.core.on_target_failed(1, StoreReadOnly("full"))
    assert copying(attempt.step()).targets == [2]
    ended(attempt.finish())


def test_without_targets_the_longer_tail_is_left_out() -> None:
    """All others are full: they are a seal quorum, so what they lack was never committed."""
    attempt = Attempt(segment(3, 2), [(9, 5), (6, 5), (6, 5)])
    for target in (1, 2):
        copying(attempt.step())
        attempt.core.on_target_failed(target, StoreReadOnly("full"))
    assert stopped(attempt.step()).leave_out == {0}


def test_a_left_out_server_is_a_copy_and_a_witness_but_no_voter() -> None:
    """It has no say in M; what it holds below M it holds, and what it knows to be committed is."""
    attempt = Attempt(segment(3, 2), [(9, 5), (8, 5), (8, 6)], left_out=[0])
    found = ended(attempt.finish())
    assert (found.end, found.committed_tail) == (8, 6)
    alone = Attempt(segment(3, 2), [(9, 5), (8, 5), None], left_out=[0])
    assert alone.step() == AwaitAnswers(spare=False)
    assert "without the tail of n1" in str(stopped(alone.finish()).error)


def test_a_committed_tail_above_every_local_one_stops_everything() -> None:
    """I8: it can't be, so nothing is done, and the message says what was seen."""
    step = stopped(Attempt(segment(3, 2), [(6, 8), (6, 5)]).step())
    assert not step.leave_out
    assert "known to be committed" in str(step.error)


def test_leaving_out_never_hides_what_is_committed() -> None:
    """A wrong guess about a tail would show as a committed tail above the others' tails."""
    step = stopped(Attempt(segment(3, 2), [(9, 9), (6, 5), (6, 5)], left_out=[0]).step())
    assert "known to be committed" in str(step.error)


def test_silence_is_named() -> None:
    """No seal quorum: who is silent, and how it failed."""
    attempt = Attempt(segment(3, 2), [(9, 5), SILENT, None])
    assert attempt.step() == AwaitAnswers(spare=False)
    error = stopped(attempt.finish()).error
    assert "no seal quorum" in str(error)
    assert "n2 does not answer (connection refused); n3 does not answer" in str(error)
    assert error.retryable


def test_sealed_and_not_repairable_yet() -> None:
    """Field note 13: 3 of 4 can be sealed by two, which can't repair; it goes on with a third."""
    attempt = Attempt(segment(4, 3), [(9, 5), (9, 5), SILENT, SILENT])
    assert attempt.step() == AwaitAnswers(spare=False)
    assert "sealed, but no write quorum" in str(stopped(attempt.finish()).error)
    back = Attempt(segment(4, 3), [(9, 5), (9, 5), SILENT, SILENT])
    back.step()
    back.tell(3, (2, 0))
    ended(back.finish(impatient=False))
    assert back.copies == [(5, 9, 0, (3,))]


def test_a_seal_quorum_that_knows_all_to_be_committed_needs_no_write_quorum() -> None:
    """There is nothing to copy if C is M, however few have answered."""
    assert ended(Attempt(segment(4, 3), [(9, 9), (9, 5), SILENT, SILENT]).step()).end == 9


def test_one_of_three_with_three_copies_goes_without_the_longer_tail() -> None:
    """3/3: one server is a seal quorum, and what it lacks was never committed."""
    step = stopped(Attempt(segment(3, 3), [(9, 5), (6, 6), SILENT]).step())
    assert step.leave_out == {0}
    assert ended(Attempt(segment(3, 3), [(9, 5), (6, 6), SILENT], left_out=[0]).step()).end == 6


# Stores that are lost for good.


def test_less_than_a_seal_quorum_for_ever_is_unrepairable() -> None:
    """Field note 18: two of three lost, and nobody can tell what was committed."""
    step = stopped(Attempt(segment(3, 2), [(9, 5), GONE, GONE]).step())
    assert isinstance(step.error, Unrepairable)
    assert "n2, n3 lost their stores" in str(step.error)
    assert "accept-loss orders" in str(step.error)


def test_a_lost_store_is_told_by_the_caller_or_by_its_refusal() -> None:
    """Either way it is not asked again."""
    told = Attempt(segment(3, 2), [], lost=[2])
    assert told.core.unanswered() == [0, 1]
    refused = Attempt(segment(3, 2), [None, GONE])
    assert refused.core.unanswered() == [0, 2]


def test_a_write_quorum_that_is_left_needs_no_replacement() -> None:
    """3/2 with one lost: the two others end the segment; its place is filled later."""
    found = ended(Attempt(segment(3, 2), [(9, 5), (9, 5), GONE], candidates=[replica(7)]).finish())
    assert found.nodeset == segment(3, 2).nodeset


def test_replacements_are_sealed_filled_from_the_base_and_named() -> None:
    """2/2 with one lost: without a replacement the log would stand still for ever."""
    attempt = Attempt(segment(2, 2, base=2), [(9, 5), GONE], candidates=[replica(7)])
    assert attempt.step() == SealReplacements([2])
    assert attempt.core.servers[2] == replica(7)
    found = ended(attempt.finish())
    assert attempt.copies == [(2, 9, 0, (0, 2))]
    assert found.nodeset == (replica(1, location="a"), replica(7))
    assert found.end == 9


def test_a_replacement_counts_for_nothing_before_it_has_everything() -> None:
    """Only [C, M) on a replacement would make a member of a server that lacks the rest."""
    attempt = Attempt(segment(2, 2), [(9, 5), GONE], candidates=[replica(7)])
    attempt.step()
    attempt.core.on_sealed(2, answer(0))
    step = copying(attempt.step())
    attempt.core.on_copied(0, Offset(0), Offset(9))
    attempt.core.on_copied(2, Offset(5), Offset(9))
    assert (copying(attempt.step()).first, step.first) == (0, 0)
    attempt.core.on_copied(2, Offset(0), Offset(5))
    ended(attempt.step())


def test_with_a_replacement_the_survivors_prove_what_they_hold() -> None:
    """A claim may cover a hole, made legal by a write quorum with the lost disks in it."""
    attempt = Attempt(segment(5, 4), [(9, 5), (9, 5), (9, 5), GONE, GONE], candidates=[replica(7)])
    found = ended(attempt.finish())
    assert attempt.copies == [(0, 9, 0, (0, 1, 2, 5))]
    assert [it.node_id for it in found.nodeset] == ["n1", "n2", "n3", "n7", "n5"]


def test_a_survivor_that_answers_late_has_to_prove_it_too() -> None:
    """Nothing but a confirmed store counts, once the attempt works with a replacement."""
    attempt = Attempt(
        segment(5, 4), [(9, 5), (9, 5), None, GONE, GONE], candidates=[replica(7), replica(8)]
    )
    attempt.step()
    for server in (5, 6):
        attempt.core.on_sealed(server, answer(0))
    copying(attempt.step())
    attempt.tell(2, (9, 5))
    assert copying(attempt.step()).targets == [0, 1, 2, 5, 6]
    for server in (0, 5, 6):
        attempt.core.on_copied(server, Offset(0), Offset(9))
    attempt.core.on_target_failed(1, StoreReadOnly("full"))
    assert copying(attempt.step()).targets == [2]
    ended(attempt.finish())


def test_beside_a_replacement_a_tail_without_targets_is_left_out() -> None:
    """3/3 with one lost: the other survivor can't take the longer tail, so it goes without it."""
    attempt = Attempt(segment(3, 3), [(9, 5), (6, 5), GONE], candidates=[replica(7)])
    attempt.step()
    attempt.core.on_sealed(3, answer(0))
    copying(attempt.step())
    attempt.core.on_target_failed(1, StoreReadOnly("full"))
    assert stopped(attempt.finish()).leave_out == {0}


def test_what_an_earlier_attempt_left_on_a_replacement_is_copied_again() -> None:
    """Its local tail proves nothing of what lies below it here."""
    attempt = Attempt(segment(2, 2), [(9, 5), GONE], candidates=[replica(7)])
    attempt.step()
    attempt.core.on_sealed(2, answer(8))
    assert (copying(attempt.step()).first, attempt.core.tail) == (0, (5, 9))


def test_a_replacement_has_no_say_in_the_tail() -> None:
    """M comes from the servers that the sequencer wrote to."""
    attempt = Attempt(segment(2, 2), [(9, 5), GONE], candidates=[replica(7)])
    attempt.step()
    attempt.core.on_sealed(2, answer(12))
    assert ended(attempt.finish()).end == 9


def test_a_wiped_node_takes_its_own_place() -> None:
    """The node that lost its disk may join with the new one, and is named once."""
    new = replica(2, store="fresh")
    attempt = Attempt(segment(2, 2), [(9, 5), GONE], candidates=[replica(1, location="a"), new])
    assert ended(attempt.finish()).nodeset == (replica(1, location="a"), new)


def test_a_replacement_that_fails_makes_room_for_the_next_candidate() -> None:
    """A candidate that does not answer its seal is not waited for."""
    attempt = Attempt(segment(2, 2), [(9, 5), GONE], candidates=[replica(7), replica(8)])
    assert attempt.step() == SealReplacements([2])
    attempt.core.on_seal_failed(2, SILENT)
    assert attempt.step() == SealReplacements([3])
    assert ended(attempt.finish()).nodeset[1] == replica(8)


def test_a_replacement_that_fails_later_makes_room_too() -> None:
    """Its disk may be full: the next candidate takes its place and is filled from the base."""
    attempt = Attempt(segment(2, 2), [(9, 5), GONE], candidates=[replica(7), replica(8)])
    attempt.step()
    attempt.core.on_sealed(2, answer(0))
    copying(attempt.step())
    attempt.core.on_copied(2, Offset(0), Offset(4))
    attempt.core.on_target_failed(2, StoreReadOnly("full"))
    assert attempt.step() == SealReplacements([3])
    found = ended(attempt.finish())
    assert found.nodeset[1] == replica(8)
    assert attempt.copies == [(0, 9, 0, (0, 3))]


def test_two_replacements_for_two_lost() -> None:
    """5/4 with two lost: the three that are left are a seal quorum and no write quorum."""
    attempt = Attempt(
        segment(5, 4),
        [(9, 5), (9, 5), (7, 5), GONE, GONE],
        candidates=[replica(7), replica(8, location="c")],
    )
    found = ended(attempt.finish())
    assert [it.node_id for it in found.nodeset] == ["n1", "n2", "n3", "n7", "n8"]
    assert attempt.copies == [(0, 9, 0, (0, 1, 2, 5, 6))]


def test_too_few_replacements_are_named() -> None:
    """Nothing can be done now, and more log servers would help: no person has to decide."""
    step = stopped(Attempt(segment(2, 2), [(9, 5), GONE]).finish())
    assert not isinstance(step.error, Unrepairable)
    assert "too few log servers" in str(step.error)


def test_a_silent_member_is_never_replaced() -> None:
    """2/2 and no answer: the store may come back, with the only copy of what it acknowledged."""
    attempt = Attempt(segment(2, 2), [(9, 5), SILENT], candidates=[replica(7)])
    assert attempt.step() == AwaitAnswers(spare=False)
    assert "n2 does not answer" in str(stopped(attempt.finish()).error)


def test_damage_below_the_committed_tail_stops_a_replacement() -> None:
    """What nobody can give can't be put on the replacement: a person has to decide."""
    attempt = Attempt(segment(2, 2), [(9, 5), GONE], candidates=[replica(7)])
    attempt.step()
    attempt.core.on_sealed(2, answer(0))
    copying(attempt.step())
    attempt.core.on_source_lacks(0, Offset(2), Offset(3), damaged=True)
    step = stopped(attempt.finish())
    assert isinstance(step.error, Unrepairable)
    assert step.gone == ((2, 3),)


# Spreads.


def test_a_spread_decides_who_is_a_quorum() -> None:
    """Judged by the locations in the nodeset: two of one zone are no write quorum."""
    of = segment(4, 3, spread=(("zone", 2),))
    attempt = Attempt(of, [(9, 5), (9, 5), (5, 5), SILENT])
    ended(attempt.finish())
    assert attempt.copies == [(5, 9, 0, (2,))]


def test_a_replacement_is_taken_from_the_lost_ones_zone() -> None:
    """Else the nodeset might satisfy its spread no more."""
    of = segment(3, 3, spread=(("zone", 2),))
    candidates = [replica(7, location="a"), replica(8, location="b")]
    found = ended(Attempt(of, [(9, 5), (9, 5), GONE], candidates=candidates).finish())
    assert found.nodeset[2] == replica(8, location="b")
    without = Attempt(of, [(9, 5), (9, 5), GONE], candidates=candidates[:1]).finish()
    assert isinstance(stopped(without).error, LogUnavailable)
