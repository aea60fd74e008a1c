"""What a log server really has on its disk: digests for whoever compares replicas, and damage.

A digest says which offsets of a loglet are held. Without verification it walks over keys alone;
with it every batch is read and compared with its checksums, on the store's own threads, as reads
are. It comes in pages, each bounded in batches, ranges and bytes, so that a look at a whole loglet
neither grows without bound nor keeps readers from the disk.

Records at or beyond a told end are in no log, and those below the local start were trimmed: a
digest lists neither. It never lists what is
not on disk yet either: whoever takes a running commit for a hole would begin to fill it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from loglet.held import joined
from loglet.metrics import LogServerMetrics
from loglet.store import HeldBatch, LogletState, LogStore
from loglet.wire import loglet_status, ranges_to_proto
from sharedlog.ids import LogletId, Offset
from sharedlog.limits import MIB
from sharedlog.v1.log_server_pb2 import DigestRequest, DigestResponse

log = logging.getLogger(__name__)

PAGE_RANGES_MAX: Final = 4_096
"""Held ranges in one page."""

PAGE_BATCHES_MAX: Final = 16_384
"""Batches that one page looks at."""

SCAN_BYTES_MAX: Final = 4 * MIB
"""Batches that are verified in one go, as long as a read may wait for a thread; a larger one goes
alone."""

PAGE_SCANS_MAX: Final = 8
"""So often one page asks the disk: it verifies some 32 MiB."""

Range = tuple[Offset, Offset]


class DigestService:
    """See the module's docstring."""

    def __init__(self, *, store: LogStore, metrics: LogServerMetrics) -> None:
        self._store = store
        self._metrics = metrics

    async def page(
        self, state: LogletState, request: DigestRequest, *, now: Callable[[], LogletState]
    ) -> DigestResponse:
        """One page of a loglet whose `state` is on disk; `now`: how it stands at any later time.

        What is trimmed while the disk is read may be missing from what was read. So the local start
        that is told, and from which on it is listed, is that of after.

        **Cancellation:** ends the look-up.

        Raises:
            StoreFailed: the disk can't be read.
        """
        start = Offset(request.start)
        there = state.local_tail
        if state.told_end is not None:
            there = min(there, state.told_end)
        end = Offset(request.end) if request.HasField("end") else there
        found = await self._scan_page(
            state.loglet, max(start, state.local_start), min(end, there), verify=request.verify
        )
        kept = now().local_start
        whole = _with_few_ranges(found)
        if len(whole) < len(found) or (whole and whole[-1].end < min(end, there)):
            following = whole[-1].end
        else:
            following = max(start, end)
        answer = DigestResponse(
            held=ranges_to_proto(_within(whole, max(start, kept), following)),
            next=following,
            status=loglet_status(replace(state, local_start=max(state.local_start, kept))),
            bytes=sum(batch.size for batch in found),
        )
        if request.verify:
            damaged = [it for it in whole if it.placement_bytes is None]
            answer.damaged.extend(ranges_to_proto(_within(damaged, max(start, kept), following)))
            for batch in whole:
                if batch.placement_bytes is not None and batch.end > kept:
                    answer.batch_firsts.append(batch.first)
                    answer.batch_checksums.append(
                        int.from_bytes(batch.placement_bytes[:4], "little")
                    )
        return answer

    async def verify(self, loglet: LogletId, start: Offset, end: Offset) -> list[HeldBatch]:
        """The first held batches of [start, end), some 4 MiB, verified; none: there are no more.

        **Cancellation:** ends the look-up.

        Raises:
            StoreFailed: the disk can't be read.
        """
        return await self._scan(loglet, start, end, verify=True)

    async def _scan_page(
        self, loglet: LogletId, start: Offset, end: Offset, *, verify: bool
    ) -> list[HeldBatch]:
        """What is held from `start` on, as far as a page goes."""
        found: list[HeldBatch] = []
        for _ in range(PAGE_SCANS_MAX):
            if start >= end or len(found) >= PAGE_BATCHES_MAX:
                break
            batches = await self._scan(loglet, start, end, verify=verify)
            if not batches:
                break
            found += batches
            start = batches[-1].end
        return found[:PAGE_BATCHES_MAX]

    async def _scan(
        self, loglet: LogletId, start: Offset, end: Offset, *, verify: bool
    ) -> list[HeldBatch]:
        batches = await self._store.scan(
            loglet,
            start,
            end,
            verify=verify,
            max_batches=PAGE_BATCHES_MAX,
            max_bytes=SCAN_BYTES_MAX,
        )
        for batch in batches:
            if batch.placement_bytes is None:
                self._metrics.damaged_batches.inc()
                fields = {"loglet": str(loglet), "first": batch.first, "end": batch.end}
                log.error("batch.damaged", extra=fields)
        return batches


def _with_few_ranges(found: Sequence[HeldBatch]) -> Sequence[HeldBatch]:
    """The first of them, as far as they are `PAGE_RANGES_MAX` ranges."""
    ranges, end = 0, None
    for index, batch in enumerate(found):
        ranges += batch.first != end
        if ranges > PAGE_RANGES_MAX:
            return found[:index]
        end = batch.end
    return found


def _within(batches: Sequence[HeldBatch], start: Offset, end: Offset) -> Iterator[Range]:
    """Their ranges as far as they lie in [start, end), joined."""
    clipped = ((max(it.first, start), min(it.end, end)) for it in batches)
    yield from joined((first, last) for first, last in clipped if first < last)
