"""`sharedlog dev`: a whole cluster on this machine, until Ctrl-C.

A process that dies is reported and the others go on: that is what a cluster is for, and killing one
is the first thing that people try. `--restart` starts it again.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

import click

from sharedlog.cli.app import ExamplesCommand, Settings, output_options, pass_settings
from sharedlog.cli.contexts import DEFAULT_ADDRESS
from sharedlog.cli.failures import CliFailure
from sharedlog.cli.output import Column, note, plural, print_json, print_table
from sharedlog.cli.session import run_async
from sharedlog.cli.store import require_server_packages
from sharedlog.dev_cluster import METADATA, DevCluster, DevClusterError, DevNode

_POLL_S: Final = 0.1
_NODES_DEFAULT: Final = 3
_ARCHIVE_VARIABLES: Final = "SHAREDLOG_ARCHIVE__"
_METADATA_VARIABLES: Final = "SHAREDLOG_METADATA_"
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class _Request:
    """What the command line said, and what it means here."""

    directory: Path
    kept: bool
    nodes: int
    port: int
    archive: str  # URL; "": none
    metadata: str  # URL; "": a process of the cluster
    restart: bool
    earlier_nodes: int
    """Nodes that the directory has data of; 0 if it is fresh."""


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog dev                                   three nodes; their data vanish at the end
sharedlog dev --dir ./data                      data kept from run to run
sharedlog dev --archive s3://bucket/prefix      history goes there; credentials as for every S3 tool
sharedlog dev --metadata etcd://h:2379/dev      the metadata goes to an etcd that runs already
sharedlog dev --nodes 5 --port 5100             then: sharedlog --address 127.0.0.1:5100 status
""",
)
@click.option(
    "--nodes",
    type=click.IntRange(1, 50),
    metavar="N",
    help="So many nodes.  [default: as many as --dir has data of, else 3]",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the data here.  [default: a temporary folder, removed at the end]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65_000),
    default=4100,
    show_default=True,
    help="The first node's; the others follow, the metadata process has the one below, HTTP those "
    "100 above. 0 takes free ones.",
)
@click.option(
    "--archive",
    metavar="URL",
    envvar=f"{_ARCHIVE_VARIABLES}URL",
    help="Where the history of logs goes: s3://BUCKET/PREFIX, file:///FOLDER, or none. Variables "
    f"named {_ARCHIVE_VARIABLES}... reach the nodes.  [default: a folder beside the data]",
)
@click.option(
    "--metadata",
    metavar="URL",
    default="",
    help="Of a metadata store that runs elsewhere: etcd://HOST:PORT,HOST:PORT/PREFIX, or "
    "s3://BUCKET/PREFIX. Variables "
    f"named {_METADATA_VARIABLES}... reach the nodes. With data of an earlier run: the same one.  "
    "[default: a process of this cluster]",
)
@click.option("--restart", is_flag=True, help="Start a process again when it has died.")
@output_options
@pass_settings
def dev(
    settings: Settings,
    *,
    nodes: int | None,
    directory: Path | None,
    port: int,
    archive: str | None,
    metadata: str,
    restart: bool,
) -> None:
    """Run a cluster on this machine until Ctrl-C, for development.

    It listens on 127.0.0.1 only. One process for each node and one for the metadata, so that any
    node can be killed: try it. None of them outlives this command.
    """
    require_server_packages()
    if port == 1:
        raise click.UsageError("--port 1 leaves no port below it for the metadata process")
    with _data_directory(directory) as path:
        earlier = _nodes_of(path)
        request = _Request(
            directory=path,
            kept=directory is not None,
            nodes=nodes or earlier or _NODES_DEFAULT,
            port=port,
            archive=_archive_url(archive, path),
            metadata=metadata,
            restart=restart,
            earlier_nodes=earlier,
        )
        try:
            run_async(lambda: _Run(request, settings).run())
        except DevClusterError as error:
            hint = "; --port chooses others" if str(error).startswith("port ") else ""
            raise CliFailure(f"{error}{hint}") from error


@contextmanager
def _data_directory(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    path = Path(tempfile.mkdtemp(prefix="sharedlog-dev-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _archive_url(given: str | None, directory: Path) -> str:
    """The archive's URL, "" for none; its folder is made if it is the cluster's own."""
    if given:
        return "" if given == "none" else given
    folder = directory.absolute() / "archive"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.as_uri()


def _nodes_of(directory: Path) -> int:
    """How many nodes an earlier run left data of."""
    if not directory.is_dir():
        return 0
    names = (re.fullmatch(r"n(\d+)", entry.name) for entry in directory.iterdir())
    return max((int(name[1]) for name in names if name), default=0)


class _Run:
    """One run of the command."""

    def __init__(self, request: _Request, settings: Settings) -> None:
        self._request = request
        self._settings = settings
        self._stop = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._cluster = DevCluster(
            request.directory,
            nodes=request.nodes,
            base_port=request.port,
            archive=request.archive,
            metadata_url=request.metadata,
            settings={
                name: value
                for name, value in os.environ.items()
                if name.startswith((_ARCHIVE_VARIABLES, _METADATA_VARIABLES))
                and name != f"{_ARCHIVE_VARIABLES}URL"
            },
        )

    async def run(self) -> None:
        """Start, watch until told to stop, stop."""
        self._main = asyncio.current_task()
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            if await self._start():
                try:
                    self._say_ready()
                    await self._watch()
                finally:
                    self._progress("stopping ...")
                    await self._cluster.stop()
                    self._say_stopped()
        except asyncio.CancelledError:
            # A second Ctrl-C: everything was killed on the way here.
            note("killed")
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stop.is_set() and self._main is not None:
            self._main.cancel()
        self._stop.set()

    async def _start(self) -> bool:
        """Start the cluster; False if the user lost patience before it was ready."""
        self._progress(f"starting {plural(self._request.nodes, 'node')} ...")
        started_s = monotonic()
        async with asyncio.TaskGroup() as tasks:
            starting = tasks.create_task(self._start_cluster(), name="start-cluster")
            stopped = tasks.create_task(self._stop.wait(), name="stop-asked")
            await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
            done = starting.done()
            stopped.cancel()
            starting.cancel()
        if done:
            error = starting.result()
            if error is not None:
                self._progress("")
                raise error
            self._progress(f"ready after {monotonic() - started_s:.1f} s\n")
        return done

    async def _start_cluster(self) -> DevClusterError | None:
        # Returned rather than raised: it is the outcome, not an accident of the task group.
        try:
            await self._cluster.start()
        except DevClusterError as error:
            return error
        return None

    def _say_ready(self) -> None:
        if self._settings.json:
            print_json(
                {
                    "event": "ready",
                    "address": self._cluster.address,
                    "directory": str(self._cluster.directory),
                    "kept": self._request.kept,
                    "archive": self._request.archive or None,
                    "nodes": [_describe(node) for node in self._cluster.nodes.values()],
                    "metadata": None
                    if self._request.metadata
                    else _describe(self._cluster.metadata),
                    "metadata_url": self._request.metadata or None,
                }
            )
        else:
            self._print_table()
        sys.stdout.flush()
        self._say_where()

    def _print_table(self) -> None:
        print_table(
            [Column("NODE"), Column("ADDRESS"), Column("HTTP"), Column("PID", right=True)],
            [
                [node.node_id, node.address, node.http_address, str(node.pid)]
                for node in self._cluster.processes
            ],
        )

    def _say_where(self) -> None:
        request, cluster = self._request, self._cluster
        if request.kept:
            note(f"data: {cluster.directory} (kept; start it again with the same --dir)")
        else:
            note(f"data: {cluster.directory} (removed at the end; --dir keeps it)")
        note(f"archive: {request.archive or 'none'}")
        if request.metadata:
            note(f"metadata: {request.metadata} (kept there)")
        note(f"logs of the processes: {cluster.log_directory}")
        if request.earlier_nodes > request.nodes:
            note(
                f"warning: {cluster.directory} has data of {request.earlier_nodes} nodes, but "
                f"{request.nodes} are started; logs that lie on the others miss replicas"
            )
        if not self._settings.json:
            address = "" if cluster.address == DEFAULT_ADDRESS else f" -a {cluster.address}"
            note(f"\ntry: sharedlog log create orders{address}")
            note(f"     seq 1000 | sharedlog append orders{address}")
            note(f"     sharedlog tail orders -f{address}")
            note(f"     sharedlog status --watch{address}")
            note("Ctrl-C stops everything.")

    async def _watch(self) -> None:
        while not self._stop.is_set():
            for name, code in self._cluster.take_died().items():
                await self._on_died(name, code)
            try:
                async with asyncio.timeout(_POLL_S):
                    await self._stop.wait()
            except TimeoutError:
                continue

    async def _on_died(self, name: str, code: int) -> None:
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if self._settings.json:
            print_json({"event": "died", "node_id": name, "exit_code": code})
            sys.stdout.flush()
        if not self._request.restart:
            note(f"{name} ended {how}; the others go on. Start it again with: {self._remedy(name)}")
            return
        note(f"{name} ended {how}; starting it again")
        try:
            await self._cluster.restart(name)
        except DevClusterError as error:
            note(f"error: {error}")
            return
        note(f"{name} is ready")
        if self._settings.json:
            node = self._cluster.metadata if name == METADATA else self._cluster.nodes[name]
            print_json({"event": "restarted", **_describe(node)})
            sys.stdout.flush()

    def _remedy(self, name: str) -> str:
        if name == METADATA:
            return "Ctrl-C and sharedlog dev with the same --dir, or use --restart the next time"
        return f"sharedlogd --config {self._cluster.directory / name}.toml"

    def _say_stopped(self) -> None:
        if self._settings.json:
            print_json({"event": "stopped"})
        kept = self._request.kept
        self._progress(
            f"stopped; data {'kept in' if kept else 'removed from'} {self._cluster.directory}\n"
        )

    def _progress(self, text: str) -> None:
        """A line on a terminal that the next one overwrites; elsewhere whole lines alone."""
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
        elif text.endswith("\n"):
            note(text.rstrip("\n"))


def _describe(node: DevNode) -> dict[str, object]:
    return {
        "node_id": node.node_id,
        "address": node.address,
        "http_address": node.http_address or None,
        "pid": node.pid,
        "directory": str(node.directory),
        "log_file": str(node.log_file),
    }
