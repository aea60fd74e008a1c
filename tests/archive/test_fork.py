"""Forks and restores, step by step: whatever fails on the way, a repeat ends with the same log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
from helpers.archive_world import LOG_ID, World
from helpers.log_servers import CLUSTER, placed
from helpers.memory_metadata import MemoryMetadata
from helpers.memory_objects import FAULTS, Crash, Fault, FaultPlan
from prometheus_client import CollectorRegistry

from loglet.archive import object_format, writer
from loglet.archive.layout import directory_of, manifest_key, owner_of
from loglet.archive.manifest import Cut, LogSettings, Manifest, Write, forked, new_manifest
from loglet.archive.manifest_codec import decode_manifest
from loglet.archive.manifests import ManifestConflict, Manifests
from loglet.archive.offload import Offloader
from loglet.archive.writer import ObjectWriter
from loglet.wire import loglet_to_proto
from metadata.archive_rules import Committed
from metadata.core import Load, check_chain
from metadata.encoding import encode_log, log_key
from metadata.history_rules import ArchivedHistory
from metadata.namespaces import Asked
from metadata.records import LogRecord, LostRange, NodeRecord
from metadata.registry import create_log, fetch_log
from metadata.store import ABSENT, Version
from node.archive.cleaner import Cleaner
from node.archive.fork import Forks, Made, new_log_id
from node.archive.metrics import ArchiveMetrics
from node.archive.objects import ArchivedObjects
from node.archive.reads import ArchiveReads
from sharedlog.batch import parse_placement
from sharedlog.clock import SystemClock
from sharedlog.errors import (
    ArchiveUnavailable,
    InvalidArgument,
    LogExists,
    LogUnavailable,
    MetadataUnavailable,
)
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, StorageId
from sharedlog.rpc.read_answer import ReadAnswer
from sharedlog.v1.log_server_pb2 import FindTimeRequest, ReadLogletRequest

NODE = NodeRecord(
    node_id=NodeId("n1"),
    generation=Generation(1),
    storage_id=StorageId("s1"),
    address="n1:1",
    http_address="",
    location="",
    roles=("log-server", "sequencer"),
)
OTHER_CLUSTER = "d" * 32
SETTINGS = LogSettings(name="orders", replicas=1, write_quorum=1)
WRITE = Write(salt="s", now_ms=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_format, "BLOCK_BYTES", 250)
    monkeypatch.setattr(writer, "READ_BACK_BYTES", 300)


class Sent:
    """A stream that keeps what it is sent."""

    def __init__(self) -> None:
        self.messages: list[ReadAnswer] = []

    async def send(self, message: ReadAnswer) -> None:
        self.messages.append(message)


class Stage:
    """A world with a log that is archived, and another log that is made of it."""

    def __init__(self, world: World, cluster_id: str = CLUSTER) -> None:
        self.world = world
        self.cluster_id = cluster_id
        self.metadata = MemoryMetadata()
        self.committed_tail = 60
        self.replicas_max = 1
        world.objects.on_change = self.check_owners

    # What a fork uses of a node.

    async def committed(self, name: str) -> tuple[LogRecord, Committed]:
        record, _ = await fetch_log(self.metadata, name)
        return record, Committed(record.open_segment.index, Offset(self.committed_tail))

    async def offload(self, record: LogRecord, known: Committed, upto: Offset) -> LogRecord:
        assert upto == known.tail
        await self.world.offload(upto)
        return replace(record, archived_end=upto)

    async def create(
        self, name: str, asked: Asked, *, nonce: str, log_id: LogId, history: ArchivedHistory
    ) -> tuple[LogRecord, Version, Sequence[NodeRecord]]:
        if (asked.replicas or 0) > self.replicas_max:
            raise LogUnavailable("too few")

        async def call() -> tuple[LogRecord, Version]:
            return await create_log(
                self.metadata,
                name=name,
                replicas=1,
                write_quorum=1,
                nonce=nonce,
                alive=[NODE],
                load=Load(),
                log_id=log_id,
                now_ms=1,
                history=history,
            )

        record, version = await self.world.plan.run("create", call, MetadataUnavailable("spoiled"))
        return record, version, [NODE]

    @asynccontextmanager
    async def process(self) -> AsyncIterator[tuple[Forks, ArchivedObjects]]:
        """A node's life."""
        clock, objects = SystemClock(), self.world.objects
        manifests = Manifests(
            objects, cluster_id=self.cluster_id, clock=clock, new_id=self.world.new_id
        )
        archived = ArchivedObjects(objects, manifests, metrics=ArchiveMetrics(CollectorRegistry()))
        running = asyncio.ensure_future(archived.run())
        owner = asyncio.current_task()
        assert owner is not None

        def end(ran: asyncio.Future[None]) -> None:
            if not ran.cancelled():
                owner.cancel()  # it crashed, and the process with it

        running.add_done_callback(end)
        try:
            yield (
                Forks(
                    cluster_id=self.cluster_id,
                    store=self.metadata,
                    objects=objects,
                    archived=archived,
                    history=self,
                    maker=self,
                    clock=clock,
                    new_id=self.world.new_id,
                ),
                archived,
            )
        except asyncio.CancelledError:
            owner.uncancel()
            raise Crash from None
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError, BaseExceptionGroup):
                await running

    async def put_origin(self) -> None:
        record = self.world.chain.record
        chain = tuple(
            replace(it, nodeset=record.chain[0].nodeset, write_quorum=2) for it in record.chain
        )
        value = encode_log(replace(record, chain=chain, archived_end=Offset(60)))
        await self.metadata.put(log_key("orders"), value, expected=ABSENT)

    # What is looked at.

    def manifest(self, log_id: LogId) -> Manifest:
        key = manifest_key(self.cluster_id, log_id)
        return decode_manifest(key, self.world.objects.objects[key])

    def check_owners(self, _key: str) -> None:
        """Whoever owns an object that a manifest names knows of that manifest."""
        objects = self.world.objects.objects
        for key in [it for it in objects if it.endswith("/manifest")]:
            found = decode_manifest(key, objects[key])
            directory = directory_of(found.cluster_id, found.log_id)
            owners = {owner_of(it.key) for it in found.entries} - {directory}
            owners |= {owner_of(it.key) for it in found.pages} - {directory}
            assert owners <= set(found.origins)
            for owner in found.origins:
                at = f"{owner}/manifest"
                assert directory in decode_manifest(at, objects[at]).forks

    async def read(self, archived: ArchivedObjects, record: LogRecord) -> list[bytes]:
        stream, loglet = Sent(), record.loglet(record.chain[0])
        request = ReadLogletRequest(
            loglet=loglet_to_proto(loglet), start=record.start, end=record.archived_end
        )
        await ArchiveReads(archived).serve(stream, request)  # type: ignore[arg-type]  # sends only
        return [batch for message in stream.messages for batch in message.batches]


async def _fork(stage: Stage, at: int | None = 40, name: str = "fork", of: str = "orders") -> Made:
    """Until it is done, each time anew after an error, in a new life of the node after a crash."""
    while True:
        with suppress(Crash):
            async with stage.process() as (forks, _):
                while True:
                    with suppress(ArchiveUnavailable, MetadataUnavailable, LogUnavailable):
                        upto = None if at is None else Offset(at)
                        return await forks.fork(of, name, upto, Asked(replicas=1), nonce="n")


async def _check_fork(stage: Stage, made: Made, end: int) -> None:
    record = made.record
    check_chain(record)
    assert record.log_id == new_log_id(stage.cluster_id, record.name, record.create_nonce)
    assert (made.end, record.archived_end, record.trimmed) == (end, end, end)
    archived_segment, opened = record.chain
    assert (archived_segment.end, archived_segment.nodeset) == (end, ())
    below = [it for it in stage.world.batches if parse_placement(it).end <= end]
    last_ms = parse_placement(below[-1]).timestamp_ms
    assert (opened.base, opened.timestamp_ms) == (end, last_ms)
    async with stage.process() as (_, archived):
        assert await stage.read(archived, record) == below
        for time_ms in range(990, 1_070):
            asked = FindTimeRequest(
                loglet=loglet_to_proto(record.loglet(archived_segment)),
                timestamp_ms=time_ms,
                start=0,
                end=end,
            )
            answer = await ArchiveReads(archived).find_time(asked)
            for told in (answer.before, answer.after):
                assert not told or parse_placement(told).end <= end


async def archived_stage(plan: FaultPlan | None = None) -> Stage:
    world = World(FaultPlan())
    await world.offload()
    stage = Stage(world)
    await stage.put_origin()
    world.plan = world.objects.plan = plan or FaultPlan()
    return stage


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_call_is_spoiled(fault: Fault) -> None:
    """The request is repeated, by the same process or the next: there is one log, with all."""
    spoiled = set()
    for at in range(100):
        stage = await archived_stage(FaultPlan(at, fault))
        made = await _fork(stage)
        done = stage.world.plan.spoiled
        stage.world.plan.at = -1
        await _check_fork(stage, made, 39)
        logs = {it.split("/")[1] for it in stage.world.objects.objects}
        assert len(logs) == 2
        if not done:
            break
        spoiled.add(done)
    assert spoiled >= {"read_versioned", "read_tail", "read", "swap", "create"}


async def test_a_fork_ends_with_a_batch_and_within_objects() -> None:
    """At every offset; the origin is left as it was, but for the fork's name."""
    stage = await archived_stage()
    before = stage.world.manifest()
    for at in range(3, 61):
        made = await _fork(stage, at, f"fork-{at}")
        await _check_fork(stage, made, at - at % 3)
    after = stage.world.manifest()
    assert after.entries == before.entries
    assert len(after.forks) == 58
    for wrong in (0, 61):
        with pytest.raises(InvalidArgument):
            await _fork(stage, wrong, "wrong")
    with pytest.raises(InvalidArgument, match="first batch"):
        await _fork(stage, 2, "wrong")
    with pytest.raises(LogExists):
        async with stage.process() as (forks, _):
            await forks.fork("orders", "fork-9", Offset(9), Asked(), nonce="another")


async def test_a_fork_is_archived_further_and_forked() -> None:
    """Behind a part of an object; both owners know of the second fork."""
    stage = await archived_stage()
    made = await _fork(stage, 40)
    manifests = Manifests(
        stage.world.objects, cluster_id=CLUSTER, clock=SystemClock(), new_id=stage.world.new_id
    )
    own = World(FaultPlan())
    loglet = LogletId(made.record.log_id, 1)
    own.batches = [placed(it, 3, loglet=loglet, record_bytes=40) for it in range(39, 60, 3)]
    own.chain.record = made.record
    offloader = Offloader(
        manifests,
        ObjectWriter(stage.world.objects, clock=SystemClock(), new_id=stage.world.new_id),
    )
    step = await offloader.step(own.chain, own.known(60), own.read, bytes_max=600)
    assert step.made is not None
    first_end = step.manifest.end
    assert step.manifest.entries[-1].first == 39
    value = encode_log(replace(made.record, archived_end=first_end))
    await stage.metadata.put(log_key("fork"), value, expected=made.version)
    stage.committed_tail = int(first_end)
    second = await _fork(stage, None, "second", of="fork")
    assert second.end == first_end
    assert len(stage.world.manifest().forks) == 2
    assert len(stage.manifest(made.record.log_id).forks) == 1
    async with stage.process() as (_, archived):
        found = await stage.read(archived, second.record)
    below = [it for it in stage.world.batches if parse_placement(it).end <= 39]
    assert found == below + [it for it in own.batches if parse_placement(it).end <= first_end]


async def test_a_restore_needs_the_manifest_alone() -> None:
    """In another cluster; again, it finds what it made; a taken name is refused."""
    stage = await archived_stage()
    stage.cluster_id = OTHER_CLUSTER
    stage.metadata = MemoryMetadata()
    async with stage.process() as (forks, _):
        (found,) = await forks.clusters()
        assert (found.cluster_id, found.logs) == (CLUSTER, 1)
        (place,) = [it async for it in forks.places(CLUSTER)]
        origin = await forks.manifest(place)
        with pytest.raises(LogUnavailable):
            await forks.restore(origin, "orders", Asked())  # it had three replicas
        assert await forks.find("orders", "n") is None
        made = await forks.restore(origin, "orders", Asked(replicas=1))
        assert made.is_new
        await _check_fork(stage, made, 60)
        again = await forks.restore(origin, "orders", Asked(replicas=1))
        assert not again.is_new
        assert again.record == made.record
        with pytest.raises(LogExists):
            await forks.find("orders", "another")
        assert [(it.cluster_id, it.logs) for it in await forks.clusters()] == [
            (CLUSTER, 1),
            (OTHER_CLUSTER, 1),
        ]
    assert made.record.log_id != LOG_ID


async def test_pages_are_shared_and_one_across_the_cut_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole pages are named as they are; of the one that is cut, its entries."""
    monkeypatch.setattr("loglet.archive.manifest.ENTRIES_MAX", 4)
    monkeypatch.setattr("loglet.archive.manifest.PAGE_ENTRIES", 2)
    stage = await archived_stage()
    origin = stage.world.manifest()
    assert origin.pages
    ends = set()
    for at in range(3, 61, 3):
        made = await _fork(stage, at, f"fork-{at}")
        await _check_fork(stage, made, at)
        ends.add(len(stage.manifest(made.record.log_id).pages))
    assert len(ends) > 1


async def test_a_fork_that_competes_with_the_origins_offload() -> None:
    """The manifest changes while it is read: it is read anew."""
    stage = await archived_stage()
    lost_once = False
    plain = Manifests.replace

    async def spoiled(self: Manifests, before: object, manifest: Manifest) -> object:
        nonlocal lost_once
        if not lost_once:
            lost_once = True
            raise ManifestConflict("orders")
        return await plain(self, before, manifest)  # type: ignore[arg-type]  # as it came

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Manifests, "replace", spoiled)
        await _check_fork(stage, await _fork(stage), 39)
    assert lost_once


def test_losses_and_the_start_go_with_the_history() -> None:
    """Those below the cut; one across it ends there."""
    lost = [
        LostRange(first=Offset(first), end=Offset(end), accepted_ms=1, reason="")
        for first, end in [(6, 12), (30, 45)]
    ]
    origin = replace(
        new_manifest(CLUSTER, LOG_ID, SETTINGS, Offset(50), WRITE),
        lost=tuple(lost),
    )
    fork = new_manifest(OTHER_CLUSTER, LogId(8), SETTINGS, Offset(0), WRITE)
    made = forked(origin, Cut(Offset(50), 0), (), fork)
    assert (made.start, made.end, made.lost) == (50, 50, tuple(lost))
    assert made.origins == (directory_of(CLUSTER, LOG_ID),)


async def test_the_number_of_forks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each stands in the origin's manifest. One that is known already can be made all the same."""
    monkeypatch.setattr("node.archive.fork.FORKS_MAX", 2)
    stage = await archived_stage()
    for number in range(2):
        await _fork(stage, 9, f"fork-{number}")
    with pytest.raises(InvalidArgument, match="2 others"):
        await _fork(stage, 9, "third")
    del stage.metadata.entries[log_key("fork-1")]
    await _fork(stage, 9, "fork-1")


async def test_a_purge_while_a_fork_is_made_has_it_look_again() -> None:
    """It has read what there is, and not written that yet: what was deleted then is not named."""
    stage = await archived_stage()
    world, swap = stage.world, stage.world.objects.swap
    own = manifest_key(CLUSTER, new_log_id(CLUSTER, "fork", "n"))
    start = Offset(world.manifest().entries[0].end)

    async def purged_before(key: str, data: bytes, expected: str | None) -> str:
        if key == own and expected is None:
            world.objects.swap = swap  # type: ignore[method-assign]
            before = world.manifest()
            world.chain.record = replace(world.chain.record, start=start, trimmed=start)
            now = await world.offloader().purge(world.chain)
            clock = SystemClock()
            manifests = Manifests(
                world.objects, cluster_id=CLUSTER, clock=clock, new_id=world.new_id
            )
            dropped = await Cleaner(world.objects, manifests, clock=clock).clean(before, now)
            assert len(dropped.objects) == 1
        return await swap(key, data, expected)

    world.objects.swap = purged_before  # type: ignore[method-assign]
    made = await _fork(stage)
    assert made.record.start == start
    named = stage.manifest(made.record.log_id)
    assert not named.is_held
    assert all(it.key in world.objects.objects for it in named.entries)


async def test_field_note_50_a_fork_is_made_once_however_often_it_is_asked_for() -> None:
    """By its nonce: the answer of the first request may have been lost."""
    stage = await archived_stage()
    first = await _fork(stage)
    again = await _fork(stage)
    assert (first.is_new, again.is_new) == (True, False)
    assert again.record == first.record
    async with stage.process() as (forks, _):
        with pytest.raises(LogExists):
            await forks.fork("orders", "fork", Offset(40), Asked(replicas=1), nonce="other")
