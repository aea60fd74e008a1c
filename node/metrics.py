"""What the node itself counts. The one place of this package that knows Prometheus's objects.

The parts bring their own: `sequencer/metrics.py`, `loglet/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)


class NodeMetrics:
    """One per process. Gauges ask for their value when they are scraped."""

    def __init__(self, registry: CollectorRegistry, *, node_id: str, version: str) -> None:
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Info(
            "sharedlog_node", "The node; node_id: its name, version: its release", registry=registry
        ).info({"node_id": node_id, "version": version})
        self._generation = Gauge(
            "sharedlog_node_generation", "Starts of this node so far", registry=registry
        )
        self._ready = Gauge(
            "sharedlog_node_ready", "1 while the node serves, as /readyz says", registry=registry
        )
        self._metadata_connected = Gauge(
            "sharedlog_node_metadata_connected",
            "1 while the metadata store answers",
            registry=registry,
        )
        self._sessions = Gauge(
            "sharedlog_node_append_sessions",
            "Append sessions open through this node, forwarded ones included",
            registry=registry,
        )
        self._reads = Gauge(
            "sharedlog_node_reads", "Reads open through this node's public API", registry=registry
        )

    def set_generation(self, generation: int) -> None:
        """The node has registered."""
        self._generation.set(generation)

    def watch(
        self,
        *,
        ready: Callable[[], bool],
        metadata_connected: Callable[[], bool],
        sessions: Callable[[], int],
        reads: Callable[[], int],
    ) -> None:
        """Where the gauges take their values from."""
        self._ready.set_function(ready)
        self._metadata_connected.set_function(metadata_connected)
        self._sessions.set_function(sessions)
        self._reads.set_function(reads)


class RequestMetrics:
    """Calls and streams of the public services, as callers of this node saw them end.

    `method`: "LogService/Append". `outcome`: ok; the class of the error; cancelled (the caller went
    away, or the process stops); failed (a bug, which is logged).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "sharedlog_node_requests",
            "Calls and streams of the public services that have ended; method: its name, outcome: "
            "ok, the class of the error, cancelled or failed",
            ["method", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sharedlog_node_request_seconds",
            "How long calls took, whatever came of them; streams are not in it. method: its name",
            ["method"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=registry,
        )
        self._counts: dict[tuple[str, str], Counter] = {}

    def timer(self, method: str) -> Callable[[float], None]:
        """To tell how many seconds a call took."""
        child = self._seconds.labels(method)
        return child.observe

    def count(self, method: str, outcome: str) -> None:
        """A call or stream has ended."""
        child = self._counts.get((method, outcome))
        if child is None:
            child = self._counts[method, outcome] = self._requests.labels(method, outcome)
        child.inc()


class ReconfigurationMetrics:
    """What this process did to change logs, whoever ordered them.

    `kind`: planned (the sequencer was asked to drain first) or unplanned. `cause`: see
    `causes.py`. `outcome`: won; adopted (somebody else was faster); unavailable (not now);
    unrepairable (not without a person); metadata (the metadata store is away); refused (the change
    itself is wrong, or there is no such log).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reconfigurations = Counter(
            "sharedlog_node_reconfigurations",
            "Reconfigurations of logs by this process; kind: planned or unplanned, cause: why, "
            "outcome: won, adopted, unavailable, unrepairable, metadata or refused",
            ["kind", "cause", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "sharedlog_node_reconfiguration_seconds",
            "Reconfigurations from the first look at the chain to their outcome; outcome: as above",
            ["outcome"],
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=registry,
        )
        self._sealed_segments = Counter(
            "sharedlog_node_sealed_segments",
            "Segments that this process sealed, and whose end it found; cause: why",
            ["cause"],
            registry=registry,
        )
        self._repaired_records = Counter(
            "sharedlog_node_repaired_records",
            "Records that were copied to reach a write quorum before their segment ended",
            registry=registry,
        )
        self._pause_seconds = Histogram(
            "sharedlog_node_reconfiguration_pause_seconds",
            "From the stop of admission to the new segment; kind: planned or unplanned",
            ["kind"],
            buckets=(0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2, 5),
            registry=registry,
        )

    def count(self, kind: str, cause: str, outcome: str, seconds: float) -> None:
        """One has ended."""
        self._reconfigurations.labels(kind, cause, outcome).inc()
        self._seconds.labels(outcome).observe(seconds)

    def sealed(self, cause: str) -> None:
        """This process has sealed a segment."""
        self._sealed_segments.labels(cause).inc()

    def moved(self, kind: str, *, pause_s: float, repaired_records: int) -> None:
        """This process has ended a segment."""
        self._repaired_records.inc(repaired_records)
        self._pause_seconds.labels(kind).observe(pause_s)
