"""Simulated nodes: the real parts of `sharedlogd`, wired as `node/process.py` does it.

Simulated are the loop's time, the network, the disks and the metadata store; everything between is
what runs in production. A node's life is one task. `crash` cuts it off from the network and its
disk first and cancels it then, so that nothing that its code does while it unwinds can be seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from helpers.sim.log_store import SimDisk
from helpers.sim.metadata_store import SimMetadata
from helpers.sim.network import NetworkConfig, SimNetwork, SimServer
from helpers.sim.world import SimClock, World
from prometheus_client import CollectorRegistry

from metadata.records import NodeRecord
from metadata.registry import join_cluster, register_node
from metadata.view import ClusterView
from node.config import NodeConfig
from node.process import BothServers
from node.services import Ground, Services, build_services
from sharedlog.ids import NodeId
from sharedlog.rpc.loopback import Loopback, RoutingTransport


class SimNode:
    """One node through its lives; its disk and address stay the same."""

    def __init__(self, cluster: SimCluster, node_id: str, *, clock_skew_ms: int = 0) -> None:
        self.node_id = NodeId(node_id)
        self.address = f"{node_id}:1"
        self.disk = SimDisk(cluster.world, node_id)
        self.clock = SimClock(skew_ms=clock_skew_ms)
        self.lives = 0
        self.services: Services | None = None
        self.record: NodeRecord | None = None
        self.server: SimServer | None = None
        self.view: ClusterView | None = None
        self._cluster = cluster
        self._life: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """The process runs."""
        return self._life is not None and not self._life.done()

    async def start(self) -> None:
        """Start the process; returns when it serves."""
        assert not self.up, f"{self.node_id} is up"
        self.lives += 1
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._life = self._cluster.spawn(self._live(ready), f"{self.node_id} life {self.lives}")
        await ready

    async def crash(self, *, silent: bool = False) -> None:
        """`kill -9`, or with `silent` a power cut."""
        assert self._life is not None
        self._cluster.network.crash(str(self.node_id), silent=silent)
        self.disk.crash()
        self._life.cancel()
        await asyncio.wait([self._life])
        self.services = None

    async def _live(self, ready: asyncio.Future[None]) -> None:
        cluster = self._cluster
        name = f"{self.node_id}/{self.lives}"
        new_id = cluster.world.ids(name)
        server = cluster.network.server(self.address)
        loopback = Loopback()
        out = cluster.network.transport(str(self.node_id))
        transport = RoutingTransport({self.address: loopback}, out)
        store = self.disk.open()
        config = NodeConfig(
            node_id=str(self.node_id), listen=self.address, metadata="embedded://metadata:1"
        )
        metadata = cluster.metadata.store()
        now_ms = self.clock.now_ms()
        joined = await join_cluster(metadata, known_cluster_id="", new_id=new_id, now_ms=now_ms)
        own = await register_node(
            metadata,
            node_id=self.node_id,
            storage_id=store.storage_id,
            address=self.address,
            roles=config.roles,
            known_cluster_id=joined.cluster_id,
            new_id=new_id,
            now_ms=now_ms,
        )
        view = ClusterView(metadata, self.clock)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(view.run(), name=f"{name} view")
                await view.wait_ready()
                services = build_services(
                    Ground(
                        config=config,
                        cluster_id=joined.cluster_id,
                        own=own,
                        store=metadata,
                        view=view,
                        log_store=store,
                        transport=transport,
                        clock=self.clock,
                        random=cluster.world.random(name),
                        new_id=new_id,
                        registry=CollectorRegistry(),
                        started_s=self.clock.monotonic_s(),
                    )
                )
                services.register(BothServers(loopback, server))
                for part, run in services.runs():
                    tasks.create_task(run, name=f"{name} {part}")
                server.start()
                self.services, self.record, self.server = services, own, server
                self.view = view
                cluster.servers.append(server)
                ready.set_result(None)
                await asyncio.Event().wait()
        finally:
            await transport.close()
            await server.stop()


class SimCluster:
    """A few nodes in one world."""

    def __init__(
        self, world: World, tasks: asyncio.TaskGroup, *, network: NetworkConfig | None = None
    ) -> None:
        self.world = world
        self.network = SimNetwork(world, network)
        self.metadata = SimMetadata(world)
        self.nodes: dict[str, SimNode] = {}
        self.servers: list[SimServer] = []  # of all lives
        self._tasks = tasks

    def spawn(self, run: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a node's life; its failure fails the simulation."""
        return self._tasks.create_task(run, name=name)

    async def settle(self) -> None:
        """Wait until every node that runs knows of every other: news takes a moment to spread."""
        running = [node for node in self.nodes.values() if node.up]
        for node in running:
            assert node.view is not None
            while len(node.view.nodes()) < len(self.nodes):
                await node.view.wait_changed()

    def check_no_bugs(self) -> None:
        """No handler of any life ended with anything but a typed error."""
        for server in self.servers:
            for failure in server.failures:
                raise AssertionError(f"a handler of {server.address} failed") from failure


@asynccontextmanager
async def open_cluster(
    world: World, *, nodes: int = 3, network: NetworkConfig | None = None
) -> AsyncIterator[SimCluster]:
    """A cluster n1, n2, … that serves; all nodes are crashed at the end."""
    async with asyncio.TaskGroup() as tasks:
        cluster = SimCluster(world, tasks, network=network)
        skew = world.random("skew")
        for number in range(1, nodes + 1):
            node = SimNode(cluster, f"n{number}", clock_skew_ms=skew.randint(-200, 200))
            cluster.nodes[f"n{number}"] = node
            await node.start()
        await cluster.settle()
        try:
            yield cluster
        finally:
            for node in cluster.nodes.values():
                if node.up:
                    await node.crash()
        cluster.check_no_bugs()
