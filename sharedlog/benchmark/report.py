"""What a run measured, and how it is shown: one JSON object, or a table."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sharedlog.benchmark.histogram import Histogram
from sharedlog.benchmark.processes import Usage

INTERVAL_S = 1.0
_LAST_INTERVAL_S_MIN = 0.1  # a shorter rest says nothing about a rate
_MB = 1e6


class Recorder:
    """Counts what was done, in whole and for each second of the run.

    Nothing is counted before `begin`: that is the warm-up.
    """

    def __init__(self, record_bytes: int) -> None:
        self.record_bytes = record_bytes
        self.latencies = Histogram()
        self.records = 0
        self.errors: Counter[str] = Counter()
        self.begin_s: float | None = None
        self.end_s = 0.0
        self._intervals: list[Interval] = []

    def begin(self, now_s: float) -> None:
        """The run begins now."""
        self.begin_s = self.end_s = now_s

    def count(self, records: int, now_s: float) -> Histogram | None:
        """`records` were done; returns where their latencies go, or None during the warm-up."""
        if self.begin_s is None:
            return None
        self.records += records
        self.end_s = max(self.end_s, now_s)
        index = max(0, int((now_s - self.begin_s) / INTERVAL_S))
        while len(self._intervals) <= index:
            self._intervals.append(Interval(start_s=len(self._intervals) * INTERVAL_S))
        interval = self._intervals[index]
        interval.records += records
        return interval.latencies

    def record(self, records: int, latency_s: float, now_s: float) -> None:
        """`records` were done together, each with this latency."""
        into = self.count(records, now_s)
        if into is not None:
            into.record(latency_s, records)

    def fail(self, error: BaseException) -> None:
        """An operation failed."""
        self.errors[type(error).__name__] += 1

    def finish(self) -> list[Interval]:
        """End the run: the whole's latencies are the sum of the intervals'."""
        self.latencies = Histogram()
        for interval in self._intervals:
            self.latencies.add(interval.latencies)
        return self._intervals

    @property
    def seconds(self) -> float:
        """From the beginning to the last thing done."""
        return self.end_s - self.begin_s if self.begin_s is not None else 0.0


@dataclass(slots=True)
class Interval:
    """One second of a run."""

    start_s: float
    records: int = 0
    latencies: Histogram = field(default_factory=Histogram)


@dataclass(slots=True, kw_only=True)
class Result:
    """One run. The field names are those of `--json`; MB are 10^6 bytes of record values."""

    workload: str
    mode: str
    """"closed" (as fast as answers come), "open" (at a rate), "serial" (one at a time)."""
    record_bytes: int
    seconds: float
    records: int
    records_per_s: float
    record_mb_per_s: float
    latency_ms: dict[str, float]
    errors: int
    """Operations that failed."""
    errors_by_class: dict[str, int] = field(default_factory=dict)
    rss_anon_mb: dict[str, float] = field(default_factory=dict)
    """By process, the most that was seen during the run."""
    rss_anon_mb_first: dict[str, float] = field(default_factory=dict)
    rss_anon_mb_last: dict[str, float] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)
    """By process, user and system time during the run."""
    batches: dict[str, float] = field(default_factory=dict)
    """As the nodes counted them, warm-up included; empty if they can't be asked."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What was asked for."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What only this workload measures."""
    timeline: list[dict[str, float]] = field(default_factory=list)
    """For each second."""
    machine: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As one JSON object; what only this workload measures stands beside the rest."""
        found = asdict(self)
        found.update(found.pop("extra"))
        return found


def make_result(
    recorder: Recorder,
    usages: Sequence[Usage],
    *,
    workload: str,
    mode: str,
    settings: Mapping[str, Any],
) -> Result:
    """A run's result."""
    intervals = recorder.finish()
    seconds = recorder.seconds
    per_s = recorder.records / seconds if seconds > 0 else 0.0
    seen = [usage for usage in usages if usage.samples]
    return Result(
        workload=workload,
        mode=mode,
        record_bytes=recorder.record_bytes,
        seconds=round(seconds, 3),
        records=recorder.records,
        records_per_s=round(per_s, 1),
        record_mb_per_s=round(per_s * recorder.record_bytes / _MB, 3),
        latency_ms=recorder.latencies.summary_ms(),
        errors=recorder.errors.total(),
        errors_by_class=dict(recorder.errors),
        rss_anon_mb={usage.name: round(usage.rss_anon_mb_max, 1) for usage in seen},
        rss_anon_mb_first={usage.name: round(usage.rss_anon_mb_first, 1) for usage in seen},
        rss_anon_mb_last={usage.name: round(usage.rss_anon_mb_last, 1) for usage in seen},
        cpu_s={usage.name: round(usage.cpu_s, 2) for usage in seen},
        settings=dict(settings),
        machine=describe_machine(),
        timeline=[
            _interval_json(interval, recorder)
            for interval in intervals
            if interval.start_s == 0 or seconds - interval.start_s >= _LAST_INTERVAL_S_MIN
        ],
    )


def _interval_json(interval: Interval, recorder: Recorder) -> dict[str, float]:
    # The last one is shorter than the others.
    length_s = max(1e-3, min(INTERVAL_S, recorder.seconds - interval.start_s))
    value_bytes = interval.records * recorder.record_bytes
    p50, p99 = interval.latencies.percentiles_s([50.0, 99.0])
    return {
        "second": interval.start_s,
        "records": interval.records,
        "record_mb_per_s": round(value_bytes / _MB / length_s, 3),
        "p50_ms": round(p50 * 1e3, 4),
        "p99_ms": round(p99 * 1e3, 4),
    }


def describe_machine() -> dict[str, Any]:
    """What a reader of numbers needs to know."""
    return {
        "cpus": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def stolen_seconds() -> float:
    """Time of all processors that the host of this virtual machine gave to others, since its start.

    Elsewhere than on Linux it is 0: nobody tells.
    """
    try:
        total, *_ = Path("/proc/stat").read_text().splitlines()
        return int(total.split()[8]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0


def result_rows(result: Result) -> list[tuple[str, str, str]]:
    """For people: name, figure, unit."""
    rows = [
        ("run", f"{result.workload}, {result.mode}", f"{result.seconds:.1f} s"),
        ("records", f"{result.records:,}", f"of {result.record_bytes:,} bytes"),
        ("throughput", f"{result.record_mb_per_s:,.1f}", "MB/s"),
        ("", f"{result.records_per_s:,.0f}", "records/s"),
    ]
    rows += [(f"latency {name}", f"{ms:,.3f}", "ms") for name, ms in result.latency_ms.items()]
    for name, value in result.extra.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            words = words.removesuffix(" ms")
            rows += [(f"{words} {inner}", f"{ms:,.3f}", "ms") for inner, ms in value.items()]
        else:
            rows.append((words, f"{value:,.3f}", ""))
    if result.batches:
        batches = result.batches
        rows += [
            ("batches", f"{batches['count']:,.0f}", ""),
            ("batch mean", f"{batches['bytes_mean'] / 1e3:,.1f}", "kB"),
            ("", f"{batches['records_mean']:,.1f}", "records"),
            ("batches per fsync", f"{batches['per_fsync_mean']:,.2f}", ""),
        ]
    for name, most in result.rss_anon_mb.items():
        last, cpu = result.rss_anon_mb_last[name], result.cpu_s[name]
        rows.append((f"memory {name}", f"{most:,.0f}", f"MB at most, {last:,.0f} at the end"))
        rows.append((f"processor {name}", f"{cpu:,.1f}", "s"))
    rows += [(f"errors {name}", f"{count:,}", "") for name, count in result.errors_by_class.items()]
    return rows
