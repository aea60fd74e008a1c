"""`sharedlog namespace`: what logs inherit by the beginning of their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from sharedlog.cli.app import (
    ExamplesCommand,
    Lazy,
    LazyGroup,
    Settings,
    cluster_options,
    pass_settings,
)
from sharedlog.cli.failures import EXIT_NOT_FOUND, SilentExit
from sharedlog.cli.output import Column, iso_time, note, print_json, print_table
from sharedlog.cli.placement import parse_near, parse_spread, placement_options
from sharedlog.cli.retention import RETENTION_FLAGS, retention_options
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, spread_text, view_namespace
from sharedlog.retention import NO_RETENTION, RETENTION_SETTINGS, Retention, amount_text

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import namespace_pb2

_HERE = "sharedlog.cli.namespaces"
_SECTIONS = {
    "Namespaces": {
        "set": Lazy(_HERE, "set_namespace", "Set what logs under a prefix inherit."),
        "get": Lazy(_HERE, "get", "Show what a log under a prefix would get."),
        "ls": Lazy(_HERE, "list_namespaces", "List the prefixes that have something set."),
        "rm": Lazy(_HERE, "remove", "End what a prefix sets."),
    },
}
_VERSION = click.option(
    "--if-version",
    type=click.IntRange(min=0),
    metavar="N",
    help="Only if this is its version, as `get` shows it; 0: only if nothing is set.",
)


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog namespace set team/ --replicas 3 --spread zone:2
sharedlog namespace set '' --replicas 5         of every log, unless a longer prefix says otherwise
sharedlog namespace get team/jobs/
sharedlog namespace rm team/
""",
)
@cluster_options
def namespace() -> None:
    """What logs inherit by the beginning of their names.

    A namespace is a prefix that ends with a slash, or the empty one, of every log. A log that is
    created takes each setting from the longest of its prefixes that sets it. Logs that exist stay
    as they are.
    """


@click.command(
    name="set",
    cls=ExamplesCommand,
    examples="""
sharedlog namespace set team/ --replicas 3 --write-quorum 2
sharedlog namespace set team/eu/ --near eu-1      ordered where their writers are
sharedlog namespace set team/tmp/ --replicas 1 --write-quorum 1 --spread none
sharedlog namespace set team/ --local-age 7d --total-age 90d
sharedlog namespace set team/ --inherit spread   from a shorter prefix again
""",
)
@click.argument("prefix")
@click.option("--replicas", type=click.IntRange(min=1), metavar="N", help="Copies of each record.")
@click.option(
    "--write-quorum",
    type=click.IntRange(min=1),
    metavar="N",
    help="Copies on disk that make an append durable; more than half of the replicas.",
)
@placement_options
@retention_options
@click.option(
    "--inherit",
    multiple=True,
    type=click.Choice(["replicas", "write-quorum", "spread", "near", *RETENTION_FLAGS]),
    help="A setting that is not to be set here any more.",
)
@_VERSION
@cluster_options
@pass_settings
def set_namespace(
    settings: Settings,
    prefix: str,
    *,
    replicas: int | None,
    write_quorum: int | None,
    spread: str | None,
    near: str | None,
    local_bytes: int | None,
    local_age_s: int | None,
    total_age_s: int | None,
    inherit: tuple[str, ...],
    if_version: int | None,
) -> None:
    """Set what logs under PREFIX inherit that are created from now on; keep what is not given."""
    wanted = None if spread is None else parse_spread(spread)
    kept = Retention(local_bytes=local_bytes, local_age_s=local_age_s, total_age_s=total_age_s)
    given = (replicas, write_quorum, wanted, near, kept, inherit)
    if given == (None, None, None, None, NO_RETENTION, ()):
        raise click.UsageError("nothing is to be set; see --replicas and what follows it")

    async def work(cluster: Cluster) -> namespace_pb2.Namespace:
        return await cluster.namespaces.set(
            prefix,
            replicas=replicas,
            write_quorum=write_quorum,
            spread=wanted,
            near=None if near is None else parse_near(near),
            retention=kept,
            inherit=[name.replace("-", "_") for name in inherit],
            expected_version=if_version,
        )

    _print(settings, view_namespace(with_cluster(settings, work)))


@click.command(cls=ExamplesCommand, examples="sharedlog namespace get team/")
@click.argument("prefix")
@cluster_options
@pass_settings
def get(settings: Settings, prefix: str) -> None:
    """Show what PREFIX sets, and what a log that is created under it gets."""

    async def work(cluster: Cluster) -> namespace_pb2.Namespace:
        return await cluster.namespaces.get(prefix)

    _print(settings, view_namespace(with_cluster(settings, work)))


def _print(settings: Settings, found: Json) -> None:
    if settings.json:
        print_json(found)
        return
    click.echo(f"namespace {found['prefix'] or '(every log)'}: version {found['version']}")
    print_table(
        [Column("SETTING"), Column("A LOG GETS"), Column("FROM")],
        [
            [setting["name"], setting["value"] or "none", setting["source"]]
            for setting in found["effective"]
        ],
    )


@click.command(name="ls", cls=ExamplesCommand, examples="sharedlog namespace ls --json")
@click.argument("prefix", default="")
@cluster_options
@pass_settings
def list_namespaces(settings: Settings, prefix: str) -> None:
    """List what is set, of all prefixes or of those that start with PREFIX."""

    async def work(cluster: Cluster) -> list[Json]:
        return [view_namespace(found) for found in await cluster.namespaces.list(prefix)]

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"namespaces": found})
        return
    if not found:
        note("no namespaces")
    print_table(
        [
            Column("PREFIX"),
            Column("REPLICAS", right=True),
            Column("QUORUM", right=True),
            Column("SPREAD"),
            Column("NEAR"),
            *(Column(flag.replace("-", " ").upper(), right=True) for flag in RETENTION_FLAGS),
            Column("CHANGED"),
        ],
        [
            [
                entry["prefix"] or "(every log)",
                _set_or_not(entry["replicas"]),
                _set_or_not(entry["write_quorum"]),
                "-" if entry["spread"] is None else spread_text(entry["spread"]) or "none",
                "-" if entry["near"] is None else entry["near"] or "none",
                *(
                    "-" if entry[field] is None else amount_text(name, entry[field]) or "none"
                    for name, field in RETENTION_SETTINGS.items()
                ),
                iso_time(entry["changed_ms"]),
            ]
            for entry in found
        ],
    )


def _set_or_not(value: int | None) -> str:
    return "-" if value is None else str(value)


@click.command(name="rm", cls=ExamplesCommand, examples="sharedlog namespace rm team/")
@click.argument("prefix")
@_VERSION
@cluster_options
@pass_settings
def remove(settings: Settings, prefix: str, if_version: int | None) -> None:
    """End what PREFIX sets: logs that are created from now on inherit it from shorter ones."""

    async def work(cluster: Cluster) -> bool:
        return await cluster.namespaces.delete(prefix, expected_version=if_version)

    deleted = with_cluster(settings, work)
    if settings.json:
        print_json({"prefix": prefix, "deleted": deleted})
    else:
        click.echo(f"namespace {prefix}: " + ("deleted" if deleted else "nothing was set"))
    if not deleted:
        raise SilentExit(EXIT_NOT_FOUND)
