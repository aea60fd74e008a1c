"""The simulator's faults do what they say: pauses, firewalls, repeated calls, disks, metadata."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from helpers.sim import Host, NetworkConfig, SimDisk, SimMetadata, SimNetwork, World, run_virtual

from loglet.held import verified
from loglet.store import PutBatch, PutLoglet, PutRepaired
from metadata.store import ABSENT
from sharedlog.batch import Placement, encode_records, parse_batch_header, place_batch
from sharedlog.errors import MetadataUnavailable, StoreFailed, StoreReadOnly, Unreachable
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId
from sharedlog.rpc.transport import Method, ServerStream

TEXT: Method[str, str] = Method(
    "/sharedlog.v1.TestService/Text", str.encode, bytes.decode, str.encode, bytes.decode
)
STREAM: Method[str, str] = Method(
    "/sharedlog.v1.TestService/Stream", str.encode, bytes.decode, str.encode, bytes.decode
)
LOGLET = LogletId(LogId(1), 0)


def _now() -> float:
    return asyncio.get_running_loop().time()


def test_a_paused_host_stands_still_while_time_goes_on() -> None:
    """SIGSTOP: no task, timer or callback of it runs; afterwards all of them do, in order."""

    async def main() -> None:
        ran: list[tuple[str, float]] = []

        async def tick(name: str) -> None:
            for _ in range(10):
                await asyncio.sleep(1)
                ran.append((name, _now()))

        async with asyncio.TaskGroup() as tasks:
            one, other = Host("one"), Host("other")
            one.run(tasks.create_task, tick("one"))
            other.run(tasks.create_task, tick("other"))
            await asyncio.sleep(2.5)
            one.pause()
            await asyncio.sleep(4)
            assert [name for name, at_s in ran if at_s > 2.5] == ["other"] * 4
            one.resume()
        assert [at_s for name, at_s in ran if name == "one"][:4] == [1.0, 2.0, 6.5, 7.5]
        assert ran[-1] == ("one", 13.5)

    run_virtual(main)


def _network(**config: Any) -> tuple[SimNetwork, Host, list[str]]:
    """A server that notes what it is asked, as a host of its own."""
    network = SimNetwork(World(3), NetworkConfig(**config))
    host, asked = Host("server"), list[str]()

    async def answer(request: str) -> str:
        asked.append(request)
        return request.upper()

    async def echo(stream: ServerStream[str, str]) -> None:
        while (message := await stream.receive()) is not None:
            await stream.send(message)

    server = network.server("server:1")
    server.add_call(TEXT, answer)
    server.add_stream(STREAM, echo)
    host.run(server.start)
    return network, host, asked


def test_a_paused_server_takes_what_comes_and_answers_later() -> None:
    """Its kernel goes on: nothing is refused, nothing is lost, if it does not last too long."""

    async def main() -> None:
        network, host, asked = _network(keepalive_s=15)
        transport = network.transport("client")
        stream = transport.stream("server:1", STREAM)
        await stream.send("a")
        assert await stream.receive() == "a"
        host.pause()
        network.pause("server")
        await stream.send("b")
        calling = asyncio.create_task(transport.call("server:1", TEXT, "x", timeout_s=30))
        await asyncio.sleep(5)
        assert not asked
        assert not calling.done()
        host.resume()
        network.resume("server")
        assert await stream.receive() == "b"
        assert await calling == "X"
        assert 5 <= _now() < 5.1
        stream.cancel()

    run_virtual(main)


def test_peers_give_a_paused_server_up_after_the_keepalive() -> None:
    """A process that stands still answers no ping of HTTP/2."""

    async def main() -> None:
        network, host, _ = _network(keepalive_s=15)
        stream = network.transport("client").stream("server:1", STREAM)
        await stream.send("a")
        assert await stream.receive() == "a"
        host.pause()
        network.pause("server")
        with pytest.raises(Unreachable):
            await stream.receive()
        assert _now() == pytest.approx(15, abs=0.5)
        host.resume()
        network.resume("server")

    run_virtual(main)


def test_a_firewall_that_refuses_is_noticed_at_once() -> None:
    """Streams break and new ones are refused, in no time; mended, all is well."""

    async def main() -> None:
        network, _, asked = _network()
        transport = network.transport("client")
        stream = transport.stream("server:1", STREAM)
        await stream.send("a")
        assert await stream.receive() == "a"
        network.refuse("client", "server")
        with pytest.raises(Unreachable):
            await stream.receive()
        with pytest.raises(Unreachable):
            await transport.call("server:1", TEXT, "x", timeout_s=30)
        assert _now() < 0.1
        assert not asked
        network.mend("client", "server")
        assert await transport.call("server:1", TEXT, "x", timeout_s=30) == "X"

    run_virtual(main)


def test_a_slow_direction_delays_and_keeps_order() -> None:
    """Later, in order, and only this way."""

    async def main() -> None:
        network, _, _ = _network()
        network.slow("client", "server", 2.0)
        stream = network.transport("client").stream("server:1", STREAM)
        for number in range(20):
            await stream.send(str(number))
        assert [await stream.receive() for _ in range(20)] == [str(n) for n in range(20)]
        assert 1.0 < _now() < 2.2
        stream.cancel()

    run_virtual(main)


def test_a_call_may_be_carried_out_twice() -> None:
    """The second time late, for nobody; only calls that are named."""

    async def main() -> None:
        network, _, asked = _network(repeat=("Text",), repeat_probability=0.5)
        transport = network.transport("client")
        for number in range(20):
            await transport.call("server:1", TEXT, str(number), timeout_s=30)
        await asyncio.sleep(30)
        twice = {request for request in asked if asked.count(request) == 2}
        assert set(asked) == {str(number) for number in range(20)}
        assert 3 < len(twice) < 17
        assert not network.connections

    run_virtual(main)


# Disks.


def _batch(first: int, value: bytes = b"v") -> PutBatch:
    batch = encode_records([(value, None, None)])
    crc = parse_batch_header(batch).crc32c
    placement = Placement(LOGLET, Offset(first), 1, 1000, Offset(0), crc)
    return PutBatch(LOGLET, Offset(first), Offset(first + 1), place_batch(placement, batch))


_OPENED = PutLoglet(
    LOGLET, Offset(0), SequencerId(NodeId("n1"), Generation(1)), sealed=False, local_start=Offset(0)
)


def test_any_flipped_bit_is_damage_and_keeps_the_batch_in_its_place() -> None:
    """Wherever it is: the checksums find it, and a whole copy mends it."""

    async def main() -> None:
        disk = SimDisk(World(1), "d")
        store = disk.open()
        await store.commit([_OPENED, _batch(0), _batch(1)])
        for bit in range(8 * len(_batch(1).placed)):
            disk.damage(LOGLET, Offset(1), bit=bit)
            (found,) = disk.read(LOGLET, Offset(1), Offset(2))
            assert verified(LOGLET, Offset(1), Offset(2), found.placed).placement_bytes is None
            assert disk.states()[0].local_tail == 2
            assert disk.damaged == {(LOGLET, 1)}
            whole = _batch(1)
            await store.commit(
                [PutRepaired(LOGLET, whole.first, whole.end, whole.placed, overwrites=True)]
            )
            assert not disk.damaged
        held = await store.scan(
            LOGLET, Offset(0), Offset(9), verify=True, max_batches=9, max_bytes=1 << 20
        )
        assert [batch.placement_bytes is not None for batch in held] == [True, True]

    run_virtual(main)


def test_two_batches_for_one_offset_are_a_bug_that_the_disk_finds() -> None:
    """No store may ever ask for it."""

    async def main() -> None:
        disk = SimDisk(World(1), "d")
        store = disk.open()
        batch = encode_records([(b"x", None, None), (b"y", None, None)])
        crc = parse_batch_header(batch).crc32c
        placed = place_batch(Placement(LOGLET, Offset(0), 2, 1000, Offset(0), crc), batch)
        await store.commit([_OPENED, PutBatch(LOGLET, Offset(0), Offset(2), placed)])
        for wrong in (_batch(0), _batch(1)):
            with pytest.raises(AssertionError):
                await store.commit([wrong])

    run_virtual(main)


def test_a_full_disk_takes_records_of_loglets_and_for_a_while_repairs() -> None:
    """Field note 11: room is kept back for seals, and half of it for repairs."""

    async def main() -> None:
        disk = SimDisk(World(1), "d")
        store = disk.open()
        await store.commit([_OPENED])
        disk.full = True
        assert store.space().free_bytes == 0
        assert store.space().repair_bytes > 0
        large = _batch(0, bytes(20_000))
        with pytest.raises(StoreReadOnly):
            await store.commit([large])
        await store.commit([PutRepaired(LOGLET, large.first, large.end, large.placed)])
        disk.full = False
        await store.commit([_batch(1)])
        assert disk.states()[0].local_tail == 2

    run_virtual(main)


def test_a_failed_sync_ends_the_process_and_nobody_knows_what_is_on_the_disk() -> None:
    """Field note 23: the commit fails, the store is dead, and both outcomes are met."""

    async def one(seed: int) -> int:
        disk = SimDisk(World(seed), "d")
        store = disk.open()
        await store.commit([_OPENED])
        disk.fail_next_commit = True
        with pytest.raises(StoreFailed):
            await store.commit([_batch(0)])
        with pytest.raises(StoreFailed):
            await store.commit([_batch(0)])
        (state,) = disk.open().loglets()
        return state.local_tail

    tails = {run_virtual(lambda seed=seed: one(seed)) for seed in range(20)}  # type: ignore[misc]
    assert tails == {0, 1}


# The metadata store.


def test_a_change_with_an_unknown_outcome_is_made_or_not_or_made_late() -> None:
    """All three happen, and a late one that is no longer expected does nothing."""

    async def one(seed: int) -> tuple[bool, bool]:
        world = World(seed)
        metadata = SimMetadata(world, SimNetwork(world))
        store = metadata.store("n1")
        metadata.unknown_probability = 1.0
        with pytest.raises(MetadataUnavailable):
            await store.put("key", b"1", expected=ABSENT)
        metadata.unknown_probability = 0.0
        soon = await store.get("key") is not None
        await asyncio.sleep(5)
        return soon, await store.get("key") is not None

    outcomes = {run_virtual(lambda seed=seed: one(seed)) for seed in range(40)}  # type: ignore[misc]
    assert outcomes == {(True, True), (False, False), (False, True)}


def test_a_host_that_is_cut_off_gets_no_answer_from_the_metadata_store() -> None:
    """Others do; and once it is mended its watch tells what it missed."""

    async def main() -> None:
        world = World(1)
        network = SimNetwork(world)
        metadata = SimMetadata(world, network)
        near, far = metadata.store("near"), metadata.store("far")
        network.cut("far", "metadata")
        await near.put("key", b"1", expected=ABSENT)
        with pytest.raises(MetadataUnavailable):
            await far.get("key")
        network.mend("far", "metadata")
        assert await far.get("key") is not None

    run_virtual(main)
