"""The way in, for threads: `connect` and what one can ask of a cluster. See `sharedlog.cluster`."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from random import Random
from types import TracebackType
from typing import Self

from sharedlog import cluster as aio
from sharedlog import log as aio_log
from sharedlog.batch import Record
from sharedlog.clock import Clock
from sharedlog.cluster import Routing
from sharedlog.config import AppenderConfig, ClientConfig, ReaderConfig
from sharedlog.rpc.transport import Transport
from sharedlog.starts import EARLIEST, Start
from sharedlog.sync.admin import Admin
from sharedlog.sync.bridge import Bridge
from sharedlog.sync.facade import Facade, blocking, direct, iterating
from sharedlog.sync.log import Log
from sharedlog.sync.namespaces import Namespaces


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

    Use it as `with sharedlog.sync.connect("127.0.0.1:4100") as cluster`. No I/O happens yet, but
    the thread that serves all clusters of the process is started. A `transport` that is given is
    not closed with the cluster.

    Raises:
        InvalidArgument: an address is not host:port, or `routing` is unknown, or the process was
        forked from one that had connected.
    """
    inner = aio.connect(
        address,
        routing=routing,
        transport=transport,
        clock=clock,
        rng=rng,
        config=config,
        append_config=append_config,
        read_config=read_config,
    )
    return Cluster(Bridge(inner), inner)


def _log(cluster: Cluster, inner: aio_log.Log) -> Log:
    return cluster._logs.setdefault(inner, Log(cluster._bridge, inner))  # noqa: SLF001  # its own


class Cluster(Facade[aio.Cluster]):
    """A cluster of nodes. Made by `connect`; for any number of threads.

    Of a process that forks, only the one that made it may use it: in a child each call is an error.
    """

    def __init__(self, bridge: Bridge, inner: aio.Cluster) -> None:
        super().__init__(bridge, inner)
        # One object per log, so that all who ask for a name have the same.
        self._logs: dict[aio_log.Log, Log] = {}
        self.admin = Admin(bridge, inner.admin)
        self.namespaces = Namespaces(bridge, inner.namespaces)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(drop=error is not None and not isinstance(error, Exception))

    def close(self, *, drop: bool = False) -> None:
        """End all sessions and connections. Appenders still open are dropped: close them before.

        `drop` does not even wait for what `Log.append` has under way. Readers of other threads end
        as `Unreachable`. Idempotent.

        **An interrupt:** drops what is left.
        """
        self._bridge.close(drop=drop)

    log = direct(aio.Cluster.log, into=_log)
    create_log = blocking(aio.Cluster.create_log, into=_log)
    set_retention = blocking(aio.Cluster.set_retention)
    list_logs = blocking(aio.Cluster.list_logs)
    list_page = blocking(aio.Cluster.list_page)
    iter_logs = iterating(aio.Cluster.iter_logs)
    describe_log = blocking(aio.Cluster.describe_log)
    nodes = blocking(aio.Cluster.nodes)
    status = blocking(aio.Cluster.status)

    def read_many(
        self,
        logs: Iterable[str | Log],
        *,
        start: Start | Mapping[str, Start] = EARLIEST,
        follow: bool = False,
    ) -> Generator[tuple[str, Record], None, None]:
        """Records of several logs as one sequence: the name of its log with each record.

        See `sharedlog.Cluster.read_many`, which has the order and what is raised.
        """
        names = [it if isinstance(it, str) else it.name for it in logs]
        yield from _read_many(self, names, start=start, follow=follow)


_read_many = iterating(aio.Cluster.read_many)
