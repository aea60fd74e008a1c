"""What the failure of one task means to those that run beside it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from sharedlog.errors import Unreachable
from sharedlog.tasks import first_error, run_together


async def test_a_typed_error_says_most() -> None:
    """It is found in nested groups and before others."""
    inner = ExceptionGroup("inner", [Unreachable("gone")])
    group = ExceptionGroup("outer", [ValueError("x"), inner])
    assert isinstance(first_error(group), Unreachable)
    assert isinstance(first_error(ExceptionGroup("only", [ValueError("x")])), ValueError)


async def test_the_first_to_end_ends_the_others() -> None:
    """Its error is raised as it is; without an error the rest still ends."""
    ended = []

    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("wait")

    async def fail() -> None:
        await asyncio.sleep(0)
        raise Unreachable("gone")

    async def return_early() -> None:
        await asyncio.sleep(0)

    with pytest.raises(Unreachable):
        await run_together({"wait": wait(), "fail": fail()})
    await run_together({"wait": wait(), "return": return_early()})
    assert ended == ["wait", "wait"]


async def test_cancellation_is_not_lost_when_a_child_fails_at_the_same_moment() -> None:
    """A loop that goes on after a typed error must end when it is cancelled, even then."""
    rounds = 0

    async def fail(moment: asyncio.Event) -> None:
        await moment.wait()
        raise Unreachable("gone")

    async def go_on(moment: asyncio.Event) -> None:
        nonlocal rounds
        while True:
            rounds += 1
            with contextlib.suppress(Unreachable):
                await run_together({"fail": fail(moment), "again": fail(moment)})

    moment = asyncio.Event()
    looping = asyncio.create_task(go_on(moment))
    await asyncio.sleep(0.01)
    moment.set()
    looping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(looping, 5)
    assert rounds == 1
