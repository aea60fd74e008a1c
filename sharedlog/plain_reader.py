"""Reads one log through any node's front door, for clients that reach only some addresses.

The same batches as from the log servers, checked the same way. When the node fails, or sends bytes
that do not match their checksums, the read goes on at another address where it stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from typing import Final

from sharedlog.batch import check_placed
from sharedlog.config import ReaderConfig
from sharedlog.connection import Connection
from sharedlog.errors import CorruptBatch, SharedLogError, Unreachable
from sharedlog.ids import Offset
from sharedlog.key_digest import check_key
from sharedlog.read_progress import START, Range, ReadChunk, check_batches
from sharedlog.rpc.methods import READ
from sharedlog.v1 import log_pb2, types_pb2

log = logging.getLogger(__name__)

_CORRUPT_MAX: Final = 10  # in a row, from whichever node, before the reader is told


class PlainReader:
    """Reads batches of one log through `LogService/Read`; the counterpart of `LogReader`."""

    def __init__(self, connection: Connection, name: str, config: ReaderConfig) -> None:
        self._connection = connection
        self._name = name
        self._config = config

    async def read(
        self,
        start: Offset,
        end: Offset | None = None,
        *,
        committed: Offset = START,
        key: bytes | None = None,
        include_control: bool = False,
    ) -> AsyncGenerator[ReadChunk, None]:
        """See `LogReader.read`. Also raises what the node answers, e.g. `OffsetOutOfRange`."""
        connection, clock = self._connection, self._connection.clock
        position, floor, corrupt_in_row = start, committed, 0
        asked = self._asked(key, include_control=include_control)
        backoff = connection.backoff()
        since_s = clock.monotonic_s()
        while end is None or position < end:
            address = connection.address()
            stream = connection.transport.stream(address, READ)
            failure: SharedLogError
            try:
                request = _request(asked, position, end, follow=end is None or end > floor)
                async with asyncio.timeout(self._config.silence_s):
                    await stream.send(request)
                    await stream.end()
                while True:
                    async with asyncio.timeout(self._config.silence_s):
                        message = await stream.receive()
                    if message is None:
                        raise Unreachable(f"{address} ended the read at {position}")
                    found = check_batches(
                        check_placed,
                        message.batches,
                        position,
                        None,
                        skipped=() if key is None else _ranges(message.skipped),
                    )
                    if found.end > position:
                        position = found.end
                        corrupt_in_row = 0
                        backoff.reset()
                    since_s = clock.monotonic_s()
                    floor = max(floor, Offset(message.committed_tail), position)
                    yield ReadChunk(found.batches, found.placements, floor, found.skipped)
                    if found.wrong is not None:
                        raise found.wrong
                    if end is not None and position >= end:
                        return
            except TimeoutError:
                failure = Unreachable(f"{address} was silent for {self._config.silence_s:g} s")
            except CorruptBatch as error:
                failure = error
                corrupt_in_row += 1
            except SharedLogError as error:
                failure = error
            finally:
                stream.cancel()
            is_corrupt = isinstance(failure, CorruptBatch) and corrupt_in_row <= _CORRUPT_MAX
            overdue = clock.monotonic_s() - since_s > self._config.timeout_s
            if overdue or not (failure.retryable or is_corrupt):
                raise failure
            fields = {"address": address, "position": position, "error": str(failure)}
            log.debug("reader.node_failed", extra=fields)
            connection.avoid(address)
            await clock.sleep(backoff.next_s())

    def _asked(self, key: bytes | None, *, include_control: bool) -> log_pb2.ReadRequest:
        """What is the same in each request."""
        if key is not None:
            check_key(key)
        return log_pb2.ReadRequest(log=self._name, key=key, include_control=include_control)


def _request(
    asked: log_pb2.ReadRequest, position: Offset, end: Offset | None, *, follow: bool
) -> log_pb2.ReadRequest:
    request = log_pb2.ReadRequest(start=position, end=end, follow=follow)
    request.MergeFrom(asked)
    return request


def _ranges(skipped: Iterable[types_pb2.SkippedRange]) -> list[Range]:
    return [(Offset(it.first), Offset(it.end)) for it in skipped]
