"""Judges a history against the log as it is in the end (DESIGN.md §1, promises 1 to 5).

`check_history` returns every violation that it finds, each with its kind:

| kind | what must hold |
|---|---|
| `lost` | an acknowledged record is in the log at the offset that its client was told |
| `twice` | no value is in the log, and no offset was acknowledged, twice |
| `not-definite` | a record whose append failed definitely is not in the log |
| `invented` | what is in the log was appended by somebody |
| `torn` | the records of a batch are side by side, all or none |
| `order` | the records of one appender are in the order in which it took them |
| `dense` | offsets are 0, 1, 2, … up to the tail, but for ranges whose loss was accepted |
| `time` | timestamps never run backwards |
| `changed` | what a reader got at an offset, time included, is what is there in the end |
| `gap` | a reader gets every offset from its start on, once, in order, but for accepted losses |
|   | and what is purged; with a key, every one of that key |
| `purged` | who is told where the log starts stands below, and it starts there by then |
| `key` | a record has the key that it was appended with |
| `short` | a read that ended got all up to its given end, unless told that the tail is uncertain |
| `real-time` | appends, reads and tails are linearizable, see below |
| `match` `fence` `producer` `state` | conditions, tokens and named producers: `history_state.py` |
| `cursor` | a cursor has one owner at a time: `history_cursor.py` |

A fence is an append whose record readers do not get. Every offset is a record's, or a control
record's, which readers pass over; all of these are in the final log.

**Linearizability.** The log is one object, its state the sequence of records, and a record's offset
is its place in it. So the order of appends is given, and what is left to judge is whether each
operation can have taken effect at one moment between its begin and its end. What an operation shows
is a bound on the log's length at a moment:

- *at least*: an acknowledged append at offset n, when it ended: n + 1. A record that a reader got:
  likewise. A tail T, when it was told: T. The end of a read to the tail.
- *at most*: an append that is in the log at offset n, when it began: n. A tail T, when it was asked
  for: T. The end of a read to the tail, when it began.

The history is linearizable if no *at least* is followed by a smaller *at most*: the length never
shrinks, and if no two bounds contradict each other, moments for all operations can be chosen in the
order of their offsets. A failed append without an outcome bounds only its begin. A read that was
told that the tail is not certain, and the cheap tail, give an *at least* and no *at most*. Control
records that a read to the tail ended in front of may have been there or not. What a refused append
was told, and lives, are bounds likewise; a violation that shows by one has the kind of that.

**Uncertain tails.** When nobody can tell the tail, `Log.read` says so and ends at the highest that
a log server knows, wherever the end lies that it was given: an end beyond the tail is allowed, and
whether this one is cannot be told then. So such a read may be short; what it got must be right.

Pure: no I/O, no clock.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final as Constant

from helpers.history import Append, Final, History, Outcome, Read
from helpers.history_cursor import check_cursors
from helpers.history_log import Bound, LogView, Violation, named
from helpers.history_state import (
    bounds_of_state,
    check_conditions,
    check_producers,
    check_state,
)

VIOLATIONS_MAX: Constant = 20
"""Of one kind; more say nothing new."""


def check_history(history: History, final: Final) -> list[Violation]:
    """Every violation, at most `VIOLATIONS_MAX` of a kind."""
    log = LogView(final)
    found: list[Violation] = []
    for check in _CHECKS:
        found.extend(check(history, log))
    kept: dict[str, int] = defaultdict(int)
    result = []
    for violation in found:
        kept[violation.kind] += 1
        if kept[violation.kind] <= VIOLATIONS_MAX:
            result.append(violation)
    return result


def _check_log(history: History, log: LogView) -> Iterator[Violation]:
    """The log by itself."""
    final = log.final
    expected = [offset for offset in range(final.tail) if not log.is_lost(offset)]
    offsets = [it.offset for it in final.records]
    if offsets != expected:
        wrong = next(
            (pair for pair in zip(offsets, expected, strict=False) if pair[0] != pair[1]),
            (len(offsets), len(expected)),
        )
        yield Violation("dense", f"tail {final.tail}, {len(offsets)} records; first off: {wrong}")
    for before, after in pairwise(final.records):
        if after.timestamp_ms < before.timestamp_ms:
            message = f"{before.offset} at {before.timestamp_ms}, {after.offset} earlier"
            yield Violation("time", f"{message}, at {after.timestamp_ms}")
    keys = {append.value: append.key for append in history.appends}
    first_at: dict[bytes, int] = {}
    for it in final.records:
        value = it.known_as
        if value is None:
            continue
        if value in first_at:
            yield Violation("twice", f"{value!r} is at {first_at[value]} and {it.offset}")
        first_at.setdefault(value, it.offset)
        if value not in keys:
            yield Violation("invented", f"{value!r} at {it.offset} was appended by nobody")
        elif it.control is None and it.key != keys[value]:
            message = f"{value!r} at {it.offset} has key {it.key!r}"
            yield Violation("key", f"{message}; it was appended with {keys[value]!r}")


def _check_appends(history: History, log: LogView) -> Iterator[Violation]:
    """Each append by itself, and its batch."""
    acked: dict[int, Append] = {}
    batches: dict[int, list[Append]] = defaultdict(list)
    for append in history.appends:
        if append.batch is not None:
            batches[append.batch].append(append)
        if append.outcome is Outcome.DEFINITE and append.value in log.offsets:
            where = log.offsets[append.value]
            yield Violation("not-definite", f"{named(append)} ({append.error}) is at {where}")
        if append.outcome is not Outcome.ACKED:
            continue
        assert append.offset is not None
        other = acked.setdefault(append.offset, append)
        if other is not append:
            message = f"{append.offset} was acknowledged to {named(other)} and {named(append)}"
            yield Violation("twice", message)
        there = log.by_offset.get(append.offset)
        if there is None and log.is_lost(append.offset):
            continue
        if there is None or there.known_as != append.value:
            instead = "nothing" if there is None else repr(there.value)
            now = log.offsets.get(append.value)
            elsewhere = "nowhere else" if now is None else f"it is at {now}"
            message = f"{named(append)} was acknowledged at {append.offset}: there is {instead}"
            yield Violation("lost", f"{message}, {elsewhere}")
    for members in batches.values():
        offsets = [log.offsets.get(member.value) for member in members]
        present = [offset for offset in offsets if offset is not None]
        whole = len(present) == len(members)
        adjoin = all(after == before + 1 for before, after in pairwise(present))
        lost = any(member.offset is not None and log.is_lost(member.offset) for member in members)
        if present and not (whole and adjoin) and not lost:
            yield Violation("torn", f"the batch of {named(members[0])} is at {offsets}")


def _check_order(history: History, log: LogView) -> Iterator[Violation]:
    """Each appender's own order, whatever became of what it appended."""
    by_appender: dict[str, list[Append]] = defaultdict(list)
    for append in history.appends:
        if append.admitted is not None and append.value in log.offsets:
            by_appender[append.appender].append(append)
    for appends in by_appender.values():
        appends.sort(key=lambda append: append.admitted or 0)
        for before, after in pairwise(appends):
            at, then = log.offsets[before.value], log.offsets[after.value]
            if then < at:
                message = f"{named(before)} at {at} was handed over before {named(after)}"
                yield Violation("order", f"{message}, which is at {then}")


def _check_reads(history: History, log: LogView) -> Iterator[Violation]:
    """Each read by itself, and against the final log."""
    for read in history.reads:
        who = f"{read.reader} (from {read.start}{f' for {read.key!r}' if read.key else ''})"
        yield from _check_continuity(read, who, log)
        for seen in read.records:
            there = log.by_offset.get(seen.offset)
            if there is None and log.is_lost(seen.offset):
                continue  # it was readable before the loss
            if there is None or (there.value, there.timestamp_ms) != seen[1:3]:
                now = "is not there" if there is None else f"is {there.value!r} in the end"
                message = f"{who} got {seen.value!r}, {seen.timestamp_ms}, at {seen.offset}"
                yield Violation("changed", f"{message}; it {now}")
        ended = read.responded is not None and not read.stale and read.end is not None
        if ended and log.next_record(read.position, read.key) < (read.end or 0):
            yield Violation("short", f"{who} ended at {read.position} of {read.end}")


def _check_continuity(read: Read, who: str, log: LogView) -> Iterator[Violation]:
    gaps = dict(read.lost)
    position = log.next_record(read.start, read.key)
    for seen in read.records:
        while position != seen.offset:
            end = gaps.get(position, max(_starts_beyond(read, position, seen.offset), default=0))
            if end <= position:
                break
            position = log.next_record(end, read.key)
        if seen.offset != position:
            yield Violation("gap", f"{who} got {seen.offset} where {position} comes next")
            return
        position = log.next_record(seen.offset + 1, read.key)
    position = log.next_record(
        max(_starts_beyond(read, position, math.inf), default=position), read.key
    )
    if position < read.covered and not log.is_lost(position):
        yield Violation("gap", f"{who} was told that it stands at {read.covered}: {position} not")
    for first, end in read.lost:
        wrong = [offset for offset in range(first, end) if not log.is_lost(offset)]
        if wrong:
            yield Violation("gap", f"{who} was told that [{first}, {end}) is lost: {wrong[0]} not")


def _starts_beyond(read: Read, position: int, upto: float) -> list[int]:
    """Where the log starts, as a reader was told that stood at `position` or below."""
    return [it.start for it in read.purged if it.at <= position < it.start <= upto]


def _check_purged(history: History, log: LogView) -> Iterator[Violation]:
    """What readers were told of the log's start."""
    for read in history.reads:
        for told in read.purged:
            since = [tick for tick, start in history.starts if start == told.start]
            if told.at >= told.start or not since or since[0] > told.tick:
                message = f"{read.reader} at {told.at} was told that the log starts at {told.start}"
                yield Violation("purged", f"{message}; it starts at {log.final.start} in the end")


def _check_real_time(history: History, log: LogView) -> Iterator[Violation]:
    """See the module's docstring."""
    least, most = _bounds(history, log)
    least.sort()
    most.sort()
    highest: Bound | None = None
    at = 0
    for bound in most:
        while at < len(least) and least[at].tick < bound.tick:
            if highest is None or least[at].length > highest.length:
                highest = least[at]
            at += 1
        if highest is not None and highest.length > bound.length:
            before = f"{highest.what} (length >= {highest.length}, tick {highest.tick})"
            after = f"{bound.what} (length <= {bound.length}, tick {bound.tick})"
            kind = highest.kind if bound.kind == "real-time" else bound.kind
            yield Violation(kind, f"{before} before {after}")


def _bounds(history: History, log: LogView) -> tuple[list[Bound], list[Bound]]:
    least, most = bounds_of_state(history, log)
    if not log.final.lost:
        most.append(Bound(math.inf, log.final.tail, "the end"))
    for append in history.appends:
        if append.outcome is Outcome.ACKED:
            assert append.offset is not None
            assert append.responded is not None
            least.append(Bound(append.responded, append.offset + 1, f"ack of {named(append)}"))
        where = log.offsets.get(append.value)
        if where is not None:
            most.append(Bound(append.invoked, where, f"append of {named(append)}"))
    for tail in history.tails:
        if tail.responded is not None:
            assert tail.tail is not None
            what = f"{'known ' if tail.known else ''}tail {tail.tail} of {tail.caller}"
            least.append(Bound(tail.responded, tail.tail, what))
            if not tail.known:
                most.append(Bound(tail.invoked, tail.tail, what))
    for read in history.reads:
        what = f"read of {read.reader} from {read.start}"
        least.extend(Bound(seen.tick, seen.offset + 1, what) for seen in read.records)
        if read.responded is not None and not (read.follow or read.stale or read.end is not None):
            least.append(Bound(read.responded, read.position, f"end of {what}"))
            most.append(Bound(read.invoked, log.next_record(read.position, read.key), what))
    return least, most


_CHECKS: Constant = (
    *(_check_log, _check_appends, _check_order, _check_reads),
    *(check_conditions, check_producers, check_state, check_cursors),
    *(_check_purged, _check_real_time),
)


def report(violations: Sequence[Violation]) -> str:
    """Lines for a person."""
    return "\n".join(f"  {violation}" for violation in violations)
