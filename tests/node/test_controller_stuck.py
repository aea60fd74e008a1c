"""What must not keep the controller from its work: other work, stale news, half-done looks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers.care_parts import Caretaker, Cluster, cluster_of, running, virtually

from metadata import removal
from metadata.records import (
    STATE_DATA_LOSS,
    STATE_DRAINING,
    STATE_GONE,
    STATE_READ_WRITE,
    NodeRecord,
    Segment,
)
from metadata.registry import set_node_state
from metadata.store import MetadataStore
from node.controller import backfill
from node.replica_door import ReplicaDoor
from sharedlog.ids import NodeId, StorageId


async def filled(cluster: Cluster, segment: Segment, end: int, *, log_id: int = 7) -> None:
    for replica in segment.nodeset:
        await cluster.put(replica.node_id, segment, (segment.base, end), log_id=log_id)


def members(segment: Segment) -> list[str]:
    return [replica.node_id for replica in segment.nodeset]


async def _what_is_lost_does_not_wait_for_what_is_drained() -> None:
    """Two members of a closed segment are to be left, and there is one spare: it takes the place of
    the lost one. The draining one, which still has its copy, waits."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8, nodes=("n1", "n2", "n4"))
        await filled(cluster, closed, 8)
        await filled(cluster, open_, 9)
        await cluster.put_log(closed, open_)
        await set_node_state(cluster.store, NodeId("n2"), STATE_DRAINING)
        await set_node_state(cluster.store, NodeId("n3"), STATE_DATA_LOSS)
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: members(cluster.chain()[0]) == ["n1", "n2", "n4"])
            assert cluster.held("n4", closed) == list(range(8))
            await cluster.start("n5")
            await cluster.until(lambda: members(cluster.chain()[0]) == ["n1", "n5", "n4"])


async def _a_sealed_log_with_a_problem_is_rolled_forward() -> None:
    """Field note 10: a closed segment that can't leave its store is tried again and again; that the
    open one is sealed is seen and mended all the same."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 4), cluster.segment(1, 4)
        await filled(cluster, closed, 4)
        await filled(cluster, open_, 6)
        record = await cluster.put_log(closed, open_)
        await set_node_state(cluster.store, NodeId("n3"), STATE_DATA_LOSS)
        door = ReplicaDoor(view=cluster.view, transport=cluster.doors)
        for replica in open_.nodeset[:2]:
            await door.seal(replica, record.loglet(open_), open_.base)
        caretaker = Caretaker(cluster, "n1", backfill_every_s=5)
        async with running(caretaker.runs()):
            await cluster.until(lambda: len(cluster.chain()) == 3)
        assert cluster.chain()[1].end == 6


async def _many_sealed_logs_are_rolled_forward_together() -> None:
    """Each is left to whoever sealed it for two seconds, but not one after the other."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        segment = cluster.segment(0, 0)
        door = ReplicaDoor(view=cluster.view, transport=cluster.doors)
        for number in range(12):
            await filled(cluster, segment, 2, log_id=100 + number)
            record = await cluster.put_log(segment, name=f"log{number:02}", log_id=100 + number)
            await door.seal(segment.nodeset[2], record.loglet(segment), segment.base)
        caretaker = Caretaker(cluster, "n2", backfill_every_s=2)
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await cluster.until(
                lambda: all(len(record.chain) == 2 for record, _ in cluster.view.logs()),
                within_s=12,
            )


async def _a_segment_that_was_left_incomplete_is_looked_at_again() -> None:
    """A look that ends before all is copied, for want of rounds and not of anything else, is no
    success: the segment is looked at again soon, not after `sweep_every_s`."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        closed, open_ = cluster.segment(0, 0, 6), cluster.segment(1, 6)
        await cluster.put("n1", closed, (0, 6))
        await cluster.put("n2", closed, (0, 6))
        await cluster.put("n3", closed, (0, 1))
        await cluster.put_log(closed, open_)
        caretaker = Caretaker(cluster, "n1", backfill_every_s=1_000, sweep_every_s=10_000)
        rounds = backfill.ROUNDS_MAX
        try:
            backfill.ROUNDS_MAX = 0  # type: ignore[misc]
            async with running(caretaker.runs()):
                await cluster.until(lambda: caretaker.care.controller.leads)
                await cluster.clock.sleep(3)
                assert cluster.held("n3", closed) == [0]
                backfill.ROUNDS_MAX = rounds  # type: ignore[misc]
                await cluster.until(lambda: cluster.held("n3", closed) == list(range(6)))
        finally:
            backfill.ROUNDS_MAX = rounds  # type: ignore[misc]


async def _gone_is_not_said_by_old_news() -> None:
    """The drain was called off, or the node has another disk by now, and the controller has not
    heard of it: the store is asked first."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        await cluster.put_log(cluster.segment(0, 0))
        caretaker = Caretaker(cluster, "n1")
        found = caretaker.care.controller.new_term()
        node = cluster.view.node(NodeId("n4"))
        assert node is not None
        draining = replace(node, state=STATE_DRAINING)
        await found._set_gone(draining)
        assert await _state(cluster, "n4") == STATE_READ_WRITE
        await set_node_state(cluster.store, NodeId("n4"), STATE_DRAINING)
        await found._set_gone(replace(draining, storage_id=StorageId("another")))
        assert await _state(cluster, "n4") == STATE_DRAINING
        await found._set_gone(draining)
        assert await _state(cluster, "n4") == STATE_GONE


async def _a_node_that_was_used_while_it_was_declared_gone_drains_on() -> None:
    """Somebody whose view lags gives it a segment between the last look and the declaration. "Gone"
    would mean that the store is lost, which it is not: it is draining again."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        await cluster.put_log(cluster.segment(0, 0))
        node = await set_node_state(cluster.store, NodeId("n4"), STATE_DRAINING)
        found = Caretaker(cluster, "n1").care.controller.new_term()

        async def late(
            store: MetadataStore, node_id: NodeId, state: str, *, storage_id: StorageId | None
        ) -> NodeRecord:
            if state == STATE_GONE:
                used = cluster.segment(0, 0, nodes=("n1", "n2", "n4"))
                await cluster.put_log(used, name="late", log_id=8)
            return await set_node_state(store, node_id, state, storage_id=storage_id)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(removal, "set_node_state", late)
            await found._set_gone(node)
        assert await _state(cluster, "n4") == STATE_DRAINING


async def _state(cluster: Cluster, name: str) -> str:
    nodes = await cluster.view.refresh_nodes()
    return next(node.state for node in nodes if node.node_id == name)


test_what_is_lost_does_not_wait = virtually(_what_is_lost_does_not_wait_for_what_is_drained)
test_a_sealed_log_with_a_problem = virtually(_a_sealed_log_with_a_problem_is_rolled_forward)
test_many_sealed_logs = virtually(_many_sealed_logs_are_rolled_forward_together)
test_an_incomplete_segment = virtually(_a_segment_that_was_left_incomplete_is_looked_at_again)
test_gone_is_not_said_by_old_news = virtually(_gone_is_not_said_by_old_news)
test_a_node_that_was_used = virtually(_a_node_that_was_used_while_it_was_declared_gone_drains_on)
