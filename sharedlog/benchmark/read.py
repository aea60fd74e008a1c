"""`sharedlog bench read`: how fast a reader catches up.

First so many megabytes are appended, then they are read back from offset 0, decoded and checksummed
as any reader does it. Only the reading is measured; its latency is the time from asking for the
next batch to having its records.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from sharedlog.benchmark.append import make_value
from sharedlog.benchmark.report import Recorder, Result, make_result
from sharedlog.benchmark.target import Target
from sharedlog.errors import SharedLogError

_MB = 1_000_000
_CHUNK_BYTES = 64 * 1024


class ReadWrong(Exception):
    """What was read is not what was written. The message says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """What to write and read back."""

    record_bytes: int = 1024
    mb: float = 512.0
    """Megabytes (10^6) of record values."""
    passes: int = 1
    """The whole log is read so often."""

    @property
    def records(self) -> int:
        """So many records are written."""
        return max(1, round(self.mb * _MB / self.record_bytes))


async def run_read(target: Target, plan: ReadPlan, settings: dict[str, Any]) -> Result:
    """Run it.

    Raises:
        ReadWrong: a record is missing or differs.
        SharedLogError: the cluster failed.
    """
    recorder = Recorder(plan.record_bytes)
    clock = target.clock
    began_s = clock.monotonic_s()
    await fill(target, plan)
    fill_s = clock.monotonic_s() - began_s
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(target.sampler.run(), name="bench-sampler")
        recorder.begin(clock.monotonic_s())
        target.sampler.restart()
        for _ in range(plan.passes):
            await _read_all(target, plan, recorder)
        sampling.cancel()
    target.sampler.sample()
    result = make_result(
        recorder, target.sampler.usages, workload="read", mode="closed", settings=settings
    )
    result.extra["write_mb_per_s"] = round(plan.records * plan.record_bytes / _MB / fill_s, 3)
    return result


async def fill(target: Target, plan: ReadPlan) -> None:
    """Append what is then read.

    Raises:
        SharedLogError: an append failed.
    """
    chunk = [make_value(plan.record_bytes)] * max(1, _CHUNK_BYTES // plan.record_bytes)
    left = plan.records
    async with target.log.appender() as appender:
        while left:
            values = chunk[:left]
            await appender.append_many(values)
            left -= len(values)


async def _read_all(target: Target, plan: ReadPlan, recorder: Recorder) -> None:
    clock = target.clock
    value = make_value(plan.record_bytes)
    expected = 0
    before_s = clock.monotonic_s()
    try:
        async for records in target.log.read_batches(start=0):
            now_s = clock.monotonic_s()
            recorder.record(len(records), now_s - before_s, now_s)
            first, last = records[0], records[-1]
            if first.offset != expected or last.offset != expected + len(records) - 1:
                raise ReadWrong(f"read offset {first.offset} where {expected} was due")
            if first.value != value or last.value != value:
                raise ReadWrong(f"the record at offset {expected} is not what was written")
            expected += len(records)
            before_s = clock.monotonic_s()
    except SharedLogError as error:
        recorder.fail(error)
        raise
    if expected != plan.records:
        raise ReadWrong(f"{plan.records} records were written, {expected} read")
