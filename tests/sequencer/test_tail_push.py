"""When a log server is told the committed tail (ADR 5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from random import Random

from prometheus_client import CollectorRegistry

from loglet.messages import Stored, StoreRequest, StoreResponse
from loglet.wire import STORE
from metadata.records import NodeRecord, Replica
from sequencer.config import SequencerConfig
from sequencer.core import InFlight
from sequencer.link import ReplicaLink
from sequencer.metrics import SequencerMetrics
from sharedlog.clock import SystemClock
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.transport import ServerStream

LOGLET = LogletId(LogId(7), 0)
NODE = NodeId("n2")


class Listener:
    """Hears from the link."""

    def __init__(self) -> None:
        self.up = asyncio.Event()
        self.answered = asyncio.Event()

    def on_link_up(self, link: ReplicaLink) -> None:
        self.up.set()

    def on_link_down(self, link: ReplicaLink) -> None:
        pass

    def on_link_room(self, link: ReplicaLink) -> None:
        pass

    def on_response(self, link: ReplicaLink, response: StoreResponse) -> None:
        self.answered.set()


class Server:
    """Acknowledges the batch [0, 1), watched or not, and keeps the tails that it is told."""

    def __init__(self, *, watched: bool) -> None:
        self.watched = watched
        self.tails: list[Offset] = []
        self.told = asyncio.Event()

    async def serve(self, stream: ServerStream[StoreResponse, StoreRequest]) -> None:
        while (request := await stream.receive()) is not None:
            for hint in request.committed:
                self.tails.append(hint.tail)
                self.told.set()
            if request.batches:
                stored = Stored(LOGLET, Offset(0), Offset(1), watched=self.watched)
                await stream.send(StoreResponse([stored]))
            elif not request.committed:
                await stream.send(StoreResponse())


@asynccontextmanager
async def linked(server: Server, config: SequencerConfig) -> AsyncIterator[ReplicaLink]:
    """A link that has stored one batch at the server."""
    loopback, listener = Loopback(), Listener()
    loopback.add_stream(STORE, server.serve)
    record = NodeRecord(
        node_id=NODE,
        generation=Generation(1),
        storage_id=StorageId("s"),
        address="n2:1",
        http_address="",
        location="",
        roles=(),
    )
    link = ReplicaLink(
        Replica(node_id=NODE, storage_id=StorageId("s")),
        me=SequencerId(NodeId("n1"), Generation(1)),
        transport=loopback,
        directory=lambda _: record,
        clock=SystemClock(),
        random=Random(1),
        config=config,
        metrics=SequencerMetrics(CollectorRegistry()),
        listener=listener,
    )
    run = asyncio.create_task(link.run(), name="link")
    try:
        await listener.up.wait()
        assert link.offer(LOGLET, InFlight(Offset(0), Offset(1), 1, b"x", None))
        await listener.answered.wait()
        yield link
    finally:
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        await loopback.close()


async def test_where_somebody_reads_the_tail_is_pushed_at_once() -> None:
    """Field notes 38, 39: a reader never waits for the next append, nor for a timer."""
    server = Server(watched=True)
    async with linked(server, SequencerConfig(tail_push_delay_s=3_600.0)) as link:
        link.publish(LOGLET, Offset(1))
        await asyncio.wait_for(server.told.wait(), 5)
        assert server.tails == [1]


async def test_where_nobody_reads_the_tail_rides_on_the_next_batch() -> None:
    server = Server(watched=False)
    async with linked(server, SequencerConfig(tail_push_delay_s=3_600.0)) as link:
        link.publish(LOGLET, Offset(1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert server.tails == [], "no message of its own"
        link.offer(LOGLET, InFlight(Offset(1), Offset(2), 1, b"x", None))
        await asyncio.wait_for(server.told.wait(), 5)
        assert server.tails == [1]


async def test_where_nobody_reads_the_tail_of_an_idle_writer_still_comes() -> None:
    """Field note 38: an idle writer's last record becomes readable without another append."""
    server = Server(watched=False)
    async with linked(server, SequencerConfig(tail_push_delay_s=0.01)) as link:
        link.publish(LOGLET, Offset(1))
        await asyncio.wait_for(server.told.wait(), 5)
        assert server.tails == [1]
