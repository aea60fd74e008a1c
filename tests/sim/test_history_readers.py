"""The checks of reads for a key and of cursors: bad histories are caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from helpers.history import CursorEnd, Final, FinalRecord, History, Owner, Read
from helpers.history_check import check_history

RED, BLUE = b"red", b"blue"
KEYS = (RED, BLUE, None, RED, BLUE, RED)


def _keyed() -> tuple[History, Final]:
    """Six records with keys, all acknowledged."""
    history, records = History(), []
    for offset, key in enumerate(KEYS):
        append = history.append("a", b"v%d" % offset, key=key)
        history.acked(append, offset)
        records.append(FinalRecord(offset, append.value, 1000 + offset, key=key))
    return history, Final(len(records), records)


def _kinds(history: History, final: Final) -> set[str]:
    return {violation.kind for violation in check_history(history, final)}


def _see(history: History, read: Read, *offsets: int) -> None:
    for offset in offsets:
        history.saw(read, offset, b"v%d" % offset, 1000 + offset)


# Keys.


@pytest.mark.parametrize(
    ("seen", "kinds"),
    [
        ((0, 3, 5), set()),
        ((0, 5), {"gap"}),
        ((3, 5), {"gap"}),
        ((0, 1, 3, 5), {"gap"}),
        ((0, 3, 3, 5), {"gap"}),
        ((0, 3), {"real-time"}),
    ],
)
def test_a_read_for_a_key_gets_all_of_it_and_nothing_else(
    seen: tuple[int, ...], kinds: set[str]
) -> None:
    """To the tail as it was: what was acknowledged before belongs to it."""
    history, final = _keyed()
    read = history.read("r", 0, key=RED)
    _see(history, read, *seen)
    history.read_ended(read)
    assert _kinds(history, final) == kinds


def test_a_read_for_a_key_to_an_end_may_be_short_of_it() -> None:
    """If there is nothing more of the key before it."""
    history, final = _keyed()
    for end, kinds in ((5, set[str]()), (6, {"short"})):
        read = history.read("r", 1, end=end, key=RED)
        _see(history, read, 3)
        history.read_ended(read)
        assert _kinds(history, final) == kinds


@pytest.mark.parametrize(("covered", "kinds"), [(3, set()), (4, {"gap"})])
def test_a_follower_that_is_told_where_it_stands_has_all_before(
    covered: int, kinds: set[str]
) -> None:
    """Its next record is at 3."""
    history, final = _keyed()
    read = history.read("f", 0, follow=True, key=RED)
    _see(history, read, 0)
    read.covered = covered
    assert read.position == covered
    assert _kinds(history, final) == kinds


@pytest.mark.parametrize(
    ("start", "at", "told", "seen", "kinds"),
    [
        (3, 0, 3, (3, 4, 5), set()),  # it goes on where it was told that the log starts
        (3, 2, 3, (3, 4, 5), {"gap"}),  # it stood at 0
        (3, 0, 3, (4, 5), {"gap"}),  # and leaves out what is there
        (3, 0, 4, (4, 5), {"purged"}),  # the log starts elsewhere
        (0, 0, 3, (3, 4, 5), {"purged"}),  # nothing was purged
        (3, 3, 3, (3, 4, 5), {"gap", "purged"}),  # it does not stand below
    ],
)
def test_who_is_told_where_the_log_starts(
    start: int, at: int, told: int, seen: tuple[int, ...], kinds: set[str]
) -> None:
    """By then it starts there; what lies below is left out, and nothing else."""
    history, final = _keyed()
    if start:
        history.starts_at(start)
    read = history.read("r", 0, end=6)
    history.purged(read, at, told)
    _see(history, read, *seen)
    history.read_ended(read)
    assert _kinds(history, replace(final, start=start)) == kinds


def test_nobody_is_told_of_a_purge_before_it_is_made() -> None:
    history, final = _keyed()
    read = history.read("r", 0, end=6)
    history.purged(read, 0, 3)
    history.starts_at(3)
    assert _kinds(history, replace(final, start=3)) == {"purged"}


def test_another_key_than_it_was_appended_with() -> None:
    """Of a record as the log has it."""
    history, final = _keyed()
    records = [*final.records[:-1], final.records[-1]._replace(key=BLUE)]
    assert _kinds(history, Final(6, records)) == {"key"}


# Cursors.


class _Cursor:
    """A cursor as it should be, and what its owners are told."""

    def __init__(self) -> None:
        self.history, self.final = _keyed()
        self.epoch = self.position = 0

    def take(self, caller: str) -> Owner:
        owner = self.history.owner(caller, "billing")
        self.epoch += 1
        self.history.owns(owner, epoch=self.epoch, position=self.position)
        return owner

    def handle(self, owner: Owner, position: int, *, told: bool = True) -> None:
        """All up to the position is handed to the owner, who moves the cursor there."""
        owner.handled.update(range(self.position, position))
        self.move(owner, position, told=told)

    def move(self, owner: Owner, position: int, *, told: bool = True) -> None:
        move = self.history.move(owner, position)
        self.position = position
        if told:
            self.history.moved(move)

    def lose(self, owner: Owner) -> None:
        self.history.cursor_lost(owner)

    def kinds(self) -> set[str]:
        self.history.cursors = [CursorEnd("billing", self.epoch, self.position)]
        return _kinds(self.history, self.final)


def _usual(it: _Cursor) -> None:
    """Two owners after each other; the first finds out; the second goes back, and on."""
    first = it.take("c0")
    it.handle(first, 2)
    it.handle(first, 3, told=False)
    second = it.take("c1")
    it.lose(first)
    it.handle(second, 4)
    it.move(second, 1)
    it.handle(second, 6)


def _position_lost(it: _Cursor) -> None:
    it.handle(it.take("c0"), 3)
    it.position = 2
    it.take("c1")


def _begins_elsewhere(it: _Cursor) -> None:
    it.position = 1
    it.take("c0")


def _moved_by_who_had_lost_it(it: _Cursor) -> None:
    first = it.take("c0")
    it.take("c1")
    it.move(first, 0)


def _one_epoch_for_two(it: _Cursor) -> None:
    it.take("c0")
    it.epoch -= 1
    it.take("c1")


def _epochs_run_back(it: _Cursor) -> None:
    it.epoch = 5
    it.take("c0")
    it.epoch = 1
    it.take("c1")
    it.epoch = 6


def _lost_to_nobody(it: _Cursor) -> None:
    it.lose(it.take("c0"))


def _lost_to_an_older_one(it: _Cursor) -> None:
    it.take("c0")
    it.lose(it.take("c1"))


def _ran_back_in_the_end(it: _Cursor) -> None:
    it.handle(it.take("c0"), 3)
    it.position = 1


def _epoch_ran_back_in_the_end(it: _Cursor) -> None:
    it.take("c0")
    it.epoch = 0


def _handled_by_nobody(it: _Cursor) -> None:
    it.move(it.take("c0"), 3)


def test_owners_after_each_other_pass() -> None:
    """The base of the tests below."""
    it = _Cursor()
    _usual(it)
    assert it.kinds() == set()


def test_a_take_without_an_answer_may_have_been_made() -> None:
    """Who is told of the loss lost it to somebody of whom nobody knows."""
    it = _Cursor()
    first = it.take("c0")
    it.history.owner("c1", "billing")
    it.lose(first)
    it.epoch += 1
    assert it.kinds() == set()


@pytest.mark.parametrize(
    "course",
    [
        *(_position_lost, _begins_elsewhere, _moved_by_who_had_lost_it, _one_epoch_for_two),
        *(_epochs_run_back, _lost_to_nobody, _lost_to_an_older_one, _ran_back_in_the_end),
        *(_epoch_ran_back_in_the_end, _handled_by_nobody),
    ],
)
def test_what_no_cursor_does_is_found(course: Callable[[_Cursor], None]) -> None:
    """Each by the same kind."""
    it = _Cursor()
    course(it)
    assert it.kinds() == {"cursor"}
