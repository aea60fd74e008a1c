"""What a node finds out about others' lives, how fast, and how often it asks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from helpers.failover_parts import World3, names, node_record, running
from helpers.sim import run_virtual

from node.liveness import HELD_DEAD_S, Sign, is_refused
from sharedlog.clock import SystemClock
from sharedlog.errors import Unreachable
from sharedlog.ids import Generation, NodeId, SequencerId
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.methods import PING
from sharedlog.v1 import cluster_pb2


def cluster(*, nodes: int = 3) -> World3:
    world = World3()
    world.put_nodes(*(node_record(f"n{n}") for n in range(1, nodes + 1)))
    return world


@pytest.mark.parametrize(
    ("answer", "sign", "within_s"),
    [
        (1, Sign.ALIVE, 0.05),
        (2, Sign.GONE, 0.05),  # another life answers
        ("refused", Sign.GONE, 0.05),
        ("broken", Sign.SILENT, 0.1),
        ("silent", Sign.SILENT, 0.85),
    ],
)
def test_each_kind_of_answer(answer: Any, sign: Sign, within_s: float) -> None:
    """A process that ended is found out at once, one that is silent by two pings."""

    async def main() -> None:
        world = cluster()
        world.pings.answers["n2"] = answer
        async with running(world, "n1") as part:
            began_s = part.clock.monotonic_s()
            life = await part.liveness.probe(node_record("n2"))
            assert life.sign is sign
            assert part.clock.monotonic_s() - began_s <= within_s

    run_virtual(main)


def test_many_who_ask_at_once_cost_one_ping() -> None:
    """A hundred sessions that suspect one node share the question, and for a moment its answer; a
    doubt that comes later is looked into anew."""

    async def main() -> None:
        world = cluster()
        async with running(world, "n1") as part:
            node = node_record("n2")
            await asyncio.gather(*(part.liveness.probe(node) for _ in range(100)))
            await part.liveness.probe(node)
            assert world.pings.asked == ["n2:1"]
            await asyncio.sleep(0.1)
            world.pings.answers["n2"] = "refused"
            assert not (await part.liveness.probe(node)).answers
            assert world.pings.asked == ["n2:1", "n2:1"]
            await part.liveness.probe(node)
            assert len(world.pings.asked) == 2, "its death is good for everyone for a while"

    run_virtual(main)


def test_a_newer_life_of_a_node_ends_the_one_before() -> None:
    """That the node has registered again says so, without a ping; its own node knows by itself."""

    async def main() -> None:
        world = cluster()
        async with running(world, "n1", generation=3) as part:
            world.put_nodes(node_record("n2", 2))
            await asyncio.sleep(0.1)
            old = SequencerId(NodeId("n2"), Generation(1))
            assert (await part.liveness.sequencer(old)).sign is Sign.GONE
            own = SequencerId(NodeId("n1"), Generation(2))
            assert (await part.liveness.sequencer(own)).sign is Sign.GONE
            assert (await part.liveness.sequencer(part.me)).sign is Sign.ALIVE
            stranger = SequencerId(NodeId("n9"), Generation(1))
            assert (await part.liveness.sequencer(stranger)).sign is Sign.GONE
            assert not world.pings.asked

    run_virtual(main)


def test_a_process_newer_than_the_view_is_asked_by_its_own_life() -> None:
    """A view that is behind knows generation 1; the chain names 2, and 2 answers: it is alive."""

    async def main() -> None:
        world = cluster()
        world.pings.answers["n2"] = 2
        async with running(world, "n1") as part:
            named = SequencerId(NodeId("n2"), Generation(2))
            assert (await part.liveness.sequencer(named)).sign is Sign.ALIVE

    run_virtual(main)


def test_only_those_who_can_do_work_are_usable() -> None:
    """Not the dead, the silent, the stopping; each is asked, all at once."""

    async def main() -> None:
        world = cluster(nodes=6)
        world.pings.answers |= {"n2": "refused", "n3": "silent", "n4": 7}
        world.pings.stopping = {"n5"}
        async with running(world, "n1") as part:
            assert len(part.liveness.usable()) == 6, "nothing is known yet"
            began_s = part.clock.monotonic_s()
            assert names(await part.liveness.survey()) == ["n1", "n6"]
            assert part.clock.monotonic_s() - began_s < 0.9
            assert names(part.liveness.usable()) == ["n1", "n6"]
            part.liveness.stopping = True
            assert names(part.liveness.usable()) == ["n6"]

    run_virtual(main)


def test_nobody_waits_for_a_node_that_is_gone() -> None:
    """It was removed and is switched off, at an address where nothing answers at all."""

    async def main() -> None:
        world = cluster(nodes=2)
        world.put_nodes(node_record("n3", state="gone"))
        world.pings.answers["n3"] = "silent"
        async with running(world, "n1") as part:
            began_s = part.clock.monotonic_s()
            assert names(await part.liveness.survey()) == ["n1", "n2"]
            assert part.clock.monotonic_s() - began_s < 0.1

    run_virtual(main)


def test_what_was_heard_by_the_way_counts_and_fades() -> None:
    """Heartbeats of others are believed; a death that nobody repeats is forgotten in time."""

    async def main() -> None:
        world = cluster()
        async with running(world, "n1") as part:
            n2, first = NodeId("n2"), Generation(1)
            part.liveness.lost(n2, first, "three heartbeats missed")
            assert names(part.liveness.usable()) == ["n1", "n3"]
            part.liveness.heard(n2, first)
            assert names(part.liveness.usable()) == ["n1", "n2", "n3"]
            part.liveness.heard(n2, first, read_only=True)
            assert names(part.liveness.usable()) == ["n1", "n3"]
            part.liveness.lost(n2, first, "again")
            await asyncio.sleep(HELD_DEAD_S + 0.1)
            assert names(part.liveness.usable()) == ["n1", "n2", "n3"]
            part.liveness.heard(n2, Generation(2))
            part.liveness.lost(n2, first, "news of the life before")
            found = part.liveness.known(node_record("n2", 2))
            assert found is not None
            assert found.sign is Sign.ALIVE

    run_virtual(main)


async def test_grpc_says_that_a_connection_was_refused() -> None:
    """The words by which the end of a process is known at once are those of the real transport."""
    transport = GrpcTransport()
    try:
        began_s = SystemClock().monotonic_s()
        with pytest.raises(Unreachable) as refused:
            await transport.call("127.0.0.1:9", PING, cluster_pb2.PingRequest(), timeout_s=5)
        assert is_refused(refused.value)
        assert SystemClock().monotonic_s() - began_s < 1
    finally:
        await transport.close()
