"""The process: builds the real parts, starts them in order, and stops them in order.

    http → metadata store → join → log store → register → view → log server → sequencer
         → public API → gRPC port opens → ready

* Everything that can fail because of the operator comes before the node registers: registering
  counts a process start, and stops an older process of the same node for good.
* Nothing serves before the view is complete, so that the first answer is not built on ignorance.
* All long-lived work runs in one task group. The first part that fails ends them all: a log server
  whose disk failed must not go on answering from memory, and a node whose identity another process
  has taken must not go on at all (field notes 23, 27).
* A call of the node to itself never leaves the process: its own address routes to a loopback.

Shutting down: not ready, hand over the logs that this node orders (it serves meanwhile, and says to
other nodes that it stops), admit no appends, wait for those in flight, close the port, stop the
parts, close the stores. A second signal cuts short whatever it waits for.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry

from metadata.metered import MeteredMetadataStore
from metadata.metrics import MetadataCallMetrics
from metadata.records import STATE_GONE, NodeRecord
from metadata.standing import StandingMetadataStore
from metadata.store import MetadataStore
from metadata.view import ClusterView
from node.config import NodeConfig, split_address
from node.errors import StartError
from node.identity import join, register
from node.metrics import NodeMetrics, RequestMetrics
from node.readiness import SERVING, STARTING, STOPPING, Readiness
from node.requests import Requests
from node.services import Ground, Services, build_services
from node.told_settings import NOTHING_TOLD, ToldSettings
from sharedlog import __version__
from sharedlog.clock import Clock, SystemClock
from sharedlog.errors import SharedLogError, StoreFailed, Superseded
from sharedlog.ids import NodeId
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.loopback import Loopback, RoutingTransport
from sharedlog.rpc.transport import CallHandler, Method, Req, Resp, Server, StreamHandler
from sharedlog.tasks import first_error, run_together

if TYPE_CHECKING:  # loaded by those roles that need them
    from loglet.archive.object_store import ObjectStore
    from loglet.store import LogStore
    from metadata.embedded import EmbeddedMetadataStore

log = logging.getLogger("node")

EXIT_STOPPED: Final = 0
EXIT_FAILED: Final = 1

_CLOSE_GRACE_S: Final = 0.2
"""For calls that run when the port closes. Streams between nodes never end by themselves, so this
time is always spent in full."""

_TAKE_BACK: Final = "it is given nothing to do; `sharedlog node drain NODE --undo` takes it back"


def run_node(config: NodeConfig, told: ToldSettings = NOTHING_TOLD) -> int:
    """Run a node until SIGTERM or SIGINT; returns the process's exit code."""
    # With Python's default of 5 ms the thread that writes to disk waits up to that long for the
    # interpreter whenever the event loop is busy, and every append with it.
    sys.setswitchinterval(config.switch_interval_s)
    return asyncio.run(
        NodeProcess(config, clock=SystemClock(), random=Random(), new_id=_uuid, told=told).run()
    )


def _uuid() -> str:
    return uuid.uuid4().hex  # noqa: TID251  here the real source of ids is chosen


class NodeProcess:
    """One node, from its start to its end."""

    def __init__(
        self,
        config: NodeConfig,
        *,
        clock: Clock,
        random: Random,
        new_id: Callable[[], str],
        told: ToldSettings = NOTHING_TOLD,
    ) -> None:
        self._config = config
        self._told = told
        self._clock = clock
        self._random = random
        self._new_id = new_id
        self._started_s = clock.monotonic_s()
        self._readiness = STARTING
        self._stop_asked = asyncio.Event()
        self._stop_at_once = asyncio.Event()
        self._registry = CollectorRegistry()
        self._metrics = NodeMetrics(self._registry, node_id=config.node_id, version=__version__)
        self._running: list[asyncio.Task[None]] = []
        self._server: GrpcServer | None = None
        self._services: Services | None = None

    async def run(self) -> int:
        """Start, serve, stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        log.info(
            "node.starting",
            extra={"node": self._config.node_id, "pid": os.getpid(), "version": __version__},
        )
        try:
            async with AsyncExitStack() as resources, asyncio.TaskGroup() as tasks:
                self._spawn(tasks, self._start(tasks, resources), "start")
                await self._stop_asked.wait()
                await self._shut_down()
        except BaseExceptionGroup as group:
            return self._failed(first_error(group))
        except (SharedLogError, StartError) as error:
            return self._failed(error)
        log.info("node.stopped", extra={"node": self._config.node_id})
        return EXIT_STOPPED

    def _on_signal(self) -> None:
        if self._stop_asked.is_set():
            self._stop_at_once.set()
        self._stop_asked.set()

    def _failed(self, error: BaseException) -> int:
        fields = {"node": self._config.node_id, "error": str(error), "kind": type(error).__name__}
        expected = isinstance(error, SharedLogError | StartError | OSError)
        log.critical("node.failed", extra=fields, exc_info=None if expected else error)
        return EXIT_FAILED

    def _spawn(self, tasks: asyncio.TaskGroup, run: Coroutine[Any, Any, None], name: str) -> None:
        self._running.append(tasks.create_task(run, name=name))

    async def _start(self, tasks: asyncio.TaskGroup, resources: AsyncExitStack) -> None:
        """Everything up to ready, in the order of the module's docstring."""
        config = self._config
        await self._start_http(resources)
        check_port_free(config.listen)
        loopback, server = Loopback(), GrpcServer()
        transport = RoutingTransport({config.address: loopback}, default=GrpcTransport())
        resources.push_async_callback(transport.close)
        clock, new_id = self._clock, self._new_id
        opened = await self._open_metadata(tasks, resources, server, transport)
        standing = StandingMetadataStore(opened)
        store = MeteredMetadataStore(standing, clock, MetadataCallMetrics(self._registry))
        cluster_id = await join(store, config, clock=clock, new_id=new_id)
        log_store = self._open_log_store(resources, cluster_id)
        own = await register(
            store,
            config,
            cluster_id=cluster_id,
            storage_id=log_store.storage_id if log_store is not None else None,
            clock=clock,
            new_id=new_id,
        )
        self._metrics.set_generation(own.generation)
        if own.state == STATE_GONE:
            log.warning("node.was_removed", extra={"node": own.node_id, "advice": _TAKE_BACK})
        view = ClusterView(store, self._clock)
        self._spawn(tasks, view.run(), "view")
        await view.wait_ready()
        self._spawn(tasks, _stop_if_superseded(view, own), "identity")
        services = build_services(
            Ground(
                config=config,
                cluster_id=cluster_id,
                own=own,
                store=store,
                view=view,
                log_store=log_store,
                archive=self._open_archive(resources),
                transport=transport,
                clock=clock,
                random=self._random,
                new_id=new_id,
                registry=self._registry,
                started_s=self._started_s,
                told=self._told,
            )
        )
        requests = Requests(
            server,
            clock=clock,
            metrics=RequestMetrics(self._registry),
            written=config.request_log,
            slow_s=config.slow_request_s,
        )
        services.register(BothServers(loopback, requests))
        for name, run in services.runs():
            self._spawn(tasks, run, name)
        self._services, self._server = services, server
        self._metrics.watch(
            ready=lambda: self._readiness.ready,
            metadata_connected=lambda: view.connected,
            sessions=lambda: services.appends.sessions_open,
            reads=lambda: services.reads.reads_open,
        )
        await server.start(config.listen)
        resources.push_async_callback(server.stop, grace_s=0)
        self._ready(own)

    def _ready(self, own: NodeRecord) -> None:
        # What start-up made lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self._readiness = SERVING
        seconds = round(self._clock.monotonic_s() - self._started_s, 3)
        log.info(
            "node.ready",
            extra={
                "node": own.node_id,
                "generation": own.generation,
                "address": own.address,
                "http": own.http_address,
                "roles": list(own.roles),
                "storage_id": own.storage_id,
                "seconds": seconds,
            },
        )

    async def _start_http(self, resources: AsyncExitStack) -> None:
        if not self._config.http:
            return
        from node.http import HttpServer  # late: a node without it need not load the library

        http = HttpServer(
            address=self._config.http, registry=self._registry, readiness=self._current_readiness
        )
        await http.start()
        resources.push_async_callback(http.stop)

    def _current_readiness(self) -> Readiness:
        if self._readiness is SERVING and self._services is not None:
            problem = self._services.problem()
            if problem:
                return Readiness(ready=True, reason=f"serving; {problem}")
        return self._readiness

    async def _open_metadata(
        self,
        tasks: asyncio.TaskGroup,
        resources: AsyncExitStack,
        server: GrpcServer,
        transport: RoutingTransport,
    ) -> MetadataStore:
        config = self._config
        if "metadata" not in config.roles:
            from metadata.url import open_metadata_store

            found = open_metadata_store(
                config.metadata_url,
                transport,
                clock=self._clock,
                new_id=self._new_id,
                settings=config.metadata_settings,
            )
            resources.push_async_callback(found.close)
            return found
        from metadata.embedded import EmbeddedMetadataStore
        from metadata.metrics import MetadataMetrics
        from metadata.service import MetadataService

        store = EmbeddedMetadataStore(
            Path(config.dir) / "metadata",
            self._clock,
            config=config.metadata_store,
            metrics=MetadataMetrics(self._registry),
        )
        resources.push_async_callback(store.close)
        MetadataService(store).register(server)
        self._spawn(tasks, _stop_if_failed(store), "metadata-store")
        return store

    async def _shut_down(self) -> None:
        self._readiness = STOPPING
        log.info("node.stopping", extra={"node": self._config.node_id})
        if self._services is not None and self._server is not None:
            leaving = self._services.leave(timeout_s=self._config.shutdown_grace_s)
            await run_together({"leave": leaving, "stop-at-once": self._hurried()})
            await self._server.stop(grace_s=_CLOSE_GRACE_S)
        for task in self._running:
            task.cancel()

    async def _hurried(self) -> None:
        await self._stop_at_once.wait()
        log.warning("node.stopping_at_once", extra={"node": self._config.node_id})

    def _open_archive(self, resources: AsyncExitStack) -> ObjectStore | None:
        """It connects when it is first used: a node starts, and orders logs, without it."""
        settings = self._config.archive
        if not settings.url:
            return None
        from loglet.archive.object_store import open_object_store

        store = open_object_store(
            settings.url, settings, clock=self._clock, rng=self._random, new_id=self._new_id
        )
        resources.push_async_callback(store.close)
        return store

    def _open_log_store(self, resources: AsyncExitStack, cluster_id: str) -> LogStore | None:
        if "log-server" not in self._config.roles:
            return None
        from loglet.lmdb_store import LmdbLogStore

        store = LmdbLogStore.open(
            Path(self._config.dir) / "store",
            node_id=NodeId(self._config.node_id),
            cluster_id=cluster_id,
            new_id=self._new_id,
            config=self._config.log_server,
        )
        resources.push_async_callback(store.close)
        return store


class BothServers:
    """Adds every method to the port's server and to the loopback: the node calls itself there."""

    def __init__(self, *servers: Server) -> None:
        self._servers = servers

    def add_call(self, method: Method[Req, Resp], handler: CallHandler[Req, Resp]) -> None:
        """See `Server.add_call`."""
        for server in self._servers:
            server.add_call(method, handler)

    def add_stream(self, method: Method[Req, Resp], handler: StreamHandler[Resp, Req]) -> None:
        """See `Server.add_stream`."""
        for server in self._servers:
            server.add_stream(method, handler)


def check_port_free(address: str) -> None:
    """Fail early if another process listens there: the port itself is only bound at the end.

    Raises:
        StartError: it can't be bound now.
    """
    host, port = split_address("listen", address)
    try:
        family, _, _, _, place = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As servers do: connections of an earlier process that fade away are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise StartError(f"can't listen on {address}: {error.strerror or error}") from error


async def _stop_if_superseded(view: ClusterView, own: NodeRecord) -> None:
    """Field note 27: of two processes of one node the older one stops itself."""
    newer = await view.wait_superseded(own)
    raise Superseded(
        f"node {own.node_id} was started again, at {newer.address}, as generation "
        f"{newer.generation}; this process is generation {own.generation} and stops"
    )


async def _stop_if_failed(store: EmbeddedMetadataStore) -> None:
    raise StoreFailed(await store.wait_failed())
