"""Redis Streams: one server, every command's log written and fsynced before its answer.

One server only: the replication of Redis is asynchronous, and version 7.0 can't wait for a
replica's fsync. So this is the price of one fsync on one disk, without any copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from pathlib import Path

from bench.peers.base import HOW_TO_INSTALL, drive_pipeline
from bench.peers.processes import (
    PeerFailed,
    ServerProcess,
    connect_when_ready,
    find_binary,
    free_ports,
    start_process,
    stop_all,
)
from bench.peers.resp import ReplyError, ReplyParser, encode_command

_READ_BYTES = 256 * 1024
_BINARY = "redis-server"


class RedisPeer:
    """See `Peer`."""

    name = "redis"

    def __init__(self) -> None:
        self.version = ""
        self.ack = "written and fsynced by 1 of 1 (appendfsync always); no replica"
        self._servers: list[ServerProcess] = []
        self._parser = ReplyParser()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def missing(self) -> str | None:
        """See `Peer`."""
        return None if find_binary(_BINARY) else f"no {_BINARY} here: {HOW_TO_INSTALL}"

    async def start(self, directory: Path) -> None:
        """See `Peer`."""
        binary = find_binary(_BINARY)
        assert binary is not None, "start is called only if nothing is missing"
        (port,) = free_ports(1)
        settings = {
            "port": str(port),
            "bind": "127.0.0.1",
            "dir": str(directory),
            "appendonly": "yes",
            "appendfsync": "always",
            # No rewriting of the log in the middle of a measurement.
            "auto-aof-rewrite-percentage": "0",
            "save": "",
        }
        arguments = [word for key, value in settings.items() for word in (f"--{key}", value)]
        server = await start_process("redis", [binary, *arguments], directory)
        self._servers.append(server)
        self._reader, self._writer = await connect_when_ready(port, server)
        self._parser = ReplyParser()
        info = await self._command(b"INFO", b"server")
        found = re.search(rb"redis_version:(\S+)", info)
        self.version = found[1].decode() if found else "?"
        fsync = await self._command(b"CONFIG", b"GET", b"appendfsync")
        if b"always" not in fsync:
            raise PeerFailed("redis does not fsync each write")

    async def stop(self) -> None:
        """See `Peer`."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await stop_all(self._servers)

    async def append(self, value: bytes) -> None:
        """See `Peer`."""
        await self._command(b"XADD", b"bench", b"*", b"v", value)

    async def append_pipelined(self, value: bytes, *, until_s: float, in_flight: int) -> int:
        """See `Peer`."""
        assert self._writer is not None
        command = encode_command(b"XADD", b"bench", b"*", b"v", value)
        writer = self._writer

        async def send(count: int) -> None:
            writer.write(command * count)
            await writer.drain()

        return await drive_pipeline(in_flight, until_s, send, self._read_acks)

    async def _read_acks(self) -> int:
        assert self._reader is not None
        data = await self._reader.read(_READ_BYTES)
        if not data:
            raise PeerFailed("redis closed the connection")
        replies = self._parser.feed(data)
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise PeerFailed(f"redis refused an append: {reply}")
        return len(replies)

    async def _command(self, *words: bytes) -> bytes:
        """Send one command; returns its reply, an array's items joined."""
        assert self._reader is not None
        assert self._writer is not None
        self._writer.write(encode_command(*words))
        while True:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise PeerFailed("redis closed the connection")
            for reply in self._parser.feed(data):
                match reply:
                    case bytes():
                        return reply
                    case list():
                        return b" ".join(item for item in reply if isinstance(item, bytes))
                    case _:
                        raise PeerFailed(f"redis answered {words[0]!r} with {reply!r}")
