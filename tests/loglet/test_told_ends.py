"""Where a segment ends: told by the chain's winner, kept apart from the committed tail."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.core_disk import CoreDisk, ranges, refusals, repair, stored_answer, tell
from helpers.log_servers import LOGLET, ME, OTHER, STORAGE, opened, placed, request

from loglet.messages import (
    Confirmed,
    ConfirmUnsealed,
    RepairResponse,
    SealRequest,
    SealResponse,
    TellEndsRequest,
    TellEndsResponse,
)
from loglet.store import PutLoglet
from sharedlog.errors import ProtocolError, Sealed, StoreReadOnly, WrongStorage
from sharedlog.ids import LogletId, Offset, StorageId


@pytest.fixture
def disk() -> CoreDisk:
    """A store that holds [0, 5) of LOGLET."""
    disk = CoreDisk()
    disk.group(request(opens=[opened()]))
    disk.store(placed(0, 2), placed(2, 3))
    return disk


def test_an_end_is_a_durable_record_and_wakes_readers(disk: CoreDisk) -> None:
    """Field note 8: kept with the loglet, answered once it is on disk."""
    decision = disk.group(tell((LOGLET, 5)))
    assert decision.answers == [TellEndsResponse()]
    assert decision.advanced == {LOGLET}
    record = PutLoglet(
        LOGLET, Offset(0), ME, sealed=False, local_start=Offset(0), told_end=Offset(5)
    )
    assert decision.writes == [record]


def test_an_end_again_changes_nothing(disk: CoreDisk) -> None:
    """Everybody tells, again and again."""
    decision = disk.group(tell((LOGLET, 5)), tell((LOGLET, 5), (LOGLET, 5)))
    assert len(decision.writes) == 1
    assert disk.group(tell((LOGLET, 5))).writes == []


def test_an_end_is_no_committed_tail_for_sealers(disk: CoreDisk) -> None:
    """Had a sealer taken it for one, it would have no need to repair what lies below."""
    disk.tell(5)
    assert disk.seal() == SealResponse(Offset(5), Offset(0), last_timestamp_ms=1_002)


def test_an_end_never_changes(disk: CoreDisk) -> None:
    """The chain's end is immutable: another one is somebody's mistake, and is refused."""
    disk.tell(5)
    for end in (2, 6):
        decision = disk.group(tell((LOGLET, end)))
        assert isinstance(decision.answers[0], ProtocolError)
        assert decision.writes == []
    assert disk.state().told_end == 5


def test_an_end_that_can_not_be_is_refused(disk: CoreDisk) -> None:
    """Not below what is committed or begins, not beyond the last offset."""
    disk.learn(2)
    disk.group(request(opens=[opened(OTHER, 40)]))
    for loglet, end in ((LOGLET, 1), (OTHER, 39), (OTHER, 2**63)):
        assert isinstance(disk.tell(end, loglet), ProtocolError)
    assert disk.tell(2) == TellEndsResponse()
    assert disk.tell(40, OTHER) == TellEndsResponse(), "an empty segment"


def test_one_wrong_end_does_not_spoil_the_others(disk: CoreDisk) -> None:
    """What can be true is kept, and unknown loglets are passed over."""
    disk.group(request(opens=[opened(OTHER)]))
    disk.tell(5)
    unknown = LogletId(LOGLET.log_id, 77)
    decision = disk.group(tell((unknown, 3), (LOGLET, 4), (OTHER, 0)))
    assert isinstance(decision.answers[0], ProtocolError)
    assert disk.state(OTHER).told_end == 0
    assert disk.core.loglet(unknown) is None


def test_ends_name_their_store(disk: CoreDisk) -> None:
    """Field note 20: another disk is told nothing."""
    foreign = TellEndsRequest(StorageId("b" * 32), [(LOGLET, Offset(5))])
    decision = disk.group(foreign)
    assert isinstance(decision.answers[0], WrongStorage)
    assert disk.state().told_end is None


def test_nothing_is_stored_beyond_an_end(disk: CoreDisk) -> None:
    """Field note 7: what lies there is in no log, whoever brings it, the loser of the race too."""
    disk.tell(7)
    assert ranges(disk.store(placed(5, 2))) == [(5, 7)]
    assert refusals(disk.store(placed(7))) == [(LOGLET, 7, Sealed)]
    assert isinstance(disk.repair(placed(7)), Sealed)
    disk.seal()
    assert isinstance(disk.repair(placed(7)), Sealed)
    assert disk.state().local_tail == 7


def test_a_batch_across_an_end_is_refused() -> None:
    """A batch is in the log as a whole or not at all."""
    disk = CoreDisk()
    disk.seal()
    disk.tell(1)
    assert isinstance(disk.repair(placed(0, 2)), Sealed)


def test_what_lies_beyond_an_end_already_stays(disk: CoreDisk) -> None:
    """Field note 7: a loser repaired before the end was told here; nobody is shown it."""
    disk.tell(2)
    assert disk.seal() == SealResponse(Offset(5), Offset(0), last_timestamp_ms=1_002)
    assert disk.repair(placed(0, 2)) == RepairResponse()
    assert isinstance(disk.repair(placed(2, 3)), Sealed)


def test_an_ended_loglet_is_not_confirmed_as_unsealed(disk: CoreDisk) -> None:
    """Field note 16: a sequencer that slept through it all confirms no tail of an old segment."""
    disk.tell(5)
    ask = request()
    ask.confirms = [ConfirmUnsealed(LOGLET, 3)]
    assert stored_answer(disk.group(ask).answers[0]).confirmed == [
        Confirmed(LOGLET, 3, sealed=True)
    ]
    answer = stored_answer(disk.group(request(opens=[opened()])).answers[0])
    assert refusals(answer) == [(LOGLET, 0, Sealed)]


def test_no_committed_tail_passes_an_end(disk: CoreDisk) -> None:
    """Nothing is committed beyond the chain's end; who says so is not believed."""
    disk.tell(5)
    assert disk.learn(6).advanced == set()
    assert not disk.core.raise_committed_tail(LOGLET, Offset(6))
    assert disk.core.raise_committed_tail(LOGLET, Offset(5))
    assert disk.state().committed_tail == 5


def test_an_end_is_kept_by_a_seal_and_a_seal_by_an_end(disk: CoreDisk) -> None:
    """Each record carries all that the loglet's earlier ones did."""
    disk.tell(5)
    (record,) = disk.group(SealRequest(STORAGE, LOGLET, Offset(0))).writes
    assert isinstance(record, PutLoglet)
    assert (record.sealed, record.told_end) == (True, 5)
    disk.group(SealRequest(STORAGE, OTHER, Offset(0)))
    (record,) = disk.group(tell((OTHER, 0))).writes
    assert isinstance(record, PutLoglet)
    assert (record.sealed, record.told_end, record.opened_by) == (True, 0, None)


def test_a_failed_commit_forgets_an_end(disk: CoreDisk) -> None:
    """It was not written, so it must be written, and said to be, when it is told again."""
    on_disk = replace(disk.state())
    disk.tell(5)
    disk.core.reload([on_disk])
    assert disk.state().told_end is None
    assert len(disk.group(tell((LOGLET, 5))).writes) == 1


def test_without_any_room_telling_an_end_says_so(disk: CoreDisk) -> None:
    """It is answered only when it is on disk."""
    error = StoreReadOnly("full")
    assert disk.core.refuse(disk.core.plan([tell((LOGLET, 5))]), error) == [error]


def test_ends_pass_through_the_same_queue(disk: CoreDisk) -> None:
    """Field note 3: what was taken before the end stays, what comes behind it meets it."""
    decision = disk.group(repair(placed(5)), tell((LOGLET, 5)), repair(placed(6)))
    first, told, second = decision.answers
    assert (first, told) == (RepairResponse(), TellEndsResponse())
    assert isinstance(second, Sealed)
