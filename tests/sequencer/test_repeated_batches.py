"""Batches that come again: on another session, at another sequencer, after anything."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.log_servers import flipped, until
from helpers.sequencers import Cluster, batch, cluster

from metadata.records import LostRange
from sequencer.config import SequencerConfig
from sharedlog.clock import SystemClock
from sharedlog.errors import LogUnavailable, ProducerFenced, Purged
from sharedlog.ids import Offset
from sharedlog.rpc.session_request import SessionRequest

CLOCK = SystemClock()
A, B = 11, 12


async def test_a_repeated_batch_is_answered_with_its_place_and_only_once_committed(
    tmp_path: Path,
) -> None:
    """DESIGN §4 point 8: the offset of a duplicate leaves when it is committed, never before."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(0, 1)
        assert await first.results(2) == [0, 1]
        made.hold_acks()
        await first.send(2, 3)
        await until(lambda: made["n1"].sequencer.status().in_flight_bytes > 0)
        await CLOCK.sleep(0.05)
        first.lose()
        again = await made.session("n1", A, 2, resolve_from=2)
        await again.send(2, 3, 4)
        await until(lambda: made["n1"].metric("repeated_batches_total") == 2)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(again.results(1), 0.1)
        made.release_acks()
        assert await again.results(3) == [2, 3, 4]
        assert made["n1"].metric("searches_total") == 0, "this process has seen them all"
        assert made["n1"].metric("repeated_batches_total") == 2


async def test_a_batch_that_was_answered_already_is_answered_again_at_once(tmp_path: Path) -> None:
    """Promise 4: the answer was lost on its way, the batch is committed long since."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(0, 3, records=3)
        await until(lambda: made["n1"].metric("committed_batches_total") == 2)
        first.lose()
        again = await made.session("n1", A, 0, resolve_from=0)
        made.hold_acks()
        await again.send(0, 3)
        assert await again.results(2) == [0, 3]


async def test_the_next_sequencer_finds_a_batch_in_an_earlier_segment(tmp_path: Path) -> None:
    """Field notes 17, 36: un-acked survivors are part of the log, and a retry gets their offset."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(0)
        assert await first.results(1) == [0]
        other = await made.session("n1", B)
        made.hold_acks()
        await first.send(1, 3, records=2)
        await until(lambda: made["n1"].sequencer.status().in_flight_bytes == 2 * 512)
        await other.send(0)
        await CLOCK.sleep(0.1)  # they are stored, and nobody has heard of it
        assert await made.move("n2") == 6
        again = await made.session("n2", A, 1, resolve_from=1)
        assert again.opened.floor == 6
        assert made["n2"].metric("searches_total") == 1
        made.release_acks()
        await again.send(1, 3, 5)
        assert await again.results(3) == [1, 3, 6]
        plain = await made.session("n2", B, 1)
        await plain.send(1)
        assert await plain.results(1) == [7]
        assert made["n2"].metric("searches_total") == 1, "who repeats nothing is not searched for"
        reads = [read for door in made.doors.values() for read in door.reads]
        state, *searches = [(read.start, read.end, read.segment_end) for read in reads]
        assert state == (5, 6, 6), "the last batch says where the log's state lies"
        assert searches == [(1, 6, 6)]
        assert all(read.headers_only for read in reads)


async def test_a_search_goes_through_all_segments_since(tmp_path: Path) -> None:
    """Field note 36: the first copy may lie several segments back."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(0, 1)
        assert await first.results(2) == [0, 1]
        for _ in range(3):
            assert await made.move("n1") >= 2
            made.tell("n1")
            other = await made.session("n1", B, 0)
            await other.send(0)
            await other.results(1)
            other.lose()
        await made.move("n2")
        again = await made.session("n2", A, 1, resolve_from=1)
        await again.send(1, 2)
        assert await again.results(2) == [1, 5]


async def test_a_batch_beyond_the_chains_end_is_not_in_the_log(tmp_path: Path) -> None:
    """Field note 7: state is recovered up to the chain's end, whatever the servers hold beyond."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        made.hold_acks()
        await first.send(0, 1)
        await CLOCK.sleep(0.1)
        answers = await made.seal()
        assert [answer.local_tail for answer in answers] == [2, 2, 2]
        made.extend("n2", 1)  # as a sealer does that has met fewer of them
        made["n2"].record = made.record
        made.release_acks()
        again = await made.session("n2", A, 0, resolve_from=0)
        await again.send(0, 1, records=1)
        assert await again.results(2) == [0, 1]
        assert made["n2"].metric("repeated_batches_total") == 1, "only the one below the end"
        assert made["n2"].metric("committed_batches_total") == 1


async def test_a_newer_session_ends_the_older_one(tmp_path: Path) -> None:
    """The older one may still be read, for its client's connection broke without a word."""
    async with cluster(tmp_path) as made:
        older = await made.session("n1", A)
        await older.send(0)
        assert await older.results(1) == [0]
        newer = await made.session("n1", A, 1)
        assert isinstance(await older.error(), ProducerFenced)
        await newer.send(1)
        assert await newer.results(1) == [1]


async def test_after_a_refused_batch_the_later_ones_are_refused(tmp_path: Path) -> None:
    """Field note 37: a definite, typed error at admission; and no batch overtakes it."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0)
        damaged = flipped(batch(A, 1), -1)
        await session.stream.send(SessionRequest(batch=damaged))
        await session.send(2, 1)
        assert await session.results(4) == [0, "CorruptBatch", "SequenceGap", "SequenceGap"]
        session.lose()
        again = await made.session("n1", A, 1)
        await again.send(1, 2)
        assert await again.results(2) == [1, 2]


async def test_a_batch_of_a_producer_needs_a_session_that_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        session = await made.session("n1", 0)
        await session.stream.send(SessionRequest(batch=batch(A, 0)))
        await session.send(0)
        assert await session.results(2) == ["InvalidArgument", "SequenceGap"]
        again = await made.session("n1", 0)
        await again.send(0)
        assert await again.results(1) == [0]


async def test_the_session_says_its_floor_and_its_bounds(tmp_path: Path) -> None:
    """The floor is the committed tail: what is in flight may yet be cut off, and given out anew."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(0)
        assert await first.results(1) == [0]
        made.hold_acks()
        await first.send(*range(1, 100))
        await until(lambda: made["n1"].sequencer.status().in_flight_bytes == 64 * 512)
        await CLOCK.sleep(0.05)
        assert made["n1"].sequencer.status().in_flight_bytes == 64 * 512, "64 batches, no more"
        second = await made.session("n1", B)
        assert second.opened.floor == 1
        assert second.opened.in_flight_batches_max == 64
        assert second.opened.chain_version == made.version
        made.release_acks()
        assert await first.results(99) == list(range(1, 100))


async def test_what_was_forgotten_is_searched_for_in_the_open_segment(tmp_path: Path) -> None:
    """Memory is bounded: 64 batches of a producer, and beyond that the log itself remembers."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(*range(70))
        await until(lambda: made["n1"].metric("committed_batches_total") == 70)
        first.lose()
        again = await made.session("n1", A, 0, resolve_from=0)
        await again.send(*range(72))
        assert await again.results(72) == list(range(72))
        assert made["n1"].metric("searched_batches_total") == 6
        assert made["n1"].metric("committed_batches_total") == 72


async def test_a_range_that_one_server_lacks_is_had_from_another(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        await survivors(made)
        made.doors["n1"].refuse_reads = made.doors["n2"].refuse_reads = True  # type: ignore[index] # a node's id is a string
        again = await made.session("n2", A, 0, resolve_from=0)
        await again.send(0, 1)
        assert await again.results(2) == [0, 1]
        assert made["n2"].metric("repeated_batches_total") == 2


async def test_nothing_is_admitted_when_the_range_can_not_be_had(tmp_path: Path) -> None:
    """Silence and errors are unknown, never no: a search that skips would let a batch in twice."""
    async with cluster(tmp_path) as made:
        await survivors(made)
        for door in made.doors.values():
            door.refuse_reads = True
        session = await made.ask("n2", A, 0, resolve_from=0)
        assert isinstance(await session.error(), LogUnavailable)
        for door in made.doors.values():
            door.refuse_reads = False
        again = await made.session("n2", A, 0, resolve_from=0)
        await again.send(0, 1, 2)
        assert await again.results(3) == [0, 1, 2]


async def test_what_was_given_up_for_lost_is_not_searched_for(tmp_path: Path) -> None:
    """Its loss was accepted: it is not in the log, so it stops no session for ever."""
    async with cluster(tmp_path) as made:
        await survivors(made)
        closed = made.record.chain[0]
        lost = LostRange(first=Offset(0), end=Offset(1), accepted_ms=0, reason="disk gone")
        chain = (replace(closed, lost=(lost,)), *made.record.chain[1:])
        made["n2"].record = replace(made.record, chain=chain)
        session = await made.session("n2", A, 0, resolve_from=0)
        starts = [read.start for door in made.doors.values() for read in door.reads]
        assert starts[1:] == [1], "behind the read of the log's state"
        await session.send(0)
        assert await session.results(1) == ["SequenceGap"], "batch 1 is in the log, 0 is lost"


async def test_what_was_purged_is_not_taken_for_absent(tmp_path: Path) -> None:
    """Batch 0 was in the log, and purged since: to append it again would put it there twice. A
    session that repeats nothing, or nothing from there, opens as ever."""
    async with cluster(tmp_path) as made:
        await survivors(made)
        made["n2"].record = replace(made.record, start=Offset(1))
        refused = await made.ask("n2", A, 0, resolve_from=0)
        error = await refused.error()
        assert isinstance(error, Purged)
        assert (error.offset, error.start) == (0, 1)
        again = await made.session("n2", A, 1, resolve_from=1)
        await again.send(1, 2)
        assert await again.results(2) == [1, 2]
        other = await made.session("n2", B)
        await other.send(0)
        assert await other.results(1) == [3]


async def test_a_sequencer_that_has_seen_all_needs_not_look_for_what_was_purged(
    tmp_path: Path,
) -> None:
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(0, 1)
        assert await first.results(2) == [0, 1]
        first.lose()
        made["n1"].record = replace(made.record, start=Offset(2))
        made.version += 1
        made.tell("n1")
        again = await made.session("n1", A, 0, resolve_from=0)
        await again.send(0, 1, 2)
        assert await again.results(3) == [0, 1, 2]


async def test_searches_wait_for_their_turn(tmp_path: Path) -> None:
    """Many clients come back at once after a failover: all are served, a few at a time."""
    async with cluster(tmp_path, SequencerConfig(searches_max=1)) as made:
        for producer in range(1, 9):
            session = await made.session("n1", producer)
            await session.send(0)
            await session.results(1)
        await made.move("n2")
        asked = [await made.ask("n2", it, 0, resolve_from=0) for it in range(1, 9)]
        for number, session in enumerate(asked):
            await session.send(0)
            assert await session.results(1) == [number]


async def survivors(made: Cluster) -> None:
    """Batches 0 and 1 of A are in the log, which n2 orders now; A has heard of none of them."""
    first = await made.session("n1", A)
    await first.send(0, 1)
    assert await first.results(2) == [0, 1]
    assert await made.move("n2") == 2


async def test_a_session_that_is_gone_leaves_nothing_behind(tmp_path: Path) -> None:
    """A client that comes again and again while its batches are stuck: they are kept once, and each
    of its sessions only for as long as it is there. What is in flight is told from the start."""
    async with cluster(tmp_path) as made:
        made.hold_acks()
        n1 = made["n1"]
        session = await made.session("n1", A)
        await session.send(0, 1)
        await until(lambda: n1.metric("in_flight_bytes") == 2 * 512)
        for count in range(1, 6):
            session.lose()
            session = await made.session("n1", A, 0, resolve_from=0)
            await session.send(0, 1)
            repeated = 2 * count
            await until(lambda: n1.metric("repeated_batches_total") == repeated)  # noqa: B023  # ended before the next turn
        (active,) = n1.sequencer._active.values()
        assert [len(tickets) for tickets in active.repeated.values()] == [1, 1]
        made.release_acks()
        assert await session.results(2) == [0, 1]
        assert n1.metric("in_flight_bytes") == 0
        assert not active.repeated
