"""`sharedlog log`: the group, and those of its commands that make and show logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
from sharedlog.cli.output import Column, iso_time, note, plural, print_json, print_table
from sharedlog.cli.placement import parse_near, parse_spread, placement_options
from sharedlog.cli.retention import retention_options, retention_text
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, source_text, spread_text, view_log, view_summary
from sharedlog.limits import LIST_PAGE_MAX
from sharedlog.retention import Retention

if TYPE_CHECKING:
    from sharedlog import Cluster


_HERE = "sharedlog.cli.logs"
_CHAIN = "sharedlog.cli.chain"
_MOMENTS = "sharedlog.cli.moments"
_RETENTION = "sharedlog.cli.retention"
_HISTORY = "sharedlog.cli.history"
_RECONFIGURE = "sharedlog.cli.reconfigure"
_SECTIONS = {
    "Logs": {
        "create": Lazy(_HERE, "create", "Create a log."),
        "ls": Lazy(_HERE, "list_logs", "List the logs."),
        "fork": Lazy("sharedlog.cli.histories", "fork", "Make a log that shares another's past."),
        "describe": Lazy(_HERE, "describe", "Show one log's configuration, tail and chain."),
        "find-offset": Lazy(_MOMENTS, "find_offset", "Show the offset of a moment."),
    },
    "Change": {
        "set": Lazy(_RETENTION, "set_log", "Set how long records are kept, and where."),
        "reconfigure": Lazy(_RECONFIGURE, "reconfigure", "Change sequencer, servers or quorum."),
        "seal": Lazy(_RECONFIGURE, "seal", "End the open segment and go on in a new one."),
        "fence": Lazy("sharedlog.cli.fence", "fence", "Set the token that appends are judged by."),
    },
    "Its beginning": {
        "offload": Lazy(_HISTORY, "offload", "Archive all of it now."),
        "trim": Lazy(_HISTORY, "trim", "Keep older records in the archive alone."),
        "purge": Lazy(_HISTORY, "purge", "Delete older records for ever."),
    },
    "Inspect and repair": {
        "chain": Lazy(_CHAIN, "chain", "Show every segment."),
        "digest": Lazy(_CHAIN, "digest", "Show which log server holds what."),
        "check": Lazy(_CHAIN, "check", "Read and compare all replicas."),
        "accept-loss": Lazy(_CHAIN, "accept_loss", "Give up what no server can give back."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog log create orders --replicas 3 --write-quorum 2
sharedlog log describe orders
sharedlog log reconfigure orders --sequencer n2
sharedlog log trim orders --older-than 7d
sharedlog log digest orders
""",
)
@cluster_options
def log() -> None:
    """Create, inspect and change logs."""


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log create orders                     replicas and quorum by its namespaces, or default
sharedlog log create orders --replicas 3 --write-quorum 2
sharedlog log create orders --spread zone:2 --near eu-1.zone-a
sharedlog log create orders --local-age 7d --total-age 90d
sharedlog log create orders --if-not-exists     for scripts
""",
)
@click.argument("name")
@click.option("--replicas", type=click.IntRange(min=1), metavar="N", help="Copies of each record.")
@click.option(
    "--write-quorum",
    type=click.IntRange(min=1),
    metavar="N",
    help="Copies on disk that make an append durable; more than half of the replicas.  "
    "[default: the majority]",
)
@placement_options
@retention_options
@click.option("--if-not-exists", is_flag=True, help="That it exists already is no failure.")
@cluster_options
@pass_settings
def create(
    settings: Settings,
    name: str,
    replicas: int | None,
    write_quorum: int | None,
    if_not_exists: bool,
    *,
    spread: str | None,
    near: str | None,
    local_bytes: int | None,
    local_age_s: int | None,
    total_age_s: int | None,
) -> None:
    """Create the log NAME: 1 to 255 of a-z A-Z 0-9 . _ / - starting with a letter or digit."""
    kept = Retention(local_bytes=local_bytes, local_age_s=local_age_s, total_age_s=total_age_s)
    wanted = None if spread is None else parse_spread(spread)

    async def work(cluster: Cluster) -> tuple[bool, Json]:
        created = True
        try:
            await cluster.create_log(
                name,
                replicas=replicas,
                write_quorum=write_quorum,
                spread=wanted,
                near=None if near is None else parse_near(near),
                retention=kept,
            )
        except errors.LogExists:
            if not if_not_exists:
                raise
            created = False
        return created, view_log(await cluster.describe_log(name))

    created, found = with_cluster(settings, work)
    if settings.json:
        print_json({"created": created, **found})
        return
    click.echo(f"{'created' if created else 'exists:'} log {name}: {_placement(found)}")


def _placement(found: Json) -> str:
    segment = found["chain"][-1]
    nodes = " ".join(replica["node_id"] for replica in segment["nodeset"])
    return (
        f"{plural(found['replicas'], 'replica')}, write quorum {found['write_quorum']}, "
        f"on {nodes}, ordered by {segment['sequencer']['node_id']}"
    )


@click.command(
    name="ls",
    cls=ExamplesCommand,
    examples="""
sharedlog log ls
sharedlog log ls team-a/                        names that start so
sharedlog log ls team-a/ --limit 100 --after team-a/x17
sharedlog log ls --json | jq -r '.logs[].name'
""",
)
@click.argument("prefix", default="")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many.")
@click.option("--after", default="", metavar="NAME", help="Only names that come after this one.")
@cluster_options
@pass_settings
def list_logs(settings: Settings, prefix: str, limit: int | None, after: str) -> None:
    """List the logs in short, all or those whose names start with PREFIX.

    What is left by --limit is told on stderr, and as "next_after" in JSON.
    """

    async def work(cluster: Cluster) -> tuple[list[Json], str | None]:
        return await _listed(cluster, prefix, after, limit)

    found, next_after = with_cluster(settings, work)
    if settings.json:
        print_json({"logs": found, "next_after": next_after})
        return
    if not found:
        note("no logs" + (f" whose names start with {prefix}" if prefix else ""))
    print_table(
        [
            Column("NAME"),
            Column("REPLICAS", right=True),
            Column("QUORUM", right=True),
            Column("SEQUENCER"),
            Column("NODES"),
            Column("CREATED"),
        ],
        [
            [
                entry["name"],
                str(entry["replicas"]),
                str(entry["write_quorum"]),
                entry["sequencer"],
                " ".join(entry["nodeset"]),
                iso_time(entry["created_ms"]),
            ]
            for entry in found
        ],
    )
    if next_after is not None:
        note(f"there are more: --after {next_after}")


async def _listed(
    cluster: Cluster, prefix: str, after: str, limit: int | None
) -> tuple[list[Json], str | None]:
    """Logs in short, and where to go on; page by page."""
    found: list[Json] = []
    more: str | None = after
    while more is not None and (limit is None or len(found) < limit):
        left = LIST_PAGE_MAX if limit is None else min(LIST_PAGE_MAX, limit - len(found))
        page = await cluster.list_page(prefix, after=more, limit=left)
        found.extend(map(view_summary, page.logs))
        more = page.next_after
    return found, more


@click.command(cls=ExamplesCommand, examples="sharedlog log describe orders")
@click.argument("name")
@cluster_options
@pass_settings
def describe(settings: Settings, name: str) -> None:
    """Show one log: configuration, what is kept where, tail, chain of segments, nodes."""

    async def work(cluster: Cluster) -> Json:
        found = view_log(await cluster.describe_log(name))
        try:
            found["tail"] = await cluster.log(name).tail()
            found["tail_is_exact"] = True
        except (errors.LogUnavailable, errors.Unreachable, errors.DeadlineExceeded) as error:
            note(f"warning: {error}")
            found["tail"] = await cluster.log(name).known_tail()
            found["tail_is_exact"] = False
        return found

    found = with_cluster(settings, work)
    if settings.json:
        print_json(found)
    else:
        _print_description(found)


def _print_description(found: Json) -> None:
    at_least = "" if found["tail_is_exact"] else "at least "
    for label, text in (
        ("name", found["name"]),
        ("log id", found["log_id"]),
        ("created", iso_time(found["created_ms"])),
        ("replicas", f"{found['replicas']}{_source(found, 'replicas')}"),
        ("write quorum", f"{found['write_quorum']}{_source(found, 'write_quorum')}"),
        ("spread", f"{spread_text(found['spread']) or 'none'}{_source(found, 'spread')}"),
        ("near", f"{found['near'] or 'nowhere in particular'}{_source(found, 'near')}"),
        ("nodeset", _nodeset(found["nodeset"])),
        ("created with", _created_with(found)),
        ("retention", retention_text(found)),
        ("start", f"{found['start']}{' (older records were purged)' if found['start'] else ''}"),
        ("trimmed", f"{found['trimmed']} (log servers may hold nothing below)"),
        ("archived end", f"{found['archived_end']} (all from the start up to it is archived)"),
        ("tail", f"{at_least}{found['tail']}"),
    ):
        click.echo(f"{label + ':':14}{text}")
    click.echo()
    print_table(
        [
            Column("SEGMENT", right=True),
            Column("BASE", right=True),
            Column("END", right=True),
            Column("SEQUENCER"),
            Column("QUORUM", right=True),
            Column("NODESET"),
        ],
        [
            [
                str(segment["index"]),
                str(segment["base"]),
                "open" if segment["end"] is None else str(segment["end"]),
                _sequencer(segment),
                str(segment["write_quorum"]) if segment["nodeset"] else "",
                " ".join(_replica(it) for it in segment["nodeset"]) or "in the archive",
            ]
            for segment in found["chain"]
        ],
    )


def _source(found: Json, name: str) -> str:
    source = found["sources"][name]
    return "" if source is None else f" ({source_text(source)})"


def _nodeset(nodeset: Json) -> str:
    """The open segment's log servers; of a log that has others than wanted, both numbers."""
    nodes = " ".join(nodeset["nodes"])
    if nodeset["actual"] == nodeset["wanted"]:
        return nodes
    return f"{nodes}: {nodeset['actual']}, and {nodeset['wanted']} are wanted"


def _sequencer(segment: Json) -> str:
    if not segment["nodeset"]:
        return ""
    return "{node_id}, generation {generation}".format(**segment["sequencer"])


def _created_with(found: Json) -> str:
    """What was in force at its creation, and from where; it stays as it was."""
    settings = (
        f"{it['name'].replace('_', ' ')} {it['value'] or 'none'} ({source_text(it['source'])})"
        for it in found["created_with"]
    )
    return ", ".join(settings) or "not known: it is older than that"


def _replica(replica: Json) -> str:
    location = f"@{replica['location']}" if replica["location"] else ""
    return f"{replica['node_id']}{location}"
