"""Read streams of a log server.

A reader gets the batches below the committed tail that this server knows. At the limit it waits:
the committed tail wakes it, nothing polls, and when nothing happens for a while it gets a
heartbeat. What this server can't serve (a hole, a damaged batch, a trimmed prefix) is said as a
gap, and the reader takes it from another replica. A stream never skips.

**What was trimmed** is not served, whether it is still there or not: the gap reaches to the local
start, within a batch perhaps, and that batch is whole, and served to whoever goes on there. The
local start may rise while the disk is read. So it is looked at again after that, and what was read
is sent only if none of it was trimmed meanwhile: neither half a prefix nor a hole where there was
none is ever shown. Nothing is kept from one look at the disk to the next that a deletion could make
stale.

**The segment's end**, if the reader brings it or the server was told it, is proof that everything
below is committed: a read serves up to it, whatever the committed tail, and never beyond, whatever
is held. Readers that wait are woken when it is told; the last message of a stream that has reached
a told end says so, and the stream ends. It is a hint to look at the chain.

**For a repair** a sealed loglet is served up to the local tail, committed or not: who asks has
sealed it and knows what it is for. From an open one nobody gets what is not committed.

What comes from the tail cache was verified when it arrived; what comes from disk is verified here,
whole, even if only the headers are sent.

**For one key** batches that can't have it, by the digest in their headers, are left out after all
that: they are committed, and were verified as those that are sent. The answer says which ranges
they take, so that the reader can see that nothing is missing. Damage is told as ever, whatever the
digest of a damaged batch may say.

An unknown loglet is one that was not opened yet: the reader waits for it, or for its end.

**A moment** is looked for (`time_search.py`) where a reader would be served, and no further: in
what is committed, whoever proves that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from loglet.cache import TailCache
from loglet.config import LogServerConfig
from loglet.core import LogServerCore
from loglet.messages import StoreResponse
from loglet.metrics import LogServerMetrics
from loglet.sifting import headers_of, sift
from loglet.store import LogletState, LogStore, Neighbours
from loglet.wire import ReadQuery, read_query, time_query
from sharedlog.batch import (
    Placement,
    check_placed,
)
from sharedlog.errors import CorruptBatch, InvalidArgument, Overloaded, ProtocolError
from sharedlog.ids import LogletId, Offset, StorageId
from sharedlog.rpc.methods import FIND_TIME, READ_LOGLET
from sharedlog.rpc.read_answer import DAMAGED, HOLE, TRIMMED, Gap, ReadAnswer
from sharedlog.rpc.transport import Server, ServerStream
from sharedlog.v1.log_server_pb2 import (
    FindTimeRequest,
    FindTimeResponse,
    ReadLogletRequest,
)

log = logging.getLogger(__name__)

ReadStream = ServerStream[ReadAnswer, ReadLogletRequest]


class Watchers:
    """Readers that wait for a loglet's committed tail to rise, or for its end."""

    def __init__(self) -> None:
        self._waiting: dict[LogletId, set[asyncio.Future[None]]] = {}
        self._readers: Counter[LogletId] = Counter()
        self._followers: Counter[LogletId] = Counter()  # those of them that wait at the tail
        # Ends of loglets that are read here; the store may not know these loglets. No reader, no
        # entry.
        self._ends: dict[LogletId, Offset] = {}

    @contextmanager
    def reading(self, loglet: LogletId, *, follows: bool) -> Iterator[None]:
        """A read of the loglet is open; `follows`: it waits for the committed tail to rise."""
        self._readers[loglet] += 1
        self._followers[loglet] += follows
        try:
            yield
        finally:
            self._readers[loglet] -= 1
            self._followers[loglet] -= follows
            if not self._readers[loglet]:
                del self._readers[loglet], self._followers[loglet]
                self._ends.pop(loglet, None)

    def mark_watched(self, response: StoreResponse) -> None:
        """Tell the sequencer of which loglets somebody waits for the committed tail here.

        Who reads what is committed, as the archive does, waits for nothing, and each such tail is a
        message.
        """
        if self._readers:
            for stored in response.stored:
                stored.watched = self._followers[stored.loglet] > 0

    def tell_ends(self, ends: Iterable[tuple[LogletId, Offset]]) -> None:
        """Loglets have ended, some of which the store may never have heard of."""
        found = {loglet: end for loglet, end in ends if loglet in self._readers}
        self._ends.update(found)
        self.wake(found)

    def end_of(self, loglet: LogletId) -> Offset | None:
        """Where a loglet has ended, as told while it was being read."""
        return self._ends.get(loglet)

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


class _Limits(NamedTuple):
    """How far a stream goes; all exclusive."""

    known: Offset  # the committed tail, to be told
    visible: Offset  # what may be shown at all
    now: Offset  # served for now
    final: Offset | None  # there the stream ends; None: never
    told_end: Offset | None


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
        self.on_damage: Callable[[LogletId, Offset, Offset], None] | None = None

    @property
    def open_reads(self) -> int:
        """Read streams that are open."""
        return self._open_reads

    def committed_tail(self, loglet: LogletId) -> Offset | None:
        """What this server was told to be committed; None if it has never heard of the loglet."""
        state = self._core.loglet(loglet)
        return None if state is None else state.committed_tail

    def record_bytes(self, loglet: LogletId) -> float | None:
        """Mean size of the newest batch's records; None if it is not in memory."""
        batch = self._cache.newest(loglet)
        return None if batch is None else len(batch.placed) / (batch.end - batch.first)

    def register(self, server: Server) -> None:
        """Serve what is held here, and nothing else."""

        async def serve(stream: ReadStream) -> None:
            request = await stream.receive()
            if request is not None:
                await self.serve(stream, request)

        server.add_stream(READ_LOGLET, serve)
        server.add_call(FIND_TIME, self.find_time)

    async def serve(self, stream: ReadStream, request: ReadLogletRequest) -> None:
        """Handler of ReadLoglet, given its one request. **Cancellation:** ends the stream.

        Raises:
            WrongStorage, Overloaded, InvalidArgument: e.g. a repair for one key.
            ProtocolError: for a repair, and the loglet is not sealed here; or the segment's end is
            not the one that was told here.
        """
        query = read_query(request)
        self._core.check_storage(query.storage_id)
        if query.for_repair and query.key_hash is not None:
            raise InvalidArgument("a repair needs every batch, not those of one key")
        follows = not query.no_wait
        with self._place(), self._watchers.reading(query.loglet, follows=follows):
            await self._run(query, stream)

    async def find_time(self, request: FindTimeRequest) -> FindTimeResponse:
        """Handler of FindTime: a moment's neighbours among what a reader would be shown here.

        Batches of a commit that runs may be missing, like those of a hole.

        Raises:
            WrongStorage, Overloaded. ProtocolError: as `serve`.

        **Cancellation:** ends the wait.
        """
        self._core.check_storage(StorageId(request.storage_id))
        query = time_query(request)
        limits = self._limits(query, self._core.loglet(query.loglet))
        found = Neighbours()
        start = max(query.start, self._local_start(query.loglet))
        if start < limits.now:
            with self._place():
                found = await self._store.find_time(
                    query.loglet, start, limits.now, request.timestamp_ms
                )
        return FindTimeResponse(
            before=found.before,
            after=found.after,
            visible=limits.visible,
            local_start=self._local_start(query.loglet),
        )

    def _local_start(self, loglet: LogletId) -> Offset:
        """As of now."""
        state = self._core.loglet(loglet)
        return Offset(0) if state is None else state.local_start

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Hold one of the places for reads.

        Raises:
            Overloaded: all are taken.
        """
        if self._open_reads >= self._config.open_reads_max:
            raise Overloaded(
                f"{self._open_reads} read streams are open at this log server; it takes no more",
                retry_after_s=self._config.overloaded_retry_s,
            )
        self._open_reads += 1
        self._metrics.open_reads.inc()
        try:
            yield
        finally:
            self._open_reads -= 1
            self._metrics.open_reads.dec()

    async def _run(self, query: ReadQuery, stream: ReadStream) -> None:
        position = query.start
        told = False  # whether the client knows the committed tail
        while True:
            state = self._core.loglet(query.loglet)
            limits = self._limits(query, state)
            if limits.final is not None and position >= limits.final:
                break
            if position < limits.now:
                batches, position, gap = await self._next(query.loglet, position, limits)
                batches, skipped = sift(batches, query)
                if query.headers_only:
                    batches = [headers_of(placed) for placed in batches]
                await stream.send(ReadAnswer(limits.known, batches, gap, skipped=skipped))
                self._metrics.sent_bytes.inc(sum(map(len, batches)))
                if gap is not None:
                    return
                told = True
                continue
            if query.no_wait:
                break
            if not told:
                await stream.send(ReadAnswer(limits.known))
                told = True
                continue  # the tail may have moved while that was sent
            if not await self._watchers.wait(query.loglet, self._config.heartbeat_s):
                told = False
        reached = limits.told_end
        if reached is not None and position < reached:
            reached = None
        if reached is not None or not told:
            await stream.send(ReadAnswer(limits.known, told_end=reached))

    def _limits(self, query: ReadQuery, state: LogletState | None) -> _Limits:
        told_end = None if state is None else state.told_end
        if told_end is None:
            told_end = self._watchers.end_of(query.loglet)
        end = query.segment_end if told_end is None else told_end
        if query.segment_end not in (None, end):
            raise ProtocolError(
                f"loglet {query.loglet} has ended at {told_end}, not {query.segment_end}"
            )
        known = Offset(0) if state is None else state.committed_tail
        if query.for_repair:
            if state is None or not state.sealed:
                raise ProtocolError(f"loglet {query.loglet} is not sealed here: seal it first")
            end = visible = state.local_tail if end is None else min(state.local_tail, end)
        else:
            visible = known if end is None else end
        now = visible if query.end is None else min(visible, query.end)
        return _Limits(known, visible, now, _least(query.end, end), told_end)

    async def _next(
        self, loglet: LogletId, position: Offset, limits: _Limits
    ) -> tuple[list[bytes], Offset, Gap | None]:
        """Batches from `position` on and the position after them, or else the gap that is there."""
        if position >= self._local_start(loglet):
            found = await self._look(loglet, position, limits)
            if position >= self._local_start(loglet):
                return found
        return [], position, Gap(TRIMMED, position, min(self._local_start(loglet), limits.now))

    async def _look(
        self, loglet: LogletId, position: Offset, limits: _Limits
    ) -> tuple[list[bytes], Offset, Gap | None]:
        """The same; what is trimmed meanwhile may be missing."""
        max_bytes = self._config.read_message_bytes
        limit = limits.now
        cached = self._cache.read(loglet, position, limit, max_bytes)
        if cached:
            _check_visible(loglet, cached[-1].end, limits.visible)
            return [batch.placed for batch in cached], cached[-1].end, None
        batches: list[bytes] = []
        stored = await self._store.read(loglet, position, limit, max_bytes=max_bytes)
        for first, placed in stored:
            if first > position:
                gap = Gap(HOLE, position, first)
                break
            try:
                placement = _verify(loglet, first, placed)
            except CorruptBatch as error:
                gap = Gap(DAMAGED, position, limit)
                if not batches:
                    self._report_damage(loglet, first, error)
                    gap = await self._damaged(loglet, position, limit)
                    if self.on_damage is not None:
                        self.on_damage(loglet, gap.first, gap.end)
                break
            _check_visible(loglet, placement.end, limits.visible)
            batches.append(placed)
            position = placement.end
        else:
            gap = Gap(HOLE, position, limit)
        # What is sound goes out first; the gap is found again, at the head of the next read.
        return (batches, position, None) if batches else ([], position, gap)

    async def _damaged(self, loglet: LogletId, position: Offset, limit: Offset) -> Gap:
        """The gap that a damaged batch makes: its key still says which offsets it takes."""
        batches = await self._store.scan(
            loglet, position, Offset(position + 1), verify=False, max_batches=1, max_bytes=1
        )
        end = batches[0].end if batches else limit
        return Gap(DAMAGED, position, min(end, limit))

    def _report_damage(self, loglet: LogletId, first: Offset, error: CorruptBatch) -> None:
        self._metrics.damaged_batches.inc()
        fields = {"loglet": str(loglet), "first": first, "reason": str(error)}
        log.error("batch.damaged", extra=fields)


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


def _least(*ends: Offset | None) -> Offset | None:
    given = [end for end in ends if end is not None]
    return min(given) if given else None
