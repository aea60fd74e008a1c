"""The simulator itself: virtual time, faults of the network, and a disk that forgets."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from helpers.sim import (
    Deadlock,
    Livelock,
    NetworkConfig,
    SimDisk,
    SimNetwork,
    VirtualTimeExceeded,
    World,
    run_virtual,
)

from loglet.store import PutBatch, PutLoglet
from sharedlog.batch import Placement, encode_records, parse_batch_header, place_batch
from sharedlog.errors import StoreFailed, StoreReadOnly, Unreachable
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId
from sharedlog.rpc.transport import Method, ServerStream

TEXT: Method[str, str] = Method(
    "/sharedlog.v1.TestService/Text", str.encode, bytes.decode, str.encode, bytes.decode
)
LOGLET = LogletId(LogId(1), 0)


def test_an_hour_passes_at_once() -> None:
    """Timers fire in order, and nobody waits for them."""
    fired = []

    async def main() -> float:
        async def after(seconds: float) -> None:
            await asyncio.sleep(seconds)
            fired.append(seconds)

        async with asyncio.TaskGroup() as tasks:
            for seconds in (3000.0, 1.0, 60.0):
                tasks.create_task(after(seconds))
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == pytest.approx(3000.0)
    assert fired == [1.0, 60.0, 3000.0]


def test_a_deadlock_is_found_and_names_who_waits() -> None:
    """Nothing ready and no timer armed: the loop says so, and where each task stands."""

    async def waits_for_ever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(waits_for_ever(), name="the culprit")

    with pytest.raises(Deadlock, match=r"the culprit: locks\.py:\d+ in wait"):
        run_virtual(main)


def test_a_live_lock_is_found() -> None:
    """What retries for ever runs into the limit of virtual time, or of turns at one moment."""

    async def retries_for_ever(delay_s: float) -> None:
        while True:  # noqa: ASYNC110  what is tested
            await asyncio.sleep(delay_s)

    with pytest.raises(VirtualTimeExceeded):
        run_virtual(lambda: retries_for_ever(1), limit_s=100)
    with pytest.raises(Livelock, match="time stands still at 0"):
        run_virtual(lambda: retries_for_ever(0), limit_s=100)


def test_threads_are_refused() -> None:
    """A thread would run in real time."""

    async def main() -> None:
        with pytest.raises(RuntimeError, match="threads are not simulated"):
            await asyncio.to_thread(print)

    run_virtual(main)


async def _echo(stream: ServerStream[str, str]) -> None:
    while (message := await stream.receive()) is not None:
        await stream.send(message)


def _network(**config: Any) -> SimNetwork:
    network = SimNetwork(World(3), NetworkConfig(**config))
    server = network.server("server:1")
    server.add_stream(TEXT, _echo)
    server.start()
    return network


def _now() -> float:
    return asyncio.get_running_loop().time()


def test_a_cut_holds_messages_until_it_is_mended() -> None:
    """As TCP does: late, in order, none lost."""

    async def main() -> None:
        network = _network()
        stream = network.transport("client").stream("server:1", TEXT)
        await stream.send("before")
        assert await stream.receive() == "before"
        network.cut("client", "server", both_ways=False)
        for number in range(5):
            await stream.send(str(number))
        await asyncio.sleep(5)
        network.mend("client", "server")
        assert [await stream.receive() for _ in range(5)] == list("01234")
        assert _now() >= 5
        stream.cancel()

    run_virtual(main)


@pytest.mark.parametrize("source", ["client", "server"])
def test_a_cut_that_lasts_breaks_the_streams(source: str) -> None:
    """In either direction, by keepalive; and streams opened while it lasts fare no better."""

    async def main() -> None:
        network = _network(keepalive_s=10)
        transport = network.transport("client")
        old = transport.stream("server:1", TEXT)
        await old.send("x")
        assert await old.receive() == "x"
        network.cut(source, "server" if source == "client" else "client", both_ways=False)
        with pytest.raises(Unreachable):
            await old.receive()
        assert _now() == pytest.approx(10, abs=1)
        new = transport.stream("server:1", TEXT)
        with pytest.raises(Unreachable):
            await new.receive()
        assert _now() == pytest.approx(20, abs=1)
        old.cancel()
        new.cancel()

    run_virtual(main)


@pytest.mark.parametrize(("silent", "expected_s"), [(False, 0.0), (True, 10.0)])
def test_a_crash_is_noticed_at_once_or_by_keepalive(silent: bool, expected_s: float) -> None:
    """A killed process resets its connections; a machine without power says nothing."""

    async def main() -> None:
        network = _network(keepalive_s=10)
        transport = network.transport("client")
        stream = transport.stream("server:1", TEXT)
        await stream.send("x")
        assert await stream.receive() == "x"
        network.crash("server", silent=silent)
        with pytest.raises(Unreachable):
            await stream.receive()
        assert _now() == pytest.approx(expected_s, abs=0.5)
        stream.cancel()
        again = transport.stream("server:1", TEXT)
        with pytest.raises(Unreachable):
            await again.receive()
        again.cancel()

    run_virtual(main)


def test_streams_overtake_one_another_and_messages_of_one_do_not() -> None:
    """Order is a promise of a stream, not of the network."""

    async def main() -> None:
        arrived: list[str] = []

        async def note(stream: ServerStream[str, str]) -> None:
            while (message := await stream.receive()) is not None:
                arrived.append(message)

        network = SimNetwork(World(5))
        server = network.server("server:1")
        server.add_stream(TEXT, note)
        server.start()
        streams = [network.transport("client").stream("server:1", TEXT) for _ in range(10)]
        for number in range(10):
            for index, stream in enumerate(streams):
                await stream.send(f"{index}/{number}")
        await asyncio.sleep(1)
        for index in range(10):
            own = [message for message in arrived if message.startswith(f"{index}/")]
            assert own == [f"{index}/{number}" for number in range(10)]
        first = [message.split("/")[0] for message in arrived[:10]]
        assert first != [str(index) for index in range(10)]
        for stream in streams:
            stream.cancel()

    run_virtual(main)


def _batch(first: int, value: bytes = b"v") -> PutBatch:
    batch = encode_records([(value, None, None)])
    crc = parse_batch_header(batch).crc32c
    placement = Placement(LOGLET, Offset(first), 1, 1000, Offset(0), crc)
    return PutBatch(LOGLET, Offset(first), Offset(first + 1), place_batch(placement, batch))


_OPENED = PutLoglet(
    LOGLET, Offset(0), SequencerId(NodeId("n1"), Generation(1)), sealed=False, local_start=Offset(0)
)


def test_a_disk_keeps_what_was_committed_and_loses_the_rest() -> None:
    """A crash while a commit runs leaves all of it or nothing, and both happen."""

    async def one(seed: int) -> int:
        disk = SimDisk(World(seed), "d")
        store = disk.open()
        await store.commit([_OPENED, _batch(0)])
        running = asyncio.create_task(store.commit([_batch(1), _batch(2)]))
        await asyncio.sleep(0)
        disk.crash()
        await running
        with pytest.raises(StoreFailed):
            await store.commit([_batch(3)])
        (state,) = disk.open().loglets()
        return state.local_tail

    tails = {run_virtual(lambda seed=seed: one(seed)) for seed in range(20)}  # type: ignore[misc]
    assert tails == {1, 3}


def test_a_full_disk_refuses_batches_and_takes_seals() -> None:
    """Field note 11: the reserve is for records of loglets."""

    async def main() -> None:
        disk = SimDisk(World(1), "d", capacity_bytes=100_000)
        store = disk.open()
        await store.commit([_OPENED])
        with pytest.raises(StoreReadOnly):
            await store.commit([_batch(0, bytes(50_000))])
        assert disk.states()[0].local_tail == 0
        sealed = PutLoglet(LOGLET, Offset(0), _OPENED.opened_by, sealed=True, local_start=Offset(0))
        await store.commit([sealed])
        assert disk.states()[0].sealed

    run_virtual(main)
