"""Clients of a simulated cluster, and what they do: append, read, follow, ask for the tail.

Every client is a process of its own (a `Host`), with its own connection, and notes what it does in
one `History`. What they do, and when, is drawn from the seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Any, TypeVar, cast

from helpers.history import Append, History, Read
from helpers.sim.cluster import SimCluster
from helpers.sim.loop import Host
from helpers.sim.world import SimClock, World

import sharedlog
from sharedlog.appender import Appender
from sharedlog.batch import BatchBuilder
from sharedlog.cluster import Cluster, Routing
from sharedlog.errors import AppendIndefinite, DataLoss, SharedLogError
from sharedlog.log import Log

T = TypeVar("T")

DROP_PROBABILITY = 0.02
"""Of an appender, after each burst."""

VALUE_PAD = 40
"""Bytes that each value has beyond its name."""


class SimClient:
    """One client process, and the log that it uses."""

    def __init__(self, name: str, host: Host, cluster: Cluster, log: Log, draw: Random) -> None:
        self.name = name
        self.host = host
        self.cluster = cluster
        self.log = log
        self.draw = draw


@asynccontextmanager
async def open_client(
    world: World, cluster: SimCluster, name: str, log: str, *, routing: Routing = "smart"
) -> AsyncIterator[SimClient]:
    """A client that knows all nodes. What runs for it must be started by `client.host.run`."""
    transport = cluster.network.transport(name)
    addresses = [node.address for node in cluster.nodes.values()]
    connected = sharedlog.connect(
        addresses,
        routing=routing,
        transport=transport,
        clock=SimClock(),
        rng=world.random(f"client {name}"),
    )
    try:
        found = SimClient(name, Host(name), connected, connected.log(log), world.random(name))
        yield found
    finally:
        await connected.close(drop=True)
        await transport.close()


class Workload:
    """What clients do until told to stop; then each ends what it has begun."""

    def __init__(self, world: World, history: History, tasks: asyncio.TaskGroup) -> None:
        self.history = history
        self.stopping = False
        self._trace = world.trace
        self._tasks = tasks
        self._values = 0
        self.followers: list[Read] = []
        self.following: list[asyncio.Task[None]] = []

    def start(self, client: SimClient, run: Awaitable[None], what: str) -> asyncio.Task[None]:
        """Run a part of the workload as the client's process."""
        name = f"{client.name} {what}"
        return client.host.run(self._tasks.create_task, cast("Any", run), name=name)

    # Appends.

    async def append_pipelined(
        self, client: SimClient, *, pause_s: float, timeout_s: float
    ) -> None:
        """Bursts of records and batches through one appender, in order.

        Now and then the appender is dropped with what it has under way, and another one goes on.
        """
        draw = client.draw
        pending: list[asyncio.Task[None]] = []
        number = 0
        while not self.stopping:
            number += 1
            appender = client.log.appender(timeout_s=timeout_s)
            name = f"{client.name}.a{number}"
            while not self.stopping and draw.random() > DROP_PROBABILITY:
                if draw.random() < 0.15:
                    values = [self._value(client) for _ in range(draw.randint(2, 5))]
                    await self._append_batch(client, appender, name, pending, values)
                for _ in range(draw.choice((1, 1, 1, 2, 6))):
                    await self._append_record(client, appender, name, pending)
                    if draw.random() < 0.5:
                        await asyncio.sleep(draw.uniform(0, 0.03))  # a batch of its own
                await asyncio.sleep(draw.expovariate(1 / pause_s))
            if self.stopping:
                await _all(pending)
            await appender.abort()
        await _all(pending)

    async def _append_record(
        self,
        client: SimClient,
        appender: Appender,
        name: str,
        pending: list[asyncio.Task[None]],
    ) -> None:
        append = self.history.append(name, self._value(client))
        try:
            promised = await appender.append(append.value)
        except SharedLogError as error:
            self._failed([append], error)
            return
        self.history.admitted(append)
        pending.append(self.start(client, self._settle([append], promised), "answer"))

    async def _append_batch(
        self,
        client: SimClient,
        appender: Appender,
        name: str,
        pending: list[asyncio.Task[None]],
        values: Sequence[bytes],
    ) -> None:
        appends = self.history.append_batch(name, values)
        builder = BatchBuilder()
        for value in values:
            builder.append(value)
        try:
            batch = await appender.append_batch(builder)
        except SharedLogError as error:
            self._failed(appends, error)
            return
        for append in appends:
            self.history.admitted(append)

        async def answer() -> int:
            await batch.wait()
            return batch.first_offset()

        pending.append(self.start(client, self._settle(appends, answer()), "answer"))

    async def append_singly(self, client: SimClient, *, pause_s: float, timeout_s: float) -> None:
        """One record after the other, each waited for."""
        draw, number = client.draw, 0
        while not self.stopping:
            number += 1
            append = self.history.append(f"{client.name}.{number}", self._value(client))
            await self._settle([append], client.log.append(append.value, timeout_s=timeout_s))
            await asyncio.sleep(draw.expovariate(1 / pause_s))

    def _value(self, client: SimClient) -> bytes:
        self._values += 1
        return f"{client.name}/{self._values}".encode().ljust(VALUE_PAD, b".")

    async def _settle(self, appends: Sequence[Append], answer: Awaitable[int]) -> None:
        try:
            first = await answer
        except SharedLogError as error:
            self._failed(appends, error)
            return
        for index, append in enumerate(appends):
            self.history.acked(append, first + index)
        self._trace.add(f"acknowledged {first} {appends[0].value.decode()}")

    def _failed(self, appends: Sequence[Append], error: SharedLogError) -> None:
        for append in appends:
            definite = not isinstance(error, AppendIndefinite)
            self.history.failed(append, error, definite=definite)
        self._trace.add(f"failed {appends[0].value.decode()} {type(error).__name__} {error}")

    # Reads.

    async def read_now_and_then(self, client: SimClient, *, pause_s: float) -> None:
        """From the beginning, or from some place, to the tail, or to some place."""
        draw, history = client.draw, self.history
        seen = 0
        while not self.stopping:
            await asyncio.sleep(draw.expovariate(1 / pause_s))
            start = draw.choice((0, max(0, seen - 10), draw.randint(0, seen)))
            end = None if draw.random() < 0.8 or start == seen else draw.randint(start + 1, seen)
            read = history.read(client.name, start, end=end)
            try:
                await self._read(client.log, read)
                history.read_ended(read)
            except SharedLogError as error:
                self._read_failed(read, error)
            seen = max(seen, read.position)

    async def follow(self, client: SimClient, *, start: int = 0) -> None:
        """From an offset on, for ever; a reader that failed goes on where it stood."""
        read = self.history.read(client.name, start, follow=True)
        self.followers.append(read)
        while True:
            try:
                await self._read(client.log, read, position=read.position)
            except SharedLogError as error:
                self._read_failed(read, error)
            await asyncio.sleep(client.draw.uniform(0.2, 1.0))

    async def _read(self, log: Log, read: Read, *, position: int | None = None) -> None:
        def stale(_: str) -> None:
            read.stale = True

        start = read.start if position is None else position
        records = log.read(start, read.end, follow=read.follow, on_stale=stale)
        async with aclosing(records):
            async for record in records:
                self.history.saw(read, record.offset, record.value, record.timestamp_ms)

    def _read_failed(self, read: Read, error: SharedLogError) -> None:
        read.error = f"{type(error).__name__}: {error}"
        self._trace.add(f"read of {read.reader} failed at {read.position}: {read.error}")
        if isinstance(error, DataLoss):
            read.lost.append((error.first, error.end))

    # Tails.

    async def ask_for_tails(self, client: SimClient, *, pause_s: float) -> None:
        """The real tail most of the time, sometimes the cheap one."""
        draw, history = client.draw, self.history
        while not self.stopping:
            await asyncio.sleep(draw.expovariate(1 / pause_s))
            tail = history.tail(client.name, known=draw.random() < 0.15)
            try:
                asked = client.log.known_tail() if tail.known else client.log.tail(timeout_s=4.0)
                history.tail_found(tail, await asked)
            except SharedLogError as error:
                tail.error = f"{type(error).__name__}: {error}"


async def _all(tasks: Sequence[asyncio.Task[None]]) -> None:
    if tasks:
        await asyncio.wait(tasks)


async def patiently(ask: Callable[[], Awaitable[T]], *, within_s: float, pause_s: float = 0.5) -> T:
    """Ask until there is an answer; raises the last error once the time is over."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + within_s
    while True:
        try:
            return await ask()
        except SharedLogError:
            if loop.time() >= until_s:
                raise
        await asyncio.sleep(pause_s)
