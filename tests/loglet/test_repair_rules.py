"""What a log server takes from a repair, rule by rule."""

from __future__ import annotations

import pytest
from helpers.core_disk import CoreDisk, refusals, repair, stored_answer
from helpers.log_servers import (
    LOGLET,
    OTHER,
    STORAGE,
    flipped,
    opened,
    placed,
    request,
)

from loglet.group import BATCH_OVERHEAD_BYTES, Answer, LookUp
from loglet.messages import RepairRequest, RepairResponse, SealRequest, SealResponse
from loglet.store import LogletState, PutBatch, PutRepaired
from sharedlog.batch import parse_placement
from sharedlog.errors import (
    CorruptBatch,
    LogletNotOpen,
    MissingPrefix,
    ProtocolError,
    Sealed,
    SharedLogError,
    StoreFailed,
    StoreReadOnly,
    WrongStorage,
)
from sharedlog.ids import LogletId, Offset, StorageId

DONE = RepairResponse()


@pytest.fixture
def disk() -> CoreDisk:
    """A store with LOGLET open at base 0."""
    disk = CoreDisk()
    disk.group(request(opens=[opened()]))
    return disk


def firsts(disk: CoreDisk, loglet: LogletId = LOGLET) -> list[int]:
    return sorted(it.first for it in disk.batches.get(loglet, []))


def test_a_repair_passes_a_seal(disk: CoreDisk) -> None:
    """Field note 2: a sealed server takes nothing of its sequencer, and a repair's batches."""
    disk.store(placed(0, 2))
    disk.seal()
    assert refusals(disk.store(placed(2))) == [(LOGLET, 2, Sealed)]
    decision = disk.group(repair(placed(2), placed(3, 2)))
    assert decision.answers == [DONE]
    assert decision.writes == [
        PutRepaired(LOGLET, Offset(2), Offset(3), placed(2)),
        PutRepaired(LOGLET, Offset(3), Offset(5), placed(3, 2)),
    ]
    assert (disk.state().local_tail, disk.state().sealed) == (5, True)


def test_a_repair_may_reach_a_member_that_is_not_sealed(disk: CoreDisk) -> None:
    """Field note 12: a seal quorum need not be everybody; the sequencer's own store then agrees."""
    assert disk.repair(placed(0, 2)) == DONE
    decision = disk.group(request([placed(0, 2), placed(2)]))
    assert stored_answer(decision.answers[0]).refused == []
    assert [type(it) for it in decision.writes] == [PutBatch]
    assert disk.seal() == SealResponse(Offset(3), Offset(0), last_timestamp_ms=1_002)


@pytest.mark.parametrize("sealed_first", [True, False])
def test_an_unknown_loglet_must_be_sealed_first(sealed_first: bool) -> None:
    """Field note 20: a wiped server comes back as one that knows of the seal, or not at all."""
    disk = CoreDisk()
    if sealed_first:
        disk.seal()
        assert disk.repair(placed(0)) == DONE
        return
    assert isinstance(disk.repair(placed(0)), LogletNotOpen)
    assert disk.core.loglet(LOGLET) is None


def test_a_repair_names_its_store() -> None:
    """Field note 20: what is meant for a disk that was swapped is not written to another."""
    disk = CoreDisk()
    disk.seal()
    foreign = RepairRequest(StorageId("b" * 32), LOGLET, Offset(0), [placed(0)])
    decision = disk.group(foreign)
    assert isinstance(decision.answers[0], WrongStorage)
    assert decision.writes == []


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (repair(flipped(placed(12), -1)), CorruptBatch),
        (repair(flipped(placed(12), 20)), CorruptBatch),
        (repair(placed(12, loglet=OTHER)), ProtocolError),
        (repair(placed(9)), ProtocolError),
        (repair(placed(13)), MissingPrefix),
        (repair(placed(13), committed=12), MissingPrefix),
        (repair(placed(2**63 - 1, 2), committed=2**63 - 1), CorruptBatch),
    ],
    ids=[
        *("damaged", "damaged placement", "another loglet", "below the base"),
        *("no prefix", "no prefix with C", "beyond the last offset"),
    ],
)
def test_refusals_write_nothing(message: RepairRequest, error: type[SharedLogError]) -> None:
    """Field note 24: a copy of damage is no copy; what breaks a rule leaves no trace."""
    disk = CoreDisk()
    disk.seal(base=10)
    disk.repair(placed(10, 2))
    decision = disk.group(message)
    assert [type(it) for it in decision.answers] == [error]
    assert decision.writes == []
    assert disk.state().local_tail == 12


def test_what_came_before_a_refusal_is_kept(disk: CoreDisk) -> None:
    """A repair that is refused in the middle left whole copies behind, and is simply sent again."""
    assert isinstance(disk.repair(placed(0), placed(5), placed(1)), MissingPrefix)
    assert firsts(disk) == [0]
    assert disk.repair(placed(0), placed(1)) == DONE
    assert firsts(disk) == [0, 1]


def test_what_is_committed_needs_no_prefix(disk: CoreDisk) -> None:
    """A member that holds nothing near [C, M) takes it, C being told; C counts for this only."""
    assert isinstance(disk.repair(placed(40)), MissingPrefix)
    assert disk.repair(placed(40), placed(41), committed=40) == DONE
    assert isinstance(disk.repair(placed(60)), MissingPrefix)
    assert refusals(disk.store(placed(38))) == [(LOGLET, 38, MissingPrefix)]
    assert disk.state().local_tail == 42


def test_a_committed_tail_that_is_known_counts_too(disk: CoreDisk) -> None:
    """The request adds to what the server knows by itself; it takes nothing away."""
    disk.learn(7)
    assert disk.repair(placed(7)) == DONE


def test_a_repair_raises_no_committed_tail(disk: CoreDisk) -> None:
    """Another sealer may win with a lower end: what was readable then would vanish."""
    decision = disk.group(repair(placed(6, committed=6), placed(7, committed=7), committed=6))
    assert decision.answers == [DONE]
    assert decision.advanced == set()
    assert disk.state().committed_tail == 0
    assert disk.seal() == SealResponse(Offset(8), Offset(0), last_timestamp_ms=1_007)


def test_a_hole_is_filled_in_any_order(disk: CoreDisk) -> None:
    """Backfill comes late, and needs its prefix like everybody: N-1 held or known committed."""
    disk.store(placed(0))
    disk.repair(placed(9), committed=9)
    assert isinstance(disk.repair(placed(3)), MissingPrefix)
    assert disk.repair(placed(1, 2), placed(3)) == DONE
    assert disk.look_ups == [LookUp(LOGLET, Offset(0), Offset(4))]
    assert disk.repair(placed(5), committed=5) == DONE
    assert disk.repair(placed(4)) == DONE
    assert firsts(disk) == [0, 1, 3, 4, 5, 9]
    assert disk.state().local_tail == 10


def test_a_hole_at_the_tail_is_filled_within_its_group(disk: CoreDisk) -> None:
    """Whoever leaves a hole and whoever fills it may queue together, on top of what is on disk."""
    disk.store(placed(0, 2))
    decision = disk.group(repair(placed(5), committed=5), repair(placed(2)), request([placed(3)]))
    assert decision.answers[:2] == [DONE, DONE]
    assert stored_answer(decision.answers[2]).refused == []
    assert firsts(disk) == [0, 2, 3, 5]


def test_what_is_held_is_not_written_again(disk: CoreDisk) -> None:
    """Several repair at once and again: equal bytes are held already, within one group too."""
    disk.store(placed(0), placed(1, 2))
    disk.seal()
    decision = disk.group(
        repair(placed(0), placed(1, 2), placed(3)), repair(placed(1, 2), placed(3))
    )
    assert decision.answers == [DONE, DONE]
    assert [it.first for it in decision.writes if isinstance(it, PutBatch)] == [3]


@pytest.mark.parametrize(
    "batch",
    [placed(1, 2, text="other"), placed(1, 3), placed(1), placed(2), placed(0, 2)],
    ids=["other bytes", "longer", "shorter", "within", "across"],
)
@pytest.mark.parametrize("sealed", [True, False])
def test_two_batches_under_one_offset_stop_the_server(
    disk: CoreDisk, batch: bytes, sealed: bool
) -> None:
    """The sequencer gave each offset once; two whole batches for one can't both be its."""
    disk.store(placed(0), placed(1, 2))
    if sealed:
        disk.seal()
    with pytest.raises(StoreFailed, match="two different batches"):
        disk.repair(batch)


def test_a_damaged_batch_is_overwritten(disk: CoreDisk) -> None:
    """Field notes 5 and 24: damage is mended from peers in its place, and then is a copy again."""
    disk.store(placed(0), placed(1, 2), placed(3))
    disk.seal()
    disk.damage(1, 3)
    message = repair(placed(1, 2))
    decision = disk.group(message, message)
    assert decision.answers == [DONE, DONE]
    assert decision.writes == [
        PutRepaired(LOGLET, Offset(1), Offset(3), placed(1, 2), overwrites=True)
    ]
    assert disk.state().local_tail == 4
    assert disk.group(message).writes == []


def test_damage_counts_as_held_in_the_prefix_rule(disk: CoreDisk) -> None:
    """Field note 5: a damaged batch was held, and what was held is not forgotten."""
    disk.store(placed(0), placed(1))
    disk.damage(1, 2)
    assert disk.repair(placed(2)) == DONE
    disk.damage(0, 1)
    assert disk.repair(placed(0)) == DONE
    assert firsts(disk) == [0, 1, 2]


def test_a_damaged_batch_of_another_range_proves_nothing(disk: CoreDisk) -> None:
    """Field note 5: damage is unknown, so it is neither a conflict nor a place to write."""
    disk.store(placed(0), placed(1, 2))
    disk.damage(1, 3)
    for batch in (placed(1), placed(2), placed(1, 3)):
        decision = disk.group(repair(batch))
        assert [type(it) for it in decision.answers] == [CorruptBatch]
        assert decision.writes == []
        assert refusals(disk.store(batch)) == [(LOGLET, parse_placement(batch).first, CorruptBatch)]


def test_repairs_may_use_half_of_the_reserve(disk: CoreDisk) -> None:
    """Field note 11: a log on a full disk can be repaired, in bounds, and so can move away."""
    size = len(placed(0)) + BATCH_OVERHEAD_BYTES
    disk.seal()
    decision = disk.group(
        repair(placed(0), placed(1)), repair(placed(2)), room=0, repair_room=2 * size
    )
    assert [type(it) for it in decision.answers] == [RepairResponse, StoreReadOnly]
    assert firsts(disk) == [0, 1]


def test_stores_and_repairs_share_their_room(disk: CoreDisk) -> None:
    """What a store takes is gone for a repair, and the other way round."""
    size = len(placed(0)) + BATCH_OVERHEAD_BYTES
    disk.group(request(opens=[opened(OTHER)]))
    decision = disk.group(
        request([placed(0)]),
        repair(placed(0, loglet=OTHER), loglet=OTHER),
        request([placed(1)]),
        repair(placed(1, loglet=OTHER), loglet=OTHER),
        room=2 * size,
        repair_room=3 * size,
    )
    _, first, stored, second = decision.answers
    assert first == DONE
    assert refusals(stored_answer(stored)) == [(LOGLET, 1, StoreReadOnly)]
    assert second == DONE
    decision = disk.group(repair(placed(1)), repair_room=size - 1)
    assert [type(it) for it in decision.answers] == [StoreReadOnly]


@pytest.mark.parametrize("seal_at", range(4))
def test_repairs_pass_through_the_same_queue(disk: CoreDisk, seal_at: int) -> None:
    """Field note 3: the seal's tail is what was taken before it; repairs go on behind it."""
    messages: list[RepairRequest | SealRequest] = [repair(placed(index)) for index in range(3)]
    messages.insert(seal_at, SealRequest(STORAGE, LOGLET, Offset(0)))
    decision = disk.group(*messages)
    answer = decision.answers[seal_at]
    assert isinstance(answer, SealResponse)
    assert answer.local_tail == seal_at
    assert disk.state().local_tail == 3


def test_without_any_room_a_repair_says_so(disk: CoreDisk) -> None:
    """Not even a record could be written: the repair is told, as everybody."""
    error = StoreReadOnly("full")
    plan = disk.core.plan([repair(placed(0)), RepairRequest(STORAGE, LOGLET, Offset(0), [b"?"])])
    first, second = disk.core.refuse(plan, error)
    assert first is error
    assert isinstance(second, CorruptBatch)


def test_what_was_trimmed_is_not_stored_again() -> None:
    """Below the local start it lies in the archive."""
    disk = CoreDisk(LogletState(LOGLET, Offset(0), None, True, Offset(10), Offset(12), Offset(12)))
    decision = disk.group(repair(placed(4, 3)))
    assert (decision.answers, decision.writes) == ([DONE], [])


def test_a_refusal_keeps_nothing_of_its_group_alive(disk: CoreDisk) -> None:
    """A caller in the same process may keep the error."""
    answer: Answer = disk.repair(placed(7))
    assert isinstance(answer, MissingPrefix)
    assert answer.__traceback__ is None


def test_timestamps_are_the_latest_of_what_is_held(disk: CoreDisk) -> None:
    """The next segment begins no earlier: a seal's answer knows the time of the newest batch."""
    disk.repair(placed(5), committed=5)
    disk.repair(placed(0), placed(1))
    assert disk.state().last_timestamp_ms == 1_005
    assert disk.seal() == SealResponse(Offset(6), Offset(0), last_timestamp_ms=1_005)
