"""Committed tails outlive their sequencer: found from the log servers' answers, and told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
from helpers.log_servers import CLOCK, Served, open_store, opened, placed, request, serve, until

from metadata.core import Load
from metadata.embedded import EmbeddedMetadataStore
from metadata.records import LogRecord, NodeRecord
from metadata.registry import create_log, register_node
from metadata.view import ClusterView
from node.orphans import OrphanTails, proven_tail
from node.peers import Peers
from sharedlog.ids import LogId, LogletId, NodeId, Offset, SequencerId
from sharedlog.rpc.grpc_client import GrpcTransport

NAMES = ("n1", "n2", "n3")
LOGLET = LogletId(LogId(7), 0)


def histories() -> Iterator[tuple[list[int], int]]:
    """Every way in which three replicas can hold prefixes of a few records, and a base."""
    for first, second, third, base in product(range(5), range(5), range(5), (0, 2)):
        yield [first, second, third], base


@pytest.mark.parametrize("write_quorum", [2, 3])
def test_a_proven_tail_lies_on_a_write_quorum_of_whoever_answers(write_quorum: int) -> None:
    """Whichever replicas answer, each offset below the tail is held by a write quorum of them; and
    with all answers nothing that a write quorum holds is left out."""
    for lengths, base in histories():
        tails = [base + length for length in lengths]
        for mask in range(8):
            answered = [tail for bit, tail in enumerate(tails) if mask >> bit & 1]
            tail = proven_tail(
                [(local, base) for local in answered], base=Offset(base), write_quorum=write_quorum
            )
            for offset in range(base, tail):
                assert sum(local > offset for local in answered) >= write_quorum
            if mask == 7:
                assert sum(local > tail for local in tails) < write_quorum


def test_a_known_committed_tail_counts_whoever_says_it() -> None:
    """One server's word is enough, also above what the others hold."""
    assert proven_tail([(3, 9)], base=Offset(0), write_quorum=2) == 9
    assert proven_tail([], base=Offset(4), write_quorum=2) == 4


class Cluster:
    """Three log servers on disk and real ports, a metadata store, and n1 in its second life."""

    def __init__(self, folder: Path, stack: AsyncExitStack, store: EmbeddedMetadataStore) -> None:
        self.folder = folder
        self.stack = stack
        self.store = store
        self.view = ClusterView(store, CLOCK)
        self.transport = GrpcTransport()
        self.servers: dict[str, Served] = {}
        self._lives: dict[str, AsyncExitStack] = {}

    async def start(self, name: str) -> NodeRecord:
        """Serve the node's store, and register that."""
        life = self._lives[name] = await self.stack.enter_async_context(AsyncExitStack())
        store = open_store(self.folder / name, node_id=name, storage_id=name * 16)
        self.servers[name] = await life.enter_async_context(serve(store))
        return await register_node(
            self.store,
            node_id=NodeId(name),
            storage_id=store.storage_id,
            address=self.servers[name].address,
            roles=("log-server", "sequencer"),
            known_cluster_id="",
            new_id=lambda: "c" * 32,
            now_ms=0,
        )

    async def stop(self, name: str) -> None:
        await self._lives[name].aclose()

    async def tails(self, *names: str) -> list[int]:
        """Committed tails that the servers know."""
        found = [await self.servers[name].list_loglets() for name in names or NAMES]
        return [status.committed_tail for (status,) in found]

    async def until_tails(self, *wanted: int) -> None:
        async with asyncio.timeout(10):
            while await self.tails() != list(wanted):
                await CLOCK.sleep(0.02)


@asynccontextmanager
async def cluster_of(
    tmp_path: Path, held: dict[str, int]
) -> AsyncIterator[tuple[Cluster, LogRecord]]:
    """n1 ordered a log and died; each server holds so many records and knows no tail."""
    store = EmbeddedMetadataStore(tmp_path / "metadata", CLOCK)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(store.close)
        cluster = Cluster(tmp_path, stack, store)
        stack.push_async_callback(cluster.transport.close)
        alive = [await cluster.start(name) for name in NAMES]
        record, _ = await create_log(
            store,
            name="orders",
            replicas=3,
            write_quorum=2,
            nonce="",
            alive=alive,
            load=Load(),
            log_id=LOGLET.log_id,
            now_ms=0,
            prefer=NodeId("n1"),
        )
        old = record.open_segment.sequencer
        for name, count in held.items():
            server = cluster.servers[name]
            batches = [placed(index) for index in range(count)]
            message = request(
                batches, opens=[opened()], sequencer=old, storage_id=server.storage_id
            )
            await server.store_all(message)
        yield cluster, record


@asynccontextmanager
async def looked_after(cluster: Cluster) -> AsyncIterator[None]:
    """n1's next life looks after what the last one left."""
    await cluster.stop("n1")
    own = await cluster.start("n1")
    orphans = OrphanTails(
        me=SequencerId(own.node_id, own.generation),
        view=cluster.view,
        peers=Peers(view=cluster.view, transport=cluster.transport),
        transport=cluster.transport,
        clock=CLOCK,
    )
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(cluster.view.run())]
        await cluster.view.wait_ready()
        await until(lambda: cluster.view.node(own.node_id) == own)
        running.append(tasks.create_task(orphans.run()))
        try:
            yield
        finally:
            for task in running:
                task.cancel()


async def test_acknowledged_records_become_readable_again(tmp_path: Path) -> None:
    """A write quorum holds seven of ten records: each server serves these, and none beyond."""
    held = {"n1": 10, "n2": 7, "n3": 4}
    async with cluster_of(tmp_path, held) as (cluster, _):
        assert await cluster.tails() == [0, 0, 0]
        async with looked_after(cluster):
            await cluster.until_tails(7, 7, 7)


async def test_nothing_is_proved_without_a_write_quorum(tmp_path: Path) -> None:
    """Two servers away: no tail is told; when one is back, what the two prove; then the whole."""
    async with cluster_of(tmp_path, {"n1": 10, "n2": 7, "n3": 4}) as (cluster, _):
        await cluster.stop("n2")
        await cluster.stop("n3")
        async with looked_after(cluster):
            await CLOCK.sleep(0.3)  # more than a round
            assert await cluster.tails("n1") == [0]
            await cluster.start("n3")
            async with asyncio.timeout(10):
                while await cluster.tails("n1", "n3") != [4, 4]:
                    await CLOCK.sleep(0.02)
            await cluster.start("n2")
            await cluster.until_tails(7, 7, 7)


async def test_a_server_that_starts_again_is_told_again(tmp_path: Path) -> None:
    """What it was told lived in its memory."""
    held = {"n1": 3, "n2": 3, "n3": 3}
    async with cluster_of(tmp_path, held) as (cluster, _), looked_after(cluster):
        await cluster.until_tails(3, 3, 3)
        await cluster.stop("n2")
        await cluster.start("n2")
        await cluster.until_tails(3, 3, 3)


async def test_a_log_with_a_living_sequencer_is_left_alone(tmp_path: Path) -> None:
    """Only what an earlier life of the node ordered is its orphan."""
    async with cluster_of(tmp_path, {"n1": 3, "n2": 3, "n3": 3}) as (cluster, record):
        own = record.open_segment.sequencer
        orphans = OrphanTails(
            me=own,
            view=cluster.view,
            peers=Peers(view=cluster.view, transport=cluster.transport),
            transport=cluster.transport,
            clock=CLOCK,
        )
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(cluster.view.run())]
            await cluster.view.wait_ready()
            running.append(tasks.create_task(orphans.run()))
            await CLOCK.sleep(0.2)
            assert await cluster.tails() == [0, 0, 0]
            for task in running:
                task.cancel()
