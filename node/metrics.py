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


class ReconfigurationMetrics:
    """What this process did to change logs, whoever ordered them.

    `kind`: planned (the sequencer was asked to drain first) or unplanned. `outcome`: won; adopted
    (somebody else was faster); unavailable (not now); unrepairable (not without a person); metadata
    (the metadata store is away); refused (the change itself is wrong, or there is no such log).
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._reconfigurations = Counter(
            "sharedlog_node_reconfigurations",
            "Reconfigurations of logs by this process; kind: planned or unplanned, outcome: won, "
            "adopted, unavailable, unrepairable, metadata or refused",
            ["kind", "outcome"],
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

    def count(self, kind: str, outcome: str) -> None:
        """One has ended."""
        self._reconfigurations.labels(kind, outcome).inc()

    def moved(self, kind: str, *, pause_s: float, repaired_records: int) -> None:
        """This process has ended a segment."""
        self._repaired_records.inc(repaired_records)
        self._pause_seconds.labels(kind).observe(pause_s)
