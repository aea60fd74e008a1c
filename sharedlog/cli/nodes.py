"""`sharedlog node`: list, describe and drain the cluster's nodes; `removal.py` removes them."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final

import click

from sharedlog import errors
from sharedlog.cli.app import (
    ExamplesCommand,
    Lazy,
    LazyGroup,
    Settings,
    cluster_options,
    pass_settings,
)
from sharedlog.cli.failures import EXIT_DONE, EXIT_FAILED, CliFailure, SilentExit
from sharedlog.cli.output import (
    BAD,
    GOOD,
    WARNING,
    Cell,
    Column,
    human_bytes,
    human_seconds,
    note,
    plural,
    print_json,
    print_line,
    print_table,
)
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, view_status

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import admin_pb2

_POLL_S: Final = 1.0


_HERE = "sharedlog.cli.nodes"
_SECTIONS = {
    "Nodes": {
        "ls": Lazy(_HERE, "list_nodes", "List the nodes."),
        "describe": Lazy(_HERE, "describe", "Show one node."),
        "drain": Lazy(_HERE, "drain", "Move everything away from a node."),
        "remove": Lazy("sharedlog.cli.removal", "remove", "Declare that a node is gone for good."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog node ls
sharedlog node describe n3
sharedlog node drain n3 --wait
sharedlog node remove n3
""",
)
@cluster_options
def node() -> None:
    """List, describe, drain and remove the cluster's nodes."""


@click.command(
    name="ls",
    cls=ExamplesCommand,
    examples="""
sharedlog node ls
sharedlog node ls --json | jq -r '.nodes[] | select(.alive | not) | .node_id'
""",
)
@cluster_options
@pass_settings
def list_nodes(settings: Settings) -> None:
    """List the nodes: where they are, whether they answer, what they hold."""

    async def work(cluster: Cluster) -> Json:
        return view_status(await cluster.status())

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"cluster_id": found["cluster_id"], "nodes": found["nodes"]})
    else:
        print_nodes(found["nodes"])


def print_nodes(nodes: list[Json]) -> None:
    """The nodes as a table."""
    print_table(
        [
            Column("NODE"),
            Column("ADDRESS"),
            Column("STATE"),
            Column("ROLES"),
            Column("LOCATION"),
            Column("STARTS", right=True),
            Column("UP", right=True),
            Column("STORE", right=True),
            Column("DISK FREE", right=True),
            Column("MEMORY", right=True),
        ],
        [
            [
                entry["node_id"],
                entry["address"],
                _state(entry),
                ",".join(entry["roles"]),
                entry["location"],
                str(entry["generation"]),
                human_seconds(entry["uptime_s"]) if entry["alive"] else "",
                *_sizes(entry),
            ]
            for entry in nodes
        ],
    )


def _state(entry: Json) -> Cell:
    if entry["state"] in ("gone", "data-loss"):
        return Cell(entry["state"], WARNING)
    if not entry["alive"]:
        return Cell("down", BAD)
    if entry["state"] == "draining":
        return Cell("draining", WARNING)
    return Cell("read-only", WARNING) if entry["read_only"] else Cell("up", GOOD)


def _sizes(entry: Json) -> list[str]:
    names = ("store_bytes", "disk_free_bytes", "rss_anon_bytes")
    return [human_bytes(entry[name]) if entry["alive"] else "" for name in names]


@click.command(cls=ExamplesCommand, examples="sharedlog node describe n3")
@click.argument("node_id")
@cluster_options
@pass_settings
def describe(settings: Settings, node_id: str) -> None:
    """Show one node: what it holds and orders, what it was told, what is wrong with it."""

    async def work(cluster: Cluster) -> tuple[Json, list[Json] | None]:
        return view_status(await cluster.status()), await _fetch_settings(cluster, node_id)

    status, told = with_cluster(settings, work)
    found = _find_node(status, node_id)
    found["settings"] = told
    about = f"node {node_id}"
    found["problems"] = [it for it in status["problems"] if it["subject"] == about]
    found["work"] = [
        it for it in status["work"] if it["node_id"] == node_id or it["subject"] == about
    ]
    if settings.json:
        print_json(found)
        return
    for label, text in (
        ("node", node_id),
        ("address", found["address"]),
        ("state", _state(found).text),
        ("roles", ", ".join(found["roles"])),
        ("location", found["location"] or "not given"),
        ("starts", found["generation"]),
        ("storage id", found["storage_id"] or "none"),
        ("segments", f"{found['segments']} name its store, {found['open_segments']} of them open"),
    ):
        click.echo(f"{label + ':':14}{text}")
    if found["alive"]:
        click.echo(f"{'orders:':14}{plural(found['sequenced_logs'], 'log')}")
        click.echo(f"{'store:':14}{human_bytes(found['store_bytes'])}")
        click.echo(f"{'disk free:':14}{human_bytes(found['disk_free_bytes'])}")
    for it in told or ():
        click.echo(f"{'set:':14}{it['name']} = {it['value']} ({it['source']})")
    for it in found["work"]:
        click.echo(f"{'busy:':14}{it['kind']} {it['subject']}: {it['message']}")
    for it in found["problems"]:
        print_line(Cell(f"{it['severity'] + ':':14}{it['message']}", BAD))


async def _fetch_settings(cluster: Cluster, node_id: str) -> list[Json] | None:
    """What the node was told other than the default; None if it does not say."""
    try:
        answer = await cluster.admin.describe_node(node_id)
    except errors.SharedLogError:
        return None
    return [{"name": it.name, "value": it.value, "source": it.source} for it in answer.settings]


def _find_node(status: Json, node_id: str) -> Json:
    for entry in status["nodes"]:
        if entry["node_id"] == node_id:
            assert isinstance(entry, dict)
            return entry
    known = ", ".join(entry["node_id"] for entry in status["nodes"])
    raise CliFailure(f"there is no node {node_id!r}; there are {known}", exit_code=3)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog node drain n3 --dry-run               what would become of its logs
sharedlog node drain n3 --wait                  until no log needs it
sharedlog node drain n3 --undo                  take it back
sharedlog node drain n3 --data-loss             its disk is gone for good
""",
)
@click.argument("node_id")
@click.option("--wait", is_flag=True, help="Until no segment names the node any more.")
@click.option("--dry-run", is_flag=True, help="Say what would become of each log; do nothing.")
@click.option("--undo", is_flag=True, help="The node takes new segments again.")
@click.option("--data-loss", is_flag=True, help="The node's store will never answer again.")
@cluster_options
@pass_settings
def drain(
    settings: Settings, node_id: str, *, wait: bool, dry_run: bool, undo: bool, data_loss: bool
) -> None:
    """Move everything away from the node NODE_ID: sequencers, open segments, history.

    The node can be switched off when its state is "gone", and `node remove` looks once more. Every
    segment of every log is looked at before anything is promised. Ends with exit code 1 if
    something stands in the way.
    """
    if undo and (wait or data_loss):
        raise click.UsageError("--undo goes with neither --wait nor --data-loss")
    state = "read-write" if undo else "data-loss" if data_loss else "draining"

    async def work(cluster: Cluster) -> Json:
        return _view_drain(
            node_id, await cluster.admin.set_node_state(node_id, state, dry_run=dry_run)
        )

    found = with_cluster(settings, work)
    if wait and not dry_run and not settings.json:
        _print_drain(found, dry_run=False)
    if wait and not dry_run:
        found = with_cluster(settings, lambda cluster: _wait_drained(cluster, node_id))
    if settings.json:
        print_json(found)
    else:
        _print_drain(found, dry_run=dry_run)
    raise SilentExit(EXIT_DONE if found["safe"] or undo else EXIT_FAILED)


async def _wait_drained(cluster: Cluster, node_id: str) -> Json:
    """Look once in a while until no segment names the node; progress on stderr."""
    import asyncio

    last = ""
    while True:
        with contextlib.suppress(errors.Unreachable, errors.DeadlineExceeded):
            answer = await cluster.admin.set_node_state(node_id, "draining", dry_run=True)
            found = _view_drain(node_id, answer)
            if found["state"] == "gone" or not (found["segments"] or found["sequenced_logs"]):
                return found
            left = f"{found['segments']} segments and {found['sequenced_logs']} sequencers to move"
            if left != last:
                note(f"{left}{'' if found['safe'] else '; something stands in the way'}")
                last = left
        sys.stderr.flush()
        await asyncio.sleep(_POLL_S)


def _view_drain(node_id: str, answer: admin_pb2.SetNodeStateResponse) -> Json:
    return {
        "node_id": node_id,
        "state": answer.state,
        "safe": answer.safe,
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


def _print_drain(found: Json, *, dry_run: bool) -> None:
    would = "would have to be moved" if dry_run else "to be moved"
    click.echo(
        f"node {found['node_id']} is {found['state']}: {plural(found['segments'], 'segment')} and "
        f"{plural(found['sequenced_logs'], 'sequencer')} {would}"
    )
    blocked = [use for use in found["logs"] if use["obstacle"]]
    print_table(
        [Column("LOG"), Column("SEGMENTS", right=True), Column("OBSTACLE")],
        [[use["log"], str(use["segments"]), Cell(use["obstacle"], BAD)] for use in blocked],
    )
    if not blocked and dry_run:
        print_line(Cell("safe: all of it can be moved", GOOD))
