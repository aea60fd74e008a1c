"""`sharedlog metadata`: real stores, real nodes, and the command as users run it."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from helpers.command import Cli
from helpers.metadata_process import MetadataProcess
from helpers.processes import PATIENT
from helpers.s3_server import BUCKET, shared_s3

import sharedlog
from sharedlog.dev_cluster import DevCluster

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[MetadataProcess]:
    async with MetadataProcess(tmp_path / "store") as made:
        yield made


async def append(cluster: DevCluster, value: bytes) -> list[bytes]:
    """Append to the log, and read all of it."""
    async with sharedlog.connect(cluster.addresses) as client:
        log = client.log("orders")
        offset = await log.append(value)
        return [record.value async for record in log.read(start=0, end=offset + 1)]


async def test_a_cluster_moves_to_s3_and_on(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log goes on at the same offsets in each store; nodes that run are noticed."""
    server = shared_s3()
    s3 = f"s3://{BUCKET}/moves/{uuid.uuid4().hex}"
    settings = {"SHAREDLOG_METADATA_S3__ENDPOINT": server.url}
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    cli = Cli(environment | server.environ | settings)
    directory = tmp_path / "cluster"
    nodes = {"nodes": 1, "settings": PATIENT | settings}
    async with DevCluster(directory, **nodes) as cluster:  # type: ignore[arg-type]  # its arguments
        async with sharedlog.connect(cluster.addresses) as client:
            await client.create_log("orders", replicas=1)
        assert await append(cluster, b"0") == [b"0"]
        old = f"embedded://{cluster.metadata.address}"
        done = cli("metadata", "migrate", "--from", old, "--to", s3)
        assert done.code == 1
        assert "the cluster runs: node n1 answers at" in done.err

    async with MetadataProcess(directory / "metadata") as left:
        old = f"embedded://{left.address}"
        move = ("metadata", "migrate", "--from", old, "--to", s3)
        planned = cli.ok(*move, "--dry-run", "--json").json
        assert (planned["keys"], planned["begun"], planned["alive"]) == (2, False, [])
        moved = cli.ok(*move, "--json").json
        assert (moved["complete"], moved["copied"]) == (True, 2)
        assert not moved["clients_must_restart"]
        keys = [line["key"] for line in cli.ok("metadata", "dump", "--metadata", s3).json_lines]
        assert keys == ["cluster", "logs/orders", "nodes/n1"]

    async with DevCluster(directory, metadata_url=s3, **nodes) as cluster:  # type: ignore[arg-type]  # its arguments
        assert await append(cluster, b"1") == [b"0", b"1"]

    async with MetadataProcess(tmp_path / "fresh") as fresh:
        new = f"embedded://{fresh.address}"
        moved = cli.ok("metadata", "migrate", "--from", s3, "--to", new, "--json").json
        assert moved["clients_must_restart"], "an embedded store counts, and S3 goes by the clock"
        async with DevCluster(directory, metadata_url=new, **nodes) as cluster:  # type: ignore[arg-type]  # its arguments
            assert await append(cluster, b"2") == [b"0", b"1", b"2"]


async def test_a_value_is_mended(
    process: MetadataProcess, environment: dict[str, str], tmp_path: Path
) -> None:
    """Shown, checked, and swapped against the version that was looked at."""
    cli = Cli(environment | {"SHAREDLOG_METADATA": f"embedded://{process.address}"})
    node = {
        "node_id": "n1",
        "generation": 1,
        "storage_id": "s",
        "address": "h:1",
        "http_address": "",
        "location": "",
        "roles": ["log-server"],
    }
    put = ("metadata", "put", "nodes/n1", "--expect-version")
    first = cli.ok(*put, "0", "--yes", "--json", stdin=json.dumps(node).encode()).json["version"]
    changed = tmp_path / "n1.json"
    changed.write_text(json.dumps(node | {"location": "eu"}))
    shown = cli(*put, str(first), "--file", str(changed), stdin=b"n\n")
    assert '+  "location": "eu"' in shown.err
    assert shown.code == 130, "nobody said yes"
    found = cli.ok("metadata", "get", "nodes/n1", "--json").json
    assert found["version"] == first
    checksum, _, body = found["value"].partition(" ")
    assert (len(checksum), json.loads(body)) == (8, node)
    stale = cli(*put, str(first + 1), "--yes", stdin=json.dumps(node).encode())
    assert (stale.code, "expected version" in stale.err) == (3, True)


def test_what_can_not_be_is_said_in_a_line(alone: Cli) -> None:
    """Exit code 2, and nothing on stdout; some of it is found by the tool below."""
    for words, said in (
        (("dump",), "which metadata store: --metadata URL, or --config FILE"),
        (("put", "k", "--expect-version", "1"), "nobody can be asked: --yes, or --file"),
    ):
        done = alone("metadata", *words)
        assert (done.code, done.out, done.err.count("\n")) == (2, b"", 1)
        assert said in done.err
