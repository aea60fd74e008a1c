"""A whole cluster on this machine, as child processes: for development, tests and benchmarks.

    async with DevCluster(Path("data")) as cluster:
        async with sharedlog.connect(cluster.address) as client: ...

One process holds the metadata, so that *any* node can be killed, unless it is kept in a store that
runs elsewhere; one process per node holds every other role. All listen on 127.0.0.1 only.
Directory layout:

    dev.lock          held while a cluster runs here; names its pid
    metadata/         the metadata store
    n1/, n2/, ...     a node's data
    n1.toml, ...      a node's configuration, rewritten at each start
    logs/n1.log, ...  what the process wrote to stdout and stderr (or in `log_to`)

The children never outlive this process, even if it dies by SIGKILL (`sharedlog/dev_child.py`). They
are in process groups of their own, so Ctrl-C in a terminal reaches this process alone, which then
stops them in order.

This module starts programs of the server packages by name and imports none of them.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from sharedlog.clock import Clock, SystemClock
from sharedlog.dev_network import DevNetwork
from sharedlog.tasks import first_error

HOST: Final = "127.0.0.1"
METADATA: Final = "metadata"
"""Name of the metadata process, where a node's name is taken."""

NODES_MAX: Final = 50
HTTP_PORT_DISTANCE: Final = 100
"""A node's HTTP port lies so far above its gRPC port, when ports are not chosen freely."""

PAGE_CACHE_BYTES: Final = 64 * 1024 * 1024
"""Of each node's store: three on one machine must not fill its memory with three copies."""

NETWORK_PORT: Final = 4100
"""Of every process in a network of its own."""

START_TIMEOUT_S: Final = 30.0
STOP_GRACE_S: Final = 12.0
"""Longer than a node may take to hand over its logs."""
POLL_S: Final = 0.02

_SYSTEM_CLOCK: Final = SystemClock()


class DevClusterError(RuntimeError):
    """The cluster can't be started, or a process of it; `str(error)` is one line for a person."""


@dataclass(slots=True)
class DevNode:
    """One process of the cluster; what is said here stays true when it is killed and restarted."""

    node_id: str
    address: str
    """host:port of its gRPC server."""
    http_address: str
    """host:port of metrics and health checks; empty for the metadata process."""
    directory: Path
    log_file: Path
    pid: int | None = None
    """None while it does not run."""
    command: list[str] = field(default_factory=list, repr=False)


class DevCluster:
    """Starts on enter, stops on exit; see the module for what it starts.

    Args:
        directory: Where everything is kept; made if missing. Data of an earlier run is taken up.
        nodes: So many nodes, named n1, n2, ...
        base_port: First node's port; the next ones follow, the metadata process has the port below,
            HTTP the ports 100 above. 0 takes free ports.
        log_to: Directory of the log files, instead of `directory/logs`.
        settings: Further SHAREDLOG_* environment of the nodes. No other SHAREDLOG_* variable of
            this process reaches them.
        archive: Where the history of logs goes: file:///FOLDER, which must exist, or
            s3://BUCKET/PREFIX. "": logs are kept on log servers alone.
        locations: Of the nodes, by name, e.g. {"n1": "eu.zone-a"}.
        metadata_url: Of a metadata store that runs elsewhere, e.g. etcd://127.0.0.1:2379/dev.
            "": a process of the cluster keeps the metadata.
        network: Where the processes live, if not on loopback: one that can be cut.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 3,
        base_port: int = 0,
        log_to: Path | None = None,
        settings: Mapping[str, str] = {},
        archive: str = "",
        locations: Mapping[str, str] = {},
        metadata_url: str = "",
        network: DevNetwork | None = None,
        clock: Clock = _SYSTEM_CLOCK,
    ) -> None:
        if not 1 <= nodes <= NODES_MAX:
            raise DevClusterError(
                f"a cluster of {nodes} nodes: from 1 to {NODES_MAX} can be started"
            )
        self.directory = directory.absolute()
        self.log_directory = (log_to or self.directory / "logs").absolute()
        self.nodes: dict[str, DevNode] = {}
        self._count = nodes
        self._base_port = base_port
        self._settings = dict(settings)
        self._archive = archive
        self._locations = dict(locations)
        self._metadata_url = metadata_url
        self._network = network
        self._clock = clock
        self._metadata: DevNode | None = None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # Processes that ended without being told to: name -> return code.
        self._died: dict[str, int] = {}
        self._reserved: list[socket.socket] = []
        self._lock: IO[str] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    @property
    def address(self) -> str:
        """host:port of the first node."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """host:port of every node, running or not."""
        return [node.address for node in self.nodes.values()]

    @property
    def metadata(self) -> DevNode:
        """The metadata process; `kill` and `restart` take its `node_id` too.

        There is none if the metadata is kept elsewhere: see `processes`.
        """
        assert self._metadata is not None, "the cluster was not started, or has none"
        return self._metadata

    @property
    def processes(self) -> list[DevNode]:
        """The nodes, then the metadata process if there is one."""
        return [*self.nodes.values(), *([self._metadata] if self._metadata else [])]

    async def start(self) -> None:
        """Start everything; return when every node is ready.

        Raises:
            DevClusterError: The directory or a port is in use, or a process does not become ready.
                All that was started is stopped.

        **Cancellation:** stops what was started.
        """
        try:
            self._lock = _lock_directory(self.directory)
            self.log_directory.mkdir(parents=True, exist_ok=True)
            self._lay_out()
            if self._metadata is not None:
                await self._start_ready(self._metadata)
            async with asyncio.TaskGroup() as group:
                for node in self.nodes.values():
                    group.create_task(self._start_ready(node), name=f"start-{node.node_id}")
        except BaseExceptionGroup as errors:
            self._release()
            raise first_error(errors) from None
        except BaseException:
            self._release()
            raise

    def kill(self, node_id: str) -> None:
        """SIGKILL a process and wait for its end. Nothing happens if it does not run."""
        process = self._processes.pop(node_id, None)
        if process is not None:
            _reap(process)
        self._died.pop(node_id, None)
        self._node(node_id).pid = None

    def send_signal(self, node_id: str, number: signal.Signals) -> None:
        """Send a signal to a process that runs, e.g. SIGSTOP, SIGCONT, SIGTERM."""
        process = self._processes.get(node_id)
        if process is None:
            raise DevClusterError(f"{node_id} does not run")
        process.send_signal(number)

    async def terminate(self, node_id: str) -> None:
        """SIGTERM a process and wait for its end; SIGKILL after a grace."""
        await self._terminate([node_id])

    async def restart(self, node_id: str) -> None:
        """Start a process again, at the same address and directory; return when it is ready.

        A process that runs is stopped by SIGTERM first.

        Raises:
            DevClusterError: It does not become ready.
        """
        await self._terminate([node_id])
        self._died.pop(node_id, None)
        await self._start_ready(self._node(node_id))

    async def stop(self) -> None:
        """SIGTERM to all, SIGKILL after a grace; the nodes first, then the metadata. Idempotent.

        **Cancellation:** kills at once whatever still runs.
        """
        try:
            await self._terminate(list(self.nodes))
            await self._terminate([METADATA])
        finally:
            self._release()

    def take_died(self) -> dict[str, int]:
        """Processes that ended by themselves since the last call: name -> return code."""
        for name, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                _reap(process)
                del self._processes[name]
                self._died[name] = code
                self._node(name).pid = None
        died, self._died = self._died, {}
        return died

    def _node(self, name: str) -> DevNode:
        if name == METADATA and self._metadata is not None:
            return self._metadata
        if name not in self.nodes:
            raise DevClusterError(f"there is no node {name!r}: {', '.join(self.nodes)}")
        return self.nodes[name]

    def _lay_out(self) -> None:
        """Choose the ports, write the configuration files, say what will be run where."""
        ports, http_ports, metadata_port = self._choose_ports()
        metadata_url = self._metadata_url or self._lay_out_metadata(metadata_port)
        for index, (port, http_port) in enumerate(zip(ports, http_ports, strict=True)):
            name = f"n{index + 1}"
            node = self._make_node(name, port, f"{self._host(name)}:{http_port}")
            config = self.directory / f"{name}.toml"
            location = self._locations.get(name, "")
            text = _node_toml(node, metadata_url, location, self._archive)
            config.write_text(text, encoding="utf-8")
            node.command = self._command(name, "node", "--config", str(config))
            self.nodes[node.node_id] = node

    def _lay_out_metadata(self, port: int) -> str:
        """Its URL."""
        node = self._metadata = self._make_node(METADATA, port, "")
        place = ["--listen", node.address, "--dir", str(node.directory)]
        node.command = self._command(METADATA, "metadata", *place)
        return f"embedded://{node.address}"

    def _make_node(self, name: str, port: int, http_address: str) -> DevNode:
        return DevNode(
            node_id=name,
            address=f"{self._host(name)}:{port}",
            http_address=http_address,
            directory=self.directory / name,
            log_file=self.log_directory / f"{name}.log",
        )

    def _host(self, name: str) -> str:
        return HOST if self._network is None else self._network.host(name)

    def _command(self, name: str, module: str, *arguments: str) -> list[str]:
        prefix = [] if self._network is None else self._network.command(name)
        return [*prefix, *_python_module(module, *arguments)]

    def _choose_ports(self) -> tuple[list[int], list[int], int]:
        if self._network is not None:  # each process has all ports of its host to itself
            return [NETWORK_PORT] * self._count, [NETWORK_PORT + 1] * self._count, NETWORK_PORT
        if self._base_port == 0:
            self._reserved = _reserve_free_ports(2 * self._count + 1)
            free = [reserved.getsockname()[1] for reserved in self._reserved]
            return free[: self._count], free[self._count : -1], free[-1]
        ports = [self._base_port + index for index in range(self._count)]
        http_ports = [port + HTTP_PORT_DISTANCE for port in ports]
        for port in (*ports, *http_ports, self._base_port - 1):
            _check_free(port)
        return ports, http_ports, self._base_port - 1

    async def _start_ready(self, node: DevNode) -> None:
        log_start = node.log_file.stat().st_size if node.log_file.exists() else 0
        node.directory.mkdir(parents=True, exist_ok=True)
        with node.log_file.open("ab") as log_file:
            process = subprocess.Popen(  # noqa: ASYNC220, S603  # takes a millisecond; our own modules
                node.command,
                stdin=subprocess.PIPE,  # never written: its end is this process's end
                stdout=log_file,
                stderr=log_file,
                cwd=self.directory,
                env=module_environment() | self._settings,
                process_group=0,
            )
        self._processes[node.node_id] = process
        node.pid = process.pid
        deadline = self._clock.monotonic_s() + START_TIMEOUT_S
        while not await self._is_ready(node, log_start):
            if process.poll() is not None:
                self.kill(node.node_id)
                raise DevClusterError(
                    f"{node.node_id} ended at its start: {_last_words(node.log_file, log_start)}"
                )
            if self._clock.monotonic_s() > deadline:
                self.kill(node.node_id)
                raise DevClusterError(
                    f"{node.node_id} was not ready after {START_TIMEOUT_S:g} s; see {node.log_file}"
                )
            await self._clock.sleep(POLL_S)

    async def _is_ready(self, node: DevNode, log_start: int) -> bool:
        """Whether the process just started serves; asked of itself, not of who has its port."""
        if self._processes[node.node_id].poll() is not None:
            return False
        if node.http_address:
            return await _http_ok(node.http_address, "/readyz")
        with node.log_file.open("rb") as log_file:
            log_file.seek(log_start)
            return b"metadata.ready" in log_file.read()

    async def _terminate(self, names: list[str]) -> None:
        """SIGTERM to all of them at once; SIGKILL to those that still run after the grace."""
        running = {name: self._processes[name] for name in names if name in self._processes}
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        deadline = self._clock.monotonic_s() + STOP_GRACE_S
        while any(process.poll() is None for process in running.values()):
            if self._clock.monotonic_s() > deadline:
                break
            await self._clock.sleep(POLL_S)
        for name in running:
            self.kill(name)

    def _release(self) -> None:
        """Kill what runs, give back ports and directory. Nothing can interrupt it: no await."""
        for name in list(self._processes):
            self.kill(name)
        for reserved in self._reserved:
            reserved.close()
        self._reserved = []
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _reap(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _lock_directory(directory: Path) -> IO[str]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "dev.lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise DevClusterError(f"{directory} can't be used: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        pid = lock.read().strip() or "unknown"
        lock.close()
        raise DevClusterError(
            f"{directory} is in use by another development cluster (pid {pid})"
        ) from None
    lock.truncate(0)
    lock.write(str(os.getpid()))
    lock.flush()
    return lock


def _check_free(port: int) -> None:
    if not 1 <= port <= 65_535:
        raise DevClusterError(f"{port} is no port; choose another base port")
    with socket.socket() as probe:
        # As servers do: a port is free although connections of an earlier life still fade away.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise DevClusterError(
                f"port {port} can't be used: {(error.strerror or str(error)).lower()}"
            ) from None


def _reserve_free_ports(count: int) -> list[socket.socket]:
    """`count` ports that are free now and are taken by no other cluster while the sockets are open.

    They lie below the range from which the kernel serves outgoing connections: a port of that range
    might be taken by a connection while its node is down. The *UDP* port of the same number is held
    as a sign for other processes that do the same; TCP stays free for the node.
    """
    reserved: list[socket.socket] = []
    for port in _random_ports():
        holder = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            holder.bind((HOST, port))
            _check_free(port)
        except (OSError, DevClusterError):
            holder.close()
            continue
        reserved.append(holder)
        if len(reserved) == count:
            return reserved
    for holder in reserved:
        holder.close()
    raise DevClusterError(f"there are no {count} free ports")


def _random_ports(tries_max: int = 2_000) -> Iterator[int]:
    low, high = 10_000, 32_768
    try:
        ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii")
        high = int(ephemeral.split()[0])
    except (OSError, ValueError):
        pass
    if high - low < 1_000:  # a machine tuned for many connections leaves no room below
        low, high = 10_000, 65_000
    for _ in range(tries_max):
        yield low + secrets.randbelow(high - low)


def _python_module(module: str, *arguments: str) -> list[str]:
    # -P: the working directory is not searched, so a folder named "node" can't get in the way.
    return [sys.executable, "-P", "-m", "sharedlog.dev_child", module, *arguments]


def module_environment() -> dict[str, str]:
    """Environment in which `python -P -m` finds the packages that lie beside this one.

    Without this process's SHAREDLOG_* variables: they are for this process.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SHAREDLOG_")
    }
    root = str(Path(__file__).resolve().parent.parent)
    if root not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        # Run from a checkout: the children must find the same code.
        paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _node_toml(node: DevNode, metadata_url: str, location: str, archive: str) -> str:
    values = {
        "node_id": node.node_id,
        "listen": node.address,
        "http": node.http_address,
        "dir": str(node.directory),
        "metadata": metadata_url,
        "location": location,
        "roles": ["log-server", "sequencer"],
    }
    # A JSON string or list of strings is a TOML one.
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    lines += ["[log_server]", f"page_cache_bytes = {PAGE_CACHE_BYTES}"]
    if archive:
        lines += ["[archive]", f"url = {json.dumps(archive, ensure_ascii=False)}"]
    return "\n".join(lines) + "\n"


async def _http_ok(address: str, path: str) -> bool:
    """Whether a GET is answered with 200, within a second."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
                status_line = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return b" 200 " in status_line


def _last_words(log_file: Path, start: int) -> str:
    """The last line that a process logged, as one line for a person."""
    with log_file.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    if not lines:
        return f"it wrote nothing to {log_file}"
    try:
        entry = json.loads(lines[-1])
    except ValueError:
        return f"{lines[-1].strip()} (see {log_file})"
    words = entry if not isinstance(entry, dict) else entry.get("error") or entry.get("event")
    return f"{words} (see {log_file})"
