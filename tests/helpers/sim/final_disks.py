"""What lies on the disks of a simulated cluster, and did, for those who judge it in the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress

from helpers.history import FinalRecord
from helpers.history_disks import ReplicaCopies, SegmentCopies
from helpers.history_read import final_records
from helpers.sim.cluster import SimCluster
from helpers.sim.nemesis import Budget

from metadata.encoding import decode_log, log_key
from metadata.store import Changed
from sharedlog.batch import parse_placement
from sharedlog.errors import CorruptBatch


def segments_of(
    cluster: SimCluster, budget: Budget, log: str, *, with_disks: bool = False
) -> list[SegmentCopies]:
    """A log's chain, and what lies on the disks that it names."""
    record = budget.record(log)
    named = _disks_named(cluster, log) if with_disks else defaultdict(set)
    found = []
    for segment in record.chain:
        loglet = record.loglet(segment)
        end = segment.end
        replicas = []
        for member in segment.nodeset:
            disk = cluster.present_disk(str(member.node_id), member.storage_id)
            batches = [] if disk is None else disk.ever(loglet)
            replicas.append(
                ReplicaCopies(
                    str(member.node_id),
                    member.location,
                    [batch.placed for batch in batches],
                    lost=disk is None,
                )
            )
        found.append(
            SegmentCopies(
                segment.index,
                segment.base,
                end,
                segment.write_quorum,
                replicas,
                segment.spread,
                harmed=(log, segment.index) in budget.harmed,
                disks=named[segment.index],
                trimmed=record.trimmed,
            )
        )
    return found


def purged(cluster: SimCluster, budget: Budget, log: str, start: int) -> Iterator[FinalRecord]:
    """What lay below `start`, by whatever disk had it once."""
    record, named = budget.record(log), _disks_named(cluster, log)
    found: dict[int, FinalRecord] = {}
    for segment in record.chain:
        end = start if segment.end is None else min(segment.end, start)
        for disk in cluster.disks.values():
            if segment.base >= end or disk.storage_id not in named[segment.index]:
                continue
            for batch in disk.ever(record.loglet(segment)):
                with suppress(CorruptBatch):
                    for it in final_records(batch.placed, parse_placement(batch.placed)):
                        if segment.base <= it.offset < end:
                            found.setdefault(it.offset, it)
    yield from (found[offset] for offset in sorted(found))


def _disks_named(cluster: SimCluster, log: str) -> dict[int, set[str]]:
    """Every disk that the chain ever named, by segment."""
    named: dict[int, set[str]] = defaultdict(set)
    for change in cluster.metadata.history:
        if isinstance(change, Changed) and change.entry.key == log_key(log):
            for segment in decode_log(change.entry).chain:
                named[segment.index].update(it.storage_id for it in segment.nodeset)
    return named
