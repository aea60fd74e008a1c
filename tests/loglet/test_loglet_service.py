"""The log server over real gRPC and a real disk."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.gated_store import GatedStore
from helpers.log_servers import (
    LOGLET,
    ME,
    OTHER,
    RIVAL,
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
from loglet.messages import (
    CommittedTail,
    ConfirmUnsealed,
    SealResponse,
    StoreRequest,
    StoreResponse,
)
from loglet.store import PutBatch
from loglet.wire import loglet_to_proto
from sharedlog.errors import (
    CorruptBatch,
    LogletNotOpen,
    Overloaded,
    Sealed,
    SharedLogError,
    StoreFailed,
    StoreReadOnly,
    Unreachable,
    WrongSequencer,
    WrongStorage,
)
from sharedlog.ids import LogletId, Offset, StorageId
from sharedlog.limits import MIB
from sharedlog.rpc.methods import RAISE_COMMITTED_TAIL
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1 import log_server_pb2


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """A log server with LOGLET open."""
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request(opens=[opened()]))
        yield server


@pytest.fixture
async def gated(tmp_path: Path) -> AsyncIterator[tuple[Served, GatedStore]]:
    """The same over a store with a gate."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store) as server:
        await server.store_all(request(opens=[opened()]))
        yield server, store


async def receive(stream: ClientStream[StoreRequest, StoreResponse]) -> StoreResponse:
    async with asyncio.timeout(WAIT_S):
        response = await stream.receive()
    assert response is not None
    return response


async def until_stored(
    stream: ClientStream[StoreRequest, StoreResponse], end: int
) -> list[SharedLogError]:
    """Receive until [.., end) is acknowledged or something is refused; the refusals."""
    while True:
        response = await receive(stream)
        if response.refused:
            return [it.error for it in response.refused]
        if any(it.end >= end for it in response.stored):
            return []


async def test_an_empty_request_is_answered_at_once(served: Served) -> None:
    """A greeting: its answer proves that the right store is there."""
    assert await served.store_all(request()) == [StoreResponse()]
    with pytest.raises(WrongStorage):
        await served.store_all(request(storage_id=StorageId("b" * 32)))


async def test_refusals_come_back_typed_and_spare_the_others(served: Served) -> None:
    """One log's trouble never blocks another."""
    responses = await served.store_all(
        request([placed(0, loglet=OTHER), placed(0), flipped(placed(1), -1)]),
        request([placed(1)], sequencer=RIVAL),
    )
    stored = [(it.loglet, it.first, it.end) for response in responses for it in response.stored]
    refused = [(it.loglet, type(it.error)) for response in responses for it in response.refused]
    assert stored == [(LOGLET, 0, 1)]
    assert refused == [(OTHER, LogletNotOpen), (LOGLET, CorruptBatch), (LOGLET, WrongSequencer)]
    assert served.metric("refused_total", reason="CorruptBatch") == 1


async def test_nothing_is_acknowledged_before_the_commit(
    gated: tuple[Served, GatedStore],
) -> None:
    """Field note 25: no answer leaves while the commit that holds its batch has not ended."""
    server, store = gated
    store.gate.clear()
    stream = server.stores()
    await stream.send(request([placed(0)]))
    waiting = asyncio.create_task(receive(stream))
    await until(lambda: len(store.groups) >= 2)
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    assert await store.inner.read(LOGLET, Offset(0), Offset(1), max_bytes=1) == []
    store.gate.set()
    assert [(it.first, it.end) for it in (await waiting).stored] == [(0, 1)]
    stream.cancel()


async def test_what_queued_meanwhile_is_one_commit(gated: tuple[Served, GatedStore]) -> None:
    """Group commit over all streams and loglets, in one transaction, answered together."""
    server, store = gated
    store.gate.clear()
    first, second = server.stores(), server.stores()
    await first.send(request([placed(0)]))
    async with asyncio.timeout(WAIT_S):
        await until(lambda: len(store.groups) >= 2)
        for index in range(1, 6):
            await first.send(request([placed(index)]))
        await second.send(request([placed(0, loglet=OTHER)], opens=[opened(OTHER)]))
        await until(lambda: server.server.status().queue_bytes >= 6 * len(placed(0)))
        sealing = asyncio.create_task(server.seal(OTHER))
        await until(lambda: server.server._pending_records > 0)
    store.gate.set()
    assert await until_stored(first, 6) == []
    assert await sealing == SealResponse(Offset(1), Offset(0), last_timestamp_ms=1_000)
    assert len(store.groups) == 3
    assert sum(isinstance(it, PutBatch) for it in store.groups[2]) == 6
    assert await until_stored(second, 1) == []
    first.cancel()
    second.cancel()


@pytest.mark.slow
async def test_a_full_queue_holds_the_sender(tmp_path: Path) -> None:
    """Field note 28: beyond its bound the queue takes nothing; flow control holds the sequencer."""
    store = GatedStore(open_store(tmp_path))
    config = LogServerConfig(queue_bytes_max=16 * MIB, commit_bytes_max=8 * MIB)
    async with serve(store, config) as server:
        await server.store_all(request(opens=[opened()]))
        store.gate.clear()
        stream = server.stores()
        batches = [placed(it, record_bytes=4 * MIB) for it in range(16)]

        async def send() -> None:
            for batch in batches:
                await stream.send(request([batch]))

        sending = asyncio.create_task(send())
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done
        assert server.server.status().queue_bytes <= 16 * MIB + len(batches[0]) + 1024
        store.gate.set()
        assert await until_stored(stream, 16) == []
        await sending
        stream.cancel()


async def test_a_seal_races_stores(served: Served) -> None:
    """Field notes 1, 2, 3: the seal's tail is what was acknowledged; all that follows is Sealed."""
    stream = served.stores()
    sent = 0
    sealing: asyncio.Task[SealResponse] | None = None
    acknowledged, errors = 0, list[SharedLogError]()
    for index in range(200):
        await stream.send(request([placed(index)]))
        sent += 1
        if index == 100:
            sealing = asyncio.create_task(served.seal())
    assert sealing is not None
    answer = await sealing
    await stream.end()
    while (response := await stream.receive()) is not None:
        acknowledged = max([acknowledged, *(it.end for it in response.stored)])
        errors += [it.error for it in response.refused]
    assert answer.local_tail == acknowledged
    assert all(isinstance(error, Sealed) for error in errors)
    assert len(errors) == sent - acknowledged
    assert await served.seal() == answer


async def test_confirms_say_whether_it_is_sealed(served: Served) -> None:
    """A find-tail round's question, before and after a seal."""
    ask = request()
    ask.confirms = [ConfirmUnsealed(LOGLET, 5)]
    (before,) = await served.store_all(ask)
    await served.seal()
    (after,) = await served.store_all(ask)
    assert [it.sealed for it in (*before.confirmed, *after.confirmed)] == [False, True]


async def test_a_committed_tail_alone_writes_nothing(gated: tuple[Served, GatedStore]) -> None:
    """A pushed tail costs no commit and no answer, and is told to who asks."""
    server, store = gated
    message = request()
    message.committed = [CommittedTail(LOGLET, Offset(5))]
    assert await server.store_all(message) == []
    assert len(store.groups) == 1
    (state,) = await server.list_loglets()
    assert (state.committed_tail, state.local_tail, state.sealed) == (5, 0, False)
    assert (state.opened_by.node_id, state.opened_by.generation) == (ME.node_id, ME.generation)


async def test_repeats_after_a_restart_are_compared_on_disk(tmp_path: Path) -> None:
    """A new stream repeats what was not acknowledged; what is on disk is acknowledged again."""
    batches = [placed(it, record_bytes=MIB) for it in range(12)]
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request(batches[:5], opens=[opened()]), request(batches[5:10]))
    async with serve(open_store(tmp_path)) as server:
        responses = await server.store_all(request(opens=[opened()]), request(batches))
        assert max(it.end for response in responses for it in response.stored) == 12
        assert not any(response.refused for response in responses)
        assert server.metric("stored_batches_total") == 2


async def test_two_batches_under_one_offset_stop_the_server(served: Served) -> None:
    """A sequencer that breaks the protocol is not answered: the server stops."""
    await served.store_all(request([placed(0)]))
    with pytest.raises((StoreFailed, Unreachable)):
        await served.store_all(request([placed(0, text="other")]))
    with pytest.raises(StoreFailed, match="two different batches"):
        await served.run
    # A stream that is refused while the caller still writes may look broken to it.
    with pytest.raises((StoreFailed, Unreachable)):
        await served.store_all(request())
    with pytest.raises(StoreFailed):
        await served.seal()


async def test_a_failed_sync_stops_the_server(gated: tuple[Served, GatedStore]) -> None:
    """Field note 23: after a failed commit nothing is tried again and nothing more is answered."""
    server, store = gated
    store.failures[2] = StoreFailed(f"sync: {errno.errorcode[errno.EIO]}")
    with pytest.raises(StoreFailed):
        await server.store_all(request([placed(0)]))
    with pytest.raises(StoreFailed):
        await server.run
    assert len(store.groups) == 2


async def test_a_commit_without_room_refuses_batches_and_keeps_seals(
    gated: tuple[Served, GatedStore],
) -> None:
    """Field notes 11 and 26: a disk that fills under a commit refuses its stores, not its seals."""
    server, store = gated
    store.gate.clear()
    blocked = server.stores()
    await blocked.send(request(opens=[opened(OTHER)]))
    async with asyncio.timeout(WAIT_S):
        await until(lambda: len(store.groups) >= 2)
        stream = server.stores()
        await stream.send(request([placed(0)]))
        await until(lambda: server.server.status().queue_bytes >= len(placed(0)))
        sealing = asyncio.create_task(server.seal(OTHER))
        await until(lambda: server.server._pending_records > 0)
        store.failures[3] = StoreReadOnly("no space left on device")
        store.gate.set()
        await receive(blocked)
        (error,) = await until_stored(stream, 1)
    assert isinstance(error, StoreReadOnly)
    assert await sealing == SealResponse(Offset(0), Offset(0))
    await stream.send(request([placed(0)]))
    assert await until_stored(stream, 1) == []
    stream.cancel()
    blocked.cancel()


async def test_a_full_store_refuses_stores_alone(tmp_path: Path) -> None:
    """Field note 26: stores are refused as read-only, reads and seals go on."""
    config = LogServerConfig(store_bytes_max=2 * MIB, reserve_bytes=MIB)
    async with serve(open_store(tmp_path, config=config), config) as server:
        await server.store_all(request(opens=[opened()]))
        stream = server.stores()
        held = 0
        while True:
            await stream.send(request([placed(held, record_bytes=100_000)]))
            errors = await until_stored(stream, held + 1)
            if errors:
                break
            held += 1
        assert [type(it) for it in errors] == [StoreReadOnly]
        assert 5 <= held < 20
        assert server.server.status().space.free_bytes < 110_000
        assert (await server.seal()).local_tail == held
        stream.cancel()


async def test_too_many_seals_are_refused(tmp_path: Path) -> None:
    """Everything that waits has a bound."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store, LogServerConfig(pending_seals_max=1)) as server:
        store.gate.clear()
        first = asyncio.create_task(server.seal())
        async with asyncio.timeout(WAIT_S):
            await until(lambda: bool(store.groups))
        with pytest.raises(Overloaded):
            await server.seal(OTHER)
        store.gate.set()
        assert await first == SealResponse(Offset(0), Offset(0))


async def test_stopping_finishes_the_running_commit(tmp_path: Path) -> None:
    """What is being written is written and answered; what still queued ends as unreachable."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store) as server:
        await server.store_all(request(opens=[opened()]))
        store.gate.clear()
        stream = server.stores()
        await stream.send(request([placed(0)]))
        async with asyncio.timeout(WAIT_S):
            await until(lambda: len(store.groups) >= 2)
            await stream.send(request([placed(1)]))
            await until(lambda: server.server.status().queue_bytes >= len(placed(1)))
        server.run.cancel()
        await asyncio.sleep(0)
        store.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await server.run
        assert await until_stored(stream, 1) == []
        with pytest.raises(Unreachable):
            await receive(stream)
        assert len(await store.read(LOGLET, Offset(0), Offset(9), max_bytes=MIB)) == 1


async def test_status_counts(served: Served) -> None:
    """What an operator sees at a glance."""
    await served.seal(OTHER, 3)
    status = served.server.status()
    assert (status.loglets, status.sealed, status.queue_bytes, status.open_reads) == (2, 1, 0, 0)
    assert not status.read_only
    assert status.space.used_bytes > 0
    assert served.metric("loglets") == 2
    assert served.metric("commit_seconds_count") == 2
    assert served.metric("seals_total") == 1


async def test_an_idle_server_says_how_much_room_it_has(tmp_path: Path) -> None:
    """From its start on, though nothing was ever stored; and as it was last once it has ended, when
    the store can't be asked any more."""
    async with serve(open_store(tmp_path)) as server:
        free, used = server.metric("store_free_bytes"), server.metric("store_used_bytes")
        assert free > 0
        assert used > 0
    assert server.metric("store_used_bytes") == used


async def test_a_damaged_repeat_is_refused(tmp_path: Path) -> None:
    """Field note 5: what is damaged on disk is never acknowledged as a copy."""
    async with serve(open_store(tmp_path)) as server:
        await server.store_all(request([placed(0), placed(1, text="needle")], opens=[opened()]))
    damage_file(tmp_path, b"needle")
    async with serve(open_store(tmp_path)) as server:
        (response,) = await server.store_all(
            request([placed(0), placed(1, text="needle"), placed(2)])
        )
        assert [(it.first, it.end) for it in response.stored] == [(0, 1)]
        assert [type(it.error) for it in response.refused] == [CorruptBatch]


async def test_a_listing_is_never_ahead_of_the_disk(gated: tuple[Served, GatedStore]) -> None:
    """What a listing names survives the process: others count on it to find what is committed."""
    server, store = gated
    store.gate.clear()
    stream = server.stores()
    await stream.send(request([placed(0, 5)]))
    await until(lambda: len(store.groups) == 2)
    listing = asyncio.ensure_future(server.list_loglets())
    done, _ = await asyncio.wait([listing], timeout=0.05)
    assert not done
    store.gate.set()
    (state,) = await listing
    assert state.local_tail == 5
    stream.cancel()


async def test_a_listing_forgets_what_had_no_room(gated: tuple[Served, GatedStore]) -> None:
    """A commit that failed for want of room wrote nothing, and a listing that waited says so."""
    server, store = gated
    store.failures[2] = StoreReadOnly("full")
    store.gate.clear()
    stream = server.stores()
    await stream.send(request([placed(0, 5)]))
    await until(lambda: len(store.groups) == 2)
    listing = asyncio.ensure_future(server.list_loglets())
    await asyncio.wait([listing], timeout=0.05)
    store.gate.set()
    (state,) = await listing
    assert state.local_tail == 0
    stream.cancel()


async def test_a_told_tail_is_served_at_once_and_never_lowered(served: Served) -> None:
    """RaiseCommittedTail: waiting readers go on; a lower tail, an unknown loglet change nothing."""
    await served.store_all(request([placed(0, 5), placed(5, 5)]))
    reader = await served.read(0)
    heartbeat = await reader.receive()
    assert heartbeat is not None
    assert not heartbeat.batches
    await tell(served, (LOGLET, 5), (OTHER, 9))
    async with asyncio.timeout(WAIT_S):
        answer = await reader.receive()
    assert answer is not None
    assert list(answer.batches) == [placed(0, 5)]
    reader.cancel()
    await tell(served, (LOGLET, 3))
    (state,) = await served.list_loglets()
    assert (state.committed_tail, state.local_tail) == (5, 10)


async def test_tails_are_told_to_the_store_that_is_meant(served: Served) -> None:
    """Another storage_id is refused."""
    with pytest.raises(WrongStorage):
        await tell(served, (LOGLET, 5), storage_id="b" * 32)


async def tell(served: Served, *tails: tuple[LogletId, int], storage_id: str | None = None) -> None:
    """RaiseCommittedTail."""
    message = log_server_pb2.RaiseCommittedTailRequest(
        storage_id=storage_id or served.storage_id,
        committed=[
            log_server_pb2.CommittedTail(loglet=loglet_to_proto(loglet), tail=tail)
            for loglet, tail in tails
        ],
    )
    await served.transport.call(served.address, RAISE_COMMITTED_TAIL, message, timeout_s=WAIT_S)
