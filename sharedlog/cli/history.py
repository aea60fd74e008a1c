"""`sharedlog log offload`, `trim` and `purge`: what becomes of a log's beginning."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeVar

import click

from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.failures import CliFailure
from sharedlog.cli.moments import now_ms
from sharedlog.cli.output import human_bytes, note, plural, print_json
from sharedlog.cli.retention import AmountType
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json
from sharedlog.retention import parse_duration

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import archive_pb2

Function = TypeVar("Function", bound=Callable[..., object])

_OFFSET_MAX: Final = 2**63 - 1


class ProgressLine:
    """One line on stderr that is written over, on a terminal only."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown and sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Write it in the place of the one before."""
        if self._shown:
            click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    def clear(self) -> None:
        """Leave nothing behind."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


def _bound_options(function: Function) -> Function:
    """--before and --older-than."""
    function = click.option(
        "--older-than",
        "older_than_s",
        type=AmountType(parse_duration),
        metavar="AGE",
        help="What is older than this, e.g. 7d: up to the first record that is not.",
    )(function)
    return click.option(
        "--before",
        type=click.IntRange(min=0, max=_OFFSET_MAX),
        metavar="OFFSET",
        help="What lies below this offset.",
    )(function)


def _bound(before: int | None, older_than_s: int | None) -> dict[str, int]:
    """What `Admin.trim` and `purge` take."""
    if before is not None and older_than_s is not None:
        raise click.UsageError("--before and --older-than exclude each other")
    if before is not None:
        return {"before": before}
    if not older_than_s:
        raise click.UsageError("up to where? --before OFFSET or --older-than AGE is needed")
    return {"older_than_ms": now_ms() - 1_000 * older_than_s}


def _show_offload(progress: ProgressLine, found: archive_pb2.OffloadLogResponse) -> None:
    progress.show(
        f"archived up to {found.archived_end:,} of {found.target:,} "
        f"({plural(found.objects, 'object')}, {human_bytes(found.bytes)})"
    )


def view_offload(found: archive_pb2.OffloadLogResponse) -> Json:
    """What an offload has come to."""
    return {
        "archived_end": found.archived_end,
        "objects": found.objects,
        "bytes": found.bytes,
    }


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log offload orders
""",
)
@click.argument("name")
@cluster_options
@pass_settings
def offload(settings: Settings, name: str) -> None:
    """Archive all of the log NAME that is committed by now, as the cluster does by itself later.

    Log servers keep it as well; see `log trim`.
    """
    progress = ProgressLine()

    async def work(cluster: Cluster) -> Json:
        found: Json = {}
        async with aclosing(cluster.admin.offload(name)) as answers:
            async for answer in answers:
                _show_offload(progress, answer)
                found = view_offload(answer)
        return found

    try:
        found = with_cluster(settings, work)
    finally:
        progress.clear()
    if settings.json:
        print_json({"log": name, **found})
        return
    made = f"{plural(found['objects'], 'object')}, {human_bytes(found['bytes'])}"
    click.echo(f"log {name} is archived up to {found['archived_end']} ({made} made by this)")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log trim orders --older-than 7d       older records are read from the archive
sharedlog log trim orders --before 1000000 --dry-run
""",
)
@click.argument("name")
@_bound_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@cluster_options
@pass_settings
def trim(
    settings: Settings,
    name: str,
    *,
    before: int | None,
    older_than_s: int | None,
    dry_run: bool,
) -> None:
    """Free the log servers of the beginning of the log NAME; it stays in the archive.

    What is not archived yet is archived first. Readers see no difference. What the next sequencer
    needs stays where it is: the answer says how far the trim went.
    """
    bound = _bound(before, older_than_s)
    progress = ProgressLine()

    async def work(cluster: Cluster) -> Json:
        found: Json = {}
        async with aclosing(cluster.admin.trim(name, dry_run=dry_run, **bound)) as answers:
            async for answer in answers:
                _show_offload(progress, answer.offload)
                if answer.done:
                    found = _view_trim(answer)
        if not found:
            raise CliFailure("the answer ended before the trim did; it may be tried again")
        return found

    try:
        found = with_cluster(settings, work)
    finally:
        progress.clear()
    if settings.json:
        print_json({"log": name, "dry_run": dry_run, **found})
    else:
        _print_trim(name, found, dry_run=dry_run)


def _view_trim(answer: archive_pb2.TrimLogResponse) -> Json:
    return {
        "wanted": answer.wanted,
        "trimmed": answer.trimmed,
        "start": answer.start,
        "waiting": list(answer.waiting),
        **view_offload(answer.offload),
    }


def _print_trim(name: str, found: Json, *, dry_run: bool) -> None:
    verb = "would keep" if dry_run else "keep"
    click.echo(f"log {name}: log servers {verb} nothing below {found['trimmed']}")
    if found["trimmed"] < found["wanted"]:
        note(f"not up to {found['wanted']}: the log's end, and what its next sequencer needs, stay")
    if dry_run and found["archived_end"] < found["trimmed"]:
        note(f"offsets {found['archived_end']} to {found['trimmed'] - 1} would be archived first")
    if found["objects"]:
        note(f"archived first: {plural(found['objects'], 'object')}, {human_bytes(found['bytes'])}")
    _note_waiting(found["waiting"])


def _note_waiting(waiting: list[str]) -> None:
    if waiting:
        note(f"not told yet, and told again until they are: {', '.join(waiting)}")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log purge orders --older-than 30d
sharedlog log purge orders --before 1000000 --dry-run
sharedlog log purge orders --before 1000000 --yes       for scripts
""",
)
@click.argument("name")
@_bound_options
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and do nothing.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@cluster_options
@pass_settings
def purge(
    settings: Settings,
    name: str,
    *,
    before: int | None,
    older_than_s: int | None,
    dry_run: bool,
    yes: bool,
) -> None:
    """Delete the beginning of the log NAME for ever, on log servers and in the archive.

    Offsets stay as they are: the log starts at a higher one. Reads below it fail and say so.
    """
    bound = _bound(before, older_than_s)

    async def ask(cluster: Cluster, *, dry: bool) -> Json:
        return _view_purge(await cluster.admin.purge(name, dry_run=dry, **bound))

    found: Json = {}
    if dry_run or not yes:
        found = with_cluster(settings, lambda cluster: ask(cluster, dry=True))
    if not dry_run:
        if not yes and found["start"] > found["start_before"]:
            if not sys.stdin.isatty():
                raise CliFailure("this needs --yes where nobody can be asked")
            _print_purge(name, found, verb="would be")
            click.confirm("Delete it for ever?", abort=True, err=True)
            bound = {"before": found["start"]}  # what was shown, whatever time it is by now
        found = with_cluster(settings, lambda cluster: ask(cluster, dry=False))
    if settings.json:
        print_json({"log": name, "dry_run": dry_run, **found})
    else:
        _print_purge(name, found, verb="would be" if dry_run else "are")


def _view_purge(answer: archive_pb2.PurgeLogResponse) -> Json:
    return {
        "start": answer.start,
        "start_before": answer.start_before,
        "objects": answer.objects,
        "bytes": answer.bytes,
        "waiting": list(answer.waiting),
        "left": answer.left or None,
    }


def _print_purge(name: str, found: Json, *, verb: str) -> None:
    first, start = found["start_before"], found["start"]
    if start > first:
        click.echo(f"log {name}: offsets {first} to {start - 1} {verb} deleted for ever")
    else:
        click.echo(f"log {name} starts at {start}: there is nothing below")
    if found["objects"]:
        size = human_bytes(found["bytes"])
        click.echo(f"with them {plural(found['objects'], 'object')} of the archive ({size})")
    if found["left"]:
        note(f"warning: not all of it is deleted from the archive: {found['left']}")
        note(f"once that is mended: sharedlog archive sweep {name}")
    _note_waiting(found["waiting"])
