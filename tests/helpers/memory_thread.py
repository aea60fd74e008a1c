"""A cluster in memory with a thread and a loop of its own, for tests that block."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from helpers.memory_server import MemoryCluster, MemoryNode, memory_cluster

from sharedlog.batch import decode_placed

Answer = TypeVar("Answer")

_PATIENCE_S = 10.0


class MemoryThread:
    """The cluster, and the way to its loop."""

    def __init__(self, memory: MemoryCluster, loop: asyncio.AbstractEventLoop) -> None:
        self.memory = memory
        self.address = memory.address
        self._loop = loop

    def call(self, act: Callable[[], Answer]) -> Answer:
        """Do something on the cluster's loop."""

        async def on_loop() -> Answer:
            return act()

        return asyncio.run_coroutine_threadsafe(on_loop(), self._loop).result(_PATIENCE_S)

    @contextmanager
    def held_acks(self, node: MemoryNode) -> Iterator[None]:
        """The node takes batches and answers none, for as long as the block lasts."""
        self.call(node.acks.clear)
        try:
            yield
        finally:
            self.call(node.acks.set)

    def stored(self, name: str) -> list[bytes]:
        """The values in a log, in order."""
        batches = self.memory.logs[name].batches
        return self.call(lambda: [r.value for placed in batches for r in decode_placed(placed)])


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that another thread makes true."""
    give_up = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up, "it never came true"
        time.sleep(0.002)


@contextmanager
def memory_thread(*logs: str) -> Iterator[MemoryThread]:
    """A running cluster in memory with these logs."""
    started = threading.Event()
    found: list[MemoryThread] = []
    stop: list[asyncio.Event] = []

    async def serve() -> None:
        async with memory_cluster() as memory:
            for name in logs:
                memory.create(name)
            stop.append(asyncio.Event())
            found.append(MemoryThread(memory, asyncio.get_running_loop()))
            started.set()
            await stop[0].wait()

    def run() -> None:
        try:
            asyncio.run(serve())
        finally:
            started.set()

    thread = threading.Thread(target=run, name="memory-cluster")
    thread.start()
    started.wait()
    try:
        yield found[0]
    finally:
        found[0].call(stop[0].set)
        thread.join()
