"""What was read of the archive, kept for whoever reads it next: manifests, indexes, blocks.

One fetch serves all who want the same at the same time, and goes on if one of them leaves. What is
kept is bounded; so is the number of fetches under way. An object never changes under its key, so
indexes and blocks are never stale. A manifest may be, and everybody who uses it stands that: it is
read anew when it ends below what the chain says is archived, and when an object that it names is
gone. Where a log starts the chain says (`start_of`).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from loglet.archive.layout import manifest_key
from loglet.archive.manifest import Manifest, ObjectEntry
from loglet.archive.manifests import Manifests
from loglet.archive.object_format import (
    Block,
    Footer,
    decode_index,
    split_block,
)
from loglet.archive.object_reads import read_end
from loglet.archive.object_store import ObjectStore
from metadata.records import LogRecord
from metadata.store import Version
from node.archive.lru import Lru
from node.archive.metrics import ArchiveMetrics
from node.flights import Flights
from sharedlog.batch import parse_placement
from sharedlog.ids import LogId, Offset
from sharedlog.limits import MIB

MANIFESTS_MAX: Final = 64
PAGES_MAX: Final = 32
INDEXES_MAX: Final = 1_024
FETCHES_MAX: Final = 8
"""Requests to the store at once."""
RUN_BLOCKS: Final = 4
"""Blocks that one request fetches for who reads on and on: some 2 MiB."""
READ_AHEAD_RUNS: Final = 2


class OpenObject(NamedTuple):
    """An object, of which footer and index are known.

    Of a log that was forked off within the object, only what lies below the fork counts.
    """

    entry: ObjectEntry
    footer: Footer
    blocks: Sequence[Block]  # those that begin below the entry's end


class _Index(NamedTuple):
    """What the end of an object says; the same for all logs that name the object."""

    footer: Footer
    blocks: Sequence[Block]


class ArchivedObjects:
    """See the module's docstring. `run` must be running for anything to be fetched."""

    def __init__(
        self,
        store: ObjectStore,
        manifests: Manifests,
        *,
        metrics: ArchiveMetrics,
        block_cache_bytes: int = 32 * MIB,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._manifests_store = manifests
        self._manifests = Lru[LogId, Manifest](MANIFESTS_MAX)
        self._starts: dict[LogId, Offset] = {}  # of logs that were purged
        self._pages = Lru[str, Sequence[ObjectEntry]](PAGES_MAX)
        self._indexes = Lru[str, _Index](INDEXES_MAX)
        self._blocks = Lru[tuple[str, int], list[bytes]](block_cache_bytes)
        self._places = asyncio.Semaphore(FETCHES_MAX)
        self._manifest_flights = Flights[LogId, Manifest | None]("a manifest's")
        self._page_flights = Flights[str, Sequence[ObjectEntry]]("a page's")
        self._index_flights = Flights[str, _Index]("an object's")
        self._block_flights = Flights[tuple[str, int], list[bytes]]("a block's")
        self._run_flights = Flights[tuple[str, range], list[list[bytes]]]("a run's")

    async def run(self) -> None:
        """Own the fetches, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for flights in (
                self._manifest_flights,
                self._page_flights,
                self._index_flights,
                self._block_flights,
                self._run_flights,
            ):
                tasks.create_task(flights.run())

    def on_log(self, record: LogRecord, _: Version) -> None:
        """Nobody is to read below the log's start, whatever is kept here, or is still there."""
        if record.start > self.start_of(record.log_id):
            self._starts[record.log_id] = record.start

    def start_of(self, log_id: LogId) -> Offset:
        """Where the log begins, as far as is known here."""
        return self._starts.get(log_id, Offset(0))

    async def manifest(self, log_id: LogId, *, upto: Offset) -> Manifest | None:
        """The log's manifest, which ends at or above `upto` unless there is none that does.

        Raises:
            ManifestCorrupt, ArchiveUnavailable.
        """
        kept = self._manifests.get(log_id)
        if kept is not None and kept.end >= upto:
            return kept
        return await self._manifest_flights.join(log_id, lambda: self._load(log_id))

    def manifest_key(self, log_id: LogId) -> str:
        """Where the log's manifest lies."""
        return manifest_key(self._manifests_store.cluster_id, log_id)

    def forget_manifest(self, log_id: LogId) -> None:
        """What is known of it turned out to be stale."""
        self._manifests.drop(log_id)

    async def entry_at(self, manifest: Manifest, offset: Offset) -> ObjectEntry | None:
        """The object that holds `offset`; None if none does.

        Raises:
            ManifestCorrupt, ObjectNotFound, ArchiveUnavailable.
        """
        entries: Sequence[ObjectEntry] = manifest.entries
        for page in manifest.pages:
            if page.first <= offset < page.end:
                entries = await self._page(page.key)
                break
        return find_entry(entries, offset)

    async def entry_since(self, manifest: Manifest, timestamp_ms: int) -> ObjectEntry | None:
        """The first object with a record that is not earlier; None if none has.

        Raises:
            ManifestCorrupt, ObjectNotFound, ArchiveUnavailable.
        """
        entries: Sequence[ObjectEntry] = manifest.entries
        for page in manifest.pages:
            if page.last_ms >= timestamp_ms:
                entries = await self._page(page.key)
                break
        at = bisect_left(entries, timestamp_ms, key=lambda it: it.last_ms)
        return entries[at] if at < len(entries) else None

    async def open(self, entry: ObjectEntry) -> OpenObject:
        """Footer and index of an object.

        Raises:
            CorruptObject, ObjectNotFound, ArchiveUnavailable.
        """
        index = self._indexes.get(entry.key)
        if index is None:
            index = await self._index_flights.join(entry.key, lambda: self._fetch_index(entry.key))
        blocks = index.blocks
        if blocks and blocks[-1].first >= entry.end:
            blocks = blocks[: bisect_left(blocks, entry.end, key=lambda it: it.first)]
        return OpenObject(entry, index.footer, blocks)

    async def block(self, opened: OpenObject, number: int) -> list[bytes]:
        """The placed batches of a block, as stored; their own checksums are the reader's business.

        Raises:
            CorruptObject, ObjectNotFound, ArchiveUnavailable.
        """
        key = opened.entry.key, number
        self._metrics.blocks_used.inc()
        batches = self._blocks.get(key)
        if batches is None:
            batches = await self._block_flights.join(key, lambda: self._fetch_block(opened, number))
        return _below_end(opened, number, batches)

    async def run_from(self, opened: OpenObject, number: int) -> list[list[bytes]]:
        """A block and some that follow, for who wants those as well. Raises as `block`."""
        batches = self._blocks.get((opened.entry.key, number))
        if batches is not None:
            return [_below_end(opened, number, batches)]
        run = _run_of(opened, number)
        found = await self._run_flights.join(
            (opened.entry.key, run), lambda: self._fetch_run(opened, run)
        )
        return [_below_end(opened, at, batches) for at, batches in zip(run, found, strict=True)]

    def read_ahead(self, opened: OpenObject, number: int) -> None:
        """Begin to fetch what follows a block, unless many fetches are under way already."""
        run = _run_of(opened, number)
        for _ in range(READ_AHEAD_RUNS):
            if run.stop >= len(opened.blocks) or self._places.locked():
                return
            run = _run_of(opened, run.stop)
            key = opened.entry.key
            if any(self._blocks.get((key, it)) is None for it in run):
                self._run_flights.start(
                    (key, run),
                    lambda run=run: self._fetch_run(opened, run),  # type: ignore[misc]
                )

    async def _load(self, log_id: LogId) -> Manifest | None:
        async with self._places:
            loaded = await self._manifests_store.load(log_id)
        if loaded is None:
            return None
        self._manifests.put(log_id, loaded.manifest)
        return loaded.manifest

    async def _page(self, key: str) -> Sequence[ObjectEntry]:
        kept = self._pages.get(key)
        if kept is not None:
            return kept
        return await self._page_flights.join(key, lambda: self._fetch_page(key))

    async def _fetch_page(self, key: str) -> Sequence[ObjectEntry]:
        async with self._places:
            entries = await self._manifests_store.page(key)
        self._pages.put(key, entries)
        return entries

    async def _fetch_index(self, key: str) -> _Index:
        async with self._places:
            footer, index, _ = await read_end(self._store, key)
        opened = _Index(footer, decode_index(index, footer))
        self._indexes.put(key, opened)
        return opened

    async def _fetch_block(self, opened: OpenObject, number: int) -> list[bytes]:
        block, key = opened.blocks[number], opened.entry.key
        async with self._places:
            data = await self._store.read(key, block.position, block.position + block.size)
        self._metrics.fetched_bytes.inc(block.size)
        batches = split_block(data, block)
        self._blocks.put((key, number), batches, block.size)
        return batches

    async def _fetch_run(self, opened: OpenObject, run: range) -> list[list[bytes]]:
        blocks, key = opened.blocks[run.start : run.stop], opened.entry.key
        start, end = blocks[0].position, blocks[-1].position + blocks[-1].size
        async with self._places:
            data = await self._store.read(key, start, end)
        found = []
        for number, block in zip(run, blocks, strict=True):
            at = block.position - start
            batches = split_block(data[at : at + block.size], block)
            self._blocks.put((key, number), batches, block.size)
            found.append(batches)
        return found


def _run_of(opened: OpenObject, number: int) -> range:
    """The blocks that are fetched together with this one, which is the first of them."""
    stop = number - number % RUN_BLOCKS + RUN_BLOCKS
    return range(number, min(stop, len(opened.blocks)))


def _below_end(opened: OpenObject, number: int, batches: list[bytes]) -> list[bytes]:
    if opened.blocks[number].end <= opened.entry.end:
        return batches
    return [it for it in batches if parse_placement(it).first < opened.entry.end]


def find_entry(entries: Sequence[ObjectEntry], offset: Offset) -> ObjectEntry | None:
    """The entry whose range holds `offset`; they are in order."""
    at = bisect_right(entries, offset, key=lambda it: it.end)
    if at < len(entries) and entries[at].first <= offset:
        return entries[at]
    return None
