"""Sequencers over three real log servers in one process, their sessions, and a hand-made chain.

What a node's reconfiguration does is done here by hand: seal, take the highest tail of a sealed
majority, repair by telling (nothing has to be copied, or the test says so), extend the chain.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from helpers.log_servers import CLOCK, WAIT_S, open_store
from prometheus_client import CollectorRegistry

from loglet.config import LogServerConfig
from loglet.messages import SealRequest, SealResponse
from loglet.metrics import LogServerMetrics
from loglet.service import LogServer
from loglet.wire import SEAL, STORE
from metadata.records import LogRecord, NodeRecord, Replica, Segment
from sequencer.config import SequencerConfig
from sequencer.metrics import SequencerMetrics
from sequencer.service import Sequencer
from sharedlog.batch import BatchBuilder, BatchProducer
from sharedlog.control import producer_id_of
from sharedlog.errors import SharedLogError, Unreachable
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.errors import error_from_proto
from sharedlog.rpc.loopback import Loopback, LoopbackStream, RoutingTransport
from sharedlog.rpc.methods import APPEND_SESSION, READ_LOGLET
from sharedlog.rpc.session_request import SessionRequest
from sharedlog.rpc.transport import ClientStream, Method, ServerStream
from sharedlog.v1 import log_pb2, log_server_pb2

NAMES = tuple(NodeId(f"n{number}") for number in (1, 2, 3))
LOG_ID = LogId(7)


class Doors(Loopback):
    """A log server's: a test can hold back its acknowledgements, and refuse its reads."""

    def __init__(self) -> None:
        super().__init__()
        self.acks = asyncio.Event()
        self.acks.set()
        self.refuse_reads = False
        self.reads: list[log_server_pb2.ReadLogletRequest] = []

    def add_stream(self, method: Method[Any, Any], handler: Any) -> None:
        async def read(stream: ServerStream[Any, Any]) -> None:
            if self.refuse_reads:
                raise Unreachable("refused by the test")
            await handler(_Noted(stream, self.reads))

        if method is STORE:
            super().add_stream(method, lambda stream: handler(_Held(stream, self.acks)))
        elif method is READ_LOGLET:
            super().add_stream(method, read)
        else:
            super().add_stream(method, handler)


class _Held:
    """A replication stream whose answers, but the greeting's, wait; what it stores is stored."""

    def __init__(self, stream: ServerStream[Any, Any], acks: asyncio.Event) -> None:
        self._stream = stream
        self._acks = acks
        self._greeted = False

    async def send(self, message: Any) -> None:
        if self._greeted:
            await self._acks.wait()
        self._greeted = True
        await self._stream.send(message)

    async def receive(self) -> Any:
        return await self._stream.receive()


class _Noted:
    """A read stream whose request is noted."""

    def __init__(self, stream: ServerStream[Any, Any], noted: list[Any]) -> None:
        self._stream = stream
        self._noted = noted

    async def send(self, message: Any) -> None:
        await self._stream.send(message)

    async def receive(self) -> Any:
        message = await self._stream.receive()
        if message is not None:
            self._noted.append(message)
        return message


class Listener:
    """Notes what the sequencer asks for."""

    def __init__(self) -> None:
        self.sealed: list[tuple[str, LogletId]] = []
        self.away: list[list[NodeId]] = []

    def on_sealed(self, name: str, loglet: LogletId) -> None:
        self.sealed.append((name, loglet))

    def on_replicas_away(self, name: str, loglet: LogletId, node_ids: Sequence[NodeId]) -> None:
        assert name == "orders"
        self.away.append(list(node_ids))


@dataclass
class Process:
    """One sequencer process, and the door to its sessions."""

    sequencer: Sequencer
    listener: Listener
    registry: CollectorRegistry
    door: Loopback
    record: LogRecord  # the chain by which its sessions are served

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(f"sharedlog_sequencer_{name}") or 0.0


class Session:
    """A client's side of one append session."""

    def __init__(self, stream: ClientStream[Any, Any], producer: int) -> None:
        self.stream = stream
        self.producer = producer
        self.opened = log_pb2.AppendSessionOpened()
        self.moved: log_pb2.SessionMoved | None = None
        self._results: list[log_pb2.AppendResult] = []

    async def send(
        self, *sequences: int, records: int = 1, epoch: int = 0, **conditions: Any
    ) -> None:
        """Batches; `conditions` are fields of `AppendSessionRequest`."""
        for sequence in sequences:
            data = batch(self.producer, sequence, records=records, epoch=epoch)
            await self.stream.send(SessionRequest(batch=data, **conditions))

    async def results(self, count: int) -> list[int | str]:
        """The next results: an offset, or the name of an error."""
        async with asyncio.timeout(WAIT_S):
            while len(self._results) < count:
                await self._receive()
        taken, self._results = self._results[:count], self._results[count:]
        return [_outcome(it) for it in taken]

    async def refusal(self) -> SharedLogError:
        """The next result, which must be an error."""
        async with asyncio.timeout(WAIT_S):
            while not self._results:
                await self._receive()
        return error_from_proto(self._results.pop(0).error)

    async def rest(self) -> list[int | str]:
        """All results to the end of the stream, which must end well; `moved` is set if it came."""
        async with asyncio.timeout(WAIT_S):
            while await self._receive():
                pass
        taken, self._results = self._results, []
        return [_outcome(it) for it in taken]

    async def error(self) -> SharedLogError:
        """How the stream ends, which must be badly."""
        try:
            rest = await self.rest()
        except SharedLogError as error:
            return error
        raise AssertionError(f"the session ended well, with {rest} and {self.moved}")

    def lose(self) -> None:
        """The connection breaks."""
        self.stream.cancel()

    async def _receive(self) -> bool:
        message = await self.stream.receive()
        if message is None:
            return False
        assert self.moved is None, "moved is the last message"
        if message.HasField("opened"):
            self.opened = message.opened
        if message.HasField("moved"):
            self.moved = message.moved
        self._results += message.results
        return True


def batch(producer: int, sequence: int, *, records: int = 1, epoch: int = 0) -> bytes:
    """A batch, the same each time."""
    builder = BatchBuilder()
    for record in range(records):
        builder.append(f"{producer}/{sequence}/{record}".encode())
    return builder.encode(BatchProducer(producer, epoch, sequence))


def _outcome(result: log_pb2.AppendResult) -> int | str:
    if result.HasField("error"):
        return type(error_from_proto(result.error)).__name__
    return result.first_offset


class Cluster:
    """Three log servers, and sequencer processes n1, n2, n3 that share them."""

    def __init__(self, doors: dict[NodeId, Doors], config: SequencerConfig) -> None:
        self.doors = doors
        self.transport = RoutingTransport(
            {f"{name}:1": door for name, door in doors.items()}, Loopback()
        )
        self.nodes = {
            name: NodeRecord(
                node_id=name,
                generation=Generation(1),
                storage_id=_storage(name),
                address=f"{name}:1",
                http_address="",
                location="",
                roles=(),
            )
            for name in doors
        }
        self.config = config
        self.processes: dict[str, Process] = {}
        replicas = tuple(Replica(node_id=name, storage_id=_storage(name)) for name in doors)
        self.record = LogRecord(
            log_id=LOG_ID,
            name="orders",
            replicas=3,
            write_quorum=2,
            created_ms=0,
            create_nonce="",
            chain=(
                Segment(
                    index=0,
                    base=Offset(0),
                    sequencer=sequencer_id("n1"),
                    nodeset=replicas,
                    write_quorum=2,
                ),
            ),
        )
        self.version = 1
        self.runs: list[asyncio.Task[None]] = []
        self._sessions: list[Session] = []

    def add(self, name: str, tasks: asyncio.TaskGroup) -> Process:
        registry, listener, door = CollectorRegistry(), Listener(), Loopback()
        sequencer = Sequencer(
            me=sequencer_id(name),
            transport=self.transport,
            directory=self.nodes.get,
            clock=CLOCK,
            random=Random(1),
            config=self.config,
            metrics=SequencerMetrics(registry),
            listener=listener,
        )
        process = Process(sequencer, listener, registry, door, self.record)

        async def serve(stream: ServerStream[Any, Any]) -> None:
            opening = await stream.receive()
            assert opening is not None
            await sequencer.serve_session(
                stream, process.record, opening.open, chain_version=self.version
            )

        door.add_stream(APPEND_SESSION, serve)
        self.runs.append(tasks.create_task(sequencer.run(), name=f"sequencer {name}"))
        self.processes[name] = process
        return process

    def __getitem__(self, name: str) -> Process:
        return self.processes[name]

    async def ask(
        self,
        name: str,
        producer: int,
        sequence: int = 0,
        *,
        resolve_from: int | None = None,
        epoch: int = 0,
        called: str = "",
    ) -> Session:
        """Ask for a session, without waiting until it is open."""
        producer = producer_id_of(called) if called else producer
        stream: LoopbackStream[Any, Any] = self.processes[name].door.stream(name, APPEND_SESSION)  # type: ignore[assignment] # a loopback's streams are these
        session = Session(stream, producer)
        self._sessions.append(session)
        opening = log_pb2.AppendSessionOpen(
            log="orders",
            producer_id=producer,
            producer_epoch=epoch,
            next_sequence=sequence,
            producer_name=called,
        )
        if resolve_from is not None:
            opening.unresolved, opening.resolve_from = True, resolve_from
        await stream.send(SessionRequest(open=opening))
        return session

    async def session(
        self,
        name: str,
        producer: int,
        sequence: int = 0,
        *,
        resolve_from: int | None = None,
        epoch: int = 0,
        called: str = "",
    ) -> Session:
        """An open session; `called`: of a named producer."""
        session = await self.ask(
            name, producer, sequence, resolve_from=resolve_from, epoch=epoch, called=called
        )
        async with asyncio.timeout(WAIT_S):
            await session._receive()
        assert session.opened.sequencer.node_id == name
        return session

    async def seal(self, *names: str) -> list[SealResponse]:
        """Seal the open loglet at these log servers, or at all."""
        segment = self.record.open_segment
        loglet = self.record.loglet(segment)
        answers = []
        for name in names or tuple(self.doors):
            request = SealRequest(_storage(name), loglet, segment.base)
            door = self.doors[NodeId(name)]
            answers.append(await door.call(name, SEAL, request, timeout_s=WAIT_S))
        return answers

    def extend(self, sequencer: str, end: int, *, timestamp_ms: int = 0) -> LogRecord:
        """End the open segment there and begin the next. Nobody is told."""
        segment = self.record.open_segment
        following = replace(
            segment,
            index=segment.index + 1,
            base=Offset(end),
            sequencer=sequencer_id(sequencer),
            timestamp_ms=timestamp_ms,
        )
        closed = replace(segment, end=Offset(end))
        kept = (closed,) if end > segment.base else ()
        chain = (*self.record.chain[:-1], *kept, following)
        self.record = replace(self.record, chain=chain)
        self.version += 1
        return self.record

    async def move(self, sequencer: str) -> Offset:
        """Seal everywhere and extend at the highest tail; the new sequencer's sessions know."""
        answers = await self.seal()
        end = max(answer.local_tail for answer in answers)
        self.extend(sequencer, end, timestamp_ms=max(it.last_timestamp_ms for it in answers))
        self.processes[sequencer].record = self.record
        return end

    def tell(self, *names: str) -> None:
        """Tell these processes of the chain, or all."""
        for name in names or tuple(self.processes):
            self.processes[name].sequencer.on_chain(self.record, self.version)

    async def close(self) -> None:
        """End everything."""
        for session in self._sessions:
            session.lose()
        for process in self.processes.values():
            await process.door.close()
        await self.transport.close()
        for run in self.runs:
            run.cancel()

    def hold_acks(self, *names: str) -> None:
        """Let nothing be heard from these log servers' stores, or from any."""
        for name in names or tuple(self.doors):
            self.doors[NodeId(name)].acks.clear()

    def release_acks(self) -> None:
        for door in self.doors.values():
            door.acks.set()


def sequencer_id(name: str) -> SequencerId:
    """The first life of a node."""
    return SequencerId(NodeId(name), Generation(1))


def _storage(name: str) -> StorageId:
    return StorageId(name.ljust(32, "0"))


@asynccontextmanager
async def cluster(directory: Path, config: SequencerConfig | None = None) -> AsyncIterator[Cluster]:
    """Running log servers, and the processes n1 and n2; the log is n1's."""
    doors = {name: Doors() for name in NAMES}
    stores = [
        open_store(directory / name, node_id=name, storage_id=_storage(name)) for name in NAMES
    ]
    servers = [
        LogServer(
            node_id=name,
            store=store,
            clock=CLOCK,
            config=LogServerConfig(reserve_bytes=0),
            metrics=LogServerMetrics(CollectorRegistry()),
        )
        for name, store in zip(NAMES, stores, strict=True)
    ]
    for server, door in zip(servers, doors.values(), strict=True):
        server.register(door)
    made = Cluster(doors, config or SequencerConfig())
    async with asyncio.TaskGroup() as tasks:
        made.runs += [tasks.create_task(it.run(), name="log server") for it in servers]
        made.add("n1", tasks)
        made.add("n2", tasks)
        await asyncio.sleep(0)
        try:
            yield made
        finally:
            await made.close()
    for store in stores:
        await store.close()
