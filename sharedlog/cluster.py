"""The way in: `connect`, and what one can ask of a cluster as a whole."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self

from sharedlog.admin import Admin
from sharedlog.batch import Record
from sharedlog.clock import Clock, SystemClock
from sharedlog.config import AppenderConfig, ClientConfig, ReaderConfig
from sharedlog.connection import Connection, parse_addresses
from sharedlog.errors import InvalidArgument
from sharedlog.limits import LIST_PAGE_MAX, READ_MANY_MAX
from sharedlog.log import Log
from sharedlog.namespaces import Namespaces
from sharedlog.retention import Retention
from sharedlog.retention_proto import asked_to_proto
from sharedlog.rpc.methods import (
    CREATE_LOG,
    DESCRIBE_LOG,
    GET_NODES,
    GET_STATUS,
    LIST_LOGS,
    SET_RETENTION,
)
from sharedlog.rpc.transport import Transport
from sharedlog.starts import EARLIEST, Start
from sharedlog.v1 import cluster_pb2, log_pb2, types_pb2

Routing = Literal["smart", "plain"]
"""`smart` goes straight to the sequencer and the log servers and so must reach every node; `plain`
sends everything through the given addresses."""

_CLOSED_AT_ONCE: Final = 64


def connect(
    address: str | Sequence[str],
    *,
    routing: Routing = "smart",
    transport: Transport | None = None,
    clock: Clock | None = None,
    rng: Random | None = None,
    config: ClientConfig | None = None,
    append_config: AppenderConfig | None = None,
    read_config: ReaderConfig | None = None,
) -> Cluster:
    """A cluster, by the address of one or more of its nodes: "host:port,host:port" or a sequence.

    Use it as `async with sharedlog.connect("127.0.0.1:4100") as cluster`. No I/O happens yet. A
    `transport` that is given is not closed with the cluster.

    Raises:
        InvalidArgument: an address is not host:port, or `routing` is unknown.
    """
    if routing not in ("smart", "plain"):
        raise InvalidArgument(f"routing is {routing!r}; it must be 'smart' or 'plain'")
    owned = transport is None
    if transport is None:
        from sharedlog.rpc.grpc_client import GrpcTransport  # late: a simulator needs no gRPC

        transport = GrpcTransport()
    connection = Connection(
        transport,
        parse_addresses(address),
        clock=clock or SystemClock(),
        rng=rng or Random(),
        smart=routing == "smart",
        config=config or ClientConfig(),
    )
    return Cluster(
        connection,
        append_config=append_config or AppenderConfig(),
        read_config=read_config or ReaderConfig(),
        owns_transport=owned,
    )


class LogPage(NamedTuple):
    """A part of a listing."""

    logs: Sequence[types_pb2.LogSummary]
    """In order of their names."""
    next_after: str | None
    """What to give as `after` for the next page; None: there are no more."""


class Cluster:
    """A cluster of nodes. Made by `connect`; for one event loop and any number of its tasks."""

    def __init__(
        self,
        connection: Connection,
        *,
        append_config: AppenderConfig,
        read_config: ReaderConfig,
        owns_transport: bool,
    ) -> None:
        self._connection = connection
        self._append_config = append_config
        self._read_config = read_config
        self._owns_transport = owns_transport
        # One object per name that is in use, so that all its users share a session: whoever holds
        # it, and an append under way, keeps it alive. By name, and whether it is to be made.
        self._logs: weakref.WeakValueDictionary[tuple[str, bool], Log]
        self._logs = weakref.WeakValueDictionary()
        # The last that were asked for, in that order; for those who ask again and hold nothing.
        # Invariant: at most `logs_kept_max`.
        self._recent: dict[tuple[str, bool], Log] = {}
        self.admin = Admin(connection)
        self.namespaces = Namespaces(connection)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close(drop=error is not None and not isinstance(error, Exception))

    async def close(self, *, drop: bool = False) -> None:
        """End all sessions and connections. Appenders still open are dropped: close them before.

        So are cursors. `drop` does not even wait for what `Log.append` has under way.
        """
        try:
            if not drop:
                await self._close_logs()
        finally:
            self._recent.clear()
            self._logs.clear()
            connection = self._connection
            for part in (*connection.open_cursors, *connection.open_appenders):
                await part.abort()
            if self._owns_transport:
                await connection.transport.close()

    async def _close_logs(self) -> None:
        places = asyncio.Semaphore(_CLOSED_AT_ONCE)

        async def close(log: Log) -> None:
            async with places:
                await log.close()

        async with asyncio.TaskGroup() as tasks:
            for log in list(self._logs.values()):
                tasks.create_task(close(log), name=f"close {log.name}")

    def log(self, name: str, *, create: bool = False) -> Log:
        """The log of this name. No I/O: whether it exists shows at the first use.

        With `create` the first append makes it if it does not exist, with what its namespaces say
        (`Cluster.namespaces`); two at once make one. Nothing else makes it: a read raises
        `LogNotFound` until then.
        """
        key = name, create
        found = self._recent.pop(key, None) or self._logs.get(key)
        if found is None:
            found = self._logs[key] = Log(
                self._connection,
                name,
                append_config=self._append_config,
                read_config=self._read_config,
                create=create,
            )
        self._recent[key] = found
        if len(self._recent) > self._connection.config.logs_kept_max:
            del self._recent[next(iter(self._recent))]
        return found

    async def create_log(
        self,
        name: str,
        replicas: int | None = None,
        write_quorum: int | None = None,
        *,
        spread: Mapping[str, int] | None = None,
        near: str | None = None,
        retention: Retention | None = None,
    ) -> Log:
        """Create a log; `replicas` copies, of which `write_quorum` make an append durable.

        `spread` maps "zone", "region" or "node" to how many of them each append must be on before
        it is acknowledged. `near` is where the log's writers are, a location or its beginning, e.g.
        "eu-1.zone-a": a node there orders it, if any can.

        None, also in the fields of `retention`, takes what the log's namespaces say
        (`Cluster.namespaces`), or else the cluster's default, the majority of the replicas, no
        spread, nowhere in particular, and no limit to what is kept.

        Raises:
            LogExists: a log of this name exists.
            InvalidLogName, InvalidArgument: the name, or the numbers, can't be.
            LogUnavailable: too few log servers are up.
            MetadataUnavailable, Unreachable: it may have been created.
        """
        if (replicas is not None and replicas < 1) or (
            write_quorum is not None and write_quorum < 1
        ):
            raise InvalidArgument("replicas and write_quorum must be 1 or more")
        request = log_pb2.CreateLogRequest(
            name=name,
            replicas=replicas or 0,
            write_quorum=write_quorum or 0,
            spread=spread,
            set_spread=spread is not None,
            near=near,
            retention=asked_to_proto(retention),
            nonce=self._nonce(),
        )
        answer = await self._connection.call(CREATE_LOG, request)
        log = self.log(name)
        log.learn(answer.log)
        return log

    async def set_retention(self, name: str, retention: Retention) -> types_pb2.LogDescription:
        """Set how long a log keeps its records; returns the log as it is now, its open segment.

        Fields that are None stay as they are, 0 is no limit. What is over a limit by then goes
        soon, not at once.

        Raises:
            LogNotFound: there is none of this name.
            InvalidArgument: an amount can't be, or with what is set already the ages can't.
            MetadataUnavailable, Unreachable: it may or may not be done.

        **Cancellation:** it may or may not be done.
        """
        request = log_pb2.SetRetentionRequest(
            name=name, retention=asked_to_proto(retention), nonce=self._nonce()
        )
        return (await self._connection.call(SET_RETENTION, request)).log

    def _nonce(self) -> str:
        return f"{self._connection.rng.getrandbits(128):032x}"

    async def list_logs(self, prefix: str = "") -> list[types_pb2.LogDescription]:
        """All logs whose names start with `prefix`, in order, each with its open segment.

        Of many logs `iter_logs` gives less of each, and holds fewer.
        """
        found: list[types_pb2.LogDescription] = []
        more = True
        while more:
            after = found[-1].name if found else ""
            request = log_pb2.ListLogsRequest(prefix=prefix, limit=LIST_PAGE_MAX, after=after)
            page = await self._connection.call(LIST_LOGS, request)
            found.extend(page.logs)
            more = page.more and len(page.logs) > 0
        return found

    async def list_page(
        self, prefix: str = "", *, after: str = "", limit: int = LIST_PAGE_MAX
    ) -> LogPage:
        """At most `limit` logs whose names start with `prefix` and come after `after`, in short.

        As the asked node knows them: one that was created a moment ago may be missing.

        Raises:
            InvalidArgument: `limit` is not from 1 to 1,000. Unreachable: no node answers.
        """
        if not 1 <= limit <= LIST_PAGE_MAX:
            raise InvalidArgument(f"limit is {limit}; it must be from 1 to {LIST_PAGE_MAX:,}")
        request = log_pb2.ListLogsRequest(prefix=prefix, limit=limit, after=after, summaries=True)
        page = await self._connection.call(LIST_LOGS, request)
        return LogPage(page.summaries, page.summaries[-1].name if page.more else None)

    async def iter_logs(self, prefix: str = "") -> AsyncGenerator[types_pb2.LogSummary, None]:
        """All logs whose names start with `prefix`, in order of their names, page by page.

        Raises what `list_page` raises.
        """
        after: str | None = ""
        while after is not None:
            page = await self.list_page(prefix, after=after)
            for log in page.logs:
                yield log
            after = page.next_after

    def read_many(
        self,
        logs: Iterable[str | Log],
        *,
        start: Start | Mapping[str, Start] = EARLIEST,
        follow: bool = False,
    ) -> AsyncGenerator[tuple[str, Record], None]:
        """Records of several logs as one sequence: the name of its log with each record.

        Each log's records come in their order, every one once. Those of different logs come in the
        order of their timestamps, and of their names where these are equal. `start` is one for all,
        or for each by name; a log that is not named there is read from its start. Ends at the logs'
        tails as they are when it starts, and then the order is exact.

        With `follow` it goes on for ever. What was there when it started is merged exactly. From
        then on a record is handed out once each other log has a later one, or has been read up to a
        tail that was asked for after the record had come. So whatever was acknowledged before that
        moment comes before it, if its timestamp is smaller. What is appended to another log later
        comes later, even if the clock of that log's sequencer is behind; and a log whose tail can't
        be told holds up the others for a second, then they go on without it until it is heard of.

        Holds some 4 MiB of values, or one batch, of each log at a time, and reads on as they are
        taken.

        Raises:
            InvalidArgument: a log is given twice, or more than `READ_MANY_MAX` (64) are, or `start`
            names another. What `Log.read` raises, for the first log whose read fails; nothing is
            handed out after that.

        **Cancellation:** ends the reads. After leaving the loop early, `aclose` ends them at once.
        """
        from sharedlog.merged_reads import MergedReads  # late: most programs read one log at a time

        found = [it if isinstance(it, Log) else self.log(it) for it in logs]
        by_name = {log.name: log for log in found}
        if len(by_name) < len(found):
            raise InvalidArgument("a log is given twice")
        if len(found) > READ_MANY_MAX:
            raise InvalidArgument(f"{len(found)} logs are too many; {READ_MANY_MAX} are merged")
        given = start if isinstance(start, Mapping) else dict.fromkeys(by_name, start)
        if unknown := sorted(given.keys() - by_name.keys()):
            raise InvalidArgument(f"start names {unknown[0]!r}, which is not to be read")
        starts: dict[str, Start] = {name: given.get(name, EARLIEST) for name in by_name}
        reads = MergedReads(by_name, starts, follow=follow, clock=self._connection.clock)
        return reads.records()

    async def describe_log(self, name: str) -> types_pb2.LogDescription:
        """One log: its configuration, its chain and its nodes.

        Raises:
            LogNotFound: there is none of this name.
        """
        request = log_pb2.DescribeLogRequest(name=name)
        return (await self._connection.call(DESCRIBE_LOG, request)).log

    async def nodes(self) -> list[types_pb2.NodeAddress]:
        """The cluster's nodes, as the asked node knows them."""
        answer = await self._connection.call(GET_NODES, cluster_pb2.GetNodesRequest())
        self._connection.learn(node.address for node in answer.nodes if node.address)
        return list(answer.nodes)

    async def status(self, *, local_only: bool = False) -> cluster_pb2.GetStatusResponse:
        """Problems, nodes and logs; `local_only`: of the asked node alone."""
        request = cluster_pb2.GetStatusRequest(local_only=local_only)
        return await self._connection.call(GET_STATUS, request)
