"""Work that is shared by all who ask for it meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest
from helpers.sim import run_virtual

from node.flights import Flights
from sharedlog.errors import LogUnavailable, Overloaded


@asynccontextmanager
async def started() -> AsyncIterator[Flights[str, int]]:
    flights: Flights[str, int] = Flights("work")
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(flights.run())
        yield flights
        running.cancel()


def test_who_asks_meanwhile_shares_the_work() -> None:
    """One run for five callers; the next caller starts another."""

    async def main() -> None:
        made = 0

        async def work() -> int:
            nonlocal made
            made += 1
            await asyncio.sleep(1)
            return made

        async with started() as flights:
            assert await asyncio.gather(*(flights.join("a", work) for _ in range(5))) == [1] * 5
            assert await flights.join("a", work) == 2

    run_virtual(main)


def test_a_caller_that_goes_away_stops_nothing() -> None:
    """Cancelling the first caller, for whom the work was started, harms neither it nor others."""

    async def main() -> None:
        async def work() -> int:
            await asyncio.sleep(1)
            return 7

        async with started() as flights:
            first = asyncio.ensure_future(flights.join("a", work))
            await asyncio.sleep(0.5)
            second = asyncio.ensure_future(flights.join("a", work))
            await asyncio.sleep(0.1)
            first.cancel()
            assert await second == 7

    run_virtual(main)


def test_everyone_hears_of_a_failure() -> None:
    """An error reaches each caller as an object of its own, fields included; a bug as an error."""

    async def main() -> None:
        async def refuse() -> int:
            await asyncio.sleep(1)
            raise Overloaded("full", retry_after_s=3.0)

        async def broken() -> int:
            raise ZeroDivisionError("oh")

        async with started() as flights:
            found = await asyncio.gather(
                *(flights.join("a", refuse) for _ in range(2)), return_exceptions=True
            )
            assert all(isinstance(it, Overloaded) and it.retry_after_s == 3.0 for it in found)
            assert found[0] is not found[1]
            with pytest.raises(LogUnavailable, match="ZeroDivisionError: oh"):
                await flights.join("b", broken)

    run_virtual(main)


def test_work_that_is_cut_off_before_its_first_step_is_never_made() -> None:
    """A node that ends at that very moment leaves no coroutine that nobody awaited."""

    async def main() -> None:
        made = False

        async def work() -> int:
            return 7

        def make() -> Coroutine[object, object, int]:
            nonlocal made
            made = True
            return work()

        flights: Flights[str, int] = Flights("work")
        running = asyncio.ensure_future(flights.run())
        await asyncio.sleep(0)
        running.cancel()
        outcome = flights.start("a", make)  # before `running` has heard of its end
        assert isinstance(await outcome, LogUnavailable)
        assert running.cancelled()
        assert not made

    run_virtual(main)


def test_callers_are_told_of_the_end() -> None:
    """Work that is cut off by the end of the process fails; it does not look like the caller's own
    cancellation, and what is asked for later fails too."""

    async def main() -> None:
        async def work() -> int:
            await asyncio.sleep(1)
            return 7

        async with started() as flights:
            waiting = asyncio.ensure_future(flights.join("a", work))
            await asyncio.sleep(0.5)
        with pytest.raises(LogUnavailable, match="starts or stops"):
            await waiting
        with pytest.raises(LogUnavailable, match="starts or stops"):
            await flights.join("a", work)

    run_virtual(main)
