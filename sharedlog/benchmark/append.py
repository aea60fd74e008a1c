"""`sharedlog bench append`: how fast records become durable.

*closed*: each session appends as fast as the appender takes records, so throughput is the most
there is and latency is that of a full pipeline. *open* (`--rate`): records are sent at the times
meant for them, and latency counts from those times. *serial*: one append at a time, which is what a
caller without concurrency sees.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import TYPE_CHECKING, Any, Literal

from sharedlog.benchmark.report import Recorder, Result, make_result
from sharedlog.benchmark.schedule import OpenLoop
from sharedlog.benchmark.scrape import describe_batches, scrape_all
from sharedlog.benchmark.target import Target
from sharedlog.clock import Clock
from sharedlog.codec import Compression
from sharedlog.errors import SharedLogError
from sharedlog.limits import MIB

if TYPE_CHECKING:
    from sharedlog.appender import Appender
    from sharedlog.pending import PendingAppend

Mode = Literal["closed", "open", "serial"]
_CHUNK_BYTES = 16 * 1024  # records that are handed over, and timed, together in a closed loop
_CHUNK_RECORDS_MAX = 256
_DUE_MAX = 1_024  # records that are handed over at once in an open loop
_JSON_LINES = 8_192  # different ones: no batch sees the same line twice
_LEVELS = ("DEBUG", "INFO", "INFO", "INFO", "WARN")
_WORDS = (
    "orders",
    "payment",
    "cart",
    "session",
    "accepted",
    "retry",
    "timeout",
    "connection",
    "shipping",
    "warehouse",
    "customer",
    "refused",
    "invoice",
    "checkout",
    "stock",
)
_ERRORS_MAX = 1_000  # failed appends after which the run is given up


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendPlan:
    """What to append, and how."""

    record_bytes: int = 1024
    seconds: float = 10.0
    warm_up_s: float = 1.0
    sessions: int = 1
    rate: float | None = None
    """Records per second of all sessions together; None is a closed loop."""
    serial: bool = False
    in_flight_mib: float | None = None
    """Most that a session has sent and not yet seen acknowledged; None is the client's default."""
    compression: Compression = "none"
    """With another than this the records are lines of JSON, no two alike."""

    @property
    def mode(self) -> Mode:
        """See the module."""
        if self.serial:
            return "serial"
        return "closed" if self.rate is None else "open"


async def run_append(target: Target, plan: AppendPlan, settings: dict[str, Any]) -> Result:
    """Run it.

    Raises:
        SharedLogError: an append failed too often.
    """
    recorder = Recorder(plan.record_bytes)
    values = make_values(plan)
    before = await scrape_all(target.http_addresses)
    async with asyncio.TaskGroup() as group:
        sampling = group.create_task(target.sampler.run(), name="bench-sampler")
        if plan.serial:
            await _run_serial(target, plan, values[0], recorder)
        else:
            async with asyncio.TaskGroup() as sessions:
                for index in range(plan.sessions):
                    sessions.create_task(
                        _run_session(target, plan, values, recorder), name=f"bench-session-{index}"
                    )
        sampling.cancel()
    target.sampler.sample()
    usages = target.sampler.usages
    result = make_result(recorder, usages, workload="append", mode=plan.mode, settings=settings)
    result.batches = describe_batches(before, await scrape_all(target.http_addresses))
    return result


def make_value(record_bytes: int) -> bytes:
    """A record's value: every byte occurs, in no order that a codec could use."""
    return bytes((index * 197 + (index >> 8) * 31) & 0xFF for index in range(record_bytes))


def make_values(plan: AppendPlan) -> list[bytes]:
    """The values that are appended, in turn."""
    if plan.compression == "none":
        return [make_value(plan.record_bytes)]
    return make_json_lines(plan.record_bytes, _JSON_LINES)


def make_json_lines(record_bytes: int, count: int) -> list[bytes]:
    """Lines such as a service logs: the same fields in each, numbers and words that differ."""
    rng = Random(1)
    lines = []
    for index in range(count):
        line = (
            f'{{"ts":{1_700_000_000_000 + 13 * index},"level":"{rng.choice(_LEVELS)}",'
            f'"service":"{rng.choice(_WORDS)}","user":"user-{rng.randrange(1_000_000)}",'
            f'"request":"{rng.getrandbits(64):016x}","ms":{rng.expovariate(0.02):.3f},"text":"'
        )
        while len(line) < record_bytes - 2:
            line += f"{rng.choice(_WORDS)} {rng.randrange(10_000)} "
        lines.append(line[: max(1, record_bytes - 2)].encode() + b'"}' * (record_bytes > 2))
    return lines


async def _run_serial(target: Target, plan: AppendPlan, value: bytes, recorder: Recorder) -> None:
    clock, log = target.clock, target.log
    begin_s = clock.monotonic_s() + plan.warm_up_s
    end_s = begin_s + plan.seconds
    before_s = clock.monotonic_s()
    while before_s < end_s:
        if recorder.begin_s is None and before_s >= begin_s:
            _begin(target, recorder, before_s)
        try:
            await log.append(value)
        except SharedLogError as error:
            _fail(recorder, error)
            before_s = clock.monotonic_s()
            continue
        after_s = clock.monotonic_s()
        recorder.record(1, after_s - before_s, after_s)
        before_s = after_s


def _begin(target: Target, recorder: Recorder, now_s: float) -> None:
    """The warm-up is over. Several sessions come here; the first one counts."""
    if recorder.begin_s is None:
        recorder.begin(now_s)
        target.sampler.restart()


def _fail(recorder: Recorder, error: SharedLogError) -> None:
    recorder.fail(error)
    if not error.retryable or recorder.errors.total() >= _ERRORS_MAX:
        raise error


async def _run_session(
    target: Target, plan: AppendPlan, values: Sequence[bytes], recorder: Recorder
) -> None:
    acks = AckWatcher(target.clock, recorder)
    in_flight = None if plan.in_flight_mib is None else max(1, int(plan.in_flight_mib * MIB))
    appending = target.log.appender(
        in_flight_bytes=in_flight,
        # Waiting to be sent is waiting, too.
        buffer_bytes=None if in_flight is None else max(1, in_flight // 4),
        compression=plan.compression,
    )
    async with appending as appender, asyncio.TaskGroup() as group:
        group.create_task(acks.run(), name="bench-acks")
        if plan.rate is None:
            await _append_closed(
                target, plan, values=values, recorder=recorder, appender=appender, acks=acks
            )
        else:
            rate = plan.rate / plan.sessions
            open_loop = OpenRun(target, plan, rate, recorder)
            turn = cycle(values)
            await open_loop.run(appender, acks, lambda _, due: list(islice(turn, len(due))))
        acks.end()


async def _append_closed(
    target: Target,
    plan: AppendPlan,
    *,
    values: Sequence[bytes],
    recorder: Recorder,
    appender: Appender,
    acks: AckWatcher,
) -> None:
    clock = target.clock
    turn = cycle(values)
    count = max(1, min(_CHUNK_RECORDS_MAX, _CHUNK_BYTES // plan.record_bytes))
    chunk = list(islice(turn, count))
    begin_s = clock.monotonic_s() + plan.warm_up_s
    end_s = begin_s + plan.seconds
    while (now_s := clock.monotonic_s()) < end_s:
        if now_s >= begin_s:
            _begin(target, recorder, now_s)
        acks.watch(await appender.append_many(chunk), now_s)
        if len(values) > 1:
            chunk = list(islice(turn, count))


@dataclass(frozen=True, slots=True)
class OpenRun:
    """One session's open loop."""

    target: Target
    plan: AppendPlan
    rate: float
    recorder: Recorder

    async def run(
        self,
        appender: Appender,
        acks: AckWatcher,
        make_values: Callable[[OpenLoop, range], list[bytes]],
    ) -> None:
        """Send at the rate; the latencies go to `acks`, from the times that were meant."""
        clock = self.target.clock
        total_s = self.plan.warm_up_s + self.plan.seconds
        schedule = OpenLoop(rate=self.rate, start_s=clock.monotonic_s(), seconds=total_s)
        begin_s = schedule.intended_s(0) + self.plan.warm_up_s
        while not schedule.done:
            now_s = clock.monotonic_s()
            if now_s >= begin_s:
                _begin(self.target, self.recorder, now_s)
            due = schedule.take_due(now_s, _DUE_MAX)
            if due:
                values = make_values(schedule, due)
                acks.watch_due(await appender.append_many(values), schedule, due)
            else:
                await clock.sleep(schedule.wait_s(now_s))


class AckWatcher:
    """Takes the outcomes of one session in their order, as they come.

    Records that were handed over together are timed together: what is waited for is the last of
    them, so none is counted too fast.
    """

    def __init__(self, clock: Clock, recorder: Recorder) -> None:
        self._clock = clock
        self._recorder = recorder
        # Bounded by the appender, which takes no more than its window.
        self._due: deque[tuple[PendingAppend, int, float, OpenLoop | None, range]] = deque()
        self._wake = asyncio.Event()
        self._ended = False

    def watch(self, pending: Sequence[PendingAppend], began_s: float) -> None:
        """These were handed over at `began_s`."""
        self._due.append((pending[-1], len(pending), began_s, None, range(0)))
        self._wake.set()

    def watch_due(self, pending: Sequence[PendingAppend], schedule: OpenLoop, due: range) -> None:
        """These were meant for the times of `due`."""
        self._due.append((pending[-1], len(pending), 0.0, schedule, due))
        self._wake.set()

    def end(self) -> None:
        """Nothing more will be watched; `run` returns when all outcomes are known."""
        self._ended = True
        self._wake.set()

    async def run(self) -> None:
        """Take the outcomes.

        Raises:
            SharedLogError: an append failed for good, or too many did.
        """
        while True:
            while self._due:
                pending, count, began_s, schedule, due = self._due.popleft()
                try:
                    await pending
                except SharedLogError as error:
                    _fail(self._recorder, error)
                    continue
                now_s = self._clock.monotonic_s()
                if schedule is None:
                    self._recorder.record(count, now_s - began_s, now_s)
                else:
                    into = self._recorder.count(count, now_s)
                    if into is not None:
                        schedule.record_latencies(due, now_s, into)
            if self._ended:
                return
            self._wake.clear()
            await self._wake.wait()
