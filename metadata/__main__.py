"""`python -m metadata --listen HOST:PORT --dir PATH`: serve an embedded store until a signal comes.

With a verb (`dump`, `get`, `put`, `migrate`) it is a tool instead: see `tools.py`.

Serving, it logs one JSON object per line to standard error; the first with event "metadata.ready"
names the address, so that port 0 can be asked for. Exit status: 0 stopped by SIGTERM or SIGINT; 1
the store is damaged or has failed; 2 what was asked for can't be had: the port or the store is in
use, or an argument is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from metadata.embedded import EmbeddedMetadataStore
from metadata.errors import MetadataCorrupt
from metadata.service import MetadataService
from sharedlog.clock import SystemClock
from sharedlog.logs import JsonFormatter
from sharedlog.rpc.grpc_server import GrpcServer

log = logging.getLogger("metadata")

GRACE_S: Final = 2.0
"""Calls that run at a stop get so long to end. Watches are ended at once."""


async def serve(listen: str, directory: Path) -> int:
    """Serve until a signal comes or the store fails; returns the exit status.

    Raises:
        OSError: the port or the store is in use. MetadataCorrupt: the store is damaged.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    store = EmbeddedMetadataStore(directory, SystemClock())
    try:
        server = GrpcServer()
        MetadataService(store).register(server)
        port = await server.start(listen)
        address = f"{listen.rpartition(':')[0]}:{port}"
        log.info("metadata.ready", extra={"address": address, "dir": str(directory)})
        failed = await _first(stopping, store)
        log.info("metadata.stopping", extra={"failed": failed})
        # First the store: it ends the watches, which would hold the server for the whole grace.
        await store.close()
        await server.stop(grace_s=GRACE_S)
    finally:
        await store.close()
    log.info("metadata.stopped")
    return 1 if failed else 0


async def _first(stopping: asyncio.Event, store: EmbeddedMetadataStore) -> bool:
    """Wait for a signal (False) or the store's failure (True)."""
    stop = asyncio.create_task(stopping.wait(), name="metadata-signal")
    fail = asyncio.create_task(store.wait_failed(), name="metadata-failure")
    await asyncio.wait([stop, fail], return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    fail.cancel()
    return fail.done() and not fail.cancelled()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words and not words[0].startswith("-"):
        from metadata import tools  # late: serving needs none of it

        return tools.main(words)
    parser = argparse.ArgumentParser(
        prog="python -m metadata", description="Serve an embedded metadata store."
    )
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="port 0: a free one")
    parser.add_argument("--dir", required=True, type=Path, metavar="PATH", help="made if missing")
    options = parser.parse_args(arguments)
    host, _, port = options.listen.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--listen {options.listen}: the form is HOST:PORT")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        return asyncio.run(serve(options.listen, options.dir))
    except OSError as error:
        print(f"metadata: {error}", file=sys.stderr)  # noqa: T201 - for a person
        return 2
    except MetadataCorrupt as error:
        print(f"metadata: damaged: {error}", file=sys.stderr)  # noqa: T201 - for a person
        return 1


if __name__ == "__main__":
    sys.exit(main())
