"""The archivist's patience: what it repeats by itself, and how often."""

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
from metadata.records import LogRecord
from node.archive.archivist import Archivist
from node.archive.config import OffloadConfig
from node.archive.metrics import ArchiveMetrics
from node.archive.work import Trimmed
from node.controller.work import WorkBoard
from sharedlog.ids import Generation, NodeId, Offset, SequencerId

ME = SequencerId(NodeId("n1"), Generation(1))


class Node:
    """What the archivist uses of one that orders a log: with no archive, and a log trimmed."""

    def __init__(self) -> None:
        record = World(FaultPlan()).chain.record
        self.record = replace(record, trimmed=Offset(30), start=Offset(30))
        self.waiting: Sequence[NodeId] = [NodeId("n3")]
        self.told_at_s: list[float] = []
        self.has_archive = False

    def logs(self) -> list[tuple[LogRecord, int]]:
        return [(self.record, 1)]

    def committed_tail(self, _: object) -> Offset:
        return Offset(60)

    def record_bytes(self, _: object) -> None:
        return None

    async def known(self, _: str) -> Offset:
        return Offset(60)

    async def tell(self, record: LogRecord, known: Committed) -> Trimmed:
        assert known.tail == 60
        self.told_at_s.append(SimClock().monotonic_s())
        return Trimmed(record=record, below=record.trimmed, waiting=list(self.waiting))


@virtually
async def test_a_log_server_that_is_away_is_told_again_with_growing_pauses() -> None:
    """It costs each of a node's logs a wait, for as long as it is away; then it is told, once."""
    node: Any = Node()

    async def ready() -> None:
        pass

    async def since(_: str, __: int, ___: Offset) -> Offset:
        raise AssertionError("the log has no age")

    archivist = Archivist(
        me=ME,
        view=node,
        sequencer=node,
        tails=node,
        history=node,
        manifests=None,
        since=since,
        metrics=ArchiveMetrics(CollectorRegistry()),
        ready=ready,
        board=WorkBoard(ME.node_id),
        clock=SimClock(),
        random=Random(1),
        config=OffloadConfig(),
    )
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
