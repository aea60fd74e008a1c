"""A few workers over many keys: each at once only once, again after a failure, none forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from helpers.care_parts import running
from helpers.sim import SimClock, run_virtual

from node.controller.pace import Pace
from node.controller.pool import Pool
from node.controller.work import SHOWN_MAX, WorkBoard
from sharedlog.errors import LogUnavailable
from sharedlog.ids import NodeId


def test_each_key_at_most_once_at_a_time_and_no_more_than_the_workers() -> None:
    """Offered a hundred times while it waits, a key is worked on once; offered while it is worked
    on, once more."""
    busy: Counter[str] = Counter()
    done: Counter[str] = Counter()
    most = 0

    async def handle(key: str) -> None:
        nonlocal most
        busy[key] += 1
        assert busy[key] == 1
        most = max(most, sum(busy.values()))
        await asyncio.sleep(1)
        busy[key] -= 1
        done[key] += 1

    async def main() -> None:
        pool = Pool[str]("test", handle, workers=3, clock=SimClock(), random=Random(1))
        for _ in range(100):
            for key in "abcdef":
                pool.offer(key)
        async with running([("pool", pool.run())]):
            await asyncio.sleep(0.5)
            pool.offer("a")  # being worked on
            pool.offer("f")  # still waits
            await asyncio.sleep(10)
            assert pool.idle

    run_virtual(main)
    assert most == 3
    assert done == {"a": 2, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1}


def test_a_failed_key_comes_back_later_and_later() -> None:
    """Field note 18: with growing pauses, whoever offers it meanwhile; a bug in one key's work
    stops no other; the first success ends it."""
    tried: dict[str, list[float]] = {"down": [], "buggy": []}
    clock = SimClock()

    async def handle(key: str) -> None:
        tried[key].append(clock.monotonic_s())
        if key == "buggy":
            raise ZeroDivisionError
        if len(tried[key]) < 6:
            raise LogUnavailable("not now")

    async def main() -> None:
        pool = Pool[str]("test", handle, workers=1, clock=clock, random=Random(1), retry_max_s=8.0)
        async with running([("pool", pool.run())]):
            for _ in range(400):
                pool.offer("down")
                pool.offer("buggy") if len(tried["buggy"]) < 2 else None
                pool.retry_due()
                await asyncio.sleep(0.1)
                if len(tried["down"]) == 6:
                    break

    run_virtual(main)
    pauses = [b - a for a, b in zip(tried["down"], tried["down"][1:], strict=False)]
    for pause, wanted in zip(pauses, (1, 2, 4, 8, 8), strict=True):
        assert 0.8 * wanted <= pause <= 1.2 * wanted + 0.2
    assert len(tried["buggy"]) >= 2


def test_the_pace_is_kept_and_saves_little_up() -> None:
    """A burst of one second's worth after a rest, then the rate."""

    async def main() -> None:
        clock = SimClock()
        pace = Pace(1_000, clock)
        await asyncio.sleep(100)
        begun_s = clock.monotonic_s()
        for _ in range(10):
            await pace.spend(500)
        assert 3.9 <= clock.monotonic_s() - begun_s <= 4.1

    run_virtual(main)


def test_the_board_shows_what_goes_on_while_it_does() -> None:
    """Work that ends leaves the board, by an error too; what may turn out to be none is shown only
    once it says something; the answer is bounded."""
    board = WorkBoard(NodeId("n1"))
    with board.doing("drain", "node n3", total=4) as job:
        job.done = 1
        with board.if_told("backfill", "log a") as told:
            assert len(board) == 1
            told("copying")
            told("still copying")
            assert [(it.kind, it.message) for it in board.shown()] == [
                ("drain", ""),
                ("backfill", "still copying"),
            ]
        assert [(it.done, it.total, it.node_id) for it in board.shown()] == [(1, 4, "n1")]
    assert len(board) == 0
    for number in range(2 * SHOWN_MAX):
        board.begin("failover", f"log {number}")
    assert len(board.shown()) == SHOWN_MAX
