"""A segment that ended below what was committed, for an operator has accepted a loss."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from helpers.log_servers import WAIT_S, until
from helpers.sequencers import Cluster, cluster

from metadata.records import LostRange
from sequencer.moves import end_of, search_from
from sharedlog.ids import Offset

A, B = 11, 12


def lose(made: Cluster, *ranges: tuple[int, int]) -> None:
    """Of the segment that was ended last."""
    *before, ended, opened = made.record.chain
    lost = tuple(
        LostRange(first=Offset(first), end=Offset(end), accepted_ms=1, reason="disks died")
        for first, end in ranges
    )
    chain = (*before, replace(ended, lost=lost), opened)
    made.record = replace(made.record, chain=chain)
    for process in made.processes.values():
        process.record = made.record


async def test_what_was_in_flight_when_a_loss_was_accepted_is_not_acknowledged(
    tmp_path: Path,
) -> None:
    """Promise 1: the end of the segment proves nothing of what lies below it if a part of that is
    lost. Only the new sequencer can say what is there."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        made.hold_acks()
        await session.send(0, 1)
        n1 = made["n1"].sequencer
        await until(lambda: n1.status().in_flight_bytes == 2 * 512)
        made.extend("n2", 2)
        assert end_of(made.record, made.record.chain[0]) == 2
        lose(made, (0, 1))
        assert end_of(made.record, made.record.chain[0]) is None
        made.tell("n1")
        assert await session.rest() == ["AppendIndefinite", "AppendIndefinite"]
        assert session.moved is not None


async def test_a_batch_is_looked_for_from_where_the_log_went_on(tmp_path: Path) -> None:
    """Promise 4: the client was told that nothing of its own lies below 5. Then the segment ended
    at 2; its batch went in there, the answer was lost, and it is sent again to a third sequencer.
    """
    async with cluster(tmp_path) as made:
        other = await made.session("n1", B)
        await other.send(*range(5))
        assert await other.results(5) == [0, 1, 2, 3, 4]
        first = await made.session("n1", A)
        assert (first.opened.floor, first.opened.segment_index) == (5, 0)
        await made.seal()
        made.extend("n2", 2)
        lose(made, (2, 2))
        made.tell()
        second = await made.session("n2", A, 0)
        assert second.opened.segment_index == 1
        await second.send(0)
        assert await second.results(1) == [2]
        second.lose()
        assert await made.move("n1") == 3
        made.tell()
        third = await made.session("n1", A, 0, resolve_from=5)
        await third.send(0, 1)
        assert await third.results(2) == [2, 3], "the first is known, the second is new"


async def test_a_state_that_was_given_up_is_not_waited_for(tmp_path: Path) -> None:
    """The log was taken over before its loss was accepted: it goes on with what is left then."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0)
        await session.send(1, set_fencing_token="lost")
        assert await session.results(2) == [0, 1]
        for door in made.doors.values():
            door.refuse_reads = True
        await made.move("n2")
        asked = await made.ask("n2", B)
        await until(lambda: any(it.stateless for it in made["n2"].sequencer._active.values()))
        lose(made, (0, 2))
        made.version += 1
        made.tell("n2")
        async with asyncio.timeout(WAIT_S):
            await asked._receive()
        await asked.send(0, fencing_token="")
        assert await asked.results(1) == [2]


async def test_only_a_loss_since_then_makes_the_search_longer(tmp_path: Path) -> None:
    """A log that once lost something must not be searched from there for ever."""
    async with cluster(tmp_path) as made:
        made.extend("n2", 300)
        lose(made, (100, 120), (300, 300))
        made.extend("n1", 900)
        made.extend("n2", 950)
        lose(made, (910, 920))

        def start(offset: int, segment_index: int) -> int:
            return search_from(made.record, Offset(offset), segment_index)

        assert start(500, 0) == 300, "it was told before the segment ended at 300"
        assert start(200, 0) == 200, "what is lost within a segment moves nothing"
        assert start(950, 1) == 950, "it was told after that"
        assert start(950, 2) == 950


async def test_a_segment_that_lost_all_and_was_replaced_counts_too(tmp_path: Path) -> None:
    """It ended where it began, so it left the chain; the next one has its loss."""
    async with cluster(tmp_path) as made:
        made.extend("n2", 300)
        made.extend("n1", 300)  # n2's was empty, as far as anybody can tell now
        *before, opened = made.record.chain
        lost = LostRange(first=Offset(300), end=Offset(300), accepted_ms=1, reason="disks died")
        record = replace(made.record, chain=(*before, replace(opened, lost=(lost,))))
        assert opened.index == 2
        assert search_from(record, Offset(400), 1) == 300
        assert search_from(record, Offset(400), 2) == 400
