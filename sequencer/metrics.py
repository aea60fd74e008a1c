"""What the sequencer counts. The one place of this package that knows Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from sequencer.standing import Standing

_LATENCY_BUCKETS_S = (
    *(0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)


class SequencerMetrics:
    """One per process; children of labels are cached where they are used."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = Counter(
            "sharedlog_sequencer_committed_batches_total",
            "Batches that reached their write quorum",
            registry=registry,
        )
        self.records = Counter(
            "sharedlog_sequencer_committed_records_total",
            "Records in those batches",
            registry=registry,
        )
        self.bytes = Counter(
            "sharedlog_sequencer_committed_bytes_total",
            "Bytes of those batches, headers included",
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "sharedlog_sequencer_commit_seconds",
            "From the admission of a batch to its write quorum and acknowledgement, in seconds",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.in_flight_bytes = Gauge(
            "sharedlog_sequencer_in_flight_bytes",
            "Bytes of batches admitted and not yet committed",
            registry=registry,
        )
        self.replica_backlog_bytes = Gauge(
            "sharedlog_sequencer_replica_backlog_bytes",
            "Bytes for one log server that it has not acknowledged; node: its name",
            ["node"],
            registry=registry,
        )
        self.replica_up = Gauge(
            "sharedlog_sequencer_replica_up",
            "1 while the replication stream to the log server is up; node: its name",
            ["node"],
            registry=registry,
        )
        self.replica_skips = Counter(
            "sharedlog_sequencer_replica_skips_total",
            "Times that a log server fell out of step with a log; node: its name",
            ["node"],
            registry=registry,
        )
        self.rejected = Counter(
            "sharedlog_sequencer_rejected_batches_total",
            "Batches that were not admitted; reason: the class of the error",
            ["reason"],
            registry=registry,
        )
        self.indefinite = Counter(
            "sharedlog_sequencer_indefinite_batches_total",
            "Batches whose outcome is unknown because the segment ended under them",
            registry=registry,
        )
        self._add_moves_and_producers(registry)
        self._stands = _Stands()
        registry.register(self._stands)

    def watch(self, stands: Callable[[], Standing]) -> None:
        """Where those gauges take their values from that are looked up when they are asked for."""
        self._stands.look = stands

    def _add_moves_and_producers(self, registry: CollectorRegistry) -> None:
        self.repeated = Counter(
            "sharedlog_sequencer_repeated_batches_total",
            "Batches that their producer sent again and that were in the log already",
            registry=registry,
        )
        self.searches = Counter(
            "sharedlog_sequencer_searches_total",
            "Searches of a log for batches of a producer that opened a session",
            registry=registry,
        )
        self.searched_batches = Counter(
            "sharedlog_sequencer_searched_batches_total",
            "Batches of anybody that those searches went through",
            registry=registry,
        )
        self.controls = Counter(
            "sharedlog_sequencer_control_batches_total",
            "Control batches that were written; cause: fence, producer or checkpoint",
            ["cause"],
            registry=registry,
        )
        self.recoveries = Histogram(
            "sharedlog_sequencer_state_recovery_seconds",
            "From the moment a log is taken over until its state was read from it, in seconds",
            buckets=_LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.moved = Counter(
            "sharedlog_sequencer_moved_logs_total",
            "Times that a log's chain left a segment behind that this process ordered",
            registry=registry,
        )
        self.sealed = Counter(
            "sharedlog_sequencer_sealed_logs_total",
            "Times that a log server said that a segment was sealed before its chain was known to "
            "have moved",
            registry=registry,
        )


class _Stands(Collector):
    """How the logs stand: one look for all of these gauges."""

    def __init__(self) -> None:
        self.look: Callable[[], Standing] = Standing

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Names without values, for the registry."""
        return self._families(Standing())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As of now."""
        return self._families(self.look())

    @staticmethod
    def _families(found: Standing) -> Iterator[GaugeMetricFamily]:
        alone = {
            "logs": ("Logs that this process orders", found.logs),
            "held_logs": (
                "Logs that admit no appends now: about to be moved, sealed, or being taken over",
                found.held,
            ),
            "tail_lag_records": (
                "Records that have offsets and are not committed yet",
                found.tail_lag_records,
            ),
            "tail_lag_seconds": (
                "How long the oldest batch has waited for its write quorum; 0: nothing waits",
                found.oldest_s,
            ),
        }
        for name, (text, value) in alone.items():
            yield GaugeMetricFamily(f"sharedlog_sequencer_{name}", text, value=value)
        logs, records, size = (
            GaugeMetricFamily(f"sharedlog_sequencer_{name}", text, labels=["node"])
            for name, text in (
                ("replica_lagging_logs", "Logs that skip a log server; node: its name"),
                (
                    "replica_lag_records",
                    "Committed records that a skipped log server lacks; node: its name",
                ),
                ("replica_lag_bytes", "Bytes of those records, by guess; node: its name"),
            )
        )
        for node, lag in sorted(found.lags.items()):
            logs.add_metric([node], lag.logs)
            records.add_metric([node], lag.records)
            size.add_metric([node], lag.bytes)
        yield from (logs, records, size)
