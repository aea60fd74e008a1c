"""A real `python -m metadata` process, to be killed and started again."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Self

from sharedlog.dev_cluster import _reserve_free_ports

ROOT = Path(__file__).parents[2]


class MetadataProcess:
    """Ends with the block; `start` after `kill` listens where it did before."""

    def __init__(self, directory: Path) -> None:
        # Held until the end of the block, so that no other test gets the port between two starts.
        self._ports = _reserve_free_ports(1)
        self.address = f"127.0.0.1:{self._ports[0].getsockname()[1]}"
        self._directory = directory
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()
        for port in self._ports:
            port.close()

    async def start(self) -> None:
        assert self._process is None
        self._process = process = await spawn(self.address, self._directory)
        ready = await read_event(process, "metadata.ready")
        assert ready["address"] == self.address

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await self._process.communicate()
            self._process = None

    async def terminate(self) -> tuple[int, str]:
        """SIGTERM; the exit status, and what else was logged."""
        assert self._process is not None
        process, self._process = self._process, None
        process.terminate()
        _, stderr = await process.communicate()
        assert process.returncode is not None
        return process.returncode, stderr.decode()


async def spawn(listen: str, directory: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "metadata", "--listen", listen, "--dir", str(directory)),
        cwd=ROOT,
        stderr=asyncio.subprocess.PIPE,
    )


async def read_event(process: asyncio.subprocess.Process, event: str) -> dict[str, object]:
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while line := await process.stderr.readline():
            found: dict[str, object] = json.loads(line)
            if found["event"] == event:
                return found
    raise AssertionError(f"the process ended before it logged {event}")
