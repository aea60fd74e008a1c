"""Reads at the front door: any node reads a log from its log servers for whoever asks.

Smart clients read from the log servers themselves; these calls serve everyone else, through one
address. Offsets are dense, so a limit is an end: `start + limit`; with a key it counts the records
that have it.

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
from node.freshness import fresh_log
from node.limits import Places
from node.tails import Tails
from node.wire import describe_log, record_to_proto
from sharedlog.batch import Record, decode_placed, has_records
from sharedlog.clock import Clock
from sharedlog.errors import (
    DeadlineExceeded,
    InvalidArgument,
    LogUnavailable,
    NotSequencer,
    OffsetOutOfRange,
    Unreachable,
)
from sharedlog.ids import Offset
from sharedlog.limits import MIB
from sharedlog.read_progress import ReadChunk
from sharedlog.reader import LogReader
from sharedlog.rpc.transport import ServerStream, Transport
from sharedlog.v1 import log_pb2, types_pb2

log = logging.getLogger(__name__)

_RECORDS_MESSAGE_BYTES: Final = 1 * MIB
"""Records are sent in messages of about this size: below the 4 MiB that a generated client takes
unless it is told otherwise. A larger record goes alone."""

_FIRST_MESSAGE_TIMEOUT_S: Final = 10.0

_SEGMENTS_AT_ONCE: Final = 16
"""Of a chain, that a reader is told when it asks: a chain may have thousands."""


class _Range(NamedTuple):
    """What a read covers: [start, end), without end for ever; below `committed` all is there."""

    start: Offset
    end: Offset | None
    committed: Offset
    key: bytes | None  # only records that have it
    limit: int | None  # of those records; None with a limit that is an end already


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
        reads_max: int,
    ) -> None:
        self._view = view
        self._transport = transport
        self._clock = clock
        self._random = random
        self._tails = tails
        self._places = Places("reads", reads_max)

    @property
    def reads_open(self) -> int:
        """Reads that run now."""
        return self._places.taken

    async def read(self, stream: ServerStream[log_pb2.ReadResponse, log_pb2.ReadRequest]) -> None:
        """Send placed batches as they are stored; the reader clips."""
        async with self._opened(stream) as (reader, wanted):
            chunks = _read(reader, wanted)
            async with aclosing(chunks):
                async for chunk in chunks:
                    await stream.send(
                        log_pb2.ReadResponse(
                            batches=chunk.batches,
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
        async with self._opened(stream) as (reader, wanted):
            left, position = wanted.limit, wanted.start
            chunks = _read(reader, wanted)
            async with aclosing(chunks):
                async for chunk in chunks:
                    tail = chunk.committed_tail
                    position, sent = max(position, _end_of(chunk)), False
                    for placed in chunk.batches:
                        records = _wanted_records(placed, wanted)[:left]
                        left = None if left is None else left - len(records)
                        for message in _messages(records):
                            message.committed_tail = tail
                            await stream.send(message)
                            sent = True
                        if left == 0:
                            return
                    if not sent:
                        await stream.send(
                            log_pb2.ReadRecordsResponse(committed_tail=tail, next_offset=position)
                        )

    @asynccontextmanager
    async def _opened(
        self,
        stream: ServerStream[log_pb2.ReadResponse, log_pb2.ReadRequest]
        | ServerStream[log_pb2.ReadRecordsResponse, log_pb2.ReadRequest],
    ) -> AsyncIterator[tuple[LogReader, _Range]]:
        """Receive and check the request; hold a place while it is served."""
        try:
            async with asyncio.timeout(_FIRST_MESSAGE_TIMEOUT_S):
                request = await stream.receive()
        except TimeoutError as error:
            raise DeadlineExceeded("no request came") from error
        if request is None:
            raise InvalidArgument("the stream ended without a request")
        check_log_name(request.log)
        started_s = self._clock.monotonic_s()
        with self._places.take():
            wanted = await self._range(request)

            async def describe(
                position: Offset, *, refresh: bool = False, min_version: int = 0
            ) -> types_pb2.LogDescription:
                record, version = await fresh_log(
                    self._view, request.log, min_version=min_version, refresh=refresh
                )
                return describe_log(
                    record,
                    version,
                    self._view.node,
                    chain_from=position,
                    chain_limit=_SEGMENTS_AT_ONCE,
                )

            yield LogReader(self._transport, describe, self._clock, self._random), wanted
            fields = {
                "log": request.log,
                "start": wanted.start,
                "end": wanted.end,
                "seconds": round(self._clock.monotonic_s() - started_s, 3),
            }
            log.debug("read.ended", extra=fields)

    async def _range(self, request: log_pb2.ReadRequest) -> _Range:
        """What the request covers, with the tail found out if need be.

        Raises:
            OffsetOutOfRange: it starts beyond the tail. InvalidArgument: it ends before it starts.
            LogUnavailable, DeadlineExceeded, …: it reaches up to the tail, which nobody can tell.
        """
        start = Offset(request.start)
        end = Offset(request.end) if request.HasField("end") else None
        if end is not None and end < start:
            raise InvalidArgument(f"the read ends at {end}, before it starts at {start}")
        key = request.key if request.HasField("key") else None
        if request.limit and key is None:
            limited = Offset(start + request.limit)
            end = limited if end is None else min(end, limited)
        try:
            tail = await self._tails.of(request.log)
        except (LogUnavailable, NotSequencer, Unreachable, DeadlineExceeded) as error:
            tail = await self._tails.known(request.log)
            fields = {"log": request.log, "tail": tail, "error": str(error)}
            log.info("read.tail_unknown", extra=fields)
            if not request.follow and (end is None or end > tail):
                raise  # perhaps there is more, but nobody can tell now
        else:
            if start > tail:
                raise OffsetOutOfRange(offset=start, tail=tail)
        if not request.follow:
            end = tail if end is None else min(end, tail)
        counted = request.limit if request.limit and key is not None else None
        return _Range(start, end, tail, key, counted)


def _read(reader: LogReader, wanted: _Range) -> AsyncGenerator[ReadChunk, None]:
    return reader.read(wanted.start, wanted.end, committed=wanted.committed, key=wanted.key)


def _end_of(chunk: ReadChunk) -> Offset:
    """Where it ends; 0 if nothing came."""
    batches_end = chunk.placements[-1].end if chunk.placements else Offset(0)
    return max(batches_end, chunk.skipped[-1][1]) if chunk.skipped else batches_end


def _wanted_records(placed: bytes, wanted: _Range) -> list[Record]:
    """The batch's records that lie in the range, and have the key if one is asked for."""
    if not has_records(placed):
        return []
    return [
        record
        for record in decode_placed(placed)
        if record.offset >= wanted.start
        and (wanted.end is None or record.offset < wanted.end)
        and (wanted.key is None or record.key == wanted.key)
    ]


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
