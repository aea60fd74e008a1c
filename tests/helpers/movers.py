"""Log servers under virtual time, and nodes that reconfigure a log on them.

The log servers, the network between, their disks and the metadata store are those of the simulator;
the sequencer is a puppet: the test stores batches in its name, and it writes down what it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from helpers.log_servers import placed
from helpers.sim import NetworkConfig, SimClock, SimMetadata, SimNetwork, World, run_virtual
from helpers.sim.log_store import SimDisk
from helpers.sim.transport import SimServer
from prometheus_client import CollectorRegistry

from loglet.config import LogServerConfig
from loglet.messages import CommittedTail, OpenLoglet, StoreRequest, StoreResponse
from loglet.metrics import LogServerMetrics
from loglet.service import LogServer
from loglet.store import LogletState
from loglet.wire import STORE
from metadata.encoding import encode_log, encode_node, log_key, node_key
from metadata.records import LogRecord, NodeRecord, Replica, Segment, Spread
from metadata.registry import fetch_log
from metadata.store import ABSENT
from metadata.view import ClusterView
from node.liveness import Life, Sign
from node.metrics import ReconfigurationMetrics
from node.reconfigure import Reconfigurer
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId
from sharedlog.rpc.methods import PING
from sharedlog.v1 import cluster_pb2

NAME = "orders"
LOG_ID = LogId(7)
ROLES = ("log-server", "sequencer")


@dataclass
class Server:
    """A log server of the world; `crash` and `start` as for a process."""

    node_id: str
    disk: SimDisk
    record: NodeRecord
    grpc: SimServer | None = None
    server: LogServer | None = None
    life: asyncio.Task[None] | None = None


@dataclass
class Puppet:
    """A sequencer that does as told."""

    drains_s: float = 0.0
    calls: list[str] = field(default_factory=list)
    chains: list[tuple[LogRecord, int]] = field(default_factory=list)

    async def prepare_move(self, record: LogRecord, *, timeout_s: float) -> tuple[bool, Offset]:
        self.calls.append(f"prepare {record.open_segment.index}")
        await asyncio.sleep(min(self.drains_s, timeout_s))
        return self.drains_s <= timeout_s, record.open_segment.base

    def resume(self, loglet: LogletId) -> None:
        self.calls.append(f"resume {loglet.segment_index}")

    def on_chain(self, record: LogRecord, version: int) -> None:
        self.calls.append(f"chain {record.open_segment.index}")
        self.chains.append((record, version))


@dataclass
class Awareness:
    """What a node knows of the others: all live, but for these."""

    view: ClusterView
    dead: set[str] = field(default_factory=set)

    def usable(self) -> Sequence[NodeRecord]:
        nodes = self.view.nodes()
        return [it for it in nodes if it.state == "read-write" and it.node_id not in self.dead]

    def known(self, node: NodeRecord) -> Life | None:
        if node.node_id not in self.dead:
            return None
        return Life(generation=node.generation, sign=Sign.GONE, at_s=0.0)

    def free_bytes(self, _: NodeId) -> int | None:
        return None


@dataclass
class Mover:
    """A node that reconfigures logs."""

    me: SequencerId
    view: ClusterView
    reconfigurer: Reconfigurer
    sequencer: Puppet
    awareness: Awareness
    registry: CollectorRegistry


class MoverWorld:
    """Log servers n1, n2, … and the log `orders` on the first few of them."""

    def __init__(self, seed: int, *, servers: int = 4) -> None:
        self.world = World(seed)
        self.network = SimNetwork(self.world, NetworkConfig(slow_probability=0))
        self.metadata = SimMetadata(self.world, self.network)
        self.servers: dict[str, Server] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._early: dict[str, bytes] = {}
        self.sequencer = SequencerId(NodeId("n1"), Generation(1))
        for number in range(1, servers + 1):
            self._add_server(f"n{number}")

    def _add_server(self, name: str, *, generation: int = 1, disk_name: str = "") -> None:
        disk = SimDisk(self.world, disk_name or name)
        record = NodeRecord(
            node_id=NodeId(name),
            generation=Generation(generation),
            storage_id=disk.storage_id,
            address=f"{name}:1",
            http_address="",
            location="",
            roles=ROLES,
        )
        self.servers[name] = Server(name, disk, record)
        self.put(node_key(record.node_id), encode_node(record))

    def put(self, key: str, value: bytes) -> None:
        """Set a key of the metadata store, now or when the world begins to run."""
        if self._tasks is None:
            self._early[key] = value
            return
        entry = self.metadata.entries.get(key)
        self.metadata.swap(key, value, ABSENT if entry is None else entry.version)

    def put_log(
        self, *, replicas: int = 3, write_quorum: int = 2, base: int = 0, spread: Spread = ()
    ) -> LogRecord:
        """The log, with its first segment open."""
        nodeset = tuple(self.replica(f"n{number}") for number in range(1, replicas + 1))
        segment = Segment(
            index=0,
            base=Offset(base),
            sequencer=self.sequencer,
            nodeset=nodeset,
            write_quorum=write_quorum,
            spread=spread,
        )
        record = LogRecord(
            log_id=LOG_ID,
            name=NAME,
            replicas=replicas,
            write_quorum=write_quorum,
            created_ms=1,
            create_nonce="",
            chain=(segment,),
            spread=spread,
        )
        self.put(log_key(NAME), encode_log(record))
        return record

    def replica(self, name: str) -> Replica:
        record = self.servers[name].record
        return Replica(node_id=record.node_id, storage_id=record.storage_id)

    async def chain(self) -> LogRecord:
        """As the metadata store has it."""
        record, _ = await fetch_log(self.metadata.store(), NAME)
        return record

    # Log servers.

    def start(self, name: str) -> None:
        assert self._tasks is not None
        server = self.servers[name]
        server.server = LogServer(
            node_id=NodeId(name),
            store=server.disk.open(),
            clock=SimClock(),
            config=LogServerConfig(),
            metrics=LogServerMetrics(CollectorRegistry()),
        )
        server.grpc = self.network.server(f"{name}:1")
        server.server.register(server.grpc)
        server.grpc.add_call(PING, self._answer_ping(name))
        server.grpc.start()
        server.life = self._tasks.create_task(server.server.run(), name=f"log server {name}")

    def _answer_ping(
        self, name: str
    ) -> Callable[[cluster_pb2.PingRequest], Coroutine[Any, Any, cluster_pb2.PingResponse]]:
        async def ping(_: cluster_pb2.PingRequest) -> cluster_pb2.PingResponse:
            return cluster_pb2.PingResponse(node_id=name)

        return ping

    async def crash(self, name: str) -> None:
        """The process is killed, its disk stays."""
        server = self.servers[name]
        assert server.grpc is not None
        assert server.life is not None
        self.network.crash(name)
        server.disk.crash()
        server.life.cancel()
        await asyncio.wait([server.life])
        await server.grpc.stop()

    async def wipe(self, name: str) -> None:
        """The node comes back with an empty disk, and registers it."""
        await self.crash(name)
        self._add_server(name, generation=2, disk_name=f"{name} anew")
        self.start(name)

    async def store(
        self, name: str, batches: Sequence[bytes], *, committed: int = 0, open_: bool = True
    ) -> StoreResponse:
        """What the log's sequencer would send to one log server; the first segment."""
        replica = self.replica(name)
        loglet = LogletId(LOG_ID, 0)
        request = StoreRequest(replica.storage_id, self.sequencer, batches=list(batches))
        if open_:
            request.opens.append(OpenLoglet(loglet, Offset(0)))
        if committed:
            request.committed.append(CommittedTail(loglet, Offset(committed)))
        stream = self.network.transport("sequencer").stream(f"{name}:1", STORE)
        try:
            await stream.send(request)
            answer = await stream.receive()
            assert answer is not None
            return answer
        finally:
            stream.cancel()

    def held(self, name: str, segment: int = 0) -> list[tuple[int, int]]:
        """Batches on a server's disk."""
        disk = self.servers[name].disk
        found = disk.read(LogletId(LOG_ID, segment), Offset(0), Offset(1 << 40))
        return [(it.first, it.end) for it in found]

    def told_end(self, name: str) -> int | None:
        """The end of the first segment, as a server was told."""
        state = self._state(name)
        return None if state is None else state.told_end

    def is_sealed(self, name: str) -> bool | None:
        """None: the server never heard of the first segment."""
        state = self._state(name)
        return None if state is None else state.sealed

    def _state(self, name: str) -> LogletState | None:
        states = self.servers[name].disk.states()
        return next((it for it in states if it.loglet == LogletId(LOG_ID, 0)), None)

    # Movers.

    @asynccontextmanager
    async def mover(self, name: str) -> AsyncIterator[Mover]:
        """A node that reconfigures, on a host of its own or on that of a log server."""
        assert self._tasks is not None
        clock = SimClock()
        view = ClusterView(self.metadata.store(name), clock)
        transport = self.network.transport(name)
        sequencer = Puppet()
        awareness = Awareness(view)
        registry = CollectorRegistry()
        following = self._tasks.create_task(view.run(), name=f"{name} view")
        await view.wait_ready()
        me = SequencerId(NodeId(name), Generation(1))
        reconfigurer = Reconfigurer(
            me=me,
            store=self.metadata.store(name),
            view=view,
            transport=transport,
            clock=clock,
            random=self.world.random(name),
            new_id=self.world.ids(name),
            liveness=awareness,
            sequencer=sequencer,
            metrics=ReconfigurationMetrics(registry),
        )
        running = self._tasks.create_task(reconfigurer.run(), name=f"{name} reconfigurer")
        try:
            yield Mover(me, view, reconfigurer, sequencer, awareness, registry)
        finally:
            for task in (running, following):
                task.cancel()
            await asyncio.wait([running, following])
            await transport.close()

    async def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start all servers, and stop them after `main`."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            for key, value in self._early.items():
                self.put(key, value)
            for name in self.servers:
                self.start(name)
            try:
                await main()
            finally:
                for server in self.servers.values():
                    if server.grpc is not None:
                        await server.grpc.stop()
                    if server.life is not None:
                        server.life.cancel()
        for server in self.servers.values():
            assert server.grpc is None or not server.grpc.failures, server.grpc.failures


def run_in(world: MoverWorld, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Under virtual time."""
    run_virtual(lambda: world.run(main), limit_s=300)


def batch(first: int, count: int = 1, *, committed: int = 0, record_bytes: int = 0) -> bytes:
    """A batch of the log's first segment."""
    loglet = LogletId(LOG_ID, 0)
    return placed(first, count, loglet=loglet, committed=committed, record_bytes=record_bytes)
