"""The demo: the main job, on real input, through a failure. Run by `make demo`.

    python -m bench.demo [--input PATH]

Starts three nodes, creates a log with three replicas and a write quorum of two, and appends every
line of the input, one record each. Half-way one of the two nodes that do not hold the sequencer is
killed with SIGKILL; at three quarters it is started again. Then the whole log is read back from
offset 0, and a SHA-256 over all records (key and value, with their lengths) is compared with that
of the input. Exit code 0 only if they are equal.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, TypeVar

import click
from rich.console import Console

import sharedlog
from bench.demo_input import (
    CHUNK_BYTES,
    BadInput,
    Chunk,
    RecordDigest,
    Source,
    find_sources,
    read_chunks,
)
from bench.demo_progress import Reporter, make_reporter
from sharedlog.appender import Appender
from sharedlog.benchmark.histogram import Histogram
from sharedlog.dev_cluster import DevCluster, DevClusterError
from sharedlog.log import Log
from sharedlog.pending import PendingAppend
from sharedlog.tasks import first_error

REPLICAS: Final = 3
WRITE_QUORUM: Final = 2
KILL_AT: Final = 0.5
RESTART_AT: Final = 0.75
_IN_FLIGHT_BYTES: Final = 512 * 1024  # keeps three nodes busy without a long queue
_BUFFER_BYTES: Final = 128 * 1024
_BATCH_BYTES: Final = 128 * 1024
_STEPS_MIN: Final = 40  # small input is cut finer, so that "half-way" means something
_MB: Final = 1e6

T = TypeVar("T")


class DemoFailed(Exception):
    """What was read is not what was written."""


@dataclass(slots=True)
class Outcome:
    """What the demo measured."""

    written: RecordDigest = field(default_factory=RecordDigest)
    read: RecordDigest = field(default_factory=RecordDigest)
    append_s: float = 0.0
    read_s: float = 0.0
    latencies: Histogram = field(default_factory=Histogram)
    """Of chunks of input: from handing over the last record until that is acknowledged."""

    @property
    def equal(self) -> bool:
        """What was read is what was written."""
        return (
            self.written.records == self.read.records
            and self.written.hexdigest() == self.read.hexdigest()
        )


class Victim:
    """The node that is killed and comes back.

    Invariant: it never holds the sequencer of the demo's log.
    """

    def __init__(self, nodes: DevCluster, node_id: str, reporter: Reporter) -> None:
        self._nodes = nodes
        self._reporter = reporter
        self._killed = False
        self._restarting: asyncio.Task[None] | None = None
        self.node_id = node_id

    def at(self, fraction: float, records: int, group: asyncio.TaskGroup) -> None:
        """So much of the input has been handed over: kill, or start again, if it is time."""
        if fraction >= KILL_AT and not self._killed:
            self._killed = True
            pid = self._nodes.nodes[self.node_id].pid
            self._nodes.kill(self.node_id)
            self._reporter.say(
                f"{fraction:4.0%}  kill -9 {self.node_id} (pid {pid}) after {records:,} records; "
                "the log goes on with two of three"
            )
        if fraction >= RESTART_AT and self._restarting is None:
            self._reporter.say(f"{fraction:4.0%}  {self.node_id} is started again")
            self._restarting = group.create_task(self._restart(), name="demo-restart")

    async def _restart(self) -> None:
        began_s = time.monotonic()
        await self._nodes.restart(self.node_id)
        took_s = time.monotonic() - began_s
        self._reporter.say(f"      {self.node_id} is back, {took_s:.1f} s later")


async def run_demo(sources: list[Source], directory: Path, reporter: Reporter) -> Outcome:
    """Do all of it; the caller compares.

    Raises:
        DemoFailed: an offset was wrong on reading back.
        BadInput: a file can't be read.
        DevClusterError, SharedLogError: the cluster failed.
    """
    async with DevCluster(directory, nodes=3) as nodes:
        async with sharedlog.connect(nodes.addresses) as cluster:
            log = await cluster.create_log("demo", replicas=REPLICAS, write_quorum=WRITE_QUORUM)
            description = await log.describe()
            sequencer = description.chain[-1].sequencer.node_id
            victim_id = next(name for name in nodes.nodes if name != sequencer)
            reporter.say(
                f"three nodes run, sequencer on {sequencer}; log {log.name!r} with "
                f"{REPLICAS} replicas, write quorum {WRITE_QUORUM}"
            )
            outcome = Outcome()
            await _append_all(log, sources, Victim(nodes, victim_id, reporter), reporter, outcome)
            await _read_all(log, reporter, outcome)
        if died := nodes.take_died():
            raise DemoFailed(f"processes ended by themselves: {died}")
    return outcome


async def _append_all(
    log: Log, sources: list[Source], victim: Victim, reporter: Reporter, outcome: Outcome
) -> None:
    total = sum(source.size_bytes for source in sources)
    chunk_bytes = max(1, min(CHUNK_BYTES, total // _STEPS_MIN))
    reporter.begin("append", total)
    began_s = time.monotonic()
    handed_over = 0
    async with asyncio.TaskGroup() as group:
        async with log.appender(
            in_flight_bytes=_IN_FLIGHT_BYTES, buffer_bytes=_BUFFER_BYTES, batch_bytes=_BATCH_BYTES
        ) as appender:
            acks = Acks(outcome, reporter, began_s)
            watching = group.create_task(acks.run(), name="demo-acks")
            for chunk in read_chunks(sources, chunk_bytes):
                outcome.written.add(repeat(chunk.key), chunk.values)
                acks.watch(await _append_chunk(appender, chunk), time.monotonic(), chunk)
                handed_over += chunk.input_bytes
                victim.at(handed_over / total, outcome.written.records, group)
            await appender.flush()
            acks.end()
            await watching
        outcome.append_s = time.monotonic() - began_s
        reporter.at(total, _rate(outcome.written.value_bytes, outcome.append_s))
        victim.at(1.0, outcome.written.records, group)


async def _append_chunk(appender: Appender, chunk: Chunk) -> PendingAppend:
    """Hand over its records; returns the last one's outcome."""
    key = chunk.key
    for value in chunk.values[:-1]:
        await appender.append(value, key)
    return await appender.append(chunk.values[-1], key)


class Acks:
    """Takes acknowledgements in their order, as they come: latencies and progress."""

    def __init__(self, outcome: Outcome, reporter: Reporter, began_s: float) -> None:
        self._outcome = outcome
        self._reporter = reporter
        self._began_s = began_s
        self._due: deque[tuple[PendingAppend, float, Chunk]] = deque()  # the appender bounds it
        self._wake = asyncio.Event()
        self._ended = False
        self._acked_bytes = 0

    def watch(self, last: PendingAppend, sent_s: float, chunk: Chunk) -> None:
        """The chunk, of which `last` is the last record, was handed over."""
        self._due.append((last, sent_s, chunk))
        self._wake.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._wake.set()

    async def run(self) -> None:
        """Take what comes. Raises the error of an append that failed."""
        while True:
            while self._due:
                last, sent_s, chunk = self._due.popleft()
                await last
                now_s = time.monotonic()
                self._outcome.latencies.record(now_s - sent_s)
                self._acked_bytes += chunk.input_bytes
                rate = _rate(self._acked_bytes, now_s - self._began_s)
                self._reporter.at(self._acked_bytes, rate)
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()


async def _read_all(log: Log, reporter: Reporter, outcome: Outcome) -> None:
    reporter.begin("read", outcome.written.records)
    began_s = time.monotonic()
    found = outcome.read
    async for records in log.read_batches(start=0):
        if records[0].offset != found.records:
            raise DemoFailed(f"offset {records[0].offset} was read where {found.records} was due")
        found.add([record.key for record in records], [record.value for record in records])
        reporter.at(found.records, _rate(found.value_bytes, time.monotonic() - began_s))
    outcome.read_s = time.monotonic() - began_s


def _rate(size_bytes: int, seconds: float) -> str:
    return f"{size_bytes / _MB / seconds:,.1f} MB/s" if seconds > 0 else ""


def _rates(digest: RecordDigest, seconds: float) -> str:
    return f"{_rate(digest.value_bytes, seconds)}, {digest.records / seconds:,.0f} records/s"


def print_outcome(outcome: Outcome, console: Console) -> None:
    """The figures and the verdict."""
    written, read = outcome.written, outcome.read
    p50, p99 = outcome.latencies.percentiles_s([50.0, 99.0])
    rows = [
        ("records", f"{written.records:,}"),
        ("size", f"{written.value_bytes / _MB:,.1f} MB of values"),
        ("append", _rates(written, outcome.append_s)),
        ("latency", f"p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms (per batch, to the ack)"),
        ("read", _rates(read, outcome.read_s)),
        ("sha-256", f"{written.hexdigest()} written"),
        ("", f"{read.hexdigest()} read"),
    ]
    for name, value in rows:
        console.print(f"{name:<9}{value}", markup=False, soft_wrap=True)
    if outcome.equal:
        console.print(
            f"PASS: all {written.records:,} records came back in order and unchanged, "
            "with a node killed and restarted on the way",
            style="bold green",
            soft_wrap=True,
        )
    else:
        console.print(
            f"FAIL: {read.records:,} of {written.records:,} records came back, "
            "or they differ from the input",
            style="bold red",
            soft_wrap=True,
        )


@click.command()
@click.option(
    "--input",
    "path",
    type=click.Path(path_type=Path),
    help="File or folder to append instead of the standard library's source.",
)
def main(path: Path | None) -> None:
    """Append real input to a fresh cluster, kill a node half-way, read everything back, compare."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its lines about the killed node tell nothing
    console = Console(highlight=False)
    try:
        sources = find_sources(path)
        total = sum(source.size_bytes for source in sources)
        what = "the standard library's source" if path is None else str(path)
        console.print(
            f"input: {what}, {len(sources):,} files, {total / _MB:,.1f} MB",
            markup=False,
            soft_wrap=True,
        )
        with TemporaryDirectory(prefix="sharedlog-demo-") as directory:
            outcome = _run(run_in(sources, Path(directory), console))
    except BadInput as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except (DemoFailed, DevClusterError, sharedlog.SharedLogError, OSError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo("interrupted", err=True)
        sys.exit(130)
    print_outcome(outcome, console)
    sys.exit(0 if outcome.equal else 1)


async def run_in(sources: list[Source], directory: Path, console: Console) -> Outcome:
    """`run_demo` with a display; SIGTERM ends it as Ctrl-C does."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with make_reporter(console) as reporter:
        return await run_demo(sources, directory, reporter)


def _run(coroutine: Coroutine[None, None, T]) -> T:
    """Run it; of a task group's errors the one that says most is raised."""
    try:
        return asyncio.run(coroutine)
    except BaseExceptionGroup as errors:
        raise first_error(errors) from errors


if __name__ == "__main__":
    main()
