"""Rounds of find-tail."""

from __future__ import annotations

from metadata.quorum import QuorumRule
from sequencer.find_tail import AnswerTail, AskUnsealed, FindTailRounds
from sharedlog.ids import Offset


def test_the_answer_is_the_tail_noted_before_anybody_was_asked() -> None:
    """DESIGN §5: noted first, then confirmed by a write quorum."""
    rounds = FindTailRounds(QuorumRule(3, 2))
    (ask,) = rounds.on_find_tail("a", Offset(5))
    assert isinstance(ask, AskUnsealed)
    assert list(ask.replicas) == [0, 1, 2]
    assert rounds.on_unsealed(0, ask.round_id, Offset(6)) == []
    assert rounds.on_unsealed(2, ask.round_id, Offset(9)) == [AnswerTail(["a"], Offset(5))]


def test_a_seal_quorum_is_not_enough_when_it_is_smaller() -> None:
    """DESIGN §5: two seal quorums need not meet; 3/3 has seal quorums of one."""
    rounds = FindTailRounds(QuorumRule(3, 3))
    (ask,) = rounds.on_find_tail("a", Offset(5))
    assert isinstance(ask, AskUnsealed)
    assert rounds.on_unsealed(0, ask.round_id, Offset(5)) == []
    assert rounds.on_unsealed(1, ask.round_id, Offset(5)) == []
    assert rounds.on_unsealed(2, ask.round_id, Offset(5)) != []


def test_who_comes_while_a_round_runs_waits_for_the_next() -> None:
    """DESIGN §5: joining a running round would hand out a tail noted before the caller asked."""
    rounds = FindTailRounds(QuorumRule(3, 2))
    (ask,) = rounds.on_find_tail("a", Offset(5))
    assert isinstance(ask, AskUnsealed)
    assert rounds.on_find_tail("b", Offset(8)) == []
    assert rounds.on_find_tail("c", Offset(8)) == []
    rounds.on_unsealed(0, ask.round_id, Offset(8))
    answer, again = rounds.on_unsealed(1, ask.round_id, Offset(8))
    assert answer == AnswerTail(["a"], Offset(5))
    assert isinstance(again, AskUnsealed)
    assert again.round_id != ask.round_id
    rounds.on_unsealed(0, again.round_id, Offset(9))
    assert rounds.on_unsealed(2, again.round_id, Offset(9)) == [AnswerTail(["b", "c"], Offset(8))]


def test_answers_of_an_older_round_count_nothing() -> None:
    rounds = FindTailRounds(QuorumRule(3, 2))
    (ask,) = rounds.on_find_tail("a", Offset(5))
    assert isinstance(ask, AskUnsealed)
    rounds.on_unsealed(0, ask.round_id, Offset(5))
    rounds.on_unsealed(1, ask.round_id, Offset(5))
    (again,) = rounds.on_find_tail("b", Offset(6))
    assert isinstance(again, AskUnsealed)
    assert rounds.on_unsealed(2, ask.round_id, Offset(6)) == []
    assert rounds.on_unsealed(2, again.round_id, Offset(6)) == []


def test_one_replica_that_answers_twice_counts_once() -> None:
    rounds = FindTailRounds(QuorumRule(3, 2))
    (ask,) = rounds.on_find_tail("a", Offset(5))
    assert isinstance(ask, AskUnsealed)
    assert rounds.on_unsealed(1, ask.round_id, Offset(5)) == []
    assert rounds.on_unsealed(1, ask.round_id, Offset(5)) == []


def test_a_new_stream_is_asked_again_unless_it_has_answered() -> None:
    rounds = FindTailRounds(QuorumRule(3, 2))
    assert rounds.on_link_ready(0) == []
    (ask,) = rounds.on_find_tail("a", Offset(5))
    assert isinstance(ask, AskUnsealed)
    rounds.on_unsealed(0, ask.round_id, Offset(5))
    assert rounds.on_link_ready(0) == []
    assert rounds.on_link_ready(1) == [AskUnsealed(ask.round_id, [1])]


def test_when_the_loglet_is_over_every_caller_is_handed_back() -> None:
    rounds = FindTailRounds(QuorumRule(3, 2))
    rounds.on_find_tail("a", Offset(5))
    rounds.on_find_tail("b", Offset(5))
    assert rounds.drop_all() == ["a", "b"]
    assert rounds.drop_all() == []


def test_callers_that_wait_are_served_though_the_running_ones_gave_up() -> None:
    """A round whose callers have all gone away makes room for the next at once."""
    rounds = FindTailRounds(QuorumRule(3, 2))
    rounds.on_find_tail("a", Offset(5))
    assert rounds.on_find_tail("b", Offset(6)) == []
    (ask,) = rounds.on_withdrawn("a", Offset(7))
    assert isinstance(ask, AskUnsealed)
    rounds.on_unsealed(0, ask.round_id, Offset(7))
    assert rounds.on_unsealed(1, ask.round_id, Offset(7)) == [AnswerTail(["b"], Offset(7))]
    assert rounds.on_withdrawn("b", Offset(7)) == []
