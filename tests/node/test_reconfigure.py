"""Reconfiguration by the real shell over real log servers, under virtual time."""

from __future__ import annotations

import asyncio
import logging

import pytest
from helpers.movers import LOG_ID, NAME, Mover, MoverWorld, batch, run_in

from metadata.encoding import encode_log, log_key
from metadata.reconfiguration import Change
from metadata.store import Version
from sharedlog.errors import (
    InvalidArgument,
    LogNotFound,
    LogUnavailable,
    MetadataUnavailable,
    Unrepairable,
)
from sharedlog.ids import LogletId, NodeId, Offset
from sharedlog.limits import MIB
from sharedlog.rpc.methods import PREPARE_MOVE
from sharedlog.v1 import admin_pb2

LOGLET = LogletId(LOG_ID, 0)


async def fill(world: MoverWorld, **tails: int) -> None:
    """Give each server the log's first so many records, with nothing known to be committed."""
    for name, tail in tails.items():
        await world.store(name, [batch(first) for first in range(tail)])


def value(mover: Mover, metric: str, **labels: str) -> float:
    return mover.registry.get_sample_value(metric, labels) or 0.0


def test_the_open_segment_ends_where_all_agree() -> None:
    """Nothing is copied, nobody is kept waiting: a few round trips and fsyncs."""
    world = MoverWorld(1)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=3, n2=3, n3=3)
        async with world.mover("n4") as mover:
            began_s = asyncio.get_running_loop().time()
            done = await mover.reconfigurer.reconfigure(
                NAME, Change(sequencer=NodeId("n2")), reason="test"
            )
            took_s = asyncio.get_running_loop().time() - began_s
            assert (done.ended.end, done.opened.base, done.opened.index) == (3, 3, 1)
            assert (done.adopted, done.repaired_records) == (False, 0)
            assert done.opened.sequencer.node_id == "n2"
            assert done.opened.timestamp_ms == 1_002
            assert took_s < 0.02
            assert done.record == await world.chain()
            assert mover.view.log(NAME) == (done.record, done.version)
            assert mover.sequencer.calls == ["chain 1"]

    run_in(world, main)


def test_a_killed_node_that_held_the_log_costs_no_time() -> None:
    """The others are asked at the same time; who refuses the connection is not waited for."""
    world = MoverWorld(2)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=5, n2=5, n3=4)
        await world.crash("n1")
        async with world.mover("n4") as mover:
            mover.awareness.dead.add("n1")
            began_s = asyncio.get_running_loop().time()
            done = await mover.reconfigurer.reconfigure(
                NAME, Change(avoid=frozenset({NodeId("n1")})), reason="test", planned=False
            )
            assert asyncio.get_running_loop().time() - began_s < 0.05
            assert (done.ended.end, done.repaired_records) == (5, 1)
            assert {it.node_id for it in done.opened.nodeset} == {"n2", "n3", "n4"}
            assert world.held("n3")[-1] == (4, 5)
            assert value(mover, "sharedlog_node_repaired_records_total") == 1
            labels = {"kind": "unplanned", "cause": "other", "outcome": "won"}
            assert value(mover, "sharedlog_node_reconfigurations_total", **labels) == 1
            assert value(mover, "sharedlog_node_sealed_segments_total", cause="other") == 1
            name = "sharedlog_node_reconfiguration_seconds_count"
            assert value(mover, name, outcome="won") == 1

    run_in(world, main)


def test_a_silent_server_is_not_waited_for_beyond_the_grace() -> None:
    """A node that was cut off costs the few milliseconds in which it might have spared a copy."""
    world = MoverWorld(3)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=5, n2=5, n3=4)
        async with world.mover("n4") as mover:
            world.network.cut("n4", "n1")
            began_s = asyncio.get_running_loop().time()
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert asyncio.get_running_loop().time() - began_s < 0.05
            assert done.ended.end == 5

    run_in(world, main)


def test_a_long_tail_is_copied_message_by_message() -> None:
    """A tail of many MiB goes in messages that each fit, in order, and arrives whole."""
    world = MoverWorld(4)
    world.put_log()
    batches = [batch(first, record_bytes=MIB // 2) for first in range(9)]

    async def main() -> None:
        await world.store("n1", batches)
        await world.store("n2", batches[:1])
        async with world.mover("n4") as mover:
            world.network.cut("n4", "n3")
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert (done.ended.end, done.repaired_records) == (9, 8)
            assert world.held("n2") == world.held("n1")

    run_in(world, main)


def test_damage_is_read_elsewhere_and_mended() -> None:
    """Field note 5: a damaged batch is neither a copy nor a source, and is overwritten."""
    world = MoverWorld(5)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=4, n2=4)
        world.servers["n1"].disk.damage(LOGLET, Offset(2))
        async with world.mover("n4") as mover:
            world.network.cut("n4", "n3")
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert (done.ended.end, done.repaired_records) == (4, 1)
            one, other = (world.servers[name].disk for name in ("n1", "n2"))
            mended, whole = (it.read(LOGLET, Offset(2), Offset(3))[0] for it in (one, other))
            assert mended.placed == whole.placed

    run_in(world, main)


def test_a_tail_that_only_a_damaged_disk_had_is_left_out() -> None:
    """Field note 5: the attempt begins anew without it; the others are a seal quorum."""
    world = MoverWorld(6)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=4, n2=2, n3=2)
        world.servers["n1"].disk.damage(LOGLET, Offset(2))
        async with world.mover("n4") as mover:
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert done.ended.end == 2
            assert not mover.reconfigurer.troubles()

    run_in(world, main)


def test_a_lost_disk_of_two_is_replaced_before_the_segment_ends() -> None:
    """2/2: the replacement has the whole segment before the chain names it."""
    world = MoverWorld(7, servers=3)
    world.put_log(replicas=2, write_quorum=2)

    async def main() -> None:
        await fill(world, n1=6, n2=6)
        await world.wipe("n2")
        async with world.mover("n3") as mover:
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert done.ended.end == 6
            assert {it.node_id for it in done.ended.nodeset} == {"n1", "n2"}
            assert done.ended.nodeset[1] == world.replica("n2")
            assert world.held("n2") == world.held("n1")
            assert done.repaired_records == 6

    run_in(world, main)


def test_unrepairable_is_said_and_remembered() -> None:
    """Field note 18: a visible state, until the log's chain has moved."""
    world = MoverWorld(8, servers=5)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=3, n2=3, n3=3)
        await world.wipe("n2")
        await world.wipe("n3")
        async with world.mover("n4") as mover:
            for _ in range(2):
                with pytest.raises(Unrepairable, match="accept-loss"):
                    await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            trouble = mover.reconfigurer.troubles()[NAME]
            assert (trouble.unrepairable, trouble.attempts, trouble.segment_index) == (True, 2, 0)
            labels = {"kind": "unplanned", "cause": "other", "outcome": "unrepairable"}
            assert value(mover, "sharedlog_node_reconfigurations_total", **labels) == 2

    run_in(world, main)


def test_sealed_and_not_repairable_yet_goes_on_when_a_node_returns() -> None:
    """Field notes 10 and 13: anyone finishes what was begun, once there is a write quorum."""
    world = MoverWorld(9, servers=5)
    world.put_log(replicas=4, write_quorum=3)

    async def main() -> None:
        await fill(world, n1=3, n2=3, n3=3, n4=3)
        for name in ("n1", "n2"):
            await world.crash(name)
        async with world.mover("n5") as mover, world.mover("n6") as other:
            with pytest.raises(LogUnavailable, match=r"n1 does not answer.*n2 does not answer"):
                await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert not mover.reconfigurer.troubles()[NAME].unrepairable
            world.start("n1")
            done = await other.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert done.ended.end == 3
            await mover.view.wait_log(NAME, lambda record: len(record.chain) > 1)
            assert not mover.reconfigurer.troubles()

    run_in(world, main)


def test_several_at_once_end_it_once() -> None:
    """Field notes 7 and 35: one wins, the others adopt what it wrote."""
    world = MoverWorld(10, servers=6)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=5, n2=4, n3=3)
        async with (
            world.mover("n4") as one,
            world.mover("n5") as two,
            world.mover("n6") as three,
        ):
            results = await asyncio.gather(
                *(
                    mover.reconfigurer.reconfigure(
                        NAME, reason="test", segment_index=0, planned=False
                    )
                    for mover in (one, two, three)
                )
            )
        assert sorted(it.adopted for it in results) == [False, True, True]
        assert len({it.record for it in results}) == 1
        assert len({it.ended for it in results}) == 1

    run_in(world, main)


def test_who_only_wants_the_segment_ended_shares_the_flight() -> None:
    """Twenty sessions lost one sequencer: one reconfiguration, twenty answers."""
    world = MoverWorld(11)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            results = await asyncio.gather(
                *(
                    mover.reconfigurer.reconfigure(
                        NAME, reason="test", segment_index=0, planned=False
                    )
                    for _ in range(20)
                )
            )
            assert sum(not it.adopted for it in results) == 1
            assert {it.opened.index for it in results} == {1}
            late = await mover.reconfigurer.reconfigure(NAME, reason="test", segment_index=0)
            assert (late.adopted, late.opened.index, late.ended.index) == (True, 1, 0)

    run_in(world, main)


def test_each_wish_gets_a_flight_of_its_own() -> None:
    """Two changes at once are made one after the other; neither is lost."""
    world = MoverWorld(12, servers=5)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            await asyncio.gather(
                mover.reconfigurer.reconfigure(NAME, Change(replicas=5), reason="one"),
                mover.reconfigurer.reconfigure(NAME, Change(sequencer=NodeId("n3")), reason="two"),
            )
            segment = (await world.chain()).open_segment
            assert (len(segment.nodeset), segment.sequencer.node_id) == (5, "n3")
            assert segment.write_quorum == 3

    run_in(world, main)


def test_a_wish_that_lost_the_race_is_made_again() -> None:
    """To adopt somebody else's segment would forget what was asked for."""
    world = MoverWorld(13, servers=5)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as one, world.mover("n5") as two:
            await asyncio.gather(
                one.reconfigurer.reconfigure(NAME, Change(replicas=5), reason="one"),
                two.reconfigurer.reconfigure(NAME, Change(sequencer=NodeId("n3")), reason="two"),
            )
            segment = (await world.chain()).open_segment
            assert (len(segment.nodeset), segment.sequencer.node_id) == (5, "n3")

    run_in(world, main)


def test_a_caller_that_goes_away_leaves_nothing_half_done() -> None:
    """The reconfiguration belongs to nobody's call."""
    world = MoverWorld(14)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await mover.reconfigurer.reconfigure(NAME, reason="test")
            await mover.view.wait_log(NAME, lambda record: record.open_segment.index == 1)

    run_in(world, main)


def test_an_empty_segment_is_replaced() -> None:
    """Field note 15: the chain does not grow, the index does; the loglet is told its end too."""
    world = MoverWorld(15)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            done = await mover.reconfigurer.reconfigure(NAME, reason="test")
            assert [it.index for it in done.record.chain] == [1]
            assert (done.ended.index, done.ended.base, done.ended.end) == (0, 0, 0)
            await asyncio.sleep(0.1)
            assert world.told_end("n1") == 0

    run_in(world, main)


def test_log_servers_are_told_the_end() -> None:
    """Field note 8: those who wait at an old tail learn of it, also of one that was away."""
    world = MoverWorld(16)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=3, n2=3, n3=3)
        async with world.mover("n4") as mover:
            await world.crash("n3")
            await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            await asyncio.sleep(0.1)
            assert [world.told_end(name) for name in ("n1", "n2")] == [3, 3]
            world.start("n3")
            await asyncio.sleep(2)
            assert world.told_end("n3") == 3

    run_in(world, main)


# Planned changes.


def test_a_planned_change_drains_first_and_reads_the_chain_meanwhile() -> None:
    """The sequencer stops admitting before the seal; nothing is done one after the other that
    can be done at once."""
    world = MoverWorld(17)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=3, n2=3, n3=3)
        async with world.mover("n1") as mover:
            mover.sequencer.drains_s = 0.01
            done = await mover.reconfigurer.reconfigure(NAME, reason="test")
            assert mover.sequencer.calls == ["prepare 0", "chain 1"]
            assert 10 < done.pause_ms < 35
            again = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert mover.sequencer.calls == ["prepare 0", "chain 1", "chain 2"]
            assert again.pause_ms < 25

    run_in(world, main)


def test_a_sequencer_elsewhere_is_asked_to_drain() -> None:
    """Field note 32: by PrepareMove; a healthy writer is never fenced unasked."""
    world = MoverWorld(18)
    world.put_log()
    asked: list[str] = []

    async def prepare(request: admin_pb2.PrepareMoveRequest) -> admin_pb2.PrepareMoveResponse:
        asked.append(f"{request.log} {request.segment_index}")
        return admin_pb2.PrepareMoveResponse(drained=True)

    async def main() -> None:
        server = world.servers["n1"].grpc
        assert server is not None
        server.add_call(PREPARE_MOVE, prepare)
        async with world.mover("n4") as mover:
            await mover.reconfigurer.reconfigure(NAME, reason="test")
            assert asked == ["orders 0"]
            mover.awareness.dead.add("n1")
            await mover.reconfigurer.reconfigure(
                NAME, Change(avoid=frozenset({NodeId("n1")})), reason="test"
            )
            assert asked == ["orders 0"], "nobody asks the dead"

    run_in(world, main)


def test_a_sequencer_that_does_not_drain_is_sealed_all_the_same() -> None:
    """Half a second, and the chain says what became of what was in flight."""
    world = MoverWorld(19)
    world.put_log()

    async def main() -> None:
        async with world.mover("n1") as mover:
            mover.sequencer.drains_s = 60
            done = await mover.reconfigurer.reconfigure(NAME, reason="test")
            assert 500 < done.pause_ms < 600

    run_in(world, main)


def test_what_can_not_be_planned_disturbs_nobody() -> None:
    """Field note 52: too few nodes, a wrong wish or no metadata store: the log stays as it is."""
    world = MoverWorld(20)
    world.put_log()

    async def main() -> None:
        async with world.mover("n1") as mover:
            reconfigure = mover.reconfigurer.reconfigure
            with pytest.raises(InvalidArgument):
                await reconfigure(NAME, Change(sequencer=NodeId("n99")), reason="test")
            mover.awareness.dead |= {"n2", "n3", "n4"}
            with pytest.raises(LogUnavailable):
                await reconfigure(NAME, reason="test")
            assert mover.sequencer.calls == []
            mover.awareness.dead.clear()
            world.metadata.up = False
            with pytest.raises(MetadataUnavailable):
                await reconfigure(NAME, reason="test")
            assert mover.sequencer.calls == ["prepare 0", "resume 0"]
            world.metadata.up = True
            with pytest.raises(LogNotFound):
                await reconfigure("other", reason="test")
            assert not mover.reconfigurer.troubles()
        assert [world.is_sealed(name) for name in ("n1", "n2", "n3")] == [None] * 3

    run_in(world, main)


def test_a_failover_that_can_not_be_planned_is_a_trouble() -> None:
    """Nobody orders the log: that it can't have another sequencer is to be seen."""
    world = MoverWorld(21)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            mover.awareness.dead |= {"n1", "n2", "n3"}
            with pytest.raises(LogUnavailable):
                await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert mover.reconfigurer.troubles()[NAME].segment_index == 0

    run_in(world, main)


def test_a_swap_whose_answer_was_lost_is_settled_by_reading_it_back() -> None:
    """The attempt's id in the record says whose change it was."""
    world = MoverWorld(22)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            await mover.reconfigurer.preview(NAME)
            world.metadata.unknown_probability = 1.0
            task = asyncio.ensure_future(mover.reconfigurer.reconfigure(NAME, reason="test"))
            await mover.view.wait_log(NAME, lambda record: record.open_segment.index == 1)
            world.metadata.unknown_probability = 0.0
            done = await task
            assert (done.adopted, done.opened.index) == (False, 1)

    run_in(world, main)


def test_a_swap_that_another_field_spoiled_is_made_again_with_the_same_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sealed quorum's M stays valid until the segment has an end."""
    world = MoverWorld(23)
    record = world.put_log()
    swap = world.metadata.swap
    spoiled: list[Version] = []

    def spoil(key: str, value: bytes | None, expected: Version) -> Version:
        if key == log_key(NAME) and not spoiled:
            # A new version of the same words, a moment before.
            spoiled.append(swap(key, encode_log(record), expected))
        return swap(key, value, expected)

    async def main() -> None:
        await fill(world, n1=3, n2=3, n3=3)
        async with world.mover("n4") as mover:
            monkeypatch.setattr(world.metadata, "swap", spoil)
            done = await mover.reconfigurer.reconfigure(NAME, reason="test")
            assert (done.ended.end, done.adopted) == (3, False)
            assert spoiled

    run_in(world, main)


def test_preview_plans_and_does_nothing() -> None:
    """`--dry-run`."""
    world = MoverWorld(24, servers=5)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            segment = await mover.reconfigurer.preview(NAME, Change(replicas=5))
            assert (segment.index, len(segment.nodeset), segment.write_quorum) == (1, 5, 3)
            assert (await world.chain()).open_segment.index == 0

    run_in(world, main)


def test_one_canonical_line_tells_of_a_segment_that_was_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An operator finds what, why and how long in one place."""
    world = MoverWorld(25)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=3, n2=2)
        async with world.mover("n4") as mover:
            world.network.cut("n4", "n3")
            await mover.reconfigurer.reconfigure(NAME, reason="drill", planned=False)

    with caplog.at_level(logging.INFO, logger="node"):
        run_in(world, main)
    (line,) = [it for it in caplog.records if it.message == "reconfiguration.done"]
    fields = line.__dict__
    assert (fields["log"], fields["outcome"], fields["kind"]) == (NAME, "won", "unplanned")
    assert (fields["segment"], fields["to_segment"]) == (0, 1)
    assert (fields["base"], fields["end"], fields["tail"]) == (0, 3, 3)
    assert (fields["reason"], fields["cause"], fields["repaired_records"]) == ("drill", "other", 1)
    assert fields["sealed"] == ["n1", "n2"]
    steps = ("hold_ms", "seal_ms", "repair_ms", "cas_ms", "pause_ms", "ms")
    for name in ("sequencer", "nodeset", "ended_nodeset", *steps):
        assert name in fields


def test_a_failure_is_told_by_the_same_line_and_not_again_and_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first at info, with what had been done by then; those that follow at debug."""
    world = MoverWorld(26)
    world.put_log()

    async def main() -> None:
        await fill(world, n1=3, n2=3)
        await world.wipe("n2")
        await world.wipe("n3")
        async with world.mover("n4") as mover:
            for _ in range(3):
                with pytest.raises(Unrepairable):
                    await mover.reconfigurer.reconfigure(NAME, reason="drill", planned=False)

    with caplog.at_level(logging.DEBUG, logger="node"):
        run_in(world, main)
    lines = [it for it in caplog.records if it.message == "reconfiguration.done"]
    assert [it.levelname for it in lines] == ["INFO", "DEBUG", "DEBUG"]
    assert [it.__dict__["outcome"] for it in lines] == ["unrepairable"] * 3
    assert "accept-loss" in lines[0].__dict__["error"]
