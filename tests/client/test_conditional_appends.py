"""Conditions of an append, as a caller may give them: what can't be is refused at once."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.memory_server import memory_cluster

import sharedlog
from sharedlog.errors import InvalidArgument


@pytest.mark.parametrize(
    "given",
    [
        {"match_offset": -1},
        {"match_offset": 2**64},
        {"match_offset": "7"},
        {"match_offset": 7.0},
        {"fencing_token": b"a"},
        {"fencing_token": "a" * 65},
        {"fencing_token": "\ud800"},
    ],
)
async def test_a_condition_that_can_not_be_harms_no_other_append(given: dict[str, Any]) -> None:
    """Field note 37: found by the session's sender, it would end the appender that all share."""
    async with memory_cluster() as memory:
        memory.create("orders")
        async with sharedlog.connect(memory.address) as cluster:
            log = cluster.log("orders")
            with pytest.raises(InvalidArgument):
                await log.append(b"a", **given)
            assert await log.append(b"b") == 0


async def test_tokens_and_names_are_text() -> None:
    """A lone surrogate can't be sent: it is no call that a retry could mend."""
    async with memory_cluster() as memory:
        memory.create("orders")
        async with sharedlog.connect(memory.address) as cluster:
            log = cluster.log("orders")
            with pytest.raises(InvalidArgument):
                await log.fence("\ud800")
            with pytest.raises(InvalidArgument):
                await log.fence("a", "\ud800")
            with pytest.raises(InvalidArgument):
                log.appender(producer="\ud800")
            with pytest.raises(InvalidArgument):
                log.appender(fencing_token="\ud800")
            assert await log.append(b"b") == 0
