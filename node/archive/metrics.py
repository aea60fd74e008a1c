"""Prometheus metrics of what a node writes to the archive, and reads of it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class ArchiveMetrics:
    """One set of objects per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.objects = Counter(
            "sharedlog_archive_objects_total",
            "Objects of batches that this node wrote, read back and named in a manifest",
            registry=registry,
        )
        self.written_bytes = Counter(
            "sharedlog_archive_written_bytes_total", "Bytes of those objects", registry=registry
        )
        self.written_records = Counter(
            "sharedlog_archive_written_records_total", "Records in them", registry=registry
        )
        self.object_seconds = Histogram(
            "sharedlog_archive_object_seconds",
            "From the first read of a log's batches to the object that is named and in the chain",
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=registry,
        )
        self.failures = Counter(
            "sharedlog_archive_failures_total",
            "Attempts to archive, trim or purge a log by itself that failed and are made again",
            registry=registry,
        )
        self.troubled_logs = Gauge(
            "sharedlog_archive_troubled_logs",
            "Logs of which the last such attempt failed",
            registry=registry,
        )
        self.waiting_bytes = Gauge(
            "sharedlog_archive_waiting_bytes",
            "Bytes of committed batches, by guess, of logs that this node orders and that are not "
            "archived yet",
            registry=registry,
        )
        self.fetched_bytes = Counter(
            "sharedlog_archive_fetched_bytes_total",
            "Bytes of blocks that were read from the archive for readers",
            registry=registry,
        )
        self.blocks_used = Counter(
            "sharedlog_archive_blocks_used_total",
            "Blocks that readers went through, fetched or kept; beside the fetched bytes it tells "
            "what the block cache is worth",
            registry=registry,
        )
