"""Golden transcripts of seal, failover and repair: the protocol as it happens, to be read.

Each scenario drives the real cores and writes down what they do; the text must be the one that lies
beside it. After a change on purpose: `UPDATE_TRANSCRIPTS=1 pytest tests/transcripts`, read the
diff, and keep it only if it can be explained.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.stage import Stage

HERE = Path(__file__).parent
UPDATE = "UPDATE_TRANSCRIPTS"


def clean_hand_over() -> Stage:
    """A planned move: all that was admitted is committed, so nothing is copied."""
    stage = Stage("A clean hand-over", replicas=3, write_quorum=2)
    old = stage.writer()
    old.append(2)
    old.append()
    old.arrive()
    stage.say("n1 is to be drained: its sequencer admits nothing more and has nothing in flight")
    stage.attempt("R1").finish()
    stage.show(old.segment)
    stage.say("the next sequencer opens its segment and goes on; the old one, should it try, can't")
    new = stage.writer()
    new.append()
    new.arrive()
    old.append()
    old.arrive()
    stage.show()
    return stage


def kill_with_a_tail_on_one_server() -> Stage:
    """Field note 17: a record that nobody acknowledged survives on one server, and stays."""
    stage = Stage(
        "The sequencer is killed while its last record is on one server", replicas=3, write_quorum=2
    )
    old = stage.writer()
    old.append(2)
    old.arrive()
    old.append()
    old.arrive("n2")
    stage.say("n1, which orders the log, is killed; n3 never got the last store")
    stage.down("n1")
    stage.show()
    stage.attempt("R1").finish()
    stage.show(old.segment)
    return stage


def empty_segment() -> Stage:
    """Field note 15: replaced in place, the index grows."""
    stage = Stage("An empty segment, on servers that never heard of it", replicas=3, write_quorum=2)
    empty = stage.chain.open_segment
    stage.say(
        "nobody ever appended; the seal creates the loglet sealed, so a late open finds it so"
    )
    stage.down("n3")
    stage.attempt("R1").finish()
    stage.show(empty)
    stage.say("an open that was on its way arrives")
    stage.up("n3")
    late = stage.late_writer(empty)
    late.append()
    late.arrive()
    return stage


def two_attempts_race() -> Stage:
    """Field notes 7 and 14: the chain decides; what lies beyond its end is in no log."""
    stage = Stage(
        "Two attempts at once; the lower end wins, and the loser adopts it",
        replicas=3,
        write_quorum=2,
    )
    old = stage.writer()
    old.append()
    old.arrive()
    old.append()
    old.arrive("n1")
    stage.down("n1")
    high, low = stage.attempt("R1"), stage.attempt("R2", sequencer="n3")
    stage.say("R2 hears n2 and n3, and finds the tail at 1")
    for member in (1, 2):
        low.seal(member)
    stage.say("n1 comes back; R1 hears n1 and n2, finds the tail at 2 and copies it")
    stage.up("n1")
    for member in (0, 1):
        high.seal(member)
    high.impatient()
    high.step()
    high.step()
    stage.say("R2 is first to write the chain")
    low.impatient()
    low.finish()
    stage.say("R1 goes on, for it knows of nothing, and finds out at its own compare-and-swap")
    high.finish()
    stage.show(old.segment)
    stage.say("what n1 and n2 hold at 1 lies at the end, so no reader is ever shown it")
    return stage


def damaged_source() -> Stage:
    """Field note 5: damage is unknown, never no."""
    stage = Stage("A damaged source", replicas=3, write_quorum=2)
    old = stage.writer()
    for _ in range(4):
        old.append()
    old.arrive("n1", "n2")
    stage.say("one batch is damaged on each of two servers; each has what the other lacks")
    stage.damage("n1", 1)
    stage.damage("n2", 3)
    stage.down("n3")
    stage.show()
    stage.attempt("R1", batches_max=1).finish()
    stage.show(old.segment)
    return stage


def damaged_tail_is_left_out() -> Stage:
    """Field note 5: what a whole seal quorum lacks was never committed, so it may be left out."""
    stage = Stage("A tail that only a damaged disk has", replicas=3, write_quorum=2)
    old = stage.writer()
    old.append()
    old.arrive()
    old.append()
    old.arrive("n1")
    stage.damage("n1", 1)
    stage.say("with n3 away nobody can tell whether the record at 1 was committed: it stops")
    stage.down("n3")
    stage.attempt("R1").finish()
    stage.say("n3 is back: n2 and n3 are a seal quorum that lacks it, so it never was")
    stage.up("n3")
    stage.attempt("R2").finish()
    stage.show(old.segment)
    return stage


def replacement_server() -> Stage:
    """A disk is lost, and those who are left are no write quorum: a new server joins."""
    stage = Stage("A replacement server", replicas=2, write_quorum=2, servers=3)
    old = stage.writer()
    for _ in range(2):
        old.append(2)
    old.arrive()
    old.append()
    old.arrive("n1")
    stage.say("n2 loses its disk; 2 of 2 can never answer again, so waiting would be for ever")
    stage.down("n2")
    stage.attempt("R1").finish()
    stage.say("as long as n2 is only away nobody knows that; it comes back, with another store")
    stage.wipe("n2")
    stage.servers[stage.chain.open_segment.nodeset[1].node_id].full = True
    stage.note("n2: its new disk is full already")
    stage.attempt("R2", batches_max=2).finish()
    stage.show(old.segment)
    return stage


def sealed_race() -> Stage:
    """Field notes 1, 6 and 16: an append races the seal; the sequencer hears of it by SEALED."""
    stage = Stage("Appends race the seal, and a paused sequencer wakes", replicas=3, write_quorum=2)
    old = stage.writer()
    old.append()
    old.arrive()
    stage.say("the record at 1 reaches n1 and n2 before they seal; their answers are on the way")
    old.append()
    old.arrive("n1", "n2", unheard=True)
    stage.say("the record at 2 reaches n1 only; then the log is taken over")
    old.append()
    old.arrive("n1", unheard=True)
    attempt = stage.attempt("R1")
    attempt.seal(1)
    attempt.seal(2)
    stage.say("what was sent to n2 and n3 arrives now, and is refused")
    old.arrive("n2", "n3", unheard=True)
    attempt.finish()
    stage.say(
        "the sequencer was paused all that time. It wakes, and hears the answers in their order"
    )
    old.hear()
    stage.say("1 was acknowledged late, and it is true; 2 is indefinite; nothing more is taken")
    old.append()
    stage.show(old.segment)
    return stage


def sealed_but_not_repairable_yet() -> Stage:
    """Field notes 10 and 13: two of four can seal, three must hold; anyone goes on later."""
    stage = Stage("Sealed, and not repairable yet", replicas=4, write_quorum=3)
    old = stage.writer()
    old.append()
    old.arrive("n1", "n2", "n3")
    stage.down("n3", "n4")
    stage.attempt("R1").finish()
    stage.say("the loglet is sealed and the chain is not moved: appends wait")
    old.append()
    old.arrive("n1")
    stage.say("a server returns, and somebody else finishes what R1 began")
    stage.up("n4")
    stage.attempt("R2").finish()
    stage.show(old.segment)
    return stage


def unrepairable() -> Stage:
    """Field note 18: too much is lost for anybody but a person to decide."""
    stage = Stage("Unrepairable", replicas=3, write_quorum=2)
    old = stage.writer()
    old.append(2)
    old.arrive()
    stage.wipe("n2")
    stage.wipe("n3")
    stage.attempt("R1").finish()
    stage.say("n1 holds two records, but n2 and n3 may have acknowledged a third: nobody can know")
    stage.show()
    return stage


SCENARIOS: list[Callable[[], Stage]] = [
    clean_hand_over,
    kill_with_a_tail_on_one_server,
    empty_segment,
    two_attempts_race,
    damaged_source,
    damaged_tail_is_left_out,
    replacement_server,
    sealed_race,
    sealed_but_not_repairable_yet,
    unrepairable,
]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda it: it.__name__)
def test_the_protocol_goes_as_written(scenario: Callable[[], Stage]) -> None:
    """What the cores do is what the transcript says, line by line."""
    text = scenario().text
    path = HERE / f"{scenario.__name__}.txt"
    if os.environ.get(UPDATE):
        path.write_text(text)
    assert path.exists(), f"no transcript yet: set {UPDATE}=1"
    assert text == path.read_text(), f"if that is meant, set {UPDATE}=1 and read the diff"


def test_every_transcript_has_its_scenario() -> None:
    """Nothing that is read here is out of date."""
    assert {it.stem for it in HERE.glob("*.txt")} == {it.__name__ for it in SCENARIOS}
