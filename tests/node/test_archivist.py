"""The archivist: which logs it archives, what it repeats by itself, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from helpers.archive_world import World
from helpers.care_parts import virtually
from helpers.memory_objects import FaultPlan
from helpers.sim import SimClock
from prometheus_client import CollectorRegistry

from metadata.archive_rules import Committed
from metadata.records import LogRecord, NodeRecord, Replica
from node.archive.archivist import Archivist
from node.archive.config import OffloadConfig
from node.archive.metrics import ArchiveMetrics
from node.archive.responsible import TAKE_OVER_S, archiver_of
from node.archive.work import Trimmed
from node.controller.work import WorkBoard
from sharedlog.ids import Generation, LogId, NodeId, Offset, SequencerId, StorageId

ME = SequencerId(NodeId("n1"), Generation(1))


def three_members() -> LogRecord:
    """A log that n1 orders."""
    record = World(FaultPlan()).chain.record
    nodeset = tuple(
        Replica(node_id=NodeId(f"n{at}"), storage_id=StorageId(f"s{at}")) for at in (1, 2, 3)
    )
    return replace(record, chain=(replace(record.chain[-1], nodeset=nodeset),))


class Node:
    """What the archivist uses of one that orders a log: with no archive, and a log trimmed."""

    def __init__(self) -> None:
        self.record = replace(three_members(), trimmed=Offset(30), start=Offset(30))
        self.waiting: Sequence[NodeId] = [NodeId("n3")]
        self.told_at_s: list[float] = []
        self.has_archive = False
        self.offloads_at_s: list[float] = []
        self.tail: Offset | None = Offset(60)

    def logs(self) -> list[tuple[LogRecord, int]]:
        return [(self.record, 1)]

    def committed_tail(self, _: object) -> Offset | None:
        return self.tail

    def record_bytes(self, _: object) -> None:
        return None

    async def known(self, _: str) -> Offset:
        return Offset(60)

    async def offload(self, record: LogRecord, *_: object, **__: object) -> LogRecord:
        self.offloads_at_s.append(SimClock().monotonic_s())
        await asyncio.sleep(1)
        return record

    async def tell(self, record: LogRecord, known: Committed) -> Trimmed:
        assert known.tail == 60
        self.told_at_s.append(SimClock().monotonic_s())
        return Trimmed(record=record, below=record.trimmed, waiting=list(self.waiting))


async def _nothing() -> None:
    pass


async def _since(_: str, __: int, ___: Offset) -> Offset:
    raise AssertionError("the log has no age")


def archivist_of(
    node: Any, *, me: SequencerId = ME, usable: Sequence[NodeRecord] = ()
) -> Archivist:
    return Archivist(
        me=me,
        view=node,
        sequencer=node,
        log_server=node,
        usable=lambda: usable,
        tails=node,
        history=node,
        manifests=None,
        since=_since,
        metrics=ArchiveMetrics(CollectorRegistry()),
        ready=_nothing,
        board=WorkBoard(me.node_id),
        clock=SimClock(),
        random=Random(1),
        config=OffloadConfig(offload_after_s=1.0),
    )


@virtually
async def test_a_log_server_that_is_away_is_told_again_with_growing_pauses() -> None:
    """It costs each of a node's logs a wait, for as long as it is away; then it is told, once."""
    node: Any = Node()
    archivist = archivist_of(node)
    running = asyncio.create_task(archivist.run())
    await asyncio.sleep(600)
    assert 8 < len(node.told_at_s) < 25
    assert node.told_at_s[1] - node.told_at_s[0] < 4
    node.waiting = []
    await asyncio.sleep(120)
    told = len(node.told_at_s)
    await asyncio.sleep(600)
    assert len(node.told_at_s) == told, "all know"
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


def nodes_of(record: LogRecord) -> list[NodeRecord]:
    """The members of its open segment, all well."""
    return [
        NodeRecord(
            node_id=it.node_id,
            generation=Generation(1),
            storage_id=it.storage_id,
            address="",
            http_address="",
            location="",
            roles=("log-server", "sequencer"),
        )
        for it in record.open_segment.nodeset
    ]


def test_a_log_is_archived_by_a_member_that_does_not_order_it() -> None:
    """By the same one for all who know the same; logs are spread; and if there is none, by who
    orders it. A node with another store than the nodeset names is no member."""
    record = three_members()
    orders = record.open_segment.sequencer.node_id
    members = {(it.node_id, it.storage_id) for it in record.open_segment.nodeset}
    others = {it for it, _ in members} - {orders}
    spread = {
        archiver_of(replace(record, log_id=LogId(record.log_id + at)), members) for at in range(10)
    }
    assert spread == others
    for able in others:
        only = {(it, storage) for it, storage in members if it in {orders, able}}
        assert archiver_of(record, only) == able
    assert archiver_of(record, {(it, StorageId("new")) for it, _ in members}) == orders
    assert archiver_of(record, ()) == orders


async def offloads(me: SequencerId, seconds: float) -> list[float]:
    """When a node archives the log of three members that it orders, or does not."""
    node: Any = Node()
    node.has_archive = True
    archivist = archivist_of(node, me=me, usable=nodes_of(node.record))
    running = asyncio.create_task(archivist.run())
    began_s = SimClock().monotonic_s()
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return [at_s - began_s for at_s in node.offloads_at_s]


@virtually
async def test_who_orders_a_log_takes_over_from_a_member_that_does_not_archive_it() -> None:
    record = Node().record
    able = [(it.node_id, it.storage_id) for it in nodes_of(record)]
    archiver = archiver_of(record, able)
    assert archiver != ME.node_id == record.open_segment.sequencer.node_id
    assert min(await offloads(SequencerId(archiver, Generation(1)), 10)) < 5
    idle = next(it for it, _ in able if it not in {archiver, ME.node_id})
    assert await offloads(SequencerId(idle, Generation(1)), 100) == []
    assert TAKE_OVER_S <= min(await offloads(ME, 100)) < TAKE_OVER_S + 10


@virtually
async def test_a_log_that_rests_after_a_move_is_archived_to_its_end() -> None:
    """What came before the move was not seen by the archivist, and nobody has appended since: it
    is known only by where the new segment begins."""
    node: Any = Node()
    node.has_archive = True
    node.record = replace(node.record, archived_end=Offset(60), trimmed=Offset(0), start=Offset(0))
    archivist = archivist_of(node)
    running = asyncio.create_task(archivist.run())
    await asyncio.sleep(2 * TAKE_OVER_S)
    assert node.offloads_at_s == []
    ended = replace(node.record.chain[-1], end=Offset(61))
    opened = replace(ended, index=ended.index + 1, base=Offset(61), end=None)
    node.record = replace(node.record, chain=(ended, opened))
    node.tail = None
    await asyncio.sleep(2 * TAKE_OVER_S)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert node.offloads_at_s
