"""`sharedlog bench archive`: what archiving costs those who append, and those who read.

Two fresh clusters of this machine, one without an archive and one with. Both get the same, in
turn, so that a machine whose speed drifts favours neither; the one whose turn it is not idles.

1. *append*: an open loop at a steady rate, so many rounds, and one before that does not count.
   Beside it the bytes are sampled that are committed and not archived yet. Before the plain cluster
   has its turn the other has archived what it can, so that it is idle then.
2. *first record*: the archived log is trimmed from the log servers up to its last batch, and read
   from random offsets far apart, one fresh read each. Nobody has read any of it before.
3. *catch-up*: both logs are read from their beginning, in turn: the one from the log servers, the
   other from the archive.

The memory of the nodes is sampled all the time. What those of the cluster with the archive had at
most, over what those of the other had in the same turns, is what archiving takes: a fixed part, the
library for S3, that is there from the start, and what comes with the work.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Final

from sharedlog.benchmark.append import AckWatcher, AppendPlan, OpenRun, make_value
from sharedlog.benchmark.histogram import Histogram
from sharedlog.benchmark.report import Recorder, describe_machine, stolen_seconds
from sharedlog.benchmark.target import Target, TargetPlan, open_target
from sharedlog.limits import MIB

Say = Callable[[str], None]

_MB: Final = 1_000_000
_SETTINGS: Final = {
    # As a server with a machine to itself, each holds what is not archived yet. The bound of a
    # development cluster would have it read from the disk again. It is full after the round that
    # does not count: then each new page is one that was just let go, on both sides.
    "SHAREDLOG_LOG_SERVER__PAGE_CACHE_BYTES": str(256 * MIB),
}
"""Of both clusters."""
_START_S: Final = 1.0
_LAG_EVERY_S: Final = 0.25
_SETTLE_S_MAX: Final = 60.0
_SETTLE_POLL_S: Final = 0.2


class ArchiveBenchFailed(Exception):
    """There is nothing to measure. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivePlan:
    """What to run."""

    archive: str = ""
    """URL of the archive; "" is a folder beside the clusters' data."""
    endpoint: str = ""
    """Of the server that speaks S3; "" is Amazon's."""
    mb_per_s: float = 50.0
    """Megabytes (10^6) of record values appended per second."""
    record_bytes: int = 1024
    seconds: float = 5.0
    """Of each turn of appending."""
    warm_up_s: float = 2.0
    rounds: int = 9
    object_mib: int = 32
    reads: int = 50
    """First records."""
    passes: int = 3
    """Catch-up reads of each log."""
    nodes: int = 3
    directory: Path | None = None


@dataclass(slots=True)
class _Side:
    """One of the two clusters, and what was seen of it."""

    name: str
    target: Target
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    mb_per_s: list[float] = field(default_factory=list)
    read_mb_per_s: list[float] = field(default_factory=list)
    lag_mb: list[list[float]] = field(default_factory=list)  # of each turn, in time
    start_mb: float = 0.0  # memory of the node that had most of it, before anything was done
    rss_mb: dict[str, float] = field(default_factory=dict)  # by node, the most so far
    cpu_s: float = 0.0  # of all nodes while they were appended to
    stolen: list[float] = field(default_factory=list)  # 0 to 1 of the processors, by their host

    def forget(self) -> None:
        """What was seen of appends so far does not count."""
        for seen in (self.p50_ms, self.p99_ms, self.mb_per_s, self.lag_mb, self.stolen):
            seen.clear()
        self.cpu_s = 0.0

    def look(self) -> None:
        """Take in the memory that was sampled since the turn began."""
        self.target.sampler.sample()
        for usage in self.target.sampler.usages:
            if usage.name not in ("client", "metadata"):
                self.rss_mb[usage.name] = max(
                    self.rss_mb.get(usage.name, 0.0), usage.rss_anon_mb_max
                )

    @property
    def rss_mb_max(self) -> float:
        """Of the node that had most."""
        return max(self.rss_mb.values(), default=0.0)


async def run_archive(plan: ArchivePlan, say: Say) -> dict[str, Any]:
    """Run it all; the result is what `--json` prints.

    Raises:
        ArchiveBenchFailed: the archive does not get what it is to be read from. SharedLogError: the
        cluster failed.
    """
    async with _open_sides(plan) as (plain, archived), asyncio.TaskGroup() as group:
        sampling = [
            group.create_task(side.target.sampler.run(), name=f"bench-sampler-{side.name}")
            for side in (plain, archived)
        ]
        found = await _Bench(plan, plain, archived, say).measure()
        for task in sampling:
            task.cancel()
    return found


@asynccontextmanager
async def _open_sides(plan: ArchivePlan) -> AsyncGenerator[tuple[_Side, _Side], None]:
    with TemporaryDirectory(prefix="sharedlog-bench-archive-", dir=plan.directory) as folder:
        common = TargetPlan(dev_nodes=plan.nodes, directory=plan.directory, settings=_SETTINGS)
        with_archive = TargetPlan(
            dev_nodes=plan.nodes,
            directory=plan.directory,
            settings=_settings(plan, Path(folder)),
        )
        async with open_target(common) as plain, open_target(with_archive) as archived:
            yield _Side("plain", plain), _Side("archived", archived)


def _settings(plan: ArchivePlan, folder: Path) -> dict[str, str]:
    """Of the nodes with an archive; it is in `folder` if nothing else is said."""
    settings = {
        **_SETTINGS,
        "SHAREDLOG_ARCHIVE__URL": plan.archive or folder.resolve().as_uri(),
        "SHAREDLOG_OFFLOAD__OBJECT_BYTES": str(plan.object_mib * MIB),
    }
    if plan.endpoint:
        settings["SHAREDLOG_ARCHIVE__ENDPOINT"] = plan.endpoint
    return settings


class _Bench:
    def __init__(self, plan: ArchivePlan, plain: _Side, archived: _Side, say: Say) -> None:
        self._plan = plan
        self._plain = plain
        self._archived = archived
        self._say = say

    async def measure(self) -> dict[str, Any]:
        plan, plain, archived = self._plan, self._plain, self._archived
        await self._start()
        for number in range(plan.rounds + 1):
            for side in (plain, archived) if number % 2 == 0 else (archived, plain):
                await self._append(side)
                await self._settle()
            self._say(
                f"append, round {number} of {plan.rounds}: p99 {plain.p99_ms[-1]:.1f} ms, "
                f"archived {archived.p99_ms[-1]:.1f} ms and {archived.lag_mb[-1][-1]:.0f} MB behind"
            )
            if number == 0:
                plain.forget()
                archived.forget()
        appending = {side.name: round(side.rss_mb_max, 1) for side in (plain, archived)}
        end = await self._trim()
        first = await self._first_records(end)
        for number in range(plan.passes):
            for side in (plain, archived) if number % 2 == 0 else (archived, plain):
                await self._read(side, end)
            self._say(
                f"catch-up, pass {number + 1} of {plan.passes}: "
                f"{plain.read_mb_per_s[-1]:.0f} MB/s plain, "
                f"{archived.read_mb_per_s[-1]:.0f} MB/s archived"
            )
        return {
            "workload": "archive",
            "archive": plan.archive or "file",
            "record_bytes": plan.record_bytes,
            "append": self._appended(),
            "lag": lag_figures(archived.lag_mb, plan.object_mib * MIB / _MB),
            "first_record_ms": {"n": first.count, **first.summary_ms()},
            "catch_up": self._caught_up(end),
            "memory": self._remembered(appending),
            "machine": describe_machine(),
        }

    async def _start(self) -> None:
        """Let the nodes try out the archive, and see what memory they have then."""
        admin, clock = self._archived.target.cluster.admin, self._archived.target.clock
        until_s = clock.monotonic_s() + _SETTLE_S_MAX
        while problem := (await admin.describe_archive(probe=True)).problem:
            if clock.monotonic_s() > until_s:
                raise ArchiveBenchFailed(f"the archive can't be used: {problem}")
            await clock.sleep(_SETTLE_POLL_S)
        await clock.sleep(_START_S)
        for side in (self._plain, self._archived):
            side.look()
            side.start_mb = side.rss_mb_max
            side.rss_mb.clear()

    def _remembered(self, appending: dict[str, float]) -> dict[str, Any]:
        plain, archived = self._plain, self._archived
        fixed = archived.start_mb - plain.start_mb
        return {
            "at_start_mb": {side.name: round(side.start_mb, 1) for side in (plain, archived)},
            "appending_mb": appending,
            "most_mb": {side.name: round(side.rss_mb_max, 1) for side in (plain, archived)},
            "fixed_mb": round(fixed, 1),
            "extra_mb": round(archived.rss_mb_max - plain.rss_mb_max - fixed, 1),
        }

    # Appending.

    async def _append(self, side: _Side) -> None:
        """One turn of the open loop, with what it showed noted in `side`."""
        plan, target = self._plan, side.target
        rate = plan.mb_per_s * _MB / plan.record_bytes
        recorder = Recorder(plan.record_bytes)
        acks = AckWatcher(target.clock, recorder)
        value = make_value(plan.record_bytes)
        append_plan = AppendPlan(
            record_bytes=plan.record_bytes,
            seconds=plan.seconds,
            warm_up_s=plan.warm_up_s,
            rate=rate,
        )
        lags: list[float] = []
        began_s, stolen_s = target.clock.monotonic_s(), stolen_seconds()
        async with asyncio.TaskGroup() as group:
            watching = None
            if side is self._archived:
                watching = group.create_task(self._watch_lag(lags), name="bench-lag")
            async with target.log.appender() as appender, asyncio.TaskGroup() as inner:
                inner.create_task(acks.run(), name="bench-acks")
                await OpenRun(target, append_plan, rate, recorder).run(
                    appender, acks, lambda _, due: [value] * len(due)
                )
                acks.end()
            if watching is not None:
                watching.cancel()
                side.lag_mb.append([*lags, await self._lag_mb()])
        turn_s = (target.clock.monotonic_s() - began_s) * (os.cpu_count() or 1)
        side.stolen.append((stolen_seconds() - stolen_s) / turn_s)
        side.look()
        side.cpu_s += sum(it.cpu_s for it in target.sampler.usages if it.name != "client")
        recorder.finish()
        p50_s, p99_s = recorder.latencies.percentiles_s([50.0, 99.0])
        side.p50_ms.append(p50_s * 1e3)
        side.p99_ms.append(p99_s * 1e3)
        side.mb_per_s.append(recorder.records * plan.record_bytes / _MB / recorder.seconds)

    async def _watch_lag(self, into: list[float]) -> None:
        while True:
            into.append(await self._lag_mb())
            await self._archived.target.clock.sleep(_LAG_EVERY_S)

    async def _lag_mb(self) -> float:
        """What is committed and not archived, of record values."""
        log = self._archived.target.log
        tail = await log.tail()
        description = await log.describe()
        return max(0, tail - description.archived_end) * self._plan.record_bytes / _MB

    async def _settle(self) -> None:
        """Wait until too little is left for an object.

        Raises:
            ArchiveBenchFailed: that takes too long.
        """
        clock = self._archived.target.clock
        until_s = clock.monotonic_s() + _SETTLE_S_MAX
        while await self._lag_mb() * _MB > self._plan.object_mib * MIB:
            if clock.monotonic_s() > until_s:
                raise ArchiveBenchFailed(
                    f"nothing is archived within {_SETTLE_S_MAX:.0f} s: can the nodes use the "
                    "archive? Their logs say (archive.not_usable)"
                )
            await clock.sleep(_SETTLE_POLL_S)

    def _appended(self) -> dict[str, Any]:
        pairs = [
            with_archive / without
            for without, with_archive in zip(self._plain.p99_ms, self._archived.p99_ms, strict=True)
        ]
        found: dict[str, Any] = {"rounds": self._plan.rounds}
        for side in (self._plain, self._archived):
            found[side.name] = {
                "mb_per_s": _rounded(side.mb_per_s),
                "p50_ms": _rounded(side.p50_ms),
                "p99_ms": _rounded(side.p99_ms),
                "p50_ms_median": round(median(side.p50_ms), 2),
                "p99_ms_median": round(median(side.p99_ms), 2),
                "cpu_s": round(side.cpu_s, 1),
                "stolen_percent": _rounded([100 * it for it in side.stolen]),
            }
        found["p99_ratios"] = _rounded(pairs)
        found["p99_ratio"] = round(median(pairs), 3)
        medians = median(self._archived.p99_ms) / median(self._plain.p99_ms)
        found["p99_ratio_of_medians"] = round(medians, 3)
        return found

    # Reading.

    async def _trim(self) -> int:
        """Have log servers keep no more of the archived log than they must; where that begins."""
        log = self._archived.target.log
        trimmed = await log.trim(await log.tail())
        if not trimmed:
            raise ArchiveBenchFailed("nothing of the log was trimmed: it is too short")
        await log.describe()  # so that the first read goes to the archive at once
        self._say(f"trimmed: {trimmed:,} records are in the archive alone")
        return trimmed

    async def _first_records(self, end: int) -> Histogram:
        """Read one record at random offsets, each in a part of the log of its own."""
        target, rng = self._archived.target, Random(1)
        parts = list(range(self._plan.reads))
        rng.shuffle(parts)
        found = Histogram()
        for part in parts:
            offset = rng.randrange(end * part // len(parts), end * (part + 1) // len(parts))
            before_s = target.clock.monotonic_s()
            async with aclosing(target.log.read(offset, limit=1)) as records:
                async for record in records:
                    found.record(target.clock.monotonic_s() - before_s)
                    if record.offset != offset:
                        raise ArchiveBenchFailed(f"read offset {record.offset} for {offset}")
        self._archived.look()
        return found

    async def _read(self, side: _Side, end: int) -> None:
        """Read [0, end) once."""
        target, plan = side.target, self._plan
        value, expected = make_value(plan.record_bytes), 0
        target.sampler.restart()
        before_s = target.clock.monotonic_s()
        async with aclosing(target.log.read_batches(start=0, end=end)) as batches:
            async for records in batches:
                if records[0].offset != expected or records[-1].value != value:
                    raise ArchiveBenchFailed(f"what is read at offset {expected} was not written")
                expected += len(records)
        took_s = target.clock.monotonic_s() - before_s
        if expected != end:
            raise ArchiveBenchFailed(f"{end:,} records were written, {expected:,} read")
        side.look()
        side.read_mb_per_s.append(end * plan.record_bytes / _MB / took_s)

    def _caught_up(self, end: int) -> dict[str, Any]:
        plain, archived = self._plain.read_mb_per_s, self._archived.read_mb_per_s
        pairs = [there / here for here, there in zip(plain, archived, strict=True)]
        return {
            "mb": round(end * self._plan.record_bytes / _MB),
            "plain_mb_per_s": _rounded(plain),
            "archived_mb_per_s": _rounded(archived),
            "ratios": _rounded(pairs),
            "ratio": round(median(pairs), 3),
        }


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(it, 2) for it in values]


def lag_figures(turns: Sequence[Sequence[float]], object_mb: float) -> dict[str, Any]:
    """How far behind the archive was: the most in each half of each turn, and at its end."""
    return {
        "object_mb": round(object_mb, 1),
        "first_half_mb": [round(max(turn[: (len(turn) + 1) // 2]), 1) for turn in turns],
        "second_half_mb": [round(max(turn[len(turn) // 2 :]), 1) for turn in turns],
        "end_mb": [round(turn[-1], 1) for turn in turns],
    }
