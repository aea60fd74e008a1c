"""Trims of a log server that runs: the call, what readers see, and how the room comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
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
    open_store,
    opened,
    placed,
    request,
    serve,
    until,
)

from loglet.config import LogServerConfig
from loglet.store import DropBatches, HeldBatch, PutBatch, PutLoglet
from sharedlog.batch import parse_placement
from sharedlog.errors import LogletNotOpen, Overloaded, StoreReadOnly, WrongStorage
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.methods import TRIM
from sharedlog.rpc.read_answer import TRIMMED
from sharedlog.v1 import log_server_pb2

Serving = Callable[[], AbstractAsyncContextManager[Served]]
QUICK = LogServerConfig(reserve_bytes=0, sweep_wait_s=0.001, heartbeat_s=0.05)
BATCHES = [placed(0, 3), placed(3, 2, committed=3), placed(5, 5, committed=5), placed(10)]


@pytest.fixture(params=["grpc", "loopback"])
def serving(tmp_path: Path, request: pytest.FixtureRequest) -> Serving:
    """A log server on the test's one store, anew each time."""
    return lambda: serve(open_store(tmp_path), QUICK, loopback=request.param == "loopback")


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    """One with [0, 11) of LOGLET, all of it known to be committed."""
    async with serve(open_store(tmp_path), QUICK, loopback=True) as server:
        await fill(server)
        yield server


async def fill(server: Served, *batches: bytes) -> None:
    await server.store_all(request(batches or BATCHES, opens=[opened()]))
    last = parse_placement((batches or BATCHES)[-1])
    await server.raise_tail(last.end)


async def on_disk(server: Served, loglet: LogletId = LOGLET) -> list[int]:
    """First offsets of what is there, trimmed or not."""
    found = await server.store.scan(
        loglet, Offset(0), Offset(1 << 40), verify=False, max_batches=10_000, max_bytes=1
    )
    return [it.first for it in found]


async def swept(server: Served, batches: int) -> None:
    """Wait until so many batches were deleted."""
    await until(lambda: server.metric("trimmed_batches_total") >= batches)
    assert server.metric("trimmed_batches_total") == batches


async def drain(
    server: Served, start: int, *, end: int | None = None
) -> tuple[list[int], list[tuple[int, int, int]]]:
    """First offsets and gaps of a read to the end."""
    stream = await server.read(start, end=end, no_wait=True)
    firsts: list[int] = []
    gaps: list[tuple[int, int, int]] = []
    async with asyncio.timeout(WAIT_S):
        while (message := await stream.receive()) is not None:
            firsts += [parse_placement(it).first for it in message.batches]
            if message.gap is not None:
                gaps.append((message.gap.reason, message.gap.first, message.gap.end))
    stream.cancel()
    return firsts, gaps


# The call.


async def test_a_trim_survives_a_restart(serving: Serving) -> None:
    """Field notes 44 and 46: the answer says how far it went, and so does another life."""
    async with serving() as server:
        await fill(server)
        (status,) = await server.trim((LOGLET, 4), (OTHER, 9))
        assert (status.local_start, status.local_tail, status.committed_tail) == (4, 11, 11)
        (status,) = await server.trim((LOGLET, 100))
        assert status.local_start == 11
        await swept(server, 4)
        assert await on_disk(server) == []
    async with serving() as server:
        (status,) = await server.list_loglets()
        assert (status.local_start, status.local_tail, status.committed_tail) == (11, 11, 11)
        assert (await server.seal()).last_timestamp_ms == 1_010


async def test_a_trim_is_for_one_store_and_is_bounded(serving: Serving) -> None:
    """Field note 20; and whoever asks too much at once is told so."""
    async with serving() as server:
        foreign = log_server_pb2.TrimRequest(storage_id="b" * 32)
        with pytest.raises(WrongStorage):
            await server.transport.call(server.address, TRIM, foreign, timeout_s=WAIT_S)
        assert await server.trim((LOGLET, 5)) == []
        with pytest.raises(LogletNotOpen):
            await server.digest()


async def test_trims_that_wait_are_bounded(tmp_path: Path) -> None:
    """As seals are."""
    store = GatedStore(open_store(tmp_path))
    config = LogServerConfig(reserve_bytes=0, pending_seals_max=1)
    async with serve(store, config, loopback=True) as server:
        await fill(server)
        store.gate.clear()
        first = asyncio.create_task(server.trim((LOGLET, 5)))
        await until(lambda: len(store.groups) == 2)
        with pytest.raises(Overloaded):
            await server.trim((LOGLET, 6))
        store.gate.set()
        assert (await first)[0].local_start == 5


async def test_a_trim_is_answered_once_it_is_on_disk(tmp_path: Path) -> None:
    """Field note 25. Nothing is deleted before that either."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store, QUICK, loopback=True) as server:
        await fill(server)
        store.gate.clear()
        trim = asyncio.create_task(server.trim((LOGLET, 5)))
        await until(lambda: len(store.groups) == 2)
        assert [type(it) for it in store.groups[1]] == [PutLoglet]
        assert not trim.done()
        assert await on_disk(server) == [0, 3, 5, 10]
        store.gate.set()
        await trim
        await swept(server, 2)
        assert [type(it) for it in store.groups[2]] == [DropBatches]


# Readers.


async def test_below_the_local_start_is_the_archive(served: Served) -> None:
    """Field note 45: a gap up to the local start, and from there the batch across it, whole."""
    await served.trim((LOGLET, 7))
    assert await drain(served, 0) == ([], [(TRIMMED, 0, 7)])
    assert await drain(served, 4, end=6) == ([], [(TRIMMED, 4, 6)])
    assert await drain(served, 6) == ([], [(TRIMMED, 6, 7)])
    assert await drain(served, 7) == ([5, 10], [])
    await swept(served, 2)
    assert await drain(served, 7) == ([5, 10], [])
    assert await drain(served, 0) == ([], [(TRIMMED, 0, 7)])


async def test_a_reader_that_lags_is_told_where_it_is(served: Served) -> None:
    """Field note 45: a stream whose place was trimmed meanwhile ends with the gap."""
    stream = await served.read(0, end=5)
    async with asyncio.timeout(WAIT_S):
        first = await stream.receive()
    assert first is not None
    assert len(first.batches) == 2
    stream.cancel()
    follower = await served.read(11)
    await served.trim((LOGLET, 11))
    await served.store_all(request([placed(11, 2, committed=11)]))
    await served.raise_tail(13)
    async with asyncio.timeout(WAIT_S):
        while not (message := await follower.receive()) or not message.batches:
            assert message is not None
            assert message.gap is None, "who follows at the tail notices nothing"
    assert [parse_placement(it).first for it in message.batches] == [11]
    follower.cancel()


class SlowReads(GatedStore):
    """A store whose reads wait at a gate of their own, before or after they look."""

    def __init__(self, directory: Path, *, after: bool) -> None:
        super().__init__(open_store(directory))
        self.after = after
        self.reading = asyncio.Event()
        self.read_gate = asyncio.Event()

    async def read(
        self, loglet: LogletId, start: Offset, end: Offset, *, max_bytes: int
    ) -> list[tuple[Offset, bytes]]:
        if not self.after:
            await self._wait()
        found = await super().read(loglet, start, end, max_bytes=max_bytes)
        if self.after:
            await self._wait()
        return found

    async def _wait(self) -> None:
        self.reading.set()
        await self.read_gate.wait()


@pytest.mark.parametrize("after", [False, True], ids=["before it looks", "after it looked"])
async def test_a_trim_in_the_middle_of_a_read_is_a_gap(tmp_path: Path, *, after: bool) -> None:
    """Field note 45: never a hole where batches were deleted, nor bytes of them."""
    store = SlowReads(tmp_path, after=after)
    config = LogServerConfig(reserve_bytes=0, sweep_wait_s=0.001, tail_cache_bytes=0)
    async with serve(store, config, loopback=True) as server:
        await fill(server)
        reader = asyncio.create_task(drain(server, 0))
        await store.reading.wait()
        await server.trim((LOGLET, 7))
        await swept(server, 2)
        store.read_gate.set()
        assert await reader == ([], [(TRIMMED, 0, 7)])
        assert await drain(server, 7) == ([5, 10], [])


async def test_the_tail_cache_forgets_what_was_trimmed(served: Served) -> None:
    """Field note 47: memory is not a way around the local start, and is given back."""
    assert served.server._cache.size_bytes == sum(map(len, BATCHES))
    await served.trim((LOGLET, 7))
    assert served.server._cache.size_bytes == sum(map(len, BATCHES[2:]))


async def test_a_moment_is_looked_for_from_the_local_start(served: Served) -> None:
    """Batches that wait for their deletion are nobody's neighbours."""
    await served.trim((LOGLET, 5))
    found = await served.find_time(1_004)
    assert (found.before, parse_placement(found.after).first) == (b"", 5)
    assert (found.visible, found.local_start) == (11, 5)


# Those who look at replicas.


async def test_a_digest_begins_at_the_local_start(served: Served) -> None:
    """A trimmed prefix is not listed, whether it is deleted already or not."""
    await served.trim((LOGLET, 7))
    for _ in range(2):
        page = await served.digest(verify=True)
        assert [(it.first, it.end) for it in page.held] == [(7, 11)]
        assert (list(page.batch_firsts), page.next, page.status.local_start) == ([5, 10], 11, 7)
        page = await served.digest(0, end=4, verify=True)
        assert (list(page.held), list(page.batch_firsts), page.next) == ([], [], 4)
        await swept(served, 2)


class TrimsWhileScanned(GatedStore):
    """A store that is trimmed each time that it is scanned."""

    server: Served

    async def scan(
        self,
        loglet: LogletId,
        start: Offset,
        end: Offset,
        *,
        verify: bool,
        max_batches: int,
        max_bytes: int,
    ) -> list[HeldBatch]:
        await self.server.trim((LOGLET, 5))
        await until(lambda: self.server.metric("trimmed_batches_total") == 2)
        return await super().scan(
            loglet, start, end, verify=verify, max_batches=max_batches, max_bytes=max_bytes
        )


async def test_a_trim_in_the_middle_of_a_digest_is_no_hole(tmp_path: Path) -> None:
    """The local start that is told is none from before the disk was read."""
    store = TrimsWhileScanned(open_store(tmp_path))
    async with serve(store, QUICK, loopback=True) as server:
        store.server = server
        await fill(server)
        page = await server.digest(verify=True)
        assert page.status.local_start == 5
        assert [(it.first, it.end) for it in page.held] == [(5, 11)]


async def test_damage_goes_with_the_prefix(tmp_path: Path) -> None:
    """Field note 24: what nobody needs any more is not mended; a batch across the start is."""
    batches = [placed(0, text="needle"), placed(1, 2), placed(3, 4, text="needle"), placed(7)]
    async with serve(open_store(tmp_path), QUICK) as server:
        await fill(server, *batches)
    damage_file(tmp_path, b"needle")
    async with serve(open_store(tmp_path), QUICK) as server:
        page = await server.digest(verify=True)
        assert [(it.first, it.end) for it in page.damaged] == [(0, 1), (3, 7)]
        await server.raise_tail(8)
        await server.trim((LOGLET, 5))
        page = await server.digest(verify=True)
        assert [(it.first, it.end) for it in page.damaged] == [(5, 7)]
        await server.seal()
        await server.repair(batches[2], committed=8)
        page = await server.digest(verify=True)
        assert list(page.damaged) == []
        await swept(server, 2)


# The room.


async def test_deletions_ride_with_stores(tmp_path: Path) -> None:
    """A commit that is made anyway takes a chunk along: no sync of its own, no store waits."""
    store = GatedStore(open_store(tmp_path))
    config = LogServerConfig(reserve_bytes=0, sweep_wait_s=3_600)
    async with serve(store, config, loopback=True) as server:
        await fill(server, *(placed(it) for it in range(1_000)))
        await server.trim((LOGLET, 990))
        stored = 1_000
        while server.metric("trimmed_batches_total") < 990:
            await until(lambda: server.server._sweep.is_ready)
            await server.store_all(request([placed(stored, committed=stored)]))
            stored += 1
        chunks = [it for group in store.groups for it in group if isinstance(it, DropBatches)]
        assert sum(it.batches for it in chunks) == 990
        rides = [it for it in store.groups if any(isinstance(w, DropBatches) for w in it)]
        assert all(isinstance(it[0], PutBatch) for it in rides)
        assert len(chunks) > 1
        assert await on_disk(server) == list(range(990, stored))


@pytest.mark.slow
async def test_a_deletion_without_room_is_tried_again(tmp_path: Path) -> None:
    """Field note 26: even the reserve may be gone for a while."""
    store = GatedStore(open_store(tmp_path))
    async with serve(store, QUICK, loopback=True) as server:
        await fill(server)
        store.failures = {3: StoreReadOnly("full")}
        await server.trim((LOGLET, 5))
        await swept(server, 2)
        assert len(store.groups) == 4
        assert await on_disk(server) == [5, 10]


async def test_a_full_store_gets_its_room_back(tmp_path: Path) -> None:
    """Field note 26: while stores are refused for want of room, what makes room goes on alone."""
    store = GatedStore(open_store(tmp_path))
    config = LogServerConfig(reserve_bytes=0, sweep_wait_s=3_600)
    async with serve(store, config, loopback=True) as server:
        await fill(server)
        await server.trim((LOGLET, 5))
        await until(lambda: server.server._sweep.is_ready)
        store.failures = {3: StoreReadOnly("full")}
        (answer,) = await server.store_all(request([placed(11)]))
        assert isinstance(answer.refused[0].error, StoreReadOnly)
        await swept(server, 2)
        assert [[type(it) for it in group] for group in store.groups[2:]] == [
            [PutBatch, DropBatches],
            [DropBatches],
        ]
        (answer,) = await server.store_all(request([placed(11)]))
        assert [it.end for it in answer.stored] == [12]


async def test_many_loglets_are_swept_in_turn(served: Served) -> None:
    """One large one does not hold the others up."""
    others = [LogletId(LOGLET.log_id, 1 + index) for index in range(20)]
    for loglet in others:
        batches = [placed(it, loglet=loglet) for it in range(3)]
        await served.store_all(request(batches, opens=[opened(loglet)]))
        await served.raise_tail(3, loglet=loglet)
    answers = await served.trim(*((it, 2) for it in others))
    assert [it.local_start for it in answers] == [2] * 20
    await swept(served, 40)
    assert await asyncio.gather(*(on_disk(served, it) for it in others)) == [[2]] * 20


async def test_what_a_life_left_is_deleted_in_the_next(tmp_path: Path) -> None:
    """A start looks at every loglet that was ever trimmed."""
    config = LogServerConfig(reserve_bytes=0, sweep_wait_s=3_600)
    async with serve(open_store(tmp_path), config, loopback=True) as server:
        await fill(server)
        await server.trim((LOGLET, 10))
        assert await on_disk(server) == [0, 3, 5, 10]
    async with serve(open_store(tmp_path), QUICK, loopback=True) as server:
        assert await drain(server, 0) == ([], [(TRIMMED, 0, 10)])
        await swept(server, 3)
        assert await on_disk(server) == [10]
