"""A log's state is written once more, so that nothing from before it is needed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from helpers.log_servers import until
from helpers.sequencers import cluster

from sequencer.state import StateRange
from sharedlog.errors import AppendIndefinite, FencingTokenMismatch, NotSequencer

A, B = 11, 12


async def test_the_state_is_at_the_tail_and_the_same(tmp_path: Path) -> None:
    """Token and named producer survive a takeover that reads the checkpoint alone."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A, called="importer")
        await session.send(0, epoch=1, set_fencing_token="a")
        await session.send(1, 2, epoch=1)
        assert await session.results(3) == [1, 2, 3], "the life begins with a control batch"
        sequencer = made["n1"].sequencer
        done = await sequencer.checkpoint(made.record)
        assert (done.first, done.end) == (4, 5)
        assert sequencer.committed_tail(made.record.loglet(made.record.open_segment)) == done.end
        (active,) = sequencer._active.values()
        assert active.known_state.range == StateRange(done.first, done.end)
        for door in made.doors.values():
            door.reads.clear()
        await made.move("n2")
        made.tell()
        other = await made.session("n2", B)
        await other.send(0, fencing_token="b")
        assert isinstance(await other.refusal(), FencingTokenMismatch)
        again = await made.session("n2", A, called="importer")
        assert (again.opened.producer_epoch, again.opened.next_sequence) == (2, 3)
        reads = [it.start for door in made.doors.values() for it in door.reads]
        assert reads
        assert min(reads) >= done.first, "nothing below the checkpoint is read"


async def test_only_who_orders_the_log_writes_it(tmp_path: Path) -> None:
    """Another process says so, and so does one that the log has left."""
    async with cluster(tmp_path) as made:
        with pytest.raises(NotSequencer):
            await made["n2"].sequencer.checkpoint(made.record)
        old = made.record
        assert (await made["n1"].sequencer.checkpoint(old)).end == 1
        await made.move("n2")
        made.tell()
        with pytest.raises(NotSequencer):
            await made["n1"].sequencer.checkpoint(old)
        assert (await made["n2"].sequencer.checkpoint(made.record)).first == 1


async def test_a_checkpoint_without_a_quorum_is_indefinite(tmp_path: Path) -> None:
    """Like any append."""
    async with cluster(tmp_path) as made:
        made.hold_acks()
        with pytest.raises(AppendIndefinite):
            await made["n1"].sequencer.checkpoint(made.record, timeout_s=0.2)


async def test_a_checkpoint_waits_for_a_move_that_goes_elsewhere(tmp_path: Path) -> None:
    """It was not admitted: who asked hears that another process orders the log."""
    async with cluster(tmp_path) as made:
        sequencer = made["n1"].sequencer
        await sequencer.prepare_move(made.record, timeout_s=1)
        asked = asyncio.ensure_future(sequencer.checkpoint(made.record))
        await asyncio.sleep(0)
        await made.move("n2")
        made.tell()
        with pytest.raises(NotSequencer):
            await asked
        await until(lambda: not sequencer.status().in_flight_bytes)
