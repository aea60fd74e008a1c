"""What the sequencer knows of producers: repetitions, order, sessions that take over."""

from __future__ import annotations

import pytest

from sequencer.producers import (
    IdleProducers,
    ProducerOpen,
    ProducerSession,
    ProducerTable,
    Remembered,
    Search,
)
from sharedlog.batch import BatchProducer, Placement
from sharedlog.errors import InvalidArgument, ProducerFenced, SequenceGap
from sharedlog.ids import LogId, LogletId, Offset

LOGLET = LogletId(LogId(7), 0)
P = 77


def make_table(base: int = 0, *, producers: int = 10, remembered: int = 64) -> ProducerTable:
    return ProducerTable(Offset(base), IdleProducers(producers), remembered_max=remembered)


def opened(table: ProducerTable, sequence: int = 0, *, epoch: int = 0) -> ProducerSession:
    found = table.open(ProducerOpen(P, epoch, sequence), Offset(0))
    table.check_invariants()
    return found.session


def resolve(table: ProducerTable, sequence: int, start: int, next_offset: int) -> Search | None:
    opening = ProducerOpen(P, 0, sequence, unresolved=True, resolve_from=Offset(start))
    return table.open(opening, Offset(next_offset)).search


def send(table: ProducerTable, session: ProducerSession, sequence: int, at: int) -> bool:
    """Whether the batch, [at, at + 1) if it is admitted, was new."""
    place = table.check(session, BatchProducer(session.producer_id, session.epoch, sequence))
    if place is None:
        table.admitted(session, Offset(at), Offset(at + 1), 1)
    table.check_invariants()
    return place is None


def placed(
    at: int, sequence: int, *, producer: int = P, epoch: int = 0
) -> tuple[Placement, BatchProducer]:
    placement = Placement(LOGLET, Offset(at), 1, 5, Offset(0), 0)
    return placement, BatchProducer(producer, epoch, sequence)


def test_a_batch_that_comes_again_is_answered_with_its_place() -> None:
    """Promise 4 and field note 17: the second copy gets the offset of the first."""
    table = make_table()
    session = opened(table)
    assert send(table, session, 0, 10)
    again = opened(table)
    found = table.check(again, BatchProducer(P, 0, 0))
    assert found == Remembered(Offset(10), Offset(11), 1)
    assert send(table, again, 1, 11), "what follows is new"


def test_a_newer_session_shuts_out_the_older_one() -> None:
    """What the older one still had on the way must not come after what the newer one repeats."""
    table = make_table()
    older = opened(table)
    found = table.open(ProducerOpen(P), Offset(0))
    assert found.shut_out is older
    with pytest.raises(ProducerFenced):
        send(table, older, 0, 0)
    assert send(table, found.session, 0, 0)


def test_an_older_epoch_is_refused_and_a_newer_one_counts_from_its_own_beginning() -> None:
    table = make_table()
    session = opened(table)
    assert send(table, session, 0, 0)
    newer = opened(table, epoch=1)
    assert send(table, newer, 0, 1), "the same sequence of another epoch is another batch"
    with pytest.raises(ProducerFenced):
        opened(table, epoch=0)


def test_a_session_that_begins_before_what_a_later_one_began_with_is_refused() -> None:
    """An open message that was long on its way must not make forgotten batches new again."""
    table = make_table()
    session = opened(table, 5)
    assert send(table, session, 5, 0)
    with pytest.raises(ProducerFenced):
        opened(table, 4)
    assert send(table, session, 6, 1), "and the present session goes on"


def test_sequences_are_consecutive_within_a_session() -> None:
    table = make_table()
    session = opened(table, 3)
    for wrong in (2, 4):
        with pytest.raises(SequenceGap):
            send(table, session, wrong, 0)
    assert send(table, session, 3, 0)


def test_after_a_refused_batch_everything_is_refused() -> None:
    """Order: the next batch must not be in the log while the one before it is not."""
    table = make_table()
    session = opened(table)
    assert send(table, session, 0, 0)
    session.refused = True  # the shell refused batch 1, e.g. for its size
    for sequence in (1, 2):
        with pytest.raises(SequenceGap):
            send(table, session, sequence, 1)
    again = opened(table, 1)
    assert send(table, again, 1, 1)


def test_a_batch_before_one_that_is_in_the_log_is_no_new_one() -> None:
    """A client that leaves a batch out and brings it later would have its records reordered."""
    table = make_table()
    assert send(table, opened(table, 0), 0, 0)
    assert send(table, opened(table, 2), 2, 1)
    # Batches before the present session's beginning are never asked for, and those after it that
    # are missing were never there: only a client that breaks the rules gets here.
    session = opened(table, 2)
    assert not send(table, session, 2, 9)
    table._producers[P].last_sequence = 7
    with pytest.raises(SequenceGap):
        send(table, session, 3, 9)


def test_another_producers_batch_is_refused() -> None:
    table = make_table()
    session = opened(table)
    for by in (BatchProducer(P + 1, 0, 0), BatchProducer(P, 1, 0), BatchProducer()):
        with pytest.raises(InvalidArgument):
            table.check(session, by)


def test_who_repeats_nothing_is_not_searched_for() -> None:
    table = make_table(base=100)
    assert table.open(ProducerOpen(P, 0, 9, resolve_from=Offset(3)), Offset(100)).search is None


def test_a_new_sequencer_searches_what_precedes_its_segment_and_nothing_else() -> None:
    """Field note 36: from where the first copy can lie, up to where its own knowledge begins."""
    table = make_table(base=100)
    assert resolve(table, 4, 60, next_offset=150) == Search(Offset(60), Offset(100))
    table = make_table(base=100)
    assert resolve(table, 4, 100, next_offset=150) is None


def test_what_a_search_has_found_is_no_new_batch() -> None:
    """Field notes 17, 36: found by the next sequencer, and only what is this producer's."""
    table = make_table(base=100)
    opening = ProducerOpen(P, 0, 4, unresolved=True, resolve_from=Offset(60))
    session = table.open(opening, Offset(100)).session
    assert not table.is_known(session)
    table.on_found(session, [placed(59, 3), placed(61, 4), placed(62, 9, producer=5)], Offset(70))
    assert not table.is_known(session), "the range is not through"
    table.on_found(session, [placed(80, 5)], Offset(100))
    assert table.is_known(session)
    assert [send(table, session, it, 100 + it) for it in (4, 5, 6, 7)] == [False, False, True, True]


def test_a_search_goes_on_where_an_earlier_session_had_to_leave_it() -> None:
    """A search that takes longer than clients wait is not begun anew by each of their tries."""
    table = make_table(base=100)
    opening = ProducerOpen(P, 0, 4, unresolved=True, resolve_from=Offset(60))
    first = table.open(opening, Offset(100)).session
    table.on_found(first, [placed(61, 4)], Offset(70))
    second = table.open(opening, Offset(100))
    assert second.search == Search(Offset(70), Offset(100))
    with pytest.raises(ProducerFenced):
        table.on_found(first, [], Offset(100))
    table.on_found(second.session, [], Offset(100))
    assert not send(table, second.session, 4, 100), "what the first has found counts"


def test_a_search_that_meets_a_newer_epoch_ends_the_session() -> None:
    table = make_table(base=100)
    opening = ProducerOpen(P, 0, 0, unresolved=True, resolve_from=Offset(0))
    session = table.open(opening, Offset(100)).session
    with pytest.raises(ProducerFenced):
        table.on_found(session, [placed(5, 0, epoch=1)], Offset(100))


def test_only_so_many_batches_are_remembered_and_the_rest_is_searched_for() -> None:
    table = make_table(remembered=4)
    session = opened(table)
    for sequence in range(10):
        assert send(table, session, sequence, sequence)
    assert resolve(table, 5, 5, next_offset=10) == Search(Offset(5), Offset(6))
    table = make_table(remembered=4)
    session = opened(table)
    for sequence in range(10):
        assert send(table, session, sequence, sequence)
    assert resolve(table, 6, 6, next_offset=10) is None


def test_a_forgotten_producer_is_searched_for_and_one_with_a_session_is_not_forgotten() -> None:
    """Bounded, and never at the price of a guess: what was forgotten lies below the horizon."""
    table = make_table(producers=1)
    session = opened(table)
    for sequence in range(3):
        assert send(table, session, sequence, sequence)
    for other in range(100, 120):
        it = table.open(ProducerOpen(other), Offset(3)).session
        table.close(it, settled=False)
    assert send(table, session, 3, 3), "with a session: still there"
    table.close(session, settled=False)
    it = table.open(ProducerOpen(500), Offset(4)).session
    table.close(it, settled=False)
    assert table.horizon == 4
    assert resolve(table, 2, 2, next_offset=10) == Search(Offset(2), Offset(4))
    assert len(table) <= 2


def test_a_session_that_ended_well_leaves_no_batches_behind() -> None:
    """Its client has every result, and will not ask; should it all the same, it is searched."""
    table = make_table()
    session = opened(table)
    assert send(table, session, 0, 0)
    table.close(session, settled=True)
    assert not table._producers[P].batches
    assert resolve(table, 0, 0, next_offset=5) == Search(Offset(0), Offset(1))


def test_a_table_whose_loglet_is_over_keeps_nobody_in_mind() -> None:
    idle = IdleProducers(10)
    table = ProducerTable(Offset(0), idle)
    gone = opened(table)
    present = table.open(ProducerOpen(5), Offset(0)).session
    table.close(gone, settled=False)
    assert len(idle) == 1
    table.drop_all()
    table.close(present, settled=False)
    assert len(idle) == 0
