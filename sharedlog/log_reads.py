"""Reading one log: from where, up to where, how much, and backwards.

What is read comes from a `LogReader`, or in plain mode a `PlainReader`; which of it is handed out
decides `read_window.py`; where a moment lies finds `offset_finder.py`. Here they are put together.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from sharedlog.batch import Record, decode_checked
from sharedlog.config import ReaderConfig
from sharedlog.connection import Connection
from sharedlog.errors import (
    DataLoss,
    DeadlineExceeded,
    InvalidArgument,
    LogUnavailable,
    OffsetOutOfRange,
    Purged,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.limits import READ_LAST_MAX
from sharedlog.plain_reader import PlainReader
from sharedlog.read_progress import ReadChunk
from sharedlog.read_window import ReadProgress, ReadWindow, check_limits
from sharedlog.reader import LogReader
from sharedlog.route import Route
from sharedlog.rpc.methods import FIND_OFFSET, GET_KNOWN_TAIL
from sharedlog.starts import Earliest, FromTail, FromTime, Start, Timestamp, timestamp_to_ms
from sharedlog.tail_finder import TailFinder
from sharedlog.v1 import log_pb2

if TYPE_CHECKING:
    from sharedlog.offset_finder import OffsetFinder

log = logging.getLogger(__name__)

NO_SURE_TAIL: Final = (LogUnavailable, Unreachable, DeadlineExceeded)
"""Nobody can tell the tail now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What `Log.read` takes beside where to start."""

    end: int | None = None
    follow: bool = False
    limit: int | None = None
    key: bytes | None = None
    limit_bytes: int | None = None
    until: Timestamp | None = None
    include_control: bool = False
    on_stale: Callable[[str], None] | None = None
    on_progress: Callable[[ReadProgress], None] | None = None


class Chunks(Protocol):
    """What is needed of `LogReader.read` and `PlainReader.read`."""

    def __call__(
        self,
        start: Offset,
        end: Offset | None = None,
        /,
        *,
        committed: Offset,
        key: bytes | None = None,
        include_control: bool = False,
    ) -> AsyncGenerator[ReadChunk, None]:
        """Batches that cover [start, end), less what can't have the key."""
        ...


class LogReads:
    """Reads of one log. Costs nothing to make; see `Log` for what is guaranteed."""

    def __init__(
        self, connection: Connection, name: str, route: Route, config: ReaderConfig
    ) -> None:
        self._connection = connection
        self._name = name
        self._route = route
        self._config = config

    # Records.

    async def records(self, start: Start, options: ReadOptions) -> AsyncGenerator[Record, None]:
        """See `Log.read`."""
        batches = self.batches(start, options)
        async with contextlib.aclosing(batches):
            async for records in batches:
                for record in records:
                    yield record

    def batches(self, start: Start, options: ReadOptions) -> AsyncGenerator[list[Record], None]:
        """See `Log.read_batches`."""
        return self._handed_out(partial(self._begin, start, options), options.on_progress)

    async def last(self, count: int) -> list[Record]:
        """See `Log.read_last`."""
        if not 0 <= count <= READ_LAST_MAX:
            raise InvalidArgument(
                f"read_last takes 0 to {READ_LAST_MAX:,} records, not {count:,}; "
                "a read from from_tail(n) has no limit"
            )
        if not count:
            return []
        end, step = await self.tail(), count
        found: list[Record] = []
        while len(found) < count and end > 0:
            start = Offset(max(0, end - step))
            found = await self._newest(start, end, count - len(found)) + found
            end, step = start, 2 * step
        return found

    async def _newest(self, start: Offset, end: Offset, count: int) -> list[Record]:
        """The last `count` records of [start, end), or all if there are fewer.

        A loss is one only if it lies among them: what is read is a guess at where they begin.
        """
        newest: deque[Record] = deque(maxlen=count)
        loss: DataLoss | None = None
        while start < end:
            batches = self._handed_out(partial(_committed_range, start, end))
            try:
                async with contextlib.aclosing(batches):
                    async for records in batches:
                        newest.extend(records)
                break
            except DataLoss as error:
                loss, start = error, Offset(max(error.end, start + 1))
                newest.clear()
            except Purged as error:
                start = Offset(max(error.start, start + 1))
                newest.clear()
        if loss is not None and len(newest) < count:
            raise loss
        return list(newest)

    async def _handed_out(
        self,
        begin: Callable[[], Awaitable[tuple[ReadWindow, Offset]]],
        on_progress: Callable[[ReadProgress], None] | None = None,
    ) -> AsyncGenerator[list[Record], None]:
        """The records of a window, a batch at a time.

        `begin` tells the window, and a tail below which all is committed: in here, for each further
        generator through which a batch passed would cost about a microsecond.
        """
        window, tail = await begin()
        chunks = window_chunks(self._reader().read, window, tail)
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                for placed, placement in zip(chunk.batches, chunk.placements, strict=True):
                    if window.admits(placement):
                        records = window.clip(placement, decode_checked(placed, placement))
                        if records:
                            yield records
                    if window.done:
                        break
                window.pass_over(chunk.skipped)
                if on_progress is not None:
                    on_progress(ReadProgress(window.position, chunk.committed_tail))

    def _reader(self) -> LogReader | PlainReader:
        connection = self._connection
        if not connection.smart:
            return PlainReader(connection, self._name, self._config)
        return LogReader(
            connection.transport,
            self._route.slice_at,
            connection.clock,
            connection.rng,
            config=self._config,
        )

    # Where a read starts, and how far it goes.

    async def _begin(self, start: Start, options: ReadOptions) -> tuple[ReadWindow, Offset]:
        """What the read covers, and a tail as of now."""
        check_limits(options.limit, options.limit_bytes)
        until_ms = None if options.until is None else timestamp_to_ms(options.until)
        tail = await self._tail_for_read(start, options)
        since_ms: int | None = None
        match start:
            case FromTime(since_ms):
                first = await self._offset_at(since_ms, tail)
            case FromTail(offsets):
                first = Offset(max(0, tail - offsets))
            case Earliest():
                first = Offset(0)
            case _:
                first = Offset(start)
        end = None if options.end is None else Offset(max(options.end, 0))
        if not options.follow:
            end = tail if end is None else min(end, tail)
        window = ReadWindow(
            first,
            end,
            key=options.key,
            limit=options.limit,
            limit_bytes=options.limit_bytes,
            since_ms=since_ms,
            until_ms=until_ms,
            include_control=options.include_control,
            floats=not isinstance(start, int),
        )
        return window, tail

    async def _tail_for_read(self, start: Start, options: ReadOptions) -> Offset:
        """The tail to read up to: the real one, or the highest known if nobody can tell that."""
        first = start if isinstance(start, int) else 0
        if first < 0:
            raise OffsetOutOfRange(offset=first, tail=None)
        config = self._connection.config
        # A follower needs the tail only to refuse a start beyond it; its first record should not
        # wait long for an answer that may not come.
        limit_s = config.timeout_s
        if options.follow and isinstance(start, int | Earliest):
            limit_s = min(config.attempt_timeout_s, config.timeout_s)
        try:
            tail = await self.tail(timeout_s=limit_s)
        except NO_SURE_TAIL as error:
            tail = await self.known_tail()
            if first > tail:
                raise  # whether that is out of range is what nobody can tell
            message = (
                f"the tail of {self._name} is not known for certain ({error}); "
                f"reading up to {tail}, the highest that a log server knows"
            )
            if options.on_stale is not None:
                options.on_stale(message)
            else:
                log.warning("read.stale_tail", extra={"log": self._name, "known_tail": tail})
            return tail
        if first > tail:
            raise OffsetOutOfRange(offset=first, tail=tail)
        return tail

    async def tail(self, *, timeout_s: float | None = None) -> Offset:
        """See `Log.tail`."""
        limit_s = self._connection.config.timeout_s if timeout_s is None else timeout_s
        return await TailFinder(self._connection, self._route).find(limit_s)

    async def known_tail(self) -> Offset:
        """See `Log.known_tail`."""
        request = log_pb2.GetKnownTailRequest(log=self._name)
        answer = await self._connection.call(GET_KNOWN_TAIL, request)
        return Offset(answer.tail)

    # Moments.

    async def find_offset(self, timestamp: Timestamp) -> Offset:
        """See `Log.find_offset`."""
        timestamp_ms = timestamp_to_ms(timestamp)
        if not self._connection.smart:
            return await self._offset_at(timestamp_ms, None)
        try:
            tail = await self.tail()
        except NO_SURE_TAIL:
            found = await self._finder().find(timestamp_ms, await self.known_tail())
            if not found.has_later:
                raise  # it would be the tail, which nobody can tell
            return found.offset
        return (await self._finder().find(timestamp_ms, tail)).offset

    async def _offset_at(self, timestamp_ms: int, tail: Offset | None) -> Offset:
        """Where a moment lies; the `tail`, or one that is as new, if nothing is so late."""
        if tail is not None and self._connection.smart:
            return (await self._finder().find(timestamp_ms, tail)).offset
        request = log_pb2.FindOffsetRequest(log=self._name, timestamp_ms=timestamp_ms)
        answer = await self._connection.call(FIND_OFFSET, request)
        return Offset(answer.offset)

    def _finder(self) -> OffsetFinder:
        from sharedlog.offset_finder import OffsetFinder  # late: few programs look for moments

        connection = self._connection
        return OffsetFinder(
            connection.transport,
            self._route.slice_at,
            connection.clock,
            connection.rng,
            config=self._config,
        )


async def _committed_range(start: Offset, end: Offset) -> tuple[ReadWindow, Offset]:
    """All of [start, end), which is committed."""
    return ReadWindow(start, end), end


async def window_chunks(
    read: Chunks, window: ReadWindow, committed: Offset
) -> AsyncGenerator[ReadChunk, None]:
    """Chunks that cover a window, whose user tells it of each batch; ends once it is done.

    Raises what `read` raises.
    """
    while not window.done:
        end = window.leg_end
        if end is not None and end <= window.position:
            return
        chunks = read(
            window.position,
            end,
            committed=committed,
            key=window.key,
            include_control=window.include_control,
        )
        try:
            async with contextlib.aclosing(chunks):
                async for chunk in chunks:
                    yield chunk
                    if window.done:
                        return
        except Purged as purged:
            if not window.start_later(Offset(purged.start)):
                raise
