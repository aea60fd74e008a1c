"""Serves what is archived of a log, as one more replica of each of its segments.

The archive answers `ReadLoglet` and `FindTime` as a log server does, under the storage_id
`ARCHIVE_STORAGE` and at every node; so readers go to it, and away from it, as they do with any
replica. It has [start, archived end) of a log, lags behind the log servers, and never waits: a
stream that reaches its end is over, and the rest is at the log servers.

Whose a batch is, and where, the manifest says by offsets. What the batch itself names is the loglet
that it was written to: in a log that was forked or restored that is one of another log. So nobody
may judge what comes from here by that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from loglet.archive.errors import ManifestBehind
from loglet.archive.manifest import Manifest
from loglet.archive.object_format import block_at, block_since
from loglet.reads import ReadStream
from loglet.sifting import headers_of, sift
from loglet.wire import ReadQuery, read_query, time_query
from node.archive.objects import ArchivedObjects, OpenObject
from sharedlog.batch import HEADERS_BYTES, parse_placement
from sharedlog.errors import InvalidArgument, ObjectNotFound
from sharedlog.ids import Offset
from sharedlog.rpc.read_answer import HOLE, TRIMMED, Gap, ReadAnswer
from sharedlog.v1.log_server_pb2 import FindTimeRequest, FindTimeResponse, ReadLogletRequest


class ArchivedBlock(NamedTuple):
    """Part of what a read is to get."""

    batches: list[bytes]  # each continues the one before
    end: Offset  # behind them
    lost_until: Offset | None = None  # nothing is in the archive from `end` up to there


class ArchiveReads:
    """See the module's docstring."""

    def __init__(self, objects: ArchivedObjects) -> None:
        self._objects = objects

    async def serve(self, stream: ReadStream, request: ReadLogletRequest) -> None:
        """What is archived of the loglet, from `start` on. **Cancellation:** ends the stream.

        Raises:
            InvalidArgument: it is asked for a repair. ManifestBehind: who asks knows of more that
            is archived; that the manifest does not tell of it says nothing of the records.
            ManifestCorrupt, CorruptObject, ObjectNotFound, ArchiveUnavailable.
        """
        query = read_query(request)
        if query.for_repair:
            raise InvalidArgument("the archive repairs nothing")
        manifest = await self._objects.manifest(query.loglet.log_id, upto=Offset(query.start + 1))
        limit = _limit(query, manifest)
        if await self._is_purged(stream, query, query.start, limit):
            return
        if manifest is None or query.start >= manifest.end:
            raise self._behind(query, manifest)
        if query.start >= limit:
            await stream.send(ReadAnswer(limit, gap=Gap(HOLE, query.start, _gap_end(query))))
            return
        if query.start < manifest.start:
            gap = Gap(TRIMMED, query.start, min(manifest.start, _gap_end(query)))
            await stream.send(ReadAnswer(limit, gap=gap))
            return
        position = query.start
        async with aclosing(self._blocks(manifest, query.start, limit)) as blocks:
            async for block in blocks:
                if await self._is_purged(stream, query, position, limit):
                    return
                position = block.end
                batches, is_last = _within(block.batches, query.start, limit)
                sent, skipped = sift(batches, query)
                if query.headers_only:
                    sent = [headers_of(placed) for placed in sent]
                if sent or skipped:
                    await stream.send(ReadAnswer(limit, sent, skipped=skipped))
                if is_last:
                    return
                if block.lost_until is not None:
                    gap = Gap(HOLE, block.end, min(block.lost_until, limit))
                    await stream.send(ReadAnswer(limit, gap=gap))
                    return

    async def _is_purged(
        self, stream: ReadStream, query: ReadQuery, position: Offset, limit: Offset
    ) -> bool:
        """Whether the log begins above by now; if so that is told, and the stream at its end."""
        start = self._objects.start_of(query.loglet.log_id)
        if position >= start:
            return False
        gap = Gap(TRIMMED, position, min(start, max(_gap_end(query), Offset(position + 1))))
        await stream.send(ReadAnswer(limit, gap=gap))
        return True

    def _behind(self, query: ReadQuery, manifest: Manifest | None) -> ManifestBehind:
        """Only what the chain says is archived is asked of the archive."""
        key = self._objects.manifest_key(query.loglet.log_id)
        end = Offset(0) if manifest is None else manifest.end
        return ManifestBehind(key=key, end=end, archived_end=Offset(query.start + 1))

    async def find_time(self, request: FindTimeRequest) -> FindTimeResponse:
        """A moment's neighbours among what is archived of a loglet, as a log server tells them.

        Raises:
            ManifestCorrupt, CorruptObject, ObjectNotFound, ArchiveUnavailable.

        **Cancellation:** ends the wait.
        """
        query = time_query(request)
        manifest = await self._objects.manifest(query.loglet.log_id, upto=Offset(query.start + 1))
        limit = _limit(query, manifest)
        if manifest is None or not manifest.start <= query.start < limit:
            return FindTimeResponse(visible=limit)
        since = await self._first_since(manifest, request.timestamp_ms)
        at = min(max(since, query.start), Offset(limit - 1))
        batches = await self._batches_around(manifest, at, query.start)
        held, _ = _within(batches, query.start, limit)
        times = [parse_placement(placed).timestamp_ms for placed in held]
        after = bisect_left(times, request.timestamp_ms)
        return FindTimeResponse(
            before=held[after - 1][:HEADERS_BYTES] if after > 0 else b"",
            after=held[after][:HEADERS_BYTES] if after < len(held) else b"",
            visible=limit,
            local_start=manifest.start,
        )

    async def _blocks(
        self, manifest: Manifest, start: Offset, end: Offset
    ) -> AsyncGenerator[ArchivedBlock, None]:
        """What covers [start, end), in order; the first may begin below, the last reach beyond."""
        position = start
        while position < end:
            opened = await self._open_at(manifest, position)
            if opened is None:
                return
            blocks = opened.blocks
            number = block_at(blocks, position)
            while number < len(blocks):
                for batches in await self._fetch(opened, number, goes_on=position > start):
                    if blocks[number].first > position:
                        yield ArchivedBlock([], position, blocks[number].first)
                        return
                    position = min(blocks[number].end, opened.entry.end)
                    yield ArchivedBlock(batches, position)
                    if position >= end:
                        return
                    number += 1
            if position < opened.entry.end:
                yield ArchivedBlock([], position, opened.entry.end)
                return

    async def _fetch(self, opened: OpenObject, number: int, *, goes_on: bool) -> list[list[bytes]]:
        """A block, which comes alone as soon as it can; or, for who reads on, more of them."""
        if not goes_on:
            return [await self._objects.block(opened, number)]
        self._objects.read_ahead(opened, number)
        return await self._objects.run_from(opened, number)

    async def _open_at(self, manifest: Manifest, offset: Offset) -> OpenObject | None:
        entry = await self._objects.entry_at(manifest, offset)
        if entry is None:
            return None
        try:
            return await self._objects.open(entry)
        except ObjectNotFound:
            # Purged since, most likely: whoever asks next is told so by the new manifest.
            self._objects.forget_manifest(manifest.log_id)
            raise

    async def _first_since(self, manifest: Manifest, timestamp_ms: int) -> Offset:
        """Where the first block begins that has a record which is not earlier; or the end."""
        entry = await self._objects.entry_since(manifest, timestamp_ms)
        if entry is None:
            return manifest.end
        opened = await self._objects.open(entry)
        number = block_since(opened.blocks, timestamp_ms)
        return opened.blocks[number].first if number < len(opened.blocks) else entry.end

    async def _batches_around(
        self, manifest: Manifest, offset: Offset, start: Offset
    ) -> list[bytes]:
        """The block that holds `offset`, after the one before it if that reaches above `start`."""
        batches: list[bytes] = []
        opened = await self._open_at(manifest, offset)
        if opened is None or not opened.blocks:
            return batches
        number = min(block_at(opened.blocks, offset), len(opened.blocks) - 1)
        first = opened.blocks[number].first
        if first > start:
            before = opened if number > 0 else await self._open_at(manifest, Offset(first - 1))
            if before is not None and before.blocks:
                last = number - 1 if number > 0 else len(before.blocks) - 1
                batches += await self._objects.block(before, last)
        return batches + await self._objects.block(opened, number)


def _limit(query: ReadQuery, manifest: Manifest | None) -> Offset:
    """How far the archive can serve, exclusive; also what it knows to be committed."""
    if manifest is None:
        return Offset(0)
    ends = [end for end in (query.end, query.segment_end) if end is not None]
    return min([manifest.end, *ends])


def _gap_end(query: ReadQuery) -> Offset:
    ends = [end for end in (query.end, query.segment_end) if end is not None]
    return max(min(ends, default=Offset(0)), Offset(query.start + 1))


def _within(batches: Sequence[bytes], start: Offset, end: Offset) -> tuple[list[bytes], bool]:
    """Those that overlap [start, end), and whether the range ends with them."""
    found: list[bytes] = []
    for placed in batches:
        placement = parse_placement(placed)
        if placement.first >= end:
            return found, True
        if placement.end > start:
            found.append(placed)
    return found, False
