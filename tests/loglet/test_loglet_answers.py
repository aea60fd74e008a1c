"""Answers of a replication stream on their way out."""

from __future__ import annotations

import asyncio

from loglet.answers import Answers


async def test_a_stream_ends_after_a_request_that_needs_no_answer() -> None:
    """The peer has ended its side, and all that was left to do was to learn a committed tail."""
    answers = Answers()
    answers.outstanding = 1
    answers.end()
    taking = asyncio.create_task(answers.take())
    await asyncio.sleep(0)
    assert not taking.done()
    answers.skip()
    async with asyncio.timeout(5):
        assert await taking is None
