"""Judges what clients made depend on the log's state, and that state: see `history_check.py`.

The state is known from the final log alone: fences are in it in their order, and so are the
beginnings of the lives of named producers, each at an offset.

| kind | what must hold |
|---|---|
| `match` | what was to get an offset is there or nowhere; who is refused is told another tail |
| `fence` | what came with a token is where that was the log's; who is refused is told another one |
| `producer` | over all its lives, the records of a named producer are 0, 1, 2, … in order |
| `producer` | each life has an epoch of its own, and begins where it was told, behind the others |
| `state` | a control record repeats what the log says up to it |

A tail or token that a refusal told, and a life, are bounds on the log's length besides: who is told
of tail T has asked for the tail; who is told of a token has seen the log no shorter than to the
fence that set it, and had begun when it was no longer than to the next one. `bounds_of_state` gives
these for the check of linearizability.

An accepted loss may have taken fences and lives with it: what rests on those is not judged then.

Pure: no I/O, no clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from helpers.history import Append, FinalRecord, History, Life, Place
from helpers.history_log import Bound, LogView, Violation, named


def check_conditions(history: History, log: LogView) -> Iterator[Violation]:
    """Each append that depended on something, by itself."""
    for append in history.appends:
        where = log.offsets.get(append.value)
        match = append.match_offset
        if match is not None:
            if where is not None and where != match:
                message = f"{named(append)} was to get {match} and is at {where}"
                yield Violation("match", message)
            if append.told_tail == match:
                message = f"{named(append)} was to get {match}, and was told that this is the tail"
                yield Violation("match", message)
        if append.token is not None and not log.final.lost:
            yield from _check_token(append, where, log)


def _check_token(append: Append, where: int | None, log: LogView) -> Iterator[Violation]:
    if where is not None and log.token_at(where) != append.token:
        message = f"{named(append)} came with token {append.token!r} and is at {where}"
        yield Violation("fence", f"{message}, where it is {log.token_at(where)!r}")
    told = append.told_token
    if told is None:
        return
    if told == append.token:
        yield Violation("fence", f"{named(append)} came with the token {told!r} that it was told")
    if all(told != reign.token for reign in log.reigns):
        yield Violation("fence", f"{named(append)} was told of {told!r}, which was never set")


def bounds_of_state(history: History, log: LogView) -> tuple[list[Bound], list[Bound]]:
    """What refusals and lives tell of the log's length: at least, and at most."""
    least: list[Bound] = []
    most: list[Bound] = []

    def between(
        invoked: int, responded: int, bounds: tuple[int, int], what: str, kind: str
    ) -> None:
        least.append(Bound(responded, bounds[0], what, kind))
        most.append(Bound(invoked, bounds[1], what, kind))

    for append in history.appends:
        if append.told_tail is not None:
            assert append.responded is not None
            what = f"tail {append.told_tail}, told to {named(append)}"
            least.append(Bound(append.responded, append.told_tail, what, "match"))
            most.append(Bound(append.invoked, append.told_tail, what, "match"))
        reigns = [reign for reign in log.reigns if reign.token == append.told_token]
        if reigns and not log.final.lost:
            assert append.responded is not None
            what = f"token {append.told_token!r}, told to {named(append)}"
            least.append(Bound(append.responded, reigns[0].shortest, what, "fence"))
            most.append(Bound(append.invoked, reigns[-1].longest, what, "fence"))
    begun = _begun(log)
    for life in history.lives:
        at = begun[life.producer].get(life.epoch or 0)
        if life.responded is not None and at is not None:
            what = f"life {life.epoch} of {life.producer}"
            least.append(Bound(life.responded, at + 1, what, "producer"))
            most.append(Bound(life.invoked, at, what, "producer"))
    return least, most


# Named producers.


class _Written(NamedTuple):
    """A record of a named producer, in the log."""

    offset: int
    sequence: int
    life: Life


def check_producers(history: History, log: LogView) -> Iterator[Violation]:
    """Each named producer, over all its lives."""
    if log.final.lost:
        return
    begun = _begun(log)
    written = _written(history, log)
    lives: dict[str, list[Life]] = defaultdict(list)
    for life in history.lives:
        if life.responded is not None:
            lives[life.producer].append(life)
    for producer, records in written.items():
        yield from _check_sequences(producer, records)
    for producer, told in lives.items():
        yield from _check_lives(producer, told, begun[producer], written[producer])


def _check_sequences(producer: str, records: Sequence[_Written]) -> Iterator[Violation]:
    for expected, record in enumerate(records):
        if record.sequence != expected:
            message = f"{producer} has record {record.sequence} at {record.offset}"
            yield Violation("producer", f"{message}, where {expected} comes next")
            return


def _check_lives(
    producer: str, lives: Sequence[Life], begun: Mapping[int, int], records: Sequence[_Written]
) -> Iterator[Violation]:
    of_epoch: dict[int, Life] = {}
    for life in lives:
        assert life.epoch is not None
        who = f"life {life.epoch} of {producer}"
        if of_epoch.setdefault(life.epoch, life) is not life:
            yield Violation("producer", f"{who} was begun twice")
        at = begun.get(life.epoch)
        if at is None:
            yield Violation("producer", f"{who} was told, and is not in the log")
            continue
        before = sum(record.offset < at for record in records)
        if life.next_sequence != before:
            message = f"{who} begins at {at}, behind {before} records"
            yield Violation("producer", f"{message}, and was told to go on at {life.next_sequence}")
    for record in records:
        epoch = record.life.epoch
        assert epoch is not None, "nothing is appended before"
        present = max((it for it, at in begun.items() if at < record.offset), default=0)
        if present != epoch:
            message = (
                f"record {record.sequence} of {producer} at {record.offset} is of life {epoch}"
            )
            yield Violation("producer", f"{message}; the log is in life {present} there")


def _written(history: History, log: LogView) -> dict[str, list[_Written]]:
    """The records of each named producer, in the order of the log."""
    found: dict[str, list[_Written]] = defaultdict(list)
    for append in history.appends:
        where = log.offsets.get(append.value)
        if append.life is not None and where is not None:
            assert append.sequence is not None
            found[append.life.producer].append(_Written(where, append.sequence, append.life))
    for records in found.values():
        records.sort(key=lambda it: it.offset)
    return found


def _begun(log: LogView) -> dict[str, dict[int, int]]:
    """Where in the log each life of each producer begins, by its epoch."""
    begun: dict[str, dict[int, int]] = defaultdict(dict)
    for it in log.controls:
        assert it.control is not None
        for producer, place in it.control.producers.items():
            begun[producer].setdefault(place.epoch, it.offset)
    return begun


# The state by itself.


def check_state(history: History, log: LogView) -> Iterator[Violation]:
    """Each control record, against what the log has below it."""
    if log.final.lost:
        return
    offsets = {
        producer: [it.offset for it in records]
        for producer, records in _written(history, log).items()
    }
    before: dict[str, Place] = {}
    for it in log.controls:
        assert it.control is not None
        said = it.control
        if said.cause != "fence" and said.token != log.token_at(it.offset):
            message = f"the control record at {it.offset} says token {said.token!r}"
            yield Violation("state", f"{message}; it is {log.token_at(it.offset)!r} there")
        yield from _check_places(it, before, offsets)
        before = dict(said.producers)


def _check_places(
    it: FinalRecord, before: Mapping[str, Place], offsets: Mapping[str, Sequence[int]]
) -> Iterator[Violation]:
    assert it.control is not None
    said = it.control.producers
    for producer in sorted(before.keys() - said.keys()):
        yield Violation("state", f"the control record at {it.offset} has forgotten {producer}")
    begun = 0
    for producer, place in said.items():
        known = before.get(producer, Place(0, 0))
        written = sum(offset < it.offset for offset in offsets.get(producer, ()))
        begun += place.epoch - known.epoch
        if place.next_sequence != written or place.epoch < known.epoch:
            message = f"the control record at {it.offset} says of {producer}: {tuple(place)}"
            yield Violation("state", f"{message}; it has {written} records, life {known.epoch}")
    if begun > (it.control.cause == "producer"):
        yield Violation("state", f"the control record at {it.offset} begins {begun} lives at once")
