"""Real processes, disks and faults: nothing acknowledged is lost, each failure is honest."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from helpers.workload import (
    Outcome,
    append_until,
    check_history,
    dump_store,
    inspect_store,
    read_all,
)

import sharedlog
from sharedlog import AppendIndefinite, Log
from sharedlog.batch import encode_records
from sharedlog.dev_cluster import DevCluster
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.methods import APPEND_SESSION
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.v1 import log_pb2

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

PAST_BYTES = 192 * 2**20
"""Goes past a replica that is paused."""


async def make_log(client: sharedlog.Cluster, name: str = "orders") -> tuple[Log, str, str]:
    """A 3/2 log; returns it, its loglet's printed id, and the node that orders it."""
    log = await client.create_log(name, replicas=3, write_quorum=2)
    description = await log.describe()
    segment = description.chain[-1]
    return log, f"{description.log_id:016x}.{segment.index}", segment.sequencer.node_id


def others(cluster: DevCluster, sequencer: str) -> list[str]:
    """The nodes that do not hold the sequencer."""
    return [node_id for node_id in cluster.nodes if node_id != sequencer]


def store_of(cluster: DevCluster, node_id: str) -> Path:
    return cluster.nodes[node_id].directory / "store"


def send(cluster: DevCluster, node_id: str, number: signal.Signals) -> None:
    pid = cluster.nodes[node_id].pid
    assert pid is not None
    os.kill(pid, number)


async def test_after_kill_9_of_every_node_a_write_quorum_holds_every_acknowledged_record(
    cluster: DevCluster,
) -> None:
    """Promise 1; field note 25: an ack comes after the fsync of a write quorum.

    Read offline from the stores: for each acknowledged offset at least two of three hold the value.
    """
    async with sharedlog.connect(cluster.address) as client:
        log, loglet, _ = await make_log(client)
        outcome, stop = Outcome(), asyncio.Event()
        writer = asyncio.create_task(
            append_until(log, stop, prefix=b"a", outcome=outcome, timeout_s=2.0)
        )
        await outcome.until_confirmed(1_000)  # the load is real
        for node_id in cluster.nodes:
            cluster.kill(node_id)
        stop.set()
        await writer
    stores = [dump_store(store_of(cluster, node_id), loglet) for node_id in cluster.nodes]
    for offset, value in outcome.acked.items():
        holders = sum(store.get(offset) == value for store in stores)
        assert holders >= 2, f"offset {offset} is on {holders} of 3 disks"
    for node_id in cluster.nodes:
        report = inspect_store(store_of(cluster, node_id))
        assert report["problem_count"] == 0, report["problems"]


async def test_a_restarted_cluster_serves_reads_and_takes_appends(
    cluster: DevCluster,
) -> None:
    """Each record acknowledged before the crash is read back; a new sequencer orders the log."""
    async with sharedlog.connect(cluster.address) as client:
        log, _, _ = await make_log(client)
        outcome, stop = Outcome(), asyncio.Event()
        writer = asyncio.create_task(
            append_until(log, stop, prefix=b"a", outcome=outcome, timeout_s=2.0)
        )
        await outcome.until_confirmed(500)
        for node_id in cluster.nodes:
            cluster.kill(node_id)
        stop.set()
        await writer
    for node_id in cluster.nodes:
        await cluster.restart(node_id)
    async with sharedlog.connect(cluster.address) as client:
        log = client.log("orders")
        values: dict[int, bytes] = {}
        async with asyncio.timeout(60):
            while len(values) < len(outcome.acked):
                values = await read_all(log)
        check_history(outcome, values)
        assert await log.append(b"late") == len(values)


async def test_a_replica_killed_and_started_again_is_not_noticed_by_the_writer(
    cluster: DevCluster,
) -> None:
    """DESIGN §4 point 6: the write quorum goes on; the replica resumes when it is back."""
    async with sharedlog.connect(cluster.address) as client:
        log, _, sequencer = await make_log(client)
        victim = others(cluster, sequencer)[0]
        stop = asyncio.Event()
        writer = asyncio.create_task(append_until(log, stop, prefix=b"a", timeout_s=30.0))
        await asyncio.sleep(0.5)
        cluster.kill(victim)
        await asyncio.sleep(0.5)
        await cluster.restart(victim)
        await asyncio.sleep(1.0)
        stop.set()
        outcome = await writer
        assert not outcome.indefinite
        assert not outcome.definite
        check_history(outcome, await read_all(log))
        # The other one may now be lost: the one that came back completes the write quorum.
        cluster.kill(others(cluster, sequencer)[1])
        await log.append(b"after", timeout_s=10.0)


async def test_a_paused_replica_neither_stops_the_log_nor_grows_its_memory(
    cluster: DevCluster,
) -> None:
    """Field notes 28, 29: commit waits for no more than the write quorum; bytes are bounded."""
    async with sharedlog.connect(cluster.address) as client:
        log, _, sequencer = await make_log(client)
        victim = others(cluster, sequencer)[0]
        send(cluster, victim, signal.SIGSTOP)
        try:
            outcome, stop = Outcome(), asyncio.Event()
            writer = asyncio.create_task(
                append_until(
                    log, stop, prefix=b"a", outcome=outcome, value_bytes=20_000, timeout_s=30.0
                )
            )
            # Were it kept for the paused replica, the node's memory would be beyond what it may be.
            await outcome.until_confirmed(PAST_BYTES // 20_000)
            stop.set()
            await writer
        finally:
            send(cluster, victim, signal.SIGCONT)
        assert not outcome.indefinite
        assert rss_anon_bytes(cluster, sequencer) < 250 * 2**20
        check_history(outcome, await read_all(log))


async def test_flipped_bits_in_stored_batches_are_served_by_another_replica(
    cluster: DevCluster,
) -> None:
    """Field notes 5 and 24: damage on two of three disks costs no record and changes none."""
    values = [b"needle-%d" % number for number in range(10)]
    async with sharedlog.connect(cluster.address) as client:
        log, _, sequencer = await make_log(client)
        for value in values:
            await log.append(value)
        damaged = 0
        for node_id in others(cluster, sequencer):
            cluster.kill(node_id)
            data = store_of(cluster, node_id) / "data.mdb"
            found = data.read_bytes()
            data.write_bytes(found.replace(b"needle-5", b"needle-4"))  # one bit
            damaged += b"needle-5" in found
            await cluster.restart(node_id)
        assert damaged >= 1, "a write quorum has the batch: at least one of these two"
        for _ in range(5):
            assert [record.value async for record in log.read(start=0)] == values


async def test_without_a_write_quorum_appends_wait_and_then_fail_as_indefinite(
    cluster: DevCluster,
) -> None:
    """Promise 5, DESIGN §4 point 7: "out of reach" proves nothing; service resumes by itself."""
    async with sharedlog.connect(cluster.address) as client:
        log, _, sequencer = await make_log(client)
        first = await log.append(b"before")
        for node_id in others(cluster, sequencer):
            cluster.kill(node_id)
        with pytest.raises(AppendIndefinite):
            await log.append(b"during", timeout_s=1.0)
        for node_id in others(cluster, sequencer):
            await cluster.restart(node_id)
        after = await log.append(b"after", timeout_s=10.0)
        values = await read_all(log)
        assert values[first] == b"before"
        assert values[after] == b"after"
        assert list(values) == list(range(len(values)))
        assert set(values.values()) <= {b"before", b"during", b"after"}


async def test_with_the_metadata_store_down_appends_and_reads_go_on(cluster: DevCluster) -> None:
    """Field note 52, promise 6: the metadata store is on neither path."""
    async with sharedlog.connect(cluster.address) as client:
        log, _, _ = await make_log(client)
        await log.append(b"one")
        cluster.kill("metadata")
        await log.append(b"two")
        assert list((await read_all(log)).values()) == [b"one", b"two"]
        with pytest.raises(sharedlog.SharedLogError):
            await asyncio.wait_for(client.create_log("more"), 20)
        await cluster.restart("metadata")
        await log.append(b"three")
        assert await log.tail() == 3


async def test_through_one_address_the_same_is_seen_as_straight_to_the_nodes(
    cluster: DevCluster,
) -> None:
    """Plain routing: every call goes through one node, which forwards it."""
    async with sharedlog.connect(cluster.address) as direct:
        log, _, sequencer = await make_log(direct)
        await log.append(b"direct")
    address = cluster.nodes[others(cluster, sequencer)[0]].address
    async with sharedlog.connect(address, routing="plain") as client:
        log = client.log("orders")
        async with log.appender() as appender:
            pending = [await appender.append(b"plain-%d" % number) for number in range(1_000)]
        assert [await append for append in pending] == list(range(1, 1_001))
        assert await log.tail() == 1_001
        values = await read_all(log)
        assert len(values) == 1_001
        assert values[1_000] == b"plain-999"


async def test_a_follower_sees_each_record_without_another_append(cluster: DevCluster) -> None:
    """Field notes 38, 39: the last record of an idle writer is pushed to its readers."""
    async with sharedlog.connect(cluster.address) as client:
        log, _, _ = await make_log(client)
        seen: asyncio.Queue[bytes] = asyncio.Queue(maxsize=10)

        async def follow() -> None:
            async for record in log.read(start=0, follow=True):
                await seen.put(record.value)

        follower = asyncio.create_task(follow())
        try:
            for number in range(5):
                await log.append(b"%d" % number)
                assert await asyncio.wait_for(seen.get(), 5) == b"%d" % number
        finally:
            follower.cancel()
            with pytest.raises(asyncio.CancelledError):
                await follower


async def test_a_client_that_reads_no_acks_holds_up_only_itself(cluster: DevCluster) -> None:
    """120 MB without reading an ack: the node's memory stays bounded, other clients go on.

    That a session is read no further beyond its bound is shown in tests/sequencer/test_session.py.
    """
    async with sharedlog.connect(cluster.address) as client:
        log, _, sequencer = await make_log(client)
        transport = GrpcTransport()

        async def one_more_append() -> None:
            assert rss_anon_bytes(cluster, sequencer) < 250 * 2**20
            await log.append(b"somebody else", timeout_s=10)

        stream = transport.stream(cluster.nodes[sequencer].address, APPEND_SESSION)
        batch = encode_records([(b"x" * 20_000, None, None)])
        try:
            await stream.send(SessionRequest(open=log_pb2.AppendSessionOpen(log="orders")))
            for number in range(6_000):
                async with asyncio.timeout(5):
                    await stream.send(SessionRequest(batch=batch))
                if number % 500 == 0:
                    await one_more_append()
        finally:
            stream.cancel()
            await transport.close()


def rss_anon_bytes(cluster: DevCluster, node_id: str) -> int:
    pid = cluster.nodes[node_id].pid
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssAnon")
