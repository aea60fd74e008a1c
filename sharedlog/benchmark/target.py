"""The cluster that is measured: a fresh one on this machine, or one that runs already."""

from __future__ import annotations

import asyncio
import os
import selectors
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

from sharedlog.benchmark.processes import UsageSampler
from sharedlog.clock import Clock, SystemClock

if TYPE_CHECKING:
    from sharedlog.cluster import Cluster
    from sharedlog.log import Log

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetPlan:
    """Which cluster, and what kind of log."""

    address: str | None = None
    """Of a cluster that runs; None starts a fresh one."""
    timeout_s: float | None = None
    """Longest wait for an answer to a call other than append and read; None is the client's."""
    dev_nodes: int = 3
    directory: Path | None = None
    """Where a fresh cluster has its data; the system's temporary directory if not given."""
    replicas: int = 0
    """0: the cluster's default."""
    write_quorum: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further SHAREDLOG_* environment of the nodes of a fresh cluster."""


@dataclass(frozen=True, slots=True)
class Target:
    """A connected client and a log made for this run."""

    cluster: Cluster
    log: Log
    address: str
    sampler: UsageSampler
    clock: Clock
    http_addresses: Sequence[str] = ()
    """Of the nodes of a fresh cluster."""


@asynccontextmanager
async def open_target(plan: TargetPlan) -> AsyncIterator[Target]:
    """Start the cluster if one is to be started, connect, create the log; undo it all at the end.

    The log of a cluster that was running stays there.
    """
    import sharedlog
    from sharedlog.dev_cluster import DevCluster

    clock = SystemClock()
    pids = {"client": os.getpid()}
    http_addresses: list[str] = []
    async with AsyncExitStack() as stack:
        replicas, address = plan.replicas, plan.address
        if address is None:
            directory = stack.enter_context(
                TemporaryDirectory(prefix="sharedlog-bench-", dir=plan.directory)
            )
            dev = await stack.enter_async_context(
                DevCluster(Path(directory), nodes=plan.dev_nodes, settings=plan.settings)
            )
            address = dev.address
            replicas = replicas or min(3, plan.dev_nodes)
            http_addresses += [node.http_address for node in dev.nodes.values()]
            for node in (*dev.nodes.values(), dev.metadata):
                if node.pid is not None:
                    pids[node.node_id] = node.pid
        config = sharedlog.ClientConfig()
        if plan.timeout_s is not None:
            config = sharedlog.ClientConfig(timeout_s=plan.timeout_s)
        cluster = await stack.enter_async_context(sharedlog.connect(address, config=config))
        name = f"bench-{os.urandom(6).hex()}"
        log = await cluster.create_log(
            name, replicas=replicas or None, write_quorum=plan.write_quorum or None
        )
        yield Target(cluster, log, address, UsageSampler(pids, clock), clock, http_addresses)


def run_precisely(main: Coroutine[Any, Any, T]) -> T:
    """Run on an event loop whose timers are exact to microseconds.

    epoll counts in whole milliseconds and rounds up, which would add half a millisecond to each
    intended send time.
    """
    with asyncio.Runner(loop_factory=_make_precise_loop) as runner:
        return runner.run(main)


def _make_precise_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(selectors.SelectSelector())
