"""Conditional and fenced appends at a real sequencer over real log servers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from helpers.log_servers import until
from helpers.sequencers import Cluster, Session, cluster

from sequencer.admission import Conditions
from sharedlog.batch import encode_records
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    AppendIndefinite,
    FencingTokenMismatch,
    InvalidArgument,
    NotSequencer,
    OffsetMismatch,
)
from sharedlog.ids import Offset

CLOCK = SystemClock()
A, B = 11, 12
PLAIN = encode_records([(b"plain", None, None)])


async def nothing_yet(session: Session) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(session.results(1), 0.05)


async def test_a_batch_gets_the_offset_that_it_must_get_or_none(tmp_path: Path) -> None:
    """Field note 40: the refusal carries the actual tail."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0, records=2, match_offset=0)
        await session.send(2, match_offset=2)
        assert await session.results(2) == [0, 2]
        await session.send(3, match_offset=7)
        error = await session.refusal()
        assert isinstance(error, OffsetMismatch)
        assert (error.match_offset, error.tail) == (7, 3)
        await session.send(4)
        assert await session.results(1) == ["SequenceGap"], "none overtakes a refused one"
        again = await made.session("n1", A, 3)
        await again.send(3, match_offset=3)
        assert await again.results(1) == [3]


async def test_a_refusal_waits_for_what_it_rests_on(tmp_path: Path) -> None:
    """DESIGN §4.8: a tail that is told is committed, or it might never have been."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0)
        assert await session.results(1) == [0]
        made.hold_acks()
        await session.send(1)
        other = await made.session("n1", B)
        await other.send(0, match_offset=1)
        await nothing_yet(other)
        made.release_acks()
        error = await other.refusal()
        assert isinstance(error, OffsetMismatch)
        assert error.tail == 2
        assert await session.results(1) == [1]


async def test_a_refusal_waits_for_a_round_that_confirms_it(tmp_path: Path) -> None:
    """A sequencer that was superseded must not tell of a tail that was passed long ago: sealed by
    others, it refuses nothing; the batch is judged where the log has gone."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0)
        assert await session.results(1) == [0]
        end = await made.move("n2")  # n1 has not heard
        newer = await made.session("n2", B)
        await newer.send(0)
        assert await newer.results(1) == [end]
        await session.send(1, match_offset=5)
        await nothing_yet(session)
        made.tell("n1")
        assert await session.rest() == []
        assert session.moved is not None, "it was never admitted, nor refused"


async def test_a_repeated_batch_is_known_whatever_it_depends_on(tmp_path: Path) -> None:
    """Promise 4: the condition held when it was admitted; its own success must not refuse it."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0, match_offset=0)
        assert await session.results(1) == [0]
        session.lose()
        await made.move("n2")
        again = await made.session("n2", A, 0, resolve_from=0)
        await again.send(0, match_offset=0)
        assert await again.results(1) == [0]


async def test_a_token_fences_those_who_have_another(tmp_path: Path) -> None:
    """Fences are in the order of the log, and take an offset."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0, fencing_token="")
        await session.send(1, set_fencing_token="a")
        await session.send(2, fencing_token="a")
        await session.send(3)
        await session.send(4, fencing_token="b")
        assert await session.results(4) == [0, 1, 2, 3], "who has no token is not looked at"
        error = await session.refusal()
        assert isinstance(error, FencingTokenMismatch)
        assert (error.given, error.current) == ("b", "a")


async def test_a_fence_may_expect_the_token_that_there_is(tmp_path: Path) -> None:
    """Of two who want the lock one gets it."""
    async with cluster(tmp_path) as made:
        one, two = await made.session("n1", A), await made.session("n1", B)
        await one.send(0, set_fencing_token="one", fencing_token="")
        assert await one.results(1) == [0]
        await two.send(0, set_fencing_token="two", fencing_token="")
        error = await two.refusal()
        assert isinstance(error, FencingTokenMismatch)
        assert error.current == "one"


async def test_a_token_survives_a_failover(tmp_path: Path) -> None:
    """The state comes from the log, whoever orders it; also through segments without any change."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0, set_fencing_token="a")
        await session.send(1, 2)
        assert await session.results(3) == [0, 1, 2]
        for name in ("n2", "n1", "n2"):
            await made.move(name)
            made.tell()
            plain = await made.session(name, B)
            await plain.send(0, fencing_token="a")
            assert isinstance((await plain.results(1))[0], int)
            plain.lose()
        late = await made.session("n2", A, 3)
        await late.send(3, fencing_token="b")
        assert isinstance(await late.refusal(), FencingTokenMismatch)


async def test_a_fence_that_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    """The log's end decides: what lies beyond it has set nothing."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0, set_fencing_token="kept")
        assert await session.results(1) == [0]
        made.hold_acks()
        await session.send(1, set_fencing_token="cut off")
        await until(lambda: made["n1"].sequencer.status().in_flight_bytes > 0)
        await made.seal()
        made.extend("n2", 1)  # as one does that met servers without it
        made["n2"].record = made.record
        made.release_acks()
        other = await made.session("n2", B)
        await other.send(0, fencing_token="kept")
        assert await other.results(1) == [1]


async def test_nothing_is_admitted_before_the_state_is_known(tmp_path: Path) -> None:
    """Silence is unknown, never "no token": who comes waits."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0, set_fencing_token="a")
        assert await session.results(1) == [0]
        for door in made.doors.values():
            door.refuse_reads = True
        await made.move("n2")
        asked = await made.ask("n2", B)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asked._receive(), 0.3)
        for door in made.doors.values():
            door.refuse_reads = False
        again = await made.session("n2", A, 1)
        await again.send(1, fencing_token="b")
        assert isinstance(await again.refusal(), FencingTokenMismatch)


async def test_a_move_while_the_state_is_read_changes_nothing(tmp_path: Path) -> None:
    """A move that is announced and given up opens no gate before its time."""
    async with cluster(tmp_path) as made:
        session = await made.session("n1", A)
        await session.send(0, set_fencing_token="a")
        assert await session.results(1) == [0]
        for door in made.doors.values():
            door.refuse_reads = True
        await made.move("n2")
        n2 = made["n2"].sequencer
        await n2.prepare_move(made.record, timeout_s=1)
        n2.resume(made.record.loglet(made.record.open_segment))
        asked = await made.ask("n2", B)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asked._receive(), 0.2)
        for door in made.doors.values():
            door.refuse_reads = False
        await until(lambda: made["n2"].metric("state_recovery_seconds_count") == 1)


async def append(made: Cluster, name: str, **conditions: object) -> int:
    done = await made[name].sequencer.append(
        made[name].record,
        PLAIN,
        timeout_s=2,
        conditions=Conditions(**conditions),  # type: ignore[arg-type]  # its own fields
    )
    return done.first


async def test_a_single_append_has_conditions_too(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        assert await append(made, "n1", match_offset=Offset(0)) == 0
        with pytest.raises(OffsetMismatch):
            await append(made, "n1", match_offset=Offset(0))
        assert await append(made, "n1", set_token="a") == 1
        with pytest.raises(FencingTokenMismatch):
            await append(made, "n1", fencing_token="")
        with pytest.raises(InvalidArgument):
            await append(made, "n1", set_token="a" * 65)
        with pytest.raises(InvalidArgument):
            await append(made, "n1", fencing_token="a" * 65)
        await made.move("n2")
        made.tell()
        with pytest.raises(NotSequencer):
            await append(made, "n1", match_offset=Offset(9))


async def test_a_single_append_that_is_superseded_is_not_refused(tmp_path: Path) -> None:
    """It is judged anew where the log has gone, or its outcome is unknown: never refused."""
    async with cluster(tmp_path) as made:
        assert await append(made, "n1") == 0
        await made.move("n2")
        with pytest.raises((NotSequencer, AppendIndefinite, TimeoutError)):
            async with asyncio.timeout(0.3):
                await append(made, "n1", match_offset=Offset(5))


async def test_refusals_of_sessions_that_are_gone_are_let_go(tmp_path: Path) -> None:
    """Nobody is to be told: nothing is kept, though no write quorum answers."""
    async with cluster(tmp_path) as made:
        first = await made.session("n1", A)
        await first.send(0)
        assert await first.results(1) == [0]
        made.hold_acks()
        sequencer = made["n1"].sequencer
        (active,) = sequencer._active.values()
        for producer in range(100, 110):
            session = await made.session("n1", producer)
            await session.send(0, match_offset=9)
            await until(lambda: len(active.refusals) == 1)
            session.lose()
            await until(lambda: not active.refusals)
        await first.send(1)
        await until(lambda: active.core.in_flight == 1)
        session = await made.session("n1", B)
        await session.send(0, match_offset=9)
        await until(lambda: len(active.refusals) == 1)
        session.lose()
        await until(lambda: not active.refusals)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await append(made, "n1", match_offset=Offset(9))
        await until(lambda: not active.refusals)
        assert not active.repeated, "nor with the batch that it rested on"
        made.release_acks()
        assert await first.results(1) == [1]
