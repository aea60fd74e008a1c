"""A log, its archive in memory, and what must hold whenever anything of it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import count

from helpers.log_servers import CLUSTER, placed
from helpers.memory_objects import FaultPlan, MemoryObjects

from loglet.archive.layout import manifest_key
from loglet.archive.manifest import Manifest, ObjectEntry
from loglet.archive.manifest_codec import decode_manifest, decode_page
from loglet.archive.manifests import ManifestConflict, Manifests
from loglet.archive.object_format import FOOTER_BYTES, decode_footer, decode_index, split_block
from loglet.archive.offload import Offloader
from loglet.archive.writer import ObjectWriter
from metadata.archive_rules import Committed, raise_archived_end
from metadata.records import LogRecord, LostRange, Segment
from sharedlog.batch import parse_placement
from sharedlog.clock import SystemClock
from sharedlog.errors import ArchiveUnavailable, MetadataUnavailable
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId
from sharedlog.read_progress import ReadChunk

LOG_ID = LogId(7)
KEY = manifest_key(CLUSTER, LOG_ID)


class MemoryChain:
    """The log's record, with the faults of its store."""

    def __init__(self, record: LogRecord, plan: FaultPlan) -> None:
        self.record = record
        self.plan = plan

    async def fetch(self) -> LogRecord:
        async def call() -> LogRecord:
            return self.record

        return await self.plan.run("fetch", call, MetadataUnavailable("spoiled"))

    async def set_archived_end(self, known: Committed) -> LogRecord:
        async def call() -> LogRecord:
            self.record = raise_archived_end(self.record, known.tail, known=known)
            return self.record

        return await self.plan.run("set_archived_end", call, MetadataUnavailable("spoiled"))


class World:
    """A log of two segments, its archive, and what must hold whenever anything changes."""

    def __init__(self, plan: FaultPlan, *, lost: Sequence[LostRange] = (), start: int = 0) -> None:
        self.batches = [
            placed(first, 3, loglet=LogletId(LOG_ID, first // 30), record_bytes=40)
            for first in range(0, 60, 3)
            if not any(it.first <= first < it.end for it in lost)
        ]
        self.lost = tuple(lost)
        segments = tuple(
            Segment(
                index=index,
                base=Offset(30 * index),
                end=Offset(30) if index == 0 else None,
                sequencer=SequencerId(NodeId("n1"), Generation(1)),
                nodeset=(),
                write_quorum=2,
                lost=tuple(it for it in lost if it.first // 30 == index),
            )
            for index in range(2)
        )
        record = LogRecord(
            log_id=LOG_ID,
            name="orders",
            replicas=3,
            write_quorum=2,
            created_ms=1,
            create_nonce="n",
            chain=segments,
            start=Offset(start),
        )
        self.plan = plan
        self.chain = MemoryChain(record, plan)
        self.objects = MemoryObjects(plan)
        self.objects.on_change = self.check_change
        self.ids = count(1)

    def offloader(self) -> Offloader:
        """As a process makes it when it starts."""
        clock = SystemClock()
        manifests = Manifests(self.objects, cluster_id=CLUSTER, clock=clock, new_id=self.new_id)
        return Offloader(manifests, ObjectWriter(self.objects, clock=clock, new_id=self.new_id))

    def new_id(self) -> str:
        return f"{next(self.ids):032x}"

    async def read(self, start: Offset, end: Offset) -> AsyncGenerator[ReadChunk, None]:
        for batch in self.batches:
            placement = parse_placement(batch)
            if placement.end > start and placement.first < end:
                await asyncio.sleep(0)
                yield ReadChunk([batch], [placement], end)

    async def offload(self, committed: int = 60) -> Manifest:
        """Until all is archived, each time anew after an error, as the archivist does."""
        for _ in range(100):
            try:
                step = await self.offloader().step(
                    self.chain, self.known(committed), self.read, bytes_max=600
                )
            except (ArchiveUnavailable, MetadataUnavailable, ManifestConflict):
                continue
            if step.made is None:
                assert step.manifest.end == step.record.archived_end
                return step.manifest
        raise AssertionError("it does not end")

    def known(self, tail: int) -> Committed:
        """What the open segment's sequencer knows."""
        return Committed(self.chain.record.open_segment.index, Offset(tail))

    def check_change(self, key: str) -> None:
        """What a manifest names is there and whole, and the chain is never ahead of it."""
        manifest = self.manifest() if KEY in self.objects.objects else None
        end = manifest.end if manifest is not None else 0
        assert self.chain.record.archived_end <= end
        if key == KEY and manifest is not None:
            for entry in self.entries(manifest):
                self.read_object(entry)

    def manifest(self) -> Manifest:
        return decode_manifest(KEY, self.objects.objects[KEY])

    def entries(self, manifest: Manifest) -> list[ObjectEntry]:
        objects = self.objects.objects
        pages = [entry for it in manifest.pages for entry in decode_page(it.key, objects[it.key])]
        return [*(it for it in pages if it.end > manifest.start), *manifest.entries]

    def read_object(self, entry: ObjectEntry) -> list[bytes]:
        data = self.objects.objects[entry.key]
        footer = decode_footer(data[-FOOTER_BYTES:], len(data))
        assert (footer.first, footer.end, len(data)) == (entry.first, entry.end, entry.size)
        at = footer.index_position
        return [
            batch
            for block in decode_index(data[at : at + footer.index_bytes], footer)
            for batch in split_block(data[block.position : block.position + block.size], block)
        ]

    def check_all_archived(self, manifest: Manifest, end: int = 60) -> None:
        """Every batch is there as it was, in order, once."""
        kept = [batch for entry in self.entries(manifest) for batch in self.read_object(entry)]
        assert kept == [
            batch for batch in self.batches if manifest.start < parse_placement(batch).end <= end
        ]
        assert manifest.end == self.chain.record.archived_end == end
