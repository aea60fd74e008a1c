"""Compression and reads of one key on a real cluster of three nodes: the command and the client."""

from __future__ import annotations

import asyncio
import json

import pytest
from helpers.command import Cli

import sharedlog
from sharedlog.batch import PLACEMENT_BYTES, decode_checked, parse_batch_header
from sharedlog.cluster import Routing
from sharedlog.codec import Compression
from sharedlog.dev_cluster import DevCluster
from sharedlog.ids import Offset

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

KEYS = 50
RECORDS = 1_000


def ndjson(count: int) -> bytes:
    """Records of which each fiftieth has the same key."""
    lines = [
        json.dumps({"key": f"k{index % KEYS}", "value": f"record {index} " * 20})
        for index in range(count)
    ]
    return "\n".join(lines).encode()


async def fill(cluster: DevCluster, name: str, compression: Compression) -> None:
    """Records in batches of ten with five keys, the same ones every tenth batch."""
    config = sharedlog.AppenderConfig(compression=compression, batch_records=10)
    async with sharedlog.connect(cluster.address, append_config=config) as connected:
        log = await connected.create_log(name)
        async with log.appender() as appender:
            for index in range(RECORDS):
                key = None if index % 10 >= 5 else b"k%d" % (index % KEYS)
                await appender.append(b"record %d " % index * 20, key)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_what_is_compressed_reads_like_anything_else(cli: Cli, log: str, compression: str) -> None:
    """`append --compression`; whoever reads it sees no difference."""
    sent = ndjson(300)
    cli.ok("append", log, "--format", "ndjson", "--compression", compression, stdin=sent)
    read = cli.ok("read", log, "--json").json_lines
    wanted = [json.loads(line) for line in sent.splitlines()]
    assert [(it["key"], it["value"]) for it in read] == [(it["key"], it["value"]) for it in wanted]


def test_read_and_tail_of_one_key(cli: Cli, log: str) -> None:
    """`--key` leaves the others out; `--limit` counts what is shown, `-n` what is looked at."""
    cli.ok("append", log, "--format", "ndjson", stdin=ndjson(300))
    show = ("--show", "offset", "--key")

    def offsets(*arguments: str) -> list[int]:
        lines = cli.ok(*arguments).text.splitlines()
        return [int(line.split("\t")[0]) for line in lines]

    assert offsets("read", log, *show, "k7") == list(range(7, 300, KEYS))
    assert offsets("read", log, *show, "k7", "--from", "8", "--limit", "2") == [57, 107]
    assert offsets("read", log, *show, "k7", "--to", "100") == [7, 57]
    assert offsets("tail", log, "-n", "100", *show, "k7") == [207, 257]
    assert offsets("read", log, *show, "nobody") == []


@pytest.mark.parametrize("compression", ["none", "zstd", "lz4"])
def test_a_key_is_read_from_the_batches_that_may_have_it(
    cluster: DevCluster, log: str, compression: Compression
) -> None:
    """Smart and plain, compressed or not: each record of the key, and a tenth of the batches."""
    name = f"{log}-keys"

    async def run() -> None:
        await fill(cluster, name, compression)
        for routing in _ROUTINGS:
            async with sharedlog.connect(cluster.address, routing=routing) as connected:
                found = connected.log(name)
                wanted = list(range(12, RECORDS, KEYS))
                assert [it.offset async for it in found.read(key=b"k12")] == wanted
                chunks = found._reads._reader().read(Offset(0), Offset(RECORDS), key=b"k12")
                covered, sent = 0, 0
                async for chunk in chunks:
                    for placed, placement in zip(chunk.batches, chunk.placements, strict=True):
                        codec = parse_batch_header(placed, PLACEMENT_BYTES).codec
                        assert (codec == 0) == (compression == "none")
                        assert len(decode_checked(placed, placement)) == placement.record_count
                        sent += placement.record_count
                    covered += sum(end - first for first, end in chunk.skipped)
                assert covered + sent == RECORDS
                assert RECORDS / 10 <= sent < RECORDS / 4

    asyncio.run(run())


_ROUTINGS: tuple[Routing, ...] = ("smart", "plain")
