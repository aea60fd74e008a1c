"""`sharedlog archive`: what is archived, whether it is sound, what nobody needs."""

from __future__ import annotations

import json
from contextlib import aclosing
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
from sharedlog.cli.failures import EXIT_DONE, EXIT_FAILED, SilentExit
from sharedlog.cli.history import ProgressLine
from sharedlog.cli.output import (
    BAD,
    GOOD,
    Cell,
    human_bytes,
    iso_time,
    note,
    plural,
    print_json,
    print_line,
)
from sharedlog.cli.retention import AmountType
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json
from sharedlog.errors import SharedLogError
from sharedlog.retention import parse_duration

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import archive_pb2

_HERE = "sharedlog.cli.archive"
_OFFLINE = "sharedlog.cli.archive_files"
_SECTIONS = {
    "Of a cluster": {
        "describe": Lazy(_HERE, "describe", "Show where the archive is, and what it has."),
        "verify": Lazy(_HERE, "verify", "Check all that is archived of a log."),
        "sweep": Lazy(_HERE, "sweep", "Delete objects that nothing names."),
    },
    "Of a lost cluster": {
        "restore": Lazy(
            "sharedlog.cli.histories", "restore", "Make logs of what the archive has of a cluster."
        ),
    },
    "Of files, without a cluster": {
        "inspect": Lazy(_OFFLINE, "inspect", "Show what an object or a manifest says."),
        "export": Lazy(_OFFLINE, "export", "Write archived records to a file."),
    },
}


@click.group(
    cls=LazyGroup,
    sections=_SECTIONS,
    examples="""
sharedlog archive describe orders
sharedlog archive verify orders --full
sharedlog archive inspect s3://bucket/prefix/CLUSTER/LOG/manifest -v
""",
)
@cluster_options
def archive() -> None:
    """The archive, where the beginning of logs lies: look into it, check it, clean it up.

    What is put there, and when, is said by `log set`, `log trim` and `log purge`.
    """


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog archive describe                      where it is, and whether it works
sharedlog archive describe orders
""",
)
@click.argument("name", default="")
@cluster_options
@pass_settings
def describe(settings: Settings, name: str) -> None:
    """Show where the archive is, whether it can be used, and what it has of the log NAME.

    The archive is tried out, with objects of a few bytes. Exit code 1 says that it can't be used.
    """

    async def work(cluster: Cluster) -> archive_pb2.DescribeArchiveResponse:
        return await cluster.admin.describe_archive(name, probe=True)

    answer = with_cluster(settings, work)
    found = _view_archive(answer)
    if settings.json:
        print_json(found)
    else:
        _print_archive(name, found)
    raise SilentExit(EXIT_FAILED if found["problem"] else EXIT_DONE)


def _view_archive(answer: archive_pb2.DescribeArchiveResponse) -> Json:
    log = answer.log
    return {
        "url": answer.url or None,
        "usable": bool(answer.url) and not answer.problem,
        "problem": answer.problem or None,
        "log": None
        if not answer.HasField("log")
        else {
            "log_id": log.log_id,
            "manifest_key": log.manifest_key,
            "revision": log.revision,
            "changed_ms": log.changed_ms,
            "start": log.start,
            "end": log.end,
            "archived_end": log.archived_end,
            "objects": log.objects,
            "bytes": log.bytes,
            "pages": log.pages,
            "forks": list(log.forks),
        },
    }


def _print_archive(name: str, found: Json) -> None:
    if found["url"] is None:
        click.echo("archive:      none; see [archive] url in the nodes' configuration")
        return
    click.echo(f"archive:      {found['url']}")
    usable = Cell(f"usable:       no: {found['problem']}", BAD)
    print_line(usable if found["problem"] else Cell("usable:       yes", GOOD))
    log = found["log"]
    if log is None:
        if name and not found["problem"]:
            click.echo(f"log {name}: nothing of it is archived")
        return
    for label, text in (
        ("manifest", log["manifest_key"]),
        ("revision", f"{log['revision']}, of {iso_time(log['changed_ms'])}"),
        ("archived", f"offsets {log['start']} up to {log['end']}, exclusive"),
        ("objects", f"{log['objects']:,} ({human_bytes(log['bytes'])})"),
        ("pages", f"{log['pages']:,}"),
        ("forks", ", ".join(log["forks"]) or "none"),
    ):
        click.echo(f"{label + ':':14}{text}")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog archive verify orders                 everything is there, and of the right size
sharedlog archive verify orders --full          every byte is read
""",
)
@click.argument("name")
@click.option("--full", is_flag=True, help="Read every object whole, and check all checksums.")
@cluster_options
@pass_settings
def verify(settings: Settings, name: str, *, full: bool) -> None:
    """Check every object and page that the manifest of the log NAME names.

    Findings are told as they are made, in JSON an object for each, and one for the whole at the
    end. Ends with exit code 1 if anything is wrong.
    """
    progress = ProgressLine()

    async def work(cluster: Cluster) -> Json:
        whole: Json = {"log": name, "checked": 0, "bytes": 0, "findings": 0}
        async with aclosing(cluster.admin.verify_archive(name, full=full)) as answers:
            async for answer in answers:
                progress.clear()
                for finding in answer.findings:
                    _tell_finding(settings, finding)
                whole["findings"] += len(answer.findings)
                whole["checked"], whole["bytes"] = answer.done, answer.bytes
                progress.show(f"{answer.done:,} of {answer.total:,} objects and pages")
        return whole

    try:
        whole = with_cluster(settings, work)
    finally:
        progress.clear()
    whole["ok"] = not whole["findings"]
    if settings.json:
        click.echo(json.dumps(whole))
    else:
        done = f"{plural(whole['checked'], 'object')} checked, {human_bytes(whole['bytes'])} read"
        if whole["ok"]:
            print_line(Cell(f"log {name}: all that is archived is sound ({done})", GOOD))
        else:
            note(f"{plural(whole['findings'], 'finding')}; {done}")
    raise SilentExit(EXIT_DONE if whole["ok"] else EXIT_FAILED)


def _tell_finding(settings: Settings, finding: archive_pb2.ArchiveFinding) -> None:
    if settings.json:
        found = {
            "key": finding.key,
            "first": finding.first,
            "end": finding.end,
            "kind": finding.kind,
            "message": finding.message,
        }
        click.echo(json.dumps(found))
        return
    where = f"offsets {finding.first} up to {finding.end}, {finding.key}"
    print_line(Cell(f"{finding.kind}: {where}: {finding.message}", BAD))


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog archive sweep orders --dry-run
sharedlog archive sweep --all --grace 3d
""",
)
@click.argument("name", default="")
@click.option("--all", "every", is_flag=True, help="Of every log.")
@click.option(
    "--grace",
    "grace_s",
    type=AmountType(parse_duration),
    metavar="AGE",
    help="Only what was written longer ago; none: all.  [default: 24h]",
)
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and do nothing.")
@cluster_options
@pass_settings
def sweep(
    settings: Settings, name: str, *, every: bool, grace_s: int | None, dry_run: bool
) -> None:
    """Delete archived objects of the log NAME that neither its manifest nor a fork's names.

    They are left behind by nodes that ended in the middle of an upload, or lost a race. Deleted
    keys go to stdout, in JSON an object for each, and one for each log at its end.
    """
    if bool(name) == every:
        raise click.UsageError("either the name of a log or --all is needed")
    grace_ms = None if grace_s is None else 1_000 * grace_s

    async def work(cluster: Cluster) -> bool:
        if not every:
            await _sweep(settings, cluster, name, grace_ms=grace_ms, dry_run=dry_run)
            return True
        is_done = True
        async for log in cluster.iter_logs():
            try:
                await _sweep(settings, cluster, log.name, grace_ms=grace_ms, dry_run=dry_run)
            except SharedLogError as error:
                note(f"error: log {log.name}: {error}")
                is_done = False
        return is_done

    raise SilentExit(EXIT_DONE if with_cluster(settings, work) else EXIT_FAILED)


async def _sweep(
    settings: Settings, cluster: Cluster, name: str, *, grace_ms: int | None, dry_run: bool
) -> None:
    whole: Json = {"log": name, "dry_run": dry_run, "listed": 0, "young": 0, "swept": 0, "bytes": 0}
    steps = cluster.admin.sweep_archive(name, grace_ms=grace_ms, dry_run=dry_run)
    async with aclosing(steps) as answers:
        async for answer in answers:
            whole["listed"] += answer.listed
            whole["young"] += answer.young
            for it in answer.swept:
                whole["swept"] += 1
                whole["bytes"] += it.bytes
                shown = {"key": it.key, "bytes": it.bytes, "modified_ms": it.modified_ms}
                click.echo(json.dumps({"log": name, **shown}) if settings.json else it.key)
    if settings.json:
        click.echo(json.dumps(whole))
        return
    verb = "would be deleted" if dry_run else "deleted"
    swept, size = plural(whole["swept"], "object"), human_bytes(whole["bytes"])
    young = f", {whole['young']:,} of them too young" if whole["young"] else ""
    note(f"log {name}: {swept} ({size}) {verb} of {whole['listed']:,}{young}")
