"""`sharedlog node`: the cluster's nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sharedlog.cli.app import (
    ExamplesCommand,
    LazyGroup,
    Settings,
    cluster_options,
    pass_settings,
)
from sharedlog.cli.output import (
    BAD,
    GOOD,
    WARNING,
    Cell,
    Column,
    human_bytes,
    human_seconds,
    print_json,
    print_table,
)
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, view_status

if TYPE_CHECKING:
    from sharedlog import Cluster


@click.group(cls=LazyGroup, examples="sharedlog node ls")
@cluster_options
def node() -> None:
    """The cluster's nodes."""


@node.command(
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
    if not entry["alive"]:
        return Cell("down", BAD)
    return Cell("read-only", WARNING) if entry["read_only"] else Cell("up", GOOD)


def _sizes(entry: Json) -> list[str]:
    names = ("store_bytes", "disk_free_bytes", "rss_anon_bytes")
    return [human_bytes(entry[name]) if entry["alive"] else "" for name in names]
