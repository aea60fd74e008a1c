"""What the log server counts. The one place of this package that knows Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from loglet.store import StoreSpace

_LATENCY_BUCKETS_S = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
_GROUP_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class LogServerMetrics:
    """One per process; children of labels are cached where they are used."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.commit_seconds = Histogram(
            "sharedlog_log_server_commit_seconds",
            "One commit of the store, its sync included, in seconds",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.commit_batches = Histogram(
            "sharedlog_log_server_commit_batches",
            "Batches in one commit",
            buckets=_GROUP_BUCKETS,
            registry=registry,
        )
        self.queue_bytes = Gauge(
            "sharedlog_log_server_queue_bytes",
            "Bytes of stores that wait for the writer",
            registry=registry,
        )
        self.stored_batches = Counter(
            "sharedlog_log_server_stored_batches_total",
            "Batches that were made durable",
            registry=registry,
        )
        self.stored_bytes = Counter(
            "sharedlog_log_server_stored_bytes_total",
            "Bytes of those batches, headers included",
            registry=registry,
        )
        self.repaired_batches = Counter(
            "sharedlog_log_server_repaired_batches_total",
            "Batches of repairs and backfills that were answered as held",
            registry=registry,
        )
        self.refused = Counter(
            "sharedlog_log_server_refused_total",
            "Stores, opens and calls that were refused; reason: name of the error's class",
            ["reason"],
            registry=registry,
        )
        self.seals = Counter(
            "sharedlog_log_server_seals_total",
            "Loglets that were sealed; why is counted where it is decided, by "
            "sharedlog_node_sealed_segments_total",
            registry=registry,
        )
        self.damaged_batches = Counter(
            "sharedlog_log_server_damaged_batches_total",
            "Times that a stored batch was read and did not match its checksum",
            registry=registry,
        )
        self.open_reads = Gauge(
            "sharedlog_log_server_open_reads",
            "Read streams that are open",
            registry=registry,
        )
        self.sent_bytes = Counter(
            "sharedlog_log_server_sent_bytes_total",
            "Bytes of batches that were sent to readers",
            registry=registry,
        )
        self.loglets = Gauge(
            "sharedlog_log_server_loglets",
            "Loglets that the store knows",
            registry=registry,
        )
        self._add_room(registry)

    def _add_room(self, registry: CollectorRegistry) -> None:
        """What the store takes, and what trims have given back."""
        self.trimmed_batches = Counter(
            "sharedlog_log_server_trimmed_batches_total",
            "Batches below a local start that were deleted",
            registry=registry,
        )
        self.trimmed_bytes = Counter(
            "sharedlog_log_server_trimmed_bytes_total",
            "Bytes of those batches, headers included",
            registry=registry,
        )
        self.used_bytes = Gauge(
            "sharedlog_log_server_store_used_bytes",
            "What the store holds; room that was freed within its file is not counted",
            registry=registry,
        )
        self.file_bytes = Gauge(
            "sharedlog_log_server_store_file_bytes",
            "What the store takes of its disk",
            registry=registry,
        )
        self.free_bytes = Gauge(
            "sharedlog_log_server_store_free_bytes",
            "Room for batches, the reserve not counted; 0: the store is read-only",
            registry=registry,
        )

    def watch_space(self, space: Callable[[], StoreSpace]) -> None:
        """Where the gauges of the store's room take their values from."""
        self.used_bytes.set_function(lambda: space().used_bytes)
        self.file_bytes.set_function(lambda: space().file_bytes)
        self.free_bytes.set_function(lambda: space().free_bytes)
