"""Nodes and the object store die while a log is archived and trimmed: nothing acknowledged is lost.

The store is an S3 server behind a proxy of this test, which sees each request of a node: so a node
can be killed while it uploads an object, and when the manifest is swapped and the chain does not
say so yet. What follows from each of these states is DESIGN.md §9.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from helpers.full_strength import SOON, at_full_strength
from helpers.s3_proxy import Forward, S3Proxy, lose_answer, lose_request, passed_on
from helpers.s3_server import S3Server

import sharedlog
from sharedlog import Cluster, Log, Retention
from sharedlog.dev_cluster import DevCluster
from sharedlog.ids import Offset

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

BUCKET = "history"
LOCAL_BYTES = 200_000
LAST = b"the last"


@pytest.fixture
async def s3(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3Proxy]:
    """The way to an S3 server with an empty bucket."""
    with S3Server() as server:
        for name, value in server.environ.items():
            monkeypatch.setenv(name, value)
        server.make_bucket(BUCKET)
        async with S3Proxy(server.url) as proxy:
            yield proxy


@asynccontextmanager
async def nodes_with(s3: S3Proxy, folder: Path) -> AsyncIterator[DevCluster]:
    settings = {
        "SHAREDLOG_ARCHIVE__URL": f"s3://{BUCKET}/logs",
        "SHAREDLOG_ARCHIVE__ENDPOINT": s3.url,
        "SHAREDLOG_ARCHIVE__ATTEMPTS_MAX": "2",
        "SHAREDLOG_OFFLOAD__OBJECT_BYTES": str(1 << 16),
        "SHAREDLOG_OFFLOAD__OFFLOAD_AFTER_S": "0.3",
        "SHAREDLOG_OFFLOAD__RETENTION_EVERY_S": "0.5",
        **SOON,
    }
    async with DevCluster(folder, settings=settings) as nodes:
        yield nodes


@dataclass
class Writing:
    """Appends that go on until they are stopped; each value is written once."""

    log: Log
    acked: dict[Offset, bytes] = field(default_factory=dict)
    stopped: bool = False

    async def run(self, name: str) -> None:
        number = 0
        async with self.log.appender() as appender:
            while not self.stopped:
                values = [b"%s-%d " % (name.encode(), number + it) + b"x" * 400 for it in range(10)]
                number += len(values)
                waits = [(value, await appender.append(value)) for value in values]
                for value, ack in waits:
                    self.acked[await ack] = value
                await asyncio.sleep(0.03)


class Killer:
    """Kills the node that orders the log at a moment that the requests to the store tell."""

    def __init__(self, s3: S3Proxy, nodes: DevCluster, log: Log) -> None:
        self._s3 = s3
        self._nodes = nodes
        self._log = log

    async def kill_while(self, part: str, *, carried_out: bool) -> None:
        """At the next PUT of something with `part` in its name, before or after it is done."""
        victim = (await self._log.describe()).chain[-1].sequencer.node_id
        met = asyncio.Event()

        async def fault(request: web.BaseRequest, forward: Forward) -> web.StreamResponse:
            if met.is_set() or request.method != "PUT" or part not in request.raw_path:
                return await passed_on(request, forward)
            met.set()
            if carried_out:
                await forward()
            self._nodes.kill(victim)
            return await lose_request(request, forward)

        self._s3.always(fault)
        async with asyncio.timeout(60):
            await met.wait()
        self._s3.always(None)
        await self.again(victim)

    async def kill_when_trimmed(self) -> None:
        """Right after the log was trimmed further: log servers are being told."""
        before = await self._log.describe()
        async for _ in ticks(every_s=0.01):
            if (await self._log.describe()).trimmed > before.trimmed:
                break
        victim = before.chain[-1].sequencer.node_id
        self._nodes.kill(victim)
        await self.again(victim)

    async def again(self, victim: str) -> None:
        await asyncio.sleep(0.3)
        await self._nodes.restart(victim)


async def ticks(*, every_s: float = 0.1) -> AsyncIterator[None]:
    """Until there is nothing to wait for any more; an error if that takes too long."""
    async with asyncio.timeout(60):
        while True:
            yield
            await asyncio.sleep(every_s)


async def test_kills_and_an_outage_of_the_store_lose_and_reorder_nothing(
    s3: S3Proxy, tmp_path: Path
) -> None:
    """Every acknowledged record is read at its offset, once, from the archive and log servers."""
    async with (
        nodes_with(s3, tmp_path / "cluster") as nodes,
        sharedlog.connect(",".join(nodes.addresses)) as connected,
    ):
        log = await connected.create_log("orders", retention=Retention(local_bytes=LOCAL_BYTES))
        writing, killer = Writing(log), Killer(s3, nodes, log)
        seen: list[int] = []
        async with asyncio.TaskGroup() as tasks:
            writers = [tasks.create_task(writing.run(name)) for name in ("a", "b")]
            tasks.create_task(follow(log, writing, seen))
            await killer.kill_while(".slog", carried_out=False)
            await killer.kill_while("/manifest", carried_out=True)
            await killer.kill_when_trimmed()
            await away(s3, log)
            s3.next("PUT", lose_answer, lose_answer, lose_answer)
            await killer.kill_while("/manifest", carried_out=False)
            await trimmed_beyond(log, max(writing.acked))
            writing.stopped = True
            await asyncio.gather(*writers)
            writing.acked[await log.append(LAST)] = LAST
        await nothing_is_missing(connected, log, writing)
        assert seen == sorted(set(seen)), "a follower saw each record once, in order"
        assert set(writing.acked) <= set(seen)


async def follow(log: Log, writing: Writing, seen: list[int]) -> None:
    """From the start, through the archive and beside it, up to the last record."""
    async for record in log.read(0, follow=True):
        seen.append(record.offset)
        assert writing.acked.get(record.offset, record.value) == record.value
        if record.value == LAST:
            return


async def away(s3: S3Proxy, log: Log) -> None:
    """The store can't be reached for a while; appends go on, and nothing is trimmed unarchived."""
    s3.always(lose_request)
    await asyncio.sleep(2)
    described = await log.describe()
    assert described.trimmed <= described.archived_end
    s3.always(None)


async def trimmed_beyond(log: Log, offset: int) -> None:
    """Archive and trim go on by themselves."""
    async for _ in ticks():
        if (await log.describe()).trimmed > offset:
            return


async def nothing_is_missing(connected: Cluster, log: Log, writing: Writing) -> None:
    read = [it async for it in log.read(0)]
    offsets = [it.offset for it in read]
    assert offsets == sorted(set(offsets))
    found = {it.offset: it.value for it in read}
    lost = {at: value for at, value in writing.acked.items() if found.get(at) != value}
    assert not lost
    assert len(set(found.values())) == len(found), "something is in the log twice"
    described = await log.describe()
    assert 0 < described.trimmed <= described.archived_end
    await at_full_strength(connected, "orders")
    verified = [it async for it in connected.admin.verify_archive("orders", full=True)]
    assert not [finding for it in verified for finding in it.findings]
