"""The checker of histories: bad ones are caught, each kind by name, and good ones pass."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from helpers.history import Append, Final, FinalRecord, History, Outcome, Read
from helpers.history_check import check_history
from helpers.history_disks import (
    Journal,
    ReplicaCopies,
    SegmentCopies,
    check_disks,
    check_durable,
    check_strength,
)

from sharedlog.batch import Placement, encode_records, parse_batch_header, place_batch
from sharedlog.ids import LogId, LogletId, Offset


def kinds(history: History, final: Final) -> set[str]:
    return {violation.kind for violation in check_history(history, final)}


def _final(values: list[bytes], *, lost: tuple[tuple[int, int], ...] = ()) -> Final:
    records = [FinalRecord(offset, value, 1000 + offset) for offset, value in enumerate(values)]
    return Final(len(records), records, lost)


def _append(history: History, value: bytes, offset: int, *, appender: str = "a") -> Append:
    """An append that ends before anything else happens."""
    append = history.append(appender, value)
    history.admitted(append)
    history.acked(append, offset)
    return append


def _saw(history: History, read: Read, record: FinalRecord) -> None:
    history.saw(read, record.offset, record.value, record.timestamp_ms)


def _see(history: History, final: Final, *, reader: str = "r") -> None:
    """A read of the whole final log, to the tail."""
    read = history.read(reader, 0)
    for record in final.records:
        _saw(history, read, record)
    history.read_ended(read)


def _good() -> tuple[History, Final]:
    """Three records, one of them of an append whose outcome nobody knows, read and followed."""
    history = History()
    _append(history, b"x", 0)
    unknown = history.append("b", b"y")
    history.failed(unknown, OSError("?"), definite=False)
    refused = history.append("b", b"refused")
    history.failed(refused, OSError("!"), definite=True)
    _append(history, b"z", 2)
    final = _final([b"x", b"y", b"z"])
    _see(history, final)
    tail = history.tail("t")
    history.tail_found(tail, 3)
    return history, final


def test_a_good_history_passes() -> None:
    """The base of the tests below: without their change nothing is wrong."""
    history, final = _good()
    assert not check_history(history, final)


# Each of these makes a good history bad; the kind that must be found is its argument.

Spoil = Callable[[History, Final], Final]


def _acked_record_gone(history: History, final: Final) -> Final:
    return Final(2, final.records[:2])


def _acked_record_elsewhere(history: History, final: Final) -> Final:
    history.appends[0].offset = 1
    return final


def _offset_acked_twice(history: History, final: Final) -> Final:
    _append(history, b"more", 2)
    return final


def _value_twice(history: History, final: Final) -> Final:
    return Final(4, [*final.records, FinalRecord(3, b"x", 1003)])


def _definite_failure_there(history: History, final: Final) -> Final:
    return Final(4, [*final.records, FinalRecord(3, b"refused", 1003)])


def _nobody_appended_it(history: History, final: Final) -> Final:
    return Final(4, [*final.records, FinalRecord(3, b"from nowhere", 1003)])


def _hole(history: History, final: Final) -> Final:
    return Final(3, [final.records[0], final.records[2]])


def _records_beyond_the_tail(history: History, final: Final) -> Final:
    return Final(2, final.records)


def _time_runs_back(history: History, final: Final) -> Final:
    *others, last = final.records
    return Final(3, [*others, last._replace(timestamp_ms=1000)])


def _reader_saw_another_value(history: History, final: Final) -> Final:
    read = history.read("early", 0)
    history.saw(read, 0, b"z", 1000)
    return final


def _reader_saw_another_time(history: History, final: Final) -> Final:
    read = history.read("early", 0)
    history.saw(read, 0, b"x", 999)
    return final


def _reader_saw_what_vanished(history: History, final: Final) -> Final:
    read = history.read("early", 3)
    history.saw(read, 3, b"gone", 1003)
    return final


def _reader_skipped(history: History, final: Final) -> Final:
    read = history.read("skips", 0, follow=True)
    _saw(history, read, final.records[0])
    _saw(history, read, final.records[2])
    return final


def _reader_saw_twice(history: History, final: Final) -> Final:
    read = history.read("repeats", 0, follow=True)
    _saw(history, read, final.records[0])
    _saw(history, read, final.records[0])
    return final


def _reader_was_told_of_a_loss_that_is_none(history: History, final: Final) -> Final:
    read = history.read("told", 0, follow=True)
    read.lost.append((0, 1))
    _saw(history, read, final.records[1])
    return final


def _read_ended_early(history: History, final: Final) -> Final:
    read = history.read("short", 0, end=3)
    _saw(history, read, final.records[0])
    history.read_ended(read)
    return final


def _read_to_tail_misses_an_ack(history: History, final: Final) -> Final:
    read = history.read("late", 0)
    _saw(history, read, final.records[0])
    history.read_ended(read)
    return final


def _tail_below_an_ack(history: History, final: Final) -> Final:
    tail = history.tail("low")
    history.tail_found(tail, 2)
    return final


def _tail_runs_back(history: History, final: Final) -> Final:
    # No acknowledged record tells the two apart, only each other.
    first, second = history.tail("one"), None
    history.tail_found(first, 5)
    second = history.tail("two")
    history.tail_found(second, 4)
    return final


def _tail_above_a_later_append(history: History, final: Final) -> Final:
    tail = history.tail("high")
    history.tail_found(tail, 4)
    _append(history, b"later", 3)
    return _final([b"x", b"y", b"z", b"later"])


def _known_tail_above_the_real_one(history: History, final: Final) -> Final:
    tail = history.tail("cheap", known=True)
    history.tail_found(tail, 4)
    _append(history, b"later", 3)
    return _final([b"x", b"y", b"z", b"later"])


def _seen_and_then_not_in_the_tail(history: History, final: Final) -> Final:
    unknown = history.append("b", b"seen")
    read = history.read("r2", 3, follow=True)
    history.saw(read, 3, b"seen", 1003)
    tail = history.tail("t2")
    history.tail_found(tail, 3)
    assert unknown.outcome is Outcome.PENDING
    return _final([b"x", b"y", b"z", b"seen"])


def _later_append_at_a_lower_offset(history: History, final: Final) -> Final:
    _append(history, b"late", 3)
    _append(history, b"later", 4, appender="b")
    history.appends[-2].offset, history.appends[-1].offset = 4, 3
    return _final([b"x", b"y", b"z", b"later", b"late"])


def _appender_out_of_order(history: History, final: Final) -> Final:
    first, second = history.append("p", b"1st"), history.append("p", b"2nd")
    history.admitted(first)
    history.admitted(second)
    history.failed(first, OSError("?"), definite=False)
    history.failed(second, OSError("?"), definite=False)
    return _final([b"x", b"y", b"z", b"2nd", b"1st"])


def _batch_torn(history: History, final: Final) -> Final:
    history.append_batch("p", [(b"b1", None), (b"b2", None)])
    return _final([b"x", b"y", b"z", b"b1"])


def _batch_mixed(history: History, final: Final) -> Final:
    history.append_batch("p", [(b"b1", None), (b"b2", None)])
    history.append("q", b"between")
    return _final([b"x", b"y", b"z", b"b1", b"between", b"b2"])


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("lost", _acked_record_gone),
        ("lost", _acked_record_elsewhere),
        ("twice", _offset_acked_twice),
        ("twice", _value_twice),
        ("not-definite", _definite_failure_there),
        ("invented", _nobody_appended_it),
        ("dense", _hole),
        ("dense", _records_beyond_the_tail),
        ("time", _time_runs_back),
        ("changed", _reader_saw_another_value),
        ("changed", _reader_saw_another_time),
        ("changed", _reader_saw_what_vanished),
        ("gap", _reader_skipped),
        ("gap", _reader_saw_twice),
        ("gap", _reader_was_told_of_a_loss_that_is_none),
        ("short", _read_ended_early),
        ("real-time", _read_to_tail_misses_an_ack),
        ("real-time", _tail_below_an_ack),
        ("real-time", _tail_runs_back),
        ("real-time", _tail_above_a_later_append),
        ("real-time", _known_tail_above_the_real_one),
        ("real-time", _seen_and_then_not_in_the_tail),
        ("real-time", _later_append_at_a_lower_offset),
        ("order", _appender_out_of_order),
        ("torn", _batch_torn),
        ("torn", _batch_mixed),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else value,
)
def test_each_violation_is_caught(kind: str, spoil: Spoil) -> None:
    """A history with one thing wrong is found out, and by the name of what is wrong."""
    history, final = _good()
    assert kind in kinds(history, spoil(history, final))


def test_an_accepted_loss_excuses_what_it_names_and_nothing_else() -> None:
    """Field notes 18, 19: a typed gap where a loss was accepted, and only there."""
    history, final = _good()
    lossy = Final(3, [final.records[0], final.records[2]], [(1, 2)])
    read = history.read("after", 0, follow=True)
    _saw(history, read, final.records[0])
    read.lost.append((1, 2))
    _saw(history, read, final.records[2])
    assert not check_history(history, lossy)
    assert kinds(history, replace(lossy, lost=[])) == {"dense", "changed", "gap"}


@pytest.mark.parametrize("end", [None, 3])
def test_a_stale_read_may_miss_what_was_acknowledged(end: int | None) -> None:
    """A read that was told so is no proof of the tail, nor that its own end lies beyond it."""
    history, final = _good()
    read = history.read("stale", 0, end=end)
    read.stale = True
    _saw(history, read, final.records[0])
    history.read_ended(read)
    assert not check_history(history, final)


def test_what_a_stale_read_got_still_counts() -> None:
    """Being told that the tail is uncertain excuses an early end, and no wrong record or gap."""
    history, final = _good()
    read = history.read("stale", 0, end=3)
    read.stale = True
    history.saw(read, 0, b"z", 1000)
    history.saw(read, *final.records[2][:3])
    history.read_ended(read)
    assert kinds(history, final) == {"changed", "gap"}


@pytest.mark.parametrize("seed", range(30))
def test_histories_of_a_correct_log_pass(seed: int) -> None:
    """Clients at once against one list, which is a correct log by construction."""
    history, final = _random_history(random.Random(seed))
    assert not check_history(history, final)
    assert len(final.records) > 50


@pytest.mark.parametrize("seed", range(30))
def test_histories_that_lost_their_last_records_are_caught(seed: int) -> None:
    """The same, but the log forgets acknowledged records half-way through."""
    draw = random.Random(seed)
    history, final = _random_history(draw, forget=draw.randint(1, 3))
    assert check_history(history, final)


def _random_history(draw: random.Random, *, forget: int = 0) -> tuple[History, Final]:
    """Operations begin, take effect on a list, and end, each at a moment of its own."""
    history, values = History(), list[bytes]()
    begun: list[Callable[[], Callable[[], None]]] = []  # to take effect; gives what ends it
    applied: list[Callable[[], None]] = []
    for number in range(300):
        choice = draw.random()
        if choice < 0.4:
            begun.append(_random_operation(history, values, draw, number, failures=not forget))
        elif choice < 0.7 and begun:
            applied.append(begun.pop(draw.randrange(len(begun)))())
        elif applied:
            applied.pop(draw.randrange(len(applied)))()
        if forget and number == 150:
            for end in applied:  # nothing that is forgotten may count as unknown
                end()
            applied.clear()
            del values[-forget:]
    applied.extend(apply() for apply in begun)
    for end in applied:
        end()
    return history, _final(values)


def _random_operation(
    history: History, values: list[bytes], draw: random.Random, number: int, *, failures: bool
) -> Callable[[], Callable[[], None]]:
    kind = draw.random()
    if kind < 0.7:
        append = history.append(f"a{number}", b"%d" % number)

        def apply_append() -> Callable[[], None]:
            if failures and draw.random() < 0.1:
                return lambda: history.failed(append, OSError(), definite=True)
            offset = len(values)
            values.append(append.value)
            if failures and draw.random() < 0.1:
                return lambda: history.failed(append, OSError(), definite=False)
            return lambda: history.acked(append, offset)

        return apply_append
    if kind < 0.85:
        tail = history.tail(f"t{number}")

        def apply_tail() -> Callable[[], None]:
            found = len(values)
            return lambda: history.tail_found(tail, found)

        return apply_tail
    read = history.read(f"r{number}", 0)

    def apply_read() -> Callable[[], None]:
        for offset, value in enumerate(values):
            history.saw(read, offset, value, 1000 + offset)
        return lambda: history.read_ended(read)

    return apply_read


# Disks.


def _placed(
    offset: int, value: bytes, *, segment: int = 0, timestamp_ms: int | None = None
) -> bytes:
    batch = encode_records([(value, None, None)])
    at_ms = 1000 + offset if timestamp_ms is None else timestamp_ms
    loglet = LogletId(LogId(1), segment)
    crc = parse_batch_header(batch).crc32c
    return place_batch(Placement(loglet, Offset(offset), 1, at_ms, Offset(0), crc), batch)


_VALUES = [b"v0", b"v1", b"v2", b"v3"]
_PLACED = [_placed(offset, value) for offset, value in enumerate(_VALUES)]


def _segments(*batches: list[bytes]) -> list[SegmentCopies]:
    """[0, 3) on three disks with write quorum 2, and an open segment with one record."""
    replicas = [ReplicaCopies(f"n{n}", f"z{n % 2}", held) for n, held in enumerate(batches)]
    tail = [ReplicaCopies(f"n{n}", f"z{n % 2}", [_PLACED[3]]) for n in range(3)]
    return [SegmentCopies(0, 0, 3, 2, replicas), SegmentCopies(1, 3, None, 2, tail)]


def _damaged(placed: bytes) -> bytes:
    return placed[:-1] + bytes([placed[-1] ^ 1])


def _disk_kinds(segments: list[SegmentCopies]) -> set[str]:
    return {violation.kind for violation in check_disks(segments, _final(_VALUES))}


def test_good_disks_pass() -> None:
    """A hole within the quorum's bounds, and anything beyond the end, are well."""
    beyond = _placed(3, b"left by a loser")
    segments = _segments(_PLACED[:3], [*_PLACED[:3], beyond], [_PLACED[2]])
    assert not _disk_kinds(segments)


def test_too_few_copies_are_caught() -> None:
    """Holes, damage and lost disks all count, unless disks were lost; one must be left even so."""
    for held in ([], [_damaged(placed) for placed in _PLACED[:3]]):
        segments = _segments(_PLACED[:3], held, held)
        assert _disk_kinds(segments) == {"copies"}
        segments[0].harmed = True
        assert not _disk_kinds(segments)
    segments = _segments(_PLACED[:3], _PLACED[:3], [])
    segments[0].replicas[0].lost = True
    assert _disk_kinds(segments) == {"copies"}
    segments[0].replicas[1].lost = True
    segments[0].harmed = True
    assert _disk_kinds(segments) == {"copies"}


def test_a_replica_that_lacks_anything_is_caught_at_rest() -> None:
    """Field note 31: closed or open, below the tail and above what is trimmed; not beyond."""
    assert not check_strength(_segments(_PLACED[:3], _PLACED[:3], _PLACED[:3]), 4)
    segments = _segments(_PLACED[:3], _PLACED[:3], _PLACED[1:3])
    (found,) = check_strength(segments, 4)
    assert found.message == "segment 0 [0, 3): n2 lacks 1 offsets from 0 to 0"
    segments[0].trimmed = 1
    assert not check_strength(segments, 4)
    assert len(check_strength(segments, 5)) == 3, "the open segment's replicas"
    segments[1].replicas[0].lost = True
    assert len(check_strength(segments, 5)) == 2
    segments[1].harmed = True
    assert not check_strength(segments, 5)


def test_a_spread_is_checked() -> None:
    """Two copies in one zone are not two zones."""
    segments = _segments(_PLACED[:3], [], _PLACED[:3])  # both in zone z0
    assert not _disk_kinds(segments)
    segments[0].spread = [("zone", 2)]
    assert _disk_kinds(segments) == {"copies"}


def test_disagreement_is_caught() -> None:
    """Two sound batches for one offset, or one that readers do not get."""
    other = _placed(1, b"v1", timestamp_ms=1005)
    segments = _segments(_PLACED[:3], [_PLACED[0], other, _PLACED[2]], _PLACED[:3])
    assert "disagree" in _disk_kinds(segments)
    wrong = [_PLACED[0], _placed(1, b"wrong"), _PLACED[2]]
    assert _disk_kinds(_segments(wrong, wrong, wrong)) == {"content"}


@pytest.mark.parametrize("change", ["base", "end", "index", "open", "backwards"])
def test_a_broken_chain_is_caught(change: str) -> None:
    """Segments adjoin, indexes grow, only the last is open."""
    segments = _segments(_PLACED[:3], _PLACED[:3], _PLACED[:3])
    match change:
        case "base":
            segments[0].base = 1
        case "end":
            segments[0].end = 2
        case "index":
            segments[1].index = 0
        case "open":
            segments[1].end = 4
        case "backwards":
            segments.insert(1, SegmentCopies(1, 3, 2, 2, []))
    assert "chain" in _disk_kinds(segments)


def test_an_early_acknowledgement_is_caught() -> None:
    """Field note 25: an ack means that a write quorum of disks has the record."""
    history, journal = History(), Journal()
    segments = _segments(_PLACED[:3], _PLACED[:3], _PLACED[:3])
    for segment in segments:
        segment.disks = {"d0", "d1", "d2"}
    first, second = history.append("a", b"v0"), history.append("a", b"v3")
    journal.note("d0", 0, 0, 3, history.tick())
    journal.note("d1", 0, 0, 3, history.tick())
    journal.note("d0", 1, 3, 4, history.tick())
    journal.note("another one's", 1, 3, 4, history.tick())
    history.acked(first, 0)
    history.acked(second, 3)
    journal.note("d1", 1, 3, 4, history.tick())
    (violation,) = check_durable(history, segments, journal)
    assert violation.kind == "early"
    assert "v3" in violation.message
