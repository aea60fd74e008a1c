"""What a log server drops when it is told to, one rule after the other."""

from __future__ import annotations

import pytest
from helpers.core_disk import CoreDisk, ranges, refusals, repair, stored_answer, tell, trim
from helpers.log_servers import LOGLET, ME, OTHER, STORAGE, opened, placed, request

from loglet.core import LogServerCore
from loglet.held import restored
from loglet.messages import RepairResponse, SealResponse, TrimLoglets, TrimmedLoglets
from loglet.store import LogletState, PutLoglet
from sharedlog.batch import HEADERS_BYTES
from sharedlog.errors import MissingPrefix, ProtocolError, StoreReadOnly, WrongStorage
from sharedlog.ids import LogletId, Offset, StorageId


@pytest.fixture
def disk() -> CoreDisk:
    """A store with [0, 10) of LOGLET, of which [0, 8) is known to be committed."""
    disk = CoreDisk()
    batches = [placed(0, 3), placed(3, 2), placed(5, 3), placed(8, 2, committed=8)]
    disk.group(request(batches, opens=[opened()]))
    return disk


def test_a_local_start_is_raised_and_recorded(disk: CoreDisk) -> None:
    """Fields note 44 and 46: durable, with the latest timestamp, which its batches may take along.

    Nothing else changes.
    """
    decision = disk.trim(5)
    record = PutLoglet(LOGLET, Offset(0), ME, False, Offset(5), last_timestamp_ms=1_008)
    assert decision.writes == [record]
    assert decision.trimmed == {LOGLET: 5}
    assert decision.advanced == set()
    state = disk.state()
    assert (state.local_start, state.local_tail, state.committed_tail) == (5, 10, 8)


def test_nothing_is_trimmed_that_is_not_known_to_be_committed(disk: CoreDisk) -> None:
    """Field note 44: as far as is known, which the answer says; the rest when it is asked again."""
    assert disk.trimmed(9) == 8
    disk.learn(9)
    assert disk.trimmed(9) == 9
    assert disk.state().local_tail == 10


def test_a_local_start_never_goes_back(disk: CoreDisk) -> None:
    """A trim that comes late, or again, changes and writes nothing."""
    disk.trim(5)
    for late in (5, 4, 0):
        decision = disk.trim(late)
        assert (decision.writes, decision.trimmed) == ([], {})
        assert disk.trimmed(late) == 5


def test_an_end_that_was_told_proves_all_below_and_nothing_above(disk: CoreDisk) -> None:
    """What lies beyond the end is in no log, so nothing there is kept elsewhere."""
    disk.tell(9)
    assert disk.trimmed(100) == 9
    state = disk.state()
    assert (state.committed_tail, state.local_tail, state.told_end) == (9, 10, 9)


def test_readers_hear_of_what_a_trim_proves(disk: CoreDisk) -> None:
    """The committed tail rises with a local start that an end has proved."""
    disk.tell(10)
    assert disk.trim(9).advanced == {LOGLET}


@pytest.mark.parametrize("sealed", [False, True])
def test_a_replica_that_is_behind_goes_on_at_the_local_start(*, sealed: bool) -> None:
    """It never held what it trims. The tails go along, and the prefix rule is what it was."""
    disk = CoreDisk()
    disk.group(request([placed(0, 2)], opens=[opened()]))
    disk.learn(20)
    assert disk.trimmed(7) == 7
    if sealed:
        disk.seal()
    state = disk.state()
    assert (state.local_start, state.local_tail, state.committed_tail) == (7, 7, 20)
    if sealed:
        assert isinstance(disk.repair(placed(30, 2)), MissingPrefix)
        assert disk.repair(placed(5, 4)) == RepairResponse(), "it begins below, and ends above"
        assert disk.repair(placed(9, 3)) == RepairResponse()
    else:
        assert refusals(disk.store(placed(30, 2))) == [(LOGLET, 30, MissingPrefix)]
        assert ranges(disk.store(placed(5, 4), placed(9, 3))) == [(5, 12)]
    assert disk.state().local_tail == 12


def test_what_lies_below_is_answered_and_not_stored(disk: CoreDisk) -> None:
    """It was committed: a store adds nothing, a repair has nothing to do, and nothing is read."""
    disk.trim(8)
    disk.batches.clear()
    decision = disk.group(request([placed(0, 3), placed(3, 2)]), repair(placed(5, 3)))
    assert disk.look_ups == []
    assert decision.writes == []
    assert ranges(stored_answer(decision.answers[0])) == [(0, 5)]
    assert decision.answers[1] == RepairResponse()


def test_a_batch_across_the_start_is_compared_and_mended_as_ever(disk: CoreDisk) -> None:
    """It stays whole: it is held, may be damaged, and is repaired then."""
    disk.trim(6)
    assert ranges(disk.store(placed(5, 3))) == [(5, 8)]
    disk.damage(5, 8)
    (write,) = disk.group(repair(placed(5, 3))).writes
    assert (write.loglet, getattr(write, "overwrites", None)) == (LOGLET, True)


def test_an_unknown_loglet_is_passed_over() -> None:
    """Field note 20: a trim opens nothing and seals nothing; what comes later goes as ever."""
    disk = CoreDisk()
    decision = disk.group(trim((OTHER, 5)))
    assert decision.answers == [TrimmedLoglets()]
    assert disk.core.loglet(OTHER) is None
    disk.seal(OTHER)
    assert disk.repair(placed(5, loglet=OTHER), committed=5, loglet=OTHER) == RepairResponse()
    assert disk.trimmed(5, OTHER) == 0, "a sealed one that knows of nothing committed"
    assert disk.core.raise_committed_tail(OTHER, Offset(5))
    assert disk.trimmed(5, OTHER) == 5


def test_another_store_trims_nothing(disk: CoreDisk) -> None:
    """Field note 20: a wiped disk is another server."""
    foreign = TrimLoglets(StorageId("b" * 32), [(LOGLET, Offset(5))])
    assert isinstance(disk.group(foreign).answers[0], WrongStorage)
    assert disk.state().local_start == 0


def test_a_seal_says_what_was_trimmed(disk: CoreDisk) -> None:
    """Whoever ends the segment neither looks for that nor copies it."""
    disk.trim(8)
    assert disk.seal() == SealResponse(
        Offset(10), Offset(8), last_timestamp_ms=1_008, local_start=Offset(8)
    )
    assert disk.trimmed(9) == 8, "a seal proves nothing"


def test_an_end_is_never_below_what_was_trimmed(disk: CoreDisk) -> None:
    """It was committed."""
    disk.trim(8)
    assert isinstance(disk.tell(7), ProtocolError)


def test_a_trim_in_a_group_holds_for_what_follows(disk: CoreDisk) -> None:
    """One queue: what comes after it in the same commit is judged by the new local start."""
    disk.learn(20)
    group = disk.group(
        trim((LOGLET, 15)), request([placed(10, 4)]), request([placed(14, 4)]), trim((LOGLET, 16))
    )
    assert [ranges(stored_answer(it)) for it in group.answers[1:3]] == [[(10, 14)], [(14, 18)]]
    assert [type(it).__name__ for it in group.writes] == ["PutLoglet", "PutBatch", "PutLoglet"]
    assert group.trimmed == {LOGLET: 16}


def test_a_full_disk_takes_a_trim(disk: CoreDisk) -> None:
    """Field note 26: it is what makes room again."""
    decision = disk.group(request([placed(10)]), trim((LOGLET, 8)), room=0)
    assert isinstance(stored_answer(decision.answers[0]).refused[0].error, StoreReadOnly)
    assert decision.trimmed == {LOGLET: 8}


def after_restart(disk: CoreDisk, record: PutLoglet, *left: bytes) -> LogletState:
    """What a start finds: the record, and these batches."""
    batches = [
        (it.first, it.end, (it.placement_bytes or b"").ljust(HEADERS_BYTES, b"\0"))
        for it in reversed(disk.batches[LOGLET])
        if it.placement_bytes in {batch[: len(it.placement_bytes or b"")] for batch in left}
    ]
    return restored(record, batches)


def test_a_loglet_that_is_trimmed_whole_is_the_same_after_a_restart(disk: CoreDisk) -> None:
    """Field note 46: its tail is not 0, and time does not run back."""
    disk.tell(10)
    (record,) = disk.trim(10).writes
    assert isinstance(record, PutLoglet)
    state = after_restart(disk, record)
    assert state == disk.state()
    core = LogServerCore(STORAGE, [state])
    core.check_invariants()
    assert (state.local_tail, state.last_timestamp_ms) == (10, 1_008)


def test_a_later_record_keeps_the_timestamp(disk: CoreDisk) -> None:
    """A seal writes the record anew; what a trim has written into it stays."""
    disk.trim(8)
    disk.seal()
    (record,) = disk.group(tell((LOGLET, 10))).writes
    assert record == PutLoglet(
        LOGLET, Offset(0), ME, True, Offset(8), Offset(10), last_timestamp_ms=1_008
    )
    assert after_restart(disk, record).last_timestamp_ms == 1_008


def test_what_is_left_tells_the_rest(disk: CoreDisk) -> None:
    """Batches above the local start tell tails and time, as without a trim."""
    (record,) = disk.trim(6).writes
    assert isinstance(record, PutLoglet)
    state = after_restart(disk, record, placed(5, 3), placed(8, 2, committed=8))
    assert state == disk.state()


def test_many_loglets_at_once() -> None:
    """In the order of the request, as of its place in the queue."""
    disk = CoreDisk()
    loglets = [LogletId(LOGLET.log_id, index) for index in range(5)]
    for loglet in loglets:
        disk.group(
            request([placed(0, 4, loglet=loglet)], opens=[opened(loglet)]), tell((loglet, 4))
        )
    (answer,) = disk.group(trim(*((it, it.segment_index) for it in reversed(loglets)))).answers
    assert isinstance(answer, TrimmedLoglets)
    assert [(it.loglet, it.local_start) for it in answer.loglets] == [
        (it, it.segment_index) for it in reversed(loglets)
    ]
