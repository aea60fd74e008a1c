"""Named producers: a life goes on where the last one stopped, over any sequencer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from helpers.log_servers import until
from helpers.sequencers import Cluster, Session, cluster

import sequencer.state as state_module
from sequencer.config import SequencerConfig
from sharedlog.control import producer_id_of
from sharedlog.errors import InvalidArgument, ProducerFenced
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.v1 import log_pb2

NAME = "importer-7"
A = 11


async def test_a_life_is_told_where_the_last_one_stopped(tmp_path: Path) -> None:
    """Its epoch is in the log, at an offset of its own, before it appends."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", 0, called=NAME)
        assert (first.opened.producer_epoch, first.opened.next_sequence) == (1, 0)
        await first.send(0, records=3, epoch=1)
        await first.send(3, epoch=1)
        assert await first.results(2) == [1, 4]
        first.lose()
        second = await made.session("n1", 0, called=NAME)
        assert (second.opened.producer_epoch, second.opened.next_sequence) == (2, 4)
        await second.send(4, epoch=2)
        assert await second.results(1) == [6]


async def test_a_life_goes_on_at_another_sequencer(tmp_path: Path) -> None:
    """The next sequencer reads all of it from the log, and refuses the lives before."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", 0, called=NAME)
        await first.send(0, 1, 2, epoch=1)
        assert await first.results(3) == [1, 2, 3]
        await made.move("n2")
        made.tell()
        second = await made.session("n2", 0, called=NAME)
        assert (second.opened.producer_epoch, second.opened.next_sequence) == (2, 3)
        await made.move("n1")
        made.tell()
        old = await made.ask("n1", 0, 3, called=NAME, epoch=1)
        error = await old.error()
        assert isinstance(error, ProducerFenced)
        assert error.life == 2
        again = await made.session("n1", 0, 3, called=NAME, epoch=2)
        assert again.opened.producer_epoch == 2
        await again.send(3, epoch=2)
        assert isinstance((await again.results(1))[0], int)


async def test_a_newer_life_ends_the_session_of_the_older(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        older = await made.session("n1", 0, called=NAME)
        newer = await made.session("n1", 0, called=NAME)
        assert newer.opened.producer_epoch == 2
        assert isinstance(await older.error(), ProducerFenced)


async def test_a_retry_of_a_life_is_answered_with_its_offsets(tmp_path: Path) -> None:
    """Field note 36, for named producers as for others."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", 0, called=NAME)
        await first.send(0, 1, epoch=1)
        assert await first.results(2) == [1, 2]
        first.lose()
        await made.move("n2")
        again = await made.session("n2", 0, 0, called=NAME, epoch=1, resolve_from=0)
        await again.send(0, 1, 2, epoch=1)
        found = await again.results(3)
        assert found[:2] == [1, 2]


async def test_a_life_is_not_told_before_it_is_in_the_log(tmp_path: Path) -> None:
    """Were it lost, two lives could have one epoch."""
    async with cluster(tmp_path) as made:
        plain = await made.session("n1", A)
        await plain.send(0)
        assert await plain.results(1) == [0]
        made.hold_acks()
        asked = await made.ask("n1", 0, called=NAME)
        await until(lambda: made["n1"].sequencer.status().in_flight_bytes > 0)
        await made.seal()
        made.extend("n2", 1)  # the servers that were asked did not have it
        made["n1"].record = made["n2"].record = made.record
        made.release_acks()
        made.tell()
        assert (await asked.error()).__class__.__name__ == "NotSequencer"
        there = await made.session("n2", 0, called=NAME)
        assert there.opened.producer_epoch == 1


async def test_a_busy_life_is_found_out_by_reading_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints bound what a takeover reads, whatever the segment's length."""
    monkeypatch.setattr(state_module, "BATCHES_MAX", 8)
    async with cluster(tmp_path) as made:
        session = await made.session("n1", 0, called=NAME)
        for sequence in range(100):
            await session.send(sequence, epoch=1)
        await session.results(100)
        await made.move("n2")
        for door in made.doors.values():
            door.reads.clear()
        other = await made.session("n2", 0, called=NAME)
        assert (other.opened.producer_epoch, other.opened.next_sequence) == (2, 100)
        reads = [it for door in made.doors.values() for it in door.reads]
        assert all(it.end - it.start <= 10 for it in reads)
        assert len(reads) == 2


async def test_the_id_belongs_to_the_name(tmp_path: Path) -> None:
    """Neither another id for the name, nor the name's id without it."""
    async with cluster(tmp_path) as made:
        await made.session("n1", 0, called=NAME)
        nameless = await made.ask("n1", producer_id_of(NAME))
        assert isinstance(await nameless.error(), InvalidArgument)
        wrong = await made.ask("n1", 5)
        await wrong.stream.send(SessionRequest())
        process = made["n1"]
        opening = log_pb2.AppendSessionOpen(log="orders", producer_id=5, producer_name=NAME)
        with pytest.raises(InvalidArgument):
            await process.sequencer.serve_session(
                wrong.stream,
                process.record,
                opening,
            )


async def leave(made: Cluster, session: Session) -> None:
    """The session's end is noticed, so that its producer is not at work any more."""
    session.lose()
    tables = [it.producers for it in made["n1"].sequencer._active.values()]
    await until(lambda: not any(it.in_session() for it in tables))


async def test_who_was_forgotten_begins_anew_where_it_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loglet's table knows its last epoch still: a new life must not be taken for an old."""
    monkeypatch.setattr(state_module, "NAMED_PRODUCERS_MAX", 1)
    async with cluster(tmp_path) as made:
        await made.session("n1", 0, called=NAME)
        session = await made.session("n1", 0, called=NAME)
        await leave(made, session)
        await leave(made, await made.session("n1", 0, called="another"))
        again = await made.session("n1", 0, called=NAME)
        assert (again.opened.producer_epoch, again.opened.next_sequence) == (3, 0)
        await again.send(0, epoch=3)
        assert isinstance((await again.results(1))[0], int)


async def test_a_life_that_was_forgotten_is_shut_out_by_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the next sequencer: a process that was paused must not shut out its successor."""
    monkeypatch.setattr(state_module, "NAMED_PRODUCERS_MAX", 1)
    async with cluster(tmp_path) as made:
        await made.session("n1", 0, called=NAME)
        old = await made.session("n1", 0, called=NAME)
        await old.send(0, epoch=2)
        await old.results(1)
        await leave(made, old)
        await leave(made, await made.session("n1", 0, called="another"))
        await made.move("n2")
        made.tell()
        new = await made.session("n2", 0, called=NAME)
        back = await made.ask("n2", 0, 1, called=NAME, epoch=2)
        assert isinstance(await back.error(), ProducerFenced)
        await new.send(0, epoch=new.opened.producer_epoch)
        assert isinstance((await new.results(1))[0], int)


async def test_a_life_is_not_forgotten_by_what_is_written_for_it(tmp_path: Path) -> None:
    """One that was idle for long comes back after a takeover: its first session writes the state
    anew, and must be in it, or its next life would be told to begin at 0 again."""
    async with cluster(tmp_path, SequencerConfig(named_producer_expiry_s=0.001)) as made:
        first = await made.session("n1", 0, called=NAME)
        await first.send(0, 1, epoch=1)
        await first.results(2)
        first.lose()
        await made.move("n2")
        made.tell()
        await asyncio.sleep(0.01)  # it is idle for longer than it is remembered
        again = await made.session("n2", 0, 2, called=NAME, epoch=1)
        await again.send(2, epoch=1)
        await again.results(1)
        newer = await made.session("n2", 0, called=NAME)
        assert (newer.opened.producer_epoch, newer.opened.next_sequence) == (2, 3)
