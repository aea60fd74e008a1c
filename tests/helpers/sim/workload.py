"""Clients of a simulated cluster, and what they do: read, follow, ask for the tail, and append.

Every client is a process of its own (a `Host`), with its own connection, and notes what it does in
one `History`. What they do, and when, is drawn from the seed. How they append is in `appends.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Any, Final, TypeVar, cast

from helpers.history import Append, History, Read
from helpers.history_log import Violation
from helpers.sim.cluster import SimCluster
from helpers.sim.loop import Host
from helpers.sim.world import SimClock, World

import sharedlog
from sharedlog.cluster import Cluster, Routing
from sharedlog.config import AppenderConfig
from sharedlog.errors import (
    AppendIndefinite,
    DataLoss,
    FencingTokenMismatch,
    OffsetMismatch,
    Purged,
    SharedLogError,
)
from sharedlog.log import Log
from sharedlog.read_window import ReadProgress

T = TypeVar("T")

VALUE_PAD: Final = 40
"""Bytes that each value has, its name included."""
KEYS: Final = (b"red", b"green", b"blue", None)
"""Of records, in turn."""
_APPENDERS: Final = AppenderConfig(slots=4)
"""Several small batches on their way at once: more that can go wrong than with one."""


class SimClient:
    """One client process, and the log that it uses."""

    def __init__(self, name: str, host: Host, cluster: Cluster, log: Log, draw: Random) -> None:
        self.name = name
        self.host = host
        self.cluster = cluster
        self.log = log
        self.draw = draw

    def at(self, log: str, world: World) -> SimClient:
        """The same process, which uses another log."""
        draw = world.random(f"{self.name} at {log}")
        return SimClient(self.name, self.host, self.cluster, self.cluster.log(log), draw)


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
        append_config=_APPENDERS,
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
        self.token = ""  # the fencing token that was set last, as far as clients know
        self.trace = world.trace.add
        self._tasks = tasks
        self._values = 0
        self.followers: list[Read] = []  # that are to get to the end
        self.following: list[asyncio.Task[None]] = []
        self.violations: list[Violation] = []  # of which the history would not tell

    def start(self, client: SimClient, run: Awaitable[None], what: str) -> asyncio.Task[None]:
        """Run a part of the workload as the client's process."""
        name = f"{client.name} {what}"
        return client.host.run(self._tasks.create_task, cast("Any", run), name=name)

    # Appends.

    def record(self, client: SimClient, name: str = "") -> tuple[bytes, bytes | None]:
        """A value that no other record has, and a key that many have."""
        self._values += 1
        value = f"{client.name}/{self._values} {name}".encode().ljust(VALUE_PAD, b".")
        return value, KEYS[self._values % len(KEYS)]

    async def settle(self, appends: Sequence[Append], answer: Awaitable[int]) -> None:
        """Wait for the offset of the first of a batch, and note what came."""
        try:
            first = await answer
        except SharedLogError as error:
            self.failed(appends, error)
            return
        for index, append in enumerate(appends):
            self.history.acked(append, first + index)
        self.trace(f"acknowledged {first} {appends[0].value.decode()}")

    def failed(self, appends: Sequence[Append], error: SharedLogError) -> None:
        """Note that all records of a batch failed."""
        definite = not isinstance(error, AppendIndefinite)
        tail = error.tail if isinstance(error, OffsetMismatch) else None
        token = error.current if isinstance(error, FencingTokenMismatch) else None
        for index, append in enumerate(appends):
            told = None if index else tail  # of where the batch begins
            self.history.failed(append, error, definite=definite, tail=told, token=token)
        self.trace(f"failed {appends[0].value.decode()} {type(error).__name__} {error}")

    # Reads.

    async def read_now_and_then(self, client: SimClient, *, pause_s: float) -> None:
        """From the beginning, or from some place, to the tail, or to some place; all, or a key."""
        draw, history = client.draw, self.history
        seen = 0
        while not self.stopping:
            await asyncio.sleep(draw.expovariate(1 / pause_s))
            start = draw.choice((0, max(0, seen - 10), draw.randint(0, seen)))
            end = None if draw.random() < 0.8 or start == seen else draw.randint(start + 1, seen)
            key = draw.choice(KEYS) if draw.random() < 0.5 else None
            read = history.read(client.name, start, end=end, key=key)
            await self._read_to_end(client.log, read)
            seen = max(seen, read.position)

    async def follow(self, client: SimClient, *, key: bytes | None = None) -> None:
        """From 0 on, for ever; a reader that failed goes on where it stood."""
        read = self.history.read(client.name, 0, follow=True, key=key)
        self.followers.append(read)
        while True:
            try:
                await self._read(client.log, read, position=read.position)
            except SharedLogError as error:
                self.read_failed(read, error)
            await asyncio.sleep(client.draw.uniform(0.2, 1.0))

    async def _read_to_end(self, log: Log, read: Read) -> None:
        """Beyond what is purged, if it is told so; with any other failure the read is over."""
        try:
            try:
                await self._read(log, read)
            except Purged as error:
                self.read_failed(read, error)
                if read.end is not None and read.position >= read.end:
                    return
                await self._read(log, read, position=read.position)
                read.stale = True  # the tail that it got to is a later one than it began with
            self.history.read_ended(read)
        except SharedLogError as error:
            self.read_failed(read, error)

    async def _read(self, log: Log, read: Read, *, position: int | None = None) -> None:
        def stale(_: str) -> None:
            read.stale = True

        def stands(progress: ReadProgress) -> None:
            read.covered = progress.position

        start = read.start if position is None else position
        records = log.read(
            start,
            read.end,
            follow=read.follow,
            key=read.key,
            on_stale=stale,
            on_progress=stands if read.follow else None,
        )
        async with aclosing(records):
            async for record in records:
                self.history.saw(read, record.offset, record.value, record.timestamp_ms)

    def read_failed(self, read: Read, error: SharedLogError) -> None:
        """Note that a read ended before its end."""
        read.error = f"{type(error).__name__}: {error}"
        self.trace(f"read of {read.reader} failed at {read.position}: {read.error}")
        if isinstance(error, DataLoss):
            read.lost.append((error.first, error.end))
        elif isinstance(error, Purged):
            self.history.purged(read, error.offset, error.start)

    # Tails.

    async def ask_for_tails(self, client: SimClient, *, pause_s: float) -> None:
        """The real tail most of the time, sometimes the cheap one."""
        while not self.stopping:
            await asyncio.sleep(client.draw.expovariate(1 / pause_s))
            await self.find_tail(client)

    async def find_tail(self, client: SimClient) -> int | None:
        """One tail, mostly the real one; None if there is no answer."""
        tail = self.history.tail(client.name, known=client.draw.random() < 0.15)
        try:
            asked = client.log.known_tail() if tail.known else client.log.tail(timeout_s=4.0)
            self.history.tail_found(tail, await asked)
        except SharedLogError as error:
            tail.error = f"{type(error).__name__}: {error}"
        return tail.tail


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
