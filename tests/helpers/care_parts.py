"""Real log servers on simulated disks, and all that looks after them, under virtual time.

Nodes are reached over loopbacks that can be taken away. There are no sequencers: batches are put
where a test wants them, and a chain's sequencer is a name only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

from helpers.log_servers import placed
from helpers.sim import SimClock, SimDisk, SimMetadata, World, run_virtual
from prometheus_client import CollectorRegistry

from loglet.config import LogServerConfig
from loglet.messages import CommittedTail, OpenLoglet, StoreRequest
from loglet.metrics import LogServerMetrics
from loglet.service import LogServer
from loglet.wire import STORE
from metadata.encoding import encode_log, log_key
from metadata.records import LogRecord, NodeRecord, Replica, Segment
from metadata.registry import register_node
from metadata.store import ABSENT
from metadata.view import ClusterView
from node.care import Care, CareGround, build_care
from node.controller.config import ControllerConfig
from node.controller.work import WorkBoard
from node.failover import Failover
from node.liveness import Liveness
from node.metrics import ReconfigurationMetrics
from node.reconfigure import Reconfigurer
from sharedlog.errors import DeadlineExceeded, Unreachable
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.methods import PING
from sharedlog.rpc.transport import ClientStream, Method, Req, Resp
from sharedlog.v1 import cluster_pb2

ROLES = ("log-server", "sequencer")
LOG_ID = LogId(7)


class Doors:
    """A transport to whichever nodes are up."""

    def __init__(self) -> None:
        self.open: dict[str, Loopback] = {}
        self.silent: set[str] = set()
        self.calls: list[tuple[str, str]] = []  # (method, address)
        self._closed = Loopback()

    async def call(
        self, address: str, method: Method[Req, Resp], request: Req, *, timeout_s: float
    ) -> Resp:
        self.calls.append((method.path.rpartition("/")[2], address))
        await asyncio.sleep(0.001)
        if address in self.silent:
            await asyncio.sleep(timeout_s)
            raise DeadlineExceeded(f"no answer from {address} in time")
        if address not in self.open:
            raise Unreachable(f"can't reach {address}: Connection refused")
        return await self.open[address].call(address, method, request, timeout_s=timeout_s)

    def stream(self, address: str, method: Method[Req, Resp]) -> ClientStream[Req, Resp]:
        return self.open.get(address, self._closed).stream(address, method)

    async def close(self) -> None:
        await self._closed.close()


class Server:
    """One node: its disk, and its log server while it is up."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.address = f"{name}:1"
        self.disk = SimDisk(world, name)
        self.lives = 0
        self.log_server: LogServer | None = None
        self._world = world
        self._loopback: Loopback | None = None
        self._run: asyncio.Task[None] | None = None

    def wipe(self) -> None:
        assert self._run is None
        self.disk = SimDisk(self._world, f"{self.name} anew after {self.lives}")

    async def start(self, doors: Doors, generation: int) -> None:
        assert self._run is None
        self.lives += 1
        server = LogServer(
            node_id=NodeId(self.name),
            store=self.disk.open(),
            clock=SimClock(),
            config=LogServerConfig(),
            metrics=LogServerMetrics(CollectorRegistry()),
        )
        self.log_server = server
        loopback = self._loopback = Loopback()
        server.register(loopback)

        async def ping(_: cluster_pb2.PingRequest) -> cluster_pb2.PingResponse:
            return cluster_pb2.PingResponse(
                node_id=self.name, generation=generation, storage_id=self.disk.storage_id
            )

        loopback.add_call(PING, ping)
        self._run = asyncio.create_task(server.run(), name=f"{self.name} log server")
        doors.open[self.address] = loopback

    async def stop(self, doors: Doors) -> None:
        if self._run is None or self._loopback is None:
            return
        doors.open.pop(self.address, None)
        await self._loopback.close()
        self._run.cancel()
        with suppress(asyncio.CancelledError):
            await self._run
        self._run = None
        self.disk.crash()


class Cluster:
    """A few log servers, a metadata store, and one node's view of it all."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.metadata = SimMetadata(self.world)
        self.doors = Doors()
        self.servers: dict[str, Server] = {}
        self.clock = SimClock()
        self.store = self.metadata.store()
        self.view = ClusterView(self.store, self.clock)

    async def start(self, name: str, *, location: str = "") -> NodeRecord:
        server = self.servers.setdefault(name, Server(self.world, name))
        record = await register_node(
            self.store,
            node_id=NodeId(name),
            storage_id=server.disk.storage_id,
            address=server.address,
            location=location,
            roles=ROLES,
            known_cluster_id="",
            new_id=self.world.ids("cluster"),
            now_ms=0,
        )
        await server.start(self.doors, record.generation)
        return record

    async def stop(self, *names: str) -> None:
        for name in names:
            await self.servers[name].stop(self.doors)

    async def wipe(self, name: str) -> None:
        """The node is back with an empty disk."""
        await self.stop(name)
        self.servers[name].wipe()
        await self.start(name)

    def replica(self, name: str) -> Replica:
        return Replica(node_id=NodeId(name), storage_id=self.servers[name].disk.storage_id)

    def segment(
        self,
        index: int,
        base: int,
        end: int | None = None,
        *,
        nodes: Sequence[str] = ("n1", "n2", "n3"),
        sequencer: str = "n1",
        generation: int = 1,
        write_quorum: int = 0,
        **others: Any,
    ) -> Segment:
        return Segment(
            index=index,
            base=Offset(base),
            end=None if end is None else Offset(end),
            sequencer=SequencerId(NodeId(sequencer), Generation(generation)),
            nodeset=tuple(map(self.replica, nodes)),
            write_quorum=write_quorum or len(nodes) // 2 + 1,
            **others,
        )

    async def put_log(
        self, *chain: Segment, name: str = "orders", log_id: int = LOG_ID, **others: Any
    ) -> LogRecord:
        """Write the log as it is, and wait until the view has it."""
        record = LogRecord(
            log_id=LogId(log_id),
            name=name,
            replicas=len(chain[-1].nodeset),
            write_quorum=chain[-1].write_quorum,
            created_ms=0,
            create_nonce="",
            chain=chain,
            **others,
        )
        self.metadata.swap(log_key(name), encode_log(record), ABSENT)
        await self.view.wait_log(name, lambda found: found == record)
        return record

    async def put(
        self,
        name: str,
        segment: Segment,
        *runs: tuple[int, int],
        committed: int | None = None,
        log_id: int = LOG_ID,
        text: str = "",
    ) -> None:
        """Give a log server batches of one record each, as the segment's sequencer would.

        A run that does not follow on the one before is a hole; what is below it is committed.
        """
        loglet = LogletId(LogId(log_id), segment.index)
        batches = [
            placed(offset, loglet=loglet, committed=first, text=text)
            for first, end in runs
            for offset in range(first, end)
        ]
        request = StoreRequest(
            StorageId(self.servers[name].disk.storage_id),
            segment.sequencer,
            [OpenLoglet(loglet, segment.base)],
            batches,
        )
        if committed is not None or (runs and runs[0][0] > segment.base):
            tail = max(committed or 0, runs[-1][0] if runs else 0)
            request.committed.append(CommittedTail(loglet, Offset(tail)))
        stream = self.doors.stream(self.servers[name].address, STORE)
        await stream.send(request)
        response = await stream.receive()
        assert response is not None
        assert not response.refused, response.refused
        stream.cancel()

    def held(self, name: str, segment: Segment, *, log_id: int = LOG_ID) -> list[int]:
        """First offsets of the batches on a node's disk."""
        loglet = LogletId(LogId(log_id), segment.index)
        disk = self.servers[name].disk
        return [it.first for it in disk.read(loglet, Offset(0), Offset(1 << 62))]

    async def damage(self, name: str, segment: Segment, offset: int) -> None:
        """Flip a bit on the disk; the process starts anew, for its cache would hide it."""
        await self.stop(name)
        self.servers[name].disk.damage(LogletId(LOG_ID, segment.index), Offset(offset))
        await self.start(name)

    async def until(self, condition: Callable[[], Any], *, within_s: float = 60.0) -> None:
        """Virtual time: polling costs nothing."""
        async with asyncio.timeout(within_s):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def chain(self, name: str = "orders") -> tuple[Segment, ...]:
        found = self.view.log(name)
        assert found is not None
        return found[0].chain


class Caretaker:
    """One node's controller and its company; `runs` are started by the test."""

    def __init__(self, cluster: Cluster, name: str, **config: Any) -> None:
        own = cluster.view.node(NodeId(name))
        assert own is not None
        me = SequencerId(own.node_id, own.generation)
        random = Random(f"{cluster.world.seed}/{name}")
        new_id = cluster.world.ids(f"ids of {name}")
        self.board = WorkBoard(own.node_id)
        self.liveness = Liveness(
            me=me,
            view=cluster.view,
            transport=cluster.doors,
            clock=cluster.clock,
            ping_timeout_s=0.4,
        )
        self.reconfigurer = Reconfigurer(
            me=me,
            store=cluster.store,
            view=cluster.view,
            transport=cluster.doors,
            clock=cluster.clock,
            random=random,
            new_id=new_id,
            liveness=self.liveness,
            sequencer=None,
            metrics=ReconfigurationMetrics(CollectorRegistry()),
        )
        self.failover = Failover(
            me=me,
            view=cluster.view,
            liveness=self.liveness,
            reconfigurer=self.reconfigurer,
            transport=cluster.doors,
            board=self.board,
            clock=cluster.clock,
            random=random,
        )
        self.care: Care = build_care(
            CareGround(
                own=own,
                config=ControllerConfig(**config),
                store=cluster.store,
                view=cluster.view,
                transport=cluster.doors,
                liveness=self.liveness,
                failover=self.failover,
                reconfigurer=self.reconfigurer,
                board=self.board,
                clock=cluster.clock,
                random=random,
                new_id=new_id,
                registry=CollectorRegistry(),
            )
        )

    def parts(self) -> Iterable[tuple[str, Any]]:
        """What the controller's work needs, but for the controller itself."""
        yield "liveness", self.liveness.run()
        yield "reconfigurer", self.reconfigurer.run()
        yield "failover", self.failover.run()

    def runs(self) -> Iterable[tuple[str, Any]]:
        yield from self.parts()
        yield from self.care.runs()


@asynccontextmanager
async def running(runs: Iterable[tuple[str, Any]]) -> AsyncIterator[dict[str, asyncio.Task[None]]]:
    """Run these for as long as the block lasts."""
    tasks = {name: asyncio.create_task(run, name=name) for name, run in runs}
    try:
        yield tasks
    finally:
        for task in tasks.values():
            task.cancel()
        done = await asyncio.gather(*tasks.values(), return_exceptions=True)
        for error in done:
            if isinstance(error, Exception):
                raise error


@asynccontextmanager
async def cluster_of(*names: str, seed: int = 1) -> AsyncIterator[Cluster]:
    """A cluster whose nodes are up."""
    cluster = Cluster(seed)
    view = asyncio.create_task(cluster.view.run(), name="view")
    try:
        await cluster.view.wait_ready()
        for name in names:
            await cluster.start(name)
        await cluster.until(lambda: len(cluster.view.nodes()) == len(names))
        yield cluster
    finally:
        await cluster.stop(*cluster.servers)
        await cluster.doors.close()
        view.cancel()
        with suppress(asyncio.CancelledError):
            await view


def virtually(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """A test under virtual time."""

    def run() -> None:
        run_virtual(test)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run
