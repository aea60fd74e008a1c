"""`sharedlog bench tail`: how soon a follower has what was written.

One client appends at a steady rate, another follows the log. Each record carries the time that it
was meant to be sent; the follower, in the same process and so with the same clock, takes the
difference when it has the record. Beside it stands the append's own latency, counted from the same
moment, since a record can be read as soon as it is committed, about when it is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharedlog.benchmark.append import AckWatcher, AppendPlan, OpenRun, make_value
from sharedlog.benchmark.report import Recorder, Result, make_result
from sharedlog.benchmark.schedule import OpenLoop
from sharedlog.benchmark.target import Target

if TYPE_CHECKING:
    from sharedlog.batch import Record
    from sharedlog.log import Log

_STAMP = struct.Struct("<d")
RECORD_BYTES_MIN = _STAMP.size
_CATCH_UP_S_MAX = 10.0  # the follower has so long for what is left when the writer ends


@dataclass(frozen=True, slots=True, kw_only=True)
class TailPlan:
    """How to write while following."""

    record_bytes: int = 1024
    seconds: float = 10.0
    warm_up_s: float = 1.0
    rate: float = 1_000.0


class FollowerLate(Exception):
    """The follower did not get all that was acknowledged."""


async def run_tail(target: Target, plan: TailPlan, settings: dict[str, Any]) -> Result:
    """Run it.

    Raises:
        FollowerLate: records were acknowledged and not followed within ten seconds.
        SharedLogError: the cluster failed.
    """
    import sharedlog

    appends, reads = Recorder(plan.record_bytes), Recorder(plan.record_bytes)
    total = round(plan.rate * (plan.warm_up_s + plan.seconds))
    async with sharedlog.connect(target.address) as reader, asyncio.TaskGroup() as group:
        follower = Follower(target, appends, reads)
        followed = group.create_task(
            follower.run(reader.log(target.log.name), max(1, total)), name="bench-follower"
        )
        sampling = group.create_task(target.sampler.run(), name="bench-sampler")
        await _append_stamped(target, plan, appends)
        try:
            async with asyncio.timeout(_CATCH_UP_S_MAX):
                await asyncio.shield(followed)
        except TimeoutError as error:
            missing = total - follower.seen
            raise FollowerLate(f"the follower lacks {missing:,} acknowledged records") from error
        sampling.cancel()
    target.sampler.sample()
    result = make_result(
        reads, target.sampler.usages, workload="tail", mode="open", settings=settings
    )
    appends.finish()
    append_ms = appends.latencies.summary_ms()
    result.extra["append_latency_ms"] = append_ms
    if append_ms["p50"]:
        result.extra["p50_over_append_p50"] = round(result.latency_ms["p50"] / append_ms["p50"], 3)
    result.errors += appends.errors.total()
    result.errors_by_class |= dict(appends.errors)
    return result


async def _append_stamped(target: Target, plan: TailPlan, appends: Recorder) -> None:
    append_plan = AppendPlan(
        record_bytes=plan.record_bytes,
        seconds=plan.seconds,
        warm_up_s=plan.warm_up_s,
        rate=plan.rate,
    )
    padding = make_value(plan.record_bytes)[_STAMP.size :]

    def stamp(schedule: OpenLoop, due: range) -> list[bytes]:
        return [_STAMP.pack(schedule.intended_s(index)) + padding for index in due]

    acks = AckWatcher(target.clock, appends)
    async with target.log.appender() as appender, asyncio.TaskGroup() as group:
        group.create_task(acks.run(), name="bench-acks")
        await OpenRun(target, append_plan, plan.rate, appends).run(appender, acks, stamp)
        acks.end()


class Follower:
    """Reads what is written and takes its age."""

    def __init__(self, target: Target, appends: Recorder, reads: Recorder) -> None:
        self._clock = target.clock
        self._appends = appends
        self._reads = reads
        self.seen = 0

    async def run(self, log: Log, total: int) -> None:
        """Follow until `total` records were seen."""
        async with contextlib.aclosing(log.read_batches(start=0, follow=True)) as batches:
            async for records in batches:
                self._take(records)
                if self.seen >= total:
                    return

    def _take(self, records: list[Record]) -> None:
        now_s = self._clock.monotonic_s()
        if self._reads.begin_s is None and self._appends.begin_s is not None:
            self._reads.begin(self._appends.begin_s)
        into = self._reads.count(len(records), now_s)
        if into is not None:
            for record in records:
                (meant_s,) = _STAMP.unpack_from(record.value)
                into.record(now_s - meant_s)
        self.seen += len(records)
