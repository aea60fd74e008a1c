"""A log server as a process of its own, to be killed: `python log_server_process.py DIR`.

Prints its port on stdout once it serves; runs until it is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from helpers.log_servers import WAIT_S, open_store, serve

_TESTS = Path(__file__).resolve().parent.parent


async def start(directory: Path) -> tuple[asyncio.subprocess.Process, str]:
    """Start it; the process and its address."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "helpers.log_server_process",
        str(directory),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(_TESTS), str(_TESTS.parent)))},
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        port = int(await process.stdout.readline())
    return process, f"127.0.0.1:{port}"


async def main(directory: Path) -> None:
    """Serve until killed."""
    async with serve(open_store(directory)) as server:
        sys.stdout.write(server.address.rpartition(":")[2] + "\n")
        sys.stdout.flush()
        await server.run


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
