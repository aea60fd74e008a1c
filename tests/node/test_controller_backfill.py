"""Backfill over real log servers: what is filled, from where, and what is left alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.care_parts import Caretaker, Cluster, cluster_of, running, virtually
from prometheus_client import CollectorRegistry

from metadata.encoding import encode_log, log_key
from metadata.records import LogRecord, Replica, Segment
from node.controller.backfill import Backfill, Mended
from node.controller.metrics import ControllerMetrics
from node.controller.pace import Pace
from node.replica_door import ReplicaDoor
from sharedlog.errors import LogUnavailable
from sharedlog.ids import LogletId, Offset
from sharedlog.limits import MIB
from sharedlog.v1 import admin_pb2


def backfill_of(cluster: Cluster, *, bytes_per_s: int = 64 * MIB) -> Backfill:
    return Backfill(
        door=ReplicaDoor(view=cluster.view, transport=cluster.doors),
        pace=Pace(bytes_per_s, cluster.clock),
        metrics=ControllerMetrics(CollectorRegistry()),
    )


async def _closed_segment_is_filled() -> None:
    """Field note 31: a hole, a short replica and one that never heard of the loglet are filled up
    to the segment's end and not beyond, though a loser's records lie there."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 10), cluster.segment(1, 10)
        await cluster.put("n1", closed, (0, 12))
        await cluster.put("n2", closed, (0, 3), (7, 9))
        record = await cluster.put_log(closed, open_)
        mended = await backfill_of(cluster).mend(record, closed)
        assert mended.complete
        assert not mended.nobody
        assert cluster.held("n2", closed) == list(range(10))
        assert cluster.held("n3", closed) == list(range(10))
        assert cluster.held("n1", closed) == list(range(12))
        again = await backfill_of(cluster).mend(record, closed)
        assert again.complete
        assert again.copied_bytes == 0


async def _no_single_replica_has_all() -> None:
    """Each replica gets from the others what it lacks, wherever that lies."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 9), cluster.segment(1, 9)
        await cluster.put("n1", closed, (0, 3), (6, 9))
        await cluster.put("n2", closed, (0, 6))
        await cluster.put("n3", closed, (3, 9))
        record = await cluster.put_log(closed, open_)
        assert (await backfill_of(cluster).mend(record, closed)).complete
        for name in cluster.servers:
            assert cluster.held(name, closed) == list(range(9))


async def _open_segment_is_filled_below_the_tail() -> None:
    """Field note 32: below the committed tail that is known holes are filled; above it nothing is
    touched, nothing is sealed, and the sequencer goes on storing."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        segment = cluster.segment(0, 0)
        await cluster.put("n1", segment, (0, 10), committed=8)
        await cluster.put("n2", segment, (0, 2), (6, 10))
        await cluster.put("n3", segment, (0, 10))
        record = await cluster.put_log(segment)
        mended = await backfill_of(cluster).mend(record, segment)
        assert mended.complete
        assert mended.upto == 8
        assert cluster.held("n2", segment) == list(range(10))
        for name in cluster.servers:  # not sealed: the next store is taken
            await cluster.put(name, segment, (10, 11))


async def _a_replica_that_has_not_opened_is_left_alone() -> None:
    """An open segment's member that the sequencer has not reached yet is not made by backfill."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        segment = cluster.segment(0, 0)
        await cluster.put("n1", segment, (0, 4), committed=4)
        await cluster.put("n2", segment, (0, 4))
        record = await cluster.put_log(segment)
        mended = await backfill_of(cluster).mend(record, segment)
        assert not mended.complete
        assert mended.lacking == 4, "a copy of each record"
        assert cluster.held("n3", segment) == []
        await cluster.put("n3", segment, (0, 4))


async def _damage_is_repaired_from_a_peer() -> None:
    """Field note 24: a flipped bit is found by verification and overwritten by a sound copy."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 5), cluster.segment(1, 5)
        for name in cluster.servers:
            await cluster.put(name, closed, (0, 5))
        record = await cluster.put_log(closed, open_)
        await cluster.damage("n2", closed, 3)
        backfill = backfill_of(cluster)
        assert (await backfill.mend(record, closed)).copied_bytes == 0  # nothing is missing
        mended = await backfill.mend(record, closed, verify=True)
        assert mended.complete
        assert mended.copied_bytes > 0
        assert not cluster.servers["n2"].disk.damaged


async def _a_damaged_source_is_found_while_copying() -> None:
    """A source whose copy turns out to be damaged is passed over, and repaired itself."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 6), cluster.segment(1, 6)
        await cluster.put("n1", closed, (0, 6))
        await cluster.put("n2", closed, (0, 6))
        await cluster.put("n3", closed, (0, 1))
        record = await cluster.put_log(closed, open_)
        await cluster.damage("n1", closed, 5)
        await cluster.damage("n2", closed, 4)
        mended = await backfill_of(cluster).mend(record, closed)
        assert mended.complete
        assert cluster.held("n3", closed) == list(range(6))
        assert not any(cluster.servers[name].disk.damaged for name in ("n1", "n2"))


async def _what_nobody_has_is_said() -> None:
    """Damaged everywhere, or held nowhere: told as ranges, the rest is copied all the same; while
    a replica is away nothing is called lost for good."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 6), cluster.segment(1, 6)
        await cluster.put("n1", closed, (0, 6))
        await cluster.put("n2", closed, (0, 2))
        await cluster.put("n3", closed, (0, 6))
        record = await cluster.put_log(closed, open_)
        await cluster.damage("n1", closed, 4)
        await cluster.damage("n3", closed, 4)
        mended = await backfill_of(cluster).mend(record, closed, verify=True)
        assert mended.nobody == ((4, 5),)
        assert not mended.complete
        assert not mended.away
        assert cluster.held("n2", closed) == [0, 1, 2, 3, 5]
        await cluster.stop("n2")
        mended = await backfill_of(cluster).mend(record, closed, verify=True)
        assert mended.away == ("n2",)


async def _the_rate_is_kept() -> None:
    """A hundred KiB at ten KiB a second take about ten seconds."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 1_000), cluster.segment(1, 1_000)
        await cluster.put("n1", closed, (0, 1_000))
        await cluster.put("n2", closed, (0, 1_000))
        record = await cluster.put_log(closed, open_)
        begun_s = cluster.clock.monotonic_s()
        mended = await backfill_of(cluster, bytes_per_s=10_000).mend(record, closed)
        spent_s = cluster.clock.monotonic_s() - begun_s
        assert mended.complete
        assert mended.copied_bytes / 10_000 - 1.5 < spent_s < mended.copied_bytes / 10_000 + 1


async def _readers_of_a_late_replica_are_told_the_end() -> None:
    """A server that was away when the segment ended learns the end when it is filled."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 4), cluster.segment(1, 4)
        for name in cluster.servers:
            await cluster.put(name, closed, (0, 4))
        record = await cluster.put_log(closed, open_)
        await backfill_of(cluster).mend(record, closed)
        door = ReplicaDoor(view=cluster.view, transport=cluster.doors)
        for replica in closed.nodeset:
            status = await door.status(replica, LogletId(record.log_id, 0))
            assert status is not None
            assert status.told_end == 4


async def _the_controller_backfills_by_itself() -> None:
    """A segment that closes with a replica away is filled when that is back, by whoever is the
    controller; and a log that is complete is not asked about again."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 6), cluster.segment(1, 6)
        await cluster.put("n1", closed, (0, 6))
        await cluster.put("n2", closed, (0, 6))
        await cluster.stop("n3")
        await cluster.put_log(closed, open_)
        caretaker = Caretaker(cluster, "n1", backfill_every_s=1_000)
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await cluster.clock.sleep(4)
            await cluster.start("n3")
            await cluster.until(lambda: cluster.held("n3", closed) == list(range(6)))
            await cluster.clock.sleep(3)
            cluster.doors.calls.clear()
            await cluster.clock.sleep(20)
            assert {method for method, _ in cluster.doors.calls} == {"Ping"}


async def _a_target_with_damage_from_an_earlier_try_is_filled() -> None:
    """A new store has part of the segment from a try before, a batch of it damaged: that is found
    when it is verified, and copied in another round. No end is told before the chain says it."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8)
        for name in ("n1", "n2", "n3"):
            await cluster.put(name, closed, (0, 8))
        await cluster.put("n4", closed, (0, 5))
        record = await cluster.put_log(closed, open_)
        await cluster.damage("n4", closed, 3)
        copied = await backfill_of(cluster).copy_to(record, closed, cluster.replica("n4"))
        assert copied.complete
        assert not cluster.servers["n4"].disk.damaged
        assert cluster.held("n4", closed) == list(range(8))
        door = ReplicaDoor(view=cluster.view, transport=cluster.doors)
        status = await door.status(cluster.replica("n4"), record.loglet(closed))
        assert status is not None
        assert status.sealed
        assert not status.HasField("told_end")


async def _a_loss_that_was_not_accepted_after_all_tells_no_end() -> None:
    """Accepting a loss copies to new servers before the chain is changed. When somebody else is
    faster with that, none of them was told an end that the chain never had."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        segment = cluster.segment(0, 0)
        await cluster.put("n1", segment, (0, 6), committed=4)
        record = await cluster.put_log(segment)
        for name in ("n2", "n3"):
            await cluster.wipe(name)
        caretaker = Caretaker(cluster, "n1")

        async def act() -> None:
            found = await cluster.store.get(log_key("orders"))
            assert found is not None
            ended = replace(record, chain=(replace(segment, end=Offset(5)), cluster.segment(1, 5)))
            cluster.metadata.swap(log_key("orders"), encode_log(ended), found.version)

        door = ReplicaDoor(view=cluster.view, transport=cluster.doors)
        async with running(caretaker.parts()):
            backfill = caretaker.care.losses._backfill
            copy_to, copied = backfill.copy_to, []

            async def copy_and_lose(record: LogRecord, of: Segment, target: Replica) -> Mended:
                done = await copy_to(record, of, target)
                copied.append(target)
                if len(copied) == 2:
                    await act()
                return done

            backfill.copy_to = copy_and_lose  # type: ignore[method-assign, assignment]
            request = admin_pb2.AcceptLossRequest(log="orders", segment_index=0, reason="t")
            with pytest.raises(LogUnavailable, match="changed meanwhile"):
                await caretaker.care.losses.accept_loss(request)
        assert len(copied) == 2
        for target in copied:
            status = await door.status(target, record.loglet(segment))
            assert status is not None
            assert not status.HasField("told_end")


test_a_target_with_damage = virtually(_a_target_with_damage_from_an_earlier_try_is_filled)
test_a_loss_that_was_not_accepted = virtually(_a_loss_that_was_not_accepted_after_all_tells_no_end)
test_closed_segment_is_filled = virtually(_closed_segment_is_filled)
test_no_single_replica_has_all = virtually(_no_single_replica_has_all)
test_open_segment_is_filled_below_the_tail = virtually(_open_segment_is_filled_below_the_tail)
test_an_unopened_replica_is_left_alone = virtually(_a_replica_that_has_not_opened_is_left_alone)
test_damage_is_repaired_from_a_peer = virtually(_damage_is_repaired_from_a_peer)
test_a_damaged_source_is_found = virtually(_a_damaged_source_is_found_while_copying)
test_what_nobody_has_is_said = virtually(_what_nobody_has_is_said)
test_the_rate_is_kept = virtually(_the_rate_is_kept)
test_readers_are_told_the_end = virtually(_readers_of_a_late_replica_are_told_the_end)
test_the_controller_backfills_by_itself = virtually(_the_controller_backfills_by_itself)
