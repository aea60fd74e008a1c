"""How long appends stop while every node is restarted, one after the other, as for an upgrade.

Each of some logs has an appender of numbered records at a steady rate, and a follower. Node by
node: SIGTERM, the end of the process, a new start, and then a wait until the cluster is settled
(`sharedlog/settled.py`). The longest time between two acknowledgements that any appender saw from
the SIGTERM until then is the restart's *gap*. At the end each log is read and compared with what
was acknowledged and with what its follower was given: nothing may be missing, twice or out of
order, and nobody may have seen an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import sharedlog
from sharedlog.benchmark.report import describe_machine
from sharedlog.clock import Clock, SystemClock
from sharedlog.cluster import Cluster
from sharedlog.dev_cluster import DevCluster
from sharedlog.errors import SharedLogError
from sharedlog.log import Log
from sharedlog.pending import PendingAppend
from sharedlog.settled import wait_settled

OUTSTANDING_MAX: Final = 256
"""Records that an appender has on their way."""
SETTLE_MAX_S: Final = 60.0
_WARM_UP_S: Final = 1.0
_RECOVER_MAX_S: Final = 30.0
_POLL_S: Final = 0.01

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingPlan:
    """What is restarted, under what load."""

    nodes: int = 3
    rounds: int = 1  # of restarting every node
    logs: int = 3
    rate: float = 200.0  # records a second and log; 0: as many as go
    directory: Path | None = None


@dataclass(slots=True)
class LogLoad:
    """One log's appender and follower, and what they saw."""

    log: Log
    clock: Clock
    rate: float
    ack_times_s: list[float] = field(default_factory=list)  # one for each acknowledged record
    offsets: dict[int, int] = field(default_factory=dict)  # offset -> record's number
    follow_times_s: list[float] = field(default_factory=list)
    followed: list[int] = field(default_factory=list)  # numbers, in the order of arrival
    errors: list[str] = field(default_factory=list)
    stopping: bool = False

    async def run(self) -> None:
        """Append and follow until told to stop; ends when all that was appended has arrived."""
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(self._follow(), name="rolling-follow")
            await self._append()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RECOVER_MAX_S):
                    while len(self.followed) < len(self.offsets):
                        await self.clock.sleep(_POLL_S)
            following.cancel()

    async def _append(self) -> None:
        under_way: asyncio.Queue[tuple[int, PendingAppend] | None]
        under_way = asyncio.Queue(OUTSTANDING_MAX)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take(under_way), name="rolling-take")
            async with self.log.appender() as appender:
                begun_s, number = self.clock.monotonic_s(), 0
                while not self.stopping:
                    await under_way.put((number, await appender.append(b"%d" % number)))
                    number += 1
                    if self.rate:
                        due_s = begun_s + number / self.rate
                        await self.clock.sleep(max(0.0, due_s - self.clock.monotonic_s()))
            await under_way.put(None)

    async def _take(self, under_way: asyncio.Queue[tuple[int, PendingAppend] | None]) -> None:
        """Note each acknowledgement when it comes."""
        while (found := await under_way.get()) is not None:
            number, pending = found
            try:
                self.offsets[await pending] = number
            except SharedLogError as error:
                self.errors.append(f"append {number}: {type(error).__name__}: {error}")
            else:
                self.ack_times_s.append(self.clock.monotonic_s())

    async def _follow(self) -> None:
        try:
            async with contextlib.aclosing(self.log.read(start=0, follow=True)) as records:
                async for record in records:
                    self.followed.append(int(record.value))
                    self.follow_times_s.append(self.clock.monotonic_s())
        except SharedLogError as error:
            self.errors.append(f"follower: {type(error).__name__}: {error}")

    async def goes_on(self) -> None:
        """Wait until a record is acknowledged, and one arrives, from now on."""
        moment_s = self.clock.monotonic_s()
        async with asyncio.timeout(_RECOVER_MAX_S):
            for times in (self.ack_times_s, self.follow_times_s):
                while not times or times[-1] <= moment_s:
                    await self.clock.sleep(_POLL_S)


def longest_gap_ms(times_s: list[float], start_s: float, end_s: float) -> float:
    """Between two moments in a row, of which one lies in [start, end]."""
    first = max(0, bisect_left(times_s, start_s) - 1)
    last = bisect_left(times_s, end_s) + 1
    gaps = (later - sooner for sooner, later in pairwise(times_s[first:last]))
    return round(max(gaps, default=0.0) * 1e3, 1)


async def run_rolling(plan: RollingPlan, say: Say) -> dict[str, Any]:
    """Run it all; the result is what `--json` prints."""
    async with AsyncExitStack() as stack:
        directory = stack.enter_context(
            TemporaryDirectory(prefix="sharedlog-bench-", dir=plan.directory)
        )
        dev = await stack.enter_async_context(DevCluster(Path(directory), nodes=plan.nodes))
        cluster = await stack.enter_async_context(sharedlog.connect(dev.addresses))
        found = await roll(dev, cluster, plan, say)
    found["machine"] = describe_machine()
    return found


async def roll(
    dev: DevCluster,
    cluster: Cluster,
    plan: RollingPlan,
    say: Say = lambda _: None,
    *,
    restarted: int | None = None,
) -> dict[str, Any]:
    """Restart every node of a cluster, or the first ones, under load, and compare in the end.

    Raises:
        DeadlineExceeded: the cluster did not settle between two restarts.
        DevClusterError: a node did not start.
    """
    clock = SystemClock()
    loads = [
        LogLoad(await cluster.create_log(f"rolling-{number}"), clock, plan.rate)
        for number in range(plan.logs)
    ]
    async with asyncio.TaskGroup() as tasks:
        for load in loads:
            tasks.create_task(load.run(), name="rolling-load")
        try:
            await warm_up(cluster, loads)
            restarts = []
            for node_id in [*dev.nodes][:restarted] * plan.rounds:
                done = await _restart(dev, cluster, node_id, loads)
                say(
                    "{node_id}: longest gap {gap_ms} ms, settled after {settled_s} s".format(**done)
                )
                restarts.append(done)
        finally:
            for load in loads:
                load.stopping = True
    gaps = [it["gap_ms"] for it in restarts]
    follow_gaps = [it["follow_gap_ms"] for it in restarts]
    return {
        "nodes": len(dev.nodes),
        "logs": plan.logs,
        "rate_per_log": plan.rate,
        "restarts": restarts,
        "gap_ms": {"p50": round(median(gaps), 1), "max": max(gaps)},
        "follow_gap_ms": {"p50": round(median(follow_gaps), 1), "max": max(follow_gaps)},
        **await compare(loads),
    }


async def warm_up(cluster: Cluster, loads: list[LogLoad]) -> None:
    """Wait until everything runs. Raises `DeadlineExceeded` if the cluster does not settle."""
    for load in loads:
        await load.goes_on()
    await wait_settled(cluster, timeout_s=SETTLE_MAX_S)
    await loads[0].clock.sleep(_WARM_UP_S)


async def _restart(
    dev: DevCluster, cluster: Cluster, node_id: str, loads: list[LogLoad]
) -> dict[str, Any]:
    """One node: SIGTERM, a new start, and the wait until nothing is left to mend."""
    clock = loads[0].clock
    start_s = clock.monotonic_s()
    await dev.terminate(node_id)
    stopped_s = clock.monotonic_s()
    await dev.restart(node_id)
    ready_s = clock.monotonic_s()
    await wait_settled(cluster, timeout_s=SETTLE_MAX_S)
    for load in loads:
        await load.goes_on()
    end_s = clock.monotonic_s()
    stop_gap_ms, start_gap_ms = (
        max(longest_gap_ms(load.ack_times_s, *phase) for load in loads)
        for phase in ((start_s, stopped_s), (stopped_s, end_s))
    )
    return {
        "node_id": node_id,
        "stop_s": round(stopped_s - start_s, 3),
        "ready_s": round(ready_s - start_s, 3),
        "settled_s": round(end_s - start_s, 3),
        "gap_ms": max(stop_gap_ms, start_gap_ms),
        "stop_gap_ms": stop_gap_ms,  # while it hands over and ends
        "start_gap_ms": start_gap_ms,  # while it starts and catches up
        "follow_gap_ms": max(longest_gap_ms(load.follow_times_s, start_s, end_s) for load in loads),
    }


async def compare(loads: list[LogLoad]) -> dict[str, Any]:
    """Read every log: what was acknowledged is there, once, in order; followers had all of it."""
    lost = duplicated = reordered = not_followed = 0
    for load in loads:
        numbers = dict(load.offsets)
        values: list[int] = []
        end = await load.log.tail()
        async with contextlib.aclosing(load.log.read(start=0, end=end)) as records:
            async for record in records:
                values.append(int(record.value))
                if numbers.get(record.offset) == values[-1]:
                    del numbers[record.offset]
        lost += len(numbers)
        duplicated += len(values) - len(set(values))
        reordered += sum(later < sooner for sooner, later in pairwise(values))
        not_followed += load.followed != values
    errors = [error for load in loads for error in load.errors]
    return {
        "records": sum(len(load.offsets) for load in loads),
        "client_errors": len(errors),
        "client_errors_seen": errors[:10],
        "lost": lost,
        "duplicated": duplicated,
        "reordered": reordered,
        "logs_followed_otherwise": not_followed,
    }
