"""NATS JetStream: three servers, a stream of three replicas on files.

From version 2.10 a server can fsync each write before it acknowledges (`sync_interval: always`),
and then it does here. Debian 12's 2.9 can't: there an acknowledged record lies in the page caches
of a majority and is fsynced within two minutes, a weaker promise; the `ack` text says which.
(The setting covers the Raft log itself only since nats-server's change #6041 of October 2024.)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from bench.peers.base import HOW_TO_INSTALL, drive_pipeline
from bench.peers.nats_wire import (
    CONNECT,
    PING,
    PONG,
    Event,
    EventParser,
    Info,
    Message,
    Ping,
    Pong,
    ServerError,
    encode_publish,
    encode_subscribe,
)
from bench.peers.processes import (
    START_SECONDS_MAX,
    PeerFailed,
    ServerProcess,
    connect_when_ready,
    find_binary,
    free_ports,
    start_process,
    stop_all,
)

_BINARY = "nats-server"
_NODES = 3
_READ_BYTES = 256 * 1024
_INBOX = b"_INBOX.bench"
_SUBJECT = b"bench.records"
_STREAM = {
    "name": "BENCH",
    "subjects": [_SUBJECT.decode()],
    "storage": "file",
    "num_replicas": _NODES,
    "retention": "limits",
    "discard": "old",
}
_ACK_FSYNC = "written and fsynced by a majority of 3 (sync_interval: always)"
_ACK_PAGE_CACHE = (
    "written to the page cache by a majority of 3, NOT fsynced (within 2 minutes; "
    "this version has no fsync before the ack)"
)


class NatsClient:
    """One connection: requests in turn, or a stream of publishes whose acks are counted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._parser = EventParser()
        self._events: list[Event] = []
        self.version = ""

    async def open(self) -> None:
        """Greet, subscribe to the answers, and wait until the server has taken both."""
        self._writer.write(CONNECT + encode_subscribe(_INBOX, 1) + PING)
        while True:
            for event in await self._receive():
                if isinstance(event, Info):
                    self.version = str(json.loads(event.body)["version"])
                elif isinstance(event, Pong):
                    return

    async def close(self) -> None:
        """Hang up."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def request(self, subject: bytes, payload: bytes) -> bytes:
        """Publish and wait for the one answer."""
        self._writer.write(encode_publish(subject, payload, _INBOX))
        while True:
            for event in await self._receive():
                if isinstance(event, Message):
                    return event.payload

    async def write(self, data: bytes) -> None:
        """Send encoded publishes."""
        self._writer.write(data)
        await self._writer.drain()

    async def read_acks(self) -> int:
        """Wait for acknowledgements of publishes; how many came."""
        count = 0
        for event in await self._receive():
            if isinstance(event, Message):
                check_publish_ack(event.payload)
                count += 1
        return count

    async def _receive(self) -> list[Event]:
        data = await self._reader.read(_READ_BYTES)
        if not data:
            raise PeerFailed("nats closed the connection")
        events = self._parser.feed(data)
        for event in events:
            if isinstance(event, Ping):
                self._writer.write(PONG)
            elif isinstance(event, ServerError):
                raise PeerFailed(f"nats: {event.text}")
        return events


def check_publish_ack(payload: bytes) -> None:
    """Raise `PeerFailed` if the answer to a publish is not an acknowledgement."""
    if not payload.startswith(b'{"stream":') or b'"error"' in payload:
        raise PeerFailed(f"nats refused an append: {payload[:200]!r}")


class NatsPeer:
    """See `Peer`."""

    name = "nats-jetstream"

    def __init__(self) -> None:
        self.version = ""
        self.ack = _ACK_FSYNC
        self._servers: list[ServerProcess] = []
        self._ports: list[int] = []
        self._client: NatsClient | None = None

    def missing(self) -> str | None:
        """See `Peer`."""
        return None if find_binary(_BINARY) else f"no {_BINARY} here: {HOW_TO_INSTALL}"

    async def start(self, directory: Path) -> None:
        """See `Peer`."""
        binary = find_binary(_BINARY)
        assert binary is not None, "start is called only if nothing is missing"
        fsync = await _takes_sync_always(binary, directory)
        self.ack = _ACK_FSYNC if fsync else _ACK_PAGE_CACHE
        ports = free_ports(2 * _NODES)
        self._ports = ports[:_NODES]
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in ports[_NODES:])
        for index in range(_NODES):
            name = f"n{index + 1}"
            config = directory / f"{name}.conf"
            config.write_text(
                f"server_name: {name}\nlisten: 127.0.0.1:{ports[index]}\n"
                + _jetstream_config(directory / name, fsync=fsync)
                + f"cluster {{ name: bench, listen: 127.0.0.1:{ports[_NODES + index]}, "
                + f"routes: [{routes}] }}\n"
            )
            self._servers.append(await start_process(name, [binary, "-c", str(config)], directory))
        await self._connect(0)
        leader = await self._create_stream()
        if leader != "n1":
            # The stream's leader is asked directly: no hop that a well-placed client avoids.
            await self._connect(int(leader.removeprefix("n")) - 1)

    async def stop(self) -> None:
        """See `Peer`."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        await stop_all(self._servers)

    async def append(self, value: bytes) -> None:
        """See `Peer`."""
        assert self._client is not None
        check_publish_ack(await self._client.request(_SUBJECT, value))

    async def append_pipelined(self, value: bytes, *, until_s: float, in_flight: int) -> int:
        """See `Peer`."""
        assert self._client is not None
        client = self._client
        publish = encode_publish(_SUBJECT, value, _INBOX)

        async def send(count: int) -> None:
            await client.write(publish * count)

        return await drive_pipeline(in_flight, until_s, send, client.read_acks)

    async def _connect(self, index: int) -> None:
        if self._client is not None:
            await self._client.close()
        streams = await connect_when_ready(self._ports[index], self._servers[index])
        self._client = NatsClient(*streams)
        await self._client.open()
        self.version = self._client.version

    async def _create_stream(self) -> str:
        """Create the stream, once the cluster has a leader; returns the stream's leader."""
        assert self._client is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        payload = json.dumps(_STREAM).encode()
        while True:
            for server in self._servers:
                server.check_alive()
            try:
                async with asyncio.timeout(2.0):
                    raw = await self._client.request(b"$JS.API.STREAM.CREATE.BENCH", payload)
            except TimeoutError:
                raw = b'{"error": {"description": "no answer"}}'
            answer: dict[str, Any] = json.loads(raw or b'{"error": {"description": "nobody"}}')
            cluster = answer.get("cluster", {})
            replicas = cluster.get("replicas", [])
            if cluster.get("leader") and all(replica.get("current") for replica in replicas):
                assert len(replicas) == _NODES - 1
                return str(cluster["leader"])
            if time.monotonic() > deadline:
                raise PeerFailed(f"nats did not create the stream: {answer.get('error', answer)}")
            await asyncio.sleep(0.1)


def _jetstream_config(directory: Path, *, fsync: bool) -> str:
    sync = ", sync_interval: always" if fsync else ""
    return f"jetstream {{ store_dir: {json.dumps(str(directory))}, max_file: 32GB{sync} }}\n"


async def _takes_sync_always(binary: str, directory: Path) -> bool:
    """Whether this version knows how to fsync before the acknowledgement: let it check a config."""
    probe = directory / "probe.conf"
    probe.write_text(_jetstream_config(directory / "probe", fsync=True))
    process = await asyncio.create_subprocess_exec(
        *(binary, "-t", "-c", str(probe)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait() == 0
