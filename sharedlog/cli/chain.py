"""`sharedlog log chain`, `digest`, `check` and `accept-loss`: a log's segments, looked into."""

from __future__ import annotations

import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

import click

from sharedlog.cli.app import ExamplesCommand, Settings, cluster_options, pass_settings
from sharedlog.cli.failures import EXIT_DONE, EXIT_FAILED, CliFailure, SilentExit
from sharedlog.cli.output import (
    BAD,
    GOOD,
    WARNING,
    Cell,
    Column,
    human_bytes,
    iso_time,
    note,
    plural,
    print_json,
    print_line,
    print_table,
)
from sharedlog.cli.reconfigure import describe_segment
from sharedlog.cli.session import with_cluster
from sharedlog.cli.views import Json, spread_text, view_digest, view_finding, view_log, view_segment

if TYPE_CHECKING:
    from sharedlog import Cluster
    from sharedlog.v1 import admin_pb2

_HOLDING_CELLS: Final = {
    "holds": Cell("holds", GOOD),
    "hole": Cell("hole", BAD),
    "damaged": Cell("damaged", BAD),
    "no answer": Cell("no answer", WARNING),
    "lost": Cell("lost", BAD),
}


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log chain orders
sharedlog log chain orders --last 20
sharedlog log chain orders --json | jq '.chain | length'
""",
)
@click.argument("name")
@click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N segments.")
@cluster_options
@pass_settings
def chain(settings: Settings, name: str, last: int | None) -> None:
    """Show every segment of the log NAME: base, end, sequencer, nodeset, state."""

    async def work(cluster: Cluster) -> Json:
        return view_log(await cluster.describe_log(name))

    found = with_cluster(settings, work)
    segments = found["chain"][-last:] if last else found["chain"]
    if settings.json:
        print_json({"log": name, "chain_version": found["chain_version"], "chain": segments})
        return
    print_table(
        [
            Column("SEGMENT", right=True),
            Column("BASE", right=True),
            Column("END", right=True),
            Column("STATE"),
            Column("SEQUENCER"),
            Column("QUORUM", right=True),
            Column("SPREAD"),
            Column("NODESET"),
        ],
        [
            [
                str(segment["index"]),
                str(segment["base"]),
                "" if segment["end"] is None else str(segment["end"]),
                _state(segment),
                _sequencer(segment),
                f"{segment['write_quorum']}/{len(segment['nodeset'])}"
                if segment["nodeset"]
                else "",
                spread_text(segment["spread"]),
                " ".join(replica["node_id"] for replica in segment["nodeset"]) or "in the archive",
            ]
            for segment in segments
        ],
    )


def _sequencer(segment: Json) -> str:
    if not segment["nodeset"]:
        return ""
    return "{node_id}.{generation}".format(**segment["sequencer"])


def _state(segment: Json) -> Cell:
    if segment["lost"]:
        return Cell("loss accepted", WARNING)
    if not segment["nodeset"]:
        return Cell("archived", "")  # it begins a log that was forked or restored
    return Cell("open", GOOD) if segment["end"] is None else Cell("closed", "")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log digest orders
sharedlog log digest orders --segment 3
""",
)
@click.argument("name")
@click.option("--segment", type=click.IntRange(min=0), metavar="N", help="Only this segment.")
@cluster_options
@pass_settings
def digest(settings: Settings, name: str, segment: int | None) -> None:
    """Show which log server holds which offsets of the log NAME.

    Ranges with fewer copies than the segment wants are red. Nothing is read but the index: `log
    check` reads the records.
    """

    async def work(cluster: Cluster) -> list[Json]:
        async with aclosing(cluster.admin.digest(name, segment)) as answers:
            return [view_digest(answer) async for answer in answers]

    found = with_cluster(settings, work)
    if settings.json:
        print_json({"log": name, "segments": found})
        return
    for entry in found:
        _print_digest(entry)


def _print_digest(entry: Json) -> None:
    segment = entry["segment"]
    state = "open" if segment["end"] is None else "closed"
    click.echo(f"segment {segment['index']} ({state}): {describe_segment(segment)}")
    replicas = entry["replicas"]
    print_table(
        [
            Column("FIRST", right=True),
            Column("END", right=True),
            *(Column(replica["node_id"]) for replica in replicas),
        ],
        [
            [
                _offset(part["first"], part),
                _offset(part["end"], part),
                *(_HOLDING_CELLS.get(holding, holding) for holding in part["holdings"]),
            ]
            for part in entry["ranges"]
        ],
    )
    for replica in replicas:
        status = replica["status"]
        if status is None:
            print_line(Cell(f"  {replica['node_id']}: no answer: {replica['error']}", WARNING))
            continue
        sealed = "sealed" if status["sealed"] else "not sealed"
        click.echo(
            f"  {replica['node_id']}: {sealed}, local tail {status['local_tail']}, "
            f"knows committed below {status['committed_tail']}"
        )
    click.echo()


def _offset(offset: int, part: Json) -> str | Cell:
    return Cell(str(offset), BAD) if part["under_replicated"] else str(offset)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog log check orders
sharedlog log check orders --segment 3 --json
""",
)
@click.argument("name")
@click.option("--segment", type=click.IntRange(min=0), metavar="N", help="Only this segment.")
@cluster_options
@pass_settings
def check(settings: Settings, name: str, segment: int | None) -> None:
    """Read every replica of the log NAME, verify checksums, and compare the replicas.

    Says what is missing where. Ends with exit code 1 if anything is wrong.
    """
    findings: list[Json] = []
    progress = _Progress(shown=not settings.json)

    async def work(cluster: Cluster) -> int:
        size = 0
        async with aclosing(cluster.admin.check(name, segment)) as answers:
            async for answer in answers:
                findings.extend(view_finding(finding) for finding in answer.findings)
                progress.show(answer)
                size = max(size, answer.bytes)
        return size

    size = with_cluster(settings, work)
    progress.clear()
    if settings.json:
        print_json({"log": name, "bytes": size, "ok": not findings, "findings": findings})
    else:
        _print_findings(name, findings, size)
    raise SilentExit(EXIT_FAILED if findings else EXIT_DONE)


class _Progress:
    """One line on stderr that is written over, on a terminal only."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()

    def show(self, answer: admin_pb2.CheckLogResponse) -> None:
        if self._shown and answer.total:
            share = 100 * answer.done / answer.total
            click.echo(f"\r{share:5.1f} % of {answer.total:,} offsets", nl=False, err=True)

    def clear(self) -> None:
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


def _print_findings(name: str, findings: list[Json], size: int) -> None:
    if not findings:
        good = f"log {name}: all replicas whole and in agreement ({human_bytes(size)} read)"
        print_line(Cell(good, GOOD))
        return
    print_table(
        [
            Column("SEGMENT", right=True),
            Column("FIRST", right=True),
            Column("END", right=True),
            Column("NODE"),
            Column("FINDING"),
            Column("WHAT"),
        ],
        [
            [
                str(finding["segment_index"]),
                str(finding["first"]),
                str(finding["end"]),
                finding["node_id"] or "all",
                Cell(finding["kind"], WARNING if finding["kind"] == "no answer" else BAD),
                finding["message"],
            ]
            for finding in findings
        ],
    )
    note(f"{plural(len(findings), 'finding')}, {human_bytes(size)} read")


@click.command(
    name="accept-loss",
    cls=ExamplesCommand,
    examples="""
sharedlog log accept-loss orders --segment 3 --dry-run
sharedlog log accept-loss orders --segment 3 --reason "both disks gone" --yes
""",
)
@click.argument("name")
@click.option(
    "--segment", type=click.IntRange(min=0), required=True, metavar="N", help="Which segment."
)
@click.option("--reason", default="", metavar="TEXT", help="Why; it stays in the log's chain.")
@click.option("--dry-run", is_flag=True, help="Say what would be given up, and do nothing.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@cluster_options
@pass_settings
def accept_loss(
    settings: Settings, name: str, *, segment: int, reason: str, dry_run: bool, yes: bool
) -> None:
    """Give up records of the log NAME that no log server can give back.

    For a log that `status` calls unrepairable. The log goes on; readers get the lost range as an
    error that says so, once, and may read on behind it. Refused while a server that is only away
    may still have the records.
    """
    if not dry_run and not reason:
        raise click.UsageError("--reason is needed: it stays in the log's chain")

    async def ask(cluster: Cluster, *, dry: bool) -> Json:
        answer = await cluster.admin.accept_loss(name, segment, reason=reason, dry_run=dry)
        after = view_segment(answer.segment)
        after["chain_version"] = answer.chain_version
        lost = [{"first": part.first, "end": part.end} for part in answer.lost]
        return {"log": name, "dry_run": dry, "lost": lost, "segment": after}

    found = with_cluster(settings, lambda cluster: ask(cluster, dry=True))
    if not dry_run:
        if not yes:
            _print_loss(found)
            if not sys.stdin.isatty():
                raise CliFailure("this needs --yes where nobody can be asked")
            click.confirm("Give it up for ever?", abort=True, err=True)
        found = with_cluster(settings, lambda cluster: ask(cluster, dry=False))
    if settings.json:
        print_json(found)
    else:
        _print_loss(found)


def _print_loss(found: Json) -> None:
    segment = found["segment"]
    verb = "would be" if found["dry_run"] else "is"
    for part in found["lost"]:
        if part["first"] == part["end"]:
            click.echo(f"{verb} given up: whatever lay at or above offset {part['first']}")
        else:
            click.echo(f"{verb} given up: offsets {part['first']} to {part['end'] - 1}")
    if not found["lost"]:
        click.echo("no record is lost")
    click.echo(f"segment {segment['index']} {verb} closed at {segment['end']}")
    for part in segment["lost"]:
        if part["accepted_ms"]:
            click.echo(f"  accepted {iso_time(part['accepted_ms'])}: {part['reason']}")
