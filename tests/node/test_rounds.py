"""Looks that are shared by all who came before they began."""

from __future__ import annotations

import asyncio

import pytest

from node.rounds import Rounds
from sharedlog.errors import MetadataUnavailable


class Store:
    """Something that changes, and is looked at slowly."""

    def __init__(self) -> None:
        self.value = 0
        self.looks = 0
        self.fail = False
        self.gate = asyncio.Event()

    async def look(self) -> int:
        self.looks += 1
        seen = self.value
        await self.gate.wait()
        if self.fail:
            raise MetadataUnavailable("away")
        return seen


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_look_that_began_before_the_question_is_not_its_answer() -> None:
    """A hundred who come while one runs share the next; what they get is as new as they are."""
    store = Store()
    rounds = Rounds(store.look)
    first = asyncio.create_task(rounds.join())
    await turns()
    store.value = 1
    later = [asyncio.create_task(rounds.join()) for _ in range(100)]
    await turns()
    store.gate.set()
    assert await first == 0
    assert await asyncio.gather(*later) == [1] * 100
    assert store.looks == 2
    store.value = 2
    assert await rounds.join() == 2


async def test_a_failure_is_shared_and_does_not_last() -> None:
    """Each who waited for the look is told, with a traceback of his own; the next one looks."""
    store = Store()
    rounds = Rounds(store.look)
    store.fail = True
    asking = [asyncio.create_task(rounds.join()) for _ in range(3)]
    await turns()
    store.gate.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(error) for error in found] == [MetadataUnavailable] * 3
    assert len({id(error) for error in found}) == 3
    assert store.looks == 2
    store.fail = False
    assert await rounds.join() == 0


async def test_who_is_cancelled_leaves_the_look_to_the_next() -> None:
    """Nobody waits for ever for a look that was given up."""
    store = Store()
    rounds = Rounds(store.look)
    first, second = (asyncio.create_task(rounds.join()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    store.gate.set()
    async with asyncio.timeout(5):
        assert await second == 0
    with pytest.raises(asyncio.CancelledError):
        await first
