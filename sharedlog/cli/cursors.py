"""`sharedlog cursor`: the places in a log that are kept in the cluster."""

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
from sharedlog.cli.failures import EXIT_NOT_FOUND, SilentExit
from sharedlog.cli.output import Column, iso_time, note, print_json, print_table
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, view_cursor

if TYPE_CHECKING:
    from sharedlog import Cluster

_HERE = "sharedlog.cli.cursors"
_SECTIONS = {
    "Cursors": {
        "ls": Lazy(_HERE, "list_cursors", "List a log's cursors and how far they are."),
        "show": Lazy(_HERE, "show", "Show one cursor."),
        "seek": Lazy(_HERE, "seek", "Set where a cursor is; its owner loses it."),
        "rm": Lazy(_HERE, "remove", "Delete a cursor; its owner loses it."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog cursor ls orders
sharedlog cursor seek orders billing 1200
sharedlog cursor rm orders billing
""",
)
@cluster_options
def cursor() -> None:
    """Places in a log that are kept in the cluster, each moved by one owner at a time."""


@click.command(name="ls", cls=ExamplesCommand, examples="sharedlog cursor ls orders --json")
@click.argument("log")
@cluster_options
@pass_settings
def list_cursors(settings: Settings, log: str) -> None:
    """List the cursors of LOG: where each is, and how far behind the tail."""

    async def work(cluster: Cluster) -> list[Json]:
        found = await cluster.log(log).cursors.list()
        tail = await _tail(cluster, log) if found else 0
        return [_with_lag(view_cursor(it), tail) for it in found]

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"log": log, "cursors": found})
        return
    if not found:
        note(f"log {log} has no cursors")
    names = ("POSITION", "LAG", "EPOCH")
    print_table(
        [
            Column("NAME"),
            *(Column(name, right=True) for name in names),
            Column("OWNER"),
            Column("CHANGED"),
        ],
        [
            [
                entry["name"],
                str(entry["position"]),
                str(entry["lag"]),
                str(entry["epoch"]),
                entry["owner_name"],
                iso_time(entry["changed_ms"]),
            ]
            for entry in found
        ],
    )


@click.command(cls=ExamplesCommand, examples="sharedlog cursor show orders billing")
@click.argument("log")
@click.argument("name")
@cluster_options
@pass_settings
def show(settings: Settings, log: str, name: str) -> None:
    """Show the cursor NAME of LOG."""

    async def work(cluster: Cluster) -> Json:
        found = view_cursor(await cluster.log(log).cursors.get(name))
        return _with_lag(found, await _tail(cluster, log))

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"log": log, **found})
        return
    for label in ("name", "position", "lag", "epoch", "owner_name"):
        click.echo(f"{label.replace('_name', '') + ':':14}{found[label]}")
    click.echo(f"{'changed:':14}{iso_time(found['changed_ms'])}")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog cursor seek orders billing 0          all of it once more
sharedlog cursor seek orders billing 1200
""",
)
@click.argument("log")
@click.argument("name")
@click.argument("offset", type=click.IntRange(min=0))
@cluster_options
@pass_settings
def seek(settings: Settings, log: str, name: str, offset: int) -> None:
    """Set the cursor NAME of LOG to OFFSET, backwards too.

    Whoever has it loses it: its next commit fails, and it goes on from OFFSET when it opens the
    cursor again.
    """

    async def work(cluster: Cluster) -> Json:
        return view_cursor(await cluster.log(log).cursors.seek(name, offset))

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"log": log, **found})
    else:
        click.echo(f"cursor {name} of {log} is at {found['position']}, epoch {found['epoch']}")


@click.command(name="rm", cls=ExamplesCommand, examples="sharedlog cursor rm orders billing")
@click.argument("log")
@click.argument("name")
@cluster_options
@pass_settings
def remove(settings: Settings, log: str, name: str) -> None:
    """Delete the cursor NAME of LOG; whoever has it loses it."""

    async def work(cluster: Cluster) -> bool:
        return await cluster.log(log).cursors.delete(name)

    deleted = with_cluster(settings, work)
    if settings.json:
        print_json({"log": log, "name": name, "deleted": deleted})
    else:
        click.echo(f"cursor {name} of {log}: " + ("deleted" if deleted else "there was none"))
    if not deleted:
        raise SilentExit(EXIT_NOT_FOUND)


async def _tail(cluster: Cluster, log: str) -> int:
    """The tail, or the highest that is known if nobody can tell it."""
    try:
        return await cluster.log(log).tail()
    except (errors.LogUnavailable, errors.Unreachable, errors.DeadlineExceeded) as error:
        note(f"warning: {error}")
        return await cluster.log(log).known_tail()


def _with_lag(found: Json, tail: int) -> Json:
    return {**found, "lag": max(0, tail - found["position"])}
