"""Reads through a node while nobody can tell where the log ends."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from node.reads import Reads
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LogUnavailable,
    OffsetOutOfRange,
    SharedLogError,
)
from sharedlog.ids import Offset
from sharedlog.v1 import log_pb2


def reads(*, tail: int | SharedLogError, known: int) -> Reads:
    """The tail of the log, or why nobody tells it, and what its log servers know of it."""

    async def of(_: str) -> Offset:
        if isinstance(tail, SharedLogError):
            raise tail
        return Offset(tail)

    async def known_tail(_: str) -> Offset:
        return Offset(known)

    async def offset_of(_: str, timestamp_ms: int, below: Offset) -> Offset:
        return Offset(min(timestamp_ms, below))

    return Reads(
        view=cast("Any", None),
        transport=cast("Any", None),
        clock=SystemClock(),
        random=Random(1),
        tails=cast("Any", SimpleNamespace(of=of, known=known_tail)),
        offsets=cast("Any", SimpleNamespace(of=offset_of)),
        reads_max=1,
    )


async def covered(found: Reads, **fields: Any) -> tuple[int, int | None]:
    opened = await found._open(log_pb2.ReadRequest(log="orders", **fields))
    return opened.window.position, opened.window.leg_end


@pytest.mark.parametrize("error", [LogUnavailable("no sequencer"), DeadlineExceeded("no quorum")])
@pytest.mark.parametrize("fields", [{}, {"start": 8}, {"end": 12}, {"start": 8, "limit": 5}])
async def test_a_read_to_the_tail_fails_without_one(
    error: SharedLogError, fields: dict[str, int]
) -> None:
    """Ending well at a tail that some log server knows would hide what was acknowledged since."""
    with pytest.raises(type(error)):
        await covered(reads(tail=error, known=10), **fields)


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"end": 10}, (0, 10)),
        ({"start": 4, "limit": 6}, (4, 10)),
        ({"start": 4, "end": 9, "limit": 100}, (4, 9)),
        ({"follow": True}, (0, None)),
        ({"start": 50, "follow": True}, (50, None)),
    ],
)
async def test_reads_that_claim_nothing_of_the_tail_go_on(
    fields: dict[str, Any], wanted: tuple[int, int | None]
) -> None:
    """What they cover is known to be committed, or they go on for ever anyway."""
    assert await covered(reads(tail=LogUnavailable("none"), known=10), **fields) == wanted


async def test_with_a_tail_a_read_ends_there() -> None:
    """Or where it was told to, if that is lower; one that starts beyond it is refused."""
    found = reads(tail=20, known=10)
    assert await covered(found) == (0, 20)
    assert await covered(found, end=30) == (0, 20)
    assert await covered(found, start=5, limit=3) == (5, 8)
    with pytest.raises(OffsetOutOfRange):
        await covered(found, start=21)
    with pytest.raises(InvalidArgument):
        await covered(found, start=5, end=4)
