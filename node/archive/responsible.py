"""Who archives a log: as a rule a log server of its nodeset that does not order it.

Every append waits for the process that orders its log, and of two other log servers only for the
faster one. So it is one of these that reads the batches again, uploads them and reads them back.

All nodes choose alike, by the chain and by what they know of the others' lives. Where they differ
two archive the same log, which costs work and nothing else (the manifest's swap decides), or nobody
does: then the process that orders the log takes over, after `TAKE_OVER_S` without progress, for
`TAKEN_OVER_S`. Pure.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from metadata.records import LogRecord
from sharedlog.ids import NodeId, StorageId

TAKE_OVER_S: Final = 20.0
"""Something is due for so long, and nothing was archived meanwhile."""
TAKEN_OVER_S: Final = 300.0
"""Who took over goes on for so long, then leaves it to the other again."""


def archiver_of(record: LogRecord, able: Collection[tuple[NodeId, StorageId]]) -> NodeId:
    """The node that is to archive the log; `able`: nodes that may, each with its present store."""
    segment = record.open_segment
    others = sorted(
        it.node_id
        for it in segment.nodeset
        if it.node_id != segment.sequencer.node_id and (it.node_id, it.storage_id) in able
    )
    return others[record.log_id % len(others)] if others else segment.sequencer.node_id
