"""`python -m metadata` as an operator meets it."""

from __future__ import annotations

import asyncio
import json
import signal
import uuid
from pathlib import Path

import pytest
from helpers.metadata_process import MetadataProcess, read_event, spawn

from metadata.remote import RemoteMetadataStore
from metadata.service import WATCH
from metadata.store import ABSENT
from sharedlog.clock import SystemClock
from sharedlog.errors import MetadataUnavailable
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.v1 import metadata_pb2

pytestmark = [pytest.mark.slow, pytest.mark.cluster]


async def fails(listen: str, directory: Path) -> tuple[int | None, str]:
    process = await spawn(listen, directory)
    async with asyncio.timeout(60):
        _, stderr = await process.communicate()
    return process.returncode, stderr.decode()


async def test_it_stops_cleanly_and_starts_again(tmp_path: Path) -> None:
    """SIGTERM ends it with status 0, and an open watch at once: the store itself says that it
    stops. One that held the server for the whole grace would be cut off without a word."""
    transport = GrpcTransport()
    async with MetadataProcess(tmp_path / "store") as process:
        store = RemoteMetadataStore(
            transport, process.address, SystemClock(), lambda: uuid.uuid4().hex
        )
        version = await store.put("k", b"v", expected=ABSENT)
        watch = transport.stream(process.address, WATCH)
        await watch.send(metadata_pb2.MetadataWatchRequest(prefix="other"))
        told = await watch.receive()
        assert told is not None
        assert told.snapshot_complete
        status, output = await process.terminate()
        assert status == 0
        with pytest.raises(MetadataUnavailable):
            await watch.receive()
        # The fields that a node's lines have: one reader for the logs of both.
        assert list(json.loads(output.splitlines()[0]))[:4] == ["time", "level", "event", "logger"]
        assert [json.loads(line)["event"] for line in output.splitlines()] == [
            "metadata.stopping",
            "metadata.stopped",
        ]
        await process.start()
        entry = await store.get("k")
        assert entry is not None
        assert entry.version == version
    await transport.close()


async def test_an_interrupt_ends_it_cleanly(tmp_path: Path) -> None:
    process = await spawn("127.0.0.1:0", tmp_path)
    await read_event(process, "metadata.ready")
    process.send_signal(signal.SIGINT)
    _, stderr = await process.communicate()
    assert process.returncode == 0
    assert b"Traceback" not in stderr


async def test_what_is_in_use_is_told_in_one_line(tmp_path: Path) -> None:
    """A port or a store that another process has: exit status 2, one line, no traceback."""
    taken = tmp_path / "a"
    async with MetadataProcess(taken) as process:
        status, output = await fails("127.0.0.1:0", taken)
        assert status == 2
        assert output == f"metadata: the metadata store in {taken} is in use by another process\n"
        status, output = await fails(process.address, tmp_path / "b")
        assert status == 2
        lines = [line for line in output.splitlines() if line.startswith("metadata: ")]
        assert len(lines) == 1
        assert process.address in lines[0]
        assert "Traceback" not in output


async def test_a_damaged_store_is_told_in_one_line(tmp_path: Path) -> None:
    """Field note 24: it does not start on damage; exit status 1."""
    transport = GrpcTransport()
    async with MetadataProcess(tmp_path) as process:
        store = RemoteMetadataStore(transport, process.address, SystemClock(), lambda: "n")
        await store.put("nodes/n1", b"the value of n1", expected=ABSENT)
    await transport.close()
    data = (tmp_path / "data.mdb").read_bytes()
    (tmp_path / "data.mdb").write_bytes(data.replace(b"the value of n1", b"THE value of n1"))
    status, output = await fails("127.0.0.1:0", tmp_path)
    assert status == 1
    assert output.startswith("metadata: damaged: nodes/n1: ")
    assert output.count("\n") == 1


@pytest.mark.parametrize("listen", ["4099", "host:", "host:x"])
async def test_a_bad_address_is_a_usage_error(tmp_path: Path, listen: str) -> None:
    status, output = await fails(listen, tmp_path / "store")
    assert status == 2
    assert "the form is HOST:PORT" in output
    assert not (tmp_path / "store").exists()
