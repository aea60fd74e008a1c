"""Repairs, told ends and what seals say of damage: over gRPC and in-process, on a real disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from helpers.gated_store import GatedStore
from helpers.log_servers import (
    LOGLET,
    OTHER,
    WAIT_S,
    Served,
    damage_file,
    flipped,
    open_store,
    opened,
    placed,
    request,
    serve,
    until,
)

from loglet.config import LogServerConfig
from loglet.inspect import OfflineStore
from loglet.messages import (
    RepairRequest,
    RepairResponse,
    SealResponse,
    TellEndsRequest,
    TellEndsResponse,
)
from loglet.store import PutLoglet
from loglet.wire import REPAIR, TELL_ENDS
from sharedlog.batch import PLACEMENT_BYTES
from sharedlog.errors import (
    CorruptBatch,
    LogletNotOpen,
    MissingPrefix,
    Overloaded,
    ProtocolError,
    Sealed,
    StoreFailed,
    StoreReadOnly,
    Unreachable,
    WrongStorage,
)
from sharedlog.ids import Offset, StorageId
from sharedlog.limits import MIB

Serving = Callable[[], AbstractAsyncContextManager[Served]]


@pytest.fixture(params=["grpc", "loopback"])
def serving(tmp_path: Path, request: pytest.FixtureRequest) -> Serving:
    """A log server on the test's one store, anew each time."""
    return lambda: serve(open_store(tmp_path), loopback=request.param == "loopback")


async def test_a_repair_survives_a_restart(serving: Serving) -> None:
    """Field note 25: a repair is answered when it is on disk; its tail is there in another life."""
    async with serving() as server:
        await server.store_all(request([placed(0, 2)], opens=[opened()]))
        await server.seal()
        assert await server.repair(placed(2), placed(3, 4)) == RepairResponse()
        assert server.metric("repaired_batches_total") == 2
    async with serving() as server:
        assert await server.seal() == SealResponse(Offset(7), Offset(0), last_timestamp_ms=1_003)


async def test_refusals_come_back_typed(serving: Serving) -> None:
    """Whoever repairs learns what to do next."""
    async with serving() as server:
        with pytest.raises(LogletNotOpen, match="seal it first"):
            await server.repair(placed(0))
        await server.seal()
        with pytest.raises(MissingPrefix):
            await server.repair(placed(3))
        with pytest.raises(CorruptBatch):
            await server.repair(flipped(placed(0), -1))
        with pytest.raises(ProtocolError):
            await server.repair(placed(0, loglet=OTHER))
        await server.tell_ends((LOGLET, 1))
        with pytest.raises(Sealed):
            await server.repair(placed(1), committed=1)
        with pytest.raises(ProtocolError, match="ends at 1, not 2"):
            await server.tell_ends((LOGLET, 2))
        foreign = StorageId("b" * 32)
        message = RepairRequest(foreign, LOGLET, Offset(0), [placed(0)])
        with pytest.raises(WrongStorage):
            await server.transport.call(server.address, REPAIR, message, timeout_s=WAIT_S)
        ends = TellEndsRequest(foreign, [(LOGLET, Offset(1))])
        with pytest.raises(WrongStorage):
            await server.transport.call(server.address, TELL_ENDS, ends, timeout_s=WAIT_S)
        assert server.metric("refused_total", reason="MissingPrefix") == 1


async def test_a_conflict_in_a_repair_stops_the_server(serving: Serving) -> None:
    """Two whole batches for one offset: nobody can say which is the log's."""
    async with serving() as server:
        await server.store_all(request([placed(0)], opens=[opened()]))
        with pytest.raises((StoreFailed, Unreachable)):
            await server.repair(placed(0, text="other"))
        with pytest.raises(StoreFailed, match="two different batches"):
            await server.run


async def test_a_seal_says_what_is_damaged(serving: Serving, tmp_path: Path) -> None:
    """Field notes 5 and 24: damage above the committed tail counts as held, and is no copy."""
    batches = [
        placed(0, text="needle"),
        placed(1, 2, committed=1),
        *(placed(3, 2, committed=1, text="needle"), placed(5, committed=1, text="needle")),
        *(placed(6, committed=1), placed(7, 2, committed=1, text="needle")),
    ]
    async with serving() as server:
        await server.store_all(request(batches, opens=[opened()]))
        assert (await server.seal()).damaged == []
    damage_file(tmp_path, b"needle")
    async with serving() as server:
        answer = await server.seal()
        assert (answer.local_tail, answer.committed_tail) == (9, 1)
        assert answer.damaged == [(3, 6), (7, 9)]
        assert answer.last_timestamp_ms == 1_007, "its placement is whole"
        # A repair mends it in its place, and the next answer says so.
        await server.repair(batches[2], batches[4])
        assert (await server.seal()).damaged == [(5, 6), (7, 9)]
        await server.repair(batches[3], batches[5], batches[0])
        assert (await server.seal()).damaged == []
        found = await server.digest(verify=True)
        assert [(it.first, it.end) for it in found.held] == [(0, 9)]
        assert not found.damaged
    with OfflineStore(tmp_path) as store:
        report = store.report()
    assert (report.problems, report.loglets[0].damaged_batches) == ([], 0)


@pytest.mark.parametrize("at", [4, PLACEMENT_BYTES + 8], ids=["placement", "batch"])
async def test_a_damaged_last_batch_keeps_its_place(
    serving: Serving, tmp_path: Path, at: int
) -> None:
    """Field note 5: it counts in the local tail and for the prefix rule, in another life too."""
    last = placed(2, 3, record_bytes=50, text="last")
    async with serving() as server:
        await server.store_all(request([placed(0, 2), last], opens=[opened()]))
    damage_file(tmp_path, last[at : at + 30])
    async with serving() as server:
        responses = await server.store_all(request([last]), request([placed(5)]))
        assert [type(it.error) for response in responses for it in response.refused] == [
            CorruptBatch
        ]
        assert [(it.first, it.end) for response in responses for it in response.stored] == [(5, 6)]
        answer = await server.seal()
        assert (answer.local_tail, answer.damaged) == (6, [(2, 5)])
    async with serving() as server:
        await server.repair(last)
        assert (await server.seal()).damaged == []


async def test_ends_are_kept_and_listed(serving: Serving) -> None:
    """What was told is there in another life, and is no committed tail."""
    async with serving() as server:
        await server.store_all(request([placed(0, 2)], opens=[opened()]))
        (before,) = await server.list_loglets()
        assert not before.HasField("told_end")
        assert await server.tell_ends((LOGLET, 2), (OTHER, 7)) == TellEndsResponse()
    async with serving() as server:
        (state,) = await server.list_loglets()
        assert (state.told_end, state.committed_tail, state.sealed) == (2, 0, False)
        assert (await server.seal()).committed_tail == 0


async def test_a_repair_waits_for_the_durable_seal(tmp_path: Path) -> None:
    """Field note 12: a repair that comes while the seal is being written is answered after it."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store) as server:
        store.gate.clear()
        sealing = asyncio.create_task(server.seal())
        await until(lambda: len(store.groups) == 1)
        repairing = asyncio.create_task(server.repair(placed(0)))
        done, _ = await asyncio.wait([sealing, repairing], timeout=0.05)
        assert not done
        store.gate.set()
        assert (await sealing).local_tail == 0
        assert await repairing == RepairResponse()
        assert [len(group) for group in store.groups] == [1, 1]


async def test_nothing_is_answered_before_the_commit(tmp_path: Path) -> None:
    """Field note 25: repairs and ends are answered when they are on disk, and seals with them."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store) as server:
        await server.seal()
        store.gate.clear()
        repairing = asyncio.create_task(server.repair(placed(0)))
        await until(lambda: len(store.groups) == 2)
        telling = asyncio.create_task(server.tell_ends((LOGLET, 1)))
        looking = asyncio.create_task(server.digest())
        done, _ = await asyncio.wait([repairing, telling, looking], timeout=0.05)
        assert not done
        store.gate.set()
        await repairing
        await telling
        assert [(it.first, it.end) for it in (await looking).held] == [(0, 1)]


async def test_a_commit_without_room_keeps_ends_and_refuses_repairs(tmp_path: Path) -> None:
    """Field notes 11 and 26: the group comes again without its batches."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store) as server:
        await server.seal()
        store.gate.clear()
        blocked = asyncio.create_task(server.seal(OTHER))
        await until(lambda: len(store.groups) == 2)
        repairing = asyncio.create_task(server.repair(placed(0)))
        telling = asyncio.create_task(server.tell_ends((LOGLET, 1)))
        await until(lambda: server.server.status().queue_bytes > len(placed(0)) + 512)
        store.failures[3] = StoreReadOnly("no space left on device")
        store.gate.set()
        await blocked
        with pytest.raises(StoreReadOnly):
            await repairing
        await telling
        assert [type(it) for it in store.groups[3]] == [PutLoglet]
        (state, _) = await server.list_loglets()
        assert (state.local_tail, state.told_end) == (0, 1)
        assert await server.repair(placed(0)) == RepairResponse()


@pytest.mark.slow
async def test_repairs_that_wait_are_bounded(tmp_path: Path) -> None:
    """Field note 28: so many bytes, then a typed refusal; a lone repair always fits."""
    store = GatedStore(open_store(tmp_path))
    config = LogServerConfig(queue_bytes_max=16 * MIB, commit_bytes_max=8 * MIB)
    async with serve(store, config, loopback=True) as server:
        await server.seal()
        store.gate.clear()
        batches = [placed(it, record_bytes=7 * MIB) for it in range(3)]
        first = asyncio.create_task(server.repair(batches[0]))
        await until(lambda: len(store.groups) == 2)
        second = asyncio.create_task(server.repair(batches[1]))
        await until(lambda: server.server.status().queue_bytes > 7 * MIB)
        with pytest.raises(Overloaded):
            await server.repair(batches[2])
        store.gate.set()
        await first
        await second
        await server.repair(batches[2])
        assert server.server._cache.size_bytes == 0, "what is repaired is old: not for the cache"


@pytest.mark.slow
async def test_a_full_store_can_be_sealed_repaired_and_ended(tmp_path: Path) -> None:
    """Field note 11: stores stop at the reserve, repairs at half of it, records use all of it."""
    config = LogServerConfig(store_bytes_max=4 * MIB, reserve_bytes=2 * MIB)
    store = open_store(tmp_path, config=config)
    async with serve(store, config) as server:
        await server.store_all(request(opens=[opened()]))
        held = 0
        while True:
            (response,) = await server.store_all(request([placed(held, record_bytes=100_000)]))
            if response.refused:
                break
            held += 1
        full = held
        assert (await server.seal()).local_tail == full
        with pytest.raises(StoreReadOnly):  # noqa: PT012 - the repair that finds it full raises
            while True:
                await server.repair(placed(held, record_bytes=100_000))
                held += 1
        assert 5 <= held - full <= 12
        assert store.space().used_bytes <= 3 * MIB
        await server.tell_ends((LOGLET, held))
        await server.seal(OTHER)
        (state, _) = await server.list_loglets()
        assert (state.local_tail, state.told_end) == (held, held)
