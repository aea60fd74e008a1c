"""A node whose view of the cluster is behind: it asks the metadata store before it says no."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from metadata.embedded import EmbeddedMetadataStore
from metadata.records import NodeRecord
from metadata.registry import register_node
from metadata.view import ClusterView
from node.front_door import FrontDoor
from node.liveness import Liveness
from node.load import LoadIndex
from node.log_maker import LogMaker
from node.routing import Router, There
from sharedlog.clock import SystemClock
from sharedlog.errors import LogUnavailable, Unreachable
from sharedlog.ids import Generation, NodeId, SequencerId, StorageId
from sharedlog.rpc.methods import PING
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp
from sharedlog.v1 import cluster_pb2, log_pb2

CLOCK = SystemClock()
OTHER = SequencerId(NodeId("other"), Generation(1))


class Nodes:
    """A transport whose far ends are nodes in their first life; the one at `down` is silent."""

    down = ""

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        assert method.path == PING.path
        if address == self.down:
            raise Unreachable(f"can't reach {address}: connection refused")
        own = cluster_pb2.PingResponse(node_id=address.partition(":")[0], generation=1)
        return cast("Resp", own)

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        raise AssertionError("not called by what is tested")

    async def close(self) -> None: ...


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[EmbeddedMetadataStore]:
    opened = EmbeddedMetadataStore(tmp_path / "store", CLOCK)
    yield opened
    await opened.close()


async def register(store: EmbeddedMetadataStore, *names: str) -> list[NodeRecord]:
    return [
        await register_node(
            store,
            node_id=NodeId(name),
            storage_id=StorageId(name * 16),
            address=f"{name}:1",
            roles=("log-server", "sequencer"),
            known_cluster_id="",
            new_id=lambda: "c1",
            now_ms=1,
        )
        for name in names
    ]


@asynccontextmanager
async def behind(
    store: EmbeddedMetadataStore, nodes: Nodes
) -> AsyncIterator[tuple[FrontDoor, ClusterView, Liveness]]:
    """A front door with a view that was told nothing: as far behind as can be."""
    view = ClusterView(store, CLOCK)
    liveness = Liveness(me=OTHER, view=view, transport=nodes, clock=CLOCK, ping_timeout_s=0.4)
    unused: Any = None
    maker = LogMaker(
        store=store,
        view=view,
        load=LoadIndex(view),
        liveness=liveness,
        clock=CLOCK,
        random=Random(1),
        new_id=lambda: "nonce",
        default_replicas=3,
    )
    door = FrontDoor(
        view=view, maker=maker, appends=unused, reads=unused, offsets=unused, tails=unused
    )
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(liveness.run())
        yield door, view, liveness
        running.cancel()


async def test_a_log_is_made_on_nodes_that_the_view_does_not_know_yet(
    store: EmbeddedMetadataStore,
) -> None:
    """It gets the replicas that the cluster has, and the answer says where its nodes are."""
    await register(store, "n1", "n2", "n3")
    async with behind(store, Nodes()) as (door, view, _):
        assert view.nodes() == []
        made = (await door.create_log(log_pb2.CreateLogRequest(name="orders"))).log
    assert (made.replicas, made.write_quorum) == (3, 2)
    assert [node.address for node in made.nodes] == ["n1:1", "n2:1", "n3:1"]


async def test_a_node_that_does_not_answer_is_still_not_taken(
    store: EmbeddedMetadataStore,
) -> None:
    """That it is registered does not make it alive."""
    await register(store, "n1", "n2", "n3")
    nodes = Nodes()
    nodes.down = "n2:1"
    async with behind(store, nodes) as (door, _, _):
        with pytest.raises(LogUnavailable, match="2 of this cluster are alive"):
            await door.create_log(log_pb2.CreateLogRequest(name="orders", replicas=3))
        made = (await door.create_log(log_pb2.CreateLogRequest(name="orders", replicas=2))).log
    assert [replica.node_id for replica in made.chain[0].nodeset] == ["n1", "n3"]


async def test_a_call_is_forwarded_to_a_node_that_the_view_does_not_know_yet(
    store: EmbeddedMetadataStore,
) -> None:
    """Before a log's sequencer counts as unknown, the store is asked."""
    (node,) = await register(store, "n1")
    unused: Any = None
    async with behind(store, Nodes()) as (door, view, liveness):
        await door.create_log(log_pb2.CreateLogRequest(name="orders"))
        router = Router(
            me=OTHER,
            view=view,
            sequencer=None,
            failover=unused,
            liveness=liveness,
            clock=CLOCK,
            random=Random(1),
            timeout_s=5.0,
        )
        route = await router.find("orders")
    assert isinstance(route, There)
    assert route.node == node
