"""A log server that dies while it deletes what was trimmed goes on where it was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.gated_store import GatedStore
from helpers.log_server_process import start
from helpers.log_servers import LOGLET, OTHER, WAIT_S, open_store, opened, placed, request, serve

from loglet.config import LogServerConfig
from loglet.inspect import OfflineStore
from loglet.store import DropBatches, LogStore, Write
from loglet.wire import STORE
from loglet.wire import loglet_to_proto as wire
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.methods import RAISE_COMMITTED_TAIL, TRIM
from sharedlog.v1 import log_server_pb2

QUICK = LogServerConfig(reserve_bytes=0, sweep_wait_s=0.001)
BATCHES = 1_200


class CopiedStore(GatedStore):
    """A store of which a copy is made after each commit: what a crash there leaves behind.

    LMDB has synced all of it by then; a commit that a crash meets in its middle is not there.
    """

    def __init__(self, directory: Path, copies: Path) -> None:
        super().__init__(open_store(directory))
        self.directory = directory
        self.copies = copies

    async def commit(self, writes: Sequence[Write]) -> None:
        await super().commit(writes)
        shutil.copytree(self.directory, self.copies / f"{len(self.groups):03}")


async def test_each_chunk_leaves_a_store_that_goes_on(tmp_path: Path) -> None:
    """Field notes 45 and 46: at every point the local start is there, and so is all above it.

    Deletion takes up where it was, other loglets are not touched, and nothing is left in the end.
    """
    store = CopiedStore(tmp_path / "store", tmp_path)
    async with serve(store, QUICK, loopback=True) as server:
        batches = [placed(2 * it, 2, committed=2 * it) for it in range(BATCHES)]
        await server.store_all(request(batches, opens=[opened()]))
        other = [placed(it, loglet=OTHER) for it in range(5)]
        await server.store_all(request(other, opens=[opened(OTHER)]))
        await server.raise_tail(2 * BATCHES)
        await server.trim((LOGLET, 2 * BATCHES - 3))
        while server.metric("trimmed_batches_total") < BATCHES - 2:
            await server.list_loglets()
    chunks = [it for group in store.groups for it in group if isinstance(it, DropBatches)]
    assert len(chunks) >= 4
    for number in range(len(store.groups) - len(chunks), len(store.groups) + 1):
        await check_crashed(tmp_path / f"{number:03}")


async def check_crashed(directory: Path) -> None:
    with OfflineStore(directory) as offline:
        report = offline.report()
        first = min(int(str(it["offset"])) for it in offline.records(LOGLET))
    assert report.problems == []
    one, two = report.loglets
    assert (one.local_start, one.local_tail, one.holes) == (2 * BATCHES - 3, 2 * BATCHES, [])
    assert first == 2 * BATCHES - 4, "the batch across the local start is whole"
    assert (two.local_start, two.batches) == (0, 5)
    async with serve(open_store(directory), QUICK, loopback=True) as server:
        page = await server.digest(verify=True)
        assert [(it.first, it.end) for it in page.held] == [(2 * BATCHES - 3, 2 * BATCHES)]
        while await on_disk(server.store, LOGLET) > 2:
            await server.list_loglets()
        assert await on_disk(server.store, OTHER) == 5
        more = placed(2 * BATCHES, 2, committed=2 * BATCHES)
        (answer,) = await server.store_all(request([more]))
        assert [it.end for it in answer.stored] == [2 * BATCHES + 2]


async def on_disk(store: LogStore, loglet: LogletId) -> int:
    return len(
        await store.scan(
            loglet, Offset(0), Offset(1 << 40), verify=False, max_batches=10_000, max_bytes=1
        )
    )


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("kill_after", [0, 2, 5])
async def test_a_kill_in_the_middle_of_it_loses_nothing(tmp_path: Path, kill_after: int) -> None:
    """Field note 25: an answered trim and every acknowledged store are there afterwards."""
    process, address = await start(tmp_path)
    transport = GrpcTransport()
    acknowledged = 0
    try:
        stream = transport.stream(address, STORE)
        await stream.send(request(opens=[opened()]))
        for first in range(0, 2_000, 100):
            await stream.send(request([placed(first + it, committed=first) for it in range(100)]))
        while acknowledged < 2_000:
            answer = await stream.receive()
            assert answer is not None
            acknowledged = max([acknowledged, *(it.end for it in answer.stored)])
        storage_id = request().storage_id
        tail = log_server_pb2.RaiseCommittedTailRequest(storage_id=storage_id)
        tail.committed.add(loglet=wire(LOGLET), tail=2_000)
        await transport.call(address, RAISE_COMMITTED_TAIL, tail, timeout_s=WAIT_S)
        trim = log_server_pb2.TrimRequest(storage_id=storage_id)
        trim.loglets.add(loglet=wire(LOGLET), local_start=1_990)
        await transport.call(address, TRIM, trim, timeout_s=WAIT_S)
        for turn in range(kill_after):
            await stream.send(request([placed(2_000 + turn, committed=2_000)]))
            answer = await stream.receive()
            assert answer is not None
            acknowledged = max(it.end for it in answer.stored)
        os.kill(process.pid, 9)
        await process.wait()
        stream.cancel()
    finally:
        await transport.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
    with OfflineStore(tmp_path) as offline:
        report = offline.report()
    (found,) = report.loglets
    assert (report.problems, found.local_start, found.holes) == ([], 1_990, [])
    assert found.local_tail >= acknowledged == 2_000 + kill_after
    async with serve(open_store(tmp_path), QUICK, loopback=True) as server:
        while await on_disk(server.store, LOGLET) > 10 + kill_after:
            await server.list_loglets()
        assert (await server.list_loglets())[0].local_start == 1_990
