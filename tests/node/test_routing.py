"""Where a call about a log goes: through failovers, behind old views, and never in circles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any, cast

import pytest
from helpers.failover_parts import Part, World3, log_record, node_record, running
from helpers.sim import run_virtual

from metadata.records import LogRecord, NodeRecord
from node.liveness import Life
from node.routing import Here, Route, RouteLost, Router, There
from sharedlog.errors import (
    LogUnavailable,
    NotSequencer,
    Overloaded,
    Unreachable,
    Unrepairable,
)

SEQUENCER: Any = object()


def cluster(sequencer: str = "n2") -> tuple[World3, LogRecord]:
    world = World3()
    world.put_nodes(*(node_record(f"n{n}") for n in range(1, 4)))
    return world, world.put_log(log_record("orders", sequencer))


@asynccontextmanager
async def routing(
    world: World3, name: str = "n1", generation: int = 1
) -> AsyncIterator[tuple[Router, Part]]:
    async with running(world, name, generation) as part:
        router = Router(
            me=part.me,
            view=part.view,
            sequencer=SEQUENCER,
            failover=part.failover,
            liveness=part.liveness,
            clock=part.clock,
            random=Random(1),
            timeout_s=5.0,
        )
        yield router, part


def leads_to(route: Route) -> str:
    return "here" if isinstance(route, Here) else str(route.node.node_id)


def test_a_route_waits_for_a_failover_only_where_it_must() -> None:
    """Whose sequencer lives is found without asking anyone; whose sequencer's life is over, after
    the log got another."""

    async def main() -> None:
        world, _ = cluster()
        async with routing(world) as (router, part):
            assert leads_to(await router.find("orders")) == "n2"
            assert not world.pings.asked
            world.put_nodes(node_record("n2", 2))
            world.pings.answers["n2"] = "refused"
            await asyncio.sleep(0.1)  # its watch is on the way
            assert leads_to(await router.find("orders")) == "here"
            assert len(part.reconfigurer.calls) == 1

    run_virtual(main)


def test_a_log_of_the_former_life_is_taken_over() -> None:
    """The node started again: its first caller causes the failover, and is then served here."""

    async def main() -> None:
        world, _ = cluster("n1")
        world.put_nodes(node_record("n1", 2))
        async with routing(world, generation=2) as (router, _):
            route = await router.find("orders")
            assert isinstance(route, Here)
            assert str(route.record.open_segment.sequencer) == "n1.2"

    run_virtual(main)


def test_an_attempt_follows_the_log() -> None:
    """Refused by one that no longer orders it, then lost on the way to a dead one: the third try
    is served. A caller sees a pause, and the remaining time shrinks."""

    async def main() -> None:
        world, _ = cluster("n2")
        async with routing(world) as (router, part):
            seen: list[tuple[str, float]] = []

            async def attempt(route: Route, left_s: float) -> str:
                seen.append((leads_to(route), left_s))
                if len(seen) == 1:
                    await part.reconfigurer.reconfigure("orders", reason="moved", segment_index=0)
                    world.pings.answers["n1"] = 1
                    raise NotSequencer("not I")
                if isinstance(route, There):
                    world.pings.answers[route.node.node_id] = "refused"
                    raise RouteLost(route, "refused")
                return "served"

            assert await router.serve("orders", attempt) == "served"
            assert [where for where, _ in seen] == ["n2", "here"]
            assert seen[0][1] == pytest.approx(5.0)
            assert seen[1][1] < 5.0

    run_virtual(main)


def test_a_dead_sequencer_is_replaced_while_the_caller_waits() -> None:
    """It hangs, as a paused process does: given up after two pings, long before the time is up."""

    async def main() -> None:
        world, _ = cluster("n2")
        world.pings.answers["n2"] = "silent"
        async with routing(world) as (router, part):

            async def never() -> str:
                await asyncio.Event().wait()
                return ""

            async def attempt(route: Route, left_s: float) -> str:
                if isinstance(route, There):
                    return await router.wait_for(route, never(), timeout_s=left_s)
                return "served"

            began_s = part.clock.monotonic_s()
            assert await router.serve("orders", attempt) == "served"
            assert part.clock.monotonic_s() - began_s < 1.5

    run_virtual(main)


def test_a_slow_sequencer_is_waited_for() -> None:
    """It answers pings and takes four seconds for the call: nothing is reconfigured."""

    async def main() -> None:
        world, _ = cluster("n2")
        async with routing(world) as (router, part):
            route = await router.find("orders")
            assert isinstance(route, There)

            async def slow() -> int:
                await asyncio.sleep(4)
                return 7

            assert await router.wait_for(route, slow(), timeout_s=5) == 7
            with pytest.raises(RouteLost, match="no answer in time"):
                await router.wait_for(route, slow(), timeout_s=3)
            assert not part.reconfigurer.calls

    run_virtual(main)


def test_errors_of_the_call_itself_are_the_callers() -> None:
    """Whatever does not say that nothing was done is passed on at once, never tried again."""

    async def main() -> None:
        world, _ = cluster("n2")
        async with routing(world) as (router, _):
            tried = 0

            async def attempt(route: Route, left_s: float) -> None:
                nonlocal tried
                tried += 1
                raise Overloaded("full", retry_after_s=1)

            with pytest.raises(Overloaded):
                await router.serve("orders", attempt)
            assert tried == 1

            async def refused() -> None:
                raise Unreachable("can't reach n2:1")

            route = cast("There", await router.find("orders"))
            with pytest.raises(RouteLost) as lost:
                await router.wait_for(route, refused(), timeout_s=1)
            assert isinstance(lost.value.error, LogUnavailable)
            assert "the sequencer of orders, n2 at n2:1, does not answer" in str(lost.value)

    run_virtual(main)


def test_who_can_not_be_asked_any_more_is_lost() -> None:
    """The node stops while a call waits for another process: the caller hears an error of the way,
    which says what it may do, and not a group of errors, which would say nothing."""

    async def main() -> None:
        world, _ = cluster("n2")
        async with routing(world) as (router, _):
            route = cast("There", await router.find("orders"))

            class Stopped:
                async def probe(self, node: NodeRecord) -> Life:
                    raise LogUnavailable("the node does no ping now")

            router._liveness = Stopped()
            with pytest.raises(RouteLost, match="does no ping now"):
                await router.wait_for(route, asyncio.Event().wait(), timeout_s=5)

    run_virtual(main)


def test_waiting_has_an_end_and_a_reason() -> None:
    """No seal quorum for five seconds: the caller is told so, and of an `Unrepairable` at once."""

    async def main() -> None:
        world, _ = cluster("n2")
        world.put_nodes(node_record("n2", 2))
        async with routing(world) as (router, part):
            part.reconfigurer.error = LogUnavailable("1 of 3 log servers answers")
            began_s = part.clock.monotonic_s()
            with pytest.raises(
                LogUnavailable, match=r"n2 in its life 1, is gone; .* 1 of 3 log servers answers$"
            ):
                await router.find("orders")
            assert part.clock.monotonic_s() - began_s == pytest.approx(5.0, abs=0.2)
            part.reconfigurer.error = Unrepairable("accept the loss", segment_index=0)
            began_s = part.clock.monotonic_s()
            with pytest.raises(Unrepairable):
                await router.find("orders")
            assert part.clock.monotonic_s() - began_s < 1.1

    run_virtual(main)


def test_direct_callers_are_told_where_to_go() -> None:
    """`direct_only`: never forwarded, but a log whose sequencer is gone is mended first."""

    async def main() -> None:
        world, _ = cluster("n2")
        async with routing(world) as (router, _):

            async def attempt(route: Route, left_s: float) -> str:
                return leads_to(route)

            with pytest.raises(NotSequencer) as refused:
                await router.serve("orders", attempt, direct_only=True)
            assert refused.value.sequencer_node_id == "n2"
            world.put_nodes(node_record("n2", 2))
            world.pings.answers["n2"] = "refused"
            await asyncio.sleep(0.1)  # its watch is on the way
            assert await router.serve("orders", attempt, direct_only=True) == "here"

    run_virtual(main)


def test_a_caller_that_knows_more_than_the_view_is_heard() -> None:
    """`min_version`: the store is asked rather than the caller sent to where the log was."""

    async def main() -> None:
        world, _ = cluster("n2")
        async with routing(world) as (router, _):
            world.metadata.lag_s["n1"] = 3.0
            async with running(world, "n3") as other:
                done = await other.reconfigurer.reconfigure("orders", reason="moved")
            assert leads_to(await router.find("orders")) == "n2"
            assert leads_to(await router.find("orders", min_version=done.version)) == "here"

    run_virtual(main)


def test_a_peer_with_an_old_view_is_asked_again() -> None:
    """It says that it is not the sequencer, the store says that it is: soon it will know, too."""

    async def main() -> None:
        world, _ = cluster("n2")
        async with routing(world) as (router, part):
            tries = 0

            async def attempt(route: Route, left_s: float) -> str:
                nonlocal tries
                tries += 1
                if tries < 4:
                    raise NotSequencer("news to me")
                return "served"

            began_s = part.clock.monotonic_s()
            assert await router.serve("orders", attempt) == "served"
            assert 0.03 < part.clock.monotonic_s() - began_s < 1.0

    run_virtual(main)
