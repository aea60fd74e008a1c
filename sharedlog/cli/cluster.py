"""`sharedlog cluster`: make a cluster, say what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sharedlog.cli.app import (
    ExamplesCommand,
    Lazy,
    LazyGroup,
    Settings,
    cluster_options,
    output_options,
    pass_settings,
)
from sharedlog.cli.failures import SilentExit
from sharedlog.cli.metadata import config_option, run_tool
from sharedlog.cli.output import Column, iso_time, plural, print_json, print_table
from sharedlog.cli.placement import parse_near, parse_spread, placement_options
from sharedlog.cli.retention import retention_options
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, view_status

if TYPE_CHECKING:
    from sharedlog import Cluster

_HERE = "sharedlog.cli.cluster"
_CONFIG = "sharedlog.cli.cluster_config"
_SECTIONS = {
    "Cluster": {
        "init": Lazy(_HERE, "init", "Make a cluster in a metadata store."),
        "describe": Lazy(_HERE, "describe", "Show who the cluster is, its nodes and defaults."),
        "config": Lazy(_CONFIG, "config", "Show and change what new logs get."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog cluster init --metadata embedded://10.0.0.1:4099 --name prod --replicas 3
sharedlog cluster describe
sharedlog cluster config set spread=zone:2 --dry-run
""",
)
def cluster() -> None:
    """Make a cluster, say what it is, and change its defaults."""


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog cluster init --metadata embedded://10.0.0.1:4099 --name prod --dry-run
sharedlog cluster init --config node.toml --name prod --replicas 3 --spread zone:2
""",
)
@click.option(
    "--metadata",
    default="",
    metavar="URL",
    help="Which store.  [env: SHAREDLOG_METADATA; default: as --config says]",
)
@config_option
@click.option("--name", default="", metavar="NAME", help="Of the cluster, for people and nodes.")
@click.option("--replicas", type=click.IntRange(min=1), metavar="N", help="Copies of each record.")
@click.option(
    "--write-quorum",
    type=click.IntRange(min=1),
    metavar="N",
    help="Copies on disk that make an append durable; more than half of the replicas.",
)
@placement_options
@retention_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@output_options
@pass_settings
def init(
    settings: Settings,
    *,
    metadata: str,
    config: Path | None,
    name: str,
    replicas: int | None,
    write_quorum: int | None,
    spread: str | None,
    near: str | None,
    local_bytes: int | None,
    local_age_s: int | None,
    total_age_s: int | None,
    dry_run: bool,
) -> None:
    """Make a cluster in a metadata store, with the defaults of its logs; nodes join by starting.

    It can be done again: with the same arguments there is nothing to do. If the cluster is there
    and differs from what is asked for, nothing is changed, the differences are told, and the exit
    code is 3. A node that is told the cluster's name (its setting `cluster`) waits for it to be
    made, and refuses another; without one the first node makes the cluster.
    """
    given = {
        "metadata": metadata or None,
        "config": config,
        "name": name or None,
        "replicas": replicas,
        "write-quorum": write_quorum,
        "spread": None if spread is None else json.dumps(parse_spread(spread)),
        "near": None if near is None else parse_near(near),
        "local-bytes": local_bytes,
        "local-age-s": local_age_s,
        "total-age-s": total_age_s,
    }
    flags = [f"--{flag}={value}" for flag, value in given.items() if value is not None]
    flags += [*(["--dry-run"] if dry_run else []), *(["--json"] if settings.json else [])]
    raise SilentExit(run_tool(flags, module="metadata.init"))


@click.command(cls=ExamplesCommand, examples="sharedlog cluster describe --json")
@cluster_options
@pass_settings
def describe(settings: Settings) -> None:
    """Show who the cluster is, the versions of its nodes, and what new logs get."""
    from sharedlog.cli.cluster_config import fetch_config, print_config

    async def work(cluster: Cluster) -> Json:
        found = await cluster.admin.describe_cluster()
        status = view_status(await cluster.status())
        return {
            "cluster_id": found.cluster_id,
            "name": found.name or None,
            "created_ms": found.created_ms,
            "metadata": status["metadata"],
            "controller": status["controller"],
            "problems": len(status["problems"]),
            "nodes": [
                {name: it[name] for name in ("node_id", "state", "alive", "version", "location")}
                for it in status["nodes"]
            ],
            "config": await fetch_config(cluster),
        }

    found = with_cluster(settings, work)
    if settings.json:
        print_json(found)
        return
    for label, text in (
        ("name", found["name"] or "none"),
        ("cluster id", found["cluster_id"]),
        ("created", iso_time(found["created_ms"])),
        ("metadata", found["metadata"]),
        ("controller", found["controller"] or "none now"),
        ("problems", f"{plural(found['problems'], 'problem')}; see: sharedlog status"),
    ):
        click.echo(f"{label + ':':14}{text}")
    click.echo()
    print_table(
        [Column("NODE"), Column("STATE"), Column("VERSION"), Column("LOCATION")],
        [
            [
                it["node_id"],
                (it["state"] or "") if it["alive"] else f"{it['state']}, down",
                it["version"] or "",
                it["location"],
            ]
            for it in found["nodes"]
        ],
    )
    click.echo()
    print_config(found["config"])
