"""Read streams of a log server.

A reader gets the batches below the committed tail that this server knows, or below the segment's
end if it brings one, which is proof that everything below is committed. At the limit it waits: the
committed tail wakes it, nothing polls, and when nothing happens for a while it gets a heartbeat.
What this server can't serve (a hole, a damaged batch, a trimmed prefix) is said as a gap, and the
reader takes it from another replica. A stream never skips.

What comes from the tail cache was verified when it arrived; what comes from disk is verified here.

An unknown loglet is one that was not opened yet: the reader waits for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from loglet.cache import TailCache
from loglet.config import LogServerConfig
from loglet.core import LogServerCore
from loglet.messages import StoreResponse
from loglet.metrics import LogServerMetrics
from loglet.store import LogletState, LogStore
from loglet.wire import DAMAGED, HOLE, TRIMMED, Gap, ReadQuery, read_answer, read_query
from sharedlog.batch import Placement, check_placed, parse_placement
from sharedlog.errors import CorruptBatch, InvalidArgument, Overloaded
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.transport import ServerStream
from sharedlog.v1.log_server_pb2 import ReadLogletRequest, ReadLogletResponse

log = logging.getLogger(__name__)

ReadStream = ServerStream[ReadLogletResponse, ReadLogletRequest]


class Watchers:
    """Readers that wait for a loglet's committed tail to rise."""

    def __init__(self) -> None:
        self._waiting: dict[LogletId, set[asyncio.Future[None]]] = {}
        self._readers: Counter[LogletId] = Counter()

    @contextmanager
    def reading(self, loglet: LogletId) -> Iterator[None]:
        """A read of the loglet is open."""
        self._readers[loglet] += 1
        try:
            yield
        finally:
            self._readers[loglet] -= 1
            if not self._readers[loglet]:
                del self._readers[loglet]

    def mark_watched(self, response: StoreResponse) -> None:
        """Tell the sequencer which of the loglets somebody reads here."""
        if self._readers:
            for stored in response.stored:
                stored.watched = stored.loglet in self._readers

    def wake(self, loglets: Iterable[LogletId]) -> None:
        """Wake everybody who waits for one of them."""
        if not self._waiting:
            return
        for loglet in loglets:
            for waiter in self._waiting.pop(loglet, ()):
                if not waiter.done():
                    waiter.set_result(None)

    async def wait(self, loglet: LogletId, timeout_s: float) -> bool:
        """Wait for `wake`; False if the time ran out. **Cancellation:** ends the wait."""
        waiter = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(loglet, set())
        waiting.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                await waiter
        except TimeoutError:
            return False
        finally:
            # `wake` took the whole set away; then it is nobody's any more.
            waiting.discard(waiter)
            if not waiting and self._waiting.get(loglet) is waiting:
                del self._waiting[loglet]
        return True


class ReadService:
    """Serves read streams from the cache and the store."""

    def __init__(
        self,
        *,
        core: LogServerCore,
        store: LogStore,
        cache: TailCache,
        watchers: Watchers,
        config: LogServerConfig,
        metrics: LogServerMetrics,
    ) -> None:
        self._core = core
        self._store = store
        self._cache = cache
        self._watchers = watchers
        self._config = config
        self._metrics = metrics
        self._open_reads = 0

    @property
    def open_reads(self) -> int:
        """Read streams that are open."""
        return self._open_reads

    async def serve(self, stream: ReadStream) -> None:
        """Handler of ReadLoglet. **Cancellation:** ends the stream.

        Raises:
            WrongStorage, Overloaded, InvalidArgument.
        """
        request = await stream.receive()
        if request is None:
            return
        query = read_query(request)
        self._core.check_storage(query.storage_id)
        if self._open_reads >= self._config.open_reads_max:
            raise Overloaded(
                f"{self._open_reads} read streams are open at this log server; it takes no more",
                retry_after_s=self._config.overloaded_retry_s,
            )
        self._open_reads += 1
        self._metrics.open_reads.inc()
        try:
            with self._watchers.reading(query.loglet):
                await self._run(query, stream)
        finally:
            self._open_reads -= 1
            self._metrics.open_reads.dec()

    async def _run(self, query: ReadQuery, stream: ReadStream) -> None:
        position = query.start
        told = False  # whether the client knows the committed tail
        final = _least(query.end, query.segment_end)
        while final is None or position < final:
            state = self._core.loglet(query.loglet)
            known = Offset(0) if state is None else state.committed_tail
            visible = known if query.segment_end is None else query.segment_end
            limit = visible if final is None else min(final, visible)
            if position < limit:
                gap = _trimmed(state, position, limit)
                batches, position, gap = (
                    ([], position, gap)
                    if gap is not None
                    else await self._next(query.loglet, position, limit, visible)
                )
                await stream.send(read_answer(known, batches, gap))
                if gap is not None:
                    return
                told = True
                continue
            if query.no_wait:
                break
            if not told:
                await stream.send(read_answer(known))
                told = True
                continue  # the tail may have moved while that was sent
            if not await self._watchers.wait(query.loglet, self._config.heartbeat_s):
                told = False
        if not told:
            state = self._core.loglet(query.loglet)
            await stream.send(read_answer(Offset(0) if state is None else state.committed_tail))

    async def _next(
        self, loglet: LogletId, position: Offset, limit: Offset, visible: Offset
    ) -> tuple[list[bytes], Offset, Gap | None]:
        """Batches from `position` on and the position after them, or else the gap that is there."""
        max_bytes = self._config.read_message_bytes
        cached = self._cache.read(loglet, position, limit, max_bytes)
        if cached:
            _check_visible(loglet, cached[-1].end, visible)
            return [batch.placed for batch in cached], cached[-1].end, None
        batches: list[bytes] = []
        stored = await self._store.read(loglet, position, limit, max_bytes=max_bytes)
        for index, (first, placed) in enumerate(stored):
            if first > position:
                gap = Gap(HOLE, position, first)
                break
            try:
                placement = _verify(loglet, first, placed)
            except CorruptBatch as error:
                following = stored[index + 1][0] if index + 1 < len(stored) else None
                end = _end_of_damaged(loglet, first, placed) or following or limit
                gap = Gap(DAMAGED, position, min(end, limit))
                if not batches:
                    self._report_damage(loglet, first, error)
                break
            _check_visible(loglet, placement.end, visible)
            batches.append(placed)
            position = placement.end
        else:
            gap = Gap(HOLE, position, limit)
        # What is sound goes out first; the gap is found again, at the head of the next read.
        return (batches, position, None) if batches else ([], position, gap)

    def _report_damage(self, loglet: LogletId, first: Offset, error: CorruptBatch) -> None:
        self._metrics.damaged_batches.inc()
        fields = {"loglet": str(loglet), "first": first, "reason": str(error)}
        log.error("batch.damaged", extra=fields)


def _trimmed(state: LogletState | None, position: Offset, limit: Offset) -> Gap | None:
    if state is None or position >= state.local_start:
        return None
    return Gap(TRIMMED, position, min(state.local_start, limit))


def _check_visible(loglet: LogletId, end: Offset, visible: Offset) -> None:
    """A batch is committed, or lies below a segment's end, as a whole."""
    if end > visible:
        raise InvalidArgument(
            f"loglet {loglet}: {visible} is within a batch, so no segment ends there"
        )


def _verify(loglet: LogletId, first: Offset, placed: bytes) -> Placement:
    """The placement of a sound batch. Raises `CorruptBatch`."""
    placement = check_placed(placed)
    if (placement.loglet, placement.first) != (loglet, first):
        raise CorruptBatch("the batch is not the one that was stored here")
    return placement


def _end_of_damaged(loglet: LogletId, first: Offset, placed: bytes) -> Offset | None:
    """The end that a damaged batch still says; None if even its placement is damaged."""
    try:
        placement = parse_placement(placed)
    except CorruptBatch:
        return None
    return placement.end if (placement.loglet, placement.first) == (loglet, first) else None


def _least(*ends: Offset | None) -> Offset | None:
    given = [end for end in ends if end is not None]
    return min(given) if given else None
