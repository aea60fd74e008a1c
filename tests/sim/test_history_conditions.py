"""The checks of conditions, fencing tokens and named producers: bad histories are caught."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pytest
from helpers.history import Append, Control, Final, FinalRecord, History, Life, Place
from helpers.history_check import check_history

P = "p"


class Course:
    """A history, and the log that comes of it if whoever orders it makes no mistake."""

    def __init__(self) -> None:
        self.history = History()
        self.records: list[FinalRecord] = []
        self.token = ""
        self.places: dict[str, Place] = {}

    @property
    def tail(self) -> int:
        return len(self.records)

    @property
    def final(self) -> Final:
        return Final(self.tail, self.records)

    def kinds(self, final: Final | None = None) -> set[str]:
        return {it.kind for it in check_history(self.history, final or self.final)}

    # What goes into the log.

    def put(self, value: bytes, control: Control | None = None) -> int:
        offset = self.tail
        self.records.append(FinalRecord(offset, value, 1000 + offset, control))
        return offset

    def put_control(self, cause: str) -> int:
        state = Control(cause, self.token, dict(self.places))
        return self.put(f"state {self.tail}".encode(), state)

    def put_append(self, append: Append) -> int:
        """An append takes effect, whatever it depends on."""
        if append.sets is not None:
            self.token = append.sets
            return self.put_control("fence")
        if append.life is not None:
            place = self.places[append.life.producer]
            if place.epoch == append.life.epoch:
                self.places[append.life.producer] = Place(place.epoch, place.next_sequence + 1)
        return self.put(append.value)

    # Operations that end before anything else happens.

    def append(
        self, value: bytes, *, match_offset: int | None = None, token: str | None = None
    ) -> Append:
        append = self.history.append("a", value, match_offset=match_offset, token=token)
        self.history.acked(append, self.put_append(append))
        return append

    def fence(self, token: str, *, expected: str | None = None) -> Append:
        fence = self.history.fence("f", token, expected=expected)
        self.history.acked(fence, self.put_append(fence))
        return fence

    def refused(
        self,
        value: bytes = b"refused",
        *,
        match_offset: int | None = None,
        token: str | None = None,
        tail: int | None = None,
        current: str | None = None,
    ) -> Append:
        append = self.history.append("a", value, match_offset=match_offset, token=token)
        self.refuse(append, tail=tail, current=current)
        return append

    def refuse(
        self, append: Append, *, tail: int | None = None, current: str | None = None
    ) -> None:
        self.history.failed(append, OSError("!"), definite=True, tail=tail, token=current)

    def live(self, producer: str = P) -> Life:
        life = self.history.life(producer)
        self.begin(producer)
        self.history.lives_on(life, **self.places[producer]._asdict())
        return life

    def begin(self, producer: str) -> None:
        epoch, next_sequence = self.places.get(producer, Place(0, 0))
        self.places[producer] = Place(epoch + 1, next_sequence)
        self.put_control("producer")

    def append_in(self, life: Life, sequence: int, *, value: bytes | None = None) -> Append:
        name = value or b"%s %d" % (life.producer.encode(), sequence)
        append = self.history.append_in(life, "l", name, sequence)
        self.history.acked(append, self.put_append(append))
        return append

    def read(self) -> None:
        """Of the whole log, to the tail."""
        read = self.history.read("r", 0)
        for record in self.records:
            if record.control is None:
                self.history.saw(read, *record[:3])
        self.history.read_ended(read)


def _good() -> Course:
    """Two fences, two lives of a producer, an append of each kind, and of each that is refused."""
    course = Course()
    course.append(b"x", match_offset=0)
    course.fence("t1", expected="")
    course.append(b"with t1", token="t1")
    first = course.live()
    course.append_in(first, 0)
    course.fence("t2")
    second = course.live()
    course.append_in(second, 1)
    course.refused(b"too late", match_offset=7, tail=8)
    course.refused(b"fenced out", token="t1", current="t2")
    course.read()
    return course


def test_a_good_history_passes() -> None:
    """The base of the tests below: without their change nothing is wrong."""
    course = _good()
    course.put_control("checkpoint")
    assert course.tail == 9
    course.read()
    assert not course.kinds()


def test_a_read_may_end_in_front_of_control_records() -> None:
    """Nobody can tell whether they were there."""
    course = _good()
    read = course.history.read("r", 8)
    course.history.read_ended(read)
    tail = course.history.tail("t")
    course.history.tail_found(tail, 9)
    bounded = course.history.read("r", 8, end=9)
    course.history.read_ended(bounded)
    course.put_control("checkpoint")
    assert not course.kinds()


def test_a_refusal_may_tell_of_any_moment_while_it_was_under_way() -> None:
    """The tail or token as it was when it was asked for, when it answered, or between."""
    for tail in (8, 9, 10):
        course = _good()
        waits = course.history.append("w", b"waits", match_offset=3)
        course.append(b"y")
        course.append(b"z")
        course.refuse(waits, tail=tail)
        assert not course.kinds()
    for token in ("t2", "t3", "t4"):
        course = _good()
        waits = course.history.append("w", b"waits", token="other")
        course.fence("t3")
        course.fence("t4")
        course.refuse(waits, current=token)
        assert not course.kinds()


def test_what_has_no_outcome_is_free() -> None:
    """It is in the log or not; if it is, its condition held."""
    course = _good()
    history = course.history
    for value, match_offset, token in ((b"1", 8, None), (b"2", 3, None), (b"3", None, "t1")):
        append = history.append("a", value, match_offset=match_offset, token=token)
        history.failed(append, OSError("?"), definite=False)
        if match_offset == 8:
            course.put_append(append)
    fence = history.fence("f", "t3", expected="t2")
    history.failed(fence, OSError("?"), definite=False)
    course.put_append(fence)
    unknown = history.life(P)
    course.begin(P)
    assert unknown.responded is None
    course.append_in(course.live(), 2)
    assert not course.kinds()


def test_an_accepted_loss_may_have_taken_a_fence() -> None:
    """Then nobody can say which token was in force."""
    course = _good()
    course.history.reads.clear()
    records = [it for it in course.records if it.offset != 1]
    final = Final(course.tail, records, [(1, 2)])
    assert not course.kinds(final)


# Each of these makes the good course bad; the kind that must be found is its argument.

Spoil = Callable[[Course], Final | None]


def _at_another_offset(course: Course) -> None:
    course.append(b"y", match_offset=9)


def _at_another_offset_and_not_acknowledged(course: Course) -> None:
    append = course.history.append("a", b"y", match_offset=9)
    course.put_append(append)


def _refused_by_the_tail_that_it_wanted(course: Course) -> None:
    course.refused(match_offset=8, tail=8)


def _told_of_a_tail_of_long_ago(course: Course) -> None:
    course.refused(match_offset=3, tail=7)


def _told_of_a_tail_that_never_was(course: Course) -> None:
    course.refused(match_offset=3, tail=9)


def _told_of_a_tail_that_was_not_yet(course: Course) -> None:
    course.refused(match_offset=3, tail=9)
    course.append(b"y")


def _refused_and_there(course: Course) -> None:
    append = course.refused(match_offset=9, tail=8)
    course.put_append(append)


def _with_a_token_of_long_ago(course: Course) -> None:
    course.append(b"y", token="t1")


def _with_a_wrong_token_and_not_acknowledged(course: Course) -> None:
    course.put_append(course.history.append("a", b"y", token="t1"))


def _told_of_a_token_of_long_ago(course: Course) -> None:
    course.refused(token="other", current="t1")


def _told_of_no_token_after_a_fence(course: Course) -> None:
    course.refused(token="t2", current="")


def _told_of_a_token_that_was_not_yet(course: Course) -> None:
    course.refused(token="other", current="t3")
    course.fence("t3")


def _told_of_a_token_that_was_cut_off(course: Course) -> None:
    fence = course.history.fence("f", "t3")
    course.history.failed(fence, OSError("?"), definite=False)
    course.refused(token="t2", current="t3")


def _refused_by_the_token_that_it_had(course: Course) -> None:
    course.refused(token="t2", current="t2")


def _fence_in_the_place_of_another_token(course: Course) -> None:
    course.fence("t3", expected="t1")


def _acknowledged_fence_gone(course: Course) -> None:
    fence = course.history.fence("f", "t3")
    course.history.acked(fence, course.put(b"no fence"))


def _fence_of_nobody(course: Course) -> None:
    course.token = "t3"
    course.put_control("fence")


def _fence_refused_and_there(course: Course) -> None:
    fence = course.history.fence("f", "t3", expected="t1")
    course.refuse(fence, current="t2")
    course.put_append(fence)


def _fence_twice(course: Course) -> None:
    course.put_append(next(it for it in course.history.appends if it.sets == "t1"))


def _life_told_too_much(course: Course) -> None:
    course.live().next_sequence = 3


def _life_told_too_little(course: Course) -> None:
    course.live().next_sequence = 1


def _record_of_a_producer_twice(course: Course) -> None:
    course.append_in(course.live(), 1, value=b"again")


def _record_of_a_producer_missing(course: Course) -> None:
    course.append_in(course.live(), 3)


def _producer_out_of_order(course: Course) -> None:
    life = course.live()
    course.append_in(life, 3)
    course.append_in(life, 2)


def _old_life_behind_the_new_one(course: Course) -> None:
    old = course.history.lives[0]
    course.append_in(old, 2)


def _life_that_is_not_in_the_log(course: Course) -> None:
    life = course.history.life(P)
    course.history.lives_on(life, epoch=3, next_sequence=2)


def _life_begun_twice(course: Course) -> None:
    life = course.history.life(P)
    course.history.lives_on(life, epoch=2, next_sequence=1)


def _life_told_before_it_was_there(course: Course) -> None:
    life = course.history.life(P)
    course.history.lives_on(life, epoch=3, next_sequence=2)
    course.append(b"y")
    course.begin(P)


def _put_state(
    course: Course, cause: str, token: str, producers: Mapping[str, tuple[int, int]]
) -> None:
    places = {name: Place(*place) for name, place in producers.items()}
    course.put(b"state", Control(cause, token, places))


def _checkpoint_of_another_token(course: Course) -> None:
    _put_state(course, "checkpoint", "", {P: (2, 2)})


def _checkpoint_without_the_producer(course: Course) -> None:
    _put_state(course, "checkpoint", "t2", {})


def _checkpoint_of_fewer_records(course: Course) -> None:
    _put_state(course, "checkpoint", "t2", {P: (2, 1)})


def _checkpoint_of_an_older_life(course: Course) -> None:
    _put_state(course, "checkpoint", "t2", {P: (1, 2)})


def _checkpoint_that_begins_a_life(course: Course) -> None:
    _put_state(course, "checkpoint", "t2", {P: (3, 2)})


def _two_lives_at_once(course: Course) -> None:
    _put_state(course, "producer", "t2", {P: (3, 2), "q": (1, 0)})


def _control_record_missing(course: Course) -> Final:
    return Final(course.tail, [it for it in course.records if it.offset != 3])


def _reader_got_a_control_record(course: Course) -> None:
    read = course.history.read("r2", 1)
    course.history.saw(read, *course.records[1][:3])


def _reader_passed_over_a_record(course: Course) -> None:
    read = course.history.read("r2", 1)
    course.history.saw(read, *course.records[4][:3])


def _read_to_the_tail_misses_a_fence_and_a_record(course: Course) -> None:
    course.fence("t3")
    course.append(b"y")
    read = course.history.read("r2", 8)
    course.history.read_ended(read)


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("match", _at_another_offset),
        ("match", _at_another_offset_and_not_acknowledged),
        ("match", _refused_by_the_tail_that_it_wanted),
        ("match", _told_of_a_tail_of_long_ago),
        ("match", _told_of_a_tail_that_never_was),
        ("match", _told_of_a_tail_that_was_not_yet),
        ("not-definite", _refused_and_there),
        ("fence", _with_a_token_of_long_ago),
        ("fence", _with_a_wrong_token_and_not_acknowledged),
        ("fence", _told_of_a_token_of_long_ago),
        ("fence", _told_of_no_token_after_a_fence),
        ("fence", _told_of_a_token_that_was_not_yet),
        ("fence", _told_of_a_token_that_was_cut_off),
        ("fence", _refused_by_the_token_that_it_had),
        ("fence", _fence_in_the_place_of_another_token),
        ("lost", _acknowledged_fence_gone),
        ("invented", _fence_of_nobody),
        ("not-definite", _fence_refused_and_there),
        ("twice", _fence_twice),
        ("producer", _life_told_too_much),
        ("producer", _life_told_too_little),
        ("producer", _record_of_a_producer_twice),
        ("producer", _record_of_a_producer_missing),
        ("producer", _producer_out_of_order),
        ("producer", _old_life_behind_the_new_one),
        ("producer", _life_that_is_not_in_the_log),
        ("producer", _life_begun_twice),
        ("producer", _life_told_before_it_was_there),
        ("state", _checkpoint_of_another_token),
        ("state", _checkpoint_without_the_producer),
        ("state", _checkpoint_of_fewer_records),
        ("state", _checkpoint_of_an_older_life),
        ("state", _checkpoint_that_begins_a_life),
        ("state", _two_lives_at_once),
        ("dense", _control_record_missing),
        ("gap", _reader_got_a_control_record),
        ("gap", _reader_passed_over_a_record),
        ("real-time", _read_to_the_tail_misses_a_fence_and_a_record),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value,
)
def test_each_violation_is_caught(kind: str, spoil: Spoil) -> None:
    """A history with one thing wrong is found out, and by the name of what is wrong."""
    course = _good()
    assert kind in course.kinds(spoil(course))


@pytest.mark.parametrize("seed", range(20))
def test_histories_of_a_correct_log_pass(seed: int) -> None:
    """Operations under way at once against a log that is correct by construction."""
    course = _random_course(random.Random(seed))
    assert not course.kinds()
    assert len(course.history.lives) > 5


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("forgets", ["token", "places"])
def test_histories_of_a_forgetful_log_are_caught(seed: int, forgets: str) -> None:
    """The same, but the state is lost half-way through, and said so by a control record."""
    course = _random_course(random.Random(seed), forgets=forgets)
    assert "state" in course.kinds()


def _random_course(draw: random.Random, *, forgets: str = "") -> Course:
    """Operations begin, take effect, and end, each at a moment of its own."""
    course = Course()
    begun: list[Callable[[], Callable[[], None]]] = []  # to take effect; gives what ends it
    applied: list[Callable[[], None]] = []
    known = [""]  # tokens that clients may come with
    for number in range(400):
        choice = draw.random()
        if choice < 0.4:
            begun.append(_random_operation(course, draw, number, known))
        elif choice < 0.7 and begun:
            applied.append(begun.pop(draw.randrange(len(begun)))())
        elif applied:
            applied.pop(draw.randrange(len(applied)))()
        if number == 200 and forgets:
            course.token = "" if forgets == "token" else course.token
            course.places = {} if forgets == "places" else course.places
            course.put_control("checkpoint")
    for end in [*applied, *(apply() for apply in begun)]:
        end()
    return course


def _random_operation(
    course: Course, draw: random.Random, number: int, known: list[str]
) -> Callable[[], Callable[[], None]]:
    history, kind = course.history, draw.random()
    if kind < 0.15:
        life = history.life(draw.choice("pq"))

        def begin() -> Callable[[], None]:
            course.begin(life.producer)
            place = course.places[life.producer]
            return lambda: history.lives_on(life, **place._asdict())

        return begin
    lives = [it for it in history.lives if it.epoch is not None]
    if kind < 0.35 and lives:
        return _random_record(course, draw, number, draw.choice(lives))
    token = draw.choice(known[-2:]) if draw.random() < 0.5 else None
    if kind < 0.45:
        known.append(f"t{number}")
        append = history.fence("f", known[-1], expected=token)
    else:
        match = course.tail + draw.randint(-1, 1) if draw.random() < 0.4 else None
        append = history.append(f"a{number}", b"%d" % number, match_offset=match, token=token)

    def apply() -> Callable[[], None]:
        if append.token not in (None, course.token):
            current = course.token
            return lambda: course.refuse(append, current=current)
        if append.match_offset not in (None, course.tail):
            tail = course.tail
            return lambda: course.refuse(append, tail=tail)
        offset = course.put_append(append)
        if draw.random() < 0.1:
            return lambda: history.failed(append, OSError("?"), definite=False)
        return lambda: history.acked(append, offset)

    return apply


def _random_record(
    course: Course, draw: random.Random, number: int, life: Life
) -> Callable[[], Callable[[], None]]:
    """The next record of a life, which may be over by then."""
    history = course.history

    def apply() -> Callable[[], None]:
        place = course.places.get(life.producer, Place(0, 0))
        append = history.append_in(life, f"l{number}", b"%d" % number, place.next_sequence)
        if place.epoch != life.epoch:
            return lambda: course.refuse(append)
        offset = course.put_append(append)
        if draw.random() < 0.1:
            return lambda: history.failed(append, OSError("?"), definite=False)
        return lambda: history.acked(append, offset)

    return apply
