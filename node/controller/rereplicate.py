"""Re-replication: closed segments leave stores that are lost, drained or given up.

For each such member of a nodeset: another log server is chosen, the loglet is created there sealed,
everything that the chain calls part of the segment is copied and read back with its checksums; only
then, by compare-and-swap, does the chain name the new store instead of the old one. So at every
moment the chain names stores that hold what it says, and history never pins a node.

The old store, if it still lives, keeps what it has; nobody asks it any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from metadata.records import LogRecord, Replica, Segment
from metadata.registry import commit_change
from metadata.store import MetadataStore, Version
from node.controller.backfill import Backfill
from sharedlog.errors import LogUnavailable

log = logging.getLogger("node")


class Rereplication:
    """See the module's docstring."""

    def __init__(
        self, *, store: MetadataStore, backfill: Backfill, new_id: Callable[[], str]
    ) -> None:
        self._store = store
        self._backfill = backfill
        self._new_id = new_id

    async def move(
        self,
        record: LogRecord,
        segment: Segment,
        leaving: int,
        target: Replica,
        *,
        told: Callable[[str], None],
    ) -> tuple[LogRecord, Version]:
        """Replace the member `leaving` (an index) of a closed segment by `target`.

        `metadata.reconfiguration.choose_replacements` chooses it.

        Raises:
            LogUnavailable: not all could be copied. MetadataUnavailable. SharedLogError: what the
            new store says.

        **Cancellation:** safe: what was copied stays, the chain changes as a whole or not at all.
        """
        left = segment.nodeset[leaving].node_id
        told(f"{left} to {target.node_id}")
        await self._fill(record, segment, target, told)
        nodeset = (*segment.nodeset[:leaving], target, *segment.nodeset[leaving + 1 :])
        changed, version, made = await self._commit(record.name, segment, nodeset)
        if made:
            fields = {"log": record.name, "segment": segment.index}
            fields |= {"from": left, "to": target.node_id}
            log.info("segment.rereplicated", extra=fields)
            await self._backfill.tell_end(record, segment, [target])
        return changed, version

    async def _fill(
        self,
        record: LogRecord,
        segment: Segment,
        target: Replica,
        told: Callable[[str], None],
    ) -> None:
        filled = await self._backfill.copy_to(record, segment, target, told=told)
        if filled.complete:
            return
        first, end = filled.nobody[0]
        why = f": {filled.errors[0]}" if filled.errors else ""
        raise LogUnavailable(
            f"log {record.name}, segment {segment.index}: no replica gives offsets {first:,} to "
            f"{end:,} for the copy on {target.node_id}{why}"
        )

    async def _commit(
        self, name: str, segment: Segment, nodeset: tuple[Replica, ...]
    ) -> tuple[LogRecord, Version, bool]:
        def build(found: LogRecord) -> LogRecord | None:
            chain = list(found.chain)
            for place, present in enumerate(chain[:-1]):
                if present.index == segment.index and present.nodeset == segment.nodeset:
                    chain[place] = replace(present, nodeset=nodeset)
                    return replace(found, chain=tuple(chain))
            return None  # somebody else has changed it: it is looked at again

        return await commit_change(self._store, name, build, self._new_id())
