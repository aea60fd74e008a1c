"""`sharedlog node remove`: the end of a node, once nobody needs it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import click

from sharedlog import errors
from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.failures import EXIT_DONE, EXIT_NOT_FOUND, CliFailure, SilentExit
from sharedlog.cli.output import BAD, GOOD, Cell, note, plural, print_json, print_line
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import admin_pb2

_POLL_S: Final = 1.0


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog node remove n3 --dry-run              what stands in the way
sharedlog node remove n3                        it was drained, and is stopped
sharedlog node remove n3 --wait                 drain it, and wait until it is stopped
""",
)
@click.argument("node_id")
@click.option("--dry-run", is_flag=True, help="Say what stands in the way; do nothing.")
@click.option(
    "--wait", is_flag=True, help="Begin its drain if need be, and wait until nothing is in the way."
)
@cluster_options
@pass_settings
def remove(settings: Settings, node_id: str, *, dry_run: bool, wait: bool) -> None:
    """Declare that the node NODE_ID is gone for good: `status` does not miss it any more.

    Refused, with a line for each reason and exit code 3, while any segment of any log names one of
    its stores, while it orders a log, and while its process runs. Its name can be used again: a
    node with a new disk begins as a new one, and one with the old disk is given nothing to do until
    `node drain --undo`.
    """
    if dry_run and wait:
        raise click.UsageError("--dry-run and --wait exclude each other")

    async def ask(cluster: Cluster) -> Json:
        return _view(node_id, await cluster.admin.remove_node(node_id, dry_run=dry_run))

    try:
        found = with_cluster(
            settings, ask if not wait else lambda cluster: _wait_removed(cluster, node_id)
        )
    except errors.InvalidArgument as error:
        raise CliFailure(str(error), exit_code=EXIT_NOT_FOUND) from error
    if settings.json:
        print_json(found | {"dry_run": dry_run})
    else:
        _print(found, dry_run=dry_run)
    raise SilentExit(EXIT_NOT_FOUND if found["reasons"] else EXIT_DONE)


async def _wait_removed(cluster: Cluster, node_id: str) -> Json:
    """Begin the drain if need be, then try once in a while; progress on stderr."""
    import asyncio

    last = ""
    while True:
        with contextlib.suppress(errors.Unreachable, errors.DeadlineExceeded):
            found = _view(node_id, await cluster.admin.remove_node(node_id))
            if not found["reasons"]:
                return found
            if found["state"] == "read-write":
                await cluster.admin.set_node_state(node_id, "draining")
            left = _left(found)
            if left != last:
                note(left)
                last = left
        await asyncio.sleep(_POLL_S)


def _left(found: Json) -> str:
    """What is waited for, in one line."""
    if not (found["segments"] or found["sequenced_logs"]):
        return str(found["reasons"][0])
    stuck = [use["obstacle"] for use in found["logs"] if use["obstacle"]]
    return (
        f"{plural(found['segments'], 'segment')} and {plural(found['sequenced_logs'], 'sequencer')}"
        f" to move{'; something stands in the way: ' + stuck[0] if stuck else ''}"
    )


def _view(node_id: str, answer: admin_pb2.RemoveNodeResponse) -> Json:
    return {
        "node_id": node_id,
        "state": answer.state,
        "removed": answer.removed,
        "reasons": list(answer.reasons),
        "segments": answer.segments,
        "sequenced_logs": answer.sequenced_logs,
        "logs": [
            {
                "log": use.log,
                "segments": use.segments,
                "sequencer": use.sequencer,
                "obstacle": use.obstacle or None,
            }
            for use in answer.uses
        ],
    }


def _print(found: Json, *, dry_run: bool) -> None:
    if found["removed"]:
        print_line(Cell(f"node {found['node_id']} is removed", GOOD))
    elif not found["reasons"] and dry_run:
        print_line(Cell(f"node {found['node_id']} can be removed: nothing names it", GOOD))
    else:
        click.echo(f"node {found['node_id']} is {found['state']} and can't be removed:")
        for reason in found["reasons"]:
            print_line(Cell(f"  {reason}", BAD))
