"""The rules of a log server, one by one."""

from __future__ import annotations

import time

import pytest
from helpers.core_disk import CoreDisk, ranges, refusals, stored_answer
from helpers.log_servers import (
    LOGLET,
    ME,
    OTHER,
    RIVAL,
    STORAGE,
    flipped,
    opened,
    placed,
    request,
)

from loglet.group import BATCH_OVERHEAD_BYTES, LookUp, Request
from loglet.messages import (
    CommittedTail,
    Confirmed,
    ConfirmUnsealed,
    SealRequest,
    SealResponse,
    Stored,
    StoreResponse,
)
from loglet.store import HeldBatch, LogletState, PutBatch, PutLoglet
from sharedlog.batch import PLACEMENT_BYTES, Placement, parse_placement, place_batch
from sharedlog.errors import (
    CorruptBatch,
    LogletNotOpen,
    MissingPrefix,
    ProtocolError,
    Sealed,
    SharedLogError,
    StoreFailed,
    StoreReadOnly,
    WrongSequencer,
    WrongStorage,
)
from sharedlog.ids import Offset, StorageId


@pytest.fixture
def disk() -> CoreDisk:
    """A store with LOGLET open at base 0."""
    disk = CoreDisk()
    disk.group(request(opens=[opened()]))
    return disk


def test_an_open_is_recorded_and_answered_with_an_empty_range() -> None:
    """Field note 20: a loglet is opened explicitly, and the open is a durable record."""
    disk = CoreDisk()
    decision = disk.group(request(opens=[opened(base=40)]))
    assert decision.writes == [
        PutLoglet(LOGLET, Offset(40), ME, sealed=False, local_start=Offset(40))
    ]
    assert decision.answers == [StoreResponse(stored=[Stored(LOGLET, Offset(40), Offset(40))])]


def test_an_open_again_by_the_same_sequencer_changes_nothing(disk: CoreDisk) -> None:
    """An open whose answer was lost is simply sent again."""
    decision = disk.group(request(opens=[opened()]))
    assert decision.writes == []
    assert ranges(stored_answer(decision.answers[0])) == [(0, 0)]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (request(opens=[opened()], sequencer=RIVAL), WrongSequencer),
        (request(opens=[opened(base=5)]), ProtocolError),
        (request([placed(0)], sequencer=RIVAL), WrongSequencer),
        (request([flipped(placed(0), -1)]), CorruptBatch),
        (request([placed(1)]), MissingPrefix),
    ],
    ids=["open by a rival", "open elsewhere", "store by a rival", "corrupt", "no prefix"],
)
def test_refusals_write_nothing(
    disk: CoreDisk, message: Request, error: type[SharedLogError]
) -> None:
    """What breaks a rule is refused with the reason, and leaves no trace."""
    decision = disk.group(message)
    assert decision.writes == []
    assert [it[2] for it in refusals(stored_answer(decision.answers[0]))] == [error]
    assert disk.store(placed(0)).refused == []


def test_a_store_never_opens(disk: CoreDisk) -> None:
    """Field note 20: a store to a loglet that was never opened here is not taken as an open."""
    response = disk.store(placed(0, loglet=OTHER))
    assert refusals(response) == [(OTHER, 0, LogletNotOpen)]
    assert disk.core.loglet(OTHER) is None


def test_another_storage_id_refuses_the_whole_message(disk: CoreDisk) -> None:
    """Field note 20: a wiped disk answers nothing that was meant for the old one."""
    foreign = StorageId("b" * 32)
    for message in (
        request([placed(0)], storage_id=foreign),
        request(storage_id=foreign),
        SealRequest(foreign, LOGLET, Offset(0)),
    ):
        decision = disk.group(message, request([placed(0, loglet=OTHER)]))
        assert isinstance(decision.answers[0], WrongStorage)
        assert isinstance(decision.answers[1], StoreResponse)
        assert decision.writes == []


def test_a_damaged_placement_refuses_the_whole_message(disk: CoreDisk) -> None:
    """Nobody can say whose batch it was, so nothing of the message is taken."""
    decision = disk.group(request([placed(0), flipped(placed(1), 20)]))
    assert isinstance(decision.answers[0], CorruptBatch)
    assert decision.writes == []


def test_batches_that_touch_are_answered_as_one_range(disk: CoreDisk) -> None:
    """Work per message: one answer for a run of batches."""
    response = disk.store(placed(0, 3), placed(3), placed(4, 6))
    assert ranges(response) == [(0, 10)]
    state = disk.core.loglet(LOGLET)
    assert state is not None
    assert state.local_tail == 10


def test_the_first_refusal_ends_the_loglet_in_the_message_alone(disk: CoreDisk) -> None:
    """What follows a refused store is refused with it; other loglets go on."""
    disk.group(request(opens=[opened(OTHER)]))
    response = disk.store(
        placed(0), placed(5), placed(1), placed(0, loglet=OTHER), placed(2), placed(1, loglet=OTHER)
    )
    assert [(it.loglet, it.first, it.end) for it in response.stored] == [
        (LOGLET, 0, 1),
        (OTHER, 0, 2),
    ]
    assert refusals(response) == [(LOGLET, 5, MissingPrefix)]


def test_a_skipped_replica_resumes_at_the_committed_tail(disk: CoreDisk) -> None:
    """N is taken if N-1 is known to be committed: a legal hole."""
    disk.store(placed(0, 2))
    assert refusals(disk.store(placed(7))) == [(LOGLET, 7, MissingPrefix)]
    assert disk.learn(6).writes == []
    assert refusals(disk.store(placed(7))) == [(LOGLET, 7, MissingPrefix)]
    disk.learn(7)
    assert ranges(disk.store(placed(7))) == [(7, 8)]
    assert ranges(disk.store(placed(8))) == [(8, 9)]


def test_a_placement_carries_a_committed_tail_too(disk: CoreDisk) -> None:
    """The tail that rides on a batch counts for that batch's own prefix."""
    assert ranges(disk.store(placed(5, committed=5))) == [(5, 6)]
    state = disk.core.loglet(LOGLET)
    assert state is not None
    assert state.committed_tail == 5


def test_committed_tails_only_rise_and_only_for_the_own_sequencer(disk: CoreDisk) -> None:
    """A late or foreign hint changes nothing; a real one names the loglet as advanced."""
    assert disk.learn(3).advanced == {LOGLET}
    assert disk.learn(2).advanced == set()
    message = request(sequencer=RIVAL)
    message.committed = [CommittedTail(LOGLET, Offset(9)), CommittedTail(OTHER, Offset(9))]
    assert disk.group(message).advanced == set()


def test_a_held_batch_is_acknowledged_again(disk: CoreDisk) -> None:
    """A stream made anew repeats what it saw no answer to; nothing is written twice."""
    batches = [placed(first, 2) for first in range(0, 20, 2)]
    disk.store(*batches)
    decision = disk.group(request(batches[3:]))
    assert decision.writes == []
    assert ranges(stored_answer(decision.answers[0])) == [(6, 20)]
    assert disk.look_ups == [LookUp(LOGLET, Offset(5), Offset(20))]


def test_many_repeats_cost_in_proportion(disk: CoreDisk) -> None:
    """A stream that breaks with thousands of batches in flight must not stop the server.

    One look-up for a run of offsets, and no comparison of each batch with all the others.
    """
    batches = [placed(first) for first in range(20_000)]
    disk.group(request(batches))
    begun_s = time.process_time()
    answer = stored_answer(disk.group(request(batches)).answers[0])
    assert ranges(answer) == [(0, 20_000)]
    assert len(disk.look_ups) == 1
    assert time.process_time() - begun_s < 5.0


def test_look_ups_that_do_not_touch_stay_apart(disk: CoreDisk) -> None:
    """What lies between two repeats is not read."""
    batches = [placed(first) for first in range(20)]
    disk.store(*batches)
    disk.group(request([batches[2], batches[3]]), request([batches[9]]))
    assert disk.look_ups == [
        LookUp(LOGLET, Offset(1), Offset(4)),
        LookUp(LOGLET, Offset(8), Offset(10)),
    ]


def test_a_refusal_keeps_nothing_of_its_group_alive(disk: CoreDisk) -> None:
    """A sequencer in the same process keeps the error for as long as it knows the log."""
    disk.group(SealRequest(STORAGE, LOGLET, Offset(0)))
    (refused,) = stored_answer(disk.group(request([placed(0)])).answers[0]).refused
    assert isinstance(refused.error, Sealed)
    assert refused.error.__traceback__ is None


def test_new_batches_need_no_look_up(disk: CoreDisk) -> None:
    """The common case reads nothing from the disk."""
    disk.store(placed(0))
    disk.store(placed(1), placed(2))
    assert disk.look_ups == []


def test_a_repeat_within_one_group_is_acknowledged_too(disk: CoreDisk) -> None:
    """The old stream's message and its repeat on the new one may queue together."""
    decision = disk.group(
        request([placed(0), placed(1)]), request([placed(0), placed(1), placed(2)])
    )
    assert [ranges(stored_answer(it)) for it in decision.answers] == [[(0, 2)], [(0, 3)]]
    assert len(decision.writes) == 3


@pytest.mark.parametrize(
    "batch",
    [
        placed(2, 2, text="other"),
        placed(2, 3),
        placed(2, 1),
        placed(3, 1),
        placed(1, 2),
        placed(2, 2, committed=1),
    ],
    ids=["other bytes", "longer", "shorter", "within", "across", "other committed tail"],
)
@pytest.mark.parametrize("same_group", [True, False])
def test_two_batches_under_one_offset_stop_the_server(batch: bytes, same_group: bool) -> None:
    """An offset once given is never given to another batch: a breach is fatal, not an answer."""
    disk = CoreDisk()
    first = request([placed(0, 2), placed(2, 2)], opens=[opened()])
    if same_group:
        with pytest.raises(StoreFailed, match="two different batches"):
            disk.group(first, request([batch]))
        return
    disk.group(first)
    with pytest.raises(StoreFailed, match="two different batches"):
        disk.store(batch)


def test_a_damaged_held_batch_is_never_acknowledged(disk: CoreDisk) -> None:
    """A damaged batch keeps its place and is no copy."""
    disk.store(placed(0), placed(1))
    disk.batches[LOGLET][1] = HeldBatch(Offset(1), Offset(2), None)
    assert refusals(disk.store(placed(1))) == [(LOGLET, 1, CorruptBatch)]
    assert ranges(disk.store(placed(2))) == [(2, 3)]


def test_a_hole_can_be_filled_by_the_sequencer(disk: CoreDisk) -> None:
    """Below the local tail, what is not held is told apart from what is."""
    disk.store(placed(0, 2))
    disk.learn(10)
    disk.store(placed(10))
    decision = disk.group(request([placed(2, 2), placed(4)]))
    assert [type(it) for it in decision.writes] == [PutBatch, PutBatch]
    assert disk.group(request([placed(2, 2)])).writes == []
    with pytest.raises(StoreFailed):
        disk.store(placed(3, 2))


def test_below_the_base_and_beyond_the_last_offset_are_refused() -> None:
    """Offsets that can't be are named as such."""
    disk = CoreDisk()
    disk.group(request(opens=[opened(base=10)]))
    assert refusals(disk.store(placed(9))) == [(LOGLET, 9, ProtocolError)]
    huge = placed(2**63 - 1, 2)
    assert refusals(disk.store(huge)) == [(LOGLET, 2**63 - 1, CorruptBatch)]
    too_far = request(opens=[opened(OTHER, 2**63)])
    answer = stored_answer(disk.group(too_far).answers[0])
    assert refusals(answer) == [(OTHER, 2**63, ProtocolError)]


def test_a_batch_without_records_is_refused(disk: CoreDisk) -> None:
    """It would take no offsets, so it could not be found again."""
    whole = placed(0)
    placement = parse_placement(whole)
    empty = Placement(LOGLET, Offset(0), 0, 0, Offset(0), placement.batch_crc32c)
    response = disk.store(place_batch(empty, whole[PLACEMENT_BYTES:]))
    assert refusals(response) == [(LOGLET, 0, CorruptBatch)]


def test_a_seal_ends_all_stores_what_is_held_included(disk: CoreDisk) -> None:
    """Field notes 1 and 16: after the seal the answer to every store of the sequencer is Sealed."""
    disk.store(placed(0, 3))
    assert disk.seal() == SealResponse(Offset(3), Offset(0), last_timestamp_ms=1_000)
    for batch in (placed(0, 3), placed(3)):
        assert refusals(disk.store(batch)) == [(LOGLET, batch_first(batch), Sealed)]
    answer = stored_answer(disk.group(request(opens=[opened()])).answers[0])
    assert refusals(answer) == [(LOGLET, 0, Sealed)]


def batch_first(batch: bytes) -> int:
    return parse_placement(batch).first


def test_a_seal_is_durable_once_and_idempotent(disk: CoreDisk) -> None:
    """The second seal writes nothing and says the same."""
    seal = SealRequest(STORAGE, LOGLET, Offset(0))
    decision = disk.group(seal, seal)
    assert decision.writes == [PutLoglet(LOGLET, Offset(0), ME, sealed=True, local_start=Offset(0))]
    assert decision.answers[0] == decision.answers[1]
    assert disk.group(seal).writes == []


def test_a_seal_of_an_unknown_loglet_creates_it_sealed() -> None:
    """Field notes 15 and 20: an open that comes after the seal finds the loglet sealed."""
    disk = CoreDisk()
    assert disk.seal(OTHER, 7) == SealResponse(Offset(7), Offset(7))
    answer = stored_answer(
        disk.group(request([placed(7, loglet=OTHER)], opens=[opened(OTHER, 7)])).answers[0]
    )
    assert refusals(answer) == [(OTHER, 7, Sealed)]
    assert isinstance(disk.seal(OTHER, 8), ProtocolError)
    assert isinstance(disk.seal(LOGLET, -1), ProtocolError)


@pytest.mark.parametrize("seal_at", range(5))
def test_the_check_and_the_write_are_one_step(disk: CoreDisk, seal_at: int) -> None:
    """Field note 3: wherever a seal falls in the queue, its tail is what was taken before it."""
    messages: list[Request] = [request([placed(index)]) for index in range(4)]
    messages.insert(seal_at, SealRequest(STORAGE, LOGLET, Offset(0)))
    decision = disk.group(*messages)
    last_timestamp_ms = 1_000 + seal_at - 1 if seal_at else 0
    assert decision.answers[seal_at] == SealResponse(Offset(seal_at), Offset(0), last_timestamp_ms)
    assert sum(isinstance(it, PutBatch) for it in decision.writes) == seal_at
    later = [stored_answer(it) for it in decision.answers[seal_at + 1 :]]
    assert all(refusals(it)[0][2] is Sealed and not it.stored for it in later)


def test_confirms_are_answered_in_the_order_of_the_queue(disk: CoreDisk) -> None:
    """ "Not sealed" is true at that point of the queue, for a loglet that is not known as well."""
    ask = request()
    ask.confirms = [ConfirmUnsealed(LOGLET, 5), ConfirmUnsealed(OTHER, 6)]
    decision = disk.group(ask, SealRequest(STORAGE, LOGLET, Offset(0)), ask)
    before, _, after = decision.answers
    assert stored_answer(before).confirmed == [
        Confirmed(LOGLET, 5, sealed=False),
        Confirmed(OTHER, 6, sealed=False),
    ]
    assert stored_answer(after).confirmed[0] == Confirmed(LOGLET, 5, sealed=True)


def test_a_full_store_refuses_batches_and_takes_seals(disk: CoreDisk) -> None:
    """Field notes 11 and 26: without room batches are refused, records of loglets are not."""
    size = len(placed(0)) + BATCH_OVERHEAD_BYTES
    response = disk.store(placed(0), placed(1), room=size)
    assert ranges(response) == [(0, 1)]
    assert refusals(response) == [(LOGLET, 1, StoreReadOnly)]
    decision = disk.group(
        request(opens=[opened(OTHER)]), SealRequest(STORAGE, LOGLET, Offset(0)), room=0
    )
    assert len(decision.writes) == 2
    assert decision.answers[1] == SealResponse(Offset(1), Offset(0), last_timestamp_ms=1_000)


def test_a_failed_commit_is_forgotten_but_for_committed_tails(disk: CoreDisk) -> None:
    """After a reload only what is on disk counts; a committed tail is true all the same."""
    on_disk = [LogletState(LOGLET, Offset(0), ME, False, Offset(0), Offset(0), Offset(0))]
    disk.learn(1)
    disk.store(placed(0, 3))
    disk.core.reload(on_disk)
    disk.batches.clear()
    state = disk.core.loglet(LOGLET)
    assert state is not None
    assert (state.local_tail, state.committed_tail) == (0, 1)
    assert ranges(disk.store(placed(0, 3))) == [(0, 3)]


def test_without_any_room_everything_that_needs_it_is_refused(disk: CoreDisk) -> None:
    """Not even a record could be written: stores, opens and seals say so, each loglet once."""
    error = StoreReadOnly("full")
    ask = request([placed(0), placed(1)], opens=[opened(OTHER)])
    ask.confirms = [ConfirmUnsealed(LOGLET, 1)]
    foreign = request(storage_id=StorageId("b" * 32))
    plan = disk.core.plan([ask, SealRequest(STORAGE, LOGLET, Offset(0)), foreign])
    first, second, third = disk.core.refuse(plan, error)
    assert refusals(stored_answer(first)) == [(OTHER, 0, StoreReadOnly), (LOGLET, 0, StoreReadOnly)]
    assert stored_answer(first).confirmed == [Confirmed(LOGLET, 1, sealed=False)]
    assert second is error
    assert isinstance(third, WrongStorage)


def test_what_was_trimmed_is_acknowledged() -> None:
    """Below the local start everything was committed; a late repeat must not stop anything."""
    disk = CoreDisk(LogletState(LOGLET, Offset(0), ME, False, Offset(10), Offset(12), Offset(12)))
    assert ranges(disk.store(placed(4, 3))) == [(4, 7)]


def test_the_core_does_not_share_its_states() -> None:
    """The states that it was given stay as they were."""
    state = LogletState(LOGLET, Offset(0), ME, False, Offset(0), Offset(0), Offset(0))
    disk = CoreDisk(state)
    disk.store(placed(0))
    assert state.local_tail == 0
    assert [it.local_tail for it in disk.core.loglets()] == [1]
