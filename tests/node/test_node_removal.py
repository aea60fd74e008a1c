"""When a node may be removed for good, and what it is afterwards (field note 33)."""

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
from metadata.registry import register_node, set_node_state
from metadata.removal import namings
from metadata.store import MetadataStore
from sharedlog.errors import InvalidArgument
from sharedlog.ids import NodeId, StorageId
from sharedlog.v1 import admin_pb2


async def remove(
    caretaker: Caretaker, name: str, *, dry_run: bool = False
) -> admin_pb2.RemoveNodeResponse:
    request = admin_pb2.RemoveNodeRequest(node_id=name, dry_run=dry_run)
    return await caretaker.care.states.remove_node(request)


async def state_of(cluster: Cluster, name: str) -> str:
    nodes = await cluster.view.refresh_nodes()
    return next(node.state for node in nodes if node.node_id == name)


async def filled(cluster: Cluster, segment: Segment, end: int) -> None:
    for replica in segment.nodeset:
        await cluster.put(replica.node_id, segment, (segment.base, end))


async def _history_keeps_a_node() -> None:
    """Field note 33: no open segment names the node, nor does it order anything; a segment of long
    ago is enough to refuse, with a line that names the log, and nothing is changed."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        old = cluster.segment(0, 0, 8)
        open_ = cluster.segment(1, 8, nodes=("n1", "n2", "n4"))
        await cluster.put_log(old, open_)
        await cluster.stop("n3")
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.parts()):
            for dry_run in (True, False):
                answer = await remove(caretaker, "n3", dry_run=dry_run)
                assert list(answer.reasons) == ["log orders: 1 segment names its store"]
                assert not answer.removed
                assert (answer.segments, answer.sequenced_logs) == (1, 0)
                assert await state_of(cluster, "n3") == STATE_READ_WRITE


async def _who_orders_or_runs_is_kept() -> None:
    """The sequencer of a log, a process that still runs, and the host of the metadata store are
    refused, each in words of its own; an unknown node is an error."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        await cluster.put_log(cluster.segment(0, 0, sequencer="n4"))
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.parts()):
            answer = await remove(caretaker, "n4")
            assert list(answer.reasons) == [
                "log orders: it orders the log",
                "its process runs, at n4:1 in life 1: stop it first",
            ]
            await register_node(
                cluster.store,
                node_id=NodeId("n5"),
                storage_id=StorageId(""),
                address="n5:1",
                roles=("metadata",),
                known_cluster_id="",
                new_id=str,
                now_ms=0,
            )
            answer = await remove(caretaker, "n5", dry_run=True)
            assert list(answer.reasons) == ["it hosts the cluster's metadata store"]
            with pytest.raises(InvalidArgument, match="there is no node 'n9'"):
                await remove(caretaker, "n9")


async def _what_a_drain_can_not_move_is_said() -> None:
    """Three nodes, three replicas: the reason tells that a drain would not help, and why."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        await cluster.put_log(cluster.segment(0, 0))
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.parts()):
            first, _ = (await remove(caretaker, "n3", dry_run=True)).reasons
            assert first.startswith("log orders: 1 segment names its store; a drain can't move it:")


async def _a_drained_node_is_removed_and_comes_back_as_a_further_life() -> None:
    """The record stays: the next process of that name is life 3, not 1. With the old disk it gets
    nothing to do until somebody says so; with a new one it begins as a new node."""
    async with cluster_of("n1", "n2", "n3", "n4") as cluster:
        closed, open_ = cluster.segment(0, 0, 8), cluster.segment(1, 8, sequencer="n3")
        await filled(cluster, closed, 8)
        await filled(cluster, open_, 10)
        await cluster.put_log(closed, open_)
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.runs()):
            await cluster.until(lambda: caretaker.care.controller.leads)
            await set_node_state(cluster.store, NodeId("n3"), STATE_DRAINING)
            while await state_of(cluster, "n3") != STATE_GONE:
                await cluster.clock.sleep(0.2)
            assert list((await remove(caretaker, "n3")).reasons) == [
                "its process runs, at n3:1 in life 1: stop it first"
            ]
            await cluster.stop("n3")
            await cluster.clock.sleep(1)
            answer = await remove(caretaker, "n3", dry_run=True)
            assert not answer.reasons
            assert not answer.removed
            answer = await remove(caretaker, "n3")
            assert (answer.removed, answer.state) == (True, STATE_GONE)
        again = await cluster.start("n3")
        assert (again.generation, again.state) == (2, STATE_GONE)
        await cluster.wipe("n3")
        nodes = {it.node_id: it for it in await cluster.view.refresh_nodes()}
        assert (nodes[NodeId("n3")].generation, nodes[NodeId("n3")].state) == (3, STATE_READ_WRITE)


async def _a_dead_node_that_nothing_names_is_removed() -> None:
    """It never had anything to do, or its store was lost and all of it was copied elsewhere: there
    is nothing to drain. Doing it again changes nothing."""
    async with cluster_of("n1", "n2", "n3", "n4", "n5") as cluster:
        await cluster.put_log(cluster.segment(0, 0))
        await set_node_state(cluster.store, NodeId("n5"), STATE_DATA_LOSS)
        await cluster.stop("n4", "n5")
        caretaker = Caretaker(cluster, "n1")
        async with running(caretaker.parts()):
            for name in ("n4", "n5", "n5"):
                assert (await remove(caretaker, name)).removed
                assert await state_of(cluster, name) == STATE_GONE


@pytest.mark.parametrize("was", [STATE_READ_WRITE, STATE_DATA_LOSS])
def test_a_node_that_is_used_while_it_is_removed_stays(was: str) -> None:
    """Somebody whose view lags gives it a segment between the look and the declaration, which is
    taken back: its store is not lost. One that was free drains on."""

    async def main() -> None:
        async with cluster_of("n1", "n2", "n3", "n4") as cluster:
            await cluster.put_log(cluster.segment(0, 0))
            if was != STATE_READ_WRITE:
                await set_node_state(cluster.store, NodeId("n4"), was)
            await cluster.stop("n4")

            async def late(
                store: MetadataStore, node_id: NodeId, state: str, *, storage_id: StorageId | None
            ) -> NodeRecord:
                if state == STATE_GONE:
                    used = cluster.segment(0, 0, nodes=("n1", "n2", "n4"))
                    await cluster.put_log(used, name="late", log_id=8)
                return await set_node_state(store, node_id, state, storage_id=storage_id)

            caretaker = Caretaker(cluster, "n1")
            async with running(caretaker.parts()):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(removal, "set_node_state", late)
                    answer = await remove(caretaker, "n4")
                assert list(answer.reasons) == ["log late: 1 segment names its store"]
                left = STATE_DRAINING if was == STATE_READ_WRITE else was
                assert await state_of(cluster, "n4") == left

    virtually(main)()


async def _stores_of_the_past_count() -> None:
    """A segment that names a disk which the node has lost since is told apart, and is a reason."""
    async with cluster_of("n1", "n2", "n3") as cluster:
        record = await cluster.put_log(cluster.segment(0, 0, 4), cluster.segment(1, 4))
        node = cluster.view.node(NodeId("n3"))
        assert node is not None
        (found,) = namings([record], replace(node, storage_id=StorageId("another")))
        assert (found.segments, found.past_segments) == (0, 2)
        assert found.reason == "log orders: 2 segments name a store that it had before"


test_history_keeps_a_node = virtually(_history_keeps_a_node)
test_who_orders_or_runs_is_kept = virtually(_who_orders_or_runs_is_kept)
test_what_a_drain_can_not_move_is_said = virtually(_what_a_drain_can_not_move_is_said)
test_a_drained_node_is_removed = virtually(
    _a_drained_node_is_removed_and_comes_back_as_a_further_life
)
test_a_dead_node_is_removed = virtually(_a_dead_node_that_nothing_names_is_removed)
test_stores_of_the_past_count = virtually(_stores_of_the_past_count)
