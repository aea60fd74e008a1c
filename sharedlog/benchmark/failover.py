"""How long appends stop when a log's sequencer moves, dies, sleeps or is cut off.

A client appends numbered records without a pause and notes when each acknowledgement comes. Round
by round something is done to the node that orders the log; the longest time between two
acknowledgements around it is the round's *gap*. At the end the log is read from its start and
compared with what was acknowledged: nothing may be missing, twice or out of order.

Always on a fresh cluster, for nodes are killed. For partitions the nodes live in a network of their
own (`sharedlog/dev_network.py`); where that can't be, those rounds are left out and the reason is
reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import sharedlog
from sharedlog.benchmark.report import describe_machine
from sharedlog.clock import SystemClock
from sharedlog.cluster import Cluster
from sharedlog.dev_cluster import HOST as LOOPBACK
from sharedlog.dev_cluster import METADATA, DevCluster
from sharedlog.dev_network import CLIENT, DevNetwork, why_impossible
from sharedlog.errors import SharedLogError
from sharedlog.log import Log
from sharedlog.pending import PendingAppend

LOG: Final = "failover"
OUTSTANDING_MAX: Final = 32
"""Records that the client has on their way."""
_RECOVER_MAX_S: Final = 60.0
_POLL_S: Final = 0.01
_APART_S: Final = 3.0
"""A node is paused or cut off for so long, at least: longer than a failover may take."""
_THROUGHPUT_S: Final = 2.0
_THROUGHPUT_ROUNDS: Final = 10
_THROUGHPUT_RECORD: Final = bytes(1024)

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FailoverPlan:
    """How many rounds of each kind; 0 leaves the kind out."""

    planned: int = 50
    shutdown: int = 10
    kill: int = 30
    pause: int = 20
    partition: int = 20
    reconfigurations: int = 1000
    nodes: int = 3
    directory: Path | None = None
    metadata: str = ""
    """URL of a metadata store that runs elsewhere; "": a process of the cluster."""


@dataclass(slots=True)
class _Load:
    """The client that appends without pause, and what it saw."""

    log: Log
    clock: SystemClock
    ack_times_s: list[float] = field(default_factory=list)  # one for each acknowledged record
    offsets: dict[int, int] = field(default_factory=dict)  # record's number -> offset
    errors: list[str] = field(default_factory=list)
    stopping: bool = False
    number: int = 0

    async def run(self) -> None:
        """Append until told to stop; then wait for what is on its way."""
        waiting: deque[tuple[int, PendingAppend]] = deque()
        async with self.log.appender() as appender:
            while not self.stopping:
                waiting.append((self.number, await appender.append(b"%d" % self.number)))
                self.number += 1
                if len(waiting) >= OUTSTANDING_MAX:
                    await self._take(waiting)
            while waiting:
                await self._take(waiting)

    async def _take(self, waiting: deque[tuple[int, PendingAppend]]) -> None:
        number, pending = waiting.popleft()
        try:
            self.offsets[number] = await pending
        except SharedLogError as error:
            self.errors.append(f"{type(error).__name__}: {error}")
        else:
            self.ack_times_s.append(self.clock.monotonic_s())

    async def acknowledged_after(self, moment_s: float) -> None:
        """Wait until a record was acknowledged later than that."""
        async with asyncio.timeout(_RECOVER_MAX_S):
            while not self.ack_times_s or self.ack_times_s[-1] <= moment_s:
                await self.clock.sleep(_POLL_S)

    def longest_gap_s(self, start_s: float, end_s: float) -> float:
        """Between two acknowledgements, of which one lies in [start, end]."""
        times = self.ack_times_s
        first = max(0, bisect_left(times, start_s) - 1)
        last = bisect_left(times, end_s) + 1
        return max((later - sooner for sooner, later in pairwise(times[first:last])), default=0.0)


async def run_failover(plan: FailoverPlan, say: Say) -> dict[str, Any]:
    """Run it all; the result is what `--json` prints."""
    obstacle = why_impossible() if plan.partition else ""
    network: DevNetwork | None = None
    async with AsyncExitStack() as stack:
        if plan.partition and not obstacle:
            names = [f"n{number + 1}" for number in range(plan.nodes)]
            names += [] if plan.metadata else [METADATA]
            network = stack.enter_context(DevNetwork(names))
        directory = stack.enter_context(
            TemporaryDirectory(prefix="sharedlog-bench-", dir=plan.directory)
        )
        dev = DevCluster(
            Path(directory),
            nodes=plan.nodes,
            network=network,
            metadata_url=_as_seen_from(network, plan.metadata),
            settings=_metadata_settings(network),
        )
        await stack.enter_async_context(dev)
        cluster = await stack.enter_async_context(sharedlog.connect(dev.addresses))
        bench = _Bench(dev, cluster, network, say)
        found = await bench.run(plan)
        if obstacle:
            found["partition"]["skipped"] = obstacle
        if plan.reconfigurations:
            found["throughput"] = await _throughput(cluster, plan.reconfigurations, say)
    found["metadata"] = plan.metadata or "embedded"
    found["machine"] = describe_machine()
    return found


def failover_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """What `run_failover` returns, as a table."""
    rows = []
    for kind in ("planned", "shutdown", "kill", "pause", "partition"):
        gap = found[kind]["gap_ms"] or {"p50": found[kind].get("skipped", ""), "max": ""}
        rows.append([kind, str(found[kind]["n"]), str(gap["p50"]), str(gap["max"])])
    names = ("records", "client_errors", "lost", "duplicated", "reordered")
    rows += [[name.replace("_", " "), f"{found[name]:,}", "", ""] for name in names]
    for name, value in found.get("throughput", {}).items():
        rows.append([name.replace("_", " "), f"{value:,}", "", ""])
    return rows


def _as_seen_from(network: DevNetwork | None, text: str) -> str:
    """Loopback is this process's host there: a server that listens on all addresses is found."""
    return text if network is None else text.replace(LOOPBACK, network.host(CLIENT))


def _metadata_settings(network: DevNetwork | None) -> dict[str, str]:
    """How the nodes are to reach the metadata store, as this process's environment says it."""
    return {
        name: _as_seen_from(network, value)
        for name, value in os.environ.items()
        if name.startswith("SHAREDLOG_METADATA_")
    }


class _Bench:
    """The rounds, on one cluster."""

    def __init__(
        self, dev: DevCluster, cluster: Cluster, network: DevNetwork | None, say: Say
    ) -> None:
        self._dev = dev
        self._cluster = cluster
        self._network = network
        self._say = say
        self._clock = SystemClock()
        self._load: _Load | None = None

    async def run(self, plan: FailoverPlan) -> dict[str, Any]:
        """All rounds under one load, then the comparison."""
        log = await self._cluster.create_log(LOG)
        load = self._load = _Load(log, self._clock)
        kinds: list[tuple[str, int, Callable[[str], Awaitable[None]]]] = [
            ("planned", plan.planned, self._planned),
            ("shutdown", plan.shutdown, self._shut_down),
            ("kill", plan.kill, self._kill),
            ("pause", plan.pause, self._pause),
            ("partition", plan.partition if self._network else 0, self._partition),
        ]
        found: dict[str, Any] = {}
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run(), name="failover-load")
            try:
                await load.acknowledged_after(0.0)
                await self._clock.sleep(1.0)
                for kind, count, disturb in kinds:
                    gaps = [await self._round(kind, disturb) for _ in range(count)]
                    found[kind] = _summary(gaps)
                    if gaps:
                        self._say(f"{kind}: {count} rounds, gap {found[kind]['gap_ms']}")
            finally:
                load.stopping = True
        return found | await self._compare(load)

    async def _round(self, kind: str, disturb: Callable[[str], Awaitable[None]]) -> float:
        """One disturbance of the node that orders the log; the gap that it made."""
        load = self._load
        assert load is not None
        description = await self._cluster.describe_log(LOG)
        sequencer = description.chain[-1].sequencer.node_id
        start_s = self._clock.monotonic_s()
        await disturb(sequencer)
        await load.acknowledged_after(self._clock.monotonic_s())
        end_s = self._clock.monotonic_s()
        gap_s = load.longest_gap_s(start_s, end_s)
        self._say(f"{kind}: {sequencer}, {gap_s * 1e3:.1f} ms")
        await self._clock.sleep(0.3)
        return gap_s

    async def _planned(self, sequencer: str) -> None:
        names = list(self._dev.nodes)
        target = names[(names.index(sequencer) + 1) % len(names)]
        await self._cluster.admin.reconfigure(LOG, sequencer=target, reason="benchmark")

    async def _shut_down(self, sequencer: str) -> None:
        await self._dev.terminate(sequencer)
        await self._recovered()
        await self._dev.restart(sequencer)
        await self._clock.sleep(1.0)

    async def _kill(self, sequencer: str) -> None:
        self._dev.kill(sequencer)
        await self._recovered()
        await self._dev.restart(sequencer)
        await self._clock.sleep(1.0)

    async def _pause(self, sequencer: str) -> None:
        self._dev.send_signal(sequencer, signal.SIGSTOP)
        try:
            await self._recovered()
            await self._clock.sleep(_APART_S)
        finally:
            self._dev.send_signal(sequencer, signal.SIGCONT)
        await self._clock.sleep(1.0)

    async def _partition(self, sequencer: str) -> None:
        assert self._network is not None
        self._network.isolate(sequencer)
        try:
            await self._recovered()
            await self._clock.sleep(_APART_S)
        finally:
            self._network.mend()
        await self._clock.sleep(2.0)

    async def _recovered(self) -> None:
        assert self._load is not None
        # What was acknowledged just before the disturbance may still be on its way here.
        await self._load.acknowledged_after(self._clock.monotonic_s() + 0.1)

    async def _compare(self, load: _Load) -> dict[str, Any]:
        """Read the log from its start: what was acknowledged is there, once, in order."""
        values: list[int] = []
        wrong = 0
        tail = await load.log.tail()
        numbers = {offset: number for number, offset in load.offsets.items()}
        async with contextlib.aclosing(load.log.read(start=0, end=tail)) as records:
            async for record in records:
                value = int(record.value)
                values.append(value)
                wrong += numbers.pop(record.offset, value) != value
        return {
            "records": len(load.offsets),
            "client_errors": len(load.errors),
            "client_errors_seen": load.errors[:10],
            "lost": len(numbers) + wrong,
            "duplicated": len(values) - len(set(values)),
            "reordered": sum(later < sooner for sooner, later in pairwise(values)),
            "segments": (await self._cluster.describe_log(LOG)).segment_count,
        }


async def _throughput(cluster: Cluster, reconfigurations: int, say: Say) -> dict[str, Any]:
    """Appends to a log before and after many reconfigurations, beside a log that had none.

    In turn, and what counts is the ratio within each pair: a machine's speed drifts by more than
    there is to be seen.
    """
    worn = await cluster.create_log(f"{LOG}-worn")
    fresh = await cluster.create_log(f"{LOG}-fresh")
    await _append_rate(worn)  # warm up
    before = await _rates(worn, fresh)
    for number in range(reconfigurations):
        await worn.append(b"one record in each segment")
        await cluster.admin.reconfigure(worn.name, reason="benchmark")
        if (number + 1) % 100 == 0:
            say(f"throughput: {number + 1} reconfigurations")
    after = await _rates(worn, fresh)
    ratio_before, ratio_after = (median(a / b for a, b in pairs) for pairs in (before, after))
    return {
        "reconfigurations": reconfigurations,
        "before_mb_per_s": round(median(rate for rate, _ in before), 2),
        "after_mb_per_s": round(median(rate for rate, _ in after), 2),
        "fresh_log_before_mb_per_s": round(median(rate for _, rate in before), 2),
        "fresh_log_after_mb_per_s": round(median(rate for _, rate in after), 2),
        "over_fresh_before": round(ratio_before, 4),
        "over_fresh_after": round(ratio_after, 4),
        "after_over_before": round(ratio_after / ratio_before, 4),
    }


async def _rates(worn: Log, fresh: Log) -> list[tuple[float, float]]:
    """Pairs of rates of the two logs; which comes first alternates."""
    pairs = []
    for number in range(_THROUGHPUT_ROUNDS):
        if number % 2:
            fresh_rate = await _append_rate(fresh)
            pairs.append((await _append_rate(worn), fresh_rate))
        else:
            worn_rate = await _append_rate(worn)
            pairs.append((worn_rate, await _append_rate(fresh)))
    return pairs


async def _append_rate(log: Log) -> float:
    """MB/s (10^6 bytes of values) of 1 KiB records through one session."""
    clock = SystemClock()
    count = 0
    start_s = clock.monotonic_s()
    async with log.appender() as appender:
        while clock.monotonic_s() - start_s < _THROUGHPUT_S:
            await appender.append_many([_THROUGHPUT_RECORD] * 256)
            count += 256
    return count * len(_THROUGHPUT_RECORD) / 1e6 / (clock.monotonic_s() - start_s)


def _summary(gaps_s: list[float]) -> dict[str, Any]:
    if not gaps_s:
        return {"n": 0, "gap_ms": None}
    return {
        "n": len(gaps_s),
        "gap_ms": {"p50": round(median(gaps_s) * 1e3, 1), "max": round(max(gaps_s) * 1e3, 1)},
    }
