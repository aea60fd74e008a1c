"""The blocking client beside the asyncio one, in turns, in one run.

    python -m bench.sync_client [--records N] [--size BYTES] [--rounds N] [--address HOST:PORT]

Three ways to use a log: a pipelined appender, a read from start to tail, one append at a time. Each
round runs each way with both clients, so that what else the machine does hits both; what is printed
are medians, and the blocking client's as a share of the asyncio one's. Without `--address` it
starts a cluster of three nodes on this machine.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import click

import sharedlog
import sharedlog.sync
from sharedlog.dev_cluster import DevCluster

_ONE_BY_ONE = 200
_WAYS = ("append", "read", "append one by one")


async def measure_async(address: str, name: str, values: list[bytes]) -> list[float]:
    """Seconds for each of the ways."""
    async with sharedlog.connect(address) as cluster:
        log = await cluster.create_log(name)
        await log.append(b"")
        times = [time.perf_counter()]
        async with log.appender() as appender:
            for value in values:
                await appender.append(value)
        times.append(time.perf_counter())
        count = 0
        async for _ in log.read():
            count += 1
        times.append(time.perf_counter())
        for value in values[:_ONE_BY_ONE]:
            await log.append(value)
        times.append(time.perf_counter())
    assert count == len(values) + 1
    return [after - before for before, after in pairwise(times)]


def measure_sync(address: str, name: str, values: list[bytes]) -> list[float]:
    """The same with calls that wait."""
    with sharedlog.sync.connect(address) as cluster:
        log = cluster.create_log(name)
        log.append(b"")
        times = [time.perf_counter()]
        with log.appender() as appender:
            for value in values:
                appender.append(value)
        times.append(time.perf_counter())
        count = 0
        for _ in log.read():
            count += 1
        times.append(time.perf_counter())
        for value in values[:_ONE_BY_ONE]:
            log.append(value)
        times.append(time.perf_counter())
    assert count == len(values) + 1
    return [after - before for before, after in pairwise(times)]


def compare(address: str, values: list[bytes], rounds: int) -> None:
    """Run all rounds and print what came out."""
    run = f"{time.time_ns():x}"
    clients: dict[str, Callable[[str], list[float]]] = {
        "async": lambda name: asyncio.run(measure_async(address, name, values)),
        "sync": lambda name: measure_sync(address, name, values),
    }
    seconds: dict[str, list[list[float]]] = {client: [] for client in clients}
    for number in range(rounds):
        order = list(clients) if number % 2 == 0 else list(reversed(clients))
        for client in order:
            seconds[client].append(clients[client](f"{client}/{run}/{number}"))
    counts = (len(values), len(values) + 1, min(_ONE_BY_ONE, len(values)))
    for way, (what, count) in enumerate(zip(_WAYS, counts, strict=True)):
        rates = {c: count / statistics.median(t[way] for t in seconds[c]) for c in clients}
        share = rates["sync"] / rates["async"]
        print(
            f"{what:18} async {rates['async']:>9,.0f}/s  sync {rates['sync']:>9,.0f}/s  {share:.0%}"
        )


@click.command()
@click.option("--records", default=200_000, show_default=True)
@click.option("--size", default=100, show_default=True, help="Bytes of a record.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--address", help="Of a cluster that runs.")
def main(records: int, size: int, rounds: int, address: str | None) -> None:
    """Compare the two clients."""
    values = [b"x" * size] * records
    if address is not None:
        compare(address, values, rounds)
        return
    with TemporaryDirectory(prefix="sharedlog-bench-") as directory, asyncio.Runner() as runner:
        stack = AsyncExitStack()
        dev = runner.run(stack.enter_async_context(DevCluster(Path(directory), nodes=3)))
        try:
            compare(dev.address, values, rounds)
        finally:
            runner.run(stack.aclose())


if __name__ == "__main__":
    sys.exit(main())
