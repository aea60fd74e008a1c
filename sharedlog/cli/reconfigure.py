"""`sharedlog log reconfigure` and `log seal`: end a segment and begin the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.output import plural, print_json
from sharedlog.cli.placement import parse_near, parse_spread, placement_options
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, spread_text, view_segment

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import admin_pb2


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log reconfigure orders --sequencer n2         move the sequencer
sharedlog log reconfigure orders --nodeset n1,n2,n4     other log servers from here on
sharedlog log reconfigure orders --replicas 5 --write-quorum 3
sharedlog log reconfigure orders --spread zone:2        each append on two zones at least
sharedlog log reconfigure orders --near eu-1.zone-a     ordered where its writers are
sharedlog log reconfigure orders --replicas 5 --dry-run
""",
)
@click.argument("name")
@click.option("--sequencer", default="", metavar="NODE", help="Who is to order the log.")
@click.option("--nodeset", default="", metavar="NODE,NODE", help="Log servers of the new segment.")
@click.option("--replicas", type=click.IntRange(min=1), metavar="N", help="Copies of each record.")
@click.option(
    "--write-quorum",
    type=click.IntRange(min=1),
    metavar="N",
    help="Copies on disk that make an append durable; more than half of the replicas.",
)
@placement_options
@click.option("--reason", default="", metavar="TEXT", help="Why, for the nodes' own logs.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@cluster_options
@pass_settings
def reconfigure(
    settings: Settings,
    name: str,
    *,
    sequencer: str,
    nodeset: str,
    replicas: int | None,
    write_quorum: int | None,
    spread: str | None,
    near: str | None,
    reason: str,
    dry_run: bool,
) -> None:
    """Change how the log NAME goes on: its sequencer, log servers, copies or quorum.

    Appends wait some milliseconds; nothing is lost and nobody sees an error. What is not given
    stays as it is, or is chosen anew where it must be.
    """
    wanted = None if spread is None else parse_spread(spread)
    nodes = [node.strip() for node in nodeset.split(",") if node.strip()]

    async def work(cluster: Cluster) -> admin_pb2.ReconfigureResponse:
        return await cluster.admin.reconfigure(
            name,
            sequencer=sequencer,
            nodeset=nodes,
            replicas=replicas or 0,
            write_quorum=write_quorum or 0,
            spread=wanted,
            near=None if near is None else parse_near(near),
            dry_run=dry_run,
            reason=reason or "asked for by `log reconfigure`",
        )

    _print(settings, name, with_cluster(settings, work), dry_run=dry_run)


@click.command(cls=ExamplesCommand, examples="sharedlog log seal orders")
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the nodes' own logs.")
@cluster_options
@pass_settings
def seal(settings: Settings, name: str, reason: str) -> None:
    """Seal the open segment of the log NAME; the log goes on in a new one, configured the same."""

    async def work(cluster: Cluster) -> admin_pb2.ReconfigureResponse:
        return await cluster.admin.reconfigure(name, reason=reason or "asked for by `log seal`")

    _print(settings, name, with_cluster(settings, work), dry_run=False)


def _print(
    settings: Settings, name: str, answer: admin_pb2.ReconfigureResponse, *, dry_run: bool
) -> None:
    ended, opened = view_segment(answer.ended), view_segment(answer.opened)
    if settings.json:
        print_json(
            {
                "log": name,
                "dry_run": dry_run,
                "ended": ended,
                "opened": opened,
                "chain_version": answer.chain_version,
                "adopted": answer.adopted,
                "repaired_records": answer.repaired_records,
                "pause_ms": round(answer.pause_ms, 3),
            }
        )
        return
    if dry_run:
        click.echo(f"would end segment {ended['index']} of {name} at its tail and go on in")
    elif ended["end"] is None or ended["end"] == ended["base"]:
        click.echo(f"segment {ended['index']} of {name} was empty and is replaced by")
    else:
        click.echo(f"segment {ended['index']} of {name} ends at {ended['end']}; it goes on in")
    click.echo(f"segment {opened['index']}: {describe_segment(opened)}")
    if answer.adopted:
        click.echo("(another reconfiguration was faster; this is its result)")
    elif not dry_run:
        repaired = answer.repaired_records
        copied = f", {plural(repaired, 'record')} repaired" if repaired else ""
        click.echo(f"appends paused for {answer.pause_ms:.1f} ms{copied}")


def describe_segment(segment: Json) -> str:
    """Who orders it, where it lies and what commits, in one line."""
    if not segment["nodeset"]:
        return "in the archive"
    nodes = " ".join(replica["node_id"] for replica in segment["nodeset"])
    spread = f", spread {spread_text(segment['spread'])}" if segment["spread"] else ""
    return (
        f"ordered by {segment['sequencer']['node_id']}, on {nodes}, "
        f"write quorum {segment['write_quorum']}{spread}"
    )
