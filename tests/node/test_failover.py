"""Failover: who is replaced and who never is, once and not twice, and how often."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from helpers.failover_parts import (
    Part,
    Pings,
    World3,
    log_record,
    node_record,
    running,
    sequencers,
)
from helpers.sim import run_virtual

from metadata.records import LogRecord
from node.failover import ROLL_AFTER_S
from node.suspects import ANSWER_WITHIN_S, Suspects
from sharedlog.errors import LogNotFound, LogUnavailable, MetadataUnavailable
from sharedlog.ids import NodeId
from sharedlog.v1 import cluster_pb2


def cluster(*, nodes: int = 3, sequencer: str = "n2") -> tuple[World3, LogRecord]:
    world = World3()
    world.put_nodes(*(node_record(f"n{n}") for n in range(1, nodes + 1)))
    return world, world.put_log(log_record("orders", sequencer))


async def seconds(part: Part, waited: Any) -> float:
    began_s = part.clock.monotonic_s()
    await waited
    return part.clock.monotonic_s() - began_s


@pytest.mark.parametrize(("answer", "within_s"), [("refused", 0.1), (2, 0.1), ("silent", 1.0)])
def test_a_sequencer_that_is_gone_is_replaced(answer: Any, within_s: float) -> None:
    """Killed, started again, or silent: the log goes to a node that lives, and how soon."""

    async def main() -> None:
        world, record = cluster()
        world.pings.answers["n2"] = answer
        if answer == 2:
            world.put_nodes(node_record("n2", 2))
        async with running(world, "n3") as part:
            assert await seconds(part, part.failover.ensure(record)) < within_s
            assert sequencers(part) == {"orders": "n1.1"}
            ((_, change, planned),) = part.reconfigurer.calls
            assert not planned
            # A node whose next life is up may order the log again, a dead one may not.
            assert change.avoid == (frozenset() if answer == 2 else {NodeId("n2")})

    run_virtual(main)


@pytest.mark.parametrize("stopping", [False, True])
def test_a_healthy_sequencer_is_never_fenced(stopping: bool) -> None:
    """Field notes 32 and 35: whoever suspects it, and however often, nothing is sealed. The answer
    names it again; one that hands over by itself is left to it as well."""

    async def main() -> None:
        world, record = cluster()
        world.pings.stopping = {"n2"} if stopping else set()
        async with running(world, "n1") as part:
            suspects = Suspects(view=part.view, failover=part.failover)
            request = cluster_pb2.ReportSuspectRequest(log="orders", reason="lost my session")
            for _ in range(20):
                assert (await part.failover.ensure(record))[0] == record
                answer = await suspects.report(request)
                assert (answer.sequencer.node_id, answer.address) == ("n2", "n2:1")
                await asyncio.sleep(0.1)
            assert not part.reconfigurer.calls

    run_virtual(main)


def test_many_sessions_cause_one_failover() -> None:
    """A hundred callers that lose the same sequencer at once share what comes of it."""

    async def main() -> None:
        world, record = cluster()
        world.pings.answers["n2"] = "refused"
        async with running(world, "n1") as part:
            found = await asyncio.gather(*(part.failover.ensure(record) for _ in range(100)))
            assert len({version for _, version in found}) == 1
            assert len(part.reconfigurer.calls) == 1
            again, _ = await part.failover.ensure(record)
            assert again.open_segment.index == 1, "who comes late is told of the new chain"
            assert len(part.reconfigurer.calls) == 1

    run_virtual(main)


def test_of_two_nodes_that_fail_over_one_log_one_wins() -> None:
    """Both find the sequencer gone at the same moment; both end up with the same chain."""

    async def main() -> None:
        world, record = cluster(nodes=4, sequencer="n4")
        world.pings.answers["n4"] = "refused"
        async with running(world, "n1") as one, running(world, "n2") as other:
            found = await asyncio.gather(one.failover.ensure(record), other.failover.ensure(record))
            assert found[0] == found[1]
            assert found[0][0].open_segment.index == 1
            assert len(one.reconfigurer.calls) == len(other.reconfigurer.calls) == 1

    run_virtual(main)


def test_two_nodes_that_fight_slow_each_other_down() -> None:
    """Field note 35: each holds the other for dead and takes the log from it. In a minute that is a
    dozen or two of reconfigurations, not a thousand, so that records get through between them."""

    async def main() -> None:
        world, record = cluster(sequencer="n1")
        one_sees = Pings(answers={"n2": "refused"})
        other_sees = Pings(answers={"n1": "refused"})

        async def want(part: Part) -> None:
            found = record
            while True:
                found, _ = await part.failover.ensure(found)
                await asyncio.sleep(0.05)

        async with (
            running(world, "n1", pings=one_sees) as one,
            running(world, "n2", pings=other_sees) as other,
            asyncio.TaskGroup() as tasks,
        ):
            wanting = [tasks.create_task(want(part)) for part in (one, other)]
            await asyncio.sleep(60)
            for task in wanting:
                task.cancel()
            fights = len(one.reconfigurer.calls) + len(other.reconfigurer.calls)
            assert 10 < fights < 45

    run_virtual(main)


def test_what_can_not_be_done_is_said_and_tried_again() -> None:
    """Without a seal quorum, or without the metadata store: the reason reaches the caller."""

    async def main() -> None:
        world, _ = cluster()
        world.pings.answers["n2"] = "refused"
        async with running(world, "n1") as part:
            suspects = Suspects(view=part.view, failover=part.failover)
            request = cluster_pb2.ReportSuspectRequest(log="orders")
            part.reconfigurer.error = LogUnavailable("1 of 3 log servers answers")
            with pytest.raises(LogUnavailable, match="1 of 3"):
                await suspects.report(request)
            part.reconfigurer.error = MetadataUnavailable("gone")
            with pytest.raises(MetadataUnavailable):
                await suspects.report(request)
            part.reconfigurer.error = None
            assert (await suspects.report(request)).sequencer.node_id == "n1"
            with pytest.raises(LogNotFound):
                await suspects.report(cluster_pb2.ReportSuspectRequest(log="none"))

    run_virtual(main)


def test_a_report_is_answered_in_time() -> None:
    """A client is not kept for longer than it waits; the failover goes on without it."""

    async def main() -> None:
        world, _ = cluster()
        world.pings.answers["n2"] = "refused"
        async with running(world, "n1") as part:
            part.reconfigurer.takes_s = 10.0
            suspects = Suspects(view=part.view, failover=part.failover)
            began_s = part.clock.monotonic_s()
            with pytest.raises(LogUnavailable, match="still looking"):
                await suspects.report(cluster_pb2.ReportSuspectRequest(log="orders"))
            assert part.clock.monotonic_s() - began_s == pytest.approx(ANSWER_WITHIN_S, abs=0.1)
            await part.view.wait_log("orders", lambda it: it.open_segment.index == 1)
            assert len(part.reconfigurer.calls) == 1

    run_virtual(main)


def test_a_client_with_an_old_chain_is_told_of_the_new_one() -> None:
    """Nobody is even asked when the suspect no longer orders the log."""

    async def main() -> None:
        world, record = cluster()
        world.pings.answers["n2"] = "refused"
        async with running(world, "n1") as part:
            await part.failover.ensure(record)
            asked = len(world.pings.asked)
            suspects = Suspects(view=part.view, failover=part.failover)
            answer = await suspects.report(
                cluster_pb2.ReportSuspectRequest(log="orders", segment_index=0)
            )
            assert (answer.sequencer.node_id, len(world.pings.asked)) == ("n1", asked)

    run_virtual(main)


def test_a_node_that_restarts_looks_after_its_former_logs() -> None:
    """A restart heals itself: every log that the life before ordered is reconfigured, a few at a
    time, and again until it works; logs of others are left alone."""

    async def main() -> None:
        world, _ = cluster(sequencer="n2")
        for number in range(50):
            world.put_log(log_record(f"log{number:02}", "n1"))
        world.put_nodes(node_record("n1", 2))
        async with running(world, "n1", generation=2) as part:
            part.reconfigurer.error = LogUnavailable("the others are not up yet")
            await asyncio.sleep(2)
            assert set(sequencers(part).values()) == {"n1.1", "n2.1"}
            part.reconfigurer.error = None
            await asyncio.sleep(6)
            found = sequencers(part)
            assert found.pop("orders") == "n2.1"
            assert set(found.values()) == {"n1.2"}
            assert part.reconfigurer.most_under_way == 16

    run_virtual(main)


def test_a_seal_that_nobody_follows_up_is_rolled_forward() -> None:
    """Field notes 9 and 10: the sequencer met SEALED. If the sealer extends the chain, nothing is
    done; if it died, this node does it, soon and until it works."""

    async def main() -> None:
        world, record = cluster(sequencer="n1")
        async with running(world, "n1") as part:
            loglet = record.loglet(record.open_segment)
            part.failover.on_sealed("orders", loglet)
            part.failover.on_sealed("orders", loglet)
            await part.reconfigurer.reconfigure("orders", reason="the sealer's own")
            await asyncio.sleep(5)
            assert len(part.reconfigurer.calls) == 1, "only the sealer's own"

            found, _ = await part.view.fetch_log("orders")
            part.reconfigurer.error = LogUnavailable("not yet")
            part.failover.on_sealed("orders", found.loglet(found.open_segment))
            await asyncio.sleep(3)
            part.reconfigurer.error = None
            await part.view.wait_log("orders", lambda it: it.open_segment.index == 2)
            assert part.clock.monotonic_s() < 5 + 3 + 2 * 5.0

            found, _ = await part.view.fetch_log("orders")
            part.failover.on_sealed("orders", found.loglet(found.open_segment))
            moved = part.view.wait_log("orders", lambda it: it.open_segment.index == 3)
            assert await seconds(part, moved) <= 1.5 * ROLL_AFTER_S + 0.1

    run_virtual(main)


def test_members_that_are_away_are_replaced_if_others_can_take_over() -> None:
    """Field note 32: by the sequencer's own node, announced to it. With nobody to take over the
    log stays as it is, whatever the number of complaints."""

    async def main() -> None:
        world, record = cluster(nodes=3, sequencer="n1")
        world.pings.answers["n3"] = "silent"
        async with running(world, "n1") as part:
            loglet = record.loglet(record.open_segment)
            for _ in range(3):
                part.failover.on_replicas_away("orders", loglet, [NodeId("n3")])
                await asyncio.sleep(2)
            assert not part.reconfigurer.calls
            world.put_nodes(node_record("n4"))
            await asyncio.sleep(0.1)
            part.failover.on_replicas_away("orders", loglet, [NodeId("n3")])
            found, _ = await part.view.wait_log("orders", lambda it: it.open_segment.index == 1)
            members = {replica.node_id for replica in found.open_segment.nodeset}
            assert members == {"n1", "n2", "n4"}
            assert found.open_segment.sequencer.node_id == "n1"
            assert part.reconfigurer.calls[0][2], "planned: the sequencer is there to drain"

    run_virtual(main)


def test_a_sequencer_that_reaches_no_seal_quorum_asks_others() -> None:
    """Cut off from its log servers but not from every node: those who may reach them do it."""

    async def main() -> None:
        world, record = cluster(nodes=5, sequencer="n1")
        world.pings.answers |= {"n2": "silent", "n3": "silent"}
        async with running(world, "n1") as part:
            part.reconfigurer.error = LogUnavailable("1 of 3 log servers answers")
            loglet = record.loglet(record.open_segment)
            away = [NodeId("n2"), NodeId("n3")]
            part.failover.on_replicas_away("orders", loglet, away)
            await asyncio.sleep(3)
            assert sorted(world.pings.help_asked) == ["n4:1", "n5:1"]
            world.pings.helps = True
            world.pings.help_asked.clear()
            part.failover.on_replicas_away("orders", loglet, away)
            await asyncio.sleep(3)
            assert len(world.pings.help_asked) == 1

    run_virtual(main)
