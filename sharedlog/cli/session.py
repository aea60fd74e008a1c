"""From a command to the client library and back.

The one place where the command-line tool starts an event loop and connects. Importing it is cheap;
calling it imports gRPC.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sharedlog.cli.app import Settings
from sharedlog.cli.contexts import resolve_target
from sharedlog.errors import Unreachable

if TYPE_CHECKING:
    from sharedlog import Cluster

Result = TypeVar("Result")

_PROBE_S: Final = 2.0


def with_cluster(settings: Settings, work: Callable[[Cluster], Awaitable[Result]]) -> Result:
    """Connect to the cluster that the global options name, and run `work` with it.

    Raises:
        Unreachable: None of the addresses takes connections, found at once rather than after the
            client's patient retries: who typed a command is waiting for it.
    """
    target = resolve_target(settings)
    settings.spoke_to = target.address
    require_reachable(target.address)

    async def run() -> Result:
        from sharedlog import AppenderConfig, ClientConfig, ReaderConfig, connect

        given: dict[str, float] = {}
        if target.timeout_s is not None:
            given = {"timeout_s": target.timeout_s}
        async with connect(
            target.address,
            config=ClientConfig(**given),  # type: ignore[arg-type]  # likewise below
            append_config=AppenderConfig(**given),  # type: ignore[arg-type]  # timeout_s alone
            read_config=ReaderConfig(**given),
        ) as cluster:
            return await work(cluster)

    return run_async(run)


def run_async(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run an event loop until `main` returns; Ctrl-C cancels it."""
    import asyncio

    from sharedlog.tuning import tune_process

    tune_process()
    # gRPC's own lines about connections that it retries mean nothing to who typed the command.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    _show_warnings()
    return asyncio.run(main())


def require_reachable(addresses: str) -> None:
    """Raise `Unreachable` if no address can be connected to."""
    problem = ""
    for address in addresses.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
        except TimeoutError:
            problem = f"no answer within {_PROBE_S:g} s"
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
        else:
            return
    raise Unreachable(problem)


class _LineFormatter(logging.Formatter):
    """A library's log line as a line for a person: "warning: event field=value"."""

    _KNOWN: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(
            f" {name}={value}" for name, value in vars(record).items() if name not in self._KNOWN
        )
        return f"{record.levelname.lower()}: {record.getMessage()}{fields}"


def _show_warnings() -> None:
    library = logging.getLogger("sharedlog")
    if library.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    library.addHandler(handler)
    library.setLevel(logging.WARNING)
    library.propagate = False
