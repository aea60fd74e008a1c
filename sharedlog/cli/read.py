"""`sharedlog read` and `sharedlog tail`: a log's records to stdout."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

from sharedlog import errors
from sharedlog.cli.app import (
    ExamplesCommand,
    Function,
    Settings,
    cluster_options,
    pass_settings,
)
from sharedlog.cli.output import note
from sharedlog.cli.records import SHOWN, make_formatter
from sharedlog.cli.session import with_cluster

if TYPE_CHECKING:
    from sharedlog import Cluster, Log

_FORMATS: Final = ("text", "json", "hex", "raw")


@dataclass(frozen=True, slots=True)
class _Look:
    """How records are printed."""

    kind: str
    show: Sequence[str]


def _look_options(function: Function) -> Function:
    for decorate in (
        click.option(
            "-v",
            "--verbose",
            is_flag=True,
            help="Show offset, timestamp, key and headers before each value.",
        ),
        click.option(
            "--show",
            metavar="WHAT,...",
            default="",
            help="Of offset, timestamp, key, headers: what goes before each value, with tabs.",
        ),
        click.option(
            "--format",
            "kind",
            type=click.Choice(_FORMATS),
            help="text: value and newline. json: an object for each record. hex: value in hex and "
            "newline. raw: values and nothing else.  [default: text]",
        ),
    ):
        function = decorate(function)
    return function


def _look(settings: Settings, kind: str | None, show: str, verbose: bool) -> _Look:
    if settings.json and kind not in (None, "json"):
        raise click.UsageError(f"--json and --format {kind} exclude each other")
    chosen = kind or ("json" if settings.json else "text")
    wanted = [part.strip() for part in show.split(",") if part.strip()]
    for name in wanted:
        if name not in SHOWN:
            raise click.UsageError(f"--show {name!r}: choose from {', '.join(SHOWN)}")
    if verbose:
        wanted = list(SHOWN)
    if wanted and chosen in ("json", "raw"):
        raise click.UsageError(f"--show and -v are for text and hex, not for {chosen}")
    return _Look(chosen, wanted)


_key_option = click.option("--key", metavar="TEXT", help="Only records with this key.")


def _to_bytes(key: str | None) -> bytes | None:
    return None if key is None else key.encode("utf-8", "surrogateescape")


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog read orders                           all of it, as it is now
sharedlog read orders --from 100 --limit 10 -v
sharedlog read orders --from 100 --to 200 --format json | jq -r .value
sharedlog read orders --follow --show offset,key
sharedlog read orders --key customer-7
""",
)
@click.argument("log")
@click.option(
    "--from",
    "start",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="OFFSET",
    help="First offset.",
)
@click.option(
    "--to",
    "end",
    type=click.IntRange(min=0),
    metavar="OFFSET",
    help="Ends before this offset.  [default: the tail when the read starts; none with --follow]",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most so many records.")
@_key_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@_look_options
@cluster_options
@pass_settings
def read(
    settings: Settings,
    *,
    log: str,
    start: int,
    end: int | None,
    limit: int | None,
    key: str | None,
    follow: bool,
    kind: str | None,
    show: str,
    verbose: bool,
) -> None:
    """Read LOG from an offset on, to its tail unless told otherwise."""
    if end is not None and end < start:
        raise click.UsageError(f"--to {end} lies below --from {start}")
    look = _look(settings, kind, show, verbose)

    async def work(cluster: Cluster) -> None:
        found = cluster.log(log)
        next_offset = await _print(
            found, look, start=start, end=end, follow=follow, limit=limit, key=_to_bytes(key)
        )
        # Where the last record of a key lies says nothing of the tail.
        if (
            end is not None
            and key is None
            and next_offset < min(end, start + limit if limit else end)
        ):
            note(f"note: --to {end} lies beyond the tail {next_offset}; --follow waits for more")

    with_cluster(settings, work)


@click.command(
    cls=ExamplesCommand,
    examples="""
sharedlog tail orders                           the last ten records
sharedlog tail orders -n 100 -v
sharedlog tail orders -f                        and what comes, until Ctrl-C
sharedlog tail orders -n 0 -f --json            only what comes
sharedlog tail orders -n 1000 --key customer-7  of the last thousand records those with this key
""",
)
@click.argument("log")
@click.option(
    "-n",
    "count",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    metavar="N",
    help="So many of the last records.",
)
@_key_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@_look_options
@cluster_options
@pass_settings
def tail(
    settings: Settings,
    *,
    log: str,
    count: int,
    key: str | None,
    follow: bool,
    kind: str | None,
    show: str,
    verbose: bool,
) -> None:
    """Show the last records of LOG."""
    look = _look(settings, kind, show, verbose)

    async def work(cluster: Cluster) -> None:
        found = cluster.log(log)
        tail_offset = await _find_tail(found)
        start = max(0, tail_offset - count)
        end = None if follow else tail_offset
        await _print(
            found, look, start=start, end=end, follow=follow, limit=None, key=_to_bytes(key)
        )

    with_cluster(settings, work)


async def _find_tail(log: Log) -> int:
    """The tail; if nobody can tell it now, the highest that a log server knows."""
    try:
        return await log.tail()
    except (errors.LogUnavailable, errors.Unreachable, errors.DeadlineExceeded):
        return await log.known_tail()  # the read that follows says so


async def _print(
    log: Log,
    look: _Look,
    *,
    start: int,
    end: int | None,
    follow: bool,
    limit: int | None,
    key: bytes | None,
) -> int:
    """Print records as they come, a batch at a time; returns the offset after the last."""
    from contextlib import aclosing

    to_bytes = make_formatter(look.kind, look.show)
    stdout = sys.stdout.buffer
    at_once = follow or sys.stdout.isatty()
    next_offset = start
    batches = log.read_batches(
        start,
        end,
        follow=follow,
        limit=limit,
        key=key,
        on_stale=lambda text: note(f"warning: {text}"),
    )
    async with aclosing(batches):
        async for records in batches:
            stdout.write(to_bytes(records))
            if at_once:
                stdout.flush()
            next_offset = records[-1].offset + 1
    stdout.flush()
    return next_offset
