"""What a reconfiguration leaves to others: load, plans, and telling the ends."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace

import pytest
from helpers.movers import LOG_ID, NAME, MoverWorld, batch, run_in
from helpers.sim import SimClock

from metadata.encoding import encode_node, node_key
from metadata.reconfiguration import Change
from metadata.view import ClusterView
from node.ends import TRIES_MAX, EndTeller
from node.load import LoadIndex
from node.planner import Planner
from sharedlog.ids import LogletId, NodeId, Offset

LOGLET = LogletId(LOG_ID, 0)


def test_load_follows_the_chains() -> None:
    """Equal to a count over all open segments, at every change."""
    world = MoverWorld(1)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            load = LoadIndex(mover.view)
            assert load.load.sequencers == {"n1": 1}
            assert load.load.replicas == {"n1": 1, "n2": 1, "n3": 1}
            await mover.reconfigurer.reconfigure(
                NAME, Change(nodeset=_ids("n2", "n3", "n4"), sequencer=NodeId("n4")), reason="test"
            )
            assert +load.load.sequencers == {"n4": 1}
            assert +load.load.replicas == {"n2": 1, "n3": 1, "n4": 1}

    run_in(world, main)


def test_what_is_planned_counts_while_it_is_carried_out() -> None:
    """Thousands of logs that fail over at once do not all go to the same node."""
    world = MoverWorld(2)
    record = world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover:
            planner = Planner(view=mover.view, liveness=mover.awareness)
            mover.awareness.dead.add("n1")
            change = Change(avoid=frozenset(_ids("n1")))
            plans = []
            with ExitStack() as under_way:
                for _ in range(3):
                    plans.append(planner.plan(record, change, optional=True))
                    under_way.enter_context(planner.planned(plans[-1]))
            assert len({it.sequencer.node_id for it in plans}) == 3
            assert planner.plan(record, change, optional=True).sequencer == plans[0].sequencer

    run_in(world, main)


def test_draining_nodes_count_as_members_that_answer() -> None:
    """Three nodes, of which one drains and one is dead: the log goes on with the draining one."""
    world = MoverWorld(3, servers=3)
    record = world.put_log()
    draining = replace(world.servers["n2"].record, state="draining")
    world.put(node_key(draining.node_id), encode_node(draining))

    async def main() -> None:
        async with world.mover("n3") as mover:
            planner = Planner(view=mover.view, liveness=mover.awareness)
            mover.awareness.dead.add("n1")
            plan = planner.plan(record, Change(avoid=frozenset(_ids("n1"))), optional=True)
            assert {it.node_id for it in plan.nodeset} == {"n1", "n2", "n3"}
            assert plan.sequencer.node_id == "n3"
            assert [it.node_id for it in planner.replacements()] == ["n3"]

    run_in(world, main)


def test_ends_that_wait_for_one_server_go_together() -> None:
    """A node that dies ends thousands of segments at once; each server hears of them in one go."""
    world = MoverWorld(4)
    world.put_log()

    async def main() -> None:
        await world.store("n1", [batch(0), batch(1)])
        async with world.mover("n4") as mover, asyncio.TaskGroup() as tasks:
            teller = _teller(world, mover.view)
            running = tasks.create_task(teller.run())
            await asyncio.sleep(0)
            teller.tell([world.replica("n1")], LOGLET, Offset(2))
            for index in range(1, 3_000):
                teller.tell([world.replica("n1")], LogletId(LOG_ID, index), Offset(9))
            await asyncio.sleep(0.1)
            assert world.told_end("n1") == 2
            assert not teller._waiting
            running.cancel()

    run_in(world, main)


def test_a_server_that_stays_away_is_let_go() -> None:
    """It is told by backfill later; nothing piles up for it."""
    world = MoverWorld(5)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as mover, asyncio.TaskGroup() as tasks:
            await world.crash("n1")
            teller = _teller(world, mover.view)
            running = tasks.create_task(teller.run())
            await asyncio.sleep(0)
            teller.tell([world.replica("n1")], LOGLET, Offset(2))
            assert teller._waiting
            await asyncio.sleep(4 * TRIES_MAX)
            assert not teller._waiting
            running.cancel()

    run_in(world, main)


def test_an_end_that_a_server_knows_otherwise_is_an_alarm(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Field note 7: ends never move. It is told once, refused, and said out loud."""
    world = MoverWorld(6)
    world.put_log()

    async def main() -> None:
        await world.store("n1", [batch(0), batch(1)])
        async with world.mover("n4") as mover, asyncio.TaskGroup() as tasks:
            teller = _teller(world, mover.view)
            running = tasks.create_task(teller.run())
            await asyncio.sleep(0)
            for end in (2, 1):
                teller.tell([world.replica("n1")], LOGLET, Offset(end))
                await asyncio.sleep(0.1)
            assert world.told_end("n1") == 2
            running.cancel()

    run_in(world, main)
    assert [it.levelname for it in caplog.records if it.message == "ends.refused"] == ["ERROR"]


def test_a_log_that_was_changed_by_another_node_is_read_before_it_is_sealed() -> None:
    """A view that is behind costs a look at the store, never a segment that nobody wanted ended."""
    world = MoverWorld(7)
    world.put_log()

    async def main() -> None:
        async with world.mover("n4") as one, world.mover("n5") as two:
            world.metadata.lag_s["n5"] = 5.0
            await one.reconfigurer.reconfigure(NAME, reason="test")
            found = two.view.log(NAME)
            assert found is not None
            assert found[0].open_segment.index == 0
            done = await two.reconfigurer.reconfigure(NAME, reason="test", segment_index=0)
            assert (done.adopted, done.opened.index) == (True, 1)
            assert world.is_sealed("n1") is True

    run_in(world, main)


def _ids(*names: str) -> tuple[NodeId, ...]:
    return tuple(map(NodeId, names))


def _teller(world: MoverWorld, view: ClusterView) -> EndTeller:
    return EndTeller(
        view=view,
        transport=world.network.transport("n4"),
        clock=SimClock(),
        random=world.world.random("ends"),
    )
