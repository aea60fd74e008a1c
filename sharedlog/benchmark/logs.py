"""`sharedlog bench logs`: what thousands of logs cost, most of them idle, many written to at once.

One run goes through these phases, and looks at the memory of each process after each:

1. *created*: so many logs, some at a time. Every node knows them; nobody has written to them.
2. *written*: one record to each, some at a time. The sequencers and log servers know them; nothing
   is under way. What a process has grown by since the start, per log, is what an idle log costs it.
3. *one log*: as fast as one log takes records, which is what the next phase is compared with.
4. *active*: so many of the logs are appended to at once, each by an appender of its own that has a
   small window, as fast as they go together. Before that each opens its session, all at once.
5. *end*: the appenders are closed.

The garbage collector of the client is run before each look, those of the nodes are left alone.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sharedlog.benchmark.append import make_value
from sharedlog.benchmark.report import describe_machine
from sharedlog.benchmark.target import Target
from sharedlog.clock import Clock
from sharedlog.errors import SharedLogError
from sharedlog.limits import KIB

if TYPE_CHECKING:
    from sharedlog.pending import PendingAppend

Note = Callable[[str], None]

# Of each active log: what a batch has at most, and how much is sent, or waits, at a time.
_BATCH_BYTES: Final = 8 * KIB
_WINDOW_BYTES: Final = 2 * _BATCH_BYTES
_CHUNK_RECORDS: Final = 32  # handed over at a time
_ERRORS_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LogsPlan:
    """How many logs, and what to do with them."""

    logs: int = 10_000
    active: int = 1_000
    at_once: int = 64
    """Creations, and first appends, under way."""
    record_bytes: int = 100
    seconds: float = 10.0
    """Of each of the phases that append as fast as they can."""
    settle_s: float = 2.0
    """For what is idle to be let go, before a look at the memory."""


class LogsFailed(Exception):
    """Too many calls failed."""


async def run_logs(target: Target, plan: LogsPlan, note: Note) -> dict[str, Any]:
    """Run it; the result is one JSON object.

    Raises:
        LogsFailed: too many calls failed; says how.
    """
    run = _Run(target, plan, note)
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(target.sampler.run(), name="bench-sampler")
        found = await run.measure()
        sampling.cancel()
    return found


class _Run:
    def __init__(self, target: Target, plan: LogsPlan, note: Note) -> None:
        self._target = target
        self._plan = plan
        self._note = note
        self._errors: Counter[str] = Counter()
        self._memory: dict[str, dict[str, float]] = {}
        stem = target.log.name
        self._names = [f"{stem}/{index:06d}" for index in range(plan.logs)]

    async def measure(self) -> dict[str, Any]:
        plan, names = self._plan, self._names
        await self._look("start")
        create_s = await self._each("creating", names, self._create)
        await self._look("created")
        write_s = await self._each("writing a record to each", names, self._write)
        await self._look("written")
        list_s, listed = await self._timed(self._list)
        status_s, _ = await self._timed(self._target.cluster.status)
        one = await self._append_to([self._target.log.name], {})
        small = {
            "batch_bytes": _BATCH_BYTES,
            "in_flight_bytes": _WINDOW_BYTES,
            "buffer_bytes": _BATCH_BYTES,
        }
        active = await self._append_to(names[: plan.active], small)
        await self._look("end")
        return {
            "workload": "logs",
            "logs": plan.logs,
            "active": plan.active,
            "record_bytes": plan.record_bytes,
            "create_s": round(create_s, 2),
            "create_per_s": round(plan.logs / create_s, 1),
            "first_append_s": round(write_s, 2),
            "first_append_per_s": round(plan.logs / write_s, 1),
            "listed": listed,
            "list_s": round(list_s, 3),
            "status_s": round(status_s, 3),
            "one_log": one,
            "active_logs": active,
            "active_over_one": round(active["records_per_s"] / one["records_per_s"], 3),
            "rss_anon_mb": self._memory,
            "rss_anon_bytes_per_log": {
                "created": self._grown_per_log("created"),
                "idle": self._grown_per_log("written"),
            },
            "errors": self._errors.total(),
            "errors_by_class": dict(self._errors),
            "machine": describe_machine(),
        }

    async def _create(self, name: str) -> None:
        await self._target.cluster.create_log(name)

    async def _write(self, name: str) -> None:
        await self._target.cluster.log(name).append(b"x" * self._plan.record_bytes)

    async def _list(self) -> int:
        prefix = f"{self._target.log.name}/"
        return len([log.name async for log in self._target.cluster.iter_logs(prefix)])

    async def _timed(self, call: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
        began_s = self._target.clock.monotonic_s()
        found = await call()
        return self._target.clock.monotonic_s() - began_s, found

    async def _each(
        self, what: str, names: Sequence[str], call: Callable[[str], Awaitable[None]]
    ) -> float:
        """Call it for each name, some at a time; seconds that it took."""
        left = iter(names)

        async def work() -> None:
            for name in left:
                try:
                    await call(name)
                except SharedLogError as error:
                    self._fail(error)

        began_s = self._target.clock.monotonic_s()
        async with asyncio.TaskGroup() as group:
            for index in range(min(self._plan.at_once, len(names))):
                group.create_task(work(), name=f"bench-worker-{index}")
        seconds = self._target.clock.monotonic_s() - began_s
        self._note(f"{what}: {len(names):,} in {seconds:.1f} s")
        return seconds

    async def _append_to(self, names: Sequence[str], window: Mapping[str, int]) -> dict[str, Any]:
        """Append to all of them at once; what came of it."""
        plan, clock, sampler = self._plan, self._target.clock, self._target.sampler
        crowd = _Crowd(clock, plan.seconds, len(names))
        began_s = clock.monotonic_s()
        async with asyncio.TaskGroup() as group:
            for name in names:
                appending = self._append_until(name, crowd, window)
                group.create_task(appending, name=f"bench-{name}")
            begin_s = await crowd.wait_open()
            sampler.restart()
        seconds = crowd.last_s - begin_s
        sampler.sample()
        per_s = crowd.records / seconds if seconds > 0 else 0.0
        self._note(f"appending to {len(names):,} at once: {per_s:,.0f} records/s")
        return {
            "open_s": round(begin_s - began_s, 3),
            "seconds": round(seconds, 3),
            "records": crowd.records,
            "records_per_s": round(per_s, 1),
            "record_mb_per_s": round(per_s * plan.record_bytes / 1e6, 3),
            "logs_written": crowd.logs,
            "rss_anon_mb_max": {
                it.name: round(it.rss_anon_mb_max, 1) for it in sampler.usages if it.samples
            },
            "cpu_s": {it.name: round(it.cpu_s, 2) for it in sampler.usages if it.samples},
        }

    async def _append_until(self, name: str, crowd: _Crowd, window: Mapping[str, int]) -> None:
        chunk = [make_value(self._plan.record_bytes)] * _CHUNK_RECORDS
        log = self._target.cluster.log(name)
        acked = 0
        waiting: deque[PendingAppend] = deque()  # bounded by the window
        try:
            appending = log.appender(**window)  # type: ignore[arg-type]  # sizes by name
            async with appending as appender:
                try:
                    await appender.append(chunk[0])
                    await appender.flush()
                finally:
                    end_s = await crowd.opened()
                while crowd.clock.monotonic_s() < end_s:
                    waiting.append((await appender.append_many(chunk))[-1])
                    while waiting and waiting[0].done():
                        waiting.popleft().result()
                        acked += _CHUNK_RECORDS
            acked += _CHUNK_RECORDS * len(waiting)  # leaving the block waited for them
        except SharedLogError as error:
            self._fail(error)
        crowd.done(acked)

    async def _look(self, phase: str) -> None:
        """Note how much memory each process has by now."""
        gc.collect()
        await self._target.clock.sleep(self._plan.settle_s)
        sampler = self._target.sampler
        sampler.restart()
        sampler.sample()
        self._memory[phase] = {
            it.name: round(it.rss_anon_mb_last, 1) for it in sampler.usages if it.samples
        }

    def _grown_per_log(self, phase: str) -> dict[str, int]:
        before, after = self._memory["start"], self._memory[phase]
        return {
            name: round((after[name] - before[name]) * 1e6 / self._plan.logs)
            for name in after
            if name in before
        }

    def _fail(self, error: SharedLogError) -> None:
        self._errors[type(error).__name__] += 1
        if self._errors.total() >= _ERRORS_MAX:
            raise LogsFailed(f"{self._errors.total():,} calls failed, the last: {error}")


class _Crowd:
    """Many appenders that begin together, and what they did."""

    def __init__(self, clock: Clock, seconds: float, count: int) -> None:
        self.clock = clock
        self.records = 0
        self.logs = 0
        self.last_s = 0.0
        self._seconds = seconds
        self._missing = count
        self._began: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    async def opened(self) -> float:
        """One has opened its session, or failed to: wait for the others; when to end."""
        self._missing -= 1
        if not self._missing:
            self._began.set_result(self.clock.monotonic_s())
        return await self.wait_open() + self._seconds

    async def wait_open(self) -> float:
        """When all had opened theirs."""
        return await asyncio.shield(self._began)

    def done(self, records: int) -> None:
        """One has ended, with so many records in its log."""
        self.records += records
        self.logs += records > 0
        self.last_s = max(self.last_s, self.clock.monotonic_s())


def logs_rows(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For people: name, figure, unit."""
    one, active = found["one_log"], found["active_logs"]
    rows = [
        ("logs", f"{found['logs']:,}", f"{found['active']:,} of them active"),
        ("created", f"{found['create_per_s']:,.0f}", "logs/s"),
        ("first appends", f"{found['first_append_per_s']:,.0f}", "logs/s"),
        ("list all", f"{found['list_s']:,.2f}", "s"),
        ("status", f"{found['status_s']:,.2f}", "s"),
        ("one log", f"{one['records_per_s']:,.0f}", "records/s"),
        ("active logs", f"{active['records_per_s']:,.0f}", "records/s together"),
        ("active over one", f"{found['active_over_one']:,.2f}", ""),
    ]
    for name, per_log in found["rss_anon_bytes_per_log"]["idle"].items():
        most = active["rss_anon_mb_max"].get(name, 0.0)
        unit = f"bytes for each idle log; at most {most:,.0f} MB while active"
        rows.append((f"memory {name}", f"{per_log:,}", unit))
    rows += [
        (f"errors {name}", f"{count:,}", "") for name, count in found["errors_by_class"].items()
    ]
    return rows
