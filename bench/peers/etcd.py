"""etcd: three members; a put is a record.

A put is acknowledged when a majority has fsynced it to its write-ahead log, which is etcd's default
and the same promise as ours. Each put has a key of its own, as a log has an offset. The client is
connected to the leader, so that no put is forwarded.

etcd has no call that streams puts, so "pipelined" is many concurrent calls on one connection. An
application may also pack puts into transactions by hand, at most 128 in one by default; that is
measured too and told apart (`batched_records_per_s`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import grpc

from bench.peers import etcd_wire
from bench.peers.base import HOW_TO_INSTALL
from bench.peers.processes import (
    START_SECONDS_MAX,
    PeerFailed,
    ServerProcess,
    find_binary,
    free_ports,
    start_process,
    stop_all,
)

_BINARY = "etcd"
_NODES = 3
TXN_PUTS_MAX = 128
"""etcd's default for `--max-txn-ops`."""
_TXNS_IN_FLIGHT = 8
_CHANNEL_OPTIONS = (("grpc.enable_http_proxy", 0),)
_PUT_SECONDS_MAX = 10.0


BytesCall = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]


def _bytes_call(channel: grpc.aio.Channel, path: str) -> BytesCall:
    """A call whose messages are encoded by us: gRPC passes them on as they are."""
    found: BytesCall = channel.unary_unary(path)
    return found


class EtcdPeer:
    """See `Peer`."""

    name = "etcd"

    def __init__(self) -> None:
        self.version = ""
        self.ack = "written and fsynced by a majority of 3 (Raft log)"
        self._servers: list[ServerProcess] = []
        self._channel: grpc.aio.Channel | None = None
        self._calls: dict[str, BytesCall] = {}
        self._keys: Iterator[bytes] = map(b"bench/%012d".__mod__, count())

    def missing(self) -> str | None:
        """See `Peer`."""
        return None if find_binary(_BINARY) else f"no {_BINARY} here: {HOW_TO_INSTALL}"

    async def start(self, directory: Path) -> None:
        """See `Peer`."""
        binary = find_binary(_BINARY)
        assert binary is not None, "start is called only if nothing is missing"
        ports = free_ports(2 * _NODES)
        clients = [f"http://127.0.0.1:{port}" for port in ports[:_NODES]]
        peers = [f"http://127.0.0.1:{port}" for port in ports[_NODES:]]
        members = ",".join(f"n{index + 1}={peer}" for index, peer in enumerate(peers))
        for index in range(_NODES):
            name = f"n{index + 1}"
            settings = {
                "name": name,
                "data-dir": str(directory / name),
                "listen-client-urls": clients[index],
                "advertise-client-urls": clients[index],
                "listen-peer-urls": peers[index],
                "initial-advertise-peer-urls": peers[index],
                "initial-cluster": members,
                "initial-cluster-state": "new",
                "quota-backend-bytes": str(8 * 1024**3),
                "logger": "zap",
                "log-level": "error",
            }
            arguments = [f"--{key}={value}" for key, value in settings.items()]
            self._servers.append(await start_process(name, [binary, *arguments], directory))
        await self._connect_to_leader(ports[:_NODES])

    async def stop(self) -> None:
        """See `Peer`."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        await stop_all(self._servers)

    async def append(self, value: bytes) -> None:
        """See `Peer`."""
        await self._call(etcd_wire.PUT_PATH, etcd_wire.encode_put(next(self._keys), value))

    async def append_pipelined(self, value: bytes, *, until_s: float, in_flight: int) -> int:
        """See `Peer`."""
        acked = 0

        async def put_on() -> None:
            nonlocal acked
            while time.monotonic() < until_s:
                await self.append(value)
                acked += 1

        async with asyncio.TaskGroup() as group:
            for index in range(in_flight):
                group.create_task(put_on(), name=f"put-{index}")
        return acked

    async def append_batched(self, value: bytes, *, until_s: float) -> int:
        """As `append_pipelined`, in transactions of as many puts as etcd takes by default."""
        acked = 0

        async def put_on() -> None:
            nonlocal acked
            while time.monotonic() < until_s:
                entries = [(next(self._keys), value) for _ in range(TXN_PUTS_MAX)]
                request = etcd_wire.encode_put_txn(entries)
                answer = await self._call(etcd_wire.TXN_PATH, request)
                assert etcd_wire.decode_txn_succeeded(answer)
                acked += TXN_PUTS_MAX

        async with asyncio.TaskGroup() as group:
            for index in range(_TXNS_IN_FLIGHT):
                group.create_task(put_on(), name=f"txn-{index}")
        return acked

    async def _connect_to_leader(self, ports: list[int]) -> None:
        """Ask every member until one says that it leads, and stay with that one."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            for port in ports:
                channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=_CHANNEL_OPTIONS)
                try:
                    status = await _bytes_call(channel, etcd_wire.STATUS_PATH)(b"", timeout=1.0)
                except grpc.aio.AioRpcError:
                    await channel.close()
                    continue
                self.version, member, leader = etcd_wire.decode_status(status)
                if member == leader != 0:
                    self._channel = channel
                    self._calls = {
                        path: _bytes_call(channel, path)
                        for path in (etcd_wire.PUT_PATH, etcd_wire.TXN_PATH)
                    }
                    return
                await channel.close()
            for server in self._servers:
                server.check_alive()
            if time.monotonic() > deadline:
                raise PeerFailed(f"etcd elected no leader; see {self._servers[0].log}")
            await asyncio.sleep(0.05)

    async def _call(self, path: str, request: bytes) -> bytes:
        try:
            answer: bytes = await self._calls[path](request, timeout=_PUT_SECONDS_MAX)
        except grpc.aio.AioRpcError as error:
            raise PeerFailed(f"etcd refused an append: {error.details()}") from error
        return answer
