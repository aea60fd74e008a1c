"""Prometheus metrics of the controller, and of the scrub that every node does."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge


class ControllerMetrics:
    """One set of objects per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.leads = Gauge(
            "sharedlog_controller_leads",
            "1 while this node is the controller, as far as it knows",
            registry=registry,
        )
        self.copied_bytes = Counter(
            "sharedlog_controller_copied_bytes_total",
            "Bytes of batches copied to replicas that lacked or had damaged them",
            registry=registry,
        )
        self.segments_lacking = Gauge(
            "sharedlog_controller_segments_lacking",
            "Closed segments that, when last looked at, were not complete on all replicas; "
            "0 on a node that is not the controller",
            registry=registry,
        )
        self.records_lacking = Gauge(
            "sharedlog_controller_records_lacking",
            "Copies of records that those segments lack, or that nobody answers for",
            registry=registry,
        )
        self._waiting_logs = Gauge(
            "sharedlog_controller_waiting_logs",
            "Logs that wait for the controller, or are tried again after a pause; work: failover, "
            "replace, tend, sweep, forward or balance",
            ["work"],
            registry=registry,
        )
        self.scrubbed_bytes = Counter(
            "sharedlog_scrub_bytes_total",
            "Bytes of own batches that were read and compared with their checksums",
            registry=registry,
        )
        self.scrub_damaged = Counter(
            "sharedlog_scrub_damaged_segments_total",
            "Segments of which a scrub found something damaged",
            registry=registry,
        )

    def waiting(self, waiting: Mapping[str, int]) -> None:
        """Logs that wait, by what they wait for."""
        for what, count in waiting.items():
            self._waiting_logs.labels(what).set(count)

    def resigned(self) -> None:
        """This node is not the controller, or not any more: another one tells of all of this."""
        self.leads.set(0)
        self.segments_lacking.set(0)
        self.records_lacking.set(0)
        self._waiting_logs.clear()
