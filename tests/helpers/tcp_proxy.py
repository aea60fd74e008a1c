"""A TCP proxy before a server: what is said can be delayed, go unheard, or be cut off.

async with TcpProxy("127.0.0.1:2379") as proxy:
    proxy.deafen()      # requests arrive and are carried out, no answer comes back
    ...                 # proxy.address is for the client
    await proxy.cut()   # connections break, new ones are taken and work
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Self

HOST = "127.0.0.1"


class TcpProxy:
    """See the module's docstring."""

    def __init__(self, target: str) -> None:
        self._target_host, _, port = target.rpartition(":")
        self._target_port = int(port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._deaf = False
        self.delay_s = 0.0
        """Of what the server says."""
        self.address = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.address = f"{HOST}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()
        while self._pumps:
            await asyncio.wait(set(self._pumps))
        await self._server.wait_closed()

    def deafen(self) -> None:
        """From now on what the server says gets lost on the connections that there are."""
        self._deaf = True

    async def cut(self) -> None:
        """Break all connections; those that are made from now on are not deaf."""
        for writer in self._writers:
            writer.transport.abort()
        self._deaf = False
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pumps.add(task)
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError):
                await self._join(reader, writer)
        finally:
            self._writers.discard(writer)
            self._pumps.discard(task)
            writer.transport.abort()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, to_server = await asyncio.open_connection(self._target_host, self._target_port)
        self._writers.add(to_server)
        try:
            async with asyncio.TaskGroup() as group:
                asking = group.create_task(_pump(reader, to_server))
                answering = group.create_task(self._answer(there, writer))
                await asyncio.wait({asking, answering}, return_when=asyncio.FIRST_COMPLETED)
                asking.cancel()
                answering.cancel()
        finally:
            self._writers.discard(to_server)
            to_server.transport.abort()

    async def _answer(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await there.read(65_536):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if not self._deaf:
                    writer.write(data)
                    await writer.drain()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def proxies(targets: Sequence[str]) -> AsyncGenerator[list[TcpProxy], None]:
    """One before each of several servers."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(TcpProxy(target)) for target in targets]
