"""Finds the offset of a moment: asks the chain and the log servers, and `offset_search.py` decides.

Used by clients in smart mode, and by a node's front door to serve everyone else.

The way there: some parts of the chain until one segment is left, then that segment's log servers,
one after the other, each about what the ones before it left open (`FindTime`). One is nearly always
enough. So the cost grows with the logarithm of the log's length, and no payload is read.

**What stays open** after all have answered is either too new, for a log server learns a little late
that its last batches are committed, or damaged everywhere. Both are for the reader: it reads the
headers of what is left, which is little, waits for what is coming, and knows what to say of a loss.
Where a server did not answer and the others have a hole, the search waits for it as a reader would.
"""

from __future__ import annotations

import contextlib
import logging
from random import Random
from typing import Final, NamedTuple

from sharedlog.backoff import Backoff
from sharedlog.batch import parse_placement
from sharedlog.clock import Clock
from sharedlog.config import ReaderConfig
from sharedlog.errors import CorruptBatch, Purged, SharedLogError, Unreachable
from sharedlog.ids import LogId, LogletId, Offset
from sharedlog.offset_search import OffsetSearch
from sharedlog.read_progress import Replica, archive_replicas, live_replicas
from sharedlog.reader import Describe, LogReader
from sharedlog.rpc.methods import FIND_TIME
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import log_server_pb2, types_pb2

log = logging.getLogger(__name__)

_ARCHIVES_ASKED: Final = 2  # all nodes read the same; one of them may be away
_ATTEMPT_S: Final = 1.0  # a few look-ups on a disk
_RETRY_MIN_S: Final = 0.02
_RETRY_MAX_S: Final = 1.0
_HEADERS_MAX: Final = 16_384  # read in a row before the log servers are asked again


class FoundOffset(NamedTuple):
    """Where a moment lies."""

    offset: Offset  # of the first record that is not earlier; the tail that was given if none is
    has_later: bool  # there is such a record


class _Round(NamedTuple):
    """What became of asking the log servers of a segment once."""

    answered: int  # so many
    visible: int  # the highest offset below which one of those has looked
    failures: list[str]  # why others did not


class OffsetFinder:
    """Finds moments in one log. One object serves any number of searches."""

    def __init__(
        self,
        transport: Transport,
        describe: Describe,
        clock: Clock,
        rng: Random,
        *,
        config: ReaderConfig | None = None,
    ) -> None:
        self._transport = transport
        self._describe = describe
        self._clock = clock
        self._rng = rng
        self._config = config or ReaderConfig()
        self._headers = LogReader(
            transport,
            describe,
            clock,
            rng,
            config=self._config,
            verify=parse_placement,
            headers_only=True,
        )

    async def find(self, timestamp_ms: int, tail: Offset) -> FoundOffset:
        """The offset of the first record below `tail` that is not earlier than `timestamp_ms`.

        `tail` is known to be committed.

        Raises:
            DataLoss, Unreachable: the records that would tell can't be had, as in `LogReader.read`.
            LogNotFound: the log is gone.

        **Cancellation:** safe at any moment.
        """
        search = OffsetSearch(timestamp_ms, tail)
        backoff = Backoff(self._rng, min_s=_RETRY_MIN_S, max_s=_RETRY_MAX_S)
        since_s = self._clock.monotonic_s()  # of the last progress
        refresh = False
        while not search.done:
            before = search.state
            why = await self._step(search, refresh=refresh)
            refresh = search.state == before
            if not refresh:
                since_s = self._clock.monotonic_s()
                continue
            if self._clock.monotonic_s() - since_s > self._config.timeout_s:
                raise Unreachable(
                    f"no replica tells what lies in [{search.low}, {search.high}): {why}"
                )
            await self._clock.sleep(backoff.next_s())
        return FoundOffset(search.answer, search.has_later)

    async def _step(self, search: OffsetSearch, *, refresh: bool) -> str:
        """Narrow the search; if it could not be, why not."""
        if search.segment is None or refresh:
            asked = search.look_at
            search.on_chain(await self._describe(asked, refresh=refresh), asked)
        segment, description = search.segment, search.description
        if search.done or segment is None or description is None:
            return "nobody tells the chain"
        before = search.state
        found = await self._ask_replicas(search, description, segment)
        if search.state != before:
            return ""
        if not found.answered:
            return "; ".join(found.failures) or "no replica's node is known to be up"
        if found.failures and search.low < found.visible:
            return "; ".join(found.failures)  # the others have a hole there
        await self._read_headers(search, segment)
        return "its batches could not be read"

    async def _ask_replicas(
        self,
        search: OffsetSearch,
        description: types_pb2.LogDescription,
        segment: types_pb2.Segment,
    ) -> _Round:
        """Ask the segment's log servers, until they have told where the moment lies."""
        replicas = live_replicas(description, segment)
        self._rng.shuffle(replicas)
        if search.low < description.archived_end:
            archive = archive_replicas(description)
            replicas += self._rng.sample(archive, min(_ARCHIVES_ASKED, len(archive)))
        failures: list[str] = []
        answered = visible = 0
        for replica in replicas:
            if search.done or search.segment is None or search.segment.index != segment.index:
                break
            high = _upto(search, segment)
            if replica.is_archive:  # what the chain does not say is archived may not be in the log
                high = min(high, Offset(description.archived_end))
            request = log_server_pb2.FindTimeRequest(
                storage_id=replica.storage_id,
                loglet=types_pb2.LogletId(log_id=description.log_id, segment_index=segment.index),
                timestamp_ms=search.timestamp_ms,
                start=search.low,
                end=high,
                segment_end=segment.end if segment.HasField("end") else None,
            )
            try:
                answer = await self._transport.call(
                    replica.address, FIND_TIME, request, timeout_s=_ATTEMPT_S
                )
                wanted = LogletId(LogId(description.log_id), segment.index)
                self._take(search, answer, None if replica.is_archive else wanted)
                answered += 1
                visible = max(visible, answer.visible)
            except SharedLogError as error:
                failures.append(f"{replica.node_id}: {error}")
                self._note(replica, error)
        return _Round(answered, visible, failures)

    def _take(
        self, search: OffsetSearch, answer: log_server_pb2.FindTimeResponse, wanted: LogletId | None
    ) -> None:
        """Weigh an answer. Raises `CorruptBatch` if it is not what was asked for.

        `wanted` None: the archive's, whose batches may be of a log that this one was forked from.
        """
        placements = [parse_placement(it) for it in (answer.before, answer.after) if it]
        for placement in placements:
            is_other = wanted is not None and placement.loglet != wanted
            if is_other or placement.end > answer.visible:
                raise CorruptBatch(f"a batch of {placement.loglet} came for {wanted}")
        for placement in placements:
            search.on_placement(placement)

    async def _read_headers(self, search: OffsetSearch, segment: types_pb2.Segment) -> None:
        """Look at the batches that are left, as a reader gets them, in order."""
        losses = [lost.first for lost in segment.lost if lost.first > search.low]
        end = min([_upto(search, segment), *(Offset(first) for first in losses)])
        seen = 0
        chunks = self._headers.read(search.low, end, committed=end)
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    for placement in chunk.placements:
                        search.on_placement(placement)
                    seen += len(chunk.placements)
                    if search.done or seen > _HEADERS_MAX:
                        return
        except Purged as purged:
            search.on_start(Offset(purged.start))

    def _note(self, replica: Replica, error: SharedLogError) -> None:
        fields = {"replica": replica.node_id, "error": str(error)}
        log.debug("find_offset.replica_failed", extra=fields)


def _upto(search: OffsetSearch, segment: types_pb2.Segment) -> Offset:
    """Where what is to be looked at of the segment ends."""
    return min(search.high, Offset(segment.end)) if segment.HasField("end") else search.high
