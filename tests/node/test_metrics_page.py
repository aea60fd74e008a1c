"""docs/metrics.md is complete and true: it is compared with what a running node exposes."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.metric_names import documented, exposed
from helpers.processes import ALL_ROLES, NodeProcess
from prometheus_client import CollectorRegistry

from loglet.metrics import LogServerMetrics
from metadata.metrics import MetadataCallMetrics, MetadataMetrics
from node.archive.metrics import ArchiveMetrics
from node.controller.metrics import ControllerMetrics
from node.metrics import NodeMetrics, ReconfigurationMetrics, RequestMetrics
from sequencer.metrics import SequencerMetrics

UNITS = {"seconds": "_seconds", "bytes": "_bytes"}


@pytest.mark.cluster
@pytest.mark.slow
def test_the_page_has_every_metric_of_a_node_and_no_other(tmp_path: Path) -> None:
    """Names and types, both ways."""
    with NodeProcess(tmp_path / "n1", "n1", roles=ALL_ROLES) as node:
        found = exposed(node.wait_ready().get("/metrics")[1])
    assert {name: family.kind for name, family in documented().items()} == found


def test_the_page_has_every_label() -> None:
    """Of each metric exactly those that it has."""
    registry = CollectorRegistry()
    NodeMetrics(registry, node_id="n1", version="1")
    for make in (
        RequestMetrics,
        ReconfigurationMetrics,
        SequencerMetrics,
        LogServerMetrics,
        ControllerMetrics,
        ArchiveMetrics,
        MetadataMetrics,
        MetadataCallMetrics,
    ):
        make(registry)
    page = documented()
    for collector, names in registry._collector_to_names.items():
        labels = getattr(collector, "_labelnames", None)
        if labels is None:
            continue  # its values are looked up when they are asked for
        told = [page[name].labels for name in names if name in page]
        if told and "sharedlog_node_info" not in names:
            assert told == [frozenset(labels)], names


def test_units_are_in_the_names() -> None:
    """What is in seconds or bytes ends so; what only grows in `_total`."""
    for name, family in documented().items():
        bare = name.removesuffix("_total")
        assert (family.kind == "counter") == (bare != name), name
        unit = UNITS.get(family.unit)
        assert unit is None or bare.endswith(unit), name
        assert unit is not None or not bare.endswith(tuple(UNITS.values())), name
