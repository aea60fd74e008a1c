"""A log server as a process of its own, to be killed: `python log_server_process.py DIR`.

Prints its port on stdout once it serves; runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from helpers.log_servers import open_store, serve


async def main(directory: Path) -> None:
    """Serve until killed."""
    async with serve(open_store(directory)) as server:
        sys.stdout.write(server.address.rpartition(":")[2] + "\n")
        sys.stdout.flush()
        await server.run


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
