"""The pace of archiving: steady, faster with more to do, and no bursts after a delay."""

from __future__ import annotations

from loglet.archive.pace import BYTES_PER_S_MIN, CATCH_UP_S, Pace
from sharedlog.limits import MIB


class Slept:
    """A clock that stands still but for sleeps, and notes those."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def now_ms(self) -> int:
        return int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.now_s += seconds


async def _move(pace: Pace, pieces: int, size: int = MIB) -> None:
    for _ in range(pieces):
        await pace.moved(size)


async def test_little_to_do_goes_at_the_lowest_rate() -> None:
    """It is no reason to hold anybody up, and is done in a bounded time."""
    clock = Slept()
    pace = Pace(clock)
    pace.aim(1)
    await _move(pace, 64)
    assert 0.9 <= sum(clock.slept_s) * BYTES_PER_S_MIN / (64 * MIB) <= 1.0


async def test_a_backlog_is_moved_twice_in_the_time_to_catch_up() -> None:
    """To the store, and back to be checked."""
    clock = Slept()
    pace = Pace(clock)
    pace.aim(400 * MIB)
    await _move(pace, 800)
    assert 0.9 * CATCH_UP_S <= sum(clock.slept_s) <= CATCH_UP_S


async def test_small_pieces_cost_no_pause_each() -> None:
    """A short pause would cost a turn of the event loop, and be longer than meant."""
    clock = Slept()
    pace = Pace(clock)
    await _move(pace, 1000, 1000)
    assert len(clock.slept_s) < 5


async def test_lost_time_is_not_made_up_for() -> None:
    """After a second without an answer from the store the rate is as before."""
    clock = Slept()
    pace = Pace(clock)
    await _move(pace, 8)
    clock.now_s += 1.0
    before = len(clock.slept_s)
    await _move(pace, 8)
    assert sum(clock.slept_s[before:]) >= 0.8 * 8 * MIB / BYTES_PER_S_MIN
