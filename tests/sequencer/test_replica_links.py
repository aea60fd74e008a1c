"""The sequencer and its links against log servers that misbehave on command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from random import Random

from prometheus_client import CollectorRegistry

from loglet.messages import (
    CommittedTail,
    Confirmed,
    Stored,
    StoreRefused,
    StoreRequest,
    StoreResponse,
)
from loglet.wire import STORE
from metadata.records import LogRecord, NodeRecord, Replica, Segment
from sequencer.config import SequencerConfig
from sequencer.metrics import SequencerMetrics
from sequencer.service import Sequencer
from sharedlog.batch import encode_records, parse_placement
from sharedlog.clock import SystemClock
from sharedlog.errors import StoreReadOnly, Unreachable
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.limits import BATCH_BYTES_MAX, MIB
from sharedlog.rpc.loopback import Loopback, RoutingTransport
from sharedlog.rpc.transport import ServerStream

ME = SequencerId(NodeId("n1"), Generation(1))
CLOCK = SystemClock()


class ScriptedServer:
    """A log server without a store: acknowledges, has no room, says nothing, or is not there.

    `full`: no room for batches; `refuse`: not even for a loglet's record. With `answers` cleared it
    answers what comes from then on when that is set again.
    """

    def __init__(self) -> None:
        self.mode = "ack"
        self.requests: list[StoreRequest] = []
        self.streams = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self._broken = asyncio.Event()

    async def serve(self, stream: ServerStream[StoreResponse, StoreRequest]) -> None:
        if self.mode == "away":
            raise Unreachable("it is not there")
        self.streams += 1
        self._broken.clear()
        serving = asyncio.ensure_future(self._serve(stream))
        broken = asyncio.ensure_future(self._broken.wait())
        try:
            await asyncio.wait([serving, broken], return_when=asyncio.FIRST_COMPLETED)
        finally:
            serving.cancel()
            broken.cancel()

    def break_streams(self) -> None:
        self._broken.set()

    def batches(self) -> list[bytes]:
        return [placed for request in self.requests for placed in request.batches]

    def opened(self) -> list[LogletId]:
        return [it.loglet for request in self.requests for it in request.opens]

    def told(self) -> list[CommittedTail]:
        return [hint for request in self.requests for hint in request.committed]

    async def _serve(self, stream: ServerStream[StoreResponse, StoreRequest]) -> None:
        greeted = False
        while (request := await stream.receive()) is not None:
            self.requests.append(request)
            answer = StoreResponse()
            if self.mode == "mute" and greeted:
                continue
            greeted = True
            await self.answers.wait()
            for opened in request.opens:
                if self.mode == "refuse":
                    full = StoreReadOnly("full")
                    answer.refused.append(StoreRefused(opened.loglet, opened.base, full))
                else:
                    answer.stored.append(Stored(opened.loglet, opened.base, opened.base))
            for placed in request.batches:
                it = parse_placement(placed)
                if self.mode == "ack":
                    answer.stored.append(Stored(it.loglet, it.first, it.end))
                elif not answer.refused:
                    full = StoreReadOnly("full")
                    answer.refused.append(StoreRefused(it.loglet, it.first, full))
            answer.confirmed = [
                Confirmed(it.loglet, it.round_id, sealed=False) for it in request.confirms
            ]
            await stream.send(answer)


class Bench:
    """A sequencer of one log over three such servers."""

    def __init__(self, config: SequencerConfig) -> None:
        self.servers = [ScriptedServer() for _ in range(3)]
        self.registry = CollectorRegistry()
        names = [NodeId(f"n{number}") for number in (1, 2, 3)]
        loopbacks = {}
        for name, server in zip(names, self.servers, strict=True):
            loopback = loopbacks[f"{name}:1"] = Loopback()
            loopback.add_stream(STORE, server.serve)
        records = {
            name: NodeRecord(
                node_id=name,
                generation=Generation(1),
                storage_id=StorageId(name),
                address=f"{name}:1",
                http_address="",
                location="",
                roles=(),
            )
            for name in names
        }
        replicas = tuple(Replica(node_id=name, storage_id=StorageId(name)) for name in names)
        segment = Segment(index=0, base=Offset(0), sequencer=ME, nodeset=replicas, write_quorum=2)
        self.record = LogRecord(
            log_id=LogId(7),
            name="orders",
            replicas=3,
            write_quorum=2,
            created_ms=0,
            create_nonce="",
            chain=(segment,),
        )
        self.transport = RoutingTransport(loopbacks, Loopback())
        self.sequencer = Sequencer(
            me=ME,
            transport=self.transport,
            directory=records.get,
            clock=CLOCK,
            random=Random(1),
            config=config,
            metrics=SequencerMetrics(self.registry),
        )

    async def append(self, size: int = 10, *, log_id: int = 7) -> int:
        batch = encode_records([(bytes(size), None, None)])
        record = replace(self.record, log_id=LogId(log_id))
        return (await self.sequencer.append(record, batch, timeout_s=10)).first

    def metric(self, name: str, node: str = "n3") -> float:
        found = self.registry.get_sample_value(f"sharedlog_sequencer_{name}", {"node": node})
        return found or 0.0


@asynccontextmanager
async def running(config: SequencerConfig) -> AsyncIterator[Bench]:
    bench = Bench(config)
    run = asyncio.create_task(bench.sequencer.run(), name="sequencer")
    try:
        yield bench
    finally:
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        await bench.transport.close()


async def all_up(bench: Bench) -> None:
    """An append has reached every server."""
    await bench.append()
    async with asyncio.timeout(10):
        while not all(server.batches() for server in bench.servers):
            await CLOCK.sleep(0.005)
    await CLOCK.sleep(0.05)


async def test_a_server_that_refuses_owes_no_answer() -> None:
    """Field note 26: a full disk costs its own log's copies, not the stream that all logs share."""
    async with running(SequencerConfig(silence_max_s=0.3, refused_retry_s=0.1)) as bench:
        await all_up(bench)
        bench.servers[2].mode = "refuse"
        await bench.append()
        await CLOCK.sleep(1.0)
        assert bench.servers[2].streams == 1, "it answered: its stream is kept"
        assert bench.metric("replica_backlog_bytes") == 0
        bench.servers[2].mode = "ack"
        await bench.append()
        await CLOCK.sleep(0.2)
        assert bench.sequencer.status().lagging == {}


async def test_a_full_server_is_not_tried_again_with_every_append() -> None:
    """Field note 28: beyond its bound a server is skipped until it has caught up to half."""
    config = SequencerConfig(replica_bytes_max=BATCH_BYTES_MAX, silence_max_s=60.0)
    async with running(config) as bench:
        await all_up(bench)
        bench.servers[2].mode = "mute"
        for _ in range(8):
            await bench.append(MIB)
        assert bench.metric("replica_skips_total") == 1
        handed_over = len(bench.servers[2].batches())
        opens = sum(len(request.opens) for request in bench.servers[2].requests)
        for _ in range(50):
            await bench.append(100)
        await CLOCK.sleep(0.05)
        assert bench.metric("replica_skips_total") == 1
        assert len(bench.servers[2].batches()) == handed_over
        assert sum(len(request.opens) for request in bench.servers[2].requests) == opens


async def test_what_a_skipped_server_lacks_is_measured() -> None:
    """Field note 31: records and bytes below the committed tail that one replica lacks, by its
    node; what is merely on its way is backlog, and no lack."""
    config = SequencerConfig(replica_bytes_max=BATCH_BYTES_MAX, silence_max_s=60.0)
    async with running(config) as bench:
        await all_up(bench)
        assert bench.metric("replica_lag_records") == 0
        bench.servers[2].mode = "mute"
        for _ in range(8):
            await bench.append(MIB)
        assert bench.metric("replica_backlog_bytes") >= MIB
        assert bench.metric("replica_lagging_logs") == 1
        assert bench.metric("replica_lag_records") == 8
        # By the mean size: one of the nine records was small.
        assert 7 * MIB < bench.metric("replica_lag_bytes") < 8 * MIB
        assert bench.metric("replica_lag_bytes", node="n1") == 0
        for name, value in {"logs": 1, "held_logs": 0, "tail_lag_records": 0}.items():
            assert bench.registry.get_sample_value(f"sharedlog_sequencer_{name}") == value


async def test_a_server_that_comes_back_is_told_the_tail_although_nobody_appends() -> None:
    """Field note 38: the last record stays readable when the servers that knew its tail restart."""
    async with running(SequencerConfig()) as bench:
        await all_up(bench)
        for server in bench.servers:
            server.requests.clear()
            server.break_streams()
        async with asyncio.timeout(10):
            for server in bench.servers:
                while not any(request.committed for request in server.requests):
                    await CLOCK.sleep(0.005)
        assert [hint.tail for hint in bench.servers[0].told()] == [1]


async def told_of(server: ScriptedServer, log_id: int, *, tail: int) -> None:
    """The server has been asked to open the log's loglet, and told what is committed of it."""
    loglet = LogletId(LogId(log_id), 0)
    hint = CommittedTail(loglet, Offset(tail))
    async with asyncio.timeout(10):
        while loglet not in server.opened() or hint not in server.told():
            await CLOCK.sleep(0.005)


async def test_a_server_that_was_away_is_given_a_log_that_rests() -> None:
    """Field note 31: nobody fills an open loglet at a server that never opened it, and the log may
    rest for ever."""
    async with running(SequencerConfig()) as bench:
        late = bench.servers[2]
        late.mode = "away"
        await bench.append()
        await bench.append(log_id=8)
        await bench.append(log_id=8)
        late.mode = "ack"
        await told_of(late, 7, tail=1)
        await told_of(late, 8, tail=2)
        assert not late.batches(), "what it lacks is not the sequencer's to copy"


async def test_a_server_that_could_not_open_a_log_is_asked_again() -> None:
    """Not even a loglet's record had room; there is some later, and the log rests meanwhile. It is
    not asked with every pause: each time costs it a commit."""
    async with running(SequencerConfig(refused_retry_s=0.05)) as bench:
        full = bench.servers[2]
        full.mode = "refuse"
        await bench.append()
        await CLOCK.sleep(0.9)
        assert 1 <= len(full.opened()) <= 2
        full.mode = "ack"
        full.requests.clear()
        await told_of(full, 7, tail=1)


async def test_a_full_server_does_not_look_well_while_a_log_rests() -> None:
    """It would take the log again, as nothing is stored: what it lacks is told, and who watches
    finds it out of step, however seldom is appended."""
    async with running(SequencerConfig(refused_retry_s=0.05)) as bench:
        await all_up(bench)
        full = bench.servers[2]
        full.mode = "full"
        full.requests.clear()
        await bench.append()
        async with asyncio.timeout(10):
            while not full.batches():
                await CLOCK.sleep(0.005)
        for _ in range(10):
            await CLOCK.sleep(0.1)
            assert await bench.sequencer.find_tail(bench.record) == 2
            assert bench.metric("replica_lagging_logs") == 1
        assert not full.opened()


async def test_a_server_that_was_behind_is_given_a_log_that_rests() -> None:
    """One log's backlog left no room for another log's first batch."""
    config = SequencerConfig(replica_bytes_max=BATCH_BYTES_MAX, silence_max_s=60.0)
    async with running(config) as bench:
        await all_up(bench)
        slow = bench.servers[2]
        slow.answers.clear()
        for _ in range(8):
            await bench.append(MIB)
        await bench.append(log_id=8)
        assert bench.metric("replica_lagging_logs") == 2
        slow.answers.set()
        await told_of(slow, 8, tail=1)


async def test_a_log_that_rests_is_opened_before_busy_ones_take_the_room() -> None:
    """What a busy log has in flight fills the link to a server that is back, again and again."""
    config = SequencerConfig(replica_bytes_max=BATCH_BYTES_MAX, silence_max_s=60.0)
    async with running(config) as bench, asyncio.TaskGroup() as tasks:
        _, other, late = bench.servers
        late.mode = "away"
        await bench.append()  # the first on its links
        await bench.append(log_id=8)
        other.answers.clear()
        for _ in range(9):
            tasks.create_task(bench.append(MIB))
        await CLOCK.sleep(0.1)
        late.mode = "mute"
        await told_of(late, 8, tail=1)
        other.answers.set()
