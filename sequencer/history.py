"""Searches a part of a log for who wrote what, from the log servers that hold it.

A sequencer that takes over a log must know which batches of a producer are in it already before it
admits any of that producer's (`producers.py`), and what state the log has (`state.py`). It reads
only the fixed part of each batch, and control batches whole.

Nothing is skipped: a range that no log server of its segment serves is a failure, not an absence. A
closed segment is read up to the end that the chain gives it and not beyond, whatever its servers
still hold there: that is not in the log. Of the open segment only what is committed may be asked
for. What an operator has given up for lost is passed over, for it is not in the log any more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from random import Random
from typing import Final, NamedTuple, Protocol

from loglet.wire import loglet_to_proto
from metadata.records import LogRecord, Replica, Segment
from sequencer.link import Directory
from sharedlog.backoff import Backoff
from sharedlog.batch import (
    KIND_CONTROL,
    BatchProducer,
    Placement,
    check_placed,
    parse_placement,
    parse_producer,
)
from sharedlog.clock import Clock
from sharedlog.errors import CorruptBatch, LogUnavailable, SharedLogError, Unreachable
from sharedlog.ids import ARCHIVE_PREFIX, LogletId, NodeId, Offset, StorageId
from sharedlog.rpc.methods import READ_LOGLET
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import log_server_pb2

log = logging.getLogger(__name__)

_FIRST_ANSWER_S: Final = 0.5  # it answers at once, if only with the tail that it knows
_SILENCE_MAX_S: Final = 1.5  # a log server sends a heartbeat every second
_ROUNDS_MAX: Final = 3  # every log server was asked so often, in vain
_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 0.5


class HistoryPage(NamedTuple):
    """What lies in the log from the end of the page before up to `up_to`, exclusive."""

    batches: Sequence[tuple[Placement, BatchProducer]]  # the first may begin below the start
    up_to: Offset
    controls: Sequence[bytes] = ()  # those of the batches that are control batches, whole


class HistoryScanner(Protocol):
    """Reads who wrote what."""

    def scan(
        self, record: LogRecord, start: Offset, end: Offset
    ) -> AsyncGenerator[HistoryPage, None]:
        """Pages that cover [start, end), in order; `end` is a committed point of the log.

        Raises:
            LogUnavailable: a part of the range can't be had.

        **Cancellation:** safe. Close the generator when leaving early.
        """
        ...


class LogHistory:
    """Reads from the log servers of the log's segments, from that of node `own` if it is one.

    It certainly lives, and who searches does so because some other node may not: those that
    `held_dead` says yes to come last, since each costs a wait.
    """

    def __init__(
        self,
        *,
        transport: Transport,
        directory: Directory,
        clock: Clock,
        random: Random,
        own: NodeId | None = None,
        held_dead: Callable[[NodeId], bool] = lambda _: False,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._clock = clock
        self._random = random
        self._own = own
        self._held_dead = held_dead

    async def scan(
        self, record: LogRecord, start: Offset, end: Offset
    ) -> AsyncGenerator[HistoryPage, None]:
        """See `HistoryScanner.scan`."""
        position = start
        for segment, first, limit in _ranges(record, start, end):
            if first > position:
                yield HistoryPage((), first)  # given up for lost
            async with aclosing(self._scan_segment(record, segment, first, limit)) as pages:
                async for page in pages:
                    yield page
            position = limit
        if position < end:
            yield HistoryPage((), end)

    async def _scan_segment(
        self, record: LogRecord, segment: Segment, start: Offset, end: Offset
    ) -> AsyncGenerator[HistoryPage, None]:
        """Pages from whichever log server has them, one after the other."""
        replicas = self._best_first(segment)
        if self._own is not None and start < record.archived_end:
            # What the log servers have trimmed; each node reads the archive.
            archive = StorageId(ARCHIVE_PREFIX + self._own)
            replicas.append(Replica(node_id=self._own, storage_id=archive))
        if not replicas:
            raise LogUnavailable(f"log {record.name}: offset {start} is in the archive alone")
        backoff = Backoff(self._random, min_s=_PAUSE_MIN_S, max_s=_PAUSE_MAX_S)
        position, failures, reason = start, 0, ""
        while position < end:
            replica = replicas[failures % len(replicas)]
            upto = min(end, record.archived_end) if _is_archive(replica) else end
            try:
                if position >= upto:
                    raise Unreachable(f"offset {position} is not archived")
                pages = self._read(record.loglet(segment), segment, replica, position, upto)
                async with aclosing(pages):
                    async for page in pages:
                        position, failures = page.up_to, 0
                        replicas.remove(replica)
                        replicas.insert(0, replica)
                        yield page
            except (SharedLogError, TimeoutError) as error:
                reason = f"{replica.node_id}: {str(error) or 'silent'}"
                failures += 1
                extra = {"log": record.name, "offset": position, "reason": reason}
                log.debug("history.replica_failed", extra=extra)
                if failures >= _ROUNDS_MAX * len(replicas):
                    raise LogUnavailable(
                        f"log {record.name}: no log server serves offset {position}, which must "
                        f"be searched before appends can be taken; last, {reason}"
                    ) from error
                if failures % len(replicas) == 0:
                    await self._clock.sleep(backoff.next_s())

    def _best_first(self, segment: Segment) -> list[Replica]:
        replicas = list(segment.nodeset)
        self._random.shuffle(replicas)
        replicas.sort(
            key=lambda it: 0 if it.node_id == self._own else 2 if self._held_dead(it.node_id) else 1
        )
        return replicas

    async def _read(
        self, loglet: LogletId, segment: Segment, replica: Replica, start: Offset, end: Offset
    ) -> AsyncGenerator[HistoryPage, None]:
        """What one log server has, from `start` on without a gap. Raises if it can't go on."""
        node = self._directory(replica.node_id)
        if node is None:
            raise Unreachable(f"node {replica.node_id} is not registered")
        request = log_server_pb2.ReadLogletRequest(
            storage_id=replica.storage_id,
            loglet=loglet_to_proto(loglet),
            start=start,
            end=end,
            headers_only=True,
        )
        if segment.end is not None:
            request.segment_end = segment.end
        # What is archived may have been written to a log that this one was forked from.
        wanted = None if _is_archive(replica) else loglet
        stream = self._transport.stream(node.address, READ_LOGLET)
        position, behind, patience_s = start, 0, _FIRST_ANSWER_S
        try:
            async with asyncio.timeout(_FIRST_ANSWER_S):
                await stream.send(request)
                await stream.end()
            while position < end:
                async with asyncio.timeout(patience_s):
                    message = await stream.receive()
                patience_s = _SILENCE_MAX_S
                if message is None:
                    raise Unreachable(f"node {replica.node_id} ended its stream at {position}")
                if not message.batches and message.committed_tail <= position:
                    behind += 1  # the first message may only tell what is known
                    if behind > 1 and segment.end is None:
                        known = message.committed_tail
                        raise Unreachable(f"node {replica.node_id} knows offsets below {known}")
                if message.batches:
                    page = _parse(wanted, message.batches, position, end)
                    position = page.up_to
                    yield page
                if message.gap is not None and position < end:
                    raise Unreachable(f"node {replica.node_id} lacks offset {position}")
        finally:
            stream.cancel()


def _is_archive(replica: Replica) -> bool:
    return replica.storage_id.startswith(ARCHIVE_PREFIX)


def _ranges(
    record: LogRecord, start: Offset, end: Offset
) -> Iterator[tuple[Segment, Offset, Offset]]:
    """The parts of [start, end) by segment, in order, without what is given up for lost."""
    for segment in record.chain:
        limit = end if segment.end is None else min(end, segment.end)
        first = max(start, segment.base, record.start)
        for lost in segment.lost:
            if lost.first < lost.end and lost.first < limit and lost.end > first:
                if first < lost.first:
                    yield segment, first, lost.first
                first = lost.end
        if first < limit:
            yield segment, first, limit


def _parse(
    loglet: LogletId | None, batches: Sequence[bytes], position: Offset, end: Offset
) -> HistoryPage:
    """The batches of one message: whole, of this loglet, one after the other, none beyond `end`.

    `loglet` None: whose they are is known by their offsets alone.

    Raises:
        CorruptBatch: they are not.
    """
    found, controls = [], []
    start = position
    for placed in batches:
        placement = parse_placement(placed)
        first = placement.first
        follows = first == position if position > start else first <= position < placement.end
        if placement.loglet != loglet is not None or not follows:
            raise CorruptBatch(f"[{first}, {placement.end}) does not go on at {position}")
        position = placement.end
        if position > end:
            raise CorruptBatch(f"[{first}, {position}) reaches beyond {end}")
        found.append((placement, parse_producer(placed)))
        if placement.kind == KIND_CONTROL:
            check_placed(placed)
            controls.append(placed)
    return HistoryPage(found, position, controls)
