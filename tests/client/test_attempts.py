"""The core of finding the sequencer: where attempts go, what is reported, how long is waited."""

from __future__ import annotations

from random import Random

import pytest

from sharedlog.attempts import Attempts, Failure, FailureKind
from sharedlog.errors import LogUnavailable, NotSequencer, Overloaded, SharedLogError, Unreachable


def make(*, smart: bool = True) -> Attempts:
    return Attempts(Random(1), smart=smart)


def failure(
    kind: FailureKind, error: SharedLogError | None = None, *, direct: bool = True
) -> Failure:
    return Failure(kind, error or Unreachable("gone"), "n1:1", direct)


@pytest.mark.parametrize(
    ("kind", "direct", "reported"),
    [
        ("unreached", True, True),
        ("broke", True, True),
        ("silent", True, True),
        ("refused", True, False),
        ("unreached", False, False),
        ("broke", False, False),
        ("silent", False, True),
        ("refused", False, False),
    ],
)
def test_who_does_not_answer_is_reported_and_who_refuses_is_not(
    kind: FailureKind, direct: bool, reported: bool
) -> None:
    """A node that answers with an error lives. One that merely forwards is passed over, unless
    nothing came through it: then the sequencer behind it may be the silent one."""
    assert make().on_failure(failure(kind, direct=direct)) is reported


def test_the_first_retry_is_at_once_and_the_later_ones_back_off() -> None:
    """Within 10 ms, then from 20 ms up to half a second, until there is progress."""
    attempts = make()
    waits = []
    for _ in range(12):
        attempts.on_failure(failure("refused"))
        waits.append(attempts.wait_s(None))
    assert waits[0] <= 0.01
    assert 0.01 <= waits[1] <= 0.03
    assert all(wait <= 0.75 for wait in waits)
    assert min(waits[-3:]) >= 0.25
    attempts.on_progress()
    attempts.on_failure(failure("refused"))
    assert attempts.wait_s(None) <= 0.01
    assert attempts.wait_s(Overloaded("busy", retry_after_s=3)) == 3


def test_a_move_is_followed_at_once_but_not_for_ever() -> None:
    """Two nodes that send a client back and forth are not hammered."""
    attempts = make()
    for _ in range(3):
        attempts.on_moved("n2:1")
        assert attempts.told == "n2:1"
        assert attempts.wait_s(None) == 0
    waits = []
    for _ in range(6):
        attempts.on_moved("n3:1")
        waits.append(attempts.wait_s(None))
    assert waits[-1] > 0.2


def test_a_verdict_against_the_suspect_leads_to_the_new_one_at_once() -> None:
    """Whoever looked into it has told where to go."""
    attempts = make()
    broke = failure("broke")
    attempts.on_failure(broke)
    attempts.on_report_answered(broke, address="n2:1", innocent=False, now_s=0)
    assert attempts.told == "n2:1"
    assert attempts.wait_s(broke.error) == 0


def test_an_innocent_one_is_given_more_time_for_a_while() -> None:
    """While a write quorum is away the sequencer lives and is silent: it is asked more and more
    seldom, and a minute later, or with another sequencer, everything is as before."""
    attempts = make()
    silent = failure("silent")
    limits = []
    for _ in range(20):
        limits.append(attempts.limit_s(0.6, 100.0))
        attempts.on_failure(silent)
        attempts.on_report_answered(silent, address="n1:1", innocent=True, now_s=100.0)
        assert not attempts.told
        assert not attempts.forward, "it was reached"
    assert limits[:4] == pytest.approx([0.6, 1.2, 2.4, 4.8])
    assert limits[-1] == 5.0
    attempts.on_progress()
    assert attempts.limit_s(0.6, 159.0) == 5.0, "its next answer may take as long"
    assert attempts.limit_s(0.6, 160.0) == 0.6
    attempts.on_report_answered(silent, address="n1:1", innocent=True, now_s=200.0)
    attempts.on_report_answered(silent, address="n2:1", innocent=False, now_s=200.0)
    assert attempts.limit_s(0.6, 200.0) == 0.6


def test_a_sequencer_that_others_reach_is_reached_through_them() -> None:
    """Cut off from that one node, a client goes through another; so it does when nobody can say."""
    attempts = make()
    unreached = failure("unreached")
    attempts.on_failure(unreached)
    assert not attempts.forward
    attempts.on_report_answered(unreached, address="n1:1", innocent=True, now_s=0)
    assert attempts.forward
    alone = make()
    alone.on_failure(unreached)
    assert not alone.forward
    alone.on_failure(unreached)
    assert alone.forward


def test_the_node_that_was_named_is_next() -> None:
    """NotSequencer says who is; another error says nothing of it."""
    attempts = make()
    attempts.on_failure(failure("refused", NotSequencer("not me", sequencer_node_id="n3")))
    assert attempts.named == "n3"
    assert attempts.refresh
    attempts.on_failure(failure("refused", LogUnavailable("later")))
    assert attempts.named == "n3"


def test_a_plain_client_goes_nowhere_but_to_its_addresses() -> None:
    """It may not reach any other."""
    attempts = make(smart=False)
    attempts.on_moved("n2:1")
    assert not attempts.told
    assert attempts.wait_s(None) == 0
