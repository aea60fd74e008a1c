"""Reads of what is archived: as a log server would answer, from blocks that are fetched once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from helpers.archive_world import LOG_ID, World
from helpers.log_servers import CLUSTER
from helpers.memory_objects import FaultPlan
from prometheus_client import CollectorRegistry

from loglet.archive import object_format, writer
from loglet.archive.errors import ManifestBehind
from loglet.archive.manifests import Manifests
from loglet.wire import loglet_to_proto
from metadata.records import LostRange
from metadata.store import Version
from node.archive.metrics import ArchiveMetrics
from node.archive.objects import ArchivedObjects
from node.archive.reads import ArchiveReads
from sharedlog.batch import HEADERS_BYTES, parse_placement
from sharedlog.clock import SystemClock
from sharedlog.errors import ArchiveUnavailable, InvalidArgument
from sharedlog.ids import LogletId, Offset
from sharedlog.rpc.read_answer import HOLE, TRIMMED, ReadAnswer
from sharedlog.v1.log_server_pb2 import FindTimeRequest, ReadLogletRequest


class Sent:
    """A stream that keeps what it is sent."""

    def __init__(self) -> None:
        self.messages: list[ReadAnswer] = []

    async def send(self, message: ReadAnswer) -> None:
        self.messages.append(message)

    @property
    def batches(self) -> list[bytes]:
        return [batch for message in self.messages for batch in message.batches]

    @property
    def gaps(self) -> list[tuple[int, int, int]]:
        gaps = [it.gap for it in self.messages if it.gap is not None]
        return [(gap.reason, gap.first, gap.end) for gap in gaps]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_format, "BLOCK_BYTES", 250)
    monkeypatch.setattr(writer, "READ_BACK_BYTES", 300)


@asynccontextmanager
async def opened(world: World, cache_bytes: int = 100_000) -> AsyncIterator[ArchivedObjects]:
    manifests = Manifests(
        world.objects, cluster_id=CLUSTER, clock=SystemClock(), new_id=world.new_id
    )
    objects = ArchivedObjects(
        world.objects,
        manifests,
        metrics=ArchiveMetrics(CollectorRegistry()),
        block_cache_bytes=cache_bytes,
    )
    running = asyncio.ensure_future(objects.run())
    try:
        yield objects
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


@asynccontextmanager
async def archive(world: World, cache_bytes: int = 100_000) -> AsyncIterator[ArchiveReads]:
    async with opened(world, cache_bytes) as objects:
        yield ArchiveReads(objects)


def request(
    segment: int,
    start: int,
    end: int | None = None,
    *,
    headers_only: bool = False,
    for_repair: bool = False,
) -> ReadLogletRequest:
    return ReadLogletRequest(
        loglet=loglet_to_proto(LogletId(LOG_ID, segment)),
        start=start,
        end=end,
        headers_only=headers_only,
        for_repair=for_repair,
    )


async def read(reads: ArchiveReads, wanted: ReadLogletRequest) -> Sent:
    sent = Sent()
    await reads.serve(sent, wanted)  # type: ignore[arg-type]
    return sent


def expected(world: World, segment: int, start: int, end: int) -> list[bytes]:
    return [
        batch
        for batch in world.batches
        if (it := parse_placement(batch)).loglet.segment_index == segment
        and it.end > start
        and it.first < end
    ]


@pytest.mark.parametrize("cache_bytes", [0, 600, 100_000])
async def test_every_range_is_read_as_it_was(cache_bytes: int) -> None:
    """Any start and end, either segment, whatever is kept in memory."""
    world = World(FaultPlan())
    await world.offload()
    async with archive(world, cache_bytes) as reads:
        for segment, base, top in ((0, 0, 30), (1, 30, 60)):
            for start in range(base, top, 4):
                for end in range(start + 1, top + 1, 5):
                    sent = await read(reads, request(segment, start, end))
                    assert sent.batches == expected(world, segment, start, end)
                    assert sent.gaps == []


async def test_headers_alone() -> None:
    """What a search needs of a batch, without its records."""
    world = World(FaultPlan())
    await world.offload()
    async with archive(world) as reads:
        sent = await read(reads, request(0, 0, 30, headers_only=True))
    assert sent.batches == [it[:HEADERS_BYTES] for it in expected(world, 0, 0, 30)]


async def test_what_no_manifest_tells_of_is_no_hole() -> None:
    """Who asks knows that it is archived: the manifest is lost, or an older one was put back.

    That says nothing of the records, and nobody may pass over them. A newer one is looked for.
    """
    world = World(FaultPlan())
    async with archive(world) as reads:
        with pytest.raises(ManifestBehind):
            await read(reads, request(0, 0, 30))
        await world.offload(27)
        sent = await read(reads, request(0, 21, 30))
        assert sent.batches == expected(world, 0, 21, 27)
        with pytest.raises(ManifestBehind):
            await read(reads, request(0, 27, 30))
        await world.offload()
        assert (await read(reads, request(0, 27, 30))).batches == expected(world, 0, 27, 30)


async def test_a_purged_prefix_is_trimmed() -> None:
    """It is not here, and not a hole to be filled."""
    world = World(FaultPlan(), start=10)
    await world.offload()
    async with archive(world) as reads:
        assert (await read(reads, request(0, 2, 30))).gaps == [(TRIMMED, 2, 10)]
        assert (await read(reads, request(0, 10, 30))).batches == expected(world, 0, 10, 30)


async def test_what_is_purged_is_served_no_more_though_it_is_there() -> None:
    """Blocks and manifest are kept, and the archive has not heard of it yet; nor has the reader."""
    world = World(FaultPlan())
    await world.offload()
    record = replace(world.chain.record, start=Offset(25))
    async with opened(world) as objects:
        reads = ArchiveReads(objects)
        assert (await read(reads, request(0, 0, 30))).batches == expected(world, 0, 0, 30)

        class Purging(Sent):
            async def send(self, message: ReadAnswer) -> None:
                await super().send(message)
                objects.on_log(record, Version(1))

        sent = Purging()
        await reads.serve(sent, request(0, 0, 30))  # type: ignore[arg-type]
        (gap,) = sent.gaps
        assert gap == (TRIMMED, parse_placement(sent.batches[-1]).end, 25)
        assert (await read(reads, request(0, 3, 30))).gaps == [(TRIMMED, 3, 25)]
        assert (await read(reads, request(0, 3, 10))).gaps == [(TRIMMED, 3, 10)]
        assert (await read(reads, request(0, 25, 30))).batches == expected(world, 0, 25, 30)


@pytest.mark.parametrize(("first", "end"), [(6, 12), (27, 30), (24, 30)])
async def test_an_accepted_loss_is_a_gap(first: int, end: int) -> None:
    """Within an object, and at its end."""
    loss = LostRange(first=Offset(first), end=Offset(end), accepted_ms=1, reason="disk")
    world = World(FaultPlan(), lost=[loss])
    await world.offload()
    async with archive(world) as reads:
        sent = await read(reads, request(0, 0, 30))
        assert sent.batches == expected(world, 0, 0, first)
        assert sent.gaps in ([(HOLE, first, end)], [])
        if end < 30:
            assert (await read(reads, request(0, end, 30))).batches == expected(world, 0, end, 30)


async def test_a_repair_is_refused() -> None:
    """What is archived is for readers."""
    async with archive(World(FaultPlan())) as reads:
        with pytest.raises(InvalidArgument):
            await read(reads, request(0, 0, 3, for_repair=True))


async def test_many_readers_share_one_fetch() -> None:
    """Each block is fetched once, however many want it at the same time."""
    world = World(FaultPlan())
    manifest = await world.offload()
    counts: dict[str, int] = {}
    plain = world.objects.read

    async def counted(key: str, start: int = 0, end: int | None = None) -> bytes:
        counts[f"{key} {start}"] = counts.get(f"{key} {start}", 0) + 1
        await asyncio.sleep(0.001)
        return await plain(key, start, end)

    world.objects.read = counted  # type: ignore[method-assign]
    async with archive(world) as reads:
        wanted = request(0, 0, 30)
        sent: Sequence[Sent] = await asyncio.gather(*(read(reads, wanted) for _ in range(20)))
    assert all(it.batches == expected(world, 0, 0, 30) for it in sent)
    assert len(counts) >= len(manifest.entries) // 2
    assert set(counts.values()) == {1}


async def test_a_reader_who_leaves_takes_nobody_along() -> None:
    """The fetch that others share goes on."""
    world = World(FaultPlan())
    await world.offload()
    gate = asyncio.Event()
    plain = world.objects.read

    async def slow(key: str, start: int = 0, end: int | None = None) -> bytes:
        await gate.wait()
        return await plain(key, start, end)

    world.objects.read = slow  # type: ignore[method-assign]
    async with archive(world) as reads:
        first = asyncio.ensure_future(read(reads, request(0, 0, 30)))
        second = asyncio.ensure_future(read(reads, request(0, 0, 30)))
        await asyncio.sleep(0.01)
        first.cancel()
        gate.set()
        assert (await second).batches == expected(world, 0, 0, 30)


async def test_an_error_is_for_those_who_wait_and_not_kept() -> None:
    """Whichever call fails, the next reader tries again."""
    world = World(FaultPlan())
    await world.offload()
    failed = 0
    for call in range(8):
        async with archive(world) as reads:
            world.plan.at, world.plan.fault = world.plan.calls + call, "before"
            try:
                sent = await read(reads, request(0, 0, 30))
            except ArchiveUnavailable:
                failed += 1
                sent = await read(reads, request(0, 0, 30))
            assert sent.batches == expected(world, 0, 0, 30)
    assert failed


async def test_moments_are_found_as_a_log_server_does() -> None:
    """Batches have the timestamp 1000 + first offset; neighbours are the nearest on either side."""
    world = World(FaultPlan())
    await world.offload()
    async with archive(world) as reads:
        for segment, base, top in ((0, 0, 30), (1, 30, 60)):
            for start in (base, base + 7):
                for moment in range(995 + base, 1_006 + top):
                    answer = await reads.find_time(
                        FindTimeRequest(
                            loglet=loglet_to_proto(LogletId(LOG_ID, segment)),
                            timestamp_ms=moment,
                            start=start,
                            end=top,
                        )
                    )
                    held = expected(world, segment, start, top)
                    earlier = [it for it in held if parse_placement(it).timestamp_ms < moment]
                    later = [it for it in held if parse_placement(it).timestamp_ms >= moment]
                    before = earlier[-1][:HEADERS_BYTES] if earlier else b""
                    after = later[0][:HEADERS_BYTES] if later else b""
                    assert (answer.before, answer.after, answer.visible) == (before, after, top)
