"""What the node itself counts. The one place of this package that knows Prometheus's objects.

The parts bring their own: `sequencer/metrics.py`, `loglet/metrics.py`.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Info, PlatformCollector, ProcessCollector


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
