"""A node as all sessions of a client see it together; and turns."""

from __future__ import annotations

import asyncio

import pytest
from helpers.sim import run_virtual

from sharedlog.append_session import SilenceWatch
from sharedlog.clock import SystemClock
from sharedlog.peer import SCOUT_S, TURN_S, Peer, Peers, Turns


class LoopClock(SystemClock):
    """The time of the running loop."""

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()


class Sessions:
    """Some watches of one peer, all with an answer due, each for a limit of 0.6 s."""

    def __init__(self, count: int, peer: Peer | None) -> None:
        self.silent: list[tuple[int, float]] = []
        self.watches = [
            SilenceWatch(
                LoopClock(),
                0.6,
                due=lambda: True,
                on_silence=lambda index=index: self._on_silence(index),  # type: ignore[misc]  # bound
                peer=peer,
            )
            for index in range(count)
        ]
        for watch in self.watches:
            watch.heard()

    def _on_silence(self, index: int) -> None:
        self.silent.append((index, round(asyncio.get_running_loop().time(), 3)))

    def stop(self) -> None:
        for watch in self.watches:
            watch.stop()


def test_a_peer_that_speaks_to_others_is_given_time() -> None:
    """But not for ever: what it does not answer for ten limits is given up."""

    async def main() -> None:
        peer = Peer()
        sessions = Sessions(1, peer)
        for tenth in range(100):
            await asyncio.sleep(0.1)
            peer.heard_s = asyncio.get_running_loop().time()
            if sessions.silent:
                break
            assert tenth < 70
        assert sessions.silent[0][1] >= 6.0
        sessions.stop()

    run_virtual(main)


def test_one_has_a_silent_peer_looked_into_and_the_others_wait_for_that() -> None:
    """If it is well, all of them have more patience; nobody else reports it."""

    async def main() -> None:
        peer = Peer()
        sessions = Sessions(100, peer)
        await asyncio.sleep(0.7)
        assert sessions.silent == [(0, 0.6)]
        peer.on_verdict(asyncio.get_running_loop().time(), innocent=True)
        await asyncio.sleep(0.4)
        assert len(sessions.silent) == 1
        peer.heard_s = asyncio.get_running_loop().time()
        await asyncio.sleep(1.0)
        assert len(sessions.silent) == 1, "1.2 s from when it last spoke"
        sessions.stop()

    run_virtual(main)


def test_all_go_on_once_it_is_known_to_be_gone() -> None:
    """At once, and so do those that come to doubt it later, until it is heard of."""

    async def main() -> None:
        peer = Peer()
        sessions = Sessions(100, peer)
        await asyncio.sleep(0.65)
        peer.on_verdict(asyncio.get_running_loop().time(), innocent=False)
        await asyncio.sleep(0.11)
        assert len(sessions.silent) == 100
        later = Sessions(100, peer)
        await asyncio.sleep(0.65)
        assert len(later.silent) == 100
        sessions.stop()
        later.stop()

    run_virtual(main)


def test_a_scout_that_does_not_come_back_is_not_waited_for() -> None:
    """After a second each session does what it would do alone."""

    async def main() -> None:
        sessions = Sessions(100, Peer())
        await asyncio.sleep(0.6 + SCOUT_S + 0.11)
        assert len(sessions.silent) == 100
        sessions.stop()

    run_virtual(main)


def test_without_a_peer_each_session_is_alone() -> None:
    """As those are that another node forwards."""

    async def main() -> None:
        sessions = Sessions(10, None)
        await asyncio.sleep(0.61)
        assert [at for _, at in sessions.silent] == [0.6] * 10
        sessions.stop()

    run_virtual(main)


def test_patience_grows_and_is_lost_again() -> None:
    """It doubles with each innocent verdict up to a bound, and is kept for a while."""
    peer = Peer()
    assert peer.limit_s(0.6, 0.0) == 0.6
    peer.on_verdict(0.0, innocent=True)
    peer.on_verdict(0.0, innocent=True)
    assert peer.limit_s(0.6, 1.0) == 2.4
    for _ in range(20):
        peer.on_verdict(1.0, innocent=True)
    assert peer.limit_s(0.6, 1.0) == 5.0
    assert peer.limit_s(7.0, 1.0) == 7.0
    assert peer.limit_s(0.6, 20.0) == 0.6


def test_so_many_take_their_turns_and_what_hangs_loses_its_own() -> None:
    """The others wait until a place is free, or a turn is over; each place is given back once."""

    async def main() -> None:
        turns = Turns(2)
        inside: list[int] = []
        most = 0

        async def work(index: int, seconds: float) -> None:
            nonlocal most
            async with turns.take():
                inside.append(index)
                most = max(most, len(inside))
                await asyncio.sleep(seconds)
                inside.remove(index)

        async with asyncio.TaskGroup() as tasks:
            for index in range(10):
                tasks.create_task(work(index, 0.01))
        assert most == 2
        began_s = asyncio.get_running_loop().time()
        async with asyncio.TaskGroup() as tasks:
            for index in range(2):
                tasks.create_task(work(index, 10.0))
            await asyncio.sleep(0)
            async with turns.take():
                waited_s = asyncio.get_running_loop().time() - began_s
        assert waited_s == pytest.approx(TURN_S)
        most = 0
        async with asyncio.TaskGroup() as tasks:
            for index in range(10):
                tasks.create_task(work(index, 0.01))
        assert most == 2, "no place was given back twice"

    run_virtual(main)


def test_a_turn_that_is_cancelled_is_given_back() -> None:
    """While it is waited for, and while it is had."""

    async def main() -> None:
        turns = Turns(1)

        async def hold() -> None:
            async with turns.take():
                await asyncio.Event().wait()

        tasks = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        async with asyncio.timeout(0.01), turns.take():
            pass

    run_virtual(main)


def test_the_nodes_that_are_known_are_bounded() -> None:
    """An address has one object while it is in use."""
    peers = Peers()
    first = peers.at("a:1")
    assert peers.at("a:1") is first
    for port in range(1, 1_000):
        peers.at(f"b:{port}")
    assert peers.at("a:1") is not first
