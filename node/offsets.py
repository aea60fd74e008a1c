"""`FindOffset` at the front door: any node finds a moment in a log for whoever asks.

Smart clients ask the log servers themselves, by the same rules (`sharedlog/offset_finder.py`).
"""

from __future__ import annotations

from random import Random
from typing import Final

from metadata.core import check_log_name
from metadata.view import ClusterView
from node.freshness import fresh_log
from node.limits import Places
from node.tails import Tails
from node.wire import describe_log
from sharedlog.clock import Clock
from sharedlog.errors import DeadlineExceeded, LogUnavailable, NotSequencer, Unreachable
from sharedlog.ids import Offset
from sharedlog.offset_finder import OffsetFinder
from sharedlog.reader import Describe
from sharedlog.rpc.transport import Transport
from sharedlog.v1 import log_pb2, types_pb2

NO_SURE_TAIL: Final = (LogUnavailable, NotSequencer, Unreachable, DeadlineExceeded)
"""Nobody can tell the tail now."""

_SEGMENTS_AT_ONCE: Final = 16
"""Of a chain, that a reader is told when it asks: a chain may have thousands."""


class Offsets:
    """`FindOffset` of the public API."""

    def __init__(
        self,
        *,
        view: ClusterView,
        transport: Transport,
        clock: Clock,
        random: Random,
        tails: Tails,
        searches_max: int,
    ) -> None:
        self._view = view
        self._transport = transport
        self._clock = clock
        self._random = random
        self._tails = tails
        self._places = Places("searches for offsets", searches_max)

    async def find_offset(self, request: log_pb2.FindOffsetRequest) -> log_pb2.FindOffsetResponse:
        """The first record at or after a moment, of all that were acknowledged before the call.

        Raises:
            LogNotFound. LogUnavailable, DeadlineExceeded, ...: the answer is the tail, which nobody
            can tell. Overloaded. DataLoss, Unreachable: the records that would tell can't be had.
        """
        check_log_name(request.log)
        with self._places.take():
            try:
                tail = await self._tails.of(request.log)
            except NO_SURE_TAIL:
                known = await self._tails.known(request.log)
                found = await self._finder(request.log).find(request.timestamp_ms, known)
                if not found.has_later:
                    raise
            else:
                found = await self._finder(request.log).find(request.timestamp_ms, tail)
        return log_pb2.FindOffsetResponse(offset=found.offset)

    async def of(self, name: str, timestamp_ms: int, tail: Offset) -> Offset:
        """Where a moment lies below `tail`, for callers within the process."""
        return (await self._finder(name).find(timestamp_ms, tail)).offset

    def _finder(self, name: str) -> OffsetFinder:
        described = describer(self._view, name)
        return OffsetFinder(self._transport, described, self._clock, self._random)


def describer(view: ClusterView, name: str) -> Describe:
    """Tells a reader within the process a log's chain, a part at a time."""

    async def describe(
        position: Offset, *, refresh: bool = False, min_version: int = 0
    ) -> types_pb2.LogDescription:
        record, version = await fresh_log(view, name, min_version=min_version, refresh=refresh)
        return describe_log(
            record, version, view.node, chain_from=position, chain_limit=_SEGMENTS_AT_ONCE
        )

    return describe
