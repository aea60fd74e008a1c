"""How the logs of this process stand: what is in flight, and which replicas lag by how much.

Looked up when somebody asks, for metrics: an append costs it nothing. A log with nothing in flight
and all replicas in step costs a look two comparisons.

What a replica lags by is what is committed, and what it is not known to hold, while it is skipped.
Once it is in step again it lags no more, though it may have a hole from before: that one is the
controller's to find and to fill (`node/controller/backfill.py`). Bytes are a guess, by the mean
size of the records that this process has committed in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sharedlog.ids import NodeId

if TYPE_CHECKING:  # which needs the metrics, and they this module
    from sequencer.loglets import ActiveLoglet


@dataclass(slots=True)
class Lag:
    """What one node's log server lacks of the logs that skip it."""

    logs: int = 0
    records: int = 0
    bytes: float = 0.0  # by guess


@dataclass(slots=True)
class Standing:
    """All logs of a process together."""

    logs: int = 0  # that it orders
    held: int = 0  # that admit nothing: about to be moved, sealed, or their state is being read
    tail_lag_records: int = 0  # that have offsets and are not committed
    oldest_s: float = 0.0  # for how long the oldest batch in flight has waited
    lags: Mapping[NodeId, Lag] = field(default_factory=dict)


def stand(actives: Iterable[ActiveLoglet], now_s: float) -> Standing:
    """How these loglets stand now, monotonic seconds."""
    found, lags = Standing(), dict[NodeId, Lag]()
    for active in actives:
        core = active.core
        found.held += active.gate is not None
        if core.ended is not None:
            continue
        found.logs += 1
        if core.in_flight:
            found.tail_lag_records += core.next_offset - core.committed_tail
            found.oldest_s = max(found.oldest_s, now_s - active.oldest_admitted_s)
        if core.all_in_step:
            continue
        record_bytes = active.record_bytes or 0.0
        for replica in core.lagging():
            lag = lags.setdefault(active.links[replica].replica.node_id, Lag())
            records = core.lacks(replica)
            lag.logs += 1
            lag.records += records
            lag.bytes += records * record_bytes
    found.lags = lags
    return found
