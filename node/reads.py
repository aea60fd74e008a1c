"""Reads at the front door: any node reads a log from its log servers for whoever asks.

Smart clients read from the log servers themselves; these calls serve everyone else, through one
address. Which of what is read goes out, and when that is enough, `sharedlog/read_window.py` says.

For one key the log servers leave out what can't have it. `Read` passes on which ranges those are;
`ReadRecords` sends what has the key and says how far that goes.

A read "to the tail" asks for the tail first, which waits while the log gets another sequencer. If
nobody can tell it after that, the read fails, and may be tried again: one that ended well at some
older tail would hide records that were acknowledged before it began. Reads that claim nothing of
the tail go on without one: those that end where they were told to, at or below a tail that a log
server knows, and those that follow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from random import Random
from typing import Final, NamedTuple

from metadata.core import check_log_name
from metadata.view import ClusterView
from node.limits import Places
from node.offsets import NO_SURE_TAIL, Offsets, describer
from node.requests import note
from node.tails import Tails
from node.wire import record_to_proto
from sharedlog.batch import Record, decode_checked
from sharedlog.clock import Clock
from sharedlog.errors import DeadlineExceeded, InvalidArgument, OffsetOutOfRange, SharedLogError
from sharedlog.ids import Offset
from sharedlog.limits import MIB
from sharedlog.log_reads import window_chunks
from sharedlog.read_progress import ReadChunk
from sharedlog.read_window import ReadWindow
from sharedlog.reader import LogReader
from sharedlog.rpc.transport import ServerStream, Transport
from sharedlog.v1 import log_pb2, types_pb2

log = logging.getLogger(__name__)

_RECORDS_MESSAGE_BYTES: Final = 1 * MIB
"""Records are sent in messages of about this size: below the 4 MiB that a generated client takes
unless it is told otherwise. A larger record goes alone."""

_FIRST_MESSAGE_TIMEOUT_S: Final = 10.0


class _Opened(NamedTuple):
    """A read that is to be served: what it covers, and what is known of the tail."""

    window: ReadWindow
    committed: Offset  # below it all is there
    # Why nobody tells the tail, for a read whose limit has to be reached below `committed`.
    unsure: SharedLogError | None

    async def chunks(self, reader: LogReader) -> AsyncGenerator[ReadChunk, None]:
        """What is read. Raises what `LogReader.read` raises, and `unsure` if it comes to that."""
        async with aclosing(window_chunks(reader.read, self.window, self.committed)) as chunks:
            async for chunk in chunks:
                yield chunk
        if self.unsure is not None and not self.window.enough:
            raise self.unsure


class Reads:
    """`Read` and `ReadRecords` of the public API."""

    def __init__(
        self,
        *,
        view: ClusterView,
        transport: Transport,
        clock: Clock,
        random: Random,
        tails: Tails,
        offsets: Offsets,
        reads_max: int,
    ) -> None:
        self._view = view
        self._transport = transport
        self._clock = clock
        self._random = random
        self._tails = tails
        self._offsets = offsets
        self._places = Places("reads", reads_max)

    @property
    def reads_open(self) -> int:
        """Reads that run now."""
        return self._places.taken

    async def read(self, stream: ServerStream[log_pb2.ReadResponse, log_pb2.ReadRequest]) -> None:
        """Send placed batches as they are stored; the reader clips."""
        async with self._opened(stream) as (window, chunks):
            async for chunk in chunks:
                batches = _whole_batches(chunk, window)
                window.pass_over(chunk.skipped)
                await stream.send(
                    log_pb2.ReadResponse(
                        batches=batches,
                        committed_tail=chunk.committed_tail,
                        skipped=[
                            types_pb2.SkippedRange(first=first, end=end)
                            for first, end in chunk.skipped
                        ],
                    )
                )

    async def read_records(
        self, stream: ServerStream[log_pb2.ReadRecordsResponse, log_pb2.ReadRequest]
    ) -> None:
        """Send records, decoded, from the first that was asked for to the last."""
        async with self._opened(stream) as (window, chunks):
            async for chunk in chunks:
                tail, sent = chunk.committed_tail, False
                for placed, placement in zip(chunk.batches, chunk.placements, strict=True):
                    if window.admits(placement):
                        records = window.clip(placement, decode_checked(placed, placement))
                        for message in _messages(records):
                            message.committed_tail = tail
                            await stream.send(message)
                            sent = True
                    if window.done:
                        break
                window.pass_over(chunk.skipped)
                if not sent:
                    await stream.send(
                        log_pb2.ReadRecordsResponse(
                            committed_tail=tail, next_offset=window.position
                        )
                    )

    @asynccontextmanager
    async def _opened(
        self,
        stream: ServerStream[log_pb2.ReadResponse, log_pb2.ReadRequest]
        | ServerStream[log_pb2.ReadRecordsResponse, log_pb2.ReadRequest],
    ) -> AsyncIterator[tuple[ReadWindow, AsyncGenerator[ReadChunk, None]]]:
        """Receive and check the request; hold a place while it is served."""
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_TIMEOUT_S):
                request = await stream.receive()
        except TimeoutError as error:
            raise DeadlineExceeded("no request came") from error
        if request is None:
            raise InvalidArgument("the stream ended without a request")
        check_log_name(request.log)
        note(log=request.log, **({"follow": True} if request.follow else {}))
        with self._places.take():
            opened = await self._open(request)
            started_at = opened.window.position
            described = describer(self._view, request.log)
            reader = LogReader(self._transport, described, self._clock, self._random)
            try:
                # Leaving the block ends the reader's stream at once.
                async with aclosing(opened.chunks(reader)) as chunks:
                    yield opened.window, chunks
            finally:
                note(first=started_at, end=opened.window.position)

    async def _open(self, request: log_pb2.ReadRequest) -> _Opened:
        """What the request covers, with the tail and the start found out if need be.

        Raises:
            OffsetOutOfRange: it starts beyond the tail. InvalidArgument: it ends before it starts,
            or is to start in two places. LogUnavailable, DeadlineExceeded, …: it reaches up to the
            tail, or starts from there, and nobody can tell it.
        """
        end = Offset(request.end) if request.HasField("end") else None
        _check_start(request, end)
        unsure: SharedLogError | None = None
        try:
            tail = await self._tails.of(request.log)
        except NO_SURE_TAIL as error:
            tail = await self._tails.known(request.log)
            fields = {"log": request.log, "tail": tail, "error": str(error)}
            log.info("read.tail_unknown", extra=fields)
            if request.HasField("last"):
                raise
            if not (request.follow or (end is not None and end <= tail)):
                unsure = error
        else:
            if request.start > tail:
                raise OffsetOutOfRange(offset=request.start, tail=tail)
        if not request.follow:
            end = tail if end is None else min(end, tail)
        window = await self._window(request, end, tail)
        if unsure is not None and not 0 < request.limit <= tail - window.position:
            raise unsure  # perhaps there is more, but nobody can tell now
        return _Opened(window, tail, unsure)

    async def _window(
        self, request: log_pb2.ReadRequest, end: Offset | None, tail: Offset
    ) -> ReadWindow:
        start = Offset(request.start)
        since_ms = request.start_timestamp_ms if request.HasField("start_timestamp_ms") else None
        if since_ms is not None:
            start = await self._offsets.of(request.log, since_ms, tail)
        elif request.HasField("last"):
            start = Offset(max(0, tail - request.last))
        return ReadWindow(
            start,
            end,
            key=request.key if request.HasField("key") else None,
            limit=request.limit or None,
            limit_bytes=request.limit_bytes or None,
            since_ms=since_ms,
            until_ms=request.until_timestamp_ms if request.HasField("until_timestamp_ms") else None,
            include_control=request.include_control,
            floats=since_ms is not None or request.HasField("last"),
        )


def _check_start(request: log_pb2.ReadRequest, end: Offset | None) -> None:
    chosen = (request.start > 0, request.HasField("start_timestamp_ms"), request.HasField("last"))
    if sum(chosen) > 1:
        raise InvalidArgument("a read starts at `start`, `start_timestamp_ms` or `last`")
    if end is not None and end < request.start:
        raise InvalidArgument(f"the read ends at {end}, before it starts at {request.start}")


def _whole_batches(chunk: ReadChunk, window: ReadWindow) -> list[bytes]:
    """The chunk's batches that go out, as they are; control records go with the others."""
    found: list[bytes] = []
    for placed, placement in zip(chunk.batches, chunk.placements, strict=True):
        if window.admits(placement):
            window.take_whole(placement, len(placed))
            found.append(placed)
        elif not window.enough and not window.is_early(placement):
            found.append(placed)
        if window.done:
            break
    return found


def _messages(records: Iterable[Record]) -> Iterator[log_pb2.ReadRecordsResponse]:
    """The records in messages of about `_RECORDS_MESSAGE_BYTES`; each says where it ends."""
    message = log_pb2.ReadRecordsResponse()
    size = 0
    for record in records:
        found = record_to_proto(record)
        bytes_more = found.ByteSize()
        if message.records and size + bytes_more > _RECORDS_MESSAGE_BYTES:
            yield message
            message, size = log_pb2.ReadRecordsResponse(), 0
        message.records.append(found)
        message.next_offset = record.offset + 1
        size += bytes_more
    if message.records:
        yield message
