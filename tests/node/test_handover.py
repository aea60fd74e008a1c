"""What a node that stops gives to whom."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

from helpers.failover_parts import Part, World3, log_record, node_record, running, sequencers
from helpers.sim import run_virtual

from node.controller.work import WorkBoard
from node.handover import MOVES_AT_ONCE, HandOver
from sharedlog.errors import LogUnavailable
from sharedlog.ids import LogletId, Offset, SequencerId


@dataclass
class FakeSequencer:
    """Orders what the chains say; the logs in `used` have had appends."""

    me: SequencerId
    used: set[LogletId]

    def committed_tail(self, loglet: LogletId) -> Offset | None:
        return Offset(1) if loglet in self.used else None


def cluster(*, nodes: int, logs: int) -> World3:
    world = World3()
    world.put_nodes(*(node_record(f"n{n}") for n in range(1, nodes + 1)))
    for number in range(logs):
        world.put_log(log_record(f"log{number:03}", "n1"))
    return world


def hand_over(part: Part, used: set[LogletId] | None = None) -> HandOver:
    return HandOver(
        view=part.view,
        liveness=part.liveness,
        reconfigurer=part.reconfigurer,
        sequencer=cast("Any", FakeSequencer(part.me, used or set())),
        board=WorkBoard(part.me.node_id),
        clock=part.clock,
    )


def orders(part: Part) -> Counter[str]:
    return Counter(sequencers(part).values())


def test_every_log_goes_to_somebody_and_all_get_their_share() -> None:
    """A hundred logs, sixteen at a time, half of them to each of the two others; as planned moves
    that leave the nodesets alone; and this node says meanwhile that it stops."""

    async def main() -> None:
        world = cluster(nodes=3, logs=100)
        async with running(world, "n1") as part:
            done = await hand_over(part).run(timeout_s=10)
            assert (done.moved, done.left) == (100, 0)
            assert orders(part) == {"n2.1": 50, "n3.1": 50}
            assert part.reconfigurer.most_under_way == MOVES_AT_ONCE
            for _, change, planned in part.reconfigurer.calls:
                assert planned
                assert not change.avoid
            assert part.liveness.stopping

    run_virtual(main)


def test_nodes_that_have_more_get_less() -> None:
    """Dealt out in turn, beginning with whoever orders fewest; the dead get nothing."""

    async def main() -> None:
        world = cluster(nodes=4, logs=1)
        for number in range(5):
            world.put_log(log_record(f"more{number}", "n2"))
        world.pings.answers["n3"] = "refused"
        async with running(world, "n1") as part:
            await hand_over(part).run(timeout_s=10)
            assert orders(part) == {"n2.1": 5, "n4.1": 1}

    run_virtual(main)


def test_with_nobody_to_give_to_it_ends_at_once() -> None:
    """A cluster of one; and one whose other nodes stop at the same moment."""

    async def main() -> None:
        for nodes, stopping in ((1, set[str]()), (3, {"n2", "n3"})):
            world = cluster(nodes=nodes, logs=20)
            world.pings.stopping = stopping
            async with running(world, "n1") as part:
                began_s = part.clock.monotonic_s()
                done = await hand_over(part).run(timeout_s=10)
                assert (done.moved, done.left) == (0, 20)
                assert part.clock.monotonic_s() - began_s < 0.2
                assert not part.reconfigurer.calls

    run_virtual(main)


def test_a_node_without_logs_stops_without_a_question() -> None:
    """Nothing to hand over: nobody is asked, no time is spent."""

    async def main() -> None:
        world = cluster(nodes=3, logs=0)
        async with running(world, "n1") as part:
            began_s = part.clock.monotonic_s()
            assert (await hand_over(part).run(timeout_s=10)).moved == 0
            assert part.clock.monotonic_s() == began_s
            assert not world.pings.asked

    run_virtual(main)


def test_logs_in_use_go_first_and_time_is_kept() -> None:
    """When the time is short, idle logs are left: nobody misses them before their next use."""

    async def main() -> None:
        world = cluster(nodes=3, logs=100)
        async with running(world, "n1") as part:
            records = [record for record, _ in part.view.logs()]
            used = {it.loglet(it.open_segment) for it in records[90:]}
            part.reconfigurer.takes_s = 1.0
            began_s = part.clock.monotonic_s()
            done = await hand_over(part, used).run(timeout_s=1.5)
            assert part.clock.monotonic_s() - began_s < 1.6
            assert (done.moved, done.left) == (16, 84)
            moved = {name for name, _, _ in part.reconfigurer.calls[:16]}
            assert {record.name for record in records[90:]} <= moved

    run_virtual(main)


def test_moves_that_fail_are_tried_again_and_then_left() -> None:
    """An error of a log ends neither the rest nor the process's stop."""

    async def main() -> None:
        world = cluster(nodes=3, logs=4)
        async with running(world, "n1") as part:
            part.reconfigurer.error = LogUnavailable("no seal quorum")
            done = await hand_over(part).run(timeout_s=10)
            assert (done.moved, done.left) == (0, 4)
            assert len(part.reconfigurer.calls) == 12

            async def mend() -> None:
                await asyncio.sleep(0.065)
                part.reconfigurer.error = None

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(mend())
                done = await hand_over(part).run(timeout_s=10)
            assert (done.moved, done.left) == (4, 0)

    run_virtual(main)
