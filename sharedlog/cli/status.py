"""`sharedlog status`: what is wrong, then what there is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import click

from sharedlog import errors
from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.failures import EXIT_DONE, EXIT_FAILED, SilentExit, message_of
from sharedlog.cli.nodes import print_nodes
from sharedlog.cli.output import (
    BAD,
    GOOD,
    WARNING,
    Cell,
    Column,
    note,
    print_json,
    print_line,
    print_table,
)
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, view_status

if TYPE_CHECKING:
    from sharedlog import Cluster

_WAIT_S: Final = 60.0
_CALL_S: Final = 10.0
_POLL_S: Final = 0.5
_CLEAR_SCREEN = "\x1b[H\x1b[2J"


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog status
sharedlog status --watch                        anew every two seconds
sharedlog status --check > /dev/null || alert   exit code 1 if something is wrong
sharedlog status --wait --timeout 120           until nothing is, as between two restarts
""",
)
@click.option("-w", "--watch", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks, with --watch.",
)
@click.option("--check", is_flag=True, help="End with exit code 1 if there are problems.")
@click.option(
    "--wait",
    is_flag=True,
    help="Until there are no problems; exit code 4 if that takes longer than --timeout, 60 s.",
)
@cluster_options
@pass_settings
def status(settings: Settings, *, watch: bool, interval: float, check: bool, wait: bool) -> None:
    """Show the cluster's problems, nodes and logs.

    Ends with 0 if the cluster answers, problems or not, unless --check or --wait is given.
    """
    if watch + check + wait > 1:
        raise click.UsageError("--watch, --check and --wait exclude each other")
    if watch:
        _watch(settings, interval)
    found = _wait(settings) if wait else with_cluster(settings, _fetch)
    _print(settings, found)
    raise SilentExit(EXIT_FAILED if check and found["problems"] else EXIT_DONE)


async def _fetch(cluster: Cluster) -> Json:
    return view_status(await cluster.status())


def _wait(settings: Settings) -> Json:
    """Wait until nothing is wrong; a cluster of which no node answers yet is waited for, too."""
    import time

    left_s = settings.timeout_s or _WAIT_S
    until_s = time.monotonic() + left_s
    settings.timeout_s = min(left_s, _CALL_S)  # of each call

    async def settle(cluster: Cluster) -> Json:
        from sharedlog.settled import wait_settled

        left_s = max(0.0, until_s - time.monotonic())
        return view_status(await wait_settled(cluster, timeout_s=left_s, say=note))

    while True:
        try:
            return with_cluster(settings, settle)
        except errors.Unreachable:
            if time.monotonic() > until_s:
                raise
            time.sleep(_POLL_S)


def _watch(settings: Settings, interval_s: float) -> None:
    """Look again and again; a cluster that does not answer is a thing to show, not an end."""

    async def look_on(cluster: Cluster) -> None:
        import asyncio

        stdout = sys.stdout
        while True:
            try:
                found = await _fetch(cluster)
            except errors.SharedLogError as error:
                if not error.retryable:
                    raise
                note(f"error: {message_of(error, address=settings.spoke_to)}")
            else:
                if stdout.isatty() and not settings.json:
                    click.echo(_CLEAR_SCREEN, nl=False)
                _print(settings, found)
                stdout.flush()
            await asyncio.sleep(interval_s)

    with_cluster(settings, look_on)


def _print(settings: Settings, found: Json) -> None:
    if settings.json:
        print_json(found)
        return
    _print_problems(found["problems"])
    click.echo(f"cluster {found['cluster_id']}, metadata {found['metadata']}")
    click.echo(f"controller {found['controller'] or 'none now'}")
    click.echo()
    print_nodes(found["nodes"])
    click.echo()
    _print_work(found["work"])
    if found["logs"]:
        _print_logs(found["logs"])
    else:
        click.echo("no logs")


def _print_problems(problems: list[Json]) -> None:
    if not problems:
        print_line(Cell("no problems", GOOD))
        return
    print_table(
        [Column("PROBLEM"), Column("CODE"), Column("OF"), Column("WHAT")],
        [
            [
                Cell(problem["severity"], BAD if problem["severity"] == "error" else WARNING),
                problem["code"] or "",
                problem["subject"],
                problem["message"],
            ]
            for problem in problems
        ],
    )
    click.echo()


def _print_work(work: list[Json]) -> None:
    if not work:
        return
    print_table(
        [Column("WORK"), Column("ON"), Column("NODE"), Column("DONE", right=True), Column("NOW")],
        [
            [
                entry["kind"],
                entry["subject"],
                entry["node_id"],
                f"{entry['done']}/{entry['total']}" if entry["total"] else str(entry["done"]),
                entry["message"],
            ]
            for entry in work
        ],
    )
    click.echo()


def _print_logs(logs: list[Json]) -> None:
    print_table(
        [
            Column("LOG"),
            Column("TAIL", right=True),
            Column("APPENDS"),
            Column("SEQUENCER"),
            Column("REPLICAS UP", right=True),
            Column("QUORUM", right=True),
            Column("SEGMENTS", right=True),
            Column("BEHIND"),
        ],
        [
            [
                log["name"],
                str(log["known_tail"]),
                Cell("yes", GOOD) if log["accepts_appends"] else Cell("no", BAD),
                log["sequencer"]["node_id"],
                _replicas_up(log),
                str(log["write_quorum"]),
                str(log["segments"]),
                " ".join(log["under_replicated_on"]),
            ]
            for log in logs
        ],
    )


def _replicas_up(log: Json) -> Cell:
    text = f"{log['replicas_alive']}/{log['replicas']}"
    if log["replicas_alive"] >= log["replicas"]:
        return Cell(text, "")
    return Cell(text, WARNING if log["replicas_alive"] >= log["write_quorum"] else BAD)
