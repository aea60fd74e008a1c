"""A log server that is killed in the middle of its work has what it acknowledged."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from helpers.log_server_process import start
from helpers.log_servers import LOGLET, OTHER, STORAGE, WAIT_S, open_store, opened, placed, request

from loglet.inspect import OfflineStore
from loglet.messages import SealRequest
from loglet.wire import SEAL, STORE
from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.ids import Offset
from sharedlog.rpc.grpc_client import GrpcTransport


async def store_until_gone(transport: GrpcTransport, address: str, kill_at: int, pid: int) -> int:
    """Pipeline stores, kill the process once `kill_at` is acknowledged; what was acknowledged."""
    stream = transport.stream(address, STORE)
    acknowledged = 0

    async def send() -> None:
        await stream.send(request(opens=[opened()]))
        for index in range(100_000):
            batch = placed(2 * index, 2, committed=0, record_bytes=5_000)
            await stream.send(request([batch]))

    sending = asyncio.create_task(send())
    try:
        while (response := await stream.receive()) is not None:
            acknowledged = max([acknowledged, *(it.end for it in response.stored)])
            if acknowledged >= kill_at:
                os.kill(pid, 9)
                kill_at = sys.maxsize
    except Unreachable:
        pass
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        stream.cancel()
    return acknowledged


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("kill_at", [1, 100, 1_000])
async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, kill_at: int) -> None:
    """Field note 25: every acknowledged offset and the seal are there, sound and without holes."""
    process, address = await start(tmp_path)
    transport = GrpcTransport()
    try:
        seal = SealRequest(STORAGE, OTHER, Offset(3))
        await transport.call(address, SEAL, seal, timeout_s=WAIT_S)
        acknowledged = await store_until_gone(transport, address, kill_at, process.pid)
        assert await process.wait() == -9
        assert acknowledged >= kill_at
        with pytest.raises(SharedLogError):
            await transport.call(address, SEAL, seal, timeout_s=1)
    finally:
        await transport.close()
        if process.returncode is None:
            process.kill()
            await process.wait()
    with OfflineStore(tmp_path) as offline:
        report = offline.report()
        rows = list(offline.records(LOGLET))
    assert report.problems == []
    stored, sealed = report.loglets
    assert (stored.holes, sealed.sealed) == ([], True)
    assert stored.held[0][0] == 0
    assert stored.held[0][1] == stored.local_tail >= acknowledged
    assert [row["offset"] for row in rows] == list(range(stored.local_tail))
    store = open_store(tmp_path)
    assert [it.local_tail for it in store.loglets()] == [stored.local_tail, 3]
    await store.close()
