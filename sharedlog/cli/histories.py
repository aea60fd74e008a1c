"""`sharedlog log fork` and `sharedlog archive restore`: logs that begin with archived history."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import click

from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.failures import EXIT_FAILED, EXIT_RETRY, SilentExit
from sharedlog.cli.output import (
    BAD,
    GOOD,
    WARNING,
    Cell,
    Column,
    note,
    print_json,
    print_line,
    print_table,
)
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, view_log

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sharedlog import Cluster
    from sharedlog.v1 import history_pb2

_OUTCOMES: Final = {1: "restored", 2: "was restored before", 3: "failed"}
_STYLES: Final = {"restored": GOOD, "was restored before": "", "failed": BAD, "to restore": WARNING}
_REPLICAS = click.option(
    "--replicas", type=click.IntRange(min=1), metavar="N", help="Copies of each record."
)
_WRITE_QUORUM = click.option(
    "--write-quorum",
    type=click.IntRange(min=1),
    metavar="N",
    help="Copies on disk that make an append durable.",
)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log fork orders orders-before-the-bug --at 120000
sharedlog log fork orders orders-copy             with all that it has now
""",
)
@click.argument("name")
@click.argument("new_name")
@click.option(
    "--at",
    type=click.IntRange(min=1),
    metavar="OFFSET",
    help="The new log has what lies below; by default all that there is.",
)
@_REPLICAS
@_WRITE_QUORUM
@cluster_options
@pass_settings
def fork(
    settings: Settings,
    name: str,
    new_name: str,
    *,
    at: int | None,
    replicas: int | None,
    write_quorum: int | None,
) -> None:
    """Make a log NEW_NAME that has what the log NAME has below an offset, and goes on by itself.

    The two share the archived records: nothing is copied, but what is not archived yet is archived
    first. Fencing token and named producers are taken over as they were there. If several records
    were written as one batch, and the offset lies within it, the new log has none of them.
    """

    async def work(cluster: Cluster) -> history_pb2.ForkLogResponse:
        return await cluster.admin.fork_log(
            name, new_name, at=at, replicas=replicas or 0, write_quorum=write_quorum or 0
        )

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"at": found.at, "log": view_log(found.log)})
        return
    click.echo(f"log {new_name} has what {name} has in [{found.log.start}, {found.at})")
    if at is not None and found.at < at:
        note(f"offset {at} lies within a batch, which begins at {found.at}: it was left out")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog archive restore                                   which clusters are in the archive
sharedlog archive restore --cluster 6f0e2c... --dry-run     what would be restored
sharedlog archive restore --cluster 6f0e2c...
sharedlog archive restore --cluster 6f0e2c... --log orders --prefix restored/
""",
)
@click.option("--cluster", "cluster_id", metavar="ID", help="The cluster that is lost.")
@click.option(
    "--log", "logs", multiple=True, metavar="NAME", help="Only this log; may be repeated."
)
@click.option("--prefix", default="", metavar="PREFIX", help="Put in front of each log's name.")
@click.option("--dry-run", is_flag=True, help="Only show what would be restored.")
@_REPLICAS
@_WRITE_QUORUM
@cluster_options
@pass_settings
def restore(
    settings: Settings,
    *,
    cluster_id: str | None,
    logs: tuple[str, ...],
    prefix: str,
    dry_run: bool,
    replicas: int | None,
    write_quorum: int | None,
) -> None:
    """Make logs of what the archive has of another cluster, from there alone.

    Each log has all that was archived of it, and goes on behind that. What was not archived yet
    when the cluster was lost is not there; `end` tells how far each goes. It can be run again: what
    was restored stays as it is. A log whose name is taken by another is left out, and the exit code
    says so; with a --prefix there is room for both.

    Without --cluster, the clusters in the archive are listed.
    """
    if cluster_id is None:
        _print_clusters(settings)
        return

    async def work(cluster: Cluster) -> list[history_pb2.RestoreArchiveResponse]:
        answers = cluster.admin.restore_archive(
            cluster_id,
            logs,
            prefix=prefix,
            dry_run=dry_run,
            replicas=replicas or 0,
            write_quorum=write_quorum or 0,
        )
        found = []
        async with aclosing(answers):
            async for answer in answers:
                if not settings.json:
                    _say(answer, dry_run=dry_run)
                found.append(answer)
        return found

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"cluster": cluster_id, "logs": [_view(it, dry_run=dry_run) for it in found]})
    failed = [it for it in found if it.error]
    if failed:
        again = all(it.retryable for it in failed)
        raise SilentExit(EXIT_RETRY if again else EXIT_FAILED)


def _print_clusters(settings: Settings) -> None:
    async def work(cluster: Cluster) -> Sequence[history_pb2.ArchivedCluster]:
        return await cluster.admin.archived_clusters()

    found = with_cluster(settings, work)
    if settings.json:
        rows = [{"cluster": it.cluster_id, "logs": it.logs, "is_own": it.is_own} for it in found]
        print_json({"clusters": rows})
        return
    print_table(
        [Column("CLUSTER"), Column("LOGS", right=True), Column("")],
        [[it.cluster_id, str(it.logs), "this one" if it.is_own else ""] for it in found],
    )
    note("name the one to restore with --cluster")


def _outcome(answer: history_pb2.RestoreArchiveResponse, *, dry_run: bool) -> str:
    outcome = _OUTCOMES.get(answer.outcome, "unknown")
    return "to restore" if dry_run and outcome == "restored" else outcome


def _say(answer: history_pb2.RestoreArchiveResponse, *, dry_run: bool) -> None:
    """One line, as it is done: there may be many, and it may take long."""
    outcome = _outcome(answer, dry_run=dry_run)
    if answer.error:
        click.echo(
            f"{answer.new_log or answer.log or 'a log'}: {outcome}: {answer.error}", err=True
        )
        return
    named = answer.log if answer.new_log == answer.log else f"{answer.log} as {answer.new_log}"
    print_line(Cell(f"{named}: {outcome}, [{answer.start}, {answer.end})", _STYLES[outcome]))


def _view(answer: history_pb2.RestoreArchiveResponse, *, dry_run: bool) -> Json:
    return {
        "log": answer.log,
        "new_log": answer.new_log,
        "start": answer.start,
        "end": answer.end,
        "outcome": _outcome(answer, dry_run=dry_run),
        "error": answer.error or None,
    }
