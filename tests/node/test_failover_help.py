"""A log whose sequencer lives and yet can't go on: others help, and it is not given back to it."""

from __future__ import annotations

import asyncio

import pytest
from helpers.failover_parts import World3, log_record, node_record, running
from helpers.sim import run_virtual

from metadata.reconfiguration import Change
from metadata.records import LogRecord
from node.failover import ROLL_OTHERS_AFTER_S
from node.suspects import Suspects
from sharedlog.errors import InvalidArgument, LogUnavailable, MetadataUnavailable, SharedLogError
from sharedlog.ids import NodeId
from sharedlog.v1 import cluster_pb2

SUSPECT = cluster_pb2.ReportSuspectRequest(log="orders", reason="no answers")


def cluster(*, nodes: int = 4, sequencer: str = "n1") -> tuple[World3, LogRecord]:
    """Nodes n1, n2, …; the log's nodeset is n1, n2, n3."""
    world = World3()
    world.put_nodes(*(node_record(f"n{n}") for n in range(1, nodes + 1)))
    return world, world.put_log(log_record("orders", sequencer))


@pytest.mark.parametrize("error", [LogUnavailable("no seal quorum"), MetadataUnavailable("gone")])
def test_a_sealed_log_asks_for_help_until_it_has_some(error: SharedLogError) -> None:
    """Its sequencer can't end the sealed segment, and the first call for help fails: it calls
    again, after growing pauses, for as long as the log stands still."""

    async def main() -> None:
        world, record = cluster()
        async with running(world, "n1") as part:
            part.reconfigurer.error = error
            part.failover.on_sealed("orders", record.loglet(record.open_segment))
            await asyncio.sleep(60)
            in_a_minute = len(part.reconfigurer.calls)
            assert 8 < in_a_minute < 30
            assert set(world.pings.help_asked) == {"n2:1", "n3:1", "n4:1"}
            assert len(world.pings.help_asked) == 3 * in_a_minute

    run_virtual(main)


def test_who_is_asked_for_help_is_to_order_the_log() -> None:
    """The call names the helper as the next sequencer, and the asker as one that must not be: it
    could not end this segment, so it would need help with the next one as well."""

    async def main() -> None:
        world, record = cluster(nodes=5)
        world.pings.answers |= {"n2": "silent", "n3": "silent"}
        world.pings.helps = True
        async with running(world, "n1") as part:
            away = [NodeId("n2"), NodeId("n3")]
            part.failover.on_replicas_away("orders", record.loglet(record.open_segment), away)
            await asyncio.sleep(2)
            (request,) = world.pings.help_requests
            assert world.pings.help_asked == [f"{request.sequencer}:1"]
            assert request.sequencer in {"n4", "n5"}
            assert request.not_sequencer == ["n1"]
            assert (request.segment_index, request.direct_only) == (0, True)
            assert not part.reconfigurer.calls, "nothing is sealed that can't be ended"

    run_virtual(main)


def test_a_helper_can_end_the_segment_or_refuses() -> None:
    """It looks first who answers it: sealing less than a seal quorum would help nobody. Its own
    pace counts, too: a log that needs help all the time gets it ever less often."""

    async def main() -> None:
        world, _ = cluster()
        async with running(world, "n4") as part:
            change = Change(sequencer=NodeId("n4"), not_sequencer=frozenset((NodeId("n1"),)))
            world.pings.answers |= {"n2": "silent", "n3": "silent"}
            with pytest.raises(LogUnavailable, match=r"1 of the 3 log servers .* answer this node"):
                await part.failover.help("orders", change, segment_index=0, reason="help")
            assert not part.reconfigurer.calls
            world.pings.answers.clear()
            await asyncio.sleep(1)
            refused = 0
            for _ in range(9):
                found, _ = await part.view.fetch_log("orders")
                index = found.open_segment.index
                try:
                    await part.failover.help("orders", change, segment_index=index, reason="help")
                except LogUnavailable:
                    refused += 1
            found, _ = await part.view.fetch_log("orders")
            assert found.open_segment.sequencer.node_id == "n4"
            assert (len(part.reconfigurer.calls), refused) == (6, 3)
            again = await part.failover.help("orders", change, segment_index=0, reason="help")
            assert again.adopted, "the segment has ended long ago"

    run_virtual(main)


def test_a_node_that_is_cut_off_seals_nothing() -> None:
    """It finds the sequencer silent, and most of the log servers: it can't end the segment, so it
    leaves it to those who can, and does not disturb the log by a seal on its own log server."""

    async def main() -> None:
        world, record = cluster(sequencer="n2")
        world.pings.answers |= {"n2": "silent", "n3": "silent"}
        async with running(world, "n1") as part:
            for _ in range(3):
                with pytest.raises(LogUnavailable, match="no seal quorum"):
                    await part.failover.ensure(record)
            assert not part.reconfigurer.calls
            world.pings.answers["n3"] = 1
            await asyncio.sleep(1)
            found, _ = await part.failover.ensure(record)
            assert found.open_segment.index == 1

    run_virtual(main)


@pytest.mark.parametrize("sealed", [True, False])
def test_a_suspect_that_lives_keeps_a_segment_that_is_not_sealed(sealed: bool) -> None:
    """The client hears nothing of it, and pings do. If a log server has sealed the segment and
    nobody ends it, the asked node does, and the log goes to another; else nothing is done."""

    async def main() -> None:
        world, _ = cluster(sequencer="n2")
        world.pings.sealed = {"n3"} if sealed else set()
        async with running(world, "n4") as part:
            suspects = Suspects(view=part.view, failover=part.failover)
            for _ in range(5):
                await suspects.report(SUSPECT)
            await asyncio.sleep(ROLL_OTHERS_AFTER_S + 0.5)
            found, _ = await part.view.fetch_log("orders")
            assert found.open_segment.index == len(part.reconfigurer.calls) == int(sealed)
            assert (found.open_segment.sequencer.node_id == "n2") is not sealed

    run_virtual(main)


def test_a_seal_in_the_course_of_a_move_is_no_concern_of_others() -> None:
    """Whoever has sealed it, its sequencer among them, gets the time to end the segment."""

    async def main() -> None:
        world, _ = cluster(sequencer="n2")
        world.pings.sealed = {"n1", "n2", "n3"}
        async with running(world, "n4") as part, running(world, "n2") as mover:
            await Suspects(view=part.view, failover=part.failover).report(SUSPECT)
            await asyncio.sleep(ROLL_OTHERS_AFTER_S / 2)
            await mover.reconfigurer.reconfigure("orders", reason="its own move")
            await asyncio.sleep(2 * ROLL_OTHERS_AFTER_S)
            assert not part.reconfigurer.calls

    run_virtual(main)


def test_a_sequencer_that_is_suspected_follows_up_its_own_seal() -> None:
    """Asked itself, it may keep the log: it finds out whether it can end the segment."""

    async def main() -> None:
        world, _ = cluster(sequencer="n1")
        world.pings.sealed = {"n3"}
        async with running(world, "n1") as part:
            await Suspects(view=part.view, failover=part.failover).report(SUSPECT)
            found, _ = await part.view.wait_log("orders", lambda it: it.open_segment.index == 1)
            assert found.open_segment.sequencer.node_id == "n1"

    run_virtual(main)


def test_a_replacement_under_way_keeps_no_seal_from_being_followed_up() -> None:
    """A replacement that takes long, and then the seal: both are worked on, each for itself."""

    async def main() -> None:
        world, record = cluster(nodes=5)
        world.pings.answers["n3"] = "silent"
        async with running(world, "n1") as part:
            loglet = record.loglet(record.open_segment)
            part.reconfigurer.takes_s = 30.0
            part.failover.on_replicas_away("orders", loglet, [NodeId("n3")])
            await asyncio.sleep(1.5)
            assert len(part.reconfigurer.calls) == 1
            part.reconfigurer.takes_s = 0.01
            part.failover.on_sealed("orders", loglet)
            await asyncio.sleep(1)
            assert (await part.view.fetch_log("orders"))[0].open_segment.index == 1

    run_virtual(main)


def test_rolling_forward_is_never_given_up() -> None:
    """Whatever an attempt fails with, the next may succeed: the log takes nothing meanwhile."""

    async def main() -> None:
        world, record = cluster()
        async with running(world, "n1") as part:
            part.reconfigurer.error = InvalidArgument("a node of the plan began to drain")
            part.failover.on_sealed("orders", record.loglet(record.open_segment))
            await asyncio.sleep(3)
            part.reconfigurer.error = None
            await part.view.wait_log("orders", lambda it: it.open_segment.index == 1)

    run_virtual(main)


def test_a_draining_sequencer_has_its_members_replaced_all_the_same() -> None:
    """It may not order the next segment, so it does not ask for that: another takes the log."""

    async def main() -> None:
        world, record = cluster(nodes=5)
        world.put_nodes(node_record("n1", state="draining"))
        world.pings.answers["n3"] = "silent"
        async with running(world, "n1") as part:
            loglet = record.loglet(record.open_segment)
            part.failover.on_replicas_away("orders", loglet, [NodeId("n3")])
            found, _ = await part.view.wait_log("orders", lambda it: it.open_segment.index == 1)
            assert found.open_segment.sequencer.node_id == "n2"
            assert part.reconfigurer.calls[0][1].sequencer is None

    run_virtual(main)


def test_a_log_that_can_not_do_without_those_away_asks_for_help() -> None:
    """Nobody can take their places, but others may reach them."""

    async def main() -> None:
        world, record = cluster(nodes=3)
        async with running(world, "n1") as part:
            away = [NodeId("n2"), NodeId("n3")]
            part.failover.on_replicas_away("orders", record.loglet(record.open_segment), away)
            await asyncio.sleep(1)
            assert sorted(world.pings.help_asked) == ["n2:1", "n3:1"]

    run_virtual(main)
