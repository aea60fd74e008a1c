"""A log that leaves this process: announced, found out by SEALED, or told by the chain."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from helpers.log_servers import until
from helpers.sequencers import Cluster, Session, cluster, sequencer_id

from metadata.records import LogRecord
from sequencer.config import SequencerConfig
from sequencer.moves import KnownChains, end_of
from sharedlog.batch import encode_records
from sharedlog.clock import SystemClock
from sharedlog.errors import AppendIndefinite, LogUnavailable, NotSequencer
from sharedlog.ids import LogletId, Offset

CLOCK = SystemClock()
A = 11
PLAIN = encode_records([(b"plain", None, None)])
T = TypeVar("T")


async def still_waiting(task: asyncio.Task[T]) -> None:
    await CLOCK.sleep(0.05)
    assert not task.done()


def start(run: Awaitable[T]) -> asyncio.Task[T]:
    async def wait() -> T:
        return await run

    return asyncio.get_running_loop().create_task(wait(), name="waits")


async def in_use(made: Cluster) -> Session:
    """A session of A at n1 with batch 0 at offset 0."""
    session = await made.session("n1", A)
    await session.send(0)
    assert await session.results(1) == [0]
    return session


async def test_an_announced_move_waits_for_what_is_in_flight_and_admits_nothing_more(
    tmp_path: Path,
) -> None:
    """DESIGN §6, planned: the old sequencer stops admitting, drains; nobody sees an error."""
    async with cluster(tmp_path) as made:
        session, n1 = await in_use(made), made["n1"].sequencer
        made.hold_acks()
        await session.send(1)
        await until(lambda: n1.status().in_flight_bytes > 0)
        move = start(n1.prepare_move(made.record, timeout_s=5))
        await still_waiting(move)
        await session.send(2)
        append = start(n1.append(made.record, PLAIN, timeout_s=5))
        tail = start(n1.find_tail(made.record, timeout_s=5))
        opening = await made.ask("n1", A + 1)
        made.release_acks()
        assert await move == (True, 2)
        assert await session.results(1) == [1]
        await still_waiting(append)
        await still_waiting(tail)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(opening.results(1), 0.05)
        assert made["n1"].metric("committed_batches_total") == 2
        n1.resume(made.record.loglet(made.record.open_segment))
        (offset,) = await session.results(1)
        done = await append
        assert {offset, done.first} == {2, 3}, "the move did not happen"
        assert await tail in (2, 3, 4)
        await opening.send(0)
        assert await opening.results(1) == [4]


async def test_a_planned_move_loses_no_batch_and_shows_no_error(tmp_path: Path) -> None:
    """DESIGN §6, planned: what had no result was never admitted, and goes to the next one as new.

    An idle session hears of it too.
    """
    async with cluster(tmp_path) as made:
        session, idle = await in_use(made), await made.session("n1", A + 1)
        drained, tail = await made["n1"].sequencer.prepare_move(made.record, timeout_s=1)
        assert (drained, tail) == (True, 1)
        await session.send(1, 2, 3)
        assert await made.move("n2") == 1
        append = start(made["n1"].sequencer.append(made["n1"].record, PLAIN, timeout_s=5))
        await still_waiting(append)
        made.tell("n1")
        for told in (session, idle):
            assert await told.rest() == []
            assert told.moved is not None
            assert told.moved.sequencer.node_id == "n2"
            assert (told.moved.address, told.moved.chain_version) == ("n2:1", made.version)
        with pytest.raises(NotSequencer) as refused:
            await append
        assert refused.value.sequencer_node_id == "n2"
        again = await made.session("n2", A, 1)
        await again.send(1, 2, 3)
        assert await again.results(3) == [1, 2, 3]
        assert made["n1"].metric("indefinite_batches_total") == 0
        status = made["n1"].sequencer.status()
        assert (status.logs, status.moved, status.sealed) == (0, 1, 0)


async def test_a_session_that_moved_is_not_cut_off_while_its_client_sends(tmp_path: Path) -> None:
    """A stream that ends under a client's hands may lose it what it has not read yet: results, and
    where the log has gone. So the node waits until the client has left, or a little while."""
    async with cluster(tmp_path) as made:
        session, slow = await in_use(made), await made.session("n1", A + 1)
        await made["n1"].sequencer.prepare_move(made.record, timeout_s=1)
        await session.send(1, 2, 3)
        await made.move("n2")
        made.tell("n1")
        await until(lambda: made["n1"].sequencer.status().moved == 1)
        await CLOCK.sleep(0.05)
        await session.send(4)
        assert await session.rest() == []
        assert await slow.rest() == []
        assert session.moved is not None
        assert slow.moved is not None
        again = await made.session("n2", A, 1)
        await again.send(1)
        assert await again.results(1) == [1], "what came after the move was not admitted"


async def test_a_move_that_nobody_carries_out_is_forgotten(tmp_path: Path) -> None:
    """Who announced it may have died: the log must not stand still for ever."""
    async with cluster(tmp_path, SequencerConfig(move_wait_s=0.1)) as made:
        session = await in_use(made)
        await made["n1"].sequencer.prepare_move(made.record, timeout_s=1)
        await session.send(1)
        assert await session.results(1) == [1]


async def test_a_move_does_not_wait_longer_than_it_was_told(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        session = await in_use(made)
        made.hold_acks()
        await session.send(1)
        await until(lambda: made["n1"].sequencer.status().in_flight_bytes > 0)
        assert await made["n1"].sequencer.prepare_move(made.record, timeout_s=0.05) == (False, 1)


async def test_sealed_ends_what_is_in_flight_at_once_and_nothing_is_acknowledged_after(
    tmp_path: Path,
) -> None:
    """Field notes 1, 9, 41: some stores durable, some refused; and it takes no 16 s to notice.

    n1 still takes the batch, the sealed majority does not: it may yet be part of the log.
    """
    async with cluster(tmp_path) as made:
        session = await in_use(made)
        await until(lambda: made["n1"].sequencer.status().lagging == {})
        await made.seal("n2", "n3")
        began_s = CLOCK.monotonic_s()
        await session.send(1)
        assert await session.results(1) == ["AppendIndefinite"]
        assert CLOCK.monotonic_s() - began_s < 1
        loglet = LogletId(made.record.log_id, 0)
        assert made["n1"].listener.sealed == [("orders", loglet)], "told at once"
        await session.send(2)
        await CLOCK.sleep(0.05)
        assert made["n1"].metric("committed_batches_total") == 1
        assert made["n1"].sequencer.status().sealed == 1
        await made.move("n2")
        made.tell("n1")
        assert await session.rest() == [], "batch 2 was never admitted"
        assert session.moved is not None
        again = await made.session("n2", A, 1, resolve_from=1)
        await again.send(1, 2)
        assert await again.results(2) == [1, 2], "each once, in order"


async def test_an_append_that_was_under_way_when_the_seal_came_is_indefinite(
    tmp_path: Path,
) -> None:
    """Field note 1: the acks of two servers are on their way when a third says SEALED."""
    async with cluster(tmp_path) as made:
        await in_use(made)
        made.hold_acks("n1", "n2")
        await made.seal("n3")
        with pytest.raises(AppendIndefinite):
            await made["n1"].sequencer.append(made.record, PLAIN, timeout_s=5)
        made.release_acks()
        await CLOCK.sleep(0.05)
        assert made["n1"].metric("committed_batches_total") == 1, "a late ack is not passed on"


async def test_a_paused_sequencer_that_wakes_sends_its_sessions_to_the_next(
    tmp_path: Path,
) -> None:
    """Field note 16: the log has moved on while it was stopped; its stores meet SEALED.

    It asks to be told, and until it is, nobody hears a wrong tail or a wrong ack.
    """
    async with cluster(tmp_path) as made:
        session = await in_use(made)
        await made.move("n2")
        other = await made.session("n2", A + 1)
        await other.send(0)
        assert await other.results(1) == [1]
        old = made["n1"]
        tail = start(old.sequencer.find_tail(old.record, timeout_s=5))
        await session.send(1)
        assert await session.results(1) == ["AppendIndefinite"]
        await until(lambda: len(old.listener.sealed) == 1)
        await still_waiting(tail)
        made.tell("n1")
        with pytest.raises(NotSequencer):
            await tail
        assert await session.rest() == []
        assert session.moved is not None
        again = await made.session("n2", A, 1, resolve_from=1)
        await again.send(1)
        assert await again.results(1) == [2]


async def test_the_chain_tells_the_outcome_of_everything_in_flight(tmp_path: Path) -> None:
    """Field note 6: an ack may leave late, for a record below the end; above it, nothing is left.

    Offsets of a loglet are given out once, so what was in flight below the end is in the log.
    """
    async with cluster(tmp_path) as made:
        session = await in_use(made)
        made.hold_acks()
        await session.send(1, 2)
        await until(lambda: made["n1"].sequencer.status().in_flight_bytes == 2 * 512)
        append = start(made["n1"].sequencer.append(made.record, PLAIN, timeout_s=5))
        await still_waiting(append)
        await made.seal("n3")
        made.extend("n2", 2)
        made["n2"].record = made.record
        made.tell("n1")
        assert await session.rest() == [1], "batch 1 is in the log, batch 2 is not"
        assert session.moved is not None
        with pytest.raises(NotSequencer):
            await append
        made.release_acks()
        again = await made.session("n2", A, 2)
        await again.send(2)
        assert await again.results(1) == [2]
        assert made["n1"].metric("indefinite_batches_total") == 0


async def test_a_log_that_stays_here_goes_on_in_its_next_segment(tmp_path: Path) -> None:
    """A change of nodeset or quorum: sessions come back, plain calls do not notice."""
    async with cluster(tmp_path) as made:
        session, old = await in_use(made), made.record
        n1 = made["n1"].sequencer
        assert (await n1.prepare_move(made.record, timeout_s=1))[0]
        append = start(n1.append(old, PLAIN, timeout_s=5))
        tail = start(n1.find_tail(old, timeout_s=5))
        await made.move("n1")
        made.tell("n1")
        assert await session.rest() == []
        assert session.moved is not None
        assert session.moved.sequencer.node_id == "n1"
        assert (await append).first == 1
        assert await tail in (1, 2)
        assert (await n1.append(old, PLAIN, timeout_s=5)).first == 2, "an old chain does no harm"
        assert n1.committed_tail(LogletId(old.log_id, 1)) == 3


async def test_a_loglet_that_the_chain_has_left_is_never_taken_up_again(tmp_path: Path) -> None:
    """Whoever comes with an old chain: its offsets were given out, and must not be again."""
    async with cluster(tmp_path) as made:
        await in_use(made)
        old, n1 = made.record, made["n1"].sequencer
        await made.move("n2")
        made.tell("n1")
        with pytest.raises(NotSequencer):
            await n1.append(old, PLAIN, timeout_s=1)
        with pytest.raises(NotSequencer):
            n1.check_owner(old)
        n1.on_chain(old, 1)
        with pytest.raises(NotSequencer):
            await n1.find_tail(old, timeout_s=1)
        assert n1.status().logs == 0


async def test_a_caller_may_bring_the_news(tmp_path: Path) -> None:
    """The front door's view may be ahead of what the sequencer was told."""
    async with cluster(tmp_path) as made:
        session = await in_use(made)
        await made.move("n1")
        done = await made["n1"].sequencer.append(made.record, PLAIN, timeout_s=5)
        assert done.first == 1
        assert await session.rest() == []
        assert session.moved is not None


async def test_sessions_do_not_wait_for_ever_to_hear_where_the_log_is(tmp_path: Path) -> None:
    """Field note 10: the sealer died. Bounded waits, then an error that says so."""
    async with cluster(tmp_path, SequencerConfig(move_wait_s=0.2)) as made:
        session = await in_use(made)
        await made.seal()
        await session.send(1)
        assert await session.results(1) == ["AppendIndefinite"]
        late = await made.ask("n1", A + 1)
        assert isinstance(await session.error(), LogUnavailable)
        assert isinstance(await late.error(), LogUnavailable)
        with pytest.raises(LogUnavailable):
            await made["n1"].sequencer.append(made.record, PLAIN, timeout_s=0.1)
        await until(lambda: len(made["n1"].listener.sealed) > 1)  # it keeps asking
        await made.move("n2")
        made.tell("n1")
        with pytest.raises(NotSequencer):
            await made["n1"].sequencer.append(made["n1"].record, PLAIN, timeout_s=0.1)


async def test_time_does_not_run_backwards_across_sequencers(tmp_path: Path) -> None:
    """Field note 43: the segment says which time was given out last; a slower clock follows."""
    async with cluster(tmp_path) as made:
        await in_use(made)
        future_ms = CLOCK.now_ms() + 3_600_000
        answers = await made.seal()
        made.extend("n2", answers[0].local_tail, timestamp_ms=future_ms)
        done = await made["n2"].sequencer.append(made.record, PLAIN, timeout_s=5)
        assert done.timestamp_ms == future_ms


async def test_time_does_not_run_backwards_though_the_segment_tells_too_little(
    tmp_path: Path,
) -> None:
    """Its timestamp is low if the last batch was damaged where it was sealed (ADR 7): the batch
    itself, as another log server has it, says which time was given out last."""
    async with cluster(tmp_path) as made:
        await in_use(made)
        future_ms = CLOCK.now_ms() + 3_600_000
        answers = await made.seal()
        made.extend("n2", answers[0].local_tail, timestamp_ms=future_ms)
        done = await made["n2"].sequencer.append(made.record, PLAIN, timeout_s=5)
        await made.seal()
        made.extend("n1", done.first + 1, timestamp_ms=0)
        made.tell("n1")
        done = await made["n1"].sequencer.append(made.record, PLAIN, timeout_s=5)
        assert done.timestamp_ms == future_ms


async def test_a_process_that_shuts_down_ends_its_sessions_when_they_have_their_results(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as made:
        session, n1 = await in_use(made), made["n1"].sequencer
        made.hold_acks()
        await session.send(1)
        await until(lambda: n1.status().in_flight_bytes > 0)
        drain = start(n1.drain(timeout_s=5))
        await still_waiting(drain)
        made.release_acks()
        await drain
        assert await session.results(1) == [1]
        assert isinstance(await session.error(), LogUnavailable)


@pytest.mark.slow
async def test_an_idle_link_is_closed_and_a_log_that_left_costs_nothing(tmp_path: Path) -> None:
    async with cluster(tmp_path, SequencerConfig(link_idle_s=0.5)) as made:
        await in_use(made)
        n1 = made["n1"].sequencer
        assert n1._replication.links == 3
        await made.move("n2")
        made.tell("n1")
        await until(lambda: n1._replication.links == 0)
        assert not n1._active
        assert not n1._of_log
        await made.move("n1")
        assert (await n1.append(made.record, PLAIN, timeout_s=5)).first == 1, "made anew"


@pytest.mark.slow
async def test_servers_that_keep_a_log_back_are_reported(tmp_path: Path) -> None:
    """DESIGN §4 point 6: fewer than a write quorum are healthy, so it asks rather than waits."""
    async with cluster(tmp_path, SequencerConfig(quorum_timeout_s=0.5)) as made:
        session = await in_use(made)
        made.hold_acks("n2", "n3")
        await session.send(1)
        await until(lambda: bool(made["n1"].listener.away))
        assert made["n1"].listener.away[0] == ["n2", "n3"]
        made.release_acks()
        assert await session.results(1) == [1]


def chain_of(made: LogRecord, *parts: tuple[int, int, int | None]) -> LogRecord:
    """A chain of (index, base, end)."""
    segment = made.open_segment
    chain = tuple(
        replace(segment, index=index, base=Offset(base), end=None if end is None else Offset(end))
        for index, base, end in parts
    )
    return replace(made, chain=chain)


async def test_what_a_chain_says_of_an_earlier_segments_end(tmp_path: Path) -> None:
    """An empty segment is replaced in place; a chain that does not reach back says nothing."""
    async with cluster(tmp_path) as made:
        record = made.record
    base = chain_of(record, (2, 10, None)).open_segment
    assert end_of(chain_of(record, (0, 0, 10), (2, 10, 15), (3, 15, None)), base) == 15
    assert end_of(chain_of(record, (0, 0, 10), (3, 10, None)), base) == 10, "it was empty"
    assert end_of(chain_of(record, (3, 10, None)), base) == 10, "it was empty, and the first"
    assert end_of(chain_of(record, (4, 30, None)), base) is None
    assert end_of(chain_of(record, (2, 10, None)), base) is None


async def test_the_newest_chain_is_kept_of_logs_that_were_ordered_here(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        record = made.record
    chains = KnownChains(sequencer_id("n1"))
    first = chain_of(record, (0, 0, None))
    second = chain_of(record, (0, 0, 5), (1, 5, None))
    assert not chains.learn(second, 3), "never ordered here"
    assert chains.newest(first, 1).record is first
    chains.learn(first, 1, ordered=True)
    assert chains.learn(second, 3)
    assert chains.newest(first, 1) == (second, 3)
    assert chains.newest(second, 0).version == 3
    assert not chains.learn(first, 9)
    elsewhere = replace(second.open_segment, index=2, sequencer=sequencer_id("n2"))
    third = replace(second, chain=(*second.chain[:1], elsewhere))
    assert chains.learn(third, 4)
    assert chains.newest(first, 1).record.chain == (elsewhere,), "no more than is needed"
