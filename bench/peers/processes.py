"""Starting and stopping the servers that are measured."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

START_SECONDS_MAX = 20.0
_STOP_SECONDS_MAX = 5.0
_SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class PeerFailed(Exception):
    """A peer did not start, or failed while it was measured. The message says what to look at."""


@dataclass(slots=True)
class ServerProcess:
    """One server, its output in `log`."""

    name: str
    process: asyncio.subprocess.Process
    log: Path

    def check_alive(self) -> None:
        """Raise `PeerFailed` with the last lines of its output if the process has ended."""
        code = self.process.returncode
        if code is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-5:]
            raise PeerFailed(f"{self.name} ended with code {code}: " + " | ".join(lines))

    async def stop(self) -> None:
        """Ask it to end, then make it. Idempotent."""
        if self.process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(_STOP_SECONDS_MAX):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


def find_binary(name: str) -> str | None:
    """Path of a server's binary; Debian puts some where a user's PATH does not look."""
    return shutil.which(name) or shutil.which(name, path=_SEARCH_PATH)


async def start_process(name: str, arguments: Sequence[str], directory: Path) -> ServerProcess:
    """Start a server in a process group of its own, so that Ctrl-C reaches us first."""
    log = directory / f"{name}.out"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            cwd=directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return ServerProcess(name, process, log)


async def stop_all(servers: list[ServerProcess]) -> None:
    """Stop servers, all at once; the list is empty afterwards."""
    stopping = list(servers)
    servers.clear()
    async with asyncio.TaskGroup() as group:
        for server in stopping:
            group.create_task(server.stop(), name=f"stop-{server.name}")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on now, all different."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(int(listener.getsockname()[1]))
        return ports


async def connect_when_ready(
    port: int, server: ServerProcess
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to a server that is starting.

    Raises:
        PeerFailed: it ended, or took too long.
    """
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        server.check_alive()
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            if time.monotonic() > deadline:
                raise PeerFailed(f"{server.name} does not listen; see {server.log}") from error
        await asyncio.sleep(0.02)
