"""A log that is appended to and trimmed for many times its retention: does the store grow?

    python -m bench.space [--retention-mb N] [--times N] [--batch-bytes N] [--loglets N] [--dir DIR]

One log server in this process on a real disk, fsync on. So many loglets are stored to in turn, a
group of batches with each commit, and each time that an eighth of the retention has been stored,
all of them are trimmed to the retention. What is trimmed is deleted while storing goes on. For each
phase (up to 1, 2, 10 and 50 times the retention) it prints what the store takes of its disk, what
of that is used, and how long commits took, sync included. The first phase is without any deletion:
it is what the others are to be compared with.

Batches are between half and one and a half of `--batch-bytes`, at random. Exits with 1 if the file
is more than twice what it was at twice the retention.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import click
from prometheus_client import CollectorRegistry

from loglet.config import LogServerConfig
from loglet.lmdb_store import LmdbLogStore
from loglet.messages import CommittedTail, OpenLoglet, StoreRequest, StoreResponse
from loglet.metrics import LogServerMetrics
from loglet.service import LogServer
from loglet.store import Write
from loglet.wire import STORE, loglet_to_proto
from sharedlog.batch import Placement, encode_records, parse_batch_header, place_batch
from sharedlog.benchmark.histogram import Histogram
from sharedlog.clock import SystemClock
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.methods import TRIM
from sharedlog.rpc.transport import ClientStream
from sharedlog.v1 import log_server_pb2

MB = 1_000_000
STORAGE = StorageId("b" * 32)
ME = SequencerId(NodeId("bench"), Generation(1))
TRIMS_PER_RETENTION = 8
GROUP_BYTES = 256 * 1024  # of batches in one commit
GROWTH_MAX = 2.0

StoreStream = ClientStream[StoreRequest, StoreResponse]


@dataclass(frozen=True, slots=True)
class Phase:
    """How things stood when so many times the retention had been stored."""

    times: float
    stored_mb: float
    file_mb: float
    used_mb: float
    deleted_batches: int
    commits: int
    commit_p50_ms: float
    commit_p99_ms: float
    commit_max_ms: float
    seconds: float


class TimedStore(LmdbLogStore):
    """Notes how long each commit takes, from the event loop and back."""

    commits: Histogram

    async def commit(self, writes: Sequence[Write]) -> None:
        begun_s = time.perf_counter()
        await super().commit(writes)
        self.commits.record(time.perf_counter() - begun_s)


class Loglet:
    """One loglet that is stored to: its next offset, and what it keeps."""

    def __init__(self, number: int, random: Random) -> None:
        self.loglet = LogletId(LogId(number + 1), 0)
        self.tail = Offset(0)
        self.start = Offset(0)
        self._sizes: deque[tuple[Offset, int]] = deque()  # end and bytes of what is kept
        self._bytes = 0
        self._random = random

    def place(self, size: int) -> bytes:
        """The next batch."""
        count = self._random.randint(1, 8)
        value = self._random.randbytes(max(1, size // count))
        batch = encode_records((value, None, None) for _ in range(count))
        crc = parse_batch_header(batch).crc32c
        now_ms = time.time_ns() // 1_000_000
        placed = place_batch(
            Placement(self.loglet, self.tail, count, now_ms, self.tail, crc), batch
        )
        self.tail = Offset(self.tail + count)
        self._sizes.append((self.tail, len(placed)))
        self._bytes += len(placed)
        return placed

    def keep(self, size: int) -> Offset:
        """Where the local start has to be, for the newest `size` bytes to be kept."""
        while self._bytes > size:
            self.start, gone = self._sizes.popleft()
            self._bytes -= gone
        return self.start


class Run:
    """Stores and trims, and writes down what came of it."""

    def __init__(self, server: LogServer, store: TimedStore, *, loglets: int, seed: int) -> None:
        self.random = Random(seed)
        self.loglets = [Loglet(it, self.random) for it in range(loglets)]
        self.store = store
        self.stored = 0
        self.transport = Loopback()
        server.register(self.transport)
        self.stream: StoreStream = self.transport.stream("local", STORE)

    async def open(self) -> None:
        opens = [OpenLoglet(it.loglet, Offset(0)) for it in self.loglets]
        await self._store(StoreRequest(STORAGE, ME, opens))

    async def until(self, stored: int, *, retention: int, batch_bytes: int) -> None:
        """Store until there were so many bytes, and trim on the way."""
        step = max(retention // TRIMS_PER_RETENTION, GROUP_BYTES)
        while self.stored < stored:
            before = self.stored
            batches: list[bytes] = []
            size = 0
            one = self.random.choice(self.loglets)
            while size < GROUP_BYTES:
                batches.append(
                    one.place(self.random.randint(batch_bytes // 2, 3 * batch_bytes // 2))
                )
                size += len(batches[-1])
            self.stored += size
            tails = [CommittedTail(one.loglet, one.tail)]
            await self._store(StoreRequest(STORAGE, ME, batches=batches))
            # It is one replica of one: what it holds is committed.
            await self._store(StoreRequest(STORAGE, ME, committed=tails), answered=False)
            if self.stored // step > before // step:
                await self._trim(retention // len(self.loglets))

    async def _store(self, request: StoreRequest, *, answered: bool = True) -> None:
        await self.stream.send(request)
        if answered:
            response = await self.stream.receive()
            assert response is not None
            assert not response.refused, response.refused

    async def _trim(self, keep: int) -> None:
        request = log_server_pb2.TrimRequest(storage_id=STORAGE)
        for one in self.loglets:
            start = one.keep(keep)
            request.loglets.add(loglet=loglet_to_proto(one.loglet), local_start=start)
        await self.transport.call("local", TRIM, request, timeout_s=30)


def _phase(run: Run, registry: CollectorRegistry, *, retention: int, begun_s: float) -> Phase:
    space, commits = run.store.space(), run.store.commits
    p50, p99 = commits.percentiles_s([50, 99])
    deleted = registry.get_sample_value("sharedlog_log_server_trimmed_batches_total") or 0
    return Phase(
        times=round(run.stored / retention, 2),
        stored_mb=round(run.stored / MB, 1),
        file_mb=round(space.file_bytes / MB, 1),
        used_mb=round(space.used_bytes / MB, 1),
        deleted_batches=int(deleted),
        commits=commits.count,
        commit_p50_ms=round(p50 * 1_000, 2),
        commit_p99_ms=round(p99 * 1_000, 2),
        commit_max_ms=round(commits.max_s * 1_000, 2),
        seconds=round(time.perf_counter() - begun_s, 1),
    )


async def measure(
    directory: Path, *, retention: int, times: Sequence[float], batch_bytes: int, loglets: int
) -> list[Phase]:
    """Run it in an empty directory; a figure for each of `times`."""
    config = LogServerConfig(reserve_bytes=0)
    store = TimedStore.open(
        directory, node_id=NodeId("bench"), cluster_id="c", new_id=lambda: STORAGE, config=config
    )
    assert isinstance(store, TimedStore)
    store.commits = Histogram()
    registry = CollectorRegistry()
    server = LogServer(
        node_id=NodeId("bench"),
        store=store,
        clock=SystemClock(),
        config=config,
        metrics=LogServerMetrics(registry),
    )
    run = Run(server, store, loglets=loglets, seed=1)
    writer = asyncio.create_task(server.run(), name="log-server")
    phases = []
    try:
        await run.open()
        for until in times:
            store.commits, begun_s = Histogram(), time.perf_counter()
            await run.until(int(until * retention), retention=retention, batch_bytes=batch_bytes)
            phases.append(_phase(run, registry, retention=retention, begun_s=begun_s))
    finally:
        run.stream.cancel()
        await run.transport.close()
        writer.cancel()
        with suppress(asyncio.CancelledError):
            await writer
        await store.close()
    return phases


def _table(phases: Sequence[Phase]) -> str:
    lines = ["  times  stored MB  file MB  used MB  commits   p50 ms   p99 ms   max ms"]
    lines += [
        f"{it.times:7.1f}  {it.stored_mb:9.1f}  {it.file_mb:7.1f}  {it.used_mb:7.1f}  "
        f"{it.commits:7}  {it.commit_p50_ms:7.2f}  {it.commit_p99_ms:7.2f}  {it.commit_max_ms:7.2f}"
        for it in phases
    ]
    return "\n".join(lines)


@click.command()
@click.option("--retention-mb", type=click.FloatRange(min=1), default=8.0, show_default=True)
@click.option("--times", type=click.FloatRange(min=3), default=50.0, show_default=True)
@click.option("--batch-bytes", type=click.IntRange(16, 4 * MB), default=8_000, show_default=True)
@click.option("--loglets", type=click.IntRange(1, 10_000), default=4, show_default=True)
@click.option("--dir", "parent", type=click.Path(exists=True, file_okay=False), help="Which disk.")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def main(
    *,
    retention_mb: float,
    times: float,
    batch_bytes: int,
    loglets: int,
    parent: str | None,
    as_json: bool,
) -> None:
    """Append and trim, and look at the store's size."""
    phases_at = [it for it in (1.0, 2.0, 10.0) if it < times] + [times]
    with TemporaryDirectory(prefix="sharedlog-bench-", dir=parent) as directory:
        phases = asyncio.run(
            measure(
                Path(directory),
                retention=int(retention_mb * MB),
                times=phases_at,
                batch_bytes=batch_bytes,
                loglets=loglets,
            )
        )
    grown = phases[-1].file_mb / phases[1].file_mb
    if as_json:
        result = {
            "retention_mb": retention_mb,
            "batch_bytes": batch_bytes,
            "loglets": loglets,
            "growth": round(grown, 3),
            "phases": [asdict(it) for it in phases],
        }
        click.echo(json.dumps(result))
    else:
        click.echo(_table(phases))
        click.echo(f"the file is {grown:.2f} times what it was at twice the retention")
    sys.exit(1 if grown > GROWTH_MAX else 0)


if __name__ == "__main__":
    main()
