"""What is trimmed is neither a hole nor damaged nor lost: backfill, scrub, check, digest, loss."""

from __future__ import annotations

from functools import partial
from typing import Any

from helpers.care_parts import LOG_ID, Caretaker, Cluster, cluster_of, running, virtually
from prometheus_client import CollectorRegistry

from metadata.records import Segment
from node.controller.backfill import Backfill
from node.controller.metrics import ControllerMetrics
from node.controller.pace import Pace
from node.replica_door import ReplicaDoor
from sharedlog.ids import LogletId, Offset
from sharedlog.limits import MIB
from sharedlog.v1 import admin_pb2


def door_of(cluster: Cluster) -> ReplicaDoor:
    return ReplicaDoor(view=cluster.view, transport=cluster.doors)


def backfill_of(cluster: Cluster) -> Backfill:
    return Backfill(
        door=door_of(cluster),
        pace=Pace(64 * MIB, cluster.clock),
        metrics=ControllerMetrics(CollectorRegistry()),
    )


async def trim(cluster: Cluster, segment: Segment, start: int, *names: str) -> None:
    """Trim these servers, and wait until it is deleted there."""
    door, loglet = door_of(cluster), LogletId(LOG_ID, segment.index)
    for name in names:
        replica = cluster.replica(name)
        await door.raise_tail(replica, loglet, Offset(start))
        status = await door.trim(replica, loglet, Offset(start))
        assert status is not None
        assert status.local_start == start
        await cluster.until(partial(_is_swept, cluster, segment, start, name))


def _is_swept(cluster: Cluster, segment: Segment, start: int, name: str) -> bool:
    return min(cluster.held(name, segment), default=start) >= start


async def local_start(cluster: Cluster, segment: Segment, name: str) -> int | None:
    status = await door_of(cluster).status(cluster.replica(name), LogletId(LOG_ID, segment.index))
    return None if status is None else status.local_start


class Stream:
    """The server's side of a stream: one request, and what is sent."""

    def __init__(self, request: Any) -> None:
        self._request = request
        self.sent: list[Any] = []

    async def receive(self) -> Any:
        request, self._request = self._request, None
        return request

    async def send(self, message: Any) -> None:
        self.sent.append(message)


async def _what_one_has_trimmed_is_wanted_of_nobody() -> None:
    """One has trimmed more than another, one was away and lacks most, one never heard of it.

    What lies above the highest local start is filled, nothing below; they all have that start then.
    """
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed = cluster.segment(0, 0, 20, nodes=("n1", "n2", "n3", "n4"))
        open_ = cluster.segment(1, 20)
        await cluster.put("n1", closed, (0, 20))
        await cluster.put("n2", closed, (0, 20))
        await cluster.put("n3", closed, (0, 4))
        record = await cluster.put_log(closed, open_)
        await trim(cluster, closed, 12, "n1")
        await trim(cluster, closed, 6, "n2")
        mended = await backfill_of(cluster).mend(record, closed)
        assert mended.complete
        assert not mended.nobody
        assert [await local_start(cluster, closed, it) for it in cluster.servers] == [12] * 4
        await cluster.until(
            lambda: all(cluster.held(it, closed) == list(range(12, 20)) for it in cluster.servers)
        )
        again = await backfill_of(cluster).mend(record, closed, verify=True)
        assert again.complete
        assert again.copied_bytes == 0


async def _a_segment_that_is_trimmed_whole_is_complete() -> None:
    """Nothing is copied; one that never heard of it is not made to."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 9), cluster.segment(1, 9)
        await cluster.put("n1", closed, (0, 9))
        await cluster.put("n2", closed, (0, 3))
        record = await cluster.put_log(closed, open_)
        await trim(cluster, closed, 9, "n1")
        mended = await backfill_of(cluster).mend(record, closed)
        assert mended.complete
        assert mended.copied_bytes == 0
        assert await local_start(cluster, closed, "n2") == 9
        assert await local_start(cluster, closed, "n3") is None


async def _an_open_segment_is_filled_from_the_local_start_on() -> None:
    """The sequencer goes on everywhere."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        segment = cluster.segment(0, 0)
        await cluster.put("n1", segment, (0, 10), committed=9)
        await cluster.put("n2", segment, (0, 2), (7, 10))
        await cluster.put("n3", segment, (0, 10))
        record = await cluster.put_log(segment)
        await trim(cluster, segment, 5, "n1")
        assert (await backfill_of(cluster).mend(record, segment)).complete
        await cluster.until(lambda: cluster.held("n2", segment) == list(range(5, 10)))
        for name in cluster.servers:
            await cluster.put(name, segment, (10, 11))


async def _a_new_store_gets_what_is_left() -> None:
    """Re-replication: created sealed, its local start is that of the others, and it is complete."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 20), cluster.segment(1, 20)
        for name in ("n1", "n2", "n3"):
            await cluster.put(name, closed, (0, 20))
        record = await cluster.put_log(closed, open_)
        await trim(cluster, closed, 15, "n1", "n2", "n3")
        copied = await backfill_of(cluster).copy_to(record, closed, cluster.replica("n4"))
        assert copied.complete
        assert cluster.held("n4", closed) == list(range(15, 20))
        assert await local_start(cluster, closed, "n4") == 15
        await trim(cluster, closed, 20, "n2")
        await cluster.wipe("n4")
        copied = await backfill_of(cluster).copy_to(record, closed, cluster.replica("n4"))
        assert copied.complete
        assert await local_start(cluster, closed, "n4") == 20
        assert cluster.held("n4", closed) == []


async def _check_and_digest_do_not_miss_it() -> None:
    """`log check` finds nothing, `log digest` shows where each one begins, and damage above it."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        for name in cluster.servers:
            await cluster.put(name, closed, (0, 8))
            await cluster.put(name, open_, (8, 12), committed=12)
        await cluster.put_log(closed, open_)
        await trim(cluster, closed, 8, "n1")
        await trim(cluster, closed, 5, "n2")
        await trim(cluster, open_, 9, "n3")
        integrity = Caretaker(cluster, "n1").care.integrity
        checked = Stream(admin_pb2.CheckLogRequest(log="orders"))
        await integrity.check_log(checked)
        assert [it for message in checked.sent for it in message.findings] == []
        assert checked.sent[-1].done == checked.sent[-1].total
        digests = Stream(admin_pb2.DigestLogRequest(log="orders"))
        await integrity.digest_log(digests)
        first, second = digests.sent
        assert list(first.ranges) == []
        assert [it.status.local_start for it in first.replicas] == [8, 5, 0]
        assert [(it.first, it.end, it.under_replicated) for it in second.ranges] == [(9, 12, False)]
        await cluster.damage("n1", open_, 10)
        checked = Stream(admin_pb2.CheckLogRequest(log="orders"))
        await integrity.check_log(checked)
        found = [it for message in checked.sent for it in message.findings]
        assert [(it.kind, it.first, it.node_id) for it in found] == [
            (admin_pb2.CheckFinding.KIND_DAMAGED, 10, "n1")
        ]


async def _scrub_reads_what_is_kept() -> None:
    """Damage that was trimmed is gone; what lies above it is mended."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        for name in cluster.servers:
            await cluster.put(name, closed, (0, 8))
        await cluster.put_log(closed, open_)
        for offset in (2, 6):
            await cluster.damage("n1", closed, offset)
        await trim(cluster, closed, 4, *cluster.servers)
        scrub = Caretaker(cluster, "n1", scrub_every_s=60).care.scrub
        assert scrub is not None
        assert {first for _, first in cluster.servers["n1"].disk.damaged} == {6}
        async with running([("scrub", scrub.run())]):
            await cluster.until(lambda: not cluster.servers["n1"].disk.damaged)
        assert cluster.held("n1", closed) == [4, 5, 6, 7]


test_what_one_has_trimmed = virtually(_what_one_has_trimmed_is_wanted_of_nobody)
test_a_segment_that_is_trimmed_whole = virtually(_a_segment_that_is_trimmed_whole_is_complete)
test_an_open_segment = virtually(_an_open_segment_is_filled_from_the_local_start_on)
test_a_new_store = virtually(_a_new_store_gets_what_is_left)
test_check_and_digest = virtually(_check_and_digest_do_not_miss_it)
test_scrub = virtually(_scrub_reads_what_is_kept)
