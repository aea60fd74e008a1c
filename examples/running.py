"""What the examples share: their command line, and the cluster that they run on."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from sharedlog.dev_cluster import DevCluster


def run(main: Callable[[str], Awaitable[None]], *, about: str | None) -> None:
    """Run `main` with the address of a cluster: that of --address, or one started for this run."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="a node of a running cluster; without it three nodes are started, for this run alone",
    )
    asyncio.run(_run(main, parser.parse_args().address))


async def _run(main: Callable[[str], Awaitable[None]], address: str | None) -> None:
    async with AsyncExitStack() as stack:
        if address is None:
            directory = stack.enter_context(TemporaryDirectory(prefix="sharedlog-example-"))
            cluster = await stack.enter_async_context(DevCluster(Path(directory)))
            address = cluster.address
        await main(address)
