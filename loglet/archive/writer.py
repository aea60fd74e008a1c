"""Writes one object and makes sure of it: upload, then read it back, before anybody names it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Protocol

from loglet.archive.errors import CorruptObject
from loglet.archive.layout import ObjectName, object_key
from loglet.archive.manifest import ObjectEntry
from loglet.archive.object_format import (
    ObjectBuilder,
    check_block,
    decode_index,
)
from loglet.archive.object_reads import read_end, runs_of
from loglet.archive.object_store import ObjectStore
from loglet.archive.pace import Pace
from metadata.records import LostRange
from sharedlog.clock import Clock
from sharedlog.ids import LogId, Offset
from sharedlog.limits import KIB, MIB
from sharedlog.read_progress import ReadChunk
from sharedlog.tasks import first_error

READ_BACK_BYTES: Final = 2 * MIB
"""Blocks are read back in ranges of about as many."""
READS_AT_ONCE: Final = 2
"""So many ranges at a time, so that one is checked while the other is on its way."""
PIECE_BYTES: Final = 64 * KIB
"""Batches that are smaller are joined to pieces of so many, as far as they were read together;
larger ones go to the store as they are, without a copy."""


class ReadCommitted(Protocol):
    """Reads committed batches of a log, control batches too, from its log servers."""

    def __call__(self, start: Offset, end: Offset, /) -> AsyncGenerator[ReadChunk, None]:
        """As `LogReader.read`; nothing in [start, end) is lost."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which object is to be made: from `first` on, until it is large enough or `end` is reached."""

    cluster_id: str
    log_id: LogId
    first: Offset  # where a batch begins, or within the first batch of an archive
    end: Offset  # committed up to here
    lost: Sequence[LostRange]  # accepted losses of the log, in order
    bytes_max: int  # one more batch may be in it


class _Making:
    """An object under way."""

    def __init__(self, wanted: Wanted, object_id: str, now_ms: int) -> None:
        self._wanted = wanted
        self.builder = ObjectBuilder(
            cluster_id=bytes.fromhex(wanted.cluster_id),
            log_id=wanted.log_id,
            object_id=bytes.fromhex(object_id),
            first=wanted.first,
            created_ms=now_ms,
        )

    async def parts(self, read: ReadCommitted) -> AsyncGenerator[bytes, None]:
        """Its bytes, in order."""
        builder, wanted = self.builder, self._wanted
        for first, end, is_lost in split_lost(wanted.first, wanted.end, wanted.lost):
            if is_lost:
                builder.skip_to(end)
            else:
                async with aclosing(read(first, end)) as chunks:
                    async for part in self._add(chunks, end):
                        yield part
            if builder.size >= wanted.bytes_max:
                break
        yield b"".join(builder.finish())

    async def _add(
        self, chunks: AsyncGenerator[ReadChunk, None], end: Offset
    ) -> AsyncGenerator[bytes, None]:
        builder = self.builder
        async for chunk in chunks:
            for placed in chunk.batches:
                builder.add(placed)
                if builder.end >= end or builder.size >= self._wanted.bytes_max:
                    break
            for piece in gathered(builder.take(), PIECE_BYTES):
                yield piece
            if builder.end >= end or builder.size >= self._wanted.bytes_max:
                return

    @property
    def backlog(self) -> int:
        """About how many bytes waited to be archived when this began, by what was seen of them."""
        builder, wanted = self.builder, self._wanted
        seen = max(1, builder.end - builder.first)
        return builder.size * (wanted.end - builder.first) // seen

    def entry(self, key: str) -> ObjectEntry:
        """What the manifest is to say of it."""
        builder, footer = self.builder, self.builder.footer
        assert footer is not None
        return ObjectEntry(
            key=key,
            first=footer.first,
            end=footer.end,
            size=footer.object_bytes,
            records=footer.record_count,
            first_ms=builder.first_ms,
            last_ms=builder.last_ms,
        )


async def _paced(
    parts: AsyncGenerator[bytes, None], making: _Making, pace: Pace
) -> AsyncGenerator[bytes, None]:
    async for part in parts:
        yield part
        pace.aim(making.backlog)
        await pace.moved(len(part))


def gathered(parts: Sequence[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of at least `size`, but for the last; large parts are not copied."""
    waiting: list[bytes] = []
    waiting_bytes = 0
    for part in parts:
        if not waiting and len(part) >= size:
            yield part
            continue
        waiting.append(part)
        waiting_bytes += len(part)
        if waiting_bytes >= size:
            yield b"".join(waiting)
            waiting, waiting_bytes = [], 0
    if waiting:
        yield b"".join(waiting)


def split_lost(
    start: Offset, end: Offset, lost: Sequence[LostRange]
) -> Iterator[tuple[Offset, Offset, bool]]:
    """[start, end) in order, as ranges that are there and ranges whose loss was accepted (True)."""
    at = start
    for it in lost:
        if it.end <= at or it.first >= end or it.first == it.end:
            continue
        if it.first > at:
            yield at, it.first, False
        at = min(it.end, end)
        yield max(it.first, start), at, True
    if at < end:
        yield at, end, False


class ObjectWriter:
    """Writes objects to `store`."""

    def __init__(self, store: ObjectStore, *, clock: Clock, new_id: Callable[[], str]) -> None:
        self._store = store
        self._clock = clock
        self._new_id = new_id

    async def write(self, wanted: Wanted, read: ReadCommitted) -> ObjectEntry:
        """Upload an object and verify what the store has then; nothing names it yet.

        Raises:
            CorruptObject: the store has something else than was uploaded. ArchiveUnavailable; and
            what `read` raises. Whatever was uploaded until then is an orphan, and is swept.

        **Cancellation:** safe at any moment, likewise.
        """
        name = ObjectName(wanted.first, self._new_id())
        key = object_key(wanted.cluster_id, wanted.log_id, name)
        making = _Making(wanted, name.object_id, self._clock.now_ms())
        pace = Pace(self._clock)
        async with (
            aclosing(making.parts(read)) as parts,
            aclosing(_paced(parts, making, pace)) as paced,
        ):
            size = await self._store.upload(key, paced)
        if size != making.builder.size:
            raise CorruptObject(f"{key}: {size} bytes of {making.builder.size} were uploaded")
        await self._verify(key, making, pace)
        return making.entry(key)

    async def _verify(self, key: str, making: _Making, pace: Pace) -> None:
        footer, index, _ = await read_end(self._store, key)
        if footer != making.builder.footer:
            raise CorruptObject(f"{key}: the store has another object than was uploaded")
        runs = runs_of(decode_index(index, footer), READ_BACK_BYTES)

        async def read_back() -> None:
            for run in runs:
                start, end = run[0].position, run[-1].position + run[-1].size
                data = await self._store.read(key, start, end)
                await pace.moved(len(data))
                for block in run:
                    at = block.position - start
                    check_block(data[at : at + block.size], block)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(READS_AT_ONCE):
                    group.create_task(read_back(), name=f"read back {key}")
        except BaseExceptionGroup as errors:
            raise first_error(errors) from errors
