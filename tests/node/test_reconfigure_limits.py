"""Reconfiguration where something is scarce: room in the chain, or a disk's time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from helpers.movers import NAME, Mover, MoverWorld, batch, run_in

from loglet.messages import SealRequest
from loglet.wire import REPAIR, SEAL
from metadata import core, registry
from sharedlog.errors import DeadlineExceeded, LogUnavailable
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.transport import ClientStream, Method, Transport


def sealed(world: MoverWorld) -> list[str]:
    """Servers that have sealed anything."""
    return [
        name
        for name, server in world.servers.items()
        if any(it.sealed for it in server.disk.states())
    ]


def test_what_is_planned_leaves_the_last_of_the_chain_to_failovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A chain that is nearly full refuses what can be done without, in a preview as well, before
    anything is held or sealed. A failover still fits; one that does not fit seals nothing either:
    nothing could follow, and the log would take no more appends for ever."""
    world = MoverWorld(1)
    world.put_log()
    monkeypatch.setattr(core, "CHAIN_SEGMENTS_MAX", 2)
    monkeypatch.setattr(registry, "RESERVED_SEGMENTS", 1)

    async def main() -> None:
        for name in ("n1", "n2", "n3"):
            await world.store(name, [batch(0)])
        async with world.mover("n4") as mover:
            reconfigure = mover.reconfigurer.reconfigure
            with pytest.raises(LogUnavailable, match="no further segment"):
                await reconfigure(NAME, reason="test")
            with pytest.raises(LogUnavailable, match="no further segment"):
                await mover.reconfigurer.preview(NAME)
            assert (mover.sequencer.calls, sealed(world)) == ([], [])
            assert not mover.reconfigurer.troubles()
            done = await reconfigure(NAME, reason="test", planned=False)
            assert len(done.record.chain) == 2
            monkeypatch.setattr(core, "CHAIN_SEGMENTS_MAX", 1)
            with pytest.raises(LogUnavailable, match="no further segment"):
                await reconfigure(NAME, reason="test", planned=False)
        for server in world.servers.values():
            indexes = [it.loglet.segment_index for it in server.disk.states() if it.sealed]
            assert 1 not in indexes

    run_in(world, main)


def test_room_is_counted_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The value that the chain would be is measured before the seal."""
    world = MoverWorld(2)
    world.put_log()

    async def main() -> None:
        await world.store("n1", [batch(0)])
        async with world.mover("n4") as mover:
            reconfigure = mover.reconfigurer.reconfigure
            monkeypatch.setattr(registry, "CHAIN_BYTES_MAX", registry.RESERVED_BYTES)
            with pytest.raises(LogUnavailable, match="no further segment"):
                await reconfigure(NAME, reason="test")
            monkeypatch.setattr(registry, "CHAIN_BYTES_MAX", 2 * 1024)
            with pytest.raises(LogUnavailable, match="no further segment"):
                await reconfigure(NAME, reason="test", planned=False)
            assert sealed(world) == []
            monkeypatch.setattr(registry, "CHAIN_BYTES_MAX", registry.RESERVED_BYTES)
            assert (await reconfigure(NAME, reason="test", planned=False)).opened.index == 1

    run_in(world, main)


class SlowStream:
    """Its first message comes after a while."""

    def __init__(self, stream: ClientStream[Any, Any], wait_s: float) -> None:
        self._stream = stream
        self._wait_s = wait_s

    async def receive(self) -> Any:
        await asyncio.sleep(self._wait_s)
        self._wait_s = 0
        return await self._stream.receive()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class BusyDisks:
    """A transport over which reads, repairs and seals take their time at first."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.slow_reads = self.slow_repairs = 0
        self.wait_s = 1.5
        self.silent_seals: dict[str, int] = {}
        self.seals: list[tuple[str, SealRequest]] = []
        self.repairs = 0

    async def call(
        self, address: str, method: Method[Any, Any], request: Any, *, timeout_s: float
    ) -> Any:
        if method.path == SEAL.path:
            self.seals.append((address, request))
            if self.silent_seals.get(address, 0):
                self.silent_seals[address] -= 1
                raise DeadlineExceeded("busy")
        if method.path == REPAIR.path:
            self.repairs += 1
            if self.slow_repairs:
                self.slow_repairs -= 1
                await asyncio.sleep(min(timeout_s, self.wait_s))
                if timeout_s < self.wait_s:
                    raise DeadlineExceeded("busy")
        return await self._transport.call(address, method, request, timeout_s=timeout_s)

    def stream(self, address: str, method: Method[Any, Any]) -> Any:
        stream = self._transport.stream(address, method)
        if method.path == READ_LOGLET.path and self.slow_reads:
            self.slow_reads -= 1
            return SlowStream(stream, self.wait_s)
        return stream


def busy(mover: Mover) -> BusyDisks:
    sealer = mover.reconfigurer._tools.sealer
    disks = BusyDisks(sealer._transport)
    sealer._transport = disks  # type: ignore[assignment]
    return disks


def test_the_only_source_and_the_only_target_may_be_slow() -> None:
    """A disk that takes longer than one call's time is asked again, with more patience, if nobody
    else has the tail, or could take it: else a busy disk would keep the log from going on."""
    world = MoverWorld(3)
    world.put_log()

    async def main() -> None:
        await world.store("n1", [batch(it) for it in range(5)])
        await world.store("n2", [batch(it) for it in range(3)])
        await world.crash("n3")
        async with world.mover("n4") as mover:
            disks = busy(mover)
            disks.slow_reads, disks.slow_repairs = 2, 2
            mover.awareness.dead.add("n3")
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
        assert (done.ended.end, done.repaired_records) == (5, 2)
        assert [first for first, _ in world.held("n2")] == list(range(5))
        assert disks.repairs >= 2

    run_in(world, main)


def test_a_source_that_stays_silent_is_given_up() -> None:
    """Patience has an end, and so has the attempt: it says who did not answer."""
    world = MoverWorld(4)
    world.put_log()

    async def main() -> None:
        await world.store("n1", [batch(it) for it in range(5)])
        await world.store("n2", [batch(it) for it in range(3)])
        await world.crash("n3")
        async with world.mover("n4") as mover:
            disks = busy(mover)
            disks.slow_reads, disks.wait_s = 1_000, 1_000
            mover.awareness.dead.add("n3")
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(LogUnavailable, match="n1"):
                await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert 5 < asyncio.get_running_loop().time() - began_s < 20

    run_in(world, main)


def test_a_slow_target_is_not_waited_for_if_another_can_take_it() -> None:
    """The third server takes what the second is too slow for."""
    world = MoverWorld(5)
    world.put_log()

    async def main() -> None:
        await world.store("n1", [batch(it) for it in range(5)])
        await world.store("n2", [batch(it) for it in range(3)])
        await world.store("n3", [batch(it) for it in range(2)])
        async with world.mover("n4") as mover:
            disks = busy(mover)
            disks.slow_repairs, disks.wait_s = 1, 1_000
            began_s = asyncio.get_running_loop().time()
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
            assert done.ended.end == 5
            assert asyncio.get_running_loop().time() - began_s < 1.5

    run_in(world, main)


def test_a_replacement_is_asked_more_than_once_and_need_not_look_for_damage() -> None:
    """Its first answer may come too late; what it would say of damage counts for nothing, so it is
    not made to read all that an earlier attempt has left there. Members are made to."""
    world = MoverWorld(6)
    world.put_log(replicas=2, write_quorum=2)

    async def main() -> None:
        await world.store("n1", [batch(it) for it in range(4)])
        await world.wipe("n2")
        await world.crash("n3")
        await world.crash("n4")
        async with world.mover("n1") as mover:
            disks = busy(mover)
            mover.awareness.dead |= {"n3", "n4"}
            disks.silent_seals["n2:1"] = 2
            done = await mover.reconfigurer.reconfigure(NAME, reason="test", planned=False)
        assert done.ended.nodeset == (world.replica("n1"), world.replica("n2"))
        asked = [request.skip_damage for at, request in disks.seals if at == "n2:1"]
        assert asked[-3:] == [True, True, True]
        assert {request.skip_damage for at, request in disks.seals if at == "n1:1"} == {False}

    run_in(world, main)
