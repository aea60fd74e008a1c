"""Prometheus metrics of the embedded metadata store, and of calls to whichever store it is."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class MetadataMetrics:
    """One per store, in the registry of its process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.commit_seconds = Histogram(
            "sharedlog_metadata_commit_seconds",
            "Time of one fsynced commit, which may hold several changes",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0),
            registry=registry,
        )
        self.changes = Counter(
            "sharedlog_metadata_changes_total",
            "Puts and deletes; outcome: made, or lost (a compare-and-swap that lost its race)",
            ["outcome"],
            registry=registry,
        )
        self.changes_made = self.changes.labels("made")
        self.changes_lost = self.changes.labels("lost")
        self.watchers = Gauge(
            "sharedlog_metadata_watchers", "Watches that are open", registry=registry
        )
        self.watch_resyncs = Counter(
            "sharedlog_metadata_watch_resyncs_total",
            "Times that a watcher lagged too far and was told the difference instead",
            registry=registry,
        )


class MetadataCallMetrics:
    """One per process: its own calls to the metadata store. Cheap: children are kept."""

    def __init__(self, registry: CollectorRegistry) -> None:
        seconds = Histogram(
            "sharedlog_metadata_call_seconds",
            "Calls of this process to the metadata store, their retries included; operation: get, "
            "put, delete or list",
            ["operation"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
            registry=registry,
        )
        self._seconds = {name: seconds.labels(name) for name in ("get", "put", "delete", "list")}
        self._failures = Counter(
            "sharedlog_metadata_call_failures_total",
            "Those that failed; error: its class, VersionMismatch for a race that was lost",
            ["operation", "error"],
            registry=registry,
        )

    def took(self, operation: str, seconds: float) -> None:
        """A call has ended."""
        self._seconds[operation].observe(seconds)

    def failed(self, operation: str, error: str) -> None:
        """A call has failed."""
        self._failures.labels(operation, error).inc()
