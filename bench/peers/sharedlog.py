"""sharedlog: three nodes, three replicas, write quorum 2; the client that everyone uses."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path

import sharedlog
from sharedlog.appender import Appender
from sharedlog.dev_cluster import DevCluster
from sharedlog.log import Log
from sharedlog.pending import PendingAppend

_CHUNK_RECORDS = 64


class SharedlogPeer:
    """See `Peer`."""

    name = "sharedlog"

    def __init__(self) -> None:
        self.version = sharedlog.__version__
        self.ack = "written and fsynced by 2 of 3 (write quorum 2)"
        self._stack = AsyncExitStack()
        self._log: Log | None = None

    def missing(self) -> str | None:
        """See `Peer`."""
        if find_spec("lmdb") is None:
            return "the server's packages are missing: pip install 'sharedlog[server]'"
        return None

    async def start(self, directory: Path) -> None:
        """See `Peer`."""
        nodes = await self._stack.enter_async_context(DevCluster(directory, nodes=3))
        cluster = await self._stack.enter_async_context(sharedlog.connect(nodes.address))
        self._log = await cluster.create_log("bench", replicas=3, write_quorum=2)

    async def stop(self) -> None:
        """See `Peer`."""
        self._log = None
        await self._stack.aclose()

    async def append(self, value: bytes) -> None:
        """See `Peer`."""
        assert self._log is not None
        await self._log.append(value)

    async def append_pipelined(
        self,
        value: bytes,
        *,
        until_s: float,
        in_flight: int,  # noqa: ARG002  the appender bounds bytes, not records
    ) -> int:
        """See `Peer`."""
        assert self._log is not None
        acked = 0
        async with self._log.appender() as appender:
            pending: deque[list[PendingAppend]] = deque()
            while time.monotonic() < until_s:
                pending.append(await _append_chunk(appender, value))
                while pending and pending[0][-1].done():
                    acked += _count_acked(pending.popleft())
            await appender.flush()
            acked += sum(map(_count_acked, pending))
        return acked


async def _append_chunk(appender: Appender, value: bytes) -> list[PendingAppend]:
    return await appender.append_many([value] * _CHUNK_RECORDS)


def _count_acked(pending: list[PendingAppend]) -> int:
    """All of them, or the error of one."""
    for one in pending:
        one.result()
    return len(pending)
