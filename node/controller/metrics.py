"""Prometheus metrics of the controller, and of the scrub that every node does."""

from __future__ import annotations

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
