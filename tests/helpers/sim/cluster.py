"""Simulated nodes: the real parts of `sharedlogd`, wired as `node/process.py` does it.

Simulated are the loop's time, the network, the disks and the metadata store; everything between is
what runs in production. A node's life is one task of one `Host`. `crash` cuts it off from the
network, its disk and the metadata store first and cancels it then, so that nothing that its code
does while it unwinds can be seen. A life that ends by itself, because its disk failed, is a crash
too; by any other error it fails the simulation.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from helpers.sim.log_store import OnStored, OnTrimmed, SimDisk
from helpers.sim.loop import Host
from helpers.sim.metadata_store import SimMetadata, SimMetadataStore
from helpers.sim.network import NetworkConfig, SimNetwork
from helpers.sim.object_store import SimObjects, SimObjectStore
from helpers.sim.transport import SimServer
from helpers.sim.world import SimClock, World
from prometheus_client import CollectorRegistry

from metadata.records import NodeRecord
from metadata.registry import join_cluster, register_node
from metadata.view import ClusterView
from node.config import NodeConfig
from node.process import BothServers
from node.services import Ground, Services, build_services
from sharedlog.errors import MetadataUnavailable, StoreFailed
from sharedlog.ids import LogletId, NodeId, Offset, StorageId
from sharedlog.rpc.loopback import Loopback, RoutingTransport
from sharedlog.tasks import first_error

_START_AGAIN_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """How many nodes, where, and what they are told."""

    nodes: int = 3
    locations: tuple[str, ...] = ("",)  # of the nodes in turn
    skew_max_ms: int = 200
    commit_max_s: float = 0.002
    """Longest sync of a disk that is well."""
    node: dict[str, Any] = field(default_factory=dict)  # settings of `NodeConfig`
    archive: bool = False
    """There is an object store, and nodes archive there."""
    network: NetworkConfig = field(default_factory=NetworkConfig)

    @property
    def tempo(self) -> tuple[float, float]:
        """Longest delay of a message, and of a sync, when all is well."""
        return self.network.delay_max_s, self.commit_max_s


class _Stopped(Exception):
    """A life has ended in good order."""


class SimNode:
    """One node through its lives; its address stays the same, its disk unless it is wiped."""

    def __init__(
        self, cluster: SimCluster, node_id: str, *, location: str = "", clock_skew_ms: int = 0
    ) -> None:
        self.node_id = NodeId(node_id)
        self.address = f"{node_id}:1"
        self.location = location
        self.disk = cluster.new_disk(node_id)
        self.clock = SimClock(skew_ms=clock_skew_ms)
        self.lives = 0
        self.host = Host(node_id)  # of the present life
        self.services: Services | None = None
        self.record: NodeRecord | None = None
        self.view: ClusterView | None = None
        self._cluster = cluster
        self._life: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._store: SimMetadataStore | None = None
        self._archive: SimObjectStore | None = None
        self._ending = False

    @property
    def up(self) -> bool:
        """The process runs, or starts."""
        return self._life is not None and not self._life.done()

    @property
    def serves(self) -> bool:
        """The process has started."""
        return self.up and self.services is not None and not self._ending

    def launch(self) -> None:
        """Start the process."""
        assert not self.up, f"{self.node_id} is up"
        self._cluster.network.boot(str(self.node_id))
        self.lives += 1
        self.host = Host(f"{self.node_id}/{self.lives}")
        self._ready = asyncio.Event()
        self._stop_asked = asyncio.Event()
        self._ending = False
        name = f"{self.node_id} life {self.lives}"
        self._life = self.host.run(self._cluster.spawn, self._live(), name)

    async def start(self) -> None:
        """Start the process; returns when it serves."""
        self.launch()
        await self._ready.wait()

    async def crash(self, *, silent: bool = False) -> None:
        """`kill -9`, or with `silent` a power cut."""
        assert self._life is not None
        self._ending = True
        self._cluster.network.crash(str(self.node_id), silent=silent)
        self.disk.crash()
        if self._store is not None:
            self._store.dead = True
        if self._archive is not None:
            self._archive.dead = True
        self._life.cancel()
        if self.host.paused:
            self.host.resume()
        self.services = None
        await asyncio.wait([self._life])

    async def stop(self) -> None:
        """SIGTERM: the node hands over what it orders and ends. Returns when it has ended."""
        assert self._life is not None
        self._ending = True
        self._stop_asked.set()
        await asyncio.wait([self._life])

    async def ended(self) -> None:
        """Wait for a life that was told to end."""
        if self._ending and self._life is not None:
            await asyncio.wait([self._life])

    def wipe(self) -> None:
        """The disk is gone: the next life has an empty one."""
        assert not self.up
        self.disk.is_gone = True
        self.disk = self._cluster.new_disk(str(self.node_id))

    def pause(self) -> None:
        """SIGSTOP."""
        self._cluster.network.pause(str(self.node_id))
        self.host.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self._cluster.network.resume(str(self.node_id))
        self.host.resume()

    @property
    def _is_killed(self) -> bool:
        return self._store is not None and self._store.dead

    async def _live(self) -> None:
        """One life, with a supervisor that starts it again if the metadata store is away."""
        while True:
            try:
                await self._serve()
            except BaseExceptionGroup as group:
                error = first_error(group)
                if isinstance(error, StoreFailed) and self._is_killed:
                    return  # it was about to write; nobody hears of that
                if isinstance(error, MetadataUnavailable) and self.services is None:
                    await asyncio.sleep(_START_AGAIN_S)
                    continue
                failed = isinstance(error, StoreFailed) and self.disk.failed
                if not (failed or isinstance(error, _Stopped)):
                    raise
            except MetadataUnavailable:
                await asyncio.sleep(_START_AGAIN_S)
                continue
            self._cluster.world.trace.add(f"{self.node_id} ended by itself")
            self._cluster.network.crash(str(self.node_id))
            self.disk.crash()
            self.services = None
            return

    def _config(self) -> NodeConfig:
        return NodeConfig(
            node_id=str(self.node_id),
            listen=self.address,
            location=self.location,
            metadata="embedded://metadata:1",
            **self._cluster.config.node,
        )

    async def _serve(self) -> None:
        cluster = self._cluster
        name = f"{self.node_id}/{self.lives}"
        new_id = cluster.world.ids(name)
        server = cluster.network.server(self.address)
        loopback = Loopback()
        out = cluster.network.transport(str(self.node_id))
        transport = RoutingTransport({self.address: loopback}, out)
        store = self.disk.open()
        metadata = self._store = cluster.metadata.store(str(self.node_id))
        objects = cluster.objects
        archive = self._archive = None if objects is None else objects.store(str(self.node_id))
        try:
            config = self._config()
            now_ms = self.clock.now_ms()
            joined = await join_cluster(metadata, known_cluster_id="", new_id=new_id, now_ms=now_ms)
            own = await register_node(
                metadata,
                node_id=self.node_id,
                storage_id=store.storage_id,
                address=self.address,
                location=self.location,
                roles=config.roles,
                known_cluster_id=joined.cluster_id,
                new_id=new_id,
                now_ms=now_ms,
            )
            view = ClusterView(metadata, self.clock)
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
                        archive=archive,
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
                self.services, self.record, self.view = services, own, view
                cluster.servers.append(server)
                self._ready.set()
                await self._stop_asked.wait()
                await services.leave(timeout_s=config.shutdown_grace_s)
                await server.stop()
                raise _Stopped
        finally:
            await transport.close()
            await server.stop()
            await store.close()
            if archive is not None:
                await archive.close()


class SimCluster:
    """A few nodes in one world."""

    def __init__(
        self,
        world: World,
        tasks: asyncio.TaskGroup,
        *,
        config: ClusterConfig | None = None,
        on_stored: OnStored | None = None,
    ) -> None:
        self.world = world
        self.config = config or ClusterConfig()
        self.network = SimNetwork(world, self.config.network)
        self.metadata = SimMetadata(world, self.network)
        self.objects = SimObjects(world, self.network) if self.config.archive else None
        self.nodes: dict[str, SimNode] = {}
        self.servers: list[SimServer] = []  # of all lives
        self.disks: dict[StorageId, SimDisk] = {}  # that ever were
        self._tasks = tasks
        self._on_stored = on_stored
        self.on_trimmed: OnTrimmed = lambda *_: None

    def new_disk(self, node_id: str) -> SimDisk:
        """An empty disk."""
        number = sum(disk.name.split(".")[0] == node_id for disk in self.disks.values())
        name = f"{node_id}.{number}" if number else node_id
        commit_max_s = self.config.commit_max_s
        disk = SimDisk(
            self.world,
            name,
            commit_max_s=commit_max_s,
            on_stored=self._on_stored,
            on_trimmed=self._trimmed,
        )
        self.disks[disk.storage_id] = disk
        return disk

    def _trimmed(self, disk: SimDisk, loglet: LogletId, local_start: Offset) -> None:
        self.on_trimmed(disk, loglet, local_start)

    def spawn(self, run: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run a node's life; its failure fails the simulation."""
        return self._tasks.create_task(run, name=name)

    def present_disk(self, node_id: str, storage_id: StorageId) -> SimDisk | None:
        """The disk of this id, if the node still has it."""
        node = self.nodes.get(node_id)
        if node is None or node.disk.storage_id != storage_id:
            return None
        return node.disk

    async def settle(self) -> None:
        """Wait until every node that runs knows of every other: news takes a moment to spread."""
        running = [node for node in self.nodes.values() if node.serves]
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
    world: World,
    *,
    config: ClusterConfig | None = None,
    on_stored: OnStored | None = None,
) -> AsyncIterator[SimCluster]:
    """A cluster n1, n2, … that serves; all nodes are crashed at the end."""
    async with asyncio.TaskGroup() as tasks:
        cluster = SimCluster(world, tasks, config=config, on_stored=on_stored)
        skew, places = world.random("skew"), cluster.config.locations
        most_ms = cluster.config.skew_max_ms
        for number in range(cluster.config.nodes):
            node = SimNode(
                cluster,
                f"n{number + 1}",
                location=places[number % len(places)],
                clock_skew_ms=skew.randint(-most_ms, most_ms),
            )
            cluster.nodes[str(node.node_id)] = node
            node.launch()
        for node in cluster.nodes.values():
            await node._ready.wait()
        await cluster.settle()
        try:
            yield cluster
        finally:
            for node in cluster.nodes.values():
                if node.up:
                    with suppress(asyncio.CancelledError):
                        await node.crash()
        cluster.check_no_bugs()
