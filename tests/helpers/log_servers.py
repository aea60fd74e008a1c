"""Placed batches, and log servers on real disks and real ports, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry

from loglet.config import LogServerConfig
from loglet.lmdb_store import LmdbLogStore
from loglet.messages import (
    OpenLoglet,
    RepairRequest,
    RepairResponse,
    SealRequest,
    SealResponse,
    StoreRequest,
    StoreResponse,
    TellEndsRequest,
    TellEndsResponse,
)
from loglet.metrics import LogServerMetrics
from loglet.service import LogServer
from loglet.store import LogStore
from loglet.wire import REPAIR, SEAL, STORE, TELL_ENDS, loglet_to_proto
from sharedlog.batch import Placement, encode_records, parse_batch_header, place_batch
from sharedlog.clock import SystemClock
from sharedlog.ids import Generation, LogId, LogletId, NodeId, Offset, SequencerId, StorageId
from sharedlog.rpc.grpc_client import GrpcTransport
from sharedlog.rpc.grpc_server import GrpcServer
from sharedlog.rpc.loopback import Loopback
from sharedlog.rpc.methods import (
    DIGEST,
    FIND_TIME,
    LIST_LOGLETS,
    RAISE_COMMITTED_TAIL,
    READ_LOGLET,
    TRIM,
)
from sharedlog.rpc.read_answer import ReadAnswer
from sharedlog.rpc.transport import ClientStream, Transport
from sharedlog.v1 import log_server_pb2

STORAGE = StorageId("a" * 32)
LOGLET = LogletId(LogId(7), 0)
OTHER = LogletId(LogId(8), 3)
ME = SequencerId(NodeId("n1"), Generation(4))
RIVAL = SequencerId(NodeId("n2"), Generation(1))
CLUSTER = "c" * 32

CLOCK = SystemClock()
WAIT_S = 10.0


def placed(
    first: int,
    count: int = 1,
    *,
    loglet: LogletId = LOGLET,
    committed: int = 0,
    text: str = "",
    record_bytes: int = 0,
    timestamp_ms: int | None = None,
) -> bytes:
    """A placed batch of `count` records that say their offsets; `text` tells it from another."""
    values = [f"{loglet}/{first + index}{text}".encode() for index in range(count)]
    batch = encode_records((value.ljust(record_bytes, b"."), None, None) for value in values)
    crc = parse_batch_header(batch).crc32c
    time_ms = 1_000 + first if timestamp_ms is None else timestamp_ms
    placement = Placement(loglet, Offset(first), count, time_ms, Offset(committed), crc)
    return place_batch(placement, batch)


def flipped(data: bytes, at: int) -> bytes:
    """The same with one bit turned over; a negative place counts from the end."""
    damaged = bytearray(data)
    damaged[at] ^= 0x10
    return bytes(damaged)


def request(
    batches: Sequence[bytes] = (),
    *,
    opens: Sequence[OpenLoglet] = (),
    sequencer: SequencerId = ME,
    storage_id: StorageId = STORAGE,
) -> StoreRequest:
    """A store request."""
    return StoreRequest(storage_id, sequencer, list(opens), list(batches))


def opened(loglet: LogletId = LOGLET, base: int = 0) -> OpenLoglet:
    """An entry that opens a loglet."""
    return OpenLoglet(loglet, Offset(base))


def open_store(
    directory: Path,
    *,
    config: LogServerConfig | None = None,
    node_id: str = "n1",
    cluster_id: str = CLUSTER,
    storage_id: str = STORAGE,
) -> LmdbLogStore:
    """A store on disk; made anew if there is none."""
    return LmdbLogStore.open(
        directory,
        node_id=NodeId(node_id),
        cluster_id=cluster_id,
        new_id=lambda: storage_id,
        config=config or LogServerConfig(reserve_bytes=0),
    )


def damage_file(directory: Path, needle: bytes) -> None:
    """Turn over one bit of a closed store's data file wherever it has these bytes.

    LMDB leaves old versions of a page behind, above and below the one that counts.
    """
    path = directory / "data.mdb"
    data = path.read_bytes()
    assert needle in data
    path.write_bytes(data.replace(needle, flipped(needle, 0)))


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds; for what has no event of its own."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await CLOCK.sleep(0.002)


@dataclass(slots=True)
class Served:
    """A log server behind a real gRPC port (or in its own process), and a transport to it."""

    server: LogServer
    store: LogStore
    address: str
    transport: Transport
    registry: CollectorRegistry
    run: asyncio.Task[None]

    @property
    def storage_id(self) -> StorageId:
        return self.server.storage_id

    def metric(self, name: str, **labels: str) -> float:
        """Value of a metric, without the package's prefix."""
        return self.registry.get_sample_value(f"sharedlog_log_server_{name}", labels) or 0.0

    def stores(self) -> ClientStream[StoreRequest, StoreResponse]:
        """A new replication stream."""
        return self.transport.stream(self.address, STORE)

    async def store_all(self, *requests: StoreRequest) -> list[StoreResponse]:
        """Send requests on a stream of their own; all responses until its end."""
        stream = self.stores()
        async with asyncio.timeout(WAIT_S):
            for message in requests:
                await stream.send(message)
            await stream.end()
            found = []
            while (response := await stream.receive()) is not None:
                found.append(response)
        stream.cancel()
        return found

    async def seal(self, loglet: LogletId = LOGLET, base: int = 0) -> SealResponse:
        message = SealRequest(self.storage_id, loglet, Offset(base))
        return await self.transport.call(self.address, SEAL, message, timeout_s=WAIT_S)

    async def repair(
        self, *batches: bytes, loglet: LogletId = LOGLET, committed: int = 0
    ) -> RepairResponse:
        message = RepairRequest(self.storage_id, loglet, Offset(committed), list(batches))
        return await self.transport.call(self.address, REPAIR, message, timeout_s=WAIT_S)

    async def tell_ends(self, *ends: tuple[LogletId, int]) -> TellEndsResponse:
        message = TellEndsRequest(self.storage_id, [(it, Offset(end)) for it, end in ends])
        return await self.transport.call(self.address, TELL_ENDS, message, timeout_s=WAIT_S)

    async def raise_tail(self, tail: int, *, loglet: LogletId = LOGLET) -> None:
        message = log_server_pb2.RaiseCommittedTailRequest(storage_id=self.storage_id)
        message.committed.add(loglet=loglet_to_proto(loglet), tail=tail)
        await self.transport.call(self.address, RAISE_COMMITTED_TAIL, message, timeout_s=WAIT_S)

    async def trim(self, *starts: tuple[LogletId, int]) -> list[log_server_pb2.LogletStatus]:
        message = log_server_pb2.TrimRequest(storage_id=self.storage_id)
        for loglet, start in starts:
            message.loglets.add(loglet=loglet_to_proto(loglet), local_start=start)
        answer = await self.transport.call(self.address, TRIM, message, timeout_s=WAIT_S)
        return list(answer.loglets)

    async def digest(
        self,
        start: int = 0,
        *,
        loglet: LogletId = LOGLET,
        end: int | None = None,
        verify: bool = False,
    ) -> log_server_pb2.DigestResponse:
        """One page."""
        message = log_server_pb2.DigestRequest(
            storage_id=self.storage_id,
            loglet=loglet_to_proto(loglet),
            start=start,
            end=end,
            verify=verify,
        )
        return await self.transport.call(self.address, DIGEST, message, timeout_s=WAIT_S)

    async def list_loglets(self) -> list[log_server_pb2.LogletStatus]:
        message = log_server_pb2.ListLogletsRequest(storage_id=self.storage_id)
        answer = await self.transport.call(self.address, LIST_LOGLETS, message, timeout_s=WAIT_S)
        return list(answer.loglets)

    async def find_time(
        self,
        timestamp_ms: int,
        *,
        loglet: LogletId = LOGLET,
        start: int = 0,
        end: int = 1 << 40,
        segment_end: int | None = None,
    ) -> log_server_pb2.FindTimeResponse:
        message = log_server_pb2.FindTimeRequest(
            storage_id=self.storage_id,
            loglet=loglet_to_proto(loglet),
            timestamp_ms=timestamp_ms,
            start=start,
            end=end,
            segment_end=segment_end,
        )
        return await self.transport.call(self.address, FIND_TIME, message, timeout_s=WAIT_S)

    async def read(
        self,
        start: int = 0,
        *,
        loglet: LogletId = LOGLET,
        end: int | None = None,
        segment_end: int | None = None,
        no_wait: bool = False,
        for_repair: bool = False,
        headers_only: bool = False,
        key_digest: int | None = None,
        include_control: bool = False,
    ) -> ClientStream[log_server_pb2.ReadLogletRequest, ReadAnswer]:
        """A new read stream."""
        stream = self.transport.stream(self.address, READ_LOGLET)
        message = log_server_pb2.ReadLogletRequest(
            storage_id=self.storage_id,
            loglet=loglet_to_proto(loglet),
            start=start,
            end=end,
            segment_end=segment_end,
            no_wait=no_wait,
            for_repair=for_repair,
            headers_only=headers_only,
            key_digest=key_digest,
            include_control=include_control,
        )
        await stream.send(message)
        return stream


@asynccontextmanager
async def serve(
    store: LogStore, config: LogServerConfig | None = None, *, loopback: bool = False
) -> AsyncIterator[Served]:
    """A log server over this store, on a free port or in-process; closes the store at the end."""
    registry = CollectorRegistry()
    server = LogServer(
        node_id=NodeId("n1"),
        store=store,
        clock=CLOCK,
        config=config or LogServerConfig(),
        metrics=LogServerMetrics(registry),
    )
    grpc_server = GrpcServer()
    transport: Loopback | GrpcTransport
    if loopback:
        address, transport = "local", Loopback()
        server.register(transport)
    else:
        server.register(grpc_server)
        address = f"127.0.0.1:{await grpc_server.start('127.0.0.1:0')}"
        transport = GrpcTransport()
    run = asyncio.create_task(server.run(), name="log-server")
    try:
        yield Served(server, store, address, transport, registry, run)
    finally:
        await transport.close()
        if not loopback:
            await grpc_server.stop(grace_s=0)
        run.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await run
        await store.close()
