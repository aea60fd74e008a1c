"""`sharedlog bench exactly-once`: what it costs, and how long taking over a log's state takes.

**Cost.** Rounds of full speed on one log, with and without a producer, in turn, so that a machine
whose speed drifts does not favour one of them; what counts is the ratio within each pair.

**Taking over.** A log of so many bytes in one open segment, with a fencing token that was set at
its beginning and a named producer; then it is moved to another node, and that one says how long it
took to have the state. *busy*: the producer wrote all of it, and last. *resting*: it wrote at the
beginning only, and others the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

import sharedlog
from sharedlog.appender import Appender
from sharedlog.benchmark.report import describe_machine
from sharedlog.benchmark.scrape import scrape_all
from sharedlog.clock import SystemClock
from sharedlog.cluster import Cluster
from sharedlog.dev_cluster import DevCluster

Say = Callable[[str], None]

_RECORD: Final = bytes(1024)
_AT_ONCE: Final = 256
_METRIC: Final = "sharedlog_sequencer_state_recovery_seconds"
_MOVES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactlyOncePlan:
    """What to run."""

    rounds: int = 10
    seconds: float = 2.0
    segment_mb: int = 1_000
    directory: Path | None = None


async def run_exactly_once(plan: ExactlyOncePlan, say: Say) -> dict[str, Any]:
    """Run it all; the result is what `--json` prints."""
    with TemporaryDirectory(prefix="sharedlog-bench-", dir=plan.directory) as directory:
        async with (
            DevCluster(Path(directory)) as nodes,
            sharedlog.connect(nodes.addresses) as cluster,
        ):
            found: dict[str, Any] = {}
            if plan.rounds:
                found["cost"] = await _cost(cluster, plan, say)
            if plan.segment_mb:
                http = [node.http_address for node in nodes.nodes.values()]
                found["takeover"] = {
                    name: await _takeover(cluster, http, plan, say, busy=name == "busy")
                    for name in ("busy", "resting")
                }
    found["machine"] = describe_machine()
    return found


async def _cost(cluster: Cluster, plan: ExactlyOncePlan, say: Say) -> dict[str, Any]:
    log = await cluster.create_log("bench-cost")
    await _append_for(log.appender(), plan.seconds)  # warm up
    rates: dict[str, list[float]] = {"on": [], "off": [], "named": []}
    for number in range(plan.rounds):
        order = ["on", "off", "named"]
        for name in order if number % 2 else reversed(order):
            appender = log.appender(
                exactly_once=name != "off", producer="bench" if name == "named" else None
            )
            rates[name].append(await _append_for(appender, plan.seconds))
        say(f"cost: round {number + 1} of {plan.rounds}")
    pairs = {
        f"{name}_over_off": round(
            median(a / b for a, b in zip(rates[name], rates["off"], strict=True)), 4
        )
        for name in ("on", "named")
    }
    medians = {f"{name}_mb_per_s": round(median(found), 1) for name, found in rates.items()}
    return {"rounds": plan.rounds, **medians, **pairs}


async def _takeover(
    cluster: Cluster, http: list[str], plan: ExactlyOncePlan, say: Say, *, busy: bool
) -> dict[str, Any]:
    log = await cluster.create_log(f"bench-takeover-{'busy' if busy else 'resting'}")
    await log.fence("bench")
    size = plan.segment_mb * 1_000_000
    async with log.appender(producer="bench") as appender:
        await _append_bytes(appender, size if busy else 1_000_000)
    if not busy:
        async with log.appender() as appender:
            await _append_bytes(appender, size)
    say(f"takeover: {await log.tail():,} offsets in one segment")
    took_ms = []
    for _ in range(_MOVES):
        before = await scrape_all(http)
        await cluster.admin.reconfigure(log.name, reason="benchmark")
        await log.append(b"one record in each segment")
        after = await scrape_all(http)
        count = after[f"{_METRIC}_count"] - before.get(f"{_METRIC}_count", 0.0)
        took_s = after[f"{_METRIC}_sum"] - before.get(f"{_METRIC}_sum", 0.0)
        took_ms.append(took_s / max(count, 1) * 1e3)
    shown = [round(it, 1) for it in took_ms]
    say(f"takeover: {shown} ms")
    return {"segment_mb": plan.segment_mb, "first_ms": shown[0], "later_ms": shown[1:]}


async def _append_for(appender: Appender, seconds: float) -> float:
    """MB/s (10^6 bytes of values) of 1 KiB records through one session."""
    clock, count = SystemClock(), 0
    async with appender:
        await (await appender.append(_RECORD))  # the session is open
        start_s = clock.monotonic_s()
        while clock.monotonic_s() - start_s < seconds:
            await appender.append_many([_RECORD] * _AT_ONCE)
            count += _AT_ONCE
        await appender.flush()
        took_s = clock.monotonic_s() - start_s
    return count * len(_RECORD) / 1e6 / took_s


async def _append_bytes(appender: Appender, size: int) -> None:
    for _ in range(size // (len(_RECORD) * _AT_ONCE)):
        await appender.append_many([_RECORD] * _AT_ONCE)
    await appender.flush()
